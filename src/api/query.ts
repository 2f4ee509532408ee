// Query strings, decoded so that any file name can be asked for: bytes that are not UTF-8 become U+DC80…U+DCFF, as in the guest protocol.

const strict = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** Every value of every name, in order. `search` is what follows the question mark, as it stood in the request line. */
export function parseQuery(search: string): Map<string, string[]> {
  const query = new Map<string, string[]>();
  for (const pair of search.split('&')) {
    if (pair === '') continue;
    const equals = pair.indexOf('=');
    const name = decode(equals < 0 ? pair : pair.slice(0, equals));
    const values = query.get(name) ?? [];
    values.push(equals < 0 ? '' : decode(pair.slice(equals + 1)));
    query.set(name, values);
  }
  return query;
}

function decode(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: the range is ASCII, all of it
  if (/^[\x00-\x7f]*$/.test(text) && !/[%+]/.test(text)) return text;
  // Node hands out the request line as Latin-1, one character for each byte.
  const latin1 = text
    .replaceAll('+', ' ')
    .replace(/%([0-9a-f]{2})/gi, (_, hex) => String.fromCharCode(Number.parseInt(hex, 16)));
  return decodeBytes(Buffer.from(latin1, 'latin1'));
}

/** UTF-8, with each byte that is none as one lone surrogate. */
export function decodeBytes(bytes: Uint8Array): string {
  try {
    return strict.decode(bytes);
  } catch {
    let text = '';
    for (let at = 0; at < bytes.length; ) {
      const length = lengthOfSequence(bytes, at);
      text +=
        length > 0
          ? strict.decode(bytes.subarray(at, at + length))
          : String.fromCharCode(0xdc00 + (bytes[at] ?? 0));
      at += Math.max(1, length);
    }
    return text;
  }
}

/** 0 when no valid sequence starts here. */
function lengthOfSequence(bytes: Uint8Array, at: number): number {
  const lead = bytes[at] ?? 0;
  const length = lead < 0x80 ? 1 : lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 0;
  if (length === 0 || at + length > bytes.length) return 0;
  try {
    strict.decode(bytes.subarray(at, at + length));
    return length;
  } catch {
    return 0;
  }
}
