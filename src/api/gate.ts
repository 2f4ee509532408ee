// Who may come in: the API key or a sandbox's access token, compared in constant time; and browsers that were led here by a foreign page may not.
import { createHash, timingSafeEqual } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { BlockList, isIP } from 'node:net';
import type { TLSSocket } from 'node:tls';
import { ownerHeader } from '../contract/admin.ts';
import type { AuditCaller } from '../contract/audit.ts';
import { apiKeyHeader, egressAuthHeader, secureAccessHeader } from '../contract/opensandbox.ts';
import type { Access } from '../contract/routes.ts';
import { ingressHeaders } from '../ingress/routes.ts';
import { Failure } from '../lib/failure.ts';
import { Refusal } from './refusal.ts';
import type { Tenant, Tenants } from './tenants.ts';

/** execd's own name for the token, sent by clients that know nothing of the daemon in front of it. */
const execdTokenHeader = 'x-execd-access-token';

/** All carry the same token: a client sends the one whose name it knows, and what an endpoint told it to send. */
const tokenHeaders = [secureAccessHeader.toLowerCase(), execdTokenHeader, egressAuthHeader.toLowerCase()];

/** Request headers that are for the daemon alone and never reach a guest. */
export const ownHeaders: ReadonlySet<string> = new Set([
  apiKeyHeader.toLowerCase(),
  ownerHeader.toLowerCase(),
  secureAccessHeader.toLowerCase(),
  execdTokenHeader,
  egressAuthHeader.toLowerCase(),
  'open-sandbox-client-ip',
  ...ingressHeaders.map((name) => name.toLowerCase()),
]);

const loopback = new BlockList();
loopback.addSubnet('127.0.0.0', 8, 'ipv4');
loopback.addAddress('::1', 'ipv6');

export function isLoopback(address: string): boolean {
  const family = isIP(address);
  return family !== 0 && loopback.check(address, family === 6 ? 'ipv6' : 'ipv4');
}

const digest = (text: string) => createHash('sha256').update(text).digest();

function equal(given: string, secret: string): boolean {
  return timingSafeEqual(digest(given), digest(secret));
}

function headerOf(request: IncomingMessage, name: string): string | undefined {
  const value = request.headers[name];
  return typeof value === 'string' && value !== '' ? value : undefined;
}

/** Whether a request has shown that it comes from the user whose daemon this is. */
export function isOwner(request: IncomingMessage, ownerKey: string): boolean {
  const given = headerOf(request, ownerHeader.toLowerCase());
  return given !== undefined && equal(given, ownerKey);
}

/** Who called, for people who look back. */
export function callerOf(request: IncomingMessage, ownerKey: string): string {
  const { remoteAddress = '' } = request.socket;
  const from = isLoopback(remoteAddress) ? '' : ` at ${remoteAddress}`;
  return isOwner(request, ownerKey) ? `the daemon's own user${from}` : `a caller of the API${from}`;
}

export interface Admitted {
  by: Exclude<AuditCaller, 'owner'>;
  /** With a key of a project, or with a token that was given to one. */
  tenant?: Tenant;
}

export interface GateOptions {
  /** No key is asked for when undefined; only the configuration may decide so. */
  apiKey: string | undefined;
  /** Throws for sandboxes unknown. */
  accessToken: (sandboxId: string) => string;
  projectOf: (sandboxId: string) => string | undefined;
  tenants: Tenants;
}

