// What a rule can say of a host and port, in the three dialects, as one type. A pattern is parsed once; matching never builds an expression from
// anybody's text and takes time linear in the name.
import { isIPv6 } from 'node:net';
import { Failure } from '../lib/failure.ts';
import { type Address, parseAddress, parseRange, type Range } from './addresses.ts';
import { asciiLabels, type Complaint, endsInNumber, parseWrittenHost, quoted } from './names.ts';
import { isPublicSuffix } from './suffixes.ts';

export type Pattern =
  | { kind: 'everything' }
  | { kind: 'name'; name: string }
  /** Names below `suffix`, exactly one label or any number of them; never the suffix itself. */
  | { kind: 'below'; suffix: string; depth: 'one' | 'any' }
  /** Label by label, from the last to the first. */
  | { kind: 'glob'; labels: readonly LabelGlob[]; open: boolean }
  | { kind: 'address'; address: Address }
  | { kind: 'range'; range: Range };

/** One label: characters, each a literal or a choice, and stars. `plain` when it is only literals. */
interface LabelGlob {
  plain: string | undefined;
  parts: readonly LabelPart[];
}
type LabelPart = '*' | '?' | { characters: ReadonlySet<string>; negated: boolean };

export interface Resource {
  pattern: Pattern;
  /** Every port when absent. */
  port: number | undefined;
  /** The one spelling, by which resources are compared. */
  text: string;
}

/** `sbx`: globs, `*` is one label, `**` any number. `proxy-config`: `*.x` any depth, `*`. `network-policy`: `*.x` any depth, ranges, no ports. */
export type Dialect = 'sbx' | 'proxy-config' | 'network-policy';

const lengthMax = 512;

/** Throws Failure('invalid') with the reason and, where it is one place, the column among the details. */
export function parseResource(text: string, dialect: Dialect): Resource {
  checkCharacters(text);
  if (text.includes('/')) return parseCidr(text, dialect);
  const { host, port } = splitPort(text, dialect);
  return spelled(parseHostPattern(host, dialect), port, dialect);
}

function spelled(pattern: Pattern, port: number | undefined, dialect: Dialect): Resource {
  return { pattern, port, text: patternText(pattern, dialect) + (port === undefined ? '' : `:${port}`) };
}

/** One entry of a list of patterns, with where it is in what it says when it is wrong. */
export function parseEntry(list: string, index: number, text: string, dialect: Dialect): Resource {
  try {
    return parseResource(text, dialect);
  } catch (thrown) {
    const failure = Failure.from(thrown, 'an entry');
    throw atEntry(list, index, text, failure.message, failure.details?.column);
  }
}

export function atEntry(
  list: string,
  index: number,
  text: string,
  reason: string,
  column: unknown = 1,
): Failure {
  return new Failure('invalid', `${list}[${index}]: ${quoted(text)}: ${reason}, column ${column}`, {
    details: { list, index, column },
  });
}

function patternText(pattern: Pattern, dialect: Dialect): string {
  switch (pattern.kind) {
    case 'everything':
      return dialect === 'sbx' ? '**' : '*';
    case 'name':
      return pattern.name;
    case 'below':
      return `${pattern.depth === 'any' && dialect === 'sbx' ? '**' : '*'}.${pattern.suffix}`;
    case 'glob': {
      const labels = pattern.labels.map(labelText);
      return [...(pattern.open ? ['**'] : []), ...labels.toReversed()].join('.');
    }
    case 'address':
      return pattern.address.family === 6 ? `[${pattern.address.text}]` : pattern.address.text;
    case 'range':
      return pattern.range.text;
  }
}

/** Why an allowance by this pattern would let out much more than its writer can have meant. */
export function tooWide(pattern: Pattern): string | undefined {
  if (pattern.kind !== 'below' && pattern.kind !== 'glob') return undefined;
  const suffix = pattern.kind === 'below' ? pattern.suffix : plainTail(pattern.labels);
  if (!isPublicSuffix(suffix)) return undefined;
  return suffix === ''
    ? 'can match names of any owner; name a domain after the wildcard, or write "**" for everything'
    : `covers all of "${suffix}", under which anybody can have a name; name a domain, or write "**" for everything`;
}

/** For patterns of names only; addresses and ranges are found by key (entries.ts). */
export function matchesGlob(pattern: Extract<Pattern, { kind: 'glob' }>, name: string): boolean {
  const labels = name.split('.').toReversed();
  const { labels: globs, open } = pattern;
  if (open ? labels.length <= globs.length : labels.length !== globs.length) return false;
  return globs.every((glob, index) => matchesLabel(glob, labels[index] as string));
}

function fail(reason: string, column?: number): Failure {
  return new Failure('invalid', reason, column === undefined ? {} : { details: { column } });
}

