// A way out with everything real but the world: a guest on a Unix socket, the policy's own dialect, TLS with throw-away certificates, origins on
// loopback that go by any name, port and address that a test gives them.
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  type ConnectionOptions,
  createServer as createTlsServer,
  type TLSSocket,
  connect as tlsConnect,
} from 'node:tls';
import { expect, onTestFinished, vi } from 'vitest';
import { makeAuthority, makeCertificate } from '../../test/network/pki.ts';
import type { LogEntry, Question, Rule } from '../contract/network.ts';
import type { Journal, OpenEntry } from '../journal/journal.ts';
import { useRunningTime } from '../lib/running-time.fixture.ts';
import { compilePolicy } from '../policy/compile.ts';
import { hostText } from '../policy/names.ts';
import type { Policy } from '../policy/policy.ts';
import type { SandboxSecrets } from '../vault/vault.ts';
import { openCertificateAuthority } from './certificates/authority.ts';
import type { EgressLimits, EgressSandbox, EgressSession, Intent } from './egress.ts';
import { createEgress } from './session.ts';
import { dialAddresses } from './sockets.ts';
import { type Destination, type Relay, type Upstream, UpstreamError } from './upstream.ts';
import { createVerifyingContext, shakeHands } from './verified-tls.ts';

export type Recorded = Partial<LogEntry> & { ended?: boolean };

/** What a name of the world stands for. */
export interface Place {
  /** On loopback. */
  port: number;
  /** What it resolves to; what is dialled is loopback all the same. */
  addresses?: string[];
}

export interface Lab {
  readonly session: EgressSession;
  /** In order of their begin. */
  readonly entries: Recorded[];
  /** Names or addresses with ports that were looked up or dialled. */
  readonly reached: string[];
  readonly questions: Omit<Question, 'id' | 'at' | 'until'>[];
  /** `host:port` → where it is. */
  readonly world: Map<string, Place>;
  readonly authority: string;
  setRules(...rules: RuleText[]): void;
  /** A connection as the agent makes it, its intent said. */
  guest(intent?: Intent | string): Promise<Guest>;
  /** Sockets of the session that are open, on both sides. */
  open(): number;
}

/** `allow a.test`, `deny GET a.test /x`. */
export type RuleText = string;

export interface LabOptions {
  rules?: RuleText[];
  limits?: Partial<EgressLimits>;
  secrets?: Partial<SandboxSecrets>;
  inspect?: EgressSandbox['inspect'];
  id?: string;
  answer?: (question: Omit<Question, 'id' | 'at' | 'until'>, signal: AbortSignal) => Promise<boolean>;
  processOf?: NonNullable<EgressSandbox['processOf']>;
  /** As if plain HTTP went to a proxy of the host's network. */
  relay?: Relay;
}

const tlsAuthority = makeAuthority('World');
export const worldAuthority = tlsAuthority.cert;
/** Signed by who the lab trusts. */
export const worldCertificate = (wishes: Parameters<typeof makeCertificate>[0]) =>
  makeCertificate({ ...wishes, issuer: tlsAuthority });
const context = createVerifyingContext([], [worldAuthority]);

