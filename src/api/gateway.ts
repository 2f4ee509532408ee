// The gateway's part of the API server: which port of a sandbox a request means, whether the address itself lets it in, and what the guest's application is
// told of where it was asked. Everything else, from admission to forwarding, is the server's own, as for `/sandboxes/{id}/proxy/{port}`.
import type { IncomingMessage } from 'node:http';
import { egressPort, execdPort } from '../contract/opensandbox.ts';
import {
  type Asked,
  addressOf,
  ingressHeaders,
  type Place,
  placeOf,
  type Routing,
} from '../ingress/routes.ts';
import type { RouteSigner, SignedPart } from '../ingress/signed-routes.ts';
import { Failure } from '../lib/failure.ts';
import type { SandboxService } from '../sandbox/sandbox.ts';
import type { PortAddress } from './port-address.ts';
import { Refusal } from './refusal.ts';

export interface GatewayOptions {
  routing: Routing;
  signer: RouteSigner;
  /** Ports ask for credentials. Otherwise only those of sandboxes that were made with `secureAccess`, and the ports that are ours. */
  secured: boolean;
  /** The furthest that a signature may reach, for callers who may not give out longer ones. */
  signedSecondsMax?: number;
}

/** A request at the gateway, as the server goes on with it. */
export interface Entry {
  /** The path that means the same at the server itself. */
  fullPath: string;
  sandboxId: string;
  port: number;
  /** What the application is asked for. */
  path: string;
  /** What its address says of its right to come in, beside its headers. */
  pass: 'none' | 'signed' | 'expired' | 'forged' | 'open';
  /** For the port's own application. `prefix`: what the server would call it. */
  addressFor(prefix: string): PortAddress;
}

const health = '/status.ok';

export const hostForm = /^(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?$/;

export class Gateway {
  readonly #options: GatewayOptions;
  readonly #service: SandboxService;

  constructor(options: GatewayOptions, service: SandboxService) {
    this.#options = options;
    this.#service = service;
  }

  /** `path`: as in the request line. Failure('invalid') and Failure('not-found') for what names no port of a sandbox. */
  enter(request: IncomingMessage, path: string): Entry | 'health' {
    refuseAmbiguous(request);
    const { host } = request.headers;
    const token = ingressHeaders
      .map((name) => request.headers[name.toLowerCase()])
      .find((it) => it !== undefined);
    const entry = this.find({ host, path, token: token as string | undefined });
    if (entry !== undefined) return entry;
    if (path === health) return 'health';
    throw new Failure('not-found', 'this names no port of a sandbox', {
      hint: `Addresses here have the form ${formOf(this.#options.routing)}.`,
    });
  }

  /** The caller has made sure that `asked` can be read in one way only. Undefined when it names no port; Failure('invalid') when it does so in a wrong way. */
  find(asked: Asked): Entry | undefined {
    const { routing, signer } = this.#options;
    const place = placeOf(routing, asked, (part) => signer.looksSigned(part));
    return place === undefined ? undefined : this.#entry(place, asked.host ?? '');
  }

  #entry({ sandboxId, port, signed, path: signedPath, unsignedPath }: Place, host: string): Entry {
    const { routing, signer } = this.#options;
    const checked = signed === undefined ? 'none' : signer.check(sandboxId, port, signed);
    // In a path these may be words of the application itself. What our keys have made is never that.
    const isPlain = checked === 'forged' && unsignedPath !== undefined;
    const path = isPlain ? unsignedPath : signedPath;
    const pass =
      checked === 'valid' ? 'signed' : this.#isOpen(sandboxId, port) ? 'open' : isPlain ? 'none' : checked;
    const base = `/sandboxes/${sandboxId}/proxy/${port}`;
    const named = isPlain || signed === undefined ? undefined : signed;
    return {
      fullPath: `${base}${path}`,
      ...{ sandboxId, port, path },
      pass,
      addressFor: (prefix) =>
        addressFor(routing, { sandboxId, port, host, signed: named, inner: prefix.slice(base.length) }),
    };
  }

  #isOpen(sandboxId: string, port: number): boolean {
    if (this.#options.secured || port === execdPort || port === egressPort) return false;
    try {
      return this.#service.get(sandboxId).secureAccess !== true;
    } catch {
      // The same as for one that asks for credentials: nobody learns what there is.
      return false;
    }
  }
}

