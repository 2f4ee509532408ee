// The commands of one sandbox: started, kept with their output, found again after a restart of the daemon.
import { randomBytes } from 'node:crypto';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { ExecExit, ExecSummary } from '../contract/guest.ts';
import type { ExecSpec, Guest, GuestProcess } from '../guest/guest.ts';
import { Failure } from '../lib/failure.ts';
import type { ImageDefaults } from '../runtime/runtime.ts';
import type { ExecutionRecord } from '../store/store.ts';
import { FileOutputLog, MemoryOutputLog, type OutputLog } from './output-log.ts';
import { type Execution, type ExecutionInfo, type Executions, mainExecId } from './sandbox.ts';

const memoryLogBytesMax = 1024 * 1024;
const fileLogBytesMax = 64 * 1024 * 1024;
/** Ended commands are forgotten, oldest first, beyond this many in one sandbox. */
const endedMax = 1_000;

export interface ExecutionsOptions {
  /** Host folder for the output of background commands of this sandbox. */
  folder: string;
  /** The way inside; throws when there is none at the moment. */
  guest: () => Guest;
  /** What the image and the sandbox's creator set for every command. */
  defaults: () => ImageDefaults;
  /** Where background commands are remembered. */
  save: (record: ExecutionRecord) => void;
  forget: (execId: string) => void;
}

type StartSpec = Parameters<Executions['start']>[0];

/** One command and its output. Made by SandboxExecutions only. */
class KeptExecution implements Execution {
  readonly exit: Promise<ExecExit>;
  readonly log: OutputLog;
  readonly #info: Omit<ExecutionInfo, 'start' | 'end'>;
  readonly #guest: () => Guest;
  #process: GuestProcess | undefined;
  readonly #exited = Promise.withResolvers<ExecExit>();

  constructor(info: Omit<ExecutionInfo, 'start' | 'end'>, log: OutputLog, guest: () => Guest) {
    this.#info = info;
    this.log = log;
    this.#guest = guest;
    this.exit = this.#exited.promise;
  }

  get info(): ExecutionInfo {
    return { ...this.#info, start: this.log.start, end: this.log.end };
  }

  /** Takes the command's output into the log until it ends; called again with a new connection after a restart. */
  follow(process: GuestProcess): void {
    this.#process = process;
    this.#info.pid = process.pid;
    this.#info.startedAt = process.startedAt;
    void this.#pump(process);
  }

  async #pump(process: GuestProcess): Promise<void> {
    try {
      for await (const piece of process.output) await this.log.append(piece);
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
    try {
      await this.log.finish();
    } finally {
      this.#exited.resolve(exit);
    }
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

  async signal(name: string, options: { tree?: boolean; graceMs?: number } = {}): Promise<void> {
    if (this.#info.exit !== undefined)
      throw new Failure('conflict', `signal ${name}: command ${this.#info.id} has ended`);
    const { tree = false, graceMs } = options;
    await this.#guest().signal(this.#info.id, name, graceMs === undefined ? { tree } : { tree, graceMs });
  }
}

export class SandboxExecutions implements Executions {
  readonly #options: ExecutionsOptions;
  readonly #kept = new Map<string, KeptExecution>();

  constructor(options: ExecutionsOptions) {
    this.#options = options;
  }

  async start(spec: StartSpec, signal?: AbortSignal): Promise<Execution> {
    const execId = spec.execId ?? randomBytes(16).toString('hex');
    if (!/^[A-Za-z0-9_-]{1,64}$/.test(execId))
      throw new Failure('invalid', `command id ${JSON.stringify(execId)}: use letters, digits, - and _`);
    const { background = false, ...rest } = spec;
    const defaults = this.#options.defaults();
    const request: ExecSpec = {
      ...rest,
      execId,
      env: { ...defaults.env, ...spec.env },
      ...(spec.cwd === undefined && defaults.cwd ? { cwd: defaults.cwd } : {}),
      ...(spec.user === undefined && defaults.user ? { user: defaults.user } : {}),
    };
    const process = await this.#options.guest().exec(request, signal);
    const info = {
      id: execId,
      command: spec.argv ?? [spec.shell ?? ''],
      pid: process.pid,
      startedAt: process.startedAt,
      background,
      tty: spec.pty !== undefined,
    };
    const execution = new KeptExecution(info, await this.#log(execId, background), this.#options.guest);
    this.#keep(execution);
    if (background) this.#options.save(recordOf(execution.info));
    execution.follow(process);
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
    }
  }

  async #adoptOne(
    execId: string,
    record: ExecutionRecord | undefined,
    summary: ExecSummary | undefined,
    guest: Guest,
    signal: AbortSignal,
  ): Promise<void> {
    const background = record !== undefined;
    const log = background
      ? await this.#log(execId, true)
      : new MemoryOutputLog({ bytesMax: memoryLogBytesMax, from: summary?.start ?? 0 });
    const info = {
      id: execId,
      command: record?.command ?? [],
      pid: summary?.pid ?? 0,
      startedAt: record?.startedAt ?? new Date(summary?.startedAt ?? 0),
      background,
      tty: record?.tty ?? false,
    };
    const execution = new KeptExecution(info, log, this.#options.guest);
    this.#keep(execution);
    if (summary === undefined) await execution.settle({ code: null, signal: null, reason: 'unknown' });
    else execution.follow(await guest.attach(execId, log.end, signal));
  }

  /** The sandbox is over: whatever had not ended has an unknown end, and nothing is kept. */
  async dispose(): Promise<void> {
    for (const execution of this.#kept.values())
      await execution.settle({ code: null, signal: null, reason: 'unknown' });
    this.#kept.clear();
    await rm(this.#options.folder, { recursive: true, force: true });
  }

  async #log(execId: string, background: boolean): Promise<OutputLog> {
    return background
      ? FileOutputLog.open(join(this.#options.folder, execId), { bytesMax: fileLogBytesMax })
      : new MemoryOutputLog({ bytesMax: memoryLogBytesMax });
  }

  #keep(execution: KeptExecution): void {
    this.#kept.set(execution.info.id, execution);
    const ended = [...this.#kept.values()].filter(
      (it) => it.info.exit !== undefined && it.info.id !== mainExecId,
    );
    for (const old of ended.slice(0, Math.max(0, ended.length - endedMax))) {
      this.#kept.delete(old.info.id);
      this.#options.forget(old.info.id);
      void old.log.dispose();
    }
  }
}

function recordOf(info: ExecutionInfo): ExecutionRecord {
  return { execId: info.id, command: info.command, startedAt: info.startedAt, tty: info.tty };
}