export async function openLab(options: LabOptions = {}): Promise<Lab> {
  useRunningTime();
  const folder = mkdtempSync(join(tmpdir(), 'glovebox-egress-'));
  const id = options.id ?? 'sandbox-1';
  const world = new Map<string, Place>();
  const [entries, reached, questions]: [Recorded[], string[], Lab['questions']] = [[], [], []];
  let policy = policyOf(options.rules ?? []);
  const sockets = new Set<Socket>();
  const counted = <T extends Socket>(socket: T): T => {
    sockets.add(socket);
    socket.once('close', () => sockets.delete(socket));
    return socket;
  };
  const dial = async (
    to: Destination,
    judge: Parameters<Upstream['connect']>[1],
    signal: AbortSignal,
    tunnel = false,
  ) => {
    const key = `${hostText(to.host)}:${to.port}`;
    reached.push(key);
    const place = world.get(key);
    if (place === undefined) throw new UpstreamError('dns', 'there is no such name');
    const { dial: addresses, denied } = judge(
      place.addresses ?? (to.host.kind === 'address' ? [to.host.address] : ['93.184.216.34']),
    );
    if (addresses.length === 0)
      throw new UpstreamError('denied', 'denied', denied === undefined ? {} : { decision: denied });
    const there = { addresses: ['127.0.0.1'], port: place.port, place: key, halfOpen: tunnel, bulk: tunnel };
    const dialled = await dialAddresses(there, signal);
    counted(dialled.socket);
    return { ...dialled, address: addresses[0] as string };
  };
  const upstream: Upstream = {
    async connect(to, judge, signal, { tunnel = false, requests = false } = {}) {
      const dialled = await dial(to, judge, signal, tunnel);
      return requests && options.relay !== undefined ? { ...dialled, relay: options.relay } : dialled;
    },
    async connectTls(to, judge, { alpn }, signal) {
      const { socket, address } = await dial(to, judge, signal);
      const place = `${hostText(to.host)}:${to.port}`;
      const tls = await shakeHands(socket, { context, host: to.host, place, alpn }, signal);
      return { socket: tls, address, alpn: tls.alpnProtocol || undefined };
    },
  };
  const certificates = openCertificateAuthority({ keyFile: join(folder, 'key'), now: () => new Date() });
  const session = createEgress({
    journal: recorder(entries),
    // A defect shall fail the test, wherever it shows.
    onTrouble: (error) => void Promise.reject(error),
    asker: {
      ask(question, _, signal) {
        questions.push(question);
        return options.answer?.(question, signal) ?? Promise.resolve(false);
      },
    },
    limits: {
      connections: 2_000,
      headMs: 5_000,
      handshakeMs: 5_000,
      connectMs: 5_000,
      idleMs: 20_000,
      ...options.limits,
    },
    upstream: () => upstream,
    authority: certificates,
  }).open({
    id,
    policy: () => policy,
    secrets: { ...noSecrets, ...options.secrets },
    inspect: options.inspect ?? 'all',
    ...(options.processOf !== undefined && { processOf: options.processOf }),
  });
  const path = join(folder, 'egress.sock');
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: true }, (socket) =>
    session.accept(counted(socket)),
  );
  await listening(server, path);
  onTestFinished(async () => {
    session.close();
    server.close();
    rmSync(folder, { recursive: true, force: true });
    await vi.waitFor(() => expect(sockets.size).toBe(0));
  });
  return {
    session,
    entries,
    reached,
    questions,
    world,
    authority: certificates.forSandbox(id).certificate,
    setRules: (...rules) => {
      policy = policyOf(rules);
      session.changed();
    },
    async guest(intent: Intent | string = { kind: 'proxy', client: 40_000 }) {
      const socket = connect({ path, allowHalfOpen: true });
      onTestFinished(() => void socket.destroy());
      await once(socket, 'connect');
      socket.write(`${typeof intent === 'string' ? intent : JSON.stringify(intent)}\n`);
      return new Guest(socket);
    },
    open: () => sockets.size,
  };
}

export const noSecrets: SandboxSecrets = {
  binds: () => false,
  inject: async () => ({ kind: 'none' }),
  placeholders: [],
  foreignPlaceholders: () => [],
  environment: {},
};

/** A program of the guest: writes text, reads until it has seen what it wants. */
export class Guest {
  readonly socket: Socket | TLSSocket;
  received = Buffer.alloc(0);
  /** The other end says no more, or is gone. */
  ended = false;
  #waiting: (() => void)[] = [];

  constructor(socket: Socket | TLSSocket) {
    this.socket = socket;
    const ended = () => {
      this.ended = true;
      this.#wake();
    };
    socket.on('data', (bytes: Buffer) => {
      this.received = Buffer.concat([this.received, bytes]);
      this.#wake();
    });
    socket.on('end', ended);
    socket.on('close', ended);
    socket.on('error', () => {});
  }

  get text(): string {
    return this.received.toString('latin1');
  }

  write(text: string | Buffer): this {
    this.socket.write(text, 'latin1');
    return this;
  }

  async until(what: string | RegExp | ((text: string) => boolean)): Promise<string> {
    const seen = () => {
      if (typeof what === 'function') return what(this.text);
      return typeof what === 'string' ? this.text.includes(what) : what.test(this.text);
    };
    await this.#until(() => seen() || this.ended);
    expect(seen() ? 'seen' : `not ${what}: ${this.text.slice(0, 2_000)}`).toBe('seen');
    return this.text;
  }

  /** All that came until the other end said no more. */
  async end(): Promise<string> {
    await this.#until(() => this.ended);
    return this.text;
  }

