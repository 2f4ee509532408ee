// Patterns for the names of files: `*` and `**` any characters, `?` one, `[a-z]` one of, `[!a-z]` one not of, `\` takes the next literally.
import { Refusal } from './refusal.ts';

const patternCharsMax = 1024;

type Part = { kind: 'any' } | { kind: 'one'; test: (char: string) => boolean };

/** Takes time proportional to name × pattern at worst, whatever the pattern. */
export function matcher(pattern: string): (name: string) => boolean {
  if (typeof pattern !== 'string' || pattern.length > patternCharsMax) {
    throw new Refusal('invalid', `pattern: at most ${patternCharsMax} characters`);
  }
  const parts = parse([...pattern]);
  return (name) => matches([...name], parts);
}

function parse(chars: string[]): Part[] {
  const parts: Part[] = [];
  for (let i = 0; i < chars.length; i++) {
    const char = chars[i] as string;
    if (char === '*') {
      if (parts.at(-1)?.kind !== 'any') parts.push({ kind: 'any' });
    } else if (char === '?') {
      parts.push({ kind: 'one', test: () => true });
    } else if (char === '[') {
      const end = chars.indexOf(']', i + (chars[i + 1] === '!' || chars[i + 1] === '^' ? 3 : 2));
      if (end < 0) throw new Refusal('invalid', `pattern: the [ at character ${i + 1} has no ]`);
      parts.push({ kind: 'one', test: oneOf(chars.slice(i + 1, end)) });
      i = end;
    } else {
      const literal = char === '\\' && i + 1 < chars.length ? (chars[++i] as string) : char;
      parts.push({ kind: 'one', test: (it) => it === literal });
    }
  }
  return parts;
}

function oneOf(chars: string[]): (char: string) => boolean {
  const not = chars[0] === '!' || chars[0] === '^';
  const ranges: [string, string][] = [];
  for (let i = not ? 1 : 0; i < chars.length; i++) {
    const from = chars[i] as string;
    const to = chars[i + 1] === '-' && i + 2 < chars.length ? (chars[i + 2] as string) : from;
    if (to !== from) i += 2;
    ranges.push([from, to]);
  }
  return (char) => ranges.some(([from, to]) => char >= from && char <= to) !== not;
}

function matches(name: string[], parts: Part[]): boolean {
  let at = 0;
  let part = 0;
  // Where to go on when the last `*` has to take one character more.
  let star: { part: number; at: number } | undefined;
  while (at < name.length || part < parts.length) {
    const next = parts[part];
    if (next?.kind === 'any') {
      star = { part, at };
      part++;
    } else if (next !== undefined && at < name.length && next.test(name[at] as string)) {
      part++;
      at++;
    } else if (star !== undefined && star.at < name.length) {
      star.at++;
      at = star.at;
      part = star.part + 1;
    } else {
      return false;
    }
  }
  return true;
}
