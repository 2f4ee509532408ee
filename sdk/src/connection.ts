// The connection to one server: where it is, one request, one WebSocket, and how failures of both become errors.
import { discover, type Where as Server, tlsFor } from './environment.ts';
import {
  abortErrorOf,
  CommandNotFoundError,
  codeOfHttpStatus,
  type ErrorCode,
  type ErrorDetails,
  errorOf,
  FileError,
  SandboxError,
  throwIfAborted,
} from './errors.ts';
import { type TlsSettings, tlsCodeIn, tlsTrouble } from './tls.ts';
import { HandshakeRefused, type Reply, type Socket, type Transport, transportFor } from './transport.ts';

export interface ConnectionOptions {
  /** E.g. `http://127.0.0.1:8080`. Default: `GLOVEBOX_URL`, `OPEN_SANDBOX_DOMAIN`, or the daemon of this machine. */
  url?: string;
  /** Default: `GLOVEBOX_API_KEY`, `OPEN_SANDBOX_API_KEY`, or the key in the home of this machine's daemon. */
  apiKey?: string;
  /** The home folder of a daemon on this machine (Node.js). Goes before the environment. Default: `GLOVEBOX_HOME`, else `~/.glovebox`. */
  home?: string;
  /**
   * With https (Node.js): authorities to trust instead of the platform's, as PEM or the path of a file. Default: `GLOVEBOX_CA_FILE`. A daemon found through
   * its home is known without it.
   */
  ca?: string;
  /** A certificate to show to a server that asks for one, and its key, as PEM or paths. Default: `GLOVEBOX_CLIENT_CERT_FILE` and `GLOVEBOX_CLIENT_KEY_FILE`. */
  cert?: string;
  key?: string;
  /** Used for every request instead of this package's own (Node.js) or the platform's. */
  fetch?: typeof fetch;
  /** Aborts everything that goes through this client. */
  signal?: AbortSignal;
}

export interface RequestOptions {
  query?: Record<string, string | number | undefined>;
  /** Sent as JSON. */
  json?: unknown;
  body?: Uint8Array | ReadableStream<Uint8Array>;
  headers?: Record<string, string>;
  /** What is being done, for the message of an error. */
  doing: string;
  sandboxId?: string;
  /** The file it is about: failures become FileErrors. */
  path?: string;
  signal?: AbortSignal | undefined;
  /** It is for the inside of a sandbox, with which a server that was just restarted has to find together first: that is waited for. */
  inside?: boolean;
  /** Cleaning up: the client's own signal, which may be why, does not stop it. */
  cleanup?: boolean;
}

/** The guest's own words for what a code of ours says less finely. */
const codeOfGuestWord: Record<string, ErrorCode> = {
  exists: 'conflict',
  'not-a-directory': 'invalid',
  'is-a-directory': 'invalid',
  'too-large': 'exhausted',
  refused: 'unavailable',
};

const codes = new Set<string>([
  ...[
    'invalid',
    'unauthenticated',
    'permission',
    'not-found',
    'conflict',
    'unsupported',
    'unavailable',
    'exhausted',
  ],
  ...[
    'full',
    'timeout',
    'aborted',
    'lost',
    'unknown',
    'protocol',
    'io',
    'internal',
    'command-not-found',
    'not-executable',
  ],
]);

/** An error's answer is short; more of it is not worth reading. */
const errorBytesMax = 65_536;

/** How often, and after which waits, a request to the inside of a sandbox is repeated that the server could not pass on. */
const comesBackDelaysMs = [50, 100, 200, 400, 800, 1_500, 2_000];

/** The connection never stood, so nothing can have happened. */
const neverConnected = new Set([
  'ECONNREFUSED',
  'ENOTFOUND',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'EAI_AGAIN',
  'ConnectionRefused',
]);

/** The server and the keys and certificates for it. */
interface Where extends Server {
  tls?: TlsSettings | undefined;
}

export class Connection {
  readonly #options: ConnectionOptions;
  #where: Promise<Where> | undefined;
  #transport: Promise<Transport> | undefined;

  constructor(options: ConnectionOptions) {
    this.#options = options;
  }

