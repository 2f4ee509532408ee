// A sandbox as its user sees it: commands, files, ports, its way out, and its life. Over OpenSandbox's lifecycle API and our process routes.
import { type CreateOptions, type ListOptions, SandboxClient } from './client.ts';
import type { Connection, ConnectionOptions, RequestOptions } from './connection.ts';
import { CommandError, errorOf, SandboxError, throwIfAborted } from './errors.ts';
import { Files } from './files.ts';
import { Hold } from './hold.ts';
import { SandboxNetwork } from './network.ts';
import { Ports } from './ports.ts';
import { cleanupDeadlineMs, Process, type StartOptions, unlessAborted } from './process.ts';
import { Published } from './published.ts';
import { collect, type RunOptions, type RunResult } from './run.ts';
import { line } from './shell.ts';
import { type CreateSnapshotOptions, type SnapshotInfo, Snapshots } from './snapshots.ts';
import { type Duration, milliseconds } from './units.ts';
import {
  expectFields,
  expectItems,
  nameLabel,
  type ProcessInfo,
  processInfoOf,
  type SandboxInfo,
  type SandboxMetrics,
  sandboxInfoOf,
  sandboxMetricsOf,
  type TemplateInfo,
  templateInfoOf,
} from './wire.ts';
import { Workspaces } from './workspaces.ts';

interface Aborting {
  signal?: AbortSignal;
}

/** One line for the sandbox's shell, or an argument vector that no shell sees. */
export type Command = string | readonly string[];

export interface ForkOptions extends Aborting {
  /** From 1 (the default) to 16. */
  count?: number;
  /** How long each lives, at least a minute. Default: null, until it is removed. */
  timeout?: Duration | null;
  /** Of several, `-1`, `-2`, … is put behind it. */
  name?: string;
  metadata?: Record<string, string>;
}

export interface SandboxOrigin {
  connection: Connection;
  id: string;
  /** Whether disposing of this handle removes the sandbox. */
  owned: boolean;
}

/**
 * A handle on one sandbox. `await using` removes it at the end of the block if the handle came from `create()`; one from
 * `connect()` only lets go of it.
 */
export class Sandbox {
  readonly id: string;
  readonly files: Files;
  readonly ports: Ports;
  readonly published: Published;
  readonly network: SandboxNetwork;
  readonly workspaces: Workspaces;
  readonly #connection: Connection;
  readonly #owned: boolean;
  readonly #path: string;
  readonly #base: string;
  #removed = false;

  /** As SandboxClient.create(), on the server that the options or the environment name. */
  static async create(options: CreateOptions & ConnectionOptions = {}): Promise<Sandbox> {
    return await new SandboxClient(connectionOf(options)).create(options);
  }

  /** As SandboxClient.connect(). */
  static async connect(reference: string, options: ConnectionOptions = {}): Promise<Sandbox> {
    return await new SandboxClient(connectionOf(options)).connect(reference, abortingOf(options));
  }

  /** As SandboxClient.list(). */
  static async list(options: ListOptions & ConnectionOptions = {}): Promise<SandboxInfo[]> {
    return await new SandboxClient(connectionOf(options)).list(options);
  }

