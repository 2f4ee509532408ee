// What can be done on the machine of a SandD daemon, over one connection of it: commands, one after the other; terminals; files, whole and checked, since what the
// daemon says of an upload means nothing. The rest it cannot do, and that is said.
import { createHash, randomUUID } from 'node:crypto';
import { Readable } from 'node:stream';
import type { Clock } from '../../channel/clock.ts';
import { type ExecExit, type ExecSummary, FileEntry } from '../../contract/guest.ts';
import type { ExecSpec, Guest, GuestFiles, GuestMetrics, GuestProcess, Output } from '../../guest/guest.ts';
import { Failure } from '../../lib/failure.ts';
import type { SanddConnection } from './connection.ts';
import { digestLine, firstByteLine, limitedLine, lineOf, quoted, statLine, timeoutCodes } from './script.ts';
import { SanddSession } from './session.ts';
import { pieceBytes, type SanddMessage } from './wire.ts';

/** Of one file, either way: it is held whole. */
export const fileBytesMax = 64 * 1024 * 1024;
/** A command line is one argument of a program, and the kernel takes no longer ones. */
const lineBytesMax = 128 * 1024 - 1;
const sessionsMax = 64;
/** What a command without a limit of its own gets, for the daemon wants one. */
const longestMs = 86_400_000;
const graceMs = 5_000;
/** Between the end of a command's time and the last moment at which the daemon may still answer: its own limit is in the middle. */
const slackMs = 20_000;
/** For what the daemon does at once, or between two pieces of a file. */
const answerWithinMs = 60_000;
const askWithinMs = 30_000;

type Answer =
  | { type: 'output'; stdout: string; stderr: string; code: number; durationMs: number }
  | { type: 'refused'; message: string }
  | { type: 'silent' }
  | { type: 'lost'; why: string };

/** All of a file comes at once, so that it cannot change under a reader. */
interface Reading {
  offset?: number;
  length?: number;
  digest?: boolean;
  steady?: boolean;
  ifVersion?: string;
}

interface Line {
  line: string;
  env: Record<string, string>;
  cwd: string | undefined;
  /** Ended after it, with all that it started, where the machine can. */
  timeoutMs: number | undefined;
  graceMs: number;
}

export interface SanddGuestOptions {
  daemonId: string;
  connection: SanddConnection;
  clock: Clock;
  /** A file was taken and was there afterwards: this daemon can. */
  onFilesProven: () => void;
}

export class SanddGuest implements Guest {
  readonly #options: SanddGuestOptions;
  readonly #sessions = new Map<string, SanddSession>();
  readonly #running = new Map<string, ExecSummary>();
  readonly #who: string;

  constructor(options: SanddGuestOptions) {
    this.#options = options;
    this.#who = `SandD daemon ${options.daemonId}`;
  }