function checkCharacters(text: string): void {
  if (text.length > lengthMax) throw fail(`is longer than ${lengthMax} characters`);
  if (text.trim() === '') throw fail('is empty');
  if (/^[a-z][a-z0-9+.-]*:\/\//i.test(text))
    throw fail('is a URL; write the host, or host:port, alone', text.indexOf('://') + 1);
  // Letters and marks of any script may be in names; anything else outside ASCII may not.
  const at = text.search(/[^A-Za-z0-9._:*?![\]/\p{L}\p{M}\p{Nd}-]/u);
  if (at !== -1) throw fail('has a character that no host has', at + 1);
}

function parseCidr(text: string, dialect: Dialect): Resource {
  if (dialect === 'proxy-config')
    throw fail('is a range; ranges go into the CIDR lists', text.indexOf('/') + 1);
  const range = parseRange(text);
  if (range === undefined) throw fail('is no range of addresses like 10.0.0.0/8', text.indexOf('/') + 1);
  return spelled({ kind: 'range', range }, undefined, dialect);
}

function splitPort(text: string, dialect: Dialect): { host: string; port: number | undefined } {
  if (isIPv6(text)) return { host: `[${text}]`, port: undefined };
  // A bracket can begin an IPv6 address or a choice of characters.
  const bracketed = /^\[[^\]]*:[^\]]*\]/.exec(text)?.[0];
  const colon = text.indexOf(':', bracketed?.length ?? 0);
  if (colon === -1) return { host: text, port: undefined };
  if (dialect === 'network-policy')
    throw fail('names a port; targets of this policy are hosts alone', colon + 1);
  if (text.indexOf(':', colon + 1) !== -1)
    throw fail('has more than one colon; an IPv6 address goes into square brackets', colon + 1);
  const port = text.slice(colon + 1);
  if (!/^[1-9][0-9]{0,4}$/.test(port) || Number(port) > 65_535)
    throw fail('has a port that is not 1 to 65535 in plain decimal', colon + 2);
  return { host: text.slice(0, colon), port: Number(port) };
}

function parseHostPattern(written: string, dialect: Dialect): Pattern {
  if (written === '') throw fail('names no host', 1);
  const everything = { sbx: '**', 'proxy-config': '*', 'network-policy': undefined }[dialect];
  if (written === everything) return { kind: 'everything' };
  if (written === '*' || written === '**') throw fail(loneStar[dialect], 1);
  const bracketed = /^\[[^\]]*:[^\]]*\]$/.test(written);
  if (bracketed || !/[*?![\]]/.test(written)) return literal(written);
  return wildcard(written, dialect);
}

const loneStar: Record<Dialect, string> = {
  sbx: 'is one label only; write "**" for everything',
  'proxy-config': 'is no pattern of this list; write "*" for everything',
  'network-policy': 'is no target; set defaultAction to say what holds for everything',
};

function literal(written: string): Pattern {
  const host = named(parseWrittenHost, written);
  if (host.kind === 'name') {
    neverMatches(host.name);
    return { kind: 'name', name: host.name };
  }
  return { kind: 'address', address: parseAddress(host.address) as Address };
}

/** What a parser of names has to say, without its quote: the entry is quoted as a whole. `at` is where the name begins in it. */
function named<Result>(parse: (text: string) => Result, text: string, at = 0): Result {
  try {
    return parse(text);
  } catch (thrown) {
    const { reason, column } = Failure.from(thrown, 'a host').details as unknown as Complaint;
    throw fail(reason, column === undefined ? undefined : column + at);
  }
}

/** Names that never reach the policy, so that a rule about them would do nothing. */
function neverMatches(name: string): void {
  if (name === 'host.docker.internal' || name === 'gateway.docker.internal')
    throw fail('can never match: this name stands for the host itself; write "localhost" and the port');
  if (name.endsWith('.localhost'))
    throw fail('can never match: names below "localhost" are not reached; write "localhost" and the port');
}

function wildcard(written: string, dialect: Dialect): Pattern {
  const text = asciiOf(written).toLowerCase().replace(/\.$/, '');
  if (text === '*' || text === '**') throw fail('has an empty label', text.length + 2);
  // A choice of one is that one.
  const chosen = text.replace(/\[([a-z0-9_-])\]/g, '$1');
  if (dialect === 'sbx' && chosen !== text) return parseHostPattern(chosen, dialect);
  const suffix = /^\*\*?\.([^*?![\]]+)$/.exec(text)?.[1];
  if (suffix !== undefined) {
    if (dialect !== 'sbx' && text.startsWith('**'))
      throw fail('has "**", which this list does not know; "*." covers every depth', 1);
    const host = named(parseWrittenHost, suffix, text.length - suffix.length);
    if (host.kind === 'address') throw fail('can never match: addresses have no names below them', 1);
    neverMatches(`x.${host.name}`);
    return {
      kind: 'below',
      suffix: host.name,
      depth: text.startsWith('**') || dialect !== 'sbx' ? 'any' : 'one',
    };
  }
  if (dialect !== 'sbx')
    throw fail('has a wildcard elsewhere than in "*." at the beginning', text.search(/[*?![\]]/) + 1);
  return glob(text);
}

