// A controller inside a program: workers dial in to it, and the program works on them, without any daemon of Glovebox. Its calls are those of SandD's server; what
// is behind them is what the daemon has: places, commands that are not run twice, back-pressure.
import { randomBytes } from 'node:crypto';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { type Duration, milliseconds } from '../../sdk/src/units.ts';
import { systemClock } from '../channel/clock.ts';
import type { ExecExit } from '../contract/guest.ts';
import {
  type EnrolmentToken,
  NewEnrolment,
  type NewSnapshot,
  placeOf,
  type RestoreSnapshot,
  type SnapshotInfo,
  type WorkerInfo,
} from '../contract/worker.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import type { Place } from '../sandbox/elsewhere.ts';
import type { Execution } from '../sandbox/sandbox.ts';
import type { SanddAccess } from '../worker/sandd/daemons.ts';
import { Workers } from '../worker/workers.ts';
import { EmbeddedListener } from './listener.ts';
import { Records } from './records.ts';
import { Session } from './session.ts';

export { type Duration, type ExecExit, Failure, Session, type SnapshotInfo };

const execMs = 300_000;
const broadcastAtOnce = 64;
const outputBytesMax = 16 * 1024 * 1024;
const downloadBytesMax = 256 * 1024 * 1024;
const lookEveryMs = 50;

export interface ServerOptions {
  /** Default: 127.0.0.1. */
  host?: string;
  /** 0 for any free one. Default: 8765. */
  port?: number;
  /** Certificate and key (PEM). Workers dial nothing else beyond their own machine. */
  tls?: { cert: string; key: string };
  /** Where it remembers its workers, so that they need not enrol again. One server at a time. Default: nowhere. */
  folder?: string;
  /** Daemons of SandD: with a token of a file of SHA-256 hashes, or whoever comes. Default: none is let in. */
  sandd?: SanddAccess;
  /** Default: nothing is logged. */
  log?: Log;
}

interface Aborting {
  signal?: AbortSignal;
}

export interface ExecOptions extends Aborting {
  /** Default: five minutes. */
  timeout?: Duration;
  env?: Readonly<Record<string, string>>;
  cwd?: string;
  /** Daemons of SandD take none. */
  stdin?: string | Uint8Array | AsyncIterable<Uint8Array>;
  /** Each piece as it comes; the command waits for what is returned. */
  onStdout?: (bytes: Uint8Array) => void | Promise<void>;
  onStderr?: (bytes: Uint8Array) => void | Promise<void>;
  /** Of each output, in the result; what is beyond is left out of it. Default: 16 MiB. */
  outputBytesMax?: number;
}

export interface CommandResult {
  /** As UTF-8. Take `onStdout` for other bytes. */
  stdout: string;
  stderr: string;
  exitCode: number;
  durationMs: number;
  success: boolean;
  /** There was more output than is here. */
  truncated: boolean;
}

export interface DaemonInfo extends WorkerInfo {
  /** A command of this server runs on it. */
  isBusy: boolean;
}

export interface ServerStats {
  totalDaemons: number;
  byPlatform: Record<string, number>;
  oldestConnectionSecs: number | undefined;
}

const silent: Log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };

/**
 * Listens from its making on. Everything waits for that, and rejects with Failure: `not-found` for ids unknown, `unavailable` while one is not connected,
 * `unsupported` for what it cannot do, `unknown` when nobody can tell whether it has happened.
 */
export class Server {
  /** Resolves when it listens. Failure('unavailable') when it cannot. */
  readonly ready: Promise<this>;
  readonly #workers: Workers;
  readonly #listener: EmbeddedListener;
  readonly #forget: () => void;
  #address: string | undefined;
  #closing: Promise<void> | undefined;

