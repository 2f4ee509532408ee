// Placeholders: what a guest holds instead of a secret. Worthless by themselves, and unlike anything that stands in innocent text, so that one
// seen on a wrong way tells that somebody is trying it with what should be a key.
import { createHash, randomInt } from 'node:crypto';
import { base64Forms, percentDecoded } from './encodings.ts';

/** Shorter ones may be ordinary words: they are put in where they are bound, but nobody looks for them anywhere else. */
export const watchedBytesMin = 16;

const alphabets = {
  rand: 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789',
  hex: '0123456789abcdef',
  base32: 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567',
} as const;

/** `{rand}` is 32 letters and digits, `{rand:N}` is N of them; also `{hex:N}` and `{base32:N}`. */
export function placeholderFrom(template: string): string {
  return template.replace(
    /\{(rand|hex|base32)(?::(\d{1,3}))?\}/g,
    (_, alphabet: keyof typeof alphabets, length: string | undefined) => {
      const characters = alphabets[alphabet];
      return Array.from(
        { length: Number(length ?? 32) },
        () => characters[randomInt(characters.length)],
      ).join('');
    },
  );
}

/** What is wrong with a placeholder of the user's own, or undefined. */
export function placeholderProblem(template: string): string | undefined {
  if (!/^[\x21-\x7e]+$/.test(template)) return 'may hold printable ASCII without spaces only';
  const made = placeholderFrom(template);
  if (made.length < watchedBytesMin)
    return `is shorter than ${watchedBytesMin} characters, so it could stand in innocent text; add {rand}`;
  if (made.length > 512) return 'becomes longer than 512 characters';
  return undefined;
}

/** The secret key to the access key that is a placeholder: any forty characters do, but they have to be the same in every command. */
export function secretKeyBeside(placeholder: string): string {
  return createHash('sha256').update(`glovebox secret key ${placeholder}`).digest('base64').slice(0, 40);
}

/** All forms in which a request or a body may show a placeholder. */
export function placeholderForms(placeholder: string): string[] {
  return [placeholder, ...base64Forms(Buffer.from(placeholder))];
}

/** Finds placeholders in the head of a request: as they are, in base64 (Basic, say), with their characters written as %XX. */
export class Finder {
  readonly #forms: { form: string; lowered: string; placeholder: string }[];

  constructor(placeholders: Iterable<string>) {
    this.#forms = [...placeholders].flatMap((placeholder) =>
      placeholderForms(placeholder).map((form) => ({ form, lowered: form.toLowerCase(), placeholder })),
    );
  }

  find(request: {
    target: string;
    headers: readonly (readonly [name: string, value: string])[];
  }): Set<string> {
    const found = new Set<string>();
    if (this.#forms.length === 0) return found;
    const texts = readings([request.target, ...request.headers.map(([, value]) => value)].join('\n'));
    // Their case has been lost, though it may go on as it was spelt.
    const names = readings(request.headers.map(([name]) => name).join('\n')).map((text) =>
      text.toLowerCase(),
    );
    for (const { form, lowered, placeholder } of this.#forms)
      if (texts.some((text) => text.includes(form)) || names.some((text) => text.includes(lowered)))
        found.add(placeholder);
    return found;
  }
}

/** As it is, and with what it escapes. */
const readings = (text: string): string[] => (text.includes('%') ? [text, percentDecoded(text)] : [text]);
