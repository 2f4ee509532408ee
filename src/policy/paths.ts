// Paths of requests, as rules name them and as they come off the wire. Servers read an unusual path in different ways (escapes, double slashes,
// parameters), so a rule that allows holds only when every reading of the path matches, and one that denies when any does.
import { Failure } from '../lib/failure.ts';

/** Segments; `**` stands for one or more of them, `*` inside one for any characters. */
export type PathPattern = readonly string[];

const lengthMax = 2_048;

/** Throws Failure('invalid') with the reason and the column. */
export function parsePathPattern(text: string): PathPattern {
  const fail = (reason: string, at: number) =>
    new Failure('invalid', `${reason}, column ${at + 1}`, { details: { column: at + 1 } });
  if (text.length > lengthMax) throw fail(`a path is at most ${lengthMax} characters`, lengthMax);
  if (!text.startsWith('/')) throw fail('a path begins with "/"', 0);
  const wrong = text.search(/[^!$&'()*+,\-./0-9:;=@A-Z_a-z~]/);
  if (wrong !== -1) throw fail(reasonFor(text.charAt(wrong)), wrong);
  const segments = text.slice(1).split('/');
  if (segments.length === 1 && segments[0] === '') return segments;
  let at = 1;
  for (const segment of segments) {
    if (segment === '') throw fail('a path has no double slash and none at its end', at - 1);
    if (segment === '.' || segment === '..') throw fail('a path has no "." or ".." segments', at);
    if (segment.includes(';'))
      throw fail('a path in a rule has no parameters (";")', at + segment.indexOf(';'));
    if (segment.includes('**') && segment !== '**') throw fail('"**" stands for whole segments', at);
    at += segment.length + 1;
  }
  return segments;
}

function reasonFor(character: string): string {
  switch (character) {
    case '?':
      return 'a path in a rule has no query';
    case '#':
      return 'a path in a rule has no fragment';
    case '%':
      return 'a path in a rule has no escapes; write the character itself, or "*"';
    default:
      return 'a path in a rule has plain characters only';
  }
}

/** How the path of a request may be read, each as segments; undefined where servers differ too much to say. */
export type Readings = readonly (readonly string[])[] | undefined;

/** `path` is as on the wire, without the query. */
export function readingsOf(path: string): Readings {
  if (path === '') return [['']];
  if (!path.startsWith('/')) return undefined;
  if (/^(?:\/[\w~!$&'()*+,=:@-][\w~!$&'()*+,=:@.-]*)+$/.test(path)) return [path.slice(1).split('/')];
  const decoded = decode(path);
  // What is escaped twice, holds a separator of other systems, or climbs is not to be judged by its looks.
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
  if (decoded === undefined || /[\\\x00-\x1f\x7f]|%[0-9a-f]{2}/i.test(decoded)) return undefined;
  const bare = decoded.replace(/[?#].*$/, '').replace(/;[^/]*/g, '');
  const readings = new Set([
    path,
    decoded,
    bare,
    decoded.replace(/\/{2,}/g, '/'),
    bare.replace(/\/{2,}/g, '/'),
  ]);
  const paths = [...readings].map((reading) => reading.slice(1).split('/'));
  return paths.some((segments) => segments.includes('.') || segments.includes('..')) ? undefined : paths;
}

/** Whether a rule holds for a request: an allowance (`every`) needs all readings to match, a denial or a question only one. */
export function matchesPath(pattern: PathPattern, readings: Readings, which: 'every' | 'some'): boolean {
  if (readings === undefined) return which === 'some';
  if (which === 'every') return readings.every((segments) => matchesSegments(pattern, segments));
  // To many servers a slash at the end means nothing.
  return readings.some(
    (segments) =>
      matchesSegments(pattern, segments) ||
      (segments.length > 1 && segments.at(-1) === '' && matchesSegments(pattern, segments.slice(0, -1))),
  );
}

function decode(path: string): string | undefined {
  try {
    return decodeURIComponent(path);
  } catch {
    return undefined;
  }
}

function matchesSegments(pattern: PathPattern, segments: readonly string[]): boolean {
  let part = 0;
  let open = -1;
  let resume = 0;
  for (let at = 0; at < segments.length; ) {
    const wanted = pattern[part];
    if (wanted === '**') {
      open = part++;
      resume = ++at;
    } else if (wanted !== undefined && matchesSegment(wanted, segments[at] as string)) {
      part++;
      at++;
    } else if (open !== -1) {
      part = open + 1;
      at = ++resume;
    } else return false;
  }
  return part === pattern.length;
}

function matchesSegment(pattern: string, segment: string): boolean {
  const [first = '', ...rest] = pattern.split('*');
  const last = rest.pop();
  if (last === undefined) return pattern === segment;
  // A star that is the whole segment stands for a name, not for nothing.
  if (pattern === '*') return segment !== '';
  if (segment.length < first.length + last.length || !segment.startsWith(first) || !segment.endsWith(last))
    return false;
  let at = first.length;
  const end = segment.length - last.length;
  for (const literal of rest) {
    const found = segment.indexOf(literal, at);
    if (found === -1 || found + literal.length > end) return false;
    at = found + literal.length;
  }
  return true;
}
