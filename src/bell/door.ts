// The door in HTTP: who is there, is it a browser, is it small enough, what does it ask for; then the bell.
// Two ways lead here: a private Unix socket, over which our sandboxes come with a token that they never see, and TCP for everybody else.
import {
  createServer as createHttpServer,
  type Server as HttpServer,
  type IncomingMessage,
  type ServerResponse,
  STATUS_CODES,
} from 'node:http';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import { type Bell, BellError, type Caller, callerKey } from './bell.ts';
import { alwaysHeaders, Exchange, type ExchangeLimits } from './exchange.ts';
import { callerOf, checkMediaType, plainAddress, refuseAmbiguous, refuseBrowsers, routeOf } from './gate.ts';
import { type Hooks, hookCalls } from './hooks.ts';
import { listenAt } from './listen.ts';
import { failure, Refusal, type Reply, success } from './replies.ts';
import { type BellRequest, parseObject, parseRequest } from './requests.ts';
import { SandboxWay } from './sandbox-way.ts';
import type { BellTokens } from './tokens.ts';

export interface BellDoor {
  /**
   * A connection for one of our own sandboxes: whatever comes over it comes from that sandbox. For the way out, which has decided that it may be
   * made. Resolves with a connected socket.
   */
  connect(sandboxId: string, signal: AbortSignal): Promise<Socket>;
  /** The sandbox is over: its connections end, and with them what they asked for. */
  forget(sandboxId: string): void;
  /** Where others are served: `http://127.0.0.1:9999`. */
  readonly listening: readonly string[];
  /** Aborts what is under way and waits until it has been answered, at most until `signal` says so (4 seconds without one). Idempotent. */
  close(signal?: AbortSignal): Promise<void>;
}

export interface BellDoorLimits extends ExchangeLimits {
  /** For the line that says which sandbox it is. */
  helloMs: number;
  /** For the first head of a connection. */
  headMs: number;
  /** From an answer to the end of the next head. */
  keepAliveMs: number;
  /** Hooks hold up an agent: they are answered after this, done or not. */
  hookMs: number;
  /** Over TCP, in all. Sandboxes have no bound in common, so that none can shut out another. */
  connectionsMax: number;
  /** Of one sandbox, or from one address. */
  connectionsPerCallerMax: number;
  /** Requests of one caller under way. */
  requestsPerCallerMax: number;
}

export interface BellDoorOptions {
  /** Where sandboxes come in; undefined when there are none. */
  socketPath: string | undefined;
  /** Where others come in. */
  listen: readonly { host: string; port: number }[];
  /** Those others need no token. */
  insecure: boolean;
  /** The machine's own names, under which others may call it. */
  names: readonly string[];
  tokens: BellTokens;
  hooks: Hooks;
  bell: Bell;
  /** Nothing was asked of the bell: a browser, or a stranger without a token that is known. */
  onRefused: (caller: Caller, refusal: BellError) => void;
  log: Log;
  limits?: Partial<BellDoorLimits>;
}

const defaultLimits: BellDoorLimits = {
  helloMs: 5_000,
  headMs: 10_000,
  bodyMs: 30_000,
  sendMs: 60_000,
  lingerMs: 5_000,
  lingerBytesMax: 8 * 1024 * 1024,
  keepAliveMs: 30_000,
  hookMs: 5_000,
  connectionsMax: 256,
  connectionsPerCallerMax: 64,
  requestsPerCallerMax: 64,
};

const headBytesMax = 16 * 1024;
/** More than a command gets that does not end when it is asked to. */
const closeMs = 4_000;
/**
 * When a caller that has ended its side is asked again whether it is there: soon, as it takes two writes to learn it; then now and then, but not often,
 * since clients and proxies bear few answers before the answer.
 */
const probesMs = [20, 200, 2_000, 4_000, 8_000, 16_000];
const probeEveryMs = 30_000;

