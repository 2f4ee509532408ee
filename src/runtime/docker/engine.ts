// A small client of the Docker Engine API, over a Unix socket or TCP: JSON calls, streams of JSON, and errors as Failures.
// Every call has a time limit; what the engine says is bounded. Connections stay open between calls.
import { Agent, type ClientRequest, type IncomingMessage, request } from 'node:http';
import { pipeline } from 'node:stream/promises';
import { Failure, type FailureCode } from '../../lib/failure.ts';

export interface EngineOptions {
  /** `unix:///path` or `tcp://host:port`, as in DOCKER_HOST. */
  host: string;
  /** The time limit of one call, and of silence in a stream. */
  timeoutMs: number;
}

export interface EngineCall {
  /** What we are doing, for error messages. */
  doing: string;
  query?: Record<string, string>;
  body?: unknown;
  /** Instead of `body`: a tar, sent as it comes. */
  tar?: AsyncIterable<Uint8Array>;
  headers?: Record<string, string>;
  /** Statuses beside 2xx that are no error; the answer is then undefined. */
  accept?: number[];
}

export interface LinesOptions {
  /** For streams that may be silent for as long as they like. */
  endless?: boolean;
  /** Called when the engine has accepted the call, before the first value. */
  onOpen?: () => void;
}

/** Versions of the API that we speak: the oldest with all we need, and the newest that we know. */
const apiVersions = { oldest: [1, 41], newest: [1, 51] } as const;
const bodyBytesMax = 64 * 1024 * 1024;
const lineBytesMax = 4 * 1024 * 1024;

export class Engine {
  /** The path of the engine's Unix socket, if it has one here. */
  readonly socketPath: string | undefined;
  readonly #address: { socketPath: string } | { host: string; port: number };
  readonly #options: EngineOptions;
  readonly #agent = new Agent({ keepAlive: true, maxFreeSockets: 16, timeout: 0 });
  #version: Promise<string> | undefined;

  constructor(options: EngineOptions) {
    this.#options = options;
    const unix = /^unix:\/\/(\/.+)$/.exec(options.host)?.[1];
    const tcp = /^(?:tcp|http):\/\/(\[[0-9a-fA-F:]+\]|[\w.-]+):(\d{1,5})\/?$/.exec(options.host);
    this.socketPath = unix;
    if (unix !== undefined) this.#address = { socketPath: unix };
    else if (tcp) this.#address = { host: (tcp[1] as string).replace(/^\[|\]$/g, ''), port: Number(tcp[2]) };
    else {
      throw new Failure('invalid', `the address of the Docker engine is "${options.host}"`, {
        hint: 'Write it as unix:///path/of/the/socket or tcp://host:port.',
      });
    }
  }

  /** One call; resolves with the parsed JSON, or undefined where the engine says nothing. The caller knows the shape. */
  async call<T = unknown>(method: string, path: string, call: EngineCall, signal?: AbortSignal): Promise<T> {
    const limit = this.#limit(call.doing, signal);
    try {
      const reply = await this.#open(method, path, call, limit);
      const text = await limit.guard(bodyOf(reply, call.doing));
      if (isOk(reply)) return text === '' ? (undefined as T) : (parse(text, call.doing) as T);
      if (call.accept?.includes(reply.statusCode ?? 0)) return undefined as T;
      throw failureOf(reply.statusCode ?? 0, messageIn(text), call.doing);
    } finally {
      limit.done();
    }
  }

  /** A call that answers with a stream of JSON values, one a line. Leaving the loop closes the connection. */
  async *lines(
    method: string,
    path: string,
    call: EngineCall,
    options: LinesOptions,
    signal?: AbortSignal,
  ): AsyncGenerator<unknown> {
    const limit = this.#limit(call.doing, signal);
    let reply: IncomingMessage | undefined;
    try {
      reply = await this.#open(method, path, call, limit);
      if (!isOk(reply)) {
        throw failureOf(reply.statusCode ?? 0, messageIn(await bodyOf(reply, call.doing)), call.doing);
      }
      options.onOpen?.();
      if (options.endless) {
        limit.pause();
        // Waiting for events keeps nobody's process alive.
        reply.socket.unref();
      }
      let rest = '';
      reply.setEncoding('utf8');
      for await (const text of reply) {
        if (!options.endless) limit.restart();
        const lines = (rest + text).split('\n');
        rest = lines.pop() as string;
        if (rest.length > lineBytesMax)
          throw new Failure('protocol', `${call.doing}: the engine sent a line without end`);
        for (const line of lines) if (line.trim() !== '') yield parse(line, call.doing);
      }
      if (rest.trim() !== '') yield parse(rest, call.doing);
    } catch (error) {
      throw limit.failure ?? this.#failure(error, call.doing);
    } finally {
      limit.done();
      reply?.destroy();
    }
  }