  async #until(condition: () => boolean): Promise<void> {
    const late = setTimeout(() => {
      this.ended = true;
      this.#wake();
    }, 10_000);
    while (!condition()) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    clearTimeout(late);
  }

  #wake(): void {
    for (const wake of this.#waiting.splice(0)) wake();
  }

  /** Forgets what was received so far. */
  clear(): this {
    this.received = Buffer.alloc(0);
    return this;
  }

  /** Says CONNECT and waits for the tunnel. */
  async connect(target: string): Promise<this> {
    this.write(`CONNECT ${target} HTTP/1.1\r\nHost: ${target}\r\n\r\n`);
    await this.until('\r\n\r\n');
    expect(this.text).toMatch(/^HTTP\/1.1 200 /);
    return this.clear();
  }

  /** TLS inside what is there. Rejects when the handshake fails. */
  async tls(options: ConnectionOptions): Promise<Guest & { socket: TLSSocket }> {
    this.socket.removeAllListeners('data');
    const tls = tlsConnect({ socket: this.socket, ...options });
    await new Promise<void>((resolve, reject) => {
      tls.once('secureConnect', resolve);
      tls.once('error', reject);
      tls.once('close', () => reject(new Error('closed')));
    });
    return new Guest(tls) as Guest & { socket: TLSSocket };
  }
}

/** An origin; what it got is `requests`. Answers each head that ends with `answer`, or as it says. */
export interface Origin {
  port: number;
  connections: Socket[];
  /** All bytes of all connections. */
  text(): string;
  close(): void;
}

/** A server that is told what to do with each connection. */
export async function serveRaw(
  onConnection: (socket: Socket) => void,
  tls?: { names: string[]; alpn?: string[]; certificate?: { cert: string; key: string } },
): Promise<Origin> {
  const connections: Socket[] = [];
  let text = '';
  const take = (socket: Socket) => {
    connections.push(socket);
    socket.on('error', () => {});
    socket.on('data', (bytes: Buffer) => {
      text += bytes.toString('latin1');
    });
    onConnection(socket);
  };
  const server =
    tls === undefined
      ? createServer({ allowHalfOpen: true }, take)
      : createTlsServer(
          {
            ...(tls.certificate ?? worldCertificate({ names: tls.names })),
            ...(tls.alpn !== undefined && { ALPNProtocols: tls.alpn }),
          },
          take,
        );
  server.on('error', () => {});
  await listening(server, { port: 0, host: '127.0.0.1' });
  const close = () => {
    server.close();
    for (const socket of connections) socket.destroy();
  };
  onTestFinished(close);
  return { port: (server.address() as { port: number }).port, connections, text: () => text, close };
}

/** Answers every head (and the body that its Content-Length announces) with `answer`. */
export const serveHttp = (
  answer: string | ((head: string, body: string) => string),
  tls?: Parameters<typeof serveRaw>[1],
): Promise<Origin> =>
  serveRaw((socket) => {
    let waiting = '';
    socket.on('data', (bytes: Buffer) => {
      waiting += bytes.toString('latin1');
      for (;;) {
        const end = waiting.indexOf('\r\n\r\n');
        if (end < 0) return;
        const head = waiting.slice(0, end + 4);
        const length = Number(/content-length: (\d+)/i.exec(head)?.[1] ?? 0);
        if (waiting.length < end + 4 + length) return;
        const body = waiting.slice(end + 4, end + 4 + length);
        waiting = waiting.slice(end + 4 + length);
        socket.write(typeof answer === 'string' ? answer : answer(head, body), 'latin1');
      }
    });
  }, tls);

export const ok = (body: string, ...headers: string[]): string =>
  `HTTP/1.1 200 OK\r\n${headers.map((line) => `${line}\r\n`).join('')}Content-Length: ${body.length}\r\n\r\n${body}`;

function policyOf(rules: RuleText[]): Policy {
  return compilePolicy({ rules: rules.map(ruleOf), hostAddresses: [] });
}

function ruleOf(text: RuleText, index: number): Rule {
  const words = text.split(' ');
  const methods = words.filter((word) => /^[A-Z]+$/.test(word));
  const path = words.find((word) => word.startsWith('/'));
  const resources = words.slice(1).filter((word) => !methods.includes(word) && word !== path);
  return {
    id: `rule-${index}`,
    decision: words[0] as Rule['decision'],
    resources,
    ...(methods.length > 0 && { methods }),
    ...(path !== undefined && { path }),
    protocols: ['tcp'],
    createdVia: 'added',
    createdAt: '2026-01-01T00:00:00Z',
  };
}

function recorder(entries: Recorded[]): Journal {
  return {
    record(attempt): OpenEntry {
      const entry: Recorded = { ...attempt };
      entries.push(entry);
      return {
        note: (more) => void Object.assign(entry, more),
        end(outcome) {
          if (entry.ended !== true) Object.assign(entry, outcome, { ended: true });
        },
      };
    },
    read: async () => [],
    async *follow() {},
    close: async () => {},
  };
}

function listening(server: Server, where: string | { port: number; host: string }): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(where as never, resolve);
  });
}
