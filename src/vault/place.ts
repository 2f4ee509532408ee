// Where a secret may go: hosts, ports, methods and paths of a binding, in one spelling, matched in one way.
import { isIP } from 'node:net';
import { domainToASCII } from 'node:url';

export interface Place {
  /** As `canonicalHost` makes them. */
  hosts: readonly string[];
  ports: readonly number[];
  /** In capitals; any when absent. */
  methods?: readonly string[];
  /** Exact, or ending in `*`; any when absent. */
  paths?: readonly string[];
}

const label = /^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$/;

/** `*.` and a name, or a name, or an address, in the spelling in which requests name them. Undefined when it can never be met, or is too wide. */
export function canonicalHost(text: string): string | undefined {
  const wildcard = text.startsWith('*.');
  const bare = (wildcard ? text.slice(2) : text).replace(/\.$/, '').toLowerCase();
  if (isIP(bare) === 4) return wildcard ? undefined : bare;
  if (isIP(bare) === 6) return wildcard ? undefined : new URL(`http://[${bare}]/`).hostname.slice(1, -1);
  // What is no name in itself must not become one: domainToASCII would cut a path off, or read a number as an address.
  if (/[\s/\\?#@:%*[\]]/.test(bare)) return undefined;
  const name = domainToASCII(bare);
  const labels = name.split('.');
  if (name === '' || name.length > 253 || isIP(name) !== 0 || !labels.every((each) => label.test(each)))
    return undefined;
  if (/^(\d+|0x[0-9a-f]*)$/.test(labels.at(-1) as string)) return undefined;
  // All names below `com` are not one party's.
  if (wildcard && labels.length < 2) return undefined;
  return wildcard ? `*.${name}` : name;
}

export type HostMatch = 'exact' | 'wildcard';

/** Whether a place is at this host and port. An exact name outranks a wildcard. */
export function matchesHost(place: Place, host: string, port: number): HostMatch | undefined {
  if (!place.ports.includes(port)) return undefined;
  if (place.hosts.includes(host)) return 'exact';
  return place.hosts.some((pattern) => pattern.startsWith('*.') && host.endsWith(pattern.slice(1)))
    ? 'wildcard'
    : undefined;
}

/** Whether a request to a place's host is one that the place means. */
export function matchesRequest(
  place: Place,
  request: { method: string; target: string; headers: RequestHeaders },
): boolean {
  if (place.methods === undefined && place.paths === undefined) return true;
  if (meansAnother(request.headers)) return false;
  if (place.methods !== undefined && !place.methods.includes(request.method.toUpperCase())) return false;
  if (place.paths === undefined) return true;
  const path = request.target.split('?', 1)[0] as string;
  // A server may read such a path as another one than we do.
  if (ambiguousPath(path)) return false;
  return place.paths.some((pattern) => pathMatches(pattern, path));
}

type RequestHeaders = readonly (readonly [name: string, value: string])[];

/** By these, some servers and frameworks take another method or path for the request's than those that it begins with. */
const overriding: ReadonlySet<string> = new Set([
  ...['x-http-method-override', 'x-http-method', 'x-method-override'],
  ...['x-original-url', 'x-rewrite-url'],
]);

/** Whether a request may be another one than it looks, so that whatever was judged by its method and path was judged in vain. */
export const meansAnother = (headers: RequestHeaders): boolean =>
  headers.some(([name]) => overriding.has(name.replaceAll('_', '-')));

/** Whether no request's path could be meant by a pattern. */
export function impossiblePath(pattern: string): boolean {
  const fixed = pattern.endsWith('*') ? pattern.slice(0, -1) : pattern;
  return /[*?]/.test(fixed) || ambiguousPath(fixed);
}

function ambiguousPath(path: string): boolean {
  return /\/\/|\/\.{1,2}(\/|$)|%(2e|2f|5c|00|25)|[\\;#]/i.test(path) || !path.startsWith('/');
}

const pathMatches = (pattern: string, path: string): boolean =>
  pattern.endsWith('*') ? path.startsWith(pattern.slice(0, -1)) : path === pattern;

/** Whether some request could be at both places, both by an exact name or both by a wildcard: then nothing says which of them is meant. */
export function overlap(a: Place, b: Place): boolean {
  return (
    a.hosts.some((host) => b.hosts.some((other) => hostsOverlap(host, other))) &&
    a.ports.some((port) => b.ports.includes(port)) &&
    (a.methods === undefined || b.methods === undefined || a.methods.some((m) => b.methods?.includes(m))) &&
    (a.paths === undefined ||
      b.paths === undefined ||
      a.paths.some((path) => b.paths?.some((other) => pathsOverlap(path, other))))
  );
}

function hostsOverlap(a: string, b: string): boolean {
  if (a === b) return true;
  if (!a.startsWith('*.') || !b.startsWith('*.')) return false;
  return a.endsWith(b.slice(1)) || b.endsWith(a.slice(1));
}

function pathsOverlap(a: string, b: string): boolean {
  if (a.endsWith('*') && b.endsWith('*')) return a.startsWith(b.slice(0, -1)) || b.startsWith(a.slice(0, -1));
  return pathMatches(a, b) || pathMatches(b, a);
}
