// What the attacks on the way out share: a lab on loopback, one real daemon that knows it, hostile guests that are root, and eyes on everything that must
// not be touched. A connection of a guest is a Duplex here: its socket is opened by a process inside the guest, and the attack's bytes come from the test.
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { Duplex } from 'node:stream';
import { type TLSSocket, connect as tlsConnect } from 'node:tls';
import { afterAll, beforeAll, beforeEach, describe, expect } from 'vitest';
import { WebSocket } from 'ws';
import { agentCommand } from '../../src/agent/bundle.ts';
import { runtimeExtension } from '../../src/contract/admin.ts';
import type { LogEntry, NewRule, SetSecret } from '../../src/contract/network.ts';
import type { Argument } from '../../src/runtime/conformance-probe.ts';
import { probeFile } from '../../src/runtime/seccomp/probe.ts';
import { type Answer, type CommandResult, call, create, list, remove, run } from '../client.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { type Lab, type LabOptions, type Origin, openLab } from '../network/lab.ts';
import { imageFor, runtimes } from '../runtimes.ts';

/** How the guest runs Bun from the agent's folder, and where its libc lies: the image needs nothing for an attack. */
export const bun = (() => {
  const command = agentCommand();
  const libraries = command[command.indexOf('--library-path') + 1];
  const words = command.slice(0, command.findIndex((it) => it.endsWith('/bun')) + 1);
  return { words, line: words.join(' '), libc: `${libraries}/libc.so.6` };
})();

const relayPort = 9_000;
const socksAnswers: Record<number, string> = { 0: 'granted', 2: 'not allowed', 8: 'no such address' };
/** An answer that takes longer than this does not come. */
const patienceMs = 60_000;

export interface Reply {
  status: number;
  headers: Record<string, string>;
  body: string;
}

export interface Told {
  /** Whole HTTP answers, in order. */
  replies: Reply[];
  /** All that came, one character a byte. */
  text: string;
  /** Whether the other end closed. */
  closed: boolean;
}

/** One connection of a process of a guest. */
export class GuestSocket extends Duplex {
  /** The guest's own port. */
  port = 0;
  readonly #ws: WebSocket;
  #ended = false;

  constructor(ws: WebSocket, opened: (error?: Error) => void) {
    super({ allowHalfOpen: true });
    this.#ws = ws;
    ws.on('message', (data: Buffer, isBinary) => {
      if (isBinary) {
        if (!this.push(data)) ws.pause();
        return;
      }
      const { event, error, port } = JSON.parse(String(data));
      if (event === 'open') {
        this.port = port;
        opened();
      } else if (event === 'end') this.#otherEnded();
      else {
        opened(Object.assign(new Error(`the guest's connection: ${error}`), { code: error }));
        this.#otherEnded();
        ws.close();
      }
    });
    ws.once('close', () => {
      opened(new Error('the guest could not be asked'));
      this.#otherEnded();
      this.destroy();
    });
    ws.on('error', (error) => {
      opened(error);
      this.destroy();
    });
    this.on('error', () => {});
  }

  #otherEnded(): void {
    if (!this.#ended) this.push(null);
    this.#ended = true;
  }

  override _read(): void {
    this.#ws.resume();
  }

