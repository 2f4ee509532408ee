// Calls to the host's engine on behalf of a sandbox: JSON, streams, and connections that are taken over. Paths and bodies are always ours.
import { Agent, type ClientRequest, type IncomingMessage, request } from 'node:http';
import { connect, type NetConnectOpts, type Socket } from 'node:net';
import type { Readable } from 'node:stream';
import { Failure } from '../lib/failure.ts';

export interface Call {
  method: string;
  /** Behind the version: `/containers/json`. */
  path: string;
  query?: Record<string, string | undefined>;
  json?: unknown;
  stream?: { body: Readable; type: string };
  headers?: Record<string, string>;
}

/** What the engine said when it was not content: passed on as it is. */
export class EngineRefusal extends Error {
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

const answerBytesMax = 64 * 1024 * 1024;
/** The oldest with all that we speak of; clients of newer ones are answered in theirs. */
export const defaultVersion = '1.41';

export class Upstream {
  readonly #address: { socketPath: string } | { host: string; port: number };
  /** The same for a connection of its own. */
  readonly #bare: NetConnectOpts;
  readonly #host: string;
  readonly #agent = new Agent({ keepAlive: true, maxFreeSockets: 4 });

  /** `unix:///path` or `tcp://host:port`. */
  constructor(host: string) {
    this.#host = host;
    const unix = /^unix:\/\/(\/.+)$/.exec(host)?.[1];
    const tcp = /^(?:tcp|http):\/\/(\[[0-9a-fA-F:]+\]|[\w.-]+):(\d{1,5})\/?$/.exec(host);
    if (unix !== undefined) this.#address = { socketPath: unix };
    else if (tcp) this.#address = { host: (tcp[1] as string).replace(/^\[|\]$/g, ''), port: Number(tcp[2]) };
    else throw new Failure('invalid', `the address of the Docker engine is ${JSON.stringify(host)}`);
    this.#bare =
      'socketPath' in this.#address
        ? { path: this.#address.socketPath, allowHalfOpen: true }
        : { ...this.#address, allowHalfOpen: true };
  }

  close(): void {
    this.#agent.destroy();
  }

  /** Parsed JSON of a good answer; throws EngineRefusal for others. */
  async json<T>(version: string, call: Call, signal?: AbortSignal): Promise<T> {
    const reply = await this.open(version, call, signal);
    const text = await textOf(reply);
    if (!isGood(reply)) throw refusalOf(reply, text);
    try {
      return (text === '' ? undefined : JSON.parse(text)) as T;
    } catch (cause) {
      throw new Failure('protocol', 'the Docker engine’s answer is not JSON', { cause });
    }
  }

  /** The same where there may be nothing. */
  async jsonIfFound<T>(version: string, call: Call, signal?: AbortSignal): Promise<T | undefined> {
    try {
      return await this.json<T>(version, call, signal);
    } catch (error) {
      if (error instanceof EngineRefusal && error.status === 404) return undefined;
      throw error;
    }
  }

  /** The same for answers that are lines, or nothing. */
  async text(version: string, call: Call, signal?: AbortSignal): Promise<string> {
    return textOf(await this.stream(version, call, signal));
  }

  /** A good answer whose body is still to come; throws EngineRefusal for others. */
  async stream(version: string, call: Call, signal?: AbortSignal): Promise<IncomingMessage> {
    const reply = await this.open(version, call, signal);
    if (isGood(reply)) return reply;
    throw refusalOf(reply, await textOf(reply));
  }

  open(version: string, call: Call, signal?: AbortSignal): Promise<IncomingMessage> {
    return new Promise((resolve, reject) => {
      const outgoing = this.#send(version, call, { agent: this.#agent, ...(signal ? { signal } : {}) });
      outgoing.on('response', resolve);
      outgoing.on('error', (error) => reject(this.#failure(error)));
      finish(outgoing, call);
    });
  }

  /** A connection that the engine has let go of for raw bytes; throws EngineRefusal where it has not. */
  upgrade(version: string, call: Call): Promise<{ reply: IncomingMessage; socket: Socket; head: Buffer }> {
    return new Promise((resolve, reject) => {
      const outgoing = this.#send(
        version,
        { ...call, headers: { ...call.headers, connection: 'Upgrade', upgrade: 'tcp' } },
        { createConnection: () => connect(this.#bare) },
      );
      outgoing.on('upgrade', (reply, socket, head) => resolve({ reply, socket: socket as Socket, head }));
      outgoing.on('response', (reply) => {
        textOf(reply).then((text) => {
          outgoing.destroy();
          reject(refusalOf(reply, text));
        }, reject);
      });
      outgoing.on('error', (error) => reject(this.#failure(error)));
      finish(outgoing, call);
    });
  }

  #send(version: string, call: Call, options: object): ClientRequest {
    const pairs = Object.entries(call.query ?? {}).filter(
      (it): it is [string, string] => it[1] !== undefined,
    );
    const query = pairs.length === 0 ? '' : `?${new URLSearchParams(pairs)}`;
    const body = bodyOf(call);
    return request({
      ...this.#address,
      ...options,
      method: call.method,
      path: `/v${version}${call.path}${query}`,
      headers: {
        host: 'docker',
        ...(body === undefined ? {} : { 'content-type': 'application/json', 'content-length': body.length }),
        ...(call.stream === undefined ? {} : { 'content-type': call.stream.type }),
        ...call.headers,
      },
    });
  }

  #failure(error: NodeJS.ErrnoException): Error {
    // What was to be sent was wrong.
    if (error instanceof Failure) return error;
    if (error.name === 'AbortError') return new Failure('aborted', 'the client has gone', { cause: error });
    return new Failure(
      'unavailable',
      `the Docker engine at ${this.#host} does not answer: ${error.message}`,
      {
        cause: error,
        hint: 'See whether it runs: systemctl status docker.',
      },
    );
  }
}

function bodyOf(call: Call): Buffer | undefined {
  if (call.json !== undefined) return Buffer.from(JSON.stringify(call.json));
  // The engine wants a length where a body could be.
  return call.stream === undefined && (call.method === 'POST' || call.method === 'PUT')
    ? Buffer.alloc(0)
    : undefined;
}

function finish(outgoing: ClientRequest, call: Call): void {
  if (call.stream === undefined) return void outgoing.end(bodyOf(call));
  const { body } = call.stream;
  body.on('error', (error) => outgoing.destroy(error));
  body.pipe(outgoing);
}

const isGood = (reply: IncomingMessage) => (reply.statusCode ?? 0) >= 200 && (reply.statusCode ?? 0) < 400;

async function textOf(reply: IncomingMessage): Promise<string> {
  const pieces: Buffer[] = [];
  let bytes = 0;
  for await (const piece of reply as AsyncIterable<Buffer>) {
    bytes += piece.length;
    if (bytes > answerBytesMax)
      throw new Failure('protocol', `the engine’s answer is over ${answerBytesMax} bytes`);
    pieces.push(piece);
  }
  return Buffer.concat(pieces).toString('utf8');
}

function refusalOf(reply: IncomingMessage, text: string): EngineRefusal {
  let message = text.trim();
  try {
    const said = (JSON.parse(text) as { message?: unknown }).message;
    if (typeof said === 'string') message = said;
  } catch {
    // What is in front of an engine may speak otherwise; the text has to do.
  }
  return new EngineRefusal(reply.statusCode ?? 502, message.slice(0, 4096));
}
