// The shapes in which one string can stand inside another text: what to look for in a request or an answer that may hold it.

/** Of the base64 of any text that holds these bytes, what does not depend on the text around: for each of the three alignments, in both alphabets. */
export function base64Forms(bytes: Buffer): string[] {
  const forms = new Set<string>();
  for (const alphabet of ['base64', 'base64url'] as const)
    for (const before of [0, 1, 2]) {
      const text = Buffer.concat([Buffer.alloc(before), bytes]).toString(alphabet);
      // A character stands for six bits: those that share bits with a neighbouring byte are left out.
      forms.add(text.slice(Math.ceil((before * 8) / 6), Math.floor(((before + bytes.length) * 8) / 6)));
    }
  return [...forms];
}

/** As a query or a path carries it: nothing but unreserved characters stays as it is. */
export function percentEncoded(text: string): string {
  return encodeURIComponent(text).replace(
    /[!'()*]/g,
    (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`,
  );
}

/** Every `%XX` as its byte; what is no such escape stays. For searching, so it never fails. */
export function percentDecoded(text: string): string {
  return text.replace(/%([0-9A-Fa-f]{2})/g, (_, hex: string) =>
    String.fromCharCode(Number.parseInt(hex, 16)),
  );
}

/** As it stands inside a JSON string. */
export function jsonEscaped(text: string): string {
  return JSON.stringify(text).slice(1, -1);
}

/** Shorter secrets are not looked for in answers: they would be found in innocent text. */
const scrubbedBytesMin = 8;

/** All that an answer must not show of a secret: itself, and its usual encodings. */
export function scrubForms(secret: string): Buffer[] {
  const bytes = Buffer.from(secret);
  if (bytes.length < scrubbedBytesMin) return [];
  const encoded = percentEncoded(secret);
  const hex = bytes.toString('hex');
  const forms = new Set([
    secret,
    jsonEscaped(secret),
    encoded,
    encoded.replace(/%[0-9A-F]{2}/g, (escaped) => escaped.toLowerCase()),
    encodeURIComponent(secret),
    new URLSearchParams([['', secret]]).toString().slice(1),
    hex,
    hex.toUpperCase(),
    ...base64Forms(bytes),
  ]);
  return [...forms].map((form) => Buffer.from(form));
}