/** Two hosts, or two places, are what another server could read in another way. */
function refuseAmbiguous({ rawHeaders, url = '', headers }: IncomingMessage): void {
  if (!url.startsWith('/')) throw new Failure('invalid', 'the request target must be a path');
  let hosts = 0;
  for (let at = 0; at < rawHeaders.length; at += 2) if (rawHeaders[at]?.toLowerCase() === 'host') hosts++;
  const { host } = headers;
  if (hosts > 1) throw new Failure('invalid', 'the header Host is there more than once');
  if (host !== undefined && !hostForm.test(host))
    throw new Failure('invalid', 'the header Host is malformed');
}

function formOf(routing: Routing): string {
  const { endpoint, headers } = addressOf(routing, { sandboxId: '<id>', port: 0 });
  const named = Object.keys(headers).map((name) => `, with the header ${name}: <id>-<port>`);
  return `${endpoint.replace(/([-/])0/, '$1<port>')}${named.join('')}`;
}

interface Named extends Pick<Place, 'sandboxId' | 'port'> {
  signed: SignedPart | undefined;
  host: string;
  /** Of the application behind a port of ours. */
  inner: string;
}

/**
 * The application is told of an address without the signature, which is a credential: so it is taken out of what browsers repeat of an address, and put back into
 * where it sends them.
 */
function addressFor({ mode }: Routing, { sandboxId, port, host, signed, inner }: Named): PortAddress {
  const secret = signed === undefined ? [] : [signed.expires, signed.signature];
  if (mode === 'wildcard') {
    const label = [sandboxId, port].join('-');
    const publicLabel = [label, ...secret].join('-');
    // Host names come in any case.
    const shown = label + host.slice(publicLabel.length);
    return {
      host: shown,
      publicHost: shown,
      prefix: inner,
      ...(signed === undefined
        ? {}
        : {
            hidden: { text: publicLabel, shown: label },
            relocate: (to) => to.replace(`//${shown}`, `//${host}`),
          }),
    };
  }
  if (mode === 'header') return { prefix: inner };
  const prefix = `/${sandboxId}/${port}`;
  const publicPrefix = [prefix, ...secret].join('/');
  return {
    prefix: prefix + inner,
    ...(signed === undefined ? {} : { hidden: { text: publicPrefix, shown: prefix } }),
    relocate: (to) =>
      relocated(to, {
        host: `localhost:${port}`,
        publicHost: host,
        prefix: prefix + inner,
        publicPrefix: publicPrefix + inner,
      }),
  };
}

/** A Location of the application as the client has to see it. */
function relocated(
  to: string,
  {
    host,
    publicHost,
    prefix,
    publicPrefix,
  }: { host: string; publicHost: string; prefix: string; publicPrefix: string },
): string {
  const own = /^https?:\/\/([^/?#]*)(.*)$/s.exec(to);
  if (own !== null && own[1] !== host && own[1] !== publicHost) return to;
  const path = own === null ? to : own[2] === '' ? '/' : (own[2] as string);
  if (!path.startsWith('/') || path.startsWith('//')) return to;
  const isPrefixed = path.startsWith(prefix) && /^(?:$|[/?#])/.test(path.slice(prefix.length));
  return publicPrefix + (isPrefixed ? path.slice(prefix.length) : path);
}

/** Whether a person is looking at the answer, rather than a program. */
export function wantsPage(method: string | undefined, accept: string | undefined): boolean {
  return (method === 'GET' || method === 'HEAD') && /\btext\/html\b/.test(accept ?? '');
}

/** Where clients get to a port through the gateway. `expires`: see getEndpoint. */
export function endpointAt(
  { routing, signer, signedSecondsMax }: GatewayOptions,
  {
    sandboxId,
    port,
    expires,
    now,
  }: { sandboxId: string; port: number; expires: string | undefined; now: Date },
): { endpoint: string; headers: Record<string, string> } {
  if (expires === undefined) return addressOf(routing, { sandboxId, port });
  const seconds = Number(expires);
  if (signedSecondsMax !== undefined && seconds * 1000 > now.getTime() + signedSecondsMax * 1000)
    throw new Refusal(
      'invalid',
      `expires: with a key of a project the most is ${signedSecondsMax} s from now`,
    );
  return addressOf(routing, { sandboxId, port, signed: signer.sign(sandboxId, port, seconds) });
}
