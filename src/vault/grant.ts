// What every secret comes down to, whoever bound it: a place, and what is done to a request that goes there.
import type { SecretBinding } from '../contract/network.ts';
import { Failure } from '../lib/failure.ts';
import { canonicalHost, impossiblePath, overlap, type Place } from './place.ts';
import type { ServiceBinding } from './services.ts';
import { parseKeyPair } from './sigv4.ts';
import { valueBytesMax } from './sources.ts';

export type Part = 'header' | 'query' | 'path' | 'body';

export type Action =
  /** Sets a header, in place of whatever the client has sent in it. */
  | {
      kind: 'header';
      header: string;
      format: string;
      removesHeaders: readonly string[];
      removesQuery: readonly string[];
    }
  /** Puts the value wherever a placeholder of it stands. */
  | { kind: 'substitute'; placeholders: readonly string[]; parts: readonly Part[] }
  /** Signs anew what has been signed with the placeholder as access key. */
  | { kind: 'aws'; placeholders: readonly string[] };

export interface Grant {
  place: Place;
  action: Action;
}

/** Header names that differ in nothing but case and `_` are one header to some servers. */
export const sameHeader = (name: string): string => name.toLowerCase().replaceAll('_', '-');

/** Headers that carry a message rather than a credential, or that are the proxy's own. */
const reservedHeaders = new Set([
  ...[
    'host',
    'content-length',
    'content-type',
    'content-encoding',
    'transfer-encoding',
    'connection',
    'keep-alive',
  ],
  ...[
    'upgrade',
    'te',
    'trailer',
    'expect',
    'forwarded',
    'x-forwarded-for',
    'x-forwarded-host',
    'x-forwarded-proto',
  ],
  ...['proxy-authorization', 'proxy-authenticate', 'proxy-connection'],
]);