  override _write(chunk: Buffer, _encoding: string, done: (error?: Error | null) => void): void {
    if (this.#ws.readyState !== WebSocket.OPEN) return done(new Error('closed'));
    this.#ws.send(chunk, { binary: true }, (error) => done(error));
  }

  override _final(done: (error?: Error | null) => void): void {
    if (this.#ws.readyState !== WebSocket.OPEN) return done();
    this.#ws.send('end', done);
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    this.#ws.terminate();
    done(error);
  }
}

/** Reads answers until there are `count` of them, or the other end closes. Fails when neither happens. */
export async function told(socket: Duplex, count = 1): Promise<Told> {
  const chunks: Buffer[] = [];
  const result = Promise.withResolvers<Told>();
  const look = (closed: boolean) => {
    const text = Buffer.concat(chunks).toString('latin1');
    const replies = repliesIn(text, closed);
    if (closed || replies.length >= count) result.resolve({ replies, text, closed });
  };
  const onData = (bytes: Buffer) => {
    chunks.push(bytes);
    look(false);
  };
  const onEnd = () => look(true);
  const timer = setTimeout(
    () => result.reject(new Error(`no answer, only ${JSON.stringify(String(Buffer.concat(chunks)))}`)),
    patienceMs,
  );
  socket.on('data', onData).once('end', onEnd).once('close', onEnd).once('error', onEnd);
  try {
    if (socket.readableEnded || socket.destroyed) onEnd();
    return await result.promise;
  } finally {
    clearTimeout(timer);
    socket.off('data', onData).off('end', onEnd).off('close', onEnd).off('error', onEnd);
  }
}

/** The complete answers at the beginning of `text`. With `closed`, one without a length is complete, too. */
export function repliesIn(text: string, closed: boolean): Reply[] {
  const replies: Reply[] = [];
  let rest = text;
  for (;;) {
    const end = rest.indexOf('\r\n\r\n');
    const status = Number(/^HTTP\/1\.[01] (\d{3})/.exec(rest)?.[1]);
    if (end < 0 || Number.isNaN(status)) return replies;
    const headers = Object.fromEntries(
      rest
        .slice(0, end)
        .split('\r\n')
        .slice(1)
        .map((line) => [line.split(':')[0]?.toLowerCase() ?? '', line.slice(line.indexOf(':') + 1).trim()]),
    );
    rest = rest.slice(end + 4);
    let body = '';
    if (headers['transfer-encoding'] === 'chunked') {
      for (;;) {
        const chunk = /^([0-9a-f]+)\r\n/i.exec(rest);
        const bytes = Number.parseInt(chunk?.[1] ?? '', 16);
        const from = chunk?.[0].length ?? 0;
        if (chunk === null || rest.length < from + bytes + 2) return replies;
        body += rest.slice(from, from + bytes);
        rest = rest.slice(from + bytes + 2);
        if (bytes === 0) break;
      }
    } else if (headers['content-length'] !== undefined) {
      const bytes = Number(headers['content-length']);
      if (rest.length < bytes) return replies;
      body = rest.slice(0, bytes);
      rest = rest.slice(bytes);
    } else if (status !== 101 && status >= 200 && status !== 204 && status !== 304) {
      if (!closed && !(status === 200 && /^HTTP\/1\.1 200 Connection established/.test(text))) return replies;
      body = rest;
      rest = '';
    }
    replies.push({ status, headers, body });
  }
}

export interface ConnectOptions {
  /** Default: the host of the target. Null: none. */
  servername?: string | null;
  alpn?: string[];
  /** What the guest trusts. Default: its sandbox's authority. Null: anything. */
  ca?: string | null;
  /** One to take up again. */
  session?: Buffer;
}

/** A hostile guest. */
export class Hostile {
  readonly id: string;
  readonly runtime: string;
  /** All that answers have shown it. */
  heard = '';
  readonly #world: World;
  #authority = '';

  constructor(world: World, runtime: string, id: string) {
    this.#world = world;
    this.runtime = runtime;
    this.id = id;
  }

  shell(line: string): Promise<CommandResult> {
    return run(this.#world.daemon, this.id, line);
  }

  /** What the kernel answers to these calls, made inside. */
  async syscalls(calls: Argument[][]): Promise<{ value: number; errno: number }[]> {
    const words = [...bun.words, '/tmp/probe.js', bun.libc, JSON.stringify(calls)].map(quoted).join(' ');
    const { stdout, stderr } = await this.shell(
      `cat >/tmp/probe.js <<'END'\n${readFileSync(probeFile, 'utf8')}\nEND\n${words}`,
    );
    return JSON.parse(stdout || `no answer: ${stderr}`);
  }

  /** The certificate of its authority, as its programs see it. */
  async authority(): Promise<string> {
    if (this.#authority === '') this.#authority = (await this.shell('cat /.glovebox/run/ca.crt')).stdout;
    return this.#authority;
  }

  /** Rejects with the `code` that the guest's own connect had. */
  dial(to: { address: string; port: number } | { unix: string }): Promise<GuestSocket> {
    const { daemon } = this.#world;
    const query = new URLSearchParams(
      'unix' in to ? { unix: to.unix } : { address: to.address, port: String(to.port) },
    );
    const url = `${daemon.url.replace('http', 'ws')}/v1/sandboxes/${this.id}/proxy/${relayPort}/?${query}`;
    const ws = new WebSocket(url, {
      headers: { 'OPEN-SANDBOX-API-KEY': daemon.apiKey },
      perMessageDeflate: false,
    });
    return new Promise((resolve, reject) => {
      const socket: GuestSocket = new GuestSocket(ws, (error) => (error ? reject(error) : resolve(socket)));
      this.#world.opened.add(socket);
      socket.once('close', () => this.#world.opened.delete(socket));
    });
  }

  proxy(): Promise<GuestSocket> {
    return this.dial({ address: '127.0.0.1', port: 3128 });
  }

  /** These very bytes to the proxy, and what comes back. */
  async raw(bytes: string | Buffer, options: { count?: number; end?: boolean } = {}): Promise<Told> {
    return this.#say(await this.proxy(), bytes, options);
  }

  /** These very bytes to an address, without the proxy. */
  async caught(
    to: { address: string; port: number },
    bytes: string | Buffer,
    options: { count?: number; end?: boolean } = {},
  ): Promise<Told> {
    return this.#say(await this.dial(to), bytes, options);
  }

  async #say(socket: GuestSocket, bytes: string | Buffer, { count = 1, end = false }): Promise<Told> {
    try {
      socket.write(typeof bytes === 'string' ? Buffer.from(bytes, 'latin1') : bytes);
      if (end) socket.end();
      return this.#heard(await told(socket, count));
    } finally {
      socket.destroy();
    }
  }

  #heard(answer: Told): Told {
    this.heard += answer.text;
    return answer;
  }

  /** The status of the first answer to these bytes through the proxy; 0 when it was closed without one. */
  async status(bytes: string | Buffer): Promise<number> {
    return (await this.raw(bytes)).replies[0]?.status ?? 0;
  }

  /** What the guest's SOCKS server says to a name. */
  async socks(name: Buffer, port: number): Promise<string> {
    const socket = await this.dial({ address: '127.0.0.1', port: 1080 });
    const bytes: Buffer[] = [];
    socket.on('data', (piece: Buffer) => bytes.push(piece));
    socket.write(Buffer.from([5, 1, 0, 5, 1, 0, 3, name.length, ...name, port >> 8, port & 0xff]));
    const code = await until(
      'an answer of SOCKS',
      () => Buffer.concat(bytes)[3] ?? (socket.readableEnded || socket.destroyed ? 'closed' : undefined),
      (it) => it !== undefined,
    );
    socket.destroy();
    return socksAnswers[code as number] ?? String(code);
  }

  /** The IPv4 address that programs of the guest get for a name. Undefined when it does not exist for them. */
  async resolve(name: string): Promise<string | undefined> {
    const { stdout } = await this.shell(`nslookup -type=a ${name} 127.0.0.1 2>&1`);
    return /Name:.*\nAddress:\s*([\d.]+)/.exec(stdout)?.[1];
  }

  /** A tunnel, and the proxy's answer to the wish for it. */
  async connect(target: string): Promise<{ reply: Reply | undefined; socket: GuestSocket }> {
    const socket = await this.proxy();
    socket.write(`CONNECT ${target} HTTP/1.1\r\nHost: ${target}\r\n\r\n`);
    return { reply: (await told(socket)).replies[0], socket };
  }

  /** TLS in a tunnel to `target`, as far as it comes. Rejects where it does not. */
  async secure(target: string, options: ConnectOptions = {}): Promise<TLSSocket> {
    const { reply, socket } = await this.connect(target);
    if (reply?.status !== 200) throw new Error(`CONNECT ${target}: ${reply?.status} ${reply?.body}`);
    return this.tlsOver(socket, target.replace(/:\d+$/, ''), options);
  }

  /** TLS to an address, without the proxy. */
  async secureAt(
    to: { address: string; port: number },
    host: string,
    options: ConnectOptions = {},
  ): Promise<TLSSocket> {
    return this.tlsOver(await this.dial(to), host, options);
  }

  async tlsOver(socket: Duplex, host: string, options: ConnectOptions = {}): Promise<TLSSocket> {
    const { servername = host, alpn, session, ca = await this.authority() } = options;
    const tls = tlsConnect({
      socket,
      ...(servername === null || /^[\d.]+$|:/.test(servername) ? {} : { servername }),
      ...(alpn === undefined ? {} : { ALPNProtocols: alpn }),
      ...(session === undefined ? {} : { session }),
      ...(ca === null ? { rejectUnauthorized: false } : { ca, checkServerIdentity: () => undefined }),
    });
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => tls.destroy(new Error('no handshake')), patienceMs);
      const settle = () => clearTimeout(timer);
      tls.once('secureConnect', () => {
        settle();
        tls.on('error', () => {});
        resolve(tls);
      });
      tls.once('error', (error) => {
        settle();
        socket.destroy();
        reject(error);
      });
      tls.once('close', () => {
        settle();
        reject(new Error('closed in the handshake'));
      });
    });
  }

