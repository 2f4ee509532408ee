// How a worker reaches its controller: one HTTP request or one WebSocket at a time, through proxies, with certificates of one's own, and with words for what went wrong.
import { readFileSync } from 'node:fs';
import type { ClientRequest, IncomingHttpHeaders, IncomingMessage } from 'node:http';
import { Agent as HttpAgent, request as httpRequest } from 'node:http';
import { Agent as HttpsAgent, request as httpsRequest } from 'node:https';
import { checkServerIdentity, createSecureContext, getCACertificates } from 'node:tls';
import { HttpsProxyAgent } from 'https-proxy-agent';
import { WebSocket } from 'ws';
import type { Carrier } from '../channel/channel.ts';
import { WsCarrier, webSocketProtocol, webSocketServerOptions } from '../channel/websocket.ts';
import { errorHeaders } from '../contract/errors.ts';
import { Failure, type FailureCode } from '../lib/failure.ts';
import { proxyFor, shownProxy } from './proxy.ts';

const answerWithinMs = 20_000;
const answerBytesMax = 64 * 1024;
/** However long we are asked to stay away. */
const retryAfterMsMax = 600_000;

/** `wss://HOST:PORT`, with a path in front of `/ws` if there is a proxy that wants one. Failure('invalid'), also for `ws:` beyond this machine. */
export function parseServerUrl(text: string, { insecure }: { insecure: boolean }): URL {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  const protocol = { 'wss:': 'wss:', 'https:': 'wss:', 'ws:': 'ws:', 'http:': 'ws:' }[url?.protocol ?? ''];
  if (url === undefined || protocol === undefined || url.hostname === '')
    throw new Failure('invalid', `server URL ${JSON.stringify(text)}: not of the form wss://HOST:PORT`);
  if (url.username !== '' || url.password !== '' || url.search !== '' || url.hash !== '')
    throw new Failure('invalid', 'server URL: only scheme, host, port and path belong into it', {
      hint: 'A worker shows who it is with its key; a token goes into --token-file.',
    });
  if (protocol === 'ws:' && !insecure && !isLoopback(url.hostname))
    throw new Failure('invalid', `server URL ${url.origin}: without TLS only this machine may be dialled`, {
      hint: 'Use wss://, or say --insecure if nobody else can read or change what is on the way.',
    });
  url.protocol = protocol;
  url.pathname = url.pathname.replace(/\/+$/, '').replace(/\/ws$/, '');
  return url;
}

export interface TlsFileNames {
  /** Certificates that are trusted beside the usual ones. */
  ca?: string | undefined;
  /** What the worker shows to a controller or proxy that wants a certificate. */
  cert?: string | undefined;
  certKey?: string | undefined;
}

export interface TlsMaterial {
  ca?: string[];
  cert?: string;
  key?: string;
}

/** Failure('invalid') when a file cannot be read or used, or key and certificate do not belong together. */
export function readTlsFiles({ ca, cert, certKey }: TlsFileNames): TlsMaterial {
  const read = (option: string, path: string) => {
    try {
      return readFileSync(path, 'utf8');
    } catch (cause) {
      throw new Failure('invalid', `${option}: ${path} cannot be read: ${(cause as Error).message}`, {
        cause,
      });
    }
  };
  if ((cert === undefined) !== (certKey === undefined))
    throw new Failure('invalid', '--cert and --cert-key belong together', { hint: 'Give both, or none.' });
  const material: TlsMaterial = {
    ...(ca === undefined ? {} : { ca: [...getCACertificates('default'), read('--ca', ca)] }),
    ...(cert === undefined ? {} : { cert: read('--cert', cert) }),
    ...(certKey === undefined ? {} : { key: read('--cert-key', certKey) }),
  };
  if (material.ca !== undefined && !(material.ca.at(-1) as string).includes('-----BEGIN CERTIFICATE-----'))
    throw new Failure('invalid', `--ca: ${ca} holds no certificate in PEM`);
  try {
    createSecureContext(material);
  } catch (cause) {
    throw new Failure('invalid', `the TLS files cannot be used: ${(cause as Error).message}`, {
      ...{ cause, hint: 'They must be PEM, the key without a passphrase and that of the certificate.' },
    });
  }
  return material;
}