  /** The server's address, without a slash at the end. */
  async url(): Promise<string> {
    return (await this.#server()).url;
  }

  /** The response of a request that succeeded. Everything else is thrown, as a SandboxError. */
  async request(method: string, path: string, options: RequestOptions): Promise<Reply> {
    const { doing } = options;
    const signal = options.cleanup ? options.signal : this.joined(options.signal);
    throwIfAborted(signal, doing);
    const transport = await this.#ready();
    let refusals = 0;
    for (let attempt = 1; ; attempt++) {
      const where = await this.#server();
      const target = new URL(`${where.url}${path}`);
      for (const [name, value] of Object.entries(options.query ?? {})) {
        if (value !== undefined) target.searchParams.append(name, String(value));
      }
      const headers: Record<string, string> = { accept: '*/*', ...options.headers, ...keysOf(where) };
      const body =
        options.json === undefined ? options.body : new TextEncoder().encode(JSON.stringify(options.json));
      if (options.json !== undefined) headers['content-type'] = 'application/json';
      if (body instanceof Uint8Array) headers['content-length'] = String(body.length);
      else if (body === undefined && method !== 'GET') headers['content-length'] = '0';
      let response: Reply;
      try {
        response = await transport.send(target, { method, headers, body, signal, tls: where.tls });
      } catch (cause) {
        if (signal?.aborted) throw abortErrorOf(signal, doing);
        if (attempt - refusals === 1 && !(body instanceof ReadableStream) && (await this.#moved(cause)))
          continue;
        throw this.#connectionError(cause, method, target, { ...options, tls: where.tls });
      }
      if (response.status >= 200 && response.status < 300) return response;
      const error = await errorOfResponse(response, options);
      const delayMs = comesBackDelaysMs[refusals++];
      const comesBack = options.inside && error.code === 'unavailable' && error.status === 503;
      if (!comesBack || delayMs === undefined || body instanceof ReadableStream) throw error;
      await pause(delayMs, signal);
      throwIfAborted(signal, doing);
    }
  }

  /** The JSON of an answer. Throws ProtocolError when it is none. */
  async json(method: string, path: string, options: RequestOptions): Promise<unknown> {
    const response = await this.request(method, path, options);
    const text = await this.reading(response.text(), options);
    try {
      return JSON.parse(text);
    } catch (cause) {
      throw errorOf('protocol', `${options.doing}: the server's answer is not JSON`, {
        ...{ cause, status: response.status, requestId: response.headers.get('x-request-id') ?? undefined },
      });
    }
  }

  /** For requests whose answer has no content. */
  async send(method: string, path: string, options: RequestOptions): Promise<void> {
    const response = await this.request(method, path, options);
    await this.reading(response.arrayBuffer(), options);
  }

  /** The content of an answer, with the failures of its connection as errors of ours. */
  async reading<T>(content: Promise<T>, options: Pick<RequestOptions, 'doing' | 'signal'>): Promise<T> {
    try {
      return await content;
    } catch (cause) {
      const signal = this.joined(options.signal);
      if (signal?.aborted) throw abortErrorOf(signal, options.doing);
      throw errorOf('unavailable', `${options.doing}: the connection dropped in the middle of the answer`, {
        cause,
      });
    }
  }

  /**
   * A WebSocket. Throws UnavailableError when the server cannot be reached, which is worth another try, and the server's own error when it
   * refuses.
   */
  async connect(
    path: string,
    options: Pick<RequestOptions, 'doing' | 'sandboxId' | 'query' | 'signal'>,
    protocol: string,
  ): Promise<Socket> {
    const { doing } = options;
    const signal = this.joined(options.signal);
    throwIfAborted(signal, doing);
    const transport = await this.#ready();
    const where = await this.#server();
    const target = new URL(`${where.url.replace(/^http/, 'ws')}${path}`);
    for (const [name, value] of Object.entries(options.query ?? {}))
      target.searchParams.append(name, String(value));
    try {
      return await transport.connect(target, { protocol, signal, headers: keysOf(where), tls: where.tls });
    } catch (cause) {
      if (signal?.aborted) throw abortErrorOf(signal, doing);
      if (cause instanceof HandshakeRefused) throw await errorOfResponse(cause.response, options);
      await this.#moved(cause);
      throw this.#connectionError(cause, 'GET', target, { ...options, tls: where.tls });
    }
  }

  /** A signal that fires with the client's own or the given one. */
  joined(signal: AbortSignal | undefined): AbortSignal | undefined {
    const own = this.#options.signal;
    return own && signal ? AbortSignal.any([own, signal]) : (own ?? signal);
  }

  #ready(): Promise<Transport> {
    this.#transport ??= transportFor(this.#options.fetch);
    return this.#transport;
  }

  #server(): Promise<Where> {
    const { url, apiKey, home } = this.#options;
    const found =
      this.#where ??
      (url === undefined
        ? discover(home).then((it) => ({ ...it, apiKey: apiKey ?? it.apiKey }))
        : Promise.resolve<Server>({ url, apiKey })
      ).then(async (it) => {
        const checked = { ...it, url: checkedUrl(it.url) };
        return checked.url.startsWith('https:')
          ? { ...checked, tls: await tlsFor(this.#options, it.certificates) }
          : checked;
      });
    this.#where = found;
    // What was not there may be there the next time.
    found.catch(() => {
      if (this.#where === found) this.#where = undefined;
    });
    return found;
  }

  /** After a connection that did not come about: whether the daemon has another address or certificate by now, as one that was restarted may. */
  async #moved(cause: unknown): Promise<boolean> {
    const before = await this.#server();
    const system = systemCodeOf(cause);
    if (!neverConnected.has(system) && tlsTrouble(system, new URL(before.url), before.tls) === undefined)
      return false;
    this.#where = undefined;
    return await this.#server().then(
      (now) => now.url !== before.url || String(now.certificates) !== String(before.certificates),
      () => false,
    );
  }

  #connectionError(
    cause: unknown,
    method: string,
    url: URL,
    options: RequestOptions & Pick<Where, 'tls'>,
  ): SandboxError {
    const system = systemCodeOf(cause);
    const details: ErrorDetails = { cause, sandboxId: options.sandboxId };
    if (neverConnected.has(system)) {
      return errorOf('unavailable', `${options.doing}: no server answers at ${url.origin}`, {
        ...details,
        hint: 'Start one with `glovebox serve`, or check GLOVEBOX_URL.',
      });
    }
    const trouble = tlsTrouble(system, url, options.tls);
    if (trouble !== undefined) {
      const { code, what, hint } = trouble;
      return errorOf(code, `${options.doing}: ${what}`, { ...details, hint });
    }
    if (cause instanceof SandboxError) return cause;
    const message = cause instanceof Error ? cause.message : String(cause);
    // Reading twice does no harm; anything else may have happened already.
    if (method === 'GET') {
      return errorOf(
        'unavailable',
        `${options.doing}: the connection to ${url.origin} failed: ${message}`,
        details,
      );
    }
    return errorOf(
      'unknown',
      `${options.doing}: the connection to ${url.origin} dropped before the answer: ${message}`,
      {
        ...details,
        hint:
          options.tls?.cert === undefined
            ? 'It may or may not have happened: look before trying again.'
            : 'If the server does not accept the certificate of this client, its log says so; else it may or may not have happened: look before trying again.',
      },
    );
  }
}

/** Resolves after the time, or early when the signal fires. */
export function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal?.addEventListener('abort', done);
  });
}