  /** One request in TLS through the proxy. */
  async https(
    target: string,
    bytes: string,
    options: ConnectOptions & { count?: number } = {},
  ): Promise<Told> {
    const tls = await this.secure(target, options);
    try {
      tls.write(bytes, 'latin1');
      return this.#heard(await told(tls, options.count ?? 1));
    } finally {
      tls.destroy();
    }
  }

  /** Where a text is that the guest can read: files, environments and command lines of its processes. */
  async placesInside(text: string): Promise<string[]> {
    const middle = text.length >> 1;
    const pattern = `p='${text.slice(0, middle)}''${text.slice(middle)}'`;
    const { stdout } = await this.shell(
      `${pattern}; cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ >/tmp/processes 2>/dev/null; env >/tmp/own
       find / /.glovebox/run /tmp /dev/shm -xdev -type f -exec grep -lF "$p" {} + 2>/dev/null`,
    );
    return stdout.split('\n').filter((line) => line !== '');
  }

  /** The token by which its agent proves itself, as if it had been stolen. */
  stolenToken(): string {
    using database = new DatabaseSync(join(this.#world.home, 'glovebox.db'), { readOnly: true });
    const row = database.prepare('SELECT record FROM sandbox WHERE id = ?').get(this.id) as {
      record: string;
    };
    return (JSON.parse(row.record) as { agentToken: string }).agentToken;
  }

  /** What the daemon has on record of it, the oldest first, once an entry is there that `holds`. */
  async logged(holds: (entry: LogEntry) => boolean): Promise<LogEntry> {
    const entries = await until(
      'an entry of the log',
      () => this.#world.log(this.id),
      (all) => all.some(holds),
    );
    return entries.findLast(holds) as LogEntry;
  }
}

export interface WorldOptions {
  lab?: LabOptions;
  /** More lines for the section [egress] of the daemon's configuration. */
  egress?: () => string;
  env?: Record<string, string>;
}

export interface GuestOptions {
  rules?: NewRule[];
  /** More of the request that creates it. */
  request?: Record<string, unknown>;
}

export function residentBytes(pid: number): number {
  return 1024 * Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]);
}