  /** A call that answers with bytes. Leaving the loop closes the connection; a slow reader is waited for. */
  async *bytes(
    method: string,
    path: string,
    call: EngineCall,
    signal?: AbortSignal,
  ): AsyncGenerator<Uint8Array> {
    const limit = this.#limit(call.doing, signal);
    let reply: IncomingMessage | undefined;
    try {
      reply = await this.#open(method, path, call, limit);
      if (!isOk(reply)) {
        throw failureOf(reply.statusCode ?? 0, messageIn(await bodyOf(reply, call.doing)), call.doing);
      }
      for await (const piece of reply as AsyncIterable<Buffer>) {
        limit.pause();
        yield piece;
        limit.restart();
      }
    } catch (error) {
      throw limit.failure ?? this.#failure(error, call.doing);
    } finally {
      limit.done();
      reply?.destroy();
    }
  }

  /** Proof that the engine answers; its own clock in whole seconds since 1970, and the version of the API that both speak. */
  async ping(signal?: AbortSignal): Promise<{ atSeconds: number; version: string }> {
    const doing = 'ask whether the Docker engine is there';
    const limit = this.#limit(doing, signal);
    try {
      const reply = await this.#request('GET', '/_ping', { doing }, limit);
      const text = await limit.guard(bodyOf(reply, doing));
      if (!isOk(reply)) throw failureOf(503, messageIn(text), doing);
      const version = agreedVersion(String(reply.headers['api-version'] ?? ''));
      return { atSeconds: Math.floor(Date.parse(reply.headers.date ?? '') / 1000), version };
    } finally {
      limit.done();
    }
  }

  /** Closes idle connections. Calls may still be made; they open new ones. */
  close(): void {
    this.#agent.destroy();
  }

  async #open(method: string, path: string, call: EngineCall, limit: Limit): Promise<IncomingMessage> {
    const version = await this.#agreed();
    const query = call.query === undefined ? '' : `?${new URLSearchParams(call.query)}`;
    return this.#request(method, `/v${version}${path}${query}`, call, limit);
  }

  /** Asked once, on nobody's behalf, so that no caller's abort fails the others; asked again when it failed. */
  #agreed(): Promise<string> {
    this.#version ??= this.ping().then(
      (it) => it.version,
      (error) => {
        this.#version = undefined;
        throw error;
      },
    );
    return this.#version;
  }

  #request(method: string, path: string, call: EngineCall, limit: Limit): Promise<IncomingMessage> {
    const body = call.body === undefined ? undefined : Buffer.from(JSON.stringify(call.body));
    const attempt = (again: boolean): Promise<IncomingMessage> =>
      new Promise((resolve, reject) => {
        const outgoing = request({
          ...this.#address,
          agent: this.#agent,
          method,
          path,
          headers: {
            host: 'docker',
            ...(body === undefined
              ? {}
              : { 'content-type': 'application/json', 'content-length': body.length }),
            ...(call.tar === undefined ? {} : { 'content-type': 'application/x-tar' }),
            ...call.headers,
          },
          signal: limit.signal,
        });
        outgoing.on('response', resolve);
        outgoing.on('error', (error: NodeJS.ErrnoException) => {
          // The engine may close an idle connection just as we use it; what changes nothing is asked again.
          const idle = outgoing.reusedSocket && (error.code === 'ECONNRESET' || error.code === 'EPIPE');
          if (idle && again && method === 'GET') attempt(false).then(resolve, reject);
          else reject(limit.failure ?? this.#failure(error, call.doing));
        });
        if (call.tar === undefined) outgoing.end(body);
        else void sendTar(call.tar, outgoing, limit);
      });
    return attempt(true);
  }

  #failure(error: unknown, doing: string): Failure {
    if (error instanceof Failure) return error;
    const cause = error as NodeJS.ErrnoException;
    if (cause.name === 'AbortError') return new Failure('aborted', `${doing}: aborted`, { cause });
    const reasons: Record<string, [why: string, hint: string]> = {
      ENOENT: ['is not running', 'Install Docker (package docker.io) and start it: systemctl start docker.'],
      ECONNREFUSED: ['is not running', 'Start it: systemctl start docker.'],
      EACCES: ['may not be used by this user', 'Add the user to the group "docker", or run as root.'],
      EPERM: ['may not be used by this user', 'Add the user to the group "docker", or run as root.'],
    };
    const [why, hint] = reasons[cause.code ?? ''] ?? [
      `stopped answering (${cause.message})`,
      'See its log: journalctl -u docker.',
    ];
    return new Failure('unavailable', `${doing}: the Docker engine at ${this.#options.host} ${why}`, {
      cause,
      hint,
    });
  }

  #limit(doing: string, signal: AbortSignal | undefined): Limit {
    return new Limit(this.#options.timeoutMs, signal, doing);
  }
}

/** Joins a caller's signal with a time limit, and remembers which of the two ended the call. */
class Limit {
  failure: Failure | undefined;
  readonly #controller = new AbortController();
  readonly #outer: AbortSignal | undefined;
  readonly #ms: number;
  readonly #doing: string;
  #timer: NodeJS.Timeout | undefined;