  /** @internal Made by SandboxClient. */
  constructor({ connection, id, owned }: SandboxOrigin) {
    this.#connection = connection;
    this.id = id;
    this.#owned = owned;
    this.#path = `/v1/sandboxes/${encodeURIComponent(id)}`;
    this.#base = `${this.#path}/proxy/44772`;
    this.files = new Files(connection, this.#base, id);
    this.ports = new Ports(connection, id);
    this.published = new Published(connection, id);
    this.network = new SandboxNetwork(connection, id);
    this.workspaces = new Workspaces(connection, id);
  }

  /**
   * Runs a command to its end and resolves with what it wrote, whatever its exit code (see `check`). Aborting kills it. Throws
   * CommandNotFoundError when an argument vector cannot be started, SandboxLostError when the sandbox went away.
   */
  async run(command: Command, options: RunOptions = {}): Promise<RunResult> {
    const began = performance.now();
    const { stdin, check, outputBytesMax, ...rest } = options;
    const process = await this.start(command, { ...rest, stdin: stdin !== undefined });
    const shown = shownAs(command);
    const signal = this.#connection.joined(options.signal);
    const result = await collect(process, `run ${shown}`, { ...options, ...(signal ? { signal } : {}) });
    const complete: RunResult = { ...result, durationMs: performance.now() - began };
    if (check && complete.exitCode !== 0) throw new CommandError(shown, complete, { sandboxId: this.id });
    return complete;
  }

  /** A shell line whose values are quoted, run with `check`: await sandbox.$`git commit -m ${message}`. An array becomes several words. */
  async $(strings: TemplateStringsArray, ...values: unknown[]): Promise<RunResult> {
    return await this.run(line(strings, values), { check: true });
  }

  /** Starts a command and resolves when it runs. Disposing of the process ends it. */
  async start(command: Command, options: StartOptions = {}): Promise<Process> {
    const { id, cwd, env, user, stdin, tty, timeout, limits, background, signal } = options;
    const doing = `run ${JSON.stringify((typeof command === 'string' ? command : (command[0] ?? '')).slice(0, 100))}`;
    throwIfAborted(signal, doing);
    const json = {
      ...(typeof command === 'string' ? { shell: command } : { argv: command }),
      ...{ id, cwd, env, user, stdin, tty, limits, background },
      ...(timeout === undefined ? {} : { timeoutMs: milliseconds(timeout, 'timeout') }),
    };
    // The request itself is not aborted: its command could be running then, and nobody would know its id.
    const started = this.#connection
      .json('POST', `${this.#base}/processes`, {
        doing,
        json,
        sandboxId: this.id,
        inside: true,
        cleanup: true,
      })
      .then((answer) => this.#process(processInfoOf(answer, doing), { from: 0, owned: true }));
    try {
      return await unlessAborted(started, this.#connection.joined(signal), doing);
    } catch (error) {
      if (error instanceof SandboxError && (error.code === 'aborted' || error.code === 'timeout')) {
        started.then(
          (process) => process[Symbol.asyncDispose]().catch(() => {}),
          () => {},
        );
      }
      throw error;
    }
  }

  /** A command that runs already, from `from` on: an offset, `start` (all that is held, the default) or `end`. */
  async attach(id: string, options: Aborting & { from?: number | 'start' | 'end' } = {}): Promise<Process> {
    const doing = `attach to process ${id}`;
    const path = `${this.#base}/processes/${encodeURIComponent(id)}`;
    const info = processInfoOf(await this.#connection.json('GET', path, this.#within(doing, options)), doing);
    const { from = 'start' } = options;
    if (typeof from === 'number' && (!Number.isInteger(from) || from < 0)) {
      throw errorOf('invalid', `${doing}: ${from} is not an offset`, {
        hint: "Pass a whole number, 'start' or 'end'.",
      });
    }
    const offset = from === 'start' ? info.start : from === 'end' ? info.end : from;
    return this.#process(info, { from: offset, owned: false });
  }

  /** The commands of this sandbox, ended ones included. Its main process has the id `main`. */
  async processes(options: Aborting = {}): Promise<ProcessInfo[]> {
    const doing = `list the processes of ${this.id}`;
    const answer = await this.#connection.json(
      'GET',
      `${this.#base}/processes`,
      this.#within(doing, options),
    );
    const { items } = expectFields<{ items: unknown }>(answer, { items: 'array' }, doing);
    return expectItems(items, {}, doing).map((item) => processInfoOf(item, doing));
  }

  async info(options: Aborting = {}): Promise<SandboxInfo> {
    const doing = `look up sandbox ${this.id}`;
    return sandboxInfoOf(await this.#connection.json('GET', this.#path, this.#asking(doing, options)), doing);
  }

  /** What it uses at this moment; measuring takes a tenth of a second. Throws ConflictError for one that does not run; none is started for it. */
  async metrics(options: Aborting = {}): Promise<SandboxMetrics> {
    const doing = `measure ${this.id}`;
    const answer = await this.#connection.json('GET', `${this.#base}/metrics`, this.#asking(doing, options));
    return sandboxMetricsOf(answer, doing);
  }

  /** Freezes everything inside. Throws UnsupportedError where the runtime cannot. */
  async pause(options: Aborting = {}): Promise<void> {
    await this.#connection.send('POST', `${this.#path}/pause`, this.#asking(`pause ${this.id}`, options));
  }

  async resume(options: Aborting = {}): Promise<void> {
    await this.#connection.send('POST', `${this.#path}/resume`, this.#asking(`resume ${this.id}`, options));
  }

  /**
   * Starts it when it is stopped, with what it had written and its start steps run again; lets a paused one go on; leaves a running one as it
   * is. Throws ConflictError for one that has ended and was not kept.
   */
  async wake(options: Aborting = {}): Promise<SandboxInfo> {
    const doing = `start ${this.id}`;
    return sandboxInfoOf(
      await this.#connection.json('POST', `${this.#path}/start`, this.#asking(doing, options)),
      doing,
    );
  }

  /** Ends what runs inside; what it wrote stays for `wake()`. Throws ConflictError for one that is not kept. */
  async stop(options: Aborting = {}): Promise<SandboxInfo> {
    const doing = `stop ${this.id}`;
    return sandboxInfoOf(
      await this.#connection.json('POST', `${this.#path}/stop`, this.#asking(doing, options)),
      doing,
    );
  }

  /** Makes a template of its disk, without its workspaces. Throws UnsupportedError where the runtime cannot. */
  async save(name: string, options: Aborting = {}): Promise<TemplateInfo> {
    const doing = `save ${this.id} as '${name}'`;
    const answer = await this.#connection.json('POST', `${this.#path}/save`, {
      ...{ ...this.#asking(doing, options), json: { name } },
    });
    return templateInfoOf(answer, doing);
  }

  /** As SandboxClient.snapshots.create(), of this one. */
  async snapshot(options: CreateSnapshotOptions = {}): Promise<SnapshotInfo> {
    return await new Snapshots(this.#connection).create(this.id, options);
  }

  /**
   * Sandboxes like this one, with what is on its disk now, the same limits, variables, main process and rules; not with its folders and ports of the host, its
   * metadata and its expiry. All of them run when it resolves, and disposing of each removes it; on failure there is none.
   */
  async fork(options: ForkOptions = {}): Promise<Sandbox[]> {
    const { count, timeout = null, name, metadata } = options;
    const doing = `fork ${this.id}`;
    const seconds = timeout === null ? undefined : Math.ceil(milliseconds(timeout, 'timeout') / 1000);
    const answer = await this.#connection.json('POST', `${this.#path}/fork`, {
      ...this.#asking(doing, options),
      json: {
        ...{ count, timeout: seconds },
        metadata: { ...metadata, ...(name === undefined ? {} : { [nameLabel]: name }) },
      },
    });
    const { items } = expectFields<{ items: unknown }>(answer, { items: 'array' }, doing);
    return expectItems(items, {}, doing).map(
      (item) => new Sandbox({ connection: this.#connection, id: sandboxInfoOf(item, doing).id, owned: true }),
    );
  }

  /** As long as the hold is not released, the sandbox does not stop by itself. It outlives a restart of the server. */
  async hold(options: Aborting = {}): Promise<Hold> {
    return await Hold.take(this.#connection, this.id, options.signal);
  }

  /** Lets it live for this long from now. Resolves with when it will be removed. Throws ConflictError for one that never expires. */
  async renew(duration: Duration, options: Aborting = {}): Promise<Date> {
    const doing = `renew ${this.id}`;
    const expiresAt = new Date(Date.now() + milliseconds(duration, 'duration')).toISOString();
    const answer = await this.#connection.json('POST', `${this.#path}/renew-expiration`, {
      ...{ ...this.#asking(doing, options), json: { expiresAt } },
    });
    return new Date(expectFields<{ expiresAt: string }>(answer, { expiresAt: 'date' }, doing).expiresAt);
  }

  /** Merges into the metadata; null deletes a key. */
  async setMetadata(patch: Record<string, string | null>, options: Aborting = {}): Promise<SandboxInfo> {
    const doing = `change the metadata of ${this.id}`;
    const answer = await this.#connection.json('PATCH', `${this.#path}/metadata`, {
      ...{ ...this.#asking(doing, options), json: patch },
    });
    return sandboxInfoOf(answer, doing);
  }

  /** Removes it and everything in it. Resolves when nothing is left. One that is gone already is no error. */
  async kill(options: Aborting = {}): Promise<void> {
    await this.#remove(this.#asking(`remove ${this.id}`, options));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#owned || this.#removed) return;
    const signal = AbortSignal.timeout(cleanupDeadlineMs);
    await this.#remove({ ...this.#asking(`remove ${this.id}`, { signal }), cleanup: true });
  }

  async #remove(asked: RequestOptions): Promise<void> {
    await this.#connection.send('DELETE', this.#path, asked).catch((error: unknown) => {
      if (!(error instanceof SandboxError && error.code === 'not-found')) throw error;
    });
    this.#removed = true;
  }

  #process(info: ProcessInfo, options: { from: number; owned: boolean }): Process {
    return new Process({ connection: this.#connection, sandboxId: this.id, base: this.#base }, info, options);
  }

  #asking(doing: string, options: Aborting): RequestOptions {
    return { doing, sandboxId: this.id, signal: options.signal };
  }

  #within(doing: string, options: Aborting): RequestOptions {
    return { ...this.#asking(doing, options), inside: true };
  }
}

/** The signal of a call such as create() is for that call, not for all that the sandbox does later. */
function connectionOf({ signal: _, ...options }: ConnectionOptions): ConnectionOptions {
  return options;
}

function abortingOf({ signal }: Aborting): Aborting {
  return signal ? { signal } : {};
}

/** For messages: short, and on one line. */
function shownAs(command: Command): string {
  const text = (typeof command === 'string' ? command : command.join(' ')).replace(/\s+/g, ' ');
  return `'${text.length > 60 ? `${text.slice(0, 60)}…` : text}'`;
}