/** Failure('unavailable') when an address cannot be listened at, saying which. Then nothing is left open. */
export async function openBellDoor(options: BellDoorOptions): Promise<BellDoor> {
  const door = new Door(options);
  try {
    await door.open();
  } catch (error) {
    await door.close();
    throw error;
  }
  return door;
}

/** What the door knows of one connection. */
interface Connection {
  readonly socket: Socket;
  /** Undefined: over TCP. */
  readonly sandboxId: string | undefined;
  /** Whose bound it counts for. */
  readonly peer: string;
  /** Why none of its requests is served. */
  readonly refusal: Refusal | undefined;
  /** Not answered yet, in their order. */
  readonly exchanges: Exchange[];
  /** Runs out when no head has come in time, or for the next probe. */
  timer: NodeJS.Timeout | undefined;
}

class Door implements BellDoor {
  readonly #options: BellDoorOptions;
  readonly #limits: BellDoorLimits;
  readonly #names: ReadonlySet<string>;
  readonly #http: HttpServer;
  readonly #servers: Server[] = [];
  readonly #sandboxes: SandboxWay | undefined;
  readonly #connections = new Map<Socket, Connection>();
  readonly #underWay = new Map<string, number>();
  readonly #work = new Set<Promise<void>>();
  readonly #closed = new AbortController();
  readonly #listening: string[] = [];
  #closing: Promise<void> | undefined;