  async exec(spec: ExecSpec, signal?: AbortSignal): Promise<GuestProcess> {
    const doing = `start a command on ${this.#who}`;
    if (spec.user !== undefined) throw this.#cannot('run commands as another user');
    if (spec.limits !== undefined && Object.keys(spec.limits).length > 0)
      throw this.#cannot('hold a command to limits');
    if (spec.direct) throw this.#cannot('hand over the output of a command directly');
    if (this.#running.has(spec.execId) || this.#sessions.has(spec.execId))
      throw new Failure('conflict', `${doing}: command ${spec.execId} runs already`);
    if (spec.pty !== undefined) return await this.#terminal(spec, doing, signal);
    if (spec.stdin === 'pipe') throw this.#cannot('give a command input', 'Start it without stdin.');
    const startedAt = new Date();
    const summary = { execId: spec.execId, pid: 0, start: 0, end: 0, startedAt: startedAt.getTime() };
    this.#running.set(spec.execId, summary);
    try {
      const { answer } = await this.#start(
        {
          ...{ line: lineOf(spec), env: spec.env, cwd: this.#folder(spec.cwd) },
          ...{ timeoutMs: spec.timeoutMs, graceMs: spec.graceMs ?? graceMs },
        },
        doing,
        signal,
      );
      void answer.then(() => this.#running.delete(spec.execId));
      return commandProcess(spec, startedAt, answer, (what) => this.#cannot(what));
    } catch (error) {
      this.#running.delete(spec.execId);
      throw error;
    }
  }

  within(): GuestFiles {
    throw this.#cannot('wall off sessions');
  }

  async execs(): Promise<ExecSummary[]> {
    return [...this.#running.values(), ...[...this.#sessions.values()].map((it) => it.summary)];
  }

  async signal(execId: string, name: string): Promise<void> {
    const session = this.#sessions.get(execId);
    if (session === undefined && !this.#running.has(execId))
      throw new Failure('not-found', `there is no command ${JSON.stringify(execId)} on ${this.#who}`);
    if (session?.send(name) !== true)
      throw this.#cannot(
        `send ${name} to a command`,
        'Give commands a time limit. Terminals take SIGINT, SIGQUIT, SIGTSTP, and SIGHUP, SIGTERM and SIGKILL as their end.',
      );
  }

  /** There is no agent of ours that could get anything ready. */
  async rehearse(): Promise<void> {}

  async ping(): Promise<void> {
    const { over } = this.#options.connection;
    if (over !== undefined) throw new Failure('lost', `${this.#who} is gone: ${over}`);
  }

  // ---- files

  async stat(
    path: string,
    { follow = true }: { follow?: boolean } = {},
    signal?: AbortSignal,
  ): Promise<FileEntry> {
    const doing = `look at ${path} on ${this.#who}`;
    const { code, stdout } = await this.#run(statLine(absolute(path, doing), follow), doing, signal);
    if (code === 3) throw new Failure('not-found', `${doing}: there is no such file`);
    const entry = entryOf(path, stdout);
    if (code !== 0 || entry === undefined)
      throw new Failure('unsupported', `${doing}: that machine has no program that could tell`);
    return entry;
  }

  async read(
    path: string,
    { offset = 0, length, digest = false, ifVersion }: Reading = {},
    signal?: AbortSignal,
  ): Promise<{ entry: FileEntry; bytes: Readable; version: string; sha256?: string }> {
    const doing = `read ${path} from ${this.#who}`;
    const entry = await this.stat(path, {}, signal);
    // Other kinds could keep the daemon busy for ever.
    if (entry.kind !== 'file') throw new Failure('invalid', `${doing}: it is no file but a ${entry.kind}`);
    if (entry.size > fileBytesMax) throw tooLarge(doing, entry.size);
    // Of an empty file the daemon sends nothing at all.
    const empty =
      entry.size === 0 && (await this.#run(firstByteLine(path), doing, signal)).stdout.trim() === '0';
    const whole = empty ? Buffer.alloc(0) : await this.#download(path, doing, signal);
    const sha256 = sha256Of(whole);
    if (ifVersion !== undefined && ifVersion !== sha256)
      throw new Failure('conflict', `${doing}: it has changed meanwhile`);
    const bytes = whole.subarray(offset, length === undefined ? undefined : offset + length);
    return {
      ...{ entry: { ...entry, size: whole.length }, version: sha256, ...(digest ? { sha256 } : {}) },
      bytes: Readable.from([bytes], { objectMode: false }),
    };
  }

  /** Not atomic: what becomes of the old file when it fails is up to the daemon. */
  async write(
    path: string,
    source: AsyncIterable<Uint8Array>,
    {
      mode,
      owner,
      group,
      sha256,
      append = false,
    }: { mode?: number; owner?: string; group?: string; sha256?: string; append?: boolean } = {},
    signal?: AbortSignal,
  ): Promise<number> {
    const doing = `write ${path} on ${this.#who}`;
    absolute(path, doing);
    if (append) throw this.#cannot('append to files');
    if (owner !== undefined || group !== undefined) throw this.#cannot('give files to other users');
    const whole = await gathered(source, doing);
    const wanted = sha256Of(whole);
    if (sha256 !== undefined && sha256 !== wanted)
      throw new Failure('invalid', `${doing}: what came has the SHA-256 ${wanted}`, {
        details: { guest: 'digest-mismatch' },
      });
    const refused = await this.#upload(path, whole, mode, doing, signal);
    if (refused !== undefined) throw new Failure('io', `${doing}: ${refused}`);
    // It says so of every upload, so only what is there counts.
    const { code, stdout } = await this.#run(digestLine(path), doing, signal);
    const found = /^([0-9a-f]{64})\b/.exec(stdout)?.[1];
    if (code === 0 && found === wanted) {
      this.#options.onFilesProven();
      return whole.length;
    }
    if (code === 4)
      throw new Failure('unknown', `${doing}: that machine has no program to check the file with`);
    throw new Failure(
      'io',
      code === 3
        ? `${doing}: the daemon has taken the file and not written it`
        : `${doing}: what is there is not what was sent`,
      {
        hint: 'Daemons of SandD known so far write no files. Use a worker of Glovebox, or a command that fetches the file.',
      },
    );
  }

  async #upload(
    path: string,
    whole: Buffer,
    mode: number | undefined,
    doing: string,
    signal: AbortSignal | undefined,
  ): Promise<string | undefined> {
    const { connection } = this.#options;
    const end = await this.#turn(doing, signal);
    const id = randomUUID();
    let refused: string | undefined;
    const unlisten = connection.listen(id, (message) => {
      if (message.type === 'file_upload_complete' && !message.success)
        refused = (message.error ?? 'the daemon does not say why').slice(0, 1_000);
    });
    try {
      connection.say({
        ...{ type: 'file_upload_start', request_id: id, path },
        ...{ total_size: whole.length, mode: mode ?? null },
      });
      for (let at = 0; at < whole.length; at += pieceBytes) {
        const data = whole.subarray(at, at + pieceBytes).toString('base64');
        await this.#within(
          connection.sayInTurn({ type: 'file_upload_chunk', request_id: id, data, offset: at }),
          doing,
        );
        if (signal?.aborted) throw Failure.from(signal.reason, doing);
        if (refused !== undefined) break;
      }
      if (connection.over !== undefined) throw new Failure('unknown', `${doing}: ${connection.over}`);
      return refused;
    } finally {
      unlisten();
      end();
    }
  }

  async #download(path: string, doing: string, signal: AbortSignal | undefined): Promise<Buffer> {
    const { connection, clock } = this.#options;
    const end = await this.#turn(doing, signal);
    const id = randomUUID();
    const pieces: Buffer[] = [];
    let bytes = 0;
    const done = Promise.withResolvers<void>();
    const silent = () => {
      done.reject(new Failure('timeout', `${doing}: the rest of it has not come`));
      connection.drop('the daemon has stopped in the middle of a file');
    };
    let cancel = clock.setTimer(answerWithinMs, silent);
    const unlisten = connection.listen(id, (message) => {
      cancel();
      if (message.type === 'file_download_error')
        return done.reject(new Failure('io', `${doing}: ${message.error.slice(0, 1_000)}`));
      if (message.type !== 'file_download_chunk') return done.reject(outOfPlace(doing, message));
      if (message.offset !== bytes)
        return done.reject(
          new Failure('io', `${doing}: a piece for ${message.offset} came where ${bytes} was next`),
        );
      bytes += message.data.length;
      if (bytes > fileBytesMax) return done.reject(tooLarge(doing, bytes));
      pieces.push(message.data);
      if (message.is_last) return done.resolve();
      cancel = clock.setTimer(answerWithinMs, silent);
    });
    const unend = connection.onEnd((why) => done.reject(new Failure('lost', `${doing}: ${why}`)));
    const abort = () => done.reject(Failure.from(signal?.reason, doing));
    signal?.addEventListener('abort', abort, { once: true });
    connection.say({ type: 'file_download_start', request_id: id, path });
    try {
      await done.promise;
      return Buffer.concat(pieces);
    } finally {
      signal?.removeEventListener('abort', abort);
      cancel();
      unlisten();
      unend();
      end();
    }
  }

  // ---- commands

  /** A command of ours that says something in a moment. */
  async #run(
    line: string,
    doing: string,
    signal: AbortSignal | undefined,
  ): Promise<{ code: number; stdout: string }> {
    const asked = { line, env: {}, cwd: undefined, timeoutMs: askWithinMs, graceMs };
    const answer = await (await this.#start(asked, doing, signal)).answer;
    switch (answer.type) {
      case 'output':
        return answer;
      case 'refused':
        throw new Failure('io', `${doing}: ${answer.message.slice(0, 1_000)}`);
      case 'silent':
        throw new Failure('timeout', `${doing}: the daemon has not answered`);
      case 'lost':
        throw new Failure('lost', `${doing}: ${answer.why}`);
      default:
        return answer satisfies never;
    }
  }

  /** Resolves when the command was sent, with its answer to come. The answer never rejects. */
  async #start(
    { line, env, cwd, timeoutMs, graceMs: grace }: Line,
    doing: string,
    signal: AbortSignal | undefined,
  ): Promise<{ answer: Promise<Answer> }> {
    const { connection, clock } = this.#options;
    const command = timeoutMs === undefined ? line : limitedLine(line, { timeoutMs, graceMs: grace });
    const bytes = Buffer.byteLength(command);
    if (bytes > lineBytesMax)
      throw new Failure(
        'invalid',
        `${doing}: as a shell line it has ${bytes} bytes; the most is ${lineBytesMax}`,
      );
    if (command.includes('\0')) throw new Failure('invalid', `${doing}: a command cannot hold a NUL`);
    const end = await this.#turn(doing, signal);
    const limitMs = (timeoutMs ?? longestMs) + grace;
    const id = randomUUID();
    const done = Promise.withResolvers<Answer>();
    const cancel = clock.setTimer(limitMs + slackMs, () => {
      done.resolve({ type: 'silent' });
      // It is still busy, or gone, and would keep everybody else waiting.
      connection.drop('the daemon has not answered a command in time');
    });
    const unlisten = connection.listen(id, (message) => {
      if (message.type === 'command_output') {
        const { stdout, stderr, exit_code: code, duration_ms: durationMs } = message;
        done.resolve({ type: 'output', stdout, stderr, code, durationMs });
      } else if (message.type === 'command_error') done.resolve({ type: 'refused', message: message.error });
    });
    const unend = connection.onEnd((why) => done.resolve({ type: 'lost', why }));
    void done.promise.then(() => {
      cancel();
      unlisten();
      unend();
      end();
    });
    connection.say({
      ...{ type: 'execute_command', request_id: id, command, env, cwd: cwd ?? null },
      timeout_secs: Math.ceil((limitMs + slackMs / 2) / 1000),
    });
    return { answer: done.promise };
  }

  async #terminal(spec: ExecSpec, doing: string, signal: AbortSignal | undefined): Promise<GuestProcess> {
    const { connection, clock } = this.#options;
    if (this.#sessions.size >= sessionsMax)
      throw new Failure('exhausted', `${doing}: ${sessionsMax} terminals are open there, which is the most`);
    const typed = typedFor(spec, this.#folder(spec.cwd), doing);
    const end = await this.#turn(doing, signal);
    const session = new SanddSession({
      spec,
      connection,
      clock,
      onOver: () => this.#sessions.delete(spec.execId),
    });
    this.#sessions.set(spec.execId, session);
    try {
      await this.#within(session.start(doing), doing);
    } catch (error) {
      session.abandon();
      throw error;
    } finally {
      end();
    }
    if (typed !== '') await session.write(Buffer.from(typed));
    return session;
  }

  /** Waits for the daemon to have nothing else to do. */
  async #turn(doing: string, signal: AbortSignal | undefined): Promise<() => void> {
    const { connection } = this.#options;
    const end = await connection.turns.take(doing, signal);
    if (connection.over !== undefined) {
      end();
      throw new Failure('lost', `${doing}: ${connection.over}`);
    }
    connection.busy = true;
    return () => {
      connection.busy = false;
      end();
    };
  }

  /** What the daemon does not do in time it does not do: the connection is dropped, for the next would only wait as well. */
  async #within<T>(work: Promise<T>, doing: string): Promise<T> {
    const { connection, clock } = this.#options;
    const late = Promise.withResolvers<never>();
    const cancel = clock.setTimer(answerWithinMs, () => {
      late.reject(new Failure('timeout', `${doing}: the daemon has not answered`));
      connection.drop('the daemon has not answered in time');
    });
    try {
      return await Promise.race([work, late.promise]);
    } finally {
      cancel();
    }
  }

