// For tests: a controller in this process, with the hub behind a real HTTP server, and workers that dial it.
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import type { AddressInfo, Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { WebSocketServer } from 'ws';
import { systemClock } from '../channel/clock.ts';
import { webSocketProtocol, webSocketServerOptions } from '../channel/websocket.ts';
import { errorHeaders, httpStatusOf } from '../contract/errors.ts';
import { EnrolRequest, NewEnrolment, type WorkerHello } from '../contract/worker.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import type { Collection } from '../store/store.ts';
import { ControllerLink, enrol } from './dial.ts';
import type { EnrolmentRecord } from './enrolment.ts';
import { WorkerHub, type WorkerHubOptions, type WorkerRecord } from './hub.ts';
import { type Identity, IdentityFiles } from './identity.ts';
import { Road, type RoadOptions } from './road.ts';
import { ServerClock } from './server-clock.ts';

export const clock = systemClock({ keepsProcessAlive: false });

/** As a store keeps it: what comes out is another object than what went in. */
export class KeptInMemory<T> implements Collection<T> {
  readonly records = new Map<string, string>();

  all(): T[] {
    return [...this.records.values()].map((it) => JSON.parse(it) as T);
  }

  save(id: string, record: T): void {
    this.records.set(id, JSON.stringify(record));
  }

  saveAll(records: ReadonlyMap<string, T>): void {
    for (const [id, record] of records) this.save(id, record);
  }

  drop(id: string): boolean {
    return this.records.delete(id);
  }
}

export interface LogLine {
  level: string;
  message: string;
  fields: Record<string, unknown>;
}

export class KeptLog implements Log {
  readonly lines: LogLine[] = [];
  readonly debug = this.#write('debug');
  readonly info = this.#write('info');
  readonly warn = this.#write('warn');
  readonly error = this.#write('error');

  #write(level: string) {
    return (fields: Record<string, unknown>, message: string) =>
      void this.lines.push({ level, message, fields });
  }

  get text(): string {
    return this.lines.map((it) => JSON.stringify(it)).join('\n');
  }
}

export class Kept {
  readonly workers = new KeptInMemory<WorkerRecord>();
  readonly enrolments = new KeptInMemory<EnrolmentRecord>();

  copy(): Kept {
    const copy = new Kept();
    for (const part of ['workers', 'enrolments'] as const)
      for (const [id, record] of this[part].records) copy[part].records.set(id, record);
    return copy;
  }
}

export function makeHub(kept: Kept, log: Log, options: Partial<WorkerHubOptions> = {}): WorkerHub {
  return new WorkerHub({
    ...{ workers: kept.workers, enrolments: kept.enrolments, controllerId: 'controller-1' },
    ...{ clock, now: () => new Date(), log },
    ...options,
  });
}

export const newEnrolment = (request: Partial<NewEnrolment> = {}) => NewEnrolment.parse(request);

export interface ControllerOptions {
  kept?: Kept;
  port?: number;
  hub?: Partial<WorkerHubOptions>;
  tls?: { key: string; cert: string; ca?: string; requestCert?: boolean; rejectUnauthorized?: boolean };
  /** What a client's offer is answered with; default: the channel's protocol, or 426. */
  spoken?: string;
}