function checkedUrl(url: string): string {
  if (!/^https?:\/\/[^/]/.test(url) || !URL.canParse(url)) {
    throw errorOf('invalid', `'${url}' is not the address of a server`, {
      hint: "Write e.g. 'http://127.0.0.1:8080'.",
    });
  }
  return url.replace(/\/+$/, '').replace(/\/v1$/, '');
}

function systemCodeOf(cause: unknown): string {
  const own = (cause as { code?: unknown } | null)?.code;
  if (own === 'EPROTO') return tlsCodeIn(String((cause as Error).message)) ?? own;
  if (typeof own === 'string') return own;
  const inner = (cause as { cause?: unknown } | null)?.cause;
  if (inner instanceof AggregateError) return systemCodeOf(inner.errors[0]);
  return inner === undefined || inner === null ? '' : systemCodeOf(inner);
}

/** The server's own words: `{code, message}` in the body, the rest in headers (src/contract/errors.ts). */
async function errorOfResponse(
  response: Reply,
  options: Pick<RequestOptions, 'doing' | 'sandboxId' | 'path'>,
): Promise<SandboxError> {
  const { status, headers } = response;
  const text = await textOf(response);
  let body: { code?: unknown; message?: unknown } = {};
  try {
    body = (JSON.parse(text) as typeof body | null) ?? {};
  } catch {
    // A proxy between us and the server, or no server of ours at all: the status has to do.
  }
  const word = headers.get('glovebox-failure') ?? '';
  const code = codeOfGuestWord[word] ?? (codes.has(word) ? (word as ErrorCode) : codeOfHttpStatus(status));
  const said = typeof body.message === 'string' ? body.message : text.trim().split('\n')[0]?.slice(0, 300);
  const words = said || `the server answered with status ${status}`;
  // The server, too, says what it was doing, often in the same words.
  const message = words.startsWith(`${options.doing}: `) ? words : `${options.doing}: ${words}`;
  const details: ErrorDetails = {
    status,
    hint: headers.get('glovebox-hint') ?? hintOf(code),
    requestId: headers.get('x-request-id') ?? undefined,
    sandboxId: options.sandboxId,
    serverCode: typeof body.code === 'string' ? body.code : undefined,
  };
  if (code === 'command-not-found') return new CommandNotFoundError(127, message, details);
  if (code === 'not-executable') return new CommandNotFoundError(126, message, details);
  const aboutTheFile = ['not-found', 'permission', 'invalid', 'conflict', 'full', 'io', 'exhausted'];
  if (options.path !== undefined && aboutTheFile.includes(code))
    return new FileError(code, message, options.path, details);
  return errorOf(code, message, details);
}

function hintOf(code: ErrorCode): string | undefined {
  return code === 'unauthenticated'
    ? 'Set GLOVEBOX_API_KEY to a key of this server, or pass `apiKey`.'
    : undefined;
}

async function textOf(response: Reply): Promise<string> {
  const decoder = new TextDecoder();
  let text = '';
  try {
    const reader = response.body?.getReader();
    while (reader !== undefined && text.length < errorBytesMax) {
      const { done, value } = await reader.read();
      if (done) break;
      text += decoder.decode(value, { stream: true });
    }
    await reader?.cancel();
  } catch {
    // The status is known; what it was to say besides is lost with the connection.
  }
  return text;
}

/** Who we are, in the headers of requests and WebSockets alike. */
function keysOf({ apiKey, ownerKey }: Where): Record<string, string> {
  return {
    ...(apiKey ? { 'OPEN-SANDBOX-API-KEY': apiKey } : {}),
    ...(ownerKey ? { 'Glovebox-Owner': ownerKey } : {}),
  };
}
