// Docker Sandboxes' API on a Unix socket. Who may use it is decided by the mode of the socket and of its folder: only the daemon's own user (and root) can
// connect, so that every request counts as the owner's.
import { randomUUID } from 'node:crypto';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { z } from 'zod';
import { httpStatusOf } from '../../contract/errors.ts';
import { bareBody } from '../../dockergate/server.ts';
import { Failure } from '../../lib/failure.ts';
import type { AuditService } from '../audit.ts';
import { sandboxRoutes } from './sandboxes.ts';
import type { SandboxdOptions } from './service.ts';
import { vmRoutes } from './vms.ts';

export interface SandboxdCall {
  params: string[];
  query: URLSearchParams;
  /** Ends with the client. */
  signal: AbortSignal;
  /** Ends with the daemon: for what goes on without the client. */
  lifetime: AbortSignal;
  request: IncomingMessage;
  response: ServerResponse;
  bare?: { socket: Socket; head: Buffer };
  body<T extends z.ZodType>(schema: T): Promise<z.infer<T>>;
}

/** `taken`: the handler has answered by itself. */
export type SandboxdAnswer = { status: number; json?: unknown } | 'taken';
export type SandboxdRoute = [
  method: string,
  pattern: RegExp,
  handler: (call: SandboxdCall) => SandboxdAnswer | Promise<SandboxdAnswer>,
];

const bodyBytesMax = 1024 * 1024;

/** The handler of the server that src/dockergate/server.ts makes. */
export class Sandboxd {
  readonly #options: SandboxdOptions;
  readonly #routes: SandboxdRoute[];
  readonly #lifetime = new AbortController();

  constructor(options: SandboxdOptions) {
    this.#options = options;
    this.#routes = [...vmRoutes(options), ...sandboxRoutes(options)];
  }

  close(): void {
    this.#lifetime.abort(new Failure('aborted', 'the daemon stops'));
  }

  async handle(
    request: IncomingMessage,
    response: ServerResponse,
    bare?: SandboxdCall['bare'],
  ): Promise<void> {
    const gone = new AbortController();
    response.once('close', () => gone.abort());
    bare?.socket.once('close', () => gone.abort());
    let audited: Awaited<ReturnType<AuditService['begin']>> | undefined;
    try {
      const [path = '', ...search] = (request.url ?? '').split('?');
      const [handler, params] = this.#find(request.method ?? '', path);
      audited = await this.#audit(request, path);
      gone.signal.throwIfAborted();
      const answer = await handler({
        ...{ params, request, response, signal: gone.signal, lifetime: this.#lifetime.signal },
        ...(bare === undefined ? {} : { bare }),
        query: new URLSearchParams(search.join('?')),
        body: async (schema) => checked(schema, await bodyOf(request, bare)),
      });
      if (answer !== 'taken') send(response, answer.status, answer.json);
    } catch (thrown) {
      this.#fail(thrown, request, response);
    } finally {
      // One whose connection was taken over has no answer of the usual kind.
      audited?.end({ status: response.headersSent ? response.statusCode : bare === undefined ? 499 : 101 });
    }
  }

  /** Whoever reaches the socket counts as the owner. Paths hold names, and no secrets. */
  async #audit(
    request: IncomingMessage,
    path: string,
  ): Promise<Awaited<ReturnType<AuditService['begin']>> | undefined> {
    const { method = '' } = request;
    if (method === 'GET' || method === 'HEAD') return undefined;
    const call = { by: 'owner', address: 'sandboxd.sock', operation: 'sandboxd', method } as const;
    return await this.#options.audit.begin(
      { ...call, params: { path }, requestId: randomUUID() },
      { makesRoom: method === 'DELETE' },
    );
  }

  #find(method: string, path: string): [SandboxdRoute[2], string[]] {
    // Clients of the second version put one in front.
    const bare = path.replace(/^\/v[12](?=\/)/, '');
    const fitting = this.#routes.flatMap(([wanted, pattern, handler]) => {
      const match = pattern.exec(bare);
      return match === null ? [] : [{ wanted, handler, params: match.slice(1) }];
    });
    const found = fitting.find((it) => it.wanted === method);
    if (found !== undefined) return [found.handler, found.params.map(decoded)];
    throw new Failure('not-found', `${method} ${path.slice(0, 200)}: there is no such route`);
  }

  #fail(thrown: unknown, request: IncomingMessage, response: ServerResponse): void {
    const failure = Failure.from(thrown, 'sandboxd');
    if (response.headersSent || response.destroyed || response.socket === null) {
      request.socket.destroy();
      return;
    }
    request.resume();
    if (failure.code === 'internal')
      this.#options.log.error(
        { error: String((thrown as Error)?.stack ?? thrown) },
        'a request to sandboxd failed',
      );
    const { message, hint } = failure;
    send(response, httpStatusOf(failure.code), {
      message: hint === undefined ? message : `${message}. ${hint}`,
    });
  }
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw new Failure('invalid', 'the path of the request is malformed');
  }
}

function send(response: ServerResponse, status: number, json: unknown): void {
  if (json === undefined)
    return void response.writeHead(status, status === 204 ? {} : { 'Content-Length': 0 }).end();
  const body = Buffer.from(`${JSON.stringify(json)}\n`);
  response.writeHead(status, { 'Content-Type': 'application/json', 'Content-Length': body.length });
  response.end(body);
}

function checked<T extends z.ZodType>(schema: T, value: unknown): z.infer<T> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const problems = result.error.issues
    .slice(0, 5)
    .map((it) => [it.path.join('.'), it.message].filter((part) => part !== '').join(': '));
  throw new Failure('invalid', problems.join('; '));
}

async function bodyOf(request: IncomingMessage, bare: SandboxdCall['bare']): Promise<unknown> {
  const pieces: Buffer[] = [];
  let bytes = 0;
  const tooLong = new Failure('invalid', `the body is over ${bodyBytesMax} bytes`);
  if (bare !== undefined) return json(await bareBody(request, bare));
  for await (const piece of request as AsyncIterable<Buffer>) {
    bytes += piece.length;
    if (bytes > bodyBytesMax) throw tooLong;
    pieces.push(piece);
  }
  return json(Buffer.concat(pieces));
}

function json(body: Buffer): unknown {
  try {
    return JSON.parse(body.toString('utf8') || '{}');
  } catch (cause) {
    throw new Failure('invalid', 'the body is not JSON', { cause });
  }
}
