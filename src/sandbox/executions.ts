// The commands of one sandbox: started, kept with their output, found again after a restart of the daemon.
import { createHash, randomBytes } from 'node:crypto';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { ExecExit, ExecSummary } from '../contract/guest.ts';
import type { PastCommand } from '../contract/sandbox.ts';
import type { ExecSpec, Guest, GuestProcess } from '../guest/guest.ts';
import { Failure } from '../lib/failure.ts';
import { openSpan } from '../lib/trace.ts';
import type { ImageDefaults } from '../runtime/runtime.ts';
import type { ExecutionRecord } from '../store/store.ts';
import { FileOutputLog, MemoryOutputLog, type OutputLog } from './output-log.ts';
import {
  type CommandOutcome,
  type Execution,
  type ExecutionInfo,
  type Executions,
  mainExecId,
} from './sandbox.ts';

const memoryLogBytesMax = 1024 * 1024;
const fileLogBytesMax = 64 * 1024 * 1024;
/** Whoever started a command connects to its output a moment later, on a busy machine a long one. */
const firstReaderMs = 5_000;
/** Ended commands are forgotten, oldest first, beyond this many in one sandbox, */
const endedMax = 1_000;
/** and before that, beyond this much, the output of ended ones: in memory, and on disk. */
const endedMemoryBytesMax = 16 * 1024 * 1024;
const endedFileBytesMax = 1024 * 1024 * 1024;
/** What is kept of a command line, to know the command by. */
const shownCharactersMax = 4 * 1024;
/** And of one whose sandbox is gone. */
const pastCharactersMax = 256;

export interface ExecutionsOptions {
  /** Host folder for the output of background commands of this sandbox. */
  folder: string;
  /** The way inside; throws when there is none at the moment. */
  guest: () => Guest;
  /** What the image and the sandbox's creator set for every command. */
  defaults: () => ImageDefaults;
  /** A command has started, or ended. */
  onCommand?: (what: 'started' | CommandOutcome) => void;
  /** Called before a command starts, which waits for it. Never rejects. */
  beforeStart: (label: string) => Promise<void>;
  /** How many commands run beside the main process, whenever that changes. */
  onRunning: (count: number) => void;
  /** Where background commands are remembered. */
  save: (record: ExecutionRecord) => void;
  forget: (execId: string) => void;
  now: () => Date;
  /** Something of a forgotten command could not be taken away; for the log. */
  onTrouble: (error: unknown) => void;
}

type StartSpec = Parameters<Executions['start']>[0];

/** One command and its output. Made by SandboxExecutions only. */
class KeptExecution implements Execution {
  readonly exit: Promise<ExecExit>;
  readonly log: OutputLog;
  /** Of what was asked for, if that may be asked for again. */
  readonly digest: string | undefined;
  readonly #info: Omit<ExecutionInfo, 'start' | 'end'>;
  readonly #guest: () => Guest;
  #process: GuestProcess | undefined;
  readonly #exited = Promise.withResolvers<ExecExit>();
  readonly #onEnded: (exit: ExecExit) => void;

  constructor(
    info: Omit<ExecutionInfo, 'start' | 'end'>,
    log: OutputLog,
    options: { guest: () => Guest; onEnded: (exit: ExecExit) => void; digest: string | undefined },
  ) {
    this.#info = info;
    this.log = log;
    this.digest = options.digest;
    this.#guest = options.guest;
    this.#onEnded = options.onEnded;
    this.exit = this.#exited.promise;
  }

  get info(): ExecutionInfo {
    return { ...this.#info, start: this.log.start, end: this.log.end };
  }

  get id(): string {
    return this.#info.id;
  }

  /** Whether the store remembers it. */
  get recorded(): boolean {
    return this.#info.background || this.digest !== undefined || this.#info.note !== undefined;
  }

  get background(): boolean {
    return this.#info.background;
  }

  get ended(): boolean {
    return this.#info.exit !== undefined;
  }

  /** Takes the command's output into the log until it ends; called again with a new connection after a restart. */
  follow(process: GuestProcess): void {
    this.#process = process;
    this.#info.pid = process.pid;
    this.#info.startedAt = process.startedAt;
    // Neither rejects: logs do not, and the generator's errors are caught.
    void this.#pump(process);
  }

  async #pump(process: GuestProcess): Promise<void> {
    try {
      for await (const piece of process.output) {
        // A guest may begin anywhere; the log goes on where it is, and says what is missing.
        const { end } = this.log;
        const [from, to] =
          piece.type === 'gap' ? [piece.from, piece.to] : [piece.offset, piece.offset + piece.bytes.length];
        if (from > end) await this.log.append({ type: 'gap', from: end, to: from });
        if (from >= end) await this.log.append(piece);
        else if (to > end)
          await this.log.append(
            piece.type === 'gap'
              ? { type: 'gap', from: end, to }
              : { ...piece, offset: end, bytes: piece.bytes.subarray(end - from) },
          );
      }
    } catch {
      // The connection is gone; the exit below tells what is known of the command.
    }
    await this.settle(await process.exit);
  }

