// Names of files as bytes, which is what they are, and as the strings that travel: a byte that is no UTF-8 is one of U+DC80…U+DCFF.
import { Failure } from './failure.ts';

const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** Throws Failure('invalid') for other halves of characters. */
export function toBytes(text: string): Buffer {
  if (text.isWellFormed()) return Buffer.from(text);
  return Buffer.concat(
    [...text].map((character) => {
      const unit = character.codePointAt(0) as number;
      if (unit < 0xd800 || unit > 0xdfff) return Buffer.from(character);
      if (unit >= 0xdc80 && unit <= 0xdcff) return Buffer.of(unit - 0xdc00);
      throw new Failure('invalid', 'a name holds half a character (a lone surrogate outside U+DC80…U+DCFF)');
    }),
  );
}

export function fromBytes(bytes: Uint8Array): string {
  try {
    return decoder.decode(bytes);
  } catch {
    let text = '';
    for (let at = 0; at < bytes.length; ) {
      const first = bytes[at] as number;
      const length = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
      try {
        text += decoder.decode(bytes.subarray(at, at + length));
        at += length;
      } catch {
        text += String.fromCharCode(0xdc00 + first);
        at++;
      }
    }
    return text;
  }
}