  constructor(options: ServerOptions = {}) {
    const { host = '127.0.0.1', port = 8765, log = silent, sandd, tls } = options;
    const { folder, forget } = folderFor(options.folder);
    this.#forget = forget;
    const store = new Records({
      file: options.folder === undefined ? undefined : join(folder, 'records.json'),
      controllerId: randomBytes(16).toString('hex'),
    });
    this.#workers = new Workers({
      ...{ store, controllerId: store.controllerId, folder: join(folder, 'w'), runFolder: join(folder, 'r') },
      ...{ clock: systemClock({ keepsProcessAlive: false }), now: () => new Date(), log },
      ...{ imageSource: async () => undefined, runtimes: new Map(), sandboxes: () => [], onOnline: () => {} },
      ...(sandd === undefined ? {} : { sandd }),
    });
    this.#listener = new EmbeddedListener({
      ...{ workers: this.#workers, host, port, tls },
      onTrouble: (error) => log.error({ error: String(error) }, 'a request of a worker failed'),
    });
    this.ready = this.#listener.listen().then((bound) => {
      this.#address = `${tls ? 'wss' : 'ws'}://${host.includes(':') ? `[${host}]` : host}:${bound}`;
      return this;
    });
    // Whoever waits for it hears of it; nobody has to.
    this.ready.catch(() => {});
  }

  /** For `glovebox worker --server-url`; daemons of SandD want `/ws` behind it. Failure('unavailable') before `ready`. */
  get address(): string {
    if (this.#address === undefined) throw new Failure('unavailable', 'the server does not listen yet');
    return this.#address;
  }

  /** A token with which one worker makes itself known, once: `glovebox worker --token`. */
  enrol(request: Partial<NewEnrolment> = {}): EnrolmentToken {
    const parsed = NewEnrolment.safeParse(request);
    if (parsed.success) return this.#workers.addEnrolment(parsed.data);
    const { path, message } = parsed.error.issues[0] ?? { path: [], message: 'not understood' };
    throw new Failure('invalid', `enrol: ${path.join('.')}: ${message}`);
  }

  /** The worker's key is worth nothing from now on. */
  removeDaemon(id: string): void {
    this.#workers.remove(id);
  }

  // ---- who is there

  /** Those that are connected; all of `labels` must match. */
  listDaemons(labels: Readonly<Record<string, string>> = {}): DaemonInfo[] {
    return this.#workers
      .list({ ...labels })
      .filter(({ state }) => state === 'online')
      .map((it) => this.#shown(it));
  }

  /** Undefined when it is not connected. */
  getDaemon(id: string): DaemonInfo | undefined {
    return this.listDaemons().find((it) => it.id === id);
  }

  daemonCount(): number {
    return this.#workers.stats().online;
  }

  getStats(): ServerStats {
    const { online, byPlatform, oldestConnectionSeconds } = this.#workers.stats();
    return { totalDaemons: online, byPlatform, oldestConnectionSecs: oldestConnectionSeconds };
  }

  /** Resolves with whether it can be worked on within the time. */
  async waitForDaemon(id: string, timeout: Duration = 30_000, { signal }: Aborting = {}): Promise<boolean> {
    await this.ready;
    const until = performance.now() + milliseconds(timeout, 'timeout');
    while (!this.#isUsable(id)) {
      if (signal?.aborted) throw Failure.from(signal.reason, `wait for ${id}`);
      if (performance.now() >= until || this.#closing !== undefined) return false;
      await new Promise((wake) => setTimeout(wake, lookEveryMs));
    }
    return true;
  }

  // ---- commands

  /** A string is a line for the shell. Failure('timeout') when its time is over, Failure('unknown') when nobody can tell how it has ended. It never runs twice. */
  async exec(
    id: string,
    command: string | readonly string[],
    options: ExecOptions = {},
  ): Promise<CommandResult> {
    const { timeout = execMs, env, cwd, stdin, signal } = options;
    const { executions } = await this.#place(id);
    const begun = performance.now();
    const execution = await executions.start(
      {
        ...(typeof command === 'string' ? { shell: command } : { argv: [...command] }),
        ...(env === undefined ? {} : { env: { ...env } }),
        ...(cwd === undefined ? {} : { cwd }),
        ...{ stdin: stdin === undefined ? 'none' : 'pipe', timeoutMs: milliseconds(timeout, 'timeout') },
      },
      signal,
    );
    try {
      const feeding = stdin === undefined ? undefined : feed(execution, stdin);
      // What goes wrong with it is told below, once the output has ended.
      feeding?.catch(() => {});
      const output = await gathered(execution, options);
      await feeding;
      return resultOf(await execution.exit, output, performance.now() - begun, id);
    } catch (error) {
      // Whoever asked for it has given up, and nobody else knows of it.
      if (execution.info.exit === undefined)
        await execution
          .signal('SIGTERM', { tree: true, graceMs: 2_000 }, AbortSignal.timeout(10_000))
          .catch(() => {});
      throw signal?.aborted ? Failure.from(error, `run a command on ${id}`) : error;
    }
  }

  /** The same on all that match and are connected, by id. What fails on one is a Failure in its place. */
  async broadcast(
    labels: Readonly<Record<string, string>>,
    command: string | readonly string[],
    options: Omit<ExecOptions, 'stdin'> = {},
  ): Promise<Record<string, CommandResult | Failure>> {
    await this.ready;
    const waiting = this.listDaemons(labels).map((it) => it.id);
    const results: Record<string, CommandResult | Failure> = {};
    const next = async (): Promise<void> => {
      for (let id = waiting.shift(); id !== undefined; id = waiting.shift())
        results[id] = await this.exec(id, command, options).catch((error) =>
          Failure.from(error, `run a command on ${id}`),
        );
    };
    await Promise.all(Array.from({ length: broadcastAtOnce }, next));
    return results;
  }

  /** A shell at a terminal. */
  async newSession(
    id: string,
    { rows = 24, cols = 80, term = 'xterm-256color', signal }: Aborting & SessionOptions = {},
  ): Promise<Session> {
    const { executions } = await this.#place(id);
    const isSandd = this.#workers.get(id).protocol === 'sandd';
    const execution = await executions.start(
      {
        ...(isSandd ? { argv: ['sh'] } : { shell: 'command -v bash >/dev/null && exec bash; exec sh' }),
        ...{ env: { TERM: term }, stdin: 'pipe', pty: { rows, cols } },
      },
      signal,
    );
    return new Session(execution);
  }

  // ---- files

  /** Resolves when it is whole and in its place. */
  async uploadFile(
    id: string,
    path: string,
    data: string | Uint8Array | AsyncIterable<Uint8Array>,
    { mode, signal }: Aborting & { mode?: number } = {},
  ): Promise<void> {
    const guest = (await this.#place(id)).guest();
    await guest.write(path, piecesOf(data), mode === undefined ? {} : { mode }, signal);
  }

  /** Failure('invalid') for files of more than `bytesMax`, 256 MiB unless said otherwise. */
  async downloadFile(
    id: string,
    path: string,
    { bytesMax = downloadBytesMax, signal }: Aborting & { bytesMax?: number } = {},
  ): Promise<Uint8Array> {
    const guest = (await this.#place(id)).guest();
    const { bytes } = await guest.read(path, {}, signal);
    const pieces: Uint8Array[] = [];
    let length = 0;
    for await (const piece of bytes as AsyncIterable<Uint8Array>) {
      length += piece.length;
      if (length > bytesMax) throw new Failure('invalid', `read ${path}: it has more than ${bytesMax} bytes`);
      pieces.push(piece);
    }
    return Buffer.concat(pieces);
  }

  // ---- snapshots

  async createSnapshot(
    id: string,
    folder: string,
    { message = '', tags = [], signal }: Aborting & Partial<Omit<NewSnapshot, 'folder'>> = {},
  ): Promise<SnapshotInfo> {
    return (await this.#snapshots(id)).create({ folder, message, tags }, signalOf(signal));
  }

  /** Into another folder than that it was taken of, with `folder`. */
  async restoreSnapshot(
    id: string,
    snapshotId: string,
    { folder, replace = false, signal }: Aborting & Partial<RestoreSnapshot> = {},
  ): Promise<SnapshotInfo> {
    const request = { replace, ...(folder === undefined ? {} : { folder }) };
    return (await this.#snapshots(id)).restore(snapshotId, request, signalOf(signal));
  }

  /** Newest first; with `tags` those that have any of them. */
  async listSnapshots(id: string, tags: string[] = [], { signal }: Aborting = {}): Promise<SnapshotInfo[]> {
    return (await this.#snapshots(id)).list({ tags }, signalOf(signal));
  }

  /** Undefined when none has it. */
  async findSnapshotByTag(
    id: string,
    tag: string,
    options: Aborting = {},
  ): Promise<SnapshotInfo | undefined> {
    return (await this.listSnapshots(id, [tag], options))[0];
  }

  async getSnapshot(id: string, snapshotId: string, { signal }: Aborting = {}): Promise<SnapshotInfo> {
    return (await this.#snapshots(id)).get(snapshotId, signalOf(signal));
  }

  async deleteSnapshot(id: string, snapshotId: string, { signal }: Aborting = {}): Promise<void> {
    await (await this.#snapshots(id)).remove(snapshotId, signalOf(signal));
  }

  /** Workers, and what runs on them, stay. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #close(): Promise<void> {
    await this.ready.catch(() => {});
    await this.#workers.close();
    await this.#listener.close();
    this.#forget();
  }

  async #place(id: string): Promise<Place> {
    await this.ready;
    if (this.#closing !== undefined) throw new Failure('unavailable', 'the server is closed');
    const { state } = this.#workers.get(id);
    if (state !== 'online') throw new Failure('unavailable', `${id} is not connected`);
    return this.#workers.place(placeOf(id)) as Place;
  }

  async #snapshots(id: string): Promise<ReturnType<Workers['snapshots']>> {
    await this.#place(id);
    return this.#workers.snapshots(id);
  }

  #isUsable(id: string): boolean {
    try {
      if (this.#workers.get(id).state !== 'online') return false;
      this.#workers.place(placeOf(id))?.guest();
      return true;
    } catch {
      return false;
    }
  }

  #shown(info: WorkerInfo): DaemonInfo {
    const place = this.#workers.place(placeOf(info.id));
    return { ...info, isBusy: place?.executions.list().some((it) => it.exit === undefined) ?? false };
  }
}

export interface SessionOptions {
  rows?: number;
  cols?: number;
  term?: string;
}

function folderFor(given: string | undefined): { folder: string; forget: () => void } {
  if (given === undefined) {
    // Short, for sockets lie in it.
    const folder = mkdtempSync(join(tmpdir(), 'gbx-'));
    return { folder, forget: () => rmSync(folder, { recursive: true, force: true }) };
  }
  const folder = resolve(given);
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  return { folder, forget: () => {} };
}

const signalOf = (signal: AbortSignal | undefined): AbortSignal => signal ?? new AbortController().signal;

async function* piecesOf(
  data: string | Uint8Array | AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array, void, undefined> {
  if (typeof data === 'string') yield Buffer.from(data);
  else if (data instanceof Uint8Array) yield data;
  else yield* data;
}

async function feed(execution: Execution, stdin: NonNullable<ExecOptions['stdin']>): Promise<void> {
  for await (const piece of piecesOf(stdin)) await execution.write(piece);
  execution.end();
}

interface Gathered {
  stdout: Uint8Array[];
  stderr: Uint8Array[];
  truncated: boolean;
}

async function gathered(
  execution: Execution,
  { onStdout, onStderr, outputBytesMax: most = outputBytesMax, signal }: ExecOptions,
): Promise<Gathered> {
  const kept: Gathered = { stdout: [], stderr: [], truncated: false };
  const left = { stdout: most, stderr: most };
  for await (const piece of execution.read(0, { follow: true }, signal)) {
    if (piece.type === 'gap') {
      kept.truncated = true;
      continue;
    }
    const { lane, bytes } = piece;
    await (lane === 'stdout' ? onStdout : onStderr)?.(bytes);
    const fitting = bytes.subarray(0, left[lane]);
    if (fitting.length < bytes.length) kept.truncated = true;
    left[lane] -= fitting.length;
    if (fitting.length > 0) kept[lane].push(fitting);
  }
  return kept;
}

function resultOf(
  { code, reason }: ExecExit,
  output: Gathered,
  durationMs: number,
  id: string,
): CommandResult {
  const texts = {
    stdout: Buffer.concat(output.stdout).toString('utf8'),
    stderr: Buffer.concat(output.stderr).toString('utf8'),
  };
  const details = { ...texts, durationMs, reason };
  if (reason === 'timeout') throw new Failure('timeout', `a command on ${id} ran out of time`, { details });
  if (reason === 'unknown' || code === null)
    throw new Failure('unknown', `nobody can tell how a command on ${id} has ended`, {
      ...{ details, hint: 'It may have done all, or a part, or nothing. Look before you run it again.' },
    });
  return { ...texts, exitCode: code, durationMs, success: code === 0, truncated: output.truncated };
}
