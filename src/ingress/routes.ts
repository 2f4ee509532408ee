// Which port of which sandbox a request at the gateway means, and how an address of one is written: by host name, by path, or by header. Nothing is
// decided here about who may; a signature is only found, not believed.
import { Failure } from '../lib/failure.ts';
import type { SignedPart } from './signed-routes.ts';

export type RouteMode = 'wildcard' | 'uri' | 'header';

export interface Routing {
  mode: RouteMode;
  /** Host, perhaps with a port, under which clients know the gateway. With `wildcard`, what stands behind `*.`. */
  address: string;
}

/** What carries `<id>-<port>` in header mode; the second is what older clients send. */
export const ingressHeaders = ['OpenSandbox-Ingress-To', 'OPEN-SANDBOX-INGRESS'] as const;

export interface Place {
  sandboxId: string;
  port: number;
  /** As in the request line, from the slash behind what names the place on. */
  path: string;
  signed?: SignedPart;
  /** With `uri`: what the path is if `signed` is none, but the application's own. */
  unsignedPath?: string;
}

export interface Asked {
  host: string | undefined;
  /** As in the request line. */
  path: string;
  /** Of the header that names the place. */
  token: string | undefined;
}

const idForm = /^[0-9A-Za-z_-]{1,128}$/;
const portForm = /^[1-9]\d{0,4}$/;

/** Undefined when it names none. Throws Failure('invalid') for what names one in a wrong way. `looksSigned`: see RouteSigner. */
export function placeOf(
  { mode, address }: Routing,
  { host, path, token }: Asked,
  looksSigned: (part: SignedPart) => boolean,
): Place | undefined {
  switch (mode) {
    case 'wildcard': {
      const name = hostName(host ?? '');
      const parent = `.${hostName(address)}`;
      if (!name.endsWith(parent)) return undefined;
      return { ...namedBy(name.slice(0, -parent.length), looksSigned), path };
    }
    case 'header':
      return token === undefined ? undefined : { ...namedBy(token, looksSigned), path };
    case 'uri':
      return placeInPath(path, looksSigned);
  }
}

/** How clients get to a place: the endpoint without a scheme, and the headers that belong to it. */
export function addressOf(
  { mode, address }: Routing,
  { sandboxId, port, signed }: Pick<Place, 'sandboxId' | 'port' | 'signed'>,
): { endpoint: string; headers: Record<string, string> } {
  const parts = [sandboxId, port, ...(signed === undefined ? [] : [signed.expires, signed.signature])];
  switch (mode) {
    case 'wildcard':
      return { endpoint: `${parts.join('-')}.${address}`, headers: {} };
    case 'header':
      return { endpoint: address, headers: { [ingressHeaders[0]]: parts.join('-') } };
    case 'uri':
      return { endpoint: `${address}/${parts.join('/')}`, headers: {} };
  }
}

const hostName = (host: string) => host.replace(/:\d+$/, '').toLowerCase();

/** From the right, for ids have hyphens, too. */
function namedBy(text: string, looksSigned: (part: SignedPart) => boolean): Omit<Place, 'path'> {
  const parts = text.split('-');
  const [expires = '', signature = ''] = parts.slice(-2);
  const signed = parts.length > 3 && portForm.test(parts.at(-3) ?? '') && looksSigned({ expires, signature });
  const named = signed ? parts.slice(0, -2) : parts;
  const port = named.pop() ?? '';
  const sandboxId = named.join('-');
  if (!idForm.test(sandboxId) || !portForm.test(port) || Number(port) > 65_535)
    throw new Failure('invalid', `${JSON.stringify(text.slice(0, 100))} names no port of a sandbox`, {
      hint: 'It is <id>-<port>, or <id>-<port>-<expires>-<signature>: see GET /v1/sandboxes/{id}/endpoints/{port}.',
    });
  return { sandboxId, port: Number(port), ...(signed ? { signed: { expires, signature } } : {}) };
}

function placeInPath(path: string, looksSigned: (part: SignedPart) => boolean): Place | undefined {
  const [, sandboxId = '', portText = '', rest = ''] = /^\/([^/]+)\/([^/]+)(\/.*)?$/s.exec(path) ?? [];
  if (!idForm.test(sandboxId) || !portForm.test(portText) || Number(portText) > 65_535) return undefined;
  const plain = rest === '' ? '/' : rest;
  const place = { sandboxId, port: Number(portText) };
  const [, expires = '', signature = '', behind = ''] = /^\/([^/]+)\/([^/]+)(\/.*)?$/s.exec(rest) ?? [];
  if (!looksSigned({ expires, signature })) return { ...place, path: plain };
  return {
    ...place,
    path: behind === '' ? '/' : behind,
    signed: { expires, signature },
    unsignedPath: plain,
  };
}