/** An answer that is not what was asked for. */
export interface Answer {
  status: number;
  headers: IncomingHttpHeaders;
  text: string;
}

export interface RoadOptions {
  server: URL;
  /** Looked at for each connection. */
  env: Readonly<Record<string, string | undefined>>;
  tls: () => TlsMaterial;
}

export class Road {
  readonly #options: RoadOptions;

  constructor(options: RoadOptions) {
    this.#options = options;
  }

  /** Any answer, with its text. Failures: `unavailable`, `timeout`, `aborted`, `protocol` for an answer that is too long. */
  async post(path: string, json: unknown, signal: AbortSignal): Promise<Answer> {
    const url = this.#url(path);
    const isSecure = url.protocol === 'wss:';
    url.protocol = isSecure ? 'https:' : 'http:';
    const limit = AbortSignal.any([signal, AbortSignal.timeout(answerWithinMs)]);
    const given = new AbortController();
    const { agent, proxy } = this.#agentFor(url, isSecure, given.signal);
    try {
      return await new Promise((resolve, reject) => {
        const request = (isSecure ? httpsRequest : httpRequest)(url, {
          ...{ method: 'POST', agent, signal: limit, ...this.#options.tls() },
          headers: { 'Content-Type': 'application/json' },
        });
        const refused = watchProxy(request, proxy);
        request.on('response', (response) => {
          const failure = refused();
          if (failure === undefined) return textOf(response).then(resolve, reject);
          response.resume();
          reject(failure);
        });
        request.on('error', (error) => reject(refused() ?? error));
        request.end(JSON.stringify(json));
      });
    } catch (thrown) {
      throw this.#explained(thrown, signal, proxy);
    } finally {
      given.abort();
      agent.destroy();
    }
  }

  /** A WebSocket of the channel's protocol, or the answer that came instead. `onDate` hears the header Date of whatever answered. Failures as `post`. */
  async dial(
    authorization: string,
    onDate: (date: string | undefined) => void,
    signal: AbortSignal,
  ): Promise<Carrier | Answer> {
    signal.throwIfAborted();
    const url = this.#url('/ws');
    const given = new AbortController();
    const { agent, proxy } = this.#agentFor(url, url.protocol === 'wss:', given.signal);
    const limit = AbortSignal.any([signal, AbortSignal.timeout(answerWithinMs)]);
    let socket: WebSocket | undefined;
    const abort = () => socket?.terminate();
    try {
      return await new Promise<Carrier | Answer>((resolve, reject) => {
        let refused: () => Failure | undefined = () => undefined;
        socket = new WebSocket(url, [webSocketProtocol], {
          ...{ ...webSocketServerOptions, agent, ...this.#options.tls() },
          headers: { Authorization: authorization },
          finishRequest: (request) => {
            refused = watchProxy(request, proxy);
            request.end();
          },
        });
        limit.addEventListener('abort', abort, { once: true });
        socket.on('upgrade', ({ headers }) => onDate(headers.date));
        // At once: what comes in the same packet as the answer must find its handler.
        socket.on('open', () => resolve(new WsCarrier(socket as WebSocket)));
        socket.on('unexpected-response', (request, response) => {
          const failure = refused();
          if (failure === undefined) {
            onDate(response.headers.date);
            textOf(response)
              .then(resolve, reject)
              .finally(() => request.destroy());
          } else {
            request.destroy();
            reject(failure);
          }
        });
        socket.on('error', (error) => reject(limit.aborted ? limit.reason : (refused() ?? error)));
      });
    } catch (thrown) {
      given.abort();
      throw this.#explained(thrown, signal, proxy);
    } finally {
      limit.removeEventListener('abort', abort);
    }
  }

  #url(path: string): URL {
    const { server } = this.#options;
    return new URL(`${server.protocol}//${server.host}${server.pathname.replace(/\/$/, '')}${path}`);
  }

  /** The signal ends what a proxy has not answered, of which the request itself does not know. */
  #agentFor(url: URL, isSecure: boolean, given: AbortSignal): { agent: HttpAgent; proxy: URL | undefined } {
    const proxy = proxyFor(url, this.#options.env);
    if (proxy === undefined) return { agent: isSecure ? new HttpsAgent() : new HttpAgent(), proxy };
    return { agent: new Tunnel(proxy, isSecure, { ...this.#options.tls(), signal: given }), proxy };
  }

  #explained(thrown: unknown, signal: AbortSignal, proxy: URL | undefined): Failure {
    if (thrown instanceof Failure) return thrown;
    if (signal.aborted) return Failure.from(signal.reason, 'connect');
    const { origin } = this.#options.server;
    const to = proxy === undefined ? origin : `${origin} through the proxy ${shownProxy(proxy)}`;
    const error = thrown as NodeJS.ErrnoException;
    const { code, hint } = explanationOf(error, this.#options.server.protocol === 'wss:');
    const words =
      error.name === 'TimeoutError' ? `no answer within ${answerWithinMs / 1000} seconds` : wordsOf(error);
    return new Failure(code, `connect to ${to}: ${words}`, {
      cause: thrown,
      ...(hint === undefined ? {} : { hint }),
    });
  }
}

/** What is said at the proxy's end of a connection is the library's; whether the far end wants TLS it would guess from a stack trace. */
class Tunnel extends HttpsProxyAgent<string> {
  readonly #isSecure: boolean;

  constructor(proxy: URL, isSecure: boolean, options: TlsMaterial & { signal: AbortSignal }) {
    super(proxy.href, options);
    this.#isSecure = isSecure;
  }

  override isSecureEndpoint(): boolean {
    return this.#isSecure;
  }

  override connect(request: ClientRequest, options: Parameters<HttpsProxyAgent<string>['connect']>[1]) {
    const { host } = options;
    if (!options.secureEndpoint || host === undefined) return super.connect(request, options);
    // The library forgets an address that is no name, and the certificate would have to be for `localhost`.
    const check: typeof checkServerIdentity = (_, certificate) => checkServerIdentity(host, certificate);
    return super.connect(request, { ...options, checkServerIdentity: check });
  }
}

/** A proxy's refusal looks like an answer of the controller; the returned function tells. */
function watchProxy(request: ClientRequest, proxy: URL | undefined): () => Failure | undefined {
  if (proxy === undefined) return () => undefined;
  let status = 200;
  request.on('proxyConnect', (connect: { statusCode: number }) => {
    status = connect.statusCode;
  });
  return () => {
    if (status === 200) return undefined;
    if (!Number.isInteger(status))
      return new Failure('unavailable', `what is at ${shownProxy(proxy)} is no HTTP proxy`, {
        hint: 'Look at HTTPS_PROXY and HTTP_PROXY.',
      });
    const asked =
      proxy.username === ''
        ? 'wants a user and a password'
        : 'does not take the user and password that it was given';
    const why = status === 407 ? asked : `does not let us through: ${status}`;
    return new Failure('unavailable', `the proxy ${shownProxy(proxy)} ${why}`, {
      hint:
        status === 407
          ? 'Write them into HTTPS_PROXY: http://USER:PASSWORD@HOST:PORT.'
          : 'Have it allow CONNECT to the controller, or name the controller in NO_PROXY.',
    });
  };
}

async function textOf(response: IncomingMessage): Promise<Answer> {
  const pieces: Buffer[] = [];
  let bytes = 0;
  for await (const piece of response as AsyncIterable<Buffer>) {
    bytes += piece.length;
    if (bytes > answerBytesMax)
      throw new Failure(
        'protocol',
        `an answer of more than ${answerBytesMax} bytes; is that the controller?`,
      );
    pieces.push(piece);
  }
  const { statusCode = 0, headers } = response;
  return { status: statusCode, headers, text: Buffer.concat(pieces).toString() };
}

/** What an answer says went wrong, when it is one of Glovebox; what it is otherwise. Never the text of strangers. */
export function failureOf({ status, headers, text }: Answer, doing: string): Failure {
  const retryAfterMs = retryAfterOf(headers);
  const details = { status, ...(retryAfterMs === undefined ? {} : { retryAfterMs }) };
  const code = headers[errorHeaders.failure.toLowerCase()];
  const hint = headers[errorHeaders.hint.toLowerCase()];
  if (typeof code !== 'string') {
    const message = `${doing}: status ${status}, from something that is no Glovebox controller`;
    return new Failure('unavailable', message, {
      ...{ details, hint: 'Is the address right, and does what stands between let WebSockets through?' },
    });
  }
  return new Failure(codeOf(code), `${doing}: ${messageOf(text) ?? `status ${status}`}`, {
    ...{ details, ...(typeof hint === 'string' ? { hint: oneLine(hint) } : {}) },
  });
}

const codes: Record<string, FailureCode> = Object.fromEntries(
  (['invalid', 'unauthenticated', 'conflict', 'unsupported', 'exhausted', 'permission'] as const).map(
    (it) => [it, it],
  ),
);
const codeOf = (word: string): FailureCode =>
  (Object.hasOwn(codes, word) ? codes[word] : undefined) ?? 'unavailable';

function messageOf(text: string): string | undefined {
  try {
    const { message } = JSON.parse(text) as { message?: unknown };
    return typeof message === 'string' ? oneLine(message) : undefined;
  } catch {
    return undefined;
  }
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what it looks for
const oneLine = (text: string) => text.replace(/[\u0000-\u001f\u007f-\u009f]+/g, ' ').slice(0, 500);

function retryAfterOf({ 'retry-after': header, date }: IncomingHttpHeaders): number | undefined {
  if (header === undefined) return undefined;
  const told = Date.parse(date ?? '');
  // A moment is meant by the clock of who names it.
  const now = Number.isNaN(told) ? Date.now() : told;
  const ms = /^\d{1,9}$/.test(header) ? Number(header) * 1000 : Date.parse(header) - now;
  return ms > 0 ? Math.min(ms, retryAfterMsMax) : undefined;
}

function wordsOf(error: NodeJS.ErrnoException): string {
  // Both address families failed: the error itself says nothing then.
  const inner = error instanceof AggregateError ? (error.errors[0] as Error | undefined) : undefined;
  const { code, reason } = error as { code?: string; reason?: unknown };
  // Around these the library writes addresses of its own memory and source.
  if (code?.startsWith('ERR_SSL') && typeof reason === 'string') return oneLine(reason);
  return oneLine((inner ?? error).message || error.code || 'failed');
}

const clockHint = 'Is the clock of this machine right? Certificates are checked by it.';
const trustHint = 'If its certificate is your own authority’s, name that with --ca FILE.';
const clientCertificateHint =
  'If the controller wants a certificate of the worker, give one that it takes with --cert and --cert-key.';
const certificateTrouble: Record<string, string> = {
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: trustHint,
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: trustHint,
  SELF_SIGNED_CERT_IN_CHAIN: trustHint,
  DEPTH_ZERO_SELF_SIGNED_CERT: trustHint,
  ERR_TLS_CERT_ALTNAME_INVALID: 'Dial the name that the certificate is for.',
  CERT_HAS_EXPIRED: clockHint,
  CERT_NOT_YET_VALID: clockHint,
};

function explanationOf(
  { code = '', name }: NodeJS.ErrnoException,
  secure: boolean,
): { code: FailureCode; hint?: string } {
  if (name === 'TimeoutError') return { code: 'timeout' };
  if (Object.hasOwn(certificateTrouble, code))
    return { code: 'unavailable', hint: certificateTrouble[code] as string };
  if (/^ERR_SSL_\w+_ALERT_(\w*CERTIFICATE\w*|UNKNOWN_CA|ACCESS_DENIED)$/.test(code))
    return { code: 'unavailable', hint: clientCertificateHint };
  // Many servers say no more than this about a certificate that they do not take.
  if (code === 'ECONNRESET' && secure)
    return { code: 'unavailable', hint: `It has hung up. ${clientCertificateHint}` };
  if (code === 'EPROTO' || code.startsWith('ERR_SSL'))
    return { code: 'unavailable', hint: 'Does that port speak TLS? ws:// is for this machine only.' };
  return { code: 'unavailable' };
}

function isLoopback(hostname: string): boolean {
  return hostname === 'localhost' || hostname === '[::1]' || /^127\.\d+\.\d+\.\d+$/.test(hostname);
}