  constructor(ms: number, outer: AbortSignal | undefined, doing: string) {
    this.#ms = ms;
    this.#outer = outer;
    this.#doing = doing;
    outer?.addEventListener('abort', this.#aborted);
    if (outer?.aborted) this.#aborted();
    this.restart();
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  restart(): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      const hint = 'See whether it hangs (docker ps), and its log: journalctl -u docker.';
      this.#end(
        new Failure('unavailable', `${this.#doing}: the Docker engine said nothing for ${this.#ms} ms`, {
          hint,
        }),
      );
    }, this.#ms);
  }

  pause(): void {
    clearTimeout(this.#timer);
  }

  /** Ends the call with this. */
  fail(failure: Failure): void {
    this.#end(failure);
  }

  /** The value, unless the limit ends the wait first. */
  async guard<T>(value: Promise<T>): Promise<T> {
    try {
      return await value;
    } catch (error) {
      throw this.failure ?? error;
    }
  }

  done(): void {
    clearTimeout(this.#timer);
    this.#outer?.removeEventListener('abort', this.#aborted);
  }

  readonly #aborted = () => {
    const cause = this.#outer?.reason;
    this.#end(
      Failure.from(cause instanceof Error ? cause : new DOMException('aborted', 'AbortError'), this.#doing),
    );
  };

  #end(failure: Failure): void {
    this.failure ??= failure;
    this.#controller.abort(failure);
  }
}

/** What goes wrong at the source ends the call with that; what goes wrong at the engine's end is told by the answer, or the lack of one. */
async function sendTar(tar: AsyncIterable<Uint8Array>, outgoing: ClientRequest, limit: Limit): Promise<void> {
  const counted = async function* () {
    try {
      for await (const piece of tar) {
        limit.restart();
        yield piece;
      }
    } catch (thrown) {
      limit.fail(Failure.from(thrown, 'read the archive'));
      throw thrown;
    }
  };
  await pipeline(counted, outgoing).catch(() => {});
}

const isOk = (reply: IncomingMessage) => (reply.statusCode ?? 0) >= 200 && (reply.statusCode ?? 0) < 300;

async function bodyOf(reply: IncomingMessage, doing: string): Promise<string> {
  const pieces: Buffer[] = [];
  let bytes = 0;
  try {
    for await (const piece of reply as AsyncIterable<Buffer>) {
      bytes += piece.length;
      if (bytes > bodyBytesMax)
        throw new Failure('protocol', `${doing}: the Docker engine's answer is over ${bodyBytesMax} bytes`);
      pieces.push(piece);
    }
  } catch (error) {
    if (error instanceof Failure) throw error;
    throw new Failure('unavailable', `${doing}: the Docker engine broke off in the middle of its answer`, {
      cause: error,
      hint: 'See its log: journalctl -u docker.',
    });
  }
  return Buffer.concat(pieces).toString('utf8');
}

function parse(text: string, doing: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new Failure('protocol', `${doing}: the Docker engine's answer is not JSON`, { cause });
  }
}

function messageIn(text: string): string {
  try {
    const { message } = JSON.parse(text) as { message?: unknown };
    if (typeof message === 'string') return plain(message);
  } catch {
    // Proxies in front of an engine answer in HTML; the text itself then has to do.
  }
  return plain(text);
}

/** Text of the engine or of a registry, made fit for one line of a terminal. */
export function plain(text: string): string {
  return text
    .replace(/[\p{Cc}\p{Cf}]+/gu, ' ')
    .trim()
    .slice(0, 1000);
}

function failureOf(status: number, message: string, doing: string): Failure {
  const codes: Record<number, FailureCode> = { 400: 'invalid', 404: 'not-found', 409: 'conflict' };
  const full = /no space left on device|disk quota exceeded/i.test(message);
  const code = full ? 'full' : (codes[status] ?? (status === 503 ? 'unavailable' : 'internal'));
  return new Failure(code, `${doing}: ${message || `the Docker engine answers ${status}`}`, {
    details: { status, engine: message },
    ...(full ? { hint: 'Make room where Docker keeps its data: docker system df.' } : {}),
  });
}

function agreedVersion(newestOfEngine: string): string {
  const [major = 0, minor = 0] = newestOfEngine.split('.').map(Number);
  const { oldest, newest } = apiVersions;
  if (major < oldest[0] || (major === oldest[0] && minor < oldest[1])) {
    throw new Failure(
      'unavailable',
      `the Docker engine speaks API ${plain(newestOfEngine) || 'of unknown version'}; ${oldest.join('.')} or newer is needed`,
      { hint: 'Install Docker 20.10 or newer.' },
    );
  }
  return major > newest[0] || minor > newest[1] ? newest.join('.') : `${major}.${minor}`;
}