  async settle(exit: ExecExit): Promise<void> {
    if (this.#info.exit !== undefined) return;
    this.#info.exit = exit;
    this.#info.finishedAt = new Date();
    this.#process = undefined;
    await this.log.finish();
    this.#exited.resolve(exit);
    this.#onEnded(exit);
  }

  read(from: number, options: { follow: boolean }, signal?: AbortSignal) {
    return this.log.read(from, options, signal);
  }

  async write(bytes: Uint8Array): Promise<void> {
    await this.#process?.write(bytes);
  }

  end(): void {
    this.#process?.end();
  }

  resize(size: { cols: number; rows: number }): void {
    this.#process?.resize(size);
  }

  async signal(
    name: string,
    options: { tree?: boolean; graceMs?: number } = {},
    signal?: AbortSignal,
  ): Promise<void> {
    if (this.#info.exit !== undefined)
      throw new Failure('conflict', `signal ${name}: command ${this.#info.id} has ended`);
    const { tree = false, graceMs } = options;
    await this.#guest().signal(
      this.#info.id,
      name,
      graceMs === undefined ? { tree } : { tree, graceMs },
      signal,
    );
  }
}

export class SandboxExecutions implements Executions {
  readonly #options: ExecutionsOptions;
  readonly #kept = new Map<string, KeptExecution>();
  /** Until each runs, or does not. */
  readonly #starting = new Map<string, { digest: string | undefined; execution: Promise<Execution> }>();

  constructor(options: ExecutionsOptions) {
    this.#options = options;
  }

  async start(spec: StartSpec, signal?: AbortSignal): Promise<Execution> {
    const execId = spec.execId ?? randomBytes(16).toString('hex');
    // It names a folder, too.
    if (!/^[A-Za-z0-9._-]{1,128}$/.test(execId) || /^\.\.?$/.test(execId))
      throw new Failure('invalid', `command id ${JSON.stringify(execId)}: use letters, digits, ., - and _`);
    const digest = spec.repeatable ? digestOf(spec) : undefined;
    const starting = this.#starting.get(execId);
    const known = starting ?? this.#kept.get(execId);
    if (known === undefined) {
      const execution = this.#start(execId, spec, digest, signal);
      this.#starting.set(execId, { digest, execution });
      return await execution.finally(() => this.#starting.delete(execId));
    }
    if (digest === undefined || known.digest !== digest)
      throw new Failure(
        'conflict',
        `there is ${digest === undefined ? 'a' : 'another'} command ${execId} in this sandbox already`,
      );
    return starting === undefined ? this.get(execId) : await starting.execution;
  }

  async #start(
    execId: string,
    spec: StartSpec,
    digest: string | undefined,
    signal: AbortSignal | undefined,
  ): Promise<Execution> {
    const { background = false, repeatable: _, note, ...rest } = spec;
    const defaults = this.#options.defaults();
    const request: ExecSpec = {
      ...rest,
      execId,
      env: { ...defaults.env, ...spec.env },
      ...(spec.cwd === undefined && defaults.cwd ? { cwd: defaults.cwd } : {}),
      ...(spec.user === undefined && defaults.user ? { user: defaults.user } : {}),
    };
    const guest = this.#options.guest();
    await this.#options.beforeStart(shown(spec.argv ?? [spec.shell ?? '']).join(' '));
    const info = {
      id: execId,
      command: shown(spec.argv ?? [spec.shell ?? '']),
      pid: 0,
      startedAt: this.#options.now(),
      background,
      tty: spec.pty !== undefined,
      ...(note === undefined ? {} : { note }),
    };
    // All that may fail here comes before the command: nothing runs that nobody knows of.
    const execution = this.#execution(info, await this.#log(execId, background), digest);
    this.#keep(execution);
    // Neither its words nor its environment: they may hold secrets.
    const span = openSpan('command', { 'command.id': execId, background, tty: info.tty });
    try {
      if (execution.recorded) this.#options.save(recordOf(execution));
      const process = await guest.exec(request, signal);
      this.#options.onCommand?.('started');
      execution.follow(process);
      void execution.exit.then(
        (exit) => span?.end({ attributes: { 'command.outcome': outcomeOf(exit) } }),
        () => span?.end({ error: 'unknown' }),
      );
    } catch (error) {
      span?.end({ error: Failure.from(error, 'start').code });
      this.#drop(execId);
      await this.#forget(execution);
      throw error;
    }
    return execution;
  }