/** Serves what the API does: enrolling, and the handshake of workers. */
export class Controller {
  readonly kept: Kept;
  readonly log = new KeptLog();
  readonly hub: WorkerHub;
  readonly sockets = new Set<Socket>();
  readonly #sockets = new WebSocketServer({
    ...webSocketServerOptions,
    noServer: true,
    handleProtocols: (offered) => offered.has(webSocketProtocol) && webSocketProtocol,
  });
  readonly #server: Server;
  readonly #options: ControllerOptions;
  /** Handshakes that were seen, by the address that the client had. */
  readonly handshakes: string[] = [];
  port = 0;

  constructor(options: ControllerOptions = {}) {
    this.#options = options;
    this.kept = options.kept ?? new Kept();
    this.hub = makeHub(this.kept, this.log, options.hub);
    const { tls } = options;
    this.#server = tls === undefined ? createServer() : (createTlsServer(tls) as unknown as Server);
    this.#server.on('connection', (socket: Socket) => {
      this.sockets.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => this.sockets.delete(socket));
    });
    this.#server.on('request', (request, response) => {
      let body = '';
      request.on('data', (piece: Buffer) => {
        body += piece.toString();
      });
      request.on('end', () => {
        try {
          if (request.url !== '/v1/workers/enrol') throw new Failure('not-found', 'nothing here');
          const enrolled = this.hub.enrol(EnrolRequest.parse(JSON.parse(body)), addressOf(request.socket));
          response.writeHead(201).end(JSON.stringify(enrolled));
        } catch (thrown) {
          const { status, headers, body } = refusalOf(Failure.from(thrown, 'enrol'));
          response.writeHead(status, headers).end(body);
        }
      });
    });
    this.#server.on('upgrade', async (request, socket: Socket, head: Buffer) => {
      socket.on('error', () => socket.destroy());
      const address = addressOf(socket);
      this.handshakes.push(address);
      try {
        const offered = (request.headers['sec-websocket-protocol'] ?? '').split(/\s*,\s*/);
        const spoken = this.#options.spoken ?? webSocketProtocol;
        if (!offered.includes(spoken))
          throw Object.assign(new Failure('unsupported', `this controller speaks ${spoken}`), {
            status: 426,
          });
        const admission = await this.hub.authorize(request.headers.authorization, address);
        if (!socket.destroyed)
          this.#sockets.handleUpgrade(request, socket, head, (it) => this.hub.accept(it, admission));
      } catch (thrown) {
        const { status, headers, body } = refusalOf(Failure.from(thrown, 'handshake'));
        const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
        socket.end(
          `HTTP/1.1 ${status} No\r\n${lines.join('')}Date: ${new Date().toUTCString()}\r\nContent-Length: ${Buffer.byteLength(body)}\r\nConnection: close\r\n\r\n${body}`,
        );
      }
    });
  }

  static async open(options: ControllerOptions = {}): Promise<Controller> {
    const it = new Controller(options);
    await new Promise<void>((resolve, reject) => {
      it.#server.once('error', reject);
      it.#server.listen(options.port ?? 0, '127.0.0.1', resolve);
    });
    it.port = (it.#server.address() as AddressInfo).port;
    return it;
  }

  get url(): URL {
    return new URL(`${this.#options.tls === undefined ? 'ws' : 'wss'}://127.0.0.1:${this.port}`);
  }

  /** Breaks every connection there is. */
  cut(): void {
    for (const socket of this.sockets) socket.destroy();
  }

  /** As kill -9 leaves it: nobody is told anything. Resolves with what is on its disk. */
  async die(): Promise<Kept> {
    const kept = this.kept.copy();
    const closed = new Promise((resolve) => this.#server.close(resolve));
    this.cut();
    await closed;
    return kept;
  }

  async close(): Promise<void> {
    this.hub.close();
    this.cut();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

const addressOf = (socket: Socket) => socket.remoteAddress ?? 'gone';

function refusalOf(failure: Failure): { status: number; headers: Record<string, string>; body: string } {
  const { code, message, details } = failure;
  const retryAfterMs = Number(details?.retryAfterMs);
  return {
    status: (failure as { status?: number }).status ?? httpStatusOf(code),
    headers: {
      [errorHeaders.failure]: code,
      ...(retryAfterMs > 0 ? { 'Retry-After': String(Math.ceil(retryAfterMs / 1000)) } : {}),
    },
    body: JSON.stringify({ code, message }),
  };
}

export const quickBackOff = { firstMs: 5, capMs: 50 };

export const hello: Omit<WorkerHello, 'op'> = {
  ...{ hostname: 'far', platform: 'linux', arch: 'x64', version: '1.2.3', labels: { zone: 'cellar' } },
  capabilities: ['exec', 'sandboxes'],
  runtimes: [{ name: 'memory', usable: true }],
};

/** A worker's home and its processes, one after the other or at the same time. */
export class FarMachine {
  readonly home = mkdtempSync(join(tmpdir(), 'glovebox-worker-'));
  readonly log = new KeptLog();
  readonly processes: ControllerLink[] = [];
  identity: Identity | undefined;

  /** Enrols as `id`. */
  async enrol(controller: Controller, id: string, request: Partial<NewEnrolment> = {}): Promise<Identity> {
    const { token } = controller.hub.enrolment(newEnrolment({ workerId: id, ...request }));
    this.identity = await enrol(
      {
        road: this.road(controller.url),
        files: new IdentityFiles({ home: this.home, platform: process.platform }),
        serverClock: this.serverClock(0),
        ...{ token, workerId: id, labels: {} },
      },
      AbortSignal.timeout(30_000),
    );
    return this.identity;
  }

  road(server: URL, options: Partial<RoadOptions> = {}): Road {
    return new Road({ server, env: {}, tls: () => ({}), ...options });
  }

  serverClock(wrongMs: number): ServerClock {
    return new ServerClock({ monotonicMs: () => clock.now(), ownMs: () => Date.now() + wrongMs });
  }

  /** A process of the worker, which dials. */
  dial(
    server: URL,
    options: Partial<RoadOptions> & { identity?: Identity; wrongMs?: number; serverClock?: ServerClock } = {},
  ): ControllerLink {
    const { identity, wrongMs = 0, serverClock, ...road } = options;
    const it = new ControllerLink({
      road: this.road(server, road),
      identity: identity ?? (this.identity as Identity),
      serverClock: serverClock ?? this.serverClock(wrongMs),
      ...{ hello: () => hello, clock, log: this.log, backOff: quickBackOff },
    });
    this.processes.push(it);
    it.start();
    return it;
  }

  async close(): Promise<void> {
    await Promise.all(this.processes.map((it) => it.stop()));
    rmSync(this.home, { recursive: true, force: true });
  }
}
