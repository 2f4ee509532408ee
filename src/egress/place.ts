// Where a guest wants to go, from what it wrote into a request line, a Host header, a hello or an intent, in the one spelling that everything compares.

import { hostText, parseHost, parseTarget } from '../policy/names.ts';
import type { Host } from '../policy/policy.ts';
import type { Destination } from './upstream.ts';

/** Names that guests have for the machine that the sandbox runs on. Policies call it localhost. */
const hostOfGuests: ReadonlySet<string> = new Set(['host.docker.internal', 'gateway.docker.internal']);
const localhost: Host = { kind: 'name', name: 'localhost' };

/** Undefined when it is no host. */
export function hostFrom(text: string): Host | undefined {
  try {
    return known(parseHost(text));
  } catch {
    return undefined;
  }
}

/** A name in the usual spelling, but as the guest says it: not what it stands for here. Throws for what is no host. */
export const spokenName = (text: string): string => bareHost(parseHost(text));

/** `host:port`. Undefined when it is not that, or names no port and there is no `defaultPort`. */
export function placeFrom(text: string, defaultPort?: number): Destination | undefined {
  try {
    const { host, port } = parseTarget(text, defaultPort);
    return { host: known(host), port };
  } catch {
    return undefined;
  }
}

const known = (host: Host): Host => (host.kind === 'name' && hostOfGuests.has(host.name) ? localhost : host);

export const bareHost = (host: Host): string => (host.kind === 'name' ? host.name : host.address);

export const sameHost = (one: Host, other: Host): boolean =>
  one.kind === other.kind && bareHost(one) === bareHost(other);

export const samePlace = (one: Destination, other: Destination): boolean =>
  one.port === other.port && sameHost(one.host, other.host);

export const defaultPort = { http: 80, https: 443 } as const;

/** As a `Host` header has it: without the port that goes without saying. */
export function authorityText({ host, port }: Destination, scheme: 'http' | 'https'): string {
  return port === defaultPort[scheme] ? hostText(host) : `${hostText(host)}:${port}`;
}