export function headerProblem(name: string): string | undefined {
  if (!/^[A-Za-z0-9!#$%&'*+\-.^_`|~]+$/.test(name)) return 'is no name of a header';
  return reservedHeaders.has(sameHeader(name)) ? 'is a header that a secret cannot be put in' : undefined;
}

export const pathHint = 'Begin it with /; a * may stand at its end; leave out the query, // and ..';

/** A binding in one spelling. Throws Failure('invalid') with what is wrong; `where` says which binding it is. */
export function checkedBinding(binding: SecretBinding, where: string): SecretBinding {
  const invalid = (what: string, hint?: string): Failure =>
    new Failure('invalid', `${where}: ${what}`, hint === undefined ? {} : { hint });
  const hosts = binding.hosts.map((host) => {
    const canonical = canonicalHost(host);
    if (canonical === undefined)
      throw invalid(
        `the host ${JSON.stringify(host)} can never be met, or is too wide`,
        'Name a host, such as api.example.com, or all below a domain, such as *.example.com.',
      );
    return canonical;
  });
  if (binding.ports.length === 0) throw invalid('it names no port');
  const { header, format, substitute, awsSigV4 } = binding;
  if (awsSigV4 === true && (header !== undefined || format !== undefined || substitute !== undefined))
    throw invalid('a request that is signed anew has no header, format or substitution');
  if (header === undefined && format !== undefined) throw invalid('a format needs a header');
  const problem = header === undefined ? undefined : headerProblem(header);
  if (problem !== undefined) throw invalid(`${JSON.stringify(header)} ${problem}`);
  if (format !== undefined && formatted(format, '') === undefined)
    throw invalid(
      `the format ${JSON.stringify(format)} is not printable ASCII with one %s`,
      "Write, say, 'Bearer %s', or 'Basic base64(user:%s)'.",
    );
  const methods = binding.methods?.map((method) => method.toUpperCase());
  for (const method of methods ?? [])
    if (!/^[A-Z]+$/.test(method)) throw invalid(`${JSON.stringify(method)} is no HTTP method`);
  for (const path of binding.paths ?? [])
    if (impossiblePath(path)) throw invalid(`the path ${JSON.stringify(path)} can never be met`, pathHint);
  const anyMethod = methods === undefined || methods.length === 0 || methods.includes('ANY');
  const anyPath = binding.paths === undefined || binding.paths.length === 0 || binding.paths.includes('/*');
  return {
    hosts: [...new Set(hosts)],
    ports: [...new Set(binding.ports)],
    ...(header === undefined ? {} : { header: header.toLowerCase(), format: format ?? '%s' }),
    ...(anyMethod ? {} : { methods }),
    ...(anyPath ? {} : { paths: binding.paths }),
    // With nothing said, the placeholder is replaced where keys belong. Paths and queries are what servers keep and show, so they have to be asked for.
    ...(awsSigV4 === true
      ? { awsSigV4 }
      : substitute !== undefined && substitute.length > 0
        ? { substitute: [...new Set(substitute)] }
        : header === undefined
          ? { substitute: ['header'] satisfies Part[] }
          : {}),
  };
}

/** The grants of a binding that has been checked. */
export function grantsOf(binding: ServiceBinding, placeholders: readonly string[]): Grant[] {
  const place: Place = {
    hosts: binding.hosts,
    ports: binding.ports,
    ...(binding.methods === undefined ? {} : { methods: binding.methods }),
    ...(binding.paths === undefined ? {} : { paths: binding.paths }),
  };
  const grants: Grant[] = [];
  if (binding.awsSigV4 === true) grants.push({ place, action: { kind: 'aws', placeholders } });
  if (binding.substitute !== undefined)
    grants.push({ place, action: { kind: 'substitute', placeholders, parts: binding.substitute } });
  if (binding.header !== undefined)
    grants.push({
      place,
      action: {
        kind: 'header',
        header: binding.header,
        format: binding.format ?? '%s',
        removesHeaders: binding.removes?.headers ?? [],
        removesQuery: binding.removes?.query ?? [],
      },
    });
  return grants;
}

/**
 * A value in its format: `%s` stands for it, and what stands in a `base64(…)` at the end is encoded after that. Undefined when there is not
 * exactly one `%s`, or when the outcome could not stand in a header.
 */
export function formatted(format: string, value: string): string | undefined {
  const fill = (text: string): string => text.split('%s').join(value);
  const [, before = '', inside] = /^(.*)base64\((.*)\)$/.exec(format) ?? [];
  const text =
    inside === undefined ? fill(format) : fill(before) + Buffer.from(fill(inside)).toString('base64');
  return format.split('%s').length === 2 && /^[\x20-\x7e]*$/.test(text) ? text : undefined;
}

/** Why a value cannot be put where these actions put it, as the end of a sentence about it, or undefined. Never tells the value. */
export function misfit(value: string, actions: readonly Action[]): string | undefined {
  if (Buffer.byteLength(value) > valueBytesMax) return `has more than ${valueBytesMax} bytes`;
  if (actions.some((action) => action.kind === 'aws'))
    return parseKeyPair(value) === undefined ? 'is no AWS key pair' : undefined;
  if (value === '') return 'is empty';
  // A line break in a header would begin another header.
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is looked for.
  if (/[\u0000-\u001f\u007f-\u009f]/.test(value)) return 'holds control characters, such as a line break';
  const fits = actions.every((action) => {
    if (action.kind === 'header') return formatted(action.format, value) !== undefined;
    return (
      action.kind !== 'substitute' || !action.parts.includes('header') || formatted('%s', value) !== undefined
    );
  });
  return fits ? undefined : 'holds characters that cannot stand in a header';
}

/** Why two grants cannot stand beside each other in one scope, or undefined. */
export function conflictOf(a: Grant, b: Grant): string | undefined {
  if (!overlap(a.place, b.place)) return undefined;
  const [mine, theirs] = [headerOf(a.action), headerOf(b.action)];
  if (mine === undefined || mine !== theirs) return undefined;
  // Two key pairs are told apart by their placeholders.
  if (a.action.kind === 'aws' && b.action.kind === 'aws') return undefined;
  return `the header ${mine} at ${a.place.hosts.find((host) => overlap({ ...a.place, hosts: [host] }, b.place))}`;
}

/** Whether each takes off the header that the other sets: two ways of saying who one is, of which a request may go one. */
export function areAlternatives(a: Action, b: Action): boolean {
  if (a.kind !== 'header' || b.kind !== 'header') return false;
  const takes = (one: typeof a, other: typeof b) =>
    one.removesHeaders.some((header) => sameHeader(header) === sameHeader(other.header));
  return takes(a, b) && takes(b, a);
}

const headerOf = (action: Action): string | undefined =>
  action.kind === 'header' ? sameHeader(action.header) : action.kind === 'aws' ? 'authorization' : undefined;
