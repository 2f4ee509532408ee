// Patterns for the names of files: `*` and `**` any characters, `?` one, `[a-z]` one of, `[!a-z]` one not of,
// `{a,b}` one of several patterns, `\` takes the next literally.
import { Refusal } from './refusal.ts';

const patternCharsMax = 1024;
/** What all the braces of a pattern may be multiplied out to. */
const alternativesMax = 64;

type Part = { kind: 'any' } | { kind: 'one'; test: (char: string) => boolean };

/** Takes time proportional to name × pattern × alternatives at worst, whatever the pattern. */
export function matcher(pattern: string): (name: string) => boolean {
  if (typeof pattern !== 'string' || pattern.length > patternCharsMax) {
    throw new Refusal('invalid', `pattern: at most ${patternCharsMax} characters`);
  }
  const alternatives = withoutBraces([...pattern]).map(parse);
  return (name) => {
    const chars = [...name];
    return alternatives.some((parts) => matches(chars, parts));
  };
}

/** The patterns that one with braces stands for. */
function withoutBraces(chars: string[]): string[][] {
  const open = braceFrom(chars, 0);
  if (open < 0) return [chars];
  const before = chars.slice(0, open);
  const options: string[][] = [];
  let begin = open + 1;
  let depth = 1;
  let at = begin;
  for (; depth > 0; at++) {
    const char = chars[at];
    if (char === undefined) throw new Refusal('invalid', `pattern: the { at character ${open + 1} has no }`);
    if (char === '\\') at++;
    else if (char === '{') depth++;
    else if (char === '}') depth--;
    if (depth === 0 || (depth === 1 && char === ',')) {
      options.push(chars.slice(begin, at));
      begin = at + 1;
    }
  }
  const rest = chars.slice(at);
  const all: string[][] = [];
  for (const option of options)
    for (const whole of withoutBraces([...before, ...option, ...rest])) {
      all.push(whole);
      if (all.length > alternativesMax)
        throw new Refusal('invalid', `pattern: its braces stand for more than ${alternativesMax} patterns`);
    }
  return all;
}

/** Where the next brace opens that is none of a set's and not taken literally; -1 when there is none. */
function braceFrom(chars: string[], from: number): number {
  for (let at = from; at < chars.length; at++) {
    if (chars[at] === '{') return at;
    if (chars[at] === '\\') at++;
    else if (chars[at] === '[') at = Math.max(at, endOfSet(chars, at));
  }
  return -1;
}

/** Where the set that begins here ends; -1 when it does not. */
function endOfSet(chars: string[], at: number): number {
  return chars.indexOf(']', at + (chars[at + 1] === '!' || chars[at + 1] === '^' ? 3 : 2));
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
      const end = endOfSet(chars, i);
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