  #folder(cwd: string | undefined): string | undefined {
    if (cwd === undefined || cwd.startsWith('/')) return cwd;
    if (cwd.startsWith('~')) throw this.#cannot('find home folders', 'Give cwd as an absolute path.');
    return `/${cwd}`;
  }

  #cannot(what: string, hint?: string): Failure {
    return new Failure('unsupported', `${this.#who} cannot ${what}: SandD's protocol has no way for it`, {
      hint: hint ?? 'Run a worker of Glovebox there.',
    });
  }

  // ---- what there is no way for

  attach(): Promise<GuestProcess> {
    return Promise.reject(this.#cannot('go on with a command of an earlier connection'));
  }
  upload(): Promise<never> {
    return Promise.reject(this.#cannot('take files in parts'));
  }
  uploadState(): Promise<never> {
    return Promise.reject(this.#cannot('take files in parts'));
  }
  dropUpload(): Promise<never> {
    return Promise.reject(this.#cannot('take files in parts'));
  }
  dial(): Promise<never> {
    return Promise.reject(this.#cannot('connect to ports'));
  }
  connect(): Promise<never> {
    return this.dial();
  }
  list(): Promise<FileEntry[]> {
    return Promise.reject(this.#cannot('list folders'));
  }
  search(): Promise<FileEntry[]> {
    return Promise.reject(this.#cannot('search for files'));
  }
  mkdir(): Promise<void> {
    return Promise.reject(this.#cannot('make folders'));
  }
  remove(): Promise<void> {
    return Promise.reject(this.#cannot('remove files'));
  }
  rename(): Promise<void> {
    return Promise.reject(this.#cannot('rename files'));
  }
  chmod(): Promise<void> {
    return Promise.reject(this.#cannot('change modes and owners'));
  }
  replace(): Promise<number> {
    return Promise.reject(this.#cannot('replace text in files'));
  }
  pack(): Promise<Readable> {
    return Promise.reject(this.#cannot('pack folders'));
  }
  unpack(): Promise<void> {
    return Promise.reject(this.#cannot('unpack archives'));
  }
  metrics(): Promise<GuestMetrics> {
    return Promise.reject(this.#cannot('measure itself'));
  }
  egress(): Promise<{ unavailable: number }> {
    return Promise.reject(this.#cannot('lead connections through a proxy of ours'));
  }
  whose(): Promise<{ pid: number; command: string }> {
    return Promise.reject(this.#cannot('tell whose a connection is'));
  }
}

/** A command that is a line to the daemon: all of its output comes with its end. */
function commandProcess(
  { execId, timeoutMs }: ExecSpec,
  startedAt: Date,
  answer: Promise<Answer>,
  cannot: (what: string) => Failure,
): GuestProcess {
  let detach = () => {};
  const detached = new Promise<undefined>((resolve) => {
    detach = () => resolve(undefined);
  });
  return {
    ...{ execId, pid: 0, startedAt, detach },
    output: piecesOf(Promise.race([answer, detached])),
    write: () => Promise.reject(cannot('give a command input')),
    end: () => {},
    resize: () => {},
    signal: () => {},
    exit: answer.then((it) => exitOf(it, timeoutMs)),
  };
}

async function* piecesOf(answer: Promise<Answer | undefined>): AsyncGenerator<Output> {
  const it = await answer;
  if (it?.type !== 'output' && it?.type !== 'refused') return;
  const { stdout = '', stderr } = it.type === 'output' ? it : { stderr: `${it.message.slice(0, 4_000)}\n` };
  const out = Buffer.from(stdout);
  if (out.length > 0) yield { type: 'output', lane: 'stdout', bytes: out, offset: 0 };
  const errors = Buffer.from(stderr);
  if (errors.length > 0) yield { type: 'output', lane: 'stderr', bytes: errors, offset: out.length };
}

const unknownExit: ExecExit = { code: null, signal: null, reason: 'unknown' };
const timeoutExit: ExecExit = { code: 124, signal: null, reason: 'timeout' };

function exitOf(answer: Answer, timeoutMs: number | undefined): ExecExit {
  if (answer.type === 'silent') return timeoutExit;
  // Whether it has run, and how far, is not said.
  if (answer.type !== 'output') return unknownExit;
  const { code, durationMs } = answer;
  if (timeoutMs !== undefined && durationMs >= timeoutMs && timeoutCodes.includes(code)) return timeoutExit;
  // -1 for those that a signal has ended, whichever.
  return code < 0 ? unknownExit : { code, signal: null, reason: 'exited' };
}

/** A session is the machine's shell; what it is to be instead is typed into it. */
function typedFor({ argv, shell, env }: ExecSpec, cwd: string | undefined, doing: string): string {
  const variables = Object.entries(env).filter(([name]) => name !== 'TERM');
  const bare = argv?.length === 1 && /^(.*\/)?(ba|da|a|z)?sh$/.test(argv[0] as string);
  if (bare && variables.length === 0 && cwd === undefined) return '';
  const command = argv === undefined ? `sh -c ${quoted(shell ?? '')}` : argv.map(quoted).join(' ');
  const set =
    variables.length === 0 ? '' : `env ${variables.map(([name, it]) => quoted(`${name}=${it}`)).join(' ')} `;
  const typed = ` ${cwd === undefined ? '' : `cd ${quoted(cwd)} && `}exec ${set}${command}\n`;
  if (/(?!\n)\p{Cc}/u.test(typed))
    throw new Failure('invalid', `${doing}: control characters cannot be typed into a terminal`);
  if (typed.length <= 4_000) return typed;
  throw new Failure('invalid', `${doing}: with its variables it is too long to be typed into a terminal`);
}

const sha256Of = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex');

function absolute(path: string, doing: string): string {
  if (path.startsWith('/') && !path.includes('\0')) return path;
  throw new Failure('invalid', `${doing}: the path must be absolute`);
}

const tooLarge = (doing: string, bytes: number): Failure =>
  new Failure('invalid', `${doing}: it has ${bytes} bytes or more; the most is ${fileBytesMax}`);

const outOfPlace = (doing: string, { type }: SanddMessage): Failure =>
  new Failure('protocol', `${doing}: ${type} is no answer to it`);

async function gathered(source: AsyncIterable<Uint8Array>, doing: string): Promise<Buffer> {
  const pieces: Uint8Array[] = [];
  let bytes = 0;
  for await (const piece of source) {
    bytes += piece.length;
    if (bytes > fileBytesMax) throw tooLarge(doing, bytes);
    pieces.push(piece);
  }
  return Buffer.concat(pieces);
}

function entryOf(path: string, line: string): FileEntry | undefined {
  const [kind = '', size, mode, owner, group, uid, gid, seconds] = line.trim().split('|');
  const kinds = { 'regular file': 'file', 'regular empty file': 'file', directory: 'directory' } as const;
  const modifiedAt = Number(seconds) * 1000;
  const entry = {
    path,
    kind:
      kinds[kind.toLowerCase() as keyof typeof kinds] ??
      (kind.toLowerCase() === 'symbolic link' ? 'symlink' : 'other'),
    ...{ size: Number(size), mode: Number.parseInt(mode ?? '', 8) & 0o7777, owner, group },
    ...{ uid: Number(uid), gid: Number(gid), modifiedAt, createdAt: modifiedAt },
  };
  const parsed = FileEntry.safeParse(entry);
  return parsed.success ? parsed.data : undefined;
}