  constructor(options: BellDoorOptions) {
    this.#options = options;
    this.#limits = { ...defaultLimits, ...options.limits };
    this.#names = new Set(options.names.map((it) => it.toLowerCase()));
    const { socketPath, log } = options;
    if (socketPath !== undefined)
      this.#sandboxes = new SandboxWay({
        socketPath,
        helloMs: this.#limits.helloMs,
        onConnection: (socket, sandboxId, lineBytes) => this.#admit(socket, { sandboxId, lineBytes }),
        log,
      });
    this.#http = createHttpServer({
      maxHeaderSize: headBytesMax,
      keepAliveTimeout: this.#limits.keepAliveMs,
      // Its answer would not be ours; the gate looks.
      requireHostHeader: false,
      shouldUpgradeCallback: () => false,
    });
    // All headers are seen, so that none can hide behind many; the gate counts them.
    this.#http.maxHeadersCount = 0;
    // Not in Node's documentation: a caller that has ended its side still gets its answer.
    Object.assign(this.#http, { httpAllowHalfOpen: true });
    this.#http.on('request', (request, response) => this.#begin(request, response, false));
    this.#http.on('checkContinue', (request, response) => this.#begin(request, response, true));
    this.#http.on('checkExpectation', (request, response) => this.#begin(request, response, false));
    this.#http.on('connect', (_request, socket: Socket) =>
      endRaw(
        socket,
        failure(
          new Refusal('method_not_allowed', 'this is no proxy', { headers: { Allow: 'POST' } }),
          undefined,
        ),
      ),
    );
    this.#http.on('clientError', (error, socket) => this.#malformed(error, socket as Socket));
  }

  get listening(): readonly string[] {
    return this.#listening;
  }

  async open(): Promise<void> {
    const { listen, log } = this.#options;
    await this.#sandboxes?.open();
    for (const { host, port } of listen) {
      const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) =>
        this.#admit(socket, undefined),
      );
      this.#servers.push(server);
      await listenAt(server, { host, port }, { doing: `the bell cannot listen at ${host}:${port}`, log });
      const address = server.address() as AddressInfo;
      const shown = address.family === 'IPv6' ? `[${address.address}]` : address.address;
      this.#listening.push(`http://${shown}:${address.port}`);
    }
  }

  async connect(sandboxId: string, signal: AbortSignal): Promise<Socket> {
    if (this.#sandboxes === undefined) throw new Failure('unavailable', 'this bell serves no sandboxes');
    return this.#sandboxes.connect(sandboxId, signal);
  }

  forget(sandboxId: string): void {
    this.#sandboxes?.forget(sandboxId);
    for (const connection of this.#connections.values())
      if (connection.sandboxId === sandboxId) connection.socket.destroy();
  }

  close(signal: AbortSignal = AbortSignal.timeout(closeMs)): Promise<void> {
    this.#closing ??= this.#close(signal);
    return this.#closing;
  }

  async #close(signal: AbortSignal): Promise<void> {
    const closed = Promise.all([
      this.#sandboxes?.close(),
      ...this.#servers.map((server) => new Promise<void>((resolve) => server.close(() => resolve()))),
    ]);
    this.#closed.abort(new BellError('failed', 'the daemon stops'));
    for (const { socket, exchanges } of this.#connections.values()) {
      if (exchanges.length === 0) socket.destroy();
      for (const exchange of exchanges) exchange.abort('the daemon stops');
    }
    const forced = Promise.withResolvers<void>();
    signal.addEventListener('abort', () => forced.resolve(), { once: true });
    if (signal.aborted) forced.resolve();
    await Promise.race([Promise.all(this.#work), forced.promise]);
    for (const socket of this.#connections.keys()) socket.destroySoon();
    await Promise.race([closed, forced.promise]);
    for (const socket of this.#connections.keys()) socket.destroy();
    await closed;
  }

  // Connections

  /** `from`: of our sandboxes. */
  #admit(socket: Socket, from: { sandboxId: string; lineBytes: number } | undefined): void {
    const sandboxId = from?.sandboxId;
    const peer =
      sandboxId === undefined
        ? `address ${plainAddress(socket.remoteAddress ?? '')}`
        : `sandbox ${sandboxId}`;
    const { connectionsMax, connectionsPerCallerMax } = this.#limits;
    const all = [...this.#connections.values()];
    const own = all.filter((it) => it.peer === peer).length;
    const served = all.filter((it) => it.sandboxId === undefined && it.refusal === undefined).length;
    // Those beyond the bound are told so; those far beyond it are not.
    if (own >= 2 * connectionsPerCallerMax || this.#closing !== undefined) {
      socket.destroy();
      return;
    }
    const refusal =
      own >= connectionsPerCallerMax
        ? busy(`more than ${connectionsPerCallerMax} connections of yours are open; close some`, 429)
        : sandboxId === undefined && served >= connectionsMax
          ? busy('too many connections are open; try again in a moment', 503)
          : undefined;
    const connection: Connection = { socket, sandboxId, peer, refusal, exchanges: [], timer: undefined };
    this.#connections.set(socket, connection);
    socket.once('close', () => {
      clearTimeout(connection.timer);
      this.#connections.delete(socket);
      for (const exchange of connection.exchanges) exchange.abort();
    });
    socket.once('end', () => this.#probe(connection, 0));
    this.#awaitHead(connection, {
      ms: this.#limits.headMs,
      before: from?.lineBytes ?? 0,
    });
    this.#http.emit('connection', socket);
  }

  /** `before`: bytes read of what is no part of that head. */
  #awaitHead(connection: Connection, { ms, before }: { ms: number; before: number }): void {
    const { socket } = connection;
    clearTimeout(connection.timer);
    connection.timer = setTimeout(() => {
      if (socket.bytesRead === before) socket.destroy();
      else
        endRaw(
          socket,
          failure(
            new Refusal('bad_request', 'the head of the request did not arrive in time', { status: 408 }),
            undefined,
          ),
        );
    }, ms);
  }

  #probe(connection: Connection, times: number): void {
    connection.exchanges[0]?.probe();
    if (connection.exchanges.length === 0) return;
    clearTimeout(connection.timer);
    connection.timer = setTimeout(() => this.#probe(connection, times + 1), probesMs[times] ?? probeEveryMs);
  }

  /** What Node's parser refuses. */
  #malformed(error: NodeJS.ErrnoException, socket: Socket): void {
    const connection = this.#connections.get(socket);
    const refusal =
      error.code === 'HPE_HEADER_OVERFLOW'
        ? new Refusal('too_large', `the head of the request is longer than ${headBytesMax} bytes`, {
            status: 431,
          })
        : new Refusal('bad_request', 'this is no HTTP request');
    const [first, ...more] = connection?.exchanges ?? [];
    if (!socket.writable || connection === undefined) socket.destroy();
    else if (first === undefined) endRaw(socket, failure(refusal, undefined));
    else if (more.length === 0 && !first.request.complete) first.spoil(refusal);
    // An answer in the middle of another would be read as a part of it.
    else socket.destroy();
  }

  // Requests

  #begin(request: IncomingMessage, response: ServerResponse, expectsContinue: boolean): void {
    const connection = this.#connections.get(request.socket);
    if (connection === undefined) {
      request.socket.destroy();
      return;
    }
    const exchange = new Exchange(request, response, { limits: this.#limits, expectsContinue });
    connection.exchanges.push(exchange);
    clearTimeout(connection.timer);
    response.once('close', () => {
      connection.exchanges.splice(connection.exchanges.indexOf(exchange), 1);
      if (connection.exchanges.length === 0 && !request.socket.destroyed)
        this.#awaitHead(connection, { ms: this.#limits.keepAliveMs, before: request.socket.bytesRead });
    });
    this.#track(
      this.#serve(connection, exchange).catch((error) => {
        this.#options.log.error({ error: String(error?.stack ?? error) }, 'an answer of the bell failed');
        request.socket.destroy();
      }),
    );
  }

  /** `work` never rejects. */
  #track(work: Promise<void>): void {
    this.#work.add(work);
    void work.finally(() => this.#work.delete(work));
  }

  async #serve(connection: Connection, exchange: Exchange): Promise<void> {
    const { request } = exchange;
    const asked: { caller?: Caller; action?: string } = {};
    let reply: Reply | undefined;
    try {
      reply = await this.#answer(connection, exchange, asked);
    } catch (thrown) {
      const error = this.#shown(thrown, asked);
      if (asked.caller === undefined && connection.refusal === undefined)
        this.#options.onRefused(peerOf(connection), error);
      if (exchange.response.headersSent) {
        await exchange.emit({ type: 'error', error: error.message, code: error.code });
        exchange.endLines();
      } else reply = failure(error, asked.action);
    }
    if (reply !== undefined)
      await exchange.send(reply, {
        close: connection.refusal !== undefined || this.#closing !== undefined,
      });
    const caller = asked.caller && callerKey(asked.caller);
    this.#options.log.debug(
      { caller, action: asked.action, method: request.method, status: reply?.status ?? 200 },
      'bell request',
    );
  }

  /** Undefined when the answer has been given line by line. `asked` is filled in as it becomes known. */
  async #answer(
    connection: Connection,
    exchange: Exchange,
    asked: { caller?: Caller; action?: string },
  ): Promise<Reply | undefined> {
    const { request } = exchange;
    if (connection.refusal !== undefined) throw connection.refusal;
    refuseAmbiguous(request);
    refuseBrowsers(request, this.#names);
    const { sandboxId } = connection;
    const caller: Caller =
      sandboxId === undefined ? callerOf(request, this.#options) : { kind: 'sandbox', id: sandboxId };
    asked.caller = caller;
    const route = routeOf(request);
    if (request.headers.expect !== undefined && request.headers.expect.toLowerCase() !== '100-continue')
      throw new Refusal('bad_request', 'the header Expect may say 100-continue only', { status: 417 });
    checkMediaType(request, caller);
    const leave = this.#enter(caller);
    let inHand: Promise<void> | undefined;
    try {
      const body = await exchange.readBody();
      if (route === '/hooks/claude') {
        inHand = this.#ringHooks(caller, callsOfHook(body, this.#options.hooks));
        await within(this.#limits.hookMs, inHand);
        return { status: 200, headers: {}, body: '{}\n' };
      }
      const rung = parseRequest(body);
      asked.action = rung.action;
      return await this.#ring(caller, rung, exchange);
    } finally {
      if (inHand === undefined) leave();
      else this.#track(inHand.then(leave));
    }
  }

  async #ring(caller: Caller, rung: BellRequest, exchange: Exchange): Promise<Reply | undefined> {
    const { signal } = exchange;
    const { bell } = this.#options;
    const wantsLines =
      rung.action === 'exec' && /\bapplication\/x-ndjson\b/i.test(exchange.request.headers.accept ?? '');
    if (!wantsLines) return success(rung.action, await bell.ring(caller, rung, { signal }));
    const result = await bell.ring(caller, rung, { signal, emit: (event) => exchange.emit(event) });
    // Whatever became of it, the last line says so.
    await exchange.emit({ type: 'exit', signal: null, ...exitOf(result) });
    exchange.endLines();
    return undefined;
  }

  /** Never rejects: what a hook sets off is no trouble of the agent's. Goes on when the agent does not wait. */
  async #ringHooks(caller: Caller, calls: BellRequest[]): Promise<void> {
    const { signal } = this.#closed;
    await Promise.all(
      calls.map((call) =>
        this.#options.bell
          .ring(caller, call, { signal })
          .catch((thrown) => this.#shown(thrown, { caller, action: call.action })),
      ),
    );
  }

  #enter(caller: Caller): () => void {
    const key = callerKey(caller);
    const count = this.#underWay.get(key) ?? 0;
    if (count >= this.#limits.requestsPerCallerMax)
      throw busy(`more than ${this.#limits.requestsPerCallerMax} requests of yours are under way`, 429);
    this.#underWay.set(key, count + 1);
    return () => {
      const left = (this.#underWay.get(key) ?? 1) - 1;
      if (left === 0) this.#underWay.delete(key);
      else this.#underWay.set(key, left);
    };
  }

  /** What a caller may know of an error. */
  #shown(thrown: unknown, asked: { caller?: Caller; action?: string }): BellError {
    if (thrown instanceof BellError) return thrown;
    const caller = asked.caller && callerKey(asked.caller);
    const error = String((thrown as Error)?.stack ?? thrown);
    this.#options.log.error({ caller, action: asked.action, error }, 'a call of the bell failed');
    return new BellError('failed', 'something went wrong on the host; the log of its daemon tells what');
  }
}

const busy = (message: string, status: number) =>
  new Refusal('too_many_requests', message, { status, retryAfterSeconds: 1 });

function exitOf(result: unknown): { code: number; timed_out: boolean } {
  const { exit_code, timed_out } = (result ?? {}) as { exit_code?: unknown; timed_out?: unknown };
  return { code: typeof exit_code === 'number' ? exit_code : 0, timed_out: timed_out === true };
}

/** Throws BellError('bad_request'). */
function peerOf({ sandboxId, socket }: Connection): Caller {
  if (sandboxId !== undefined) return { kind: 'sandbox', id: sandboxId };
  return { kind: 'stranger', address: plainAddress(socket.remoteAddress ?? '') };
}

function callsOfHook(body: Buffer, hooks: Hooks): BellRequest[] {
  const example = '{"hook_event_name":"Stop"}';
  const payload = parseObject(body, example);
  const event = payload.hook_event_name;
  if (typeof event !== 'string' || event === '')
    throw new BellError('bad_request', `the payload has no hook_event_name; send for example ${example}`);
  return hookCalls(event, payload, hooks);
}

async function within(ms: number, work: Promise<void>): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const late = setTimeout(resolve, ms);
  await Promise.race([work, promise]);
  clearTimeout(late);
}

/** An answer where Node has given none to write with. */
function endRaw(socket: Socket, { status, headers, body }: Reply): void {
  const lines = Object.entries({
    ...alwaysHeaders,
    'Content-Length': String(Buffer.byteLength(body)),
    ...headers,
    Connection: 'close',
  }).map(([name, value]) => `${name}: ${value}\r\n`);
  socket.on('error', () => socket.destroy());
  socket.end(`HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\n${lines.join('')}\r\n${body}`);
  socket.destroySoon();
}