function asciiOf(written: string): string {
  for (const label of written.split('.'))
    if (/[*?![\]]/.test(label) && /[^ -~]/.test(label))
      throw fail(
        'has a wildcard in a label that is not ASCII; write it in punycode',
        written.indexOf(label) + 1,
      );
  return named(asciiLabels, written);
}

function glob(text: string): Pattern {
  const written = text.split('.');
  const open = written[0] === '**';
  let column = open ? 4 : 1;
  const labels = (open ? written.slice(1) : written).map((label) => {
    const compiled = compileLabel(label, column);
    column += label.length + 1;
    return compiled;
  });
  const last = labels.at(-1) as LabelGlob;
  const lowest = labels.reduce((sum, label) => sum + shortest(label) + 1, open ? 1 : -1);
  if (lowest > 253) throw fail('can never match: no name is longer than 253 characters');
  if (last.plain !== undefined && endsInNumber([last.plain]))
    throw fail('can never match: no name ends in a number; for addresses write a range like 10.0.0.0/8');
  if (last.plain === 'localhost' && (open || labels.length > 1)) neverMatches('x.localhost');
  return { kind: 'glob', labels: labels.toReversed(), open };
}

function compileLabel(label: string, column: number): LabelGlob {
  if (label === '') throw fail('has an empty label', column);
  const parts: LabelPart[] = [];
  for (let at = 0; at < label.length; at++) {
    const character = label.charAt(at);
    if (character === '*' && parts.at(-1) === '*')
      throw fail('has "**" elsewhere than alone or in "**." at the beginning', column + at);
    if (character === '*' || character === '?') parts.push(character);
    else if (character === '[') {
      const end = label.indexOf(']', at);
      if (end === -1) throw fail('lacks the closing bracket', column + at);
      parts.push(choice(label.slice(at + 1, end), column + at));
      at = end;
    } else if (character === ']' || character === '!') throw fail(`has a stray "${character}"`, column + at);
    else parts.push({ characters: new Set([character]), negated: false });
  }
  const compiled = { plain: /[*?[]/.test(label) ? undefined : label, parts };
  if (shortest(compiled) > 63) throw fail('can never match: no label is longer than 63 characters', column);
  return compiled;
}

/** What stands between brackets: characters of names and spans of them, after `!` those that are not meant. */
function choice(text: string, column: number): LabelPart {
  const negated = text.startsWith('!');
  const members = negated ? text.slice(1) : text;
  if (members === '') throw fail('can never match: a choice of no characters', column);
  const wrong = members.search(/[^a-z0-9_-]/);
  if (wrong !== -1)
    throw fail('has a choice of a character that no name has', column + 1 + Number(negated) + wrong);
  const characters = new Set<string>();
  for (const [token] of members.matchAll(/[a-z0-9]-[a-z0-9]|./g)) {
    const [from, to] = [token.charCodeAt(0), token.charCodeAt(token.length - 1)];
    // Between digits and letters lie characters that are neither.
    if (to < from || (token.length > 1 && /^[0-9]-[a-z]$/.test(token)))
      throw fail(`has the span "${token}", which is none of digits or of letters in order`, column);
    for (let code = from; code <= to; code++) characters.add(String.fromCharCode(code));
  }
  return { characters, negated };
}

const shortest = (label: LabelGlob): number => label.parts.filter((part) => part !== '*').length;

/** Going back to the last star only is enough, since a star takes anything. */
function matchesLabel({ plain, parts }: LabelGlob, label: string): boolean {
  if (plain !== undefined) return plain === label;
  let part = 0;
  let star = -1;
  let resume = 0;
  for (let at = 0; at < label.length; ) {
    const wanted = parts[part];
    if (wanted === '*') {
      star = part++;
      resume = at;
    } else if (wanted !== undefined && accepts(wanted, label.charAt(at))) {
      part++;
      at++;
    } else if (star !== -1) {
      part = star + 1;
      at = ++resume;
    } else return false;
  }
  while (parts[part] === '*') part++;
  return part === parts.length;
}

const accepts = (part: Exclude<LabelPart, '*'>, character: string): boolean =>
  part === '?' || part.characters.has(character) !== part.negated;

function labelText({ parts }: LabelGlob): string {
  return parts
    .map((part) => {
      if (typeof part === 'string') return part;
      const characters = [...part.characters].sort().join('');
      return characters.length === 1 && !part.negated
        ? characters
        : `[${part.negated ? '!' : ''}${characters}]`;
    })
    .join('');
}

/** The labels behind the last wildcard, which say whose names these are. `labels` begins with the last. */
function plainTail(labels: readonly LabelGlob[]): string {
  const end = labels.findIndex((label) => label.plain === undefined);
  return labels
    .slice(0, end === -1 ? labels.length : end)
    .map((label) => label.plain)
    .toReversed()
    .join('.');
}