  get(execId: string): Execution {
    const execution = this.#kept.get(execId);
    if (execution === undefined)
      throw new Failure('not-found', `no command ${JSON.stringify(execId)} in this sandbox`);
    return execution;
  }

  environment(): Record<string, string> {
    return this.#options.defaults().env;
  }

  list(): ExecutionInfo[] {
    return [...this.#kept.values()].map((it) => it.info);
  }

  /**
   * After a restart of the daemon: takes up the commands that the agent still runs or remembers. What was recorded but is not known to
   * the agent any more has ended in a way that nobody saw.
   */
  async adopt(records: ExecutionRecord[], guest: Guest, signal: AbortSignal): Promise<void> {
    const running = new Map((await guest.execs(signal)).map((it) => [it.execId, it]));
    const recorded = new Map(records.map((it) => [it.execId, it]));
    for (const execId of new Set([...recorded.keys(), ...running.keys()])) {
      if (this.#kept.has(execId)) continue;
      const summary = running.get(execId);
      await this.#adoptOne(execId, recorded.get(execId), summary, guest, signal);
      signal.throwIfAborted();
    }
  }

  async #adoptOne(
    execId: string,
    record: ExecutionRecord | undefined,
    summary: ExecSummary | undefined,
    guest: Guest,
    signal: AbortSignal,
  ): Promise<void> {
    const background = record !== undefined && record.background !== false;
    const log = background
      ? await this.#log(execId, true)
      : new MemoryOutputLog({
          ...{ bytesMax: memoryLogBytesMax, awaitMs: firstReaderMs },
          from: summary?.start ?? 0,
        });
    const info = {
      id: execId,
      command: record?.command ?? [],
      pid: summary?.pid ?? 0,
      startedAt: new Date(summary?.startedAt ?? record?.startedAt ?? 0),
      background,
      tty: record?.tty ?? false,
      ...(record?.note === undefined ? {} : { note: record.note }),
    };
    const execution = this.#execution(info, log, record?.digest);
    this.#keep(execution);
    // Also one that the agent does not list: an earlier agent may have written down how it ended.
    const process =
      summary === undefined && record === undefined
        ? undefined
        : await guest.attach(execId, log.end, signal).catch(() => undefined);
    // One command that cannot be taken up does not keep the others from it.
    if (process === undefined) await execution.settle({ code: null, signal: null, reason: 'unknown' });
    else execution.follow(process);
  }

  /** The end of what a command has written and is kept. Never rejects. */
  async lastOutput(execId: string, bytesMax: number): Promise<string> {
    const kept = this.#kept.get(execId);
    if (kept === undefined) return '';
    const from = Math.max(kept.log.start, kept.log.end - bytesMax);
    const bytes: Uint8Array[] = [];
    try {
      for await (const piece of kept.read(from, { follow: false }))
        if (piece.type === 'output') bytes.push(piece.bytes);
    } catch {
      // What cannot be read any more is missing.
    }
    return Buffer.concat(bytes).subarray(-bytesMax).toString('utf8');
  }

  /** The last commands beside the main process, oldest first, as they are remembered. */
  past(countMax: number): PastCommand[] {
    return this.list()
      .filter(({ id }) => id !== mainExecId)
      .sort((a, b) => a.startedAt.getTime() - b.startedAt.getTime())
      .slice(-countMax)
      .map(({ id, command, startedAt, finishedAt, exit }) => ({
        ...{ id, startedAt, command: command.join(' ').slice(0, pastCharactersMax) },
        ...(finishedAt === undefined ? {} : { finishedAt }),
        ...(exit === undefined ? {} : { exit }),
      }));
  }

  /** Everything inside has been ended; what is kept of it stays to be read. */
  async halt(): Promise<void> {
    for (const execution of [...this.#kept.values()])
      await execution.settle({ code: 137, signal: 'SIGKILL', reason: 'killed' });
  }

  /** The sandbox starts again, and its main process with it. */
  async forgetMain(): Promise<void> {
    const main = this.#kept.get(mainExecId);
    if (main === undefined) return;
    this.#drop(mainExecId);
    await this.#forget(main);
  }

  /** The sandbox is over: whatever had not ended has an unknown end, and nothing is kept. */
  async dispose(): Promise<void> {
    for (const execution of [...this.#kept.values()]) {
      await execution.settle({ code: null, signal: null, reason: 'unknown' });
      await execution.log.finish();
    }
    this.#kept.clear();
    await rm(this.#options.folder, { recursive: true, force: true });
  }

  async #log(execId: string, background: boolean): Promise<OutputLog> {
    return background
      ? FileOutputLog.open(join(this.#options.folder, execId), { bytesMax: fileLogBytesMax })
      : new MemoryOutputLog({ bytesMax: memoryLogBytesMax, awaitMs: firstReaderMs });
  }

  #execution(
    info: Omit<ExecutionInfo, 'start' | 'end'>,
    log: OutputLog,
    digest: string | undefined,
  ): KeptExecution {
    const onEnded = (exit: ExecExit) => {
      this.#options.onCommand?.(outcomeOf(exit));
      this.#count();
      this.#trim();
    };
    return new KeptExecution(info, log, { guest: this.#options.guest, onEnded, digest });
  }

  #keep(execution: KeptExecution): void {
    this.#kept.set(execution.id, execution);
    this.#count();
  }

  #drop(execId: string): void {
    this.#kept.delete(execId);
    this.#count();
  }

  #count(): void {
    const running = [...this.#kept.values()].filter((it) => !it.ended && it.id !== mainExecId);
    this.#options.onRunning(running.length);
  }

  /** Newest first: what is beyond the bounds loses its output, then itself. */
  #trim(): void {
    const ended = [...this.#kept.values()].filter((it) => it.ended && it.id !== mainExecId).reverse();
    let memory = endedMemoryBytesMax;
    let file = endedFileBytesMax;
    ended.forEach((execution, index) => {
      const { background, id, log } = execution;
      if (background) file -= Math.min(log.end - log.start, fileLogBytesMax);
      else memory -= Math.min(log.end - log.start, memoryLogBytesMax);
      if (index >= endedMax || (background && file < 0)) {
        this.#kept.delete(id);
        void this.#forget(execution);
      } else if (!background && memory < 0) void log.dispose();
    });
  }

  /** Never rejects: what stays is a stray record or folder of a sandbox that is known, and goes with it. */
  async #forget({ id, recorded, log }: KeptExecution): Promise<void> {
    try {
      await log.dispose();
      if (recorded) this.#options.forget(id);
    } catch (error) {
      this.#options.onTrouble(error);
    }
  }
}

function outcomeOf({ code, reason }: ExecExit): CommandOutcome {
  if (reason !== 'exited') return reason;
  return code === 0 ? 'ok' : 'failed';
}

function shown(command: string[]): string[] {
  let left = shownCharactersMax;
  const kept: string[] = [];
  for (const argument of command) {
    kept.push(argument.length > left ? `${argument.slice(0, left)}…` : argument);
    left -= argument.length + 1;
    if (left <= 0) break;
  }
  if (kept.length < command.length) kept.push('…');
  return kept;
}

/** Of all that makes a command another one, as its caller has put it. */
function digestOf(spec: StartSpec): string {
  const {
    argv,
    shell,
    env = {},
    cwd,
    user,
    stdin,
    pty,
    timeoutMs,
    graceMs,
    limits,
    background = false,
  } = spec;
  const sorted = Object.entries(env).sort(([a], [b]) => (a < b ? -1 : 1));
  const size = pty && [pty.cols, pty.rows];
  const bounds = limits && [limits.memoryBytes, limits.pids, limits.cpu, limits.outputBytes];
  const content = [argv, shell, sorted, cwd, user, stdin, size, timeoutMs, graceMs, bounds, background];
  return createHash('sha256').update(JSON.stringify(content)).digest('base64url');
}

function recordOf({ info, digest, background }: KeptExecution): ExecutionRecord {
  return {
    ...{ execId: info.id, command: info.command, startedAt: info.startedAt, tty: info.tty },
    ...(digest === undefined ? {} : { digest }),
    ...(background ? {} : { background: false }),
    ...(info.note === undefined ? {} : { note: info.note }),
  };
}