/** Who it is. Throws a 401 unless the request may call what needs this access. An unknown sandbox and a wrong token look the same. */
export function admit(
  request: IncomingMessage,
  access: Access,
  sandboxId: string | undefined,
  options: GateOptions,
): Admitted {
  if (access === 'open') return { by: 'nobody' };
  const key = headerOf(request, apiKeyHeader.toLowerCase()) ?? bearerOf(request, access);
  if (key !== undefined && options.apiKey !== undefined && equal(key, options.apiKey)) return { by: 'key' };
  // Who shows a key of a project is that, also where no key is asked for.
  const tenant = key === undefined ? undefined : options.tenants.holderOf(key);
  if (tenant !== undefined) return { by: 'project', tenant };
  if (options.apiKey === undefined) return { by: 'nobody' };
  const token = tokenHeaders.map((name) => headerOf(request, name)).find((it) => it !== undefined);
  if (access === 'sandbox' && sandboxId !== undefined && token !== undefined) {
    const secret = tokenOf(sandboxId, options);
    if (secret !== undefined) {
      if (equal(token, secret)) return { by: 'token' };
      const projectId = options.projectOf(sandboxId);
      const holder = options.tenants.endpointHolderOf(token, { secret, projectId });
      if (holder !== undefined) return { by: 'token', tenant: holder };
    }
    throw new Refusal('unauthenticated', `${secureAccessHeader} does not fit this sandbox`, {
      wireCode: 'INVALID_API_KEY',
      hint: 'Ask GET /v1/sandboxes/{id}/endpoints/{port} for the headers to send.',
    });
  }
  if (key !== undefined)
    throw new Refusal('unauthenticated', `the API key in ${apiKeyHeader} is wrong`, {
      wireCode: 'INVALID_API_KEY',
    });
  throw new Refusal('unauthenticated', `no API key: send it in the header ${apiKeyHeader}`, {
    wireCode: 'MISSING_API_KEY',
    hint: 'The daemon wrote its key to the file api-key in its home folder.',
  });
}

/** Whether it brings anything that says who it is to us; then that alone counts. */
export function showsCredentials(request: IncomingMessage): boolean {
  return [apiKeyHeader.toLowerCase(), ...tokenHeaders].some((name) => request.headers[name] !== undefined);
}

/** The key as scrapers and other usual clients send it. What is for a guest's own server is not ours to read. */
function bearerOf(request: IncomingMessage, access: Access): string | undefined {
  if (access !== 'key') return undefined;
  return /^Bearer +(\S+)$/i.exec(headerOf(request, 'authorization') ?? '')?.[1];
}

function tokenOf(sandboxId: string, options: GateOptions): string | undefined {
  try {
    return options.accessToken(sandboxId);
  } catch {
    return undefined;
  }
}

/** Whether it came over TLS that ends in this process. */
export const isEncrypted = ({ socket }: IncomingMessage): boolean =>
  (socket as Partial<TLSSocket>).encrypted === true;

/** Secrets must not cross a network in the clear: without TLS of ours, what is in front of it for that runs on this host. Throws a 426. */
export function refuseFromAfar(request: IncomingMessage, what: string): void {
  if (isEncrypted(request) || isLoopback(request.socket.remoteAddress ?? '')) return;
  throw new Refusal(
    'permission',
    `${what} are taken over loopback only, because this connection is not encrypted`,
    {
      status: 426,
      headers: { Upgrade: 'TLS/1.2' },
      hint: 'Give the daemon a certificate ([server.tls]), or call from its host or through a tunnel or a TLS proxy that ends there.',
    },
  );
}

export interface HostRules {
  /** Whether only programs of this machine can connect. */
  boundToLoopback: boolean;
  /** Names besides localhost under which the daemon is known. */
  names: string[];
}

/**
 * A page on the web can make a browser call 127.0.0.1 under a name of its own (DNS rebinding), or from its own origin.
 * The first shows in Host, the second in Origin; programs that are no browsers send no Origin.
 */
export function refuseForeignPage(request: IncomingMessage, rules: HostRules): void {
  const host = request.headers.host;
  if (host !== undefined && !/^(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?$/.test(host))
    throw new Failure('invalid', 'the header Host is malformed');
  const name = (host ?? 'localhost')
    .replace(/:\d+$/, '')
    .replace(/^\[|\]$/g, '')
    .toLowerCase();
  const known =
    isIP(name) !== 0 || name === 'localhost' || name.endsWith('.localhost') || rules.names.includes(name);
  if (rules.boundToLoopback && !known)
    throw new Refusal('permission', `this daemon is not known as ${JSON.stringify(name)}`, {
      status: 421,
      hint: 'Call it by its address, or set server.eip to the name it should be known by.',
    });
  const { origin } = request.headers;
  if (origin !== undefined && origin !== `http://${host}` && origin !== `https://${host}`)
    throw new Failure('permission', 'calls from pages of another origin are not allowed');
}