/** A lab, and a daemon that knows it. */
export class World implements AsyncDisposable {
  readonly lab: Lab;
  readonly home = makeHome();
  readonly opened = new Set<Duplex>();
  daemon!: TestDaemon;
  readonly #settings: WorldOptions;

  private constructor(lab: Lab, settings: WorldOptions) {
    this.lab = lab;
    this.#settings = settings;
  }

  static async open(settings: WorldOptions = {}): Promise<World> {
    const world = new World(await openLab(settings.lab), settings);
    const egress = settings.egress?.() ?? '';
    writeFileSync(
      join(world.home, 'config.toml'),
      `[log]\nlevel = "debug"\nfile_enabled = true\n${world.lab.config}${egress}\n`,
    );
    await world.restart();
    return world;
  }

  /** After `daemon.kill()` or `daemon.stop()`. */
  async restart(): Promise<void> {
    this.daemon = await startDaemon({
      home: this.home,
      ...(this.#settings.env && { env: this.#settings.env }),
    });
  }

  call(method: string, path: string, body?: unknown): Promise<Answer> {
    return call(this.daemon, method, path, body);
  }

  async rule(rule: NewRule): Promise<string> {
    const { status, body } = await this.call('POST', '/v1/policy/rules', rule);
    expect(status, JSON.stringify(body)).toBe(201);
    return body.id as string;
  }

  async secret(secret: SetSecret): Promise<{ id: string; placeholder: string }> {
    const owner = { 'Glovebox-Owner': readFileSync(join(this.home, 'owner-key'), 'utf8').trim() };
    const { status, body } = await call(this.daemon, 'PUT', '/v1/secrets', secret, owner);
    expect(status, JSON.stringify(body)).toBe(200);
    return body as { id: string; placeholder: string };
  }

  async log(sandbox: string): Promise<LogEntry[]> {
    const { body } = await this.call('GET', `/v1/network/log?sandbox=${sandbox}&limit=1000`);
    return body.items as LogEntry[];
  }

  /** A sandbox with the way to the lab's network open, and in it to the names that rules name: by default to good.test alone. */
  async guest(runtime: string, options: GuestOptions = {}): Promise<Hostile> {
    const rules: NewRule[] = options.rules ?? [
      { decision: 'allow', resources: ['good.test', '*.good.test', this.lab.network] },
    ];
    const id = await create(this.daemon, {
      image: { uri: await imageFor(runtime, this.daemon, 'busybox') },
      extensions: { [runtimeExtension]: runtime },
      glovebox: { rules },
      ...options.request,
    });
    const guest = new Hostile(this, runtime, id);
    await this.relay(guest);
    return guest;
  }

  async relay({ id }: Hostile): Promise<void> {
    const source = readFileSync(new URL('./guest-relay.js', import.meta.url), 'utf8');
    const command = [...bun.words, '-e', source, String(relayPort)].map(quoted).join(' ');
    await this.call('POST', `/v1/sandboxes/${id}/proxy/44772/command`, { command, background: true });
    await until(
      'the relay in the guest',
      async () => (await this.call('GET', `/v1/sandboxes/${id}/proxy/${relayPort}/`)).status,
      (status) => status === 200,
    );
  }

  /** Fails when `origin` has seen anything of what happens in `act`, a mere connection included. */
  async untouched<T>(act: () => Promise<T>, origin: Origin = this.lab.evil): Promise<T> {
    const before = { connections: origin.connections, seen: origin.seen.length };
    const result = await act();
    expect({ connections: origin.connections, seen: origin.seen.slice(before.seen) }, origin.name).toEqual({
      connections: before.connections,
      seen: [],
    });
    return result;
  }

  /** Where a text is in what this daemon has written, or shows of itself to others. */
  placesOnHost(text: string): string[] {
    const files = readdirSync(this.home, { recursive: true, withFileTypes: true })
      .filter((it) => it.isFile())
      .map((it) => join(it.parentPath, it.name));
    const ofProcess = ['cmdline', 'environ'].map((name) => `/proc/${this.daemon.pid}/${name}`);
    return [...files, ...ofProcess].filter((path) => readFileSync(path).includes(text));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await using last = new AsyncDisposableStack();
    last.use(this.lab);
    for (const socket of this.opened) socket.destroy();
    // Sandboxes outlive a daemon that an attack has ended; the next one removes them.
    const died = !existsSync(`/proc/${this.daemon.pid}`);
    if (died) await this.restart();
    for (const { id } of await list(this.daemon)) await remove(this.daemon, id);
    expect(await this.daemon.stop()).toBe(0);
    await expectNothingLeft(this.home);
    expect(died, 'an attack has ended the daemon').toBe(false);
  }
}

/** A request of HTTP/1.1 with these lines; `Host` is the first word's unless given. */
export function get(target: string, host: string, ...lines: string[]): string {
  return `${[`GET ${target} HTTP/1.1`, `Host: ${host}`, ...lines].join('\r\n')}\r\n\r\n`;
}

/** The first message of a TLS client, made by hand, so that it can hold what no library says. */
export function clientHello(
  serverName: string | Buffer | undefined,
  ...extensions: [number, Buffer][]
): Buffer {
  const sized = (bytes: number, ...parts: Buffer[]) => {
    const body = Buffer.concat(parts);
    const length = Buffer.alloc(bytes);
    length.writeUIntBE(body.length, 0, bytes);
    return Buffer.concat([length, body]);
  };
  const extension = (type: number, body: Buffer) =>
    Buffer.concat([Buffer.from([type >> 8, type & 0xff]), sized(2, body)]);
  const name =
    serverName === undefined ? [] : [sized(2, Buffer.from([0]), sized(2, Buffer.from(serverName)))];
  const body = Buffer.concat([
    Buffer.from([3, 3]),
    Buffer.alloc(32, 7),
    sized(1, Buffer.alloc(32, 9)),
    sized(2, Buffer.from([0x13, 0x01, 0x13, 0x02])),
    sized(1, Buffer.from([0])),
    sized(
      2,
      ...name.map((it) => extension(0, it)),
      extension(10, sized(2, Buffer.from([0, 0x1d]))),
      extension(13, sized(2, Buffer.from([4, 3, 8, 4]))),
      extension(43, sized(1, Buffer.from([3, 4]))),
      extension(51, sized(2, Buffer.from([0, 0x1d]), sized(2, Buffer.alloc(32, 3)))),
      ...extensions.map(([type, it]) => extension(type, it)),
    ),
  ]);
  return Buffer.concat([Buffer.from([22, 3, 1]), sized(2, Buffer.from([1]), sized(3, body))]);
}

/** What a TLS server's first record is: `alert N`, or how else it begins. */
export function alertIn(text: string): string {
  const bytes = Buffer.from(text, 'latin1');
  return bytes[0] === 21 ? `alert ${bytes[6]}` : bytes.length === 0 ? 'closed' : `record ${bytes[0]}`;
}

const quoted = (word: string): string => `'${word.replaceAll("'", `'\\''`)}'`;

export interface Scene {
  readonly world: World;
  readonly guest: Hostile;
  readonly lab: Lab;
}

/**
 * Declares attacks, for each runtime from a hostile guest in it; all share one daemon. Before each attack the way out
 * is seen to work, so that a dead one holds none.
 */
export function fromHostileGuests(
  options: WorldOptions & {
    rules?: (lab: Lab) => NewRule[];
    request?: Record<string, unknown>;
    prepare?: (world: World) => Promise<void>;
  },
  declare: (scene: Scene, runtime: string) => void,
): void {
  const state: { world?: World; guests: Map<string, Hostile> } = { guests: new Map() };
  const world = () => state.world as World;
  beforeAll(async () => {
    state.world = await World.open(options);
    await options.prepare?.(world());
    const { rules, request } = options;
    const made = runtimes.map((runtime) =>
      world().guest(runtime, {
        ...(rules && { rules: rules(world().lab) }),
        ...(request && { request }),
      }),
    );
    for (const guest of await Promise.all(made)) state.guests.set(guest.runtime, guest);
  });
  afterAll(() => state.world?.[Symbol.asyncDispose]());
  describe.each(runtimes)('from a hostile root in %s', (runtime) => {
    const scene: Scene = {
      get world() {
        return world();
      },
      get lab() {
        return world().lab;
      },
      get guest() {
        return state.guests.get(runtime) as Hostile;
      },
    };
    beforeEach(async () => {
      expect(await scene.guest.status(get('http://good.test/', 'good.test'))).toBe(200);
    });
    declare(scene, runtime);
  });
}
