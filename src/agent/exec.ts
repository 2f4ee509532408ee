// Commands: started once, read by whoever is attached, outliving every connection, and killed with everything they started.
//
//   started ──process dead──▶ draining ──pipes empty, or 200 ms──▶ ended ──10 minutes──▶ forgotten
import type { ExecControl, ExecExit, ExecRequest, ExecSummary } from '../contract/guest.ts';
import { laneOf } from '../contract/guest-wire.ts';
import type { Call } from './call.ts';
import { explain, prepare } from './lookup.ts';
import { LogReader, OutputLog } from './output.ts';
import type { Child, DirectSocket, Platform, Source } from './platform/platform.ts';
import { Refusal } from './refusal.ts';
import { type Command, membersOf, signalGroup, signalProcess } from './tree.ts';

/** How long after its death a command's pipes may still bring something: children that it left behind hold them open. */
const drainMs = 200;
const graceMsDefault = 5_000;
const timerMsMax = 2_147_483_647;
const runningMax = 1_024;
/** Ended commands are kept so that nobody misses an end, or runs one twice. */
const receiptsMax = 16_384;
const receiptMs = 10 * 60_000;
/** Output held of all ended commands together; the oldest is given up first. */
const endedBytesMax = 16 * 1024 * 1024;
const idCharsMax = 128;
const restAfterMs = 2_000;
const lanes = { stdout: laneOf.data, stderr: laneOf.stderr };

export interface ExecsOptions {
  platform: Platform;
  own: { uid: number; gid: number };
  openDirect: (id: string) => DirectSocket;
}

export class Execs {
  readonly #options: ExecsOptions;
  /** In the order of their start. */
  readonly #execs = new Map<string, Exec>();
  /** In the order of their end. */
  readonly #ended = new Set<Exec>();
  #endedBytes = 0;
  #running = 0;
  #stopping = false;
  #expiry: ReturnType<typeof setTimeout> | undefined;
  #idle: ReturnType<typeof setTimeout> | undefined;

  constructor(options: ExecsOptions) {
    this.#options = options;
  }

  start(call: Call, request: ExecRequest): void {
    if (typeof request.execId !== 'string' || !/^[\w.:-]{1,128}$/.test(request.execId)) {
      throw new Refusal('invalid', `execId: 1 to ${idCharsMax} letters, digits and . : - _`);
    }
    const content = contentOf(request);
    const known = this.#execs.get(request.execId);
    if (known !== undefined) {
      if (known.content !== content) {
        throw new Refusal('conflict', `${request.execId} is the id of another command`);
      }
      known.attach(call, 0);
      return;
    }
    if (this.#stopping) throw new Refusal('conflict', 'the sandbox is stopping');
    if (this.#running >= runningMax) throw new Refusal('exhausted', `${runningMax} commands are running`);
    if (this.#execs.size >= receiptsMax) {
      throw new Refusal(
        'exhausted',
        `${receiptsMax} commands are still remembered; the oldest is forgotten after 10 minutes`,
      );
    }
    const exec = this.#spawn(request, content);
    this.#execs.set(exec.id, exec);
    this.#running++;
    exec.attach(call, 0);
  }

  attach(call: Call, request: { execId: string; from: number }): void {
    this.#find(request.execId).attach(call, request.from);
  }

  signal(request: { execId: string; signal: string; tree: boolean; graceMs?: number }): void {
    this.#find(request.execId).signal(request);
  }

  list(): ExecSummary[] {
    return [...this.#execs.values()].map((it) => it.summary());
  }

  /** Kills everything and starts nothing more. */
  async stop(): Promise<void> {
    this.#stopping = true;
    await killAll(() => [...this.#execs.values()], this.#options.platform);
  }

  #find(id: string): Exec {
    const exec = this.#execs.get(id);
    if (exec === undefined)
      throw new Refusal('not-found', `no command ${JSON.stringify(String(id).slice(0, idCharsMax))}`);
    return exec;
  }

  #spawn(request: ExecRequest, content: string): Exec {
    const { platform, own } = this.#options;
    if (request.pty && !platform.abilities.pty)
      throw new Refusal('unsupported', 'no terminals in this runtime');
    const { candidates, spec } = prepare(request, own);
    if (spec.user && !platform.abilities.users)
      throw new Refusal('unsupported', 'no other users in this runtime');
    const direct =
      request.directStdout === undefined || request.pty
        ? undefined
        : this.#options.openDirect(request.directStdout);
    try {
      const whole = { ...spec, ...(direct && { directStdout: direct }) };
      let why: unknown;
      for (const path of candidates) {
        try {
          const child = platform.spawn({ ...whole, path });
          return new Exec({ child, request, content, platform, onEnd: (exec) => this.#onEnd(exec) });
        } catch (thrown) {
          why ??= explain(thrown, path);
          // As the shells do: what cannot run does not hide what can, further along the PATH.
          if ((why as Refusal).code !== 'not-executable') break;
        }
      }
      throw why;
    } finally {
      direct?.close();
    }
  }

  #onEnd(exec: Exec): void {
    this.#running--;
    this.#ended.add(exec);
    this.#endedBytes += exec.heldBytes;
    for (const oldest of this.#ended) {
      if (this.#endedBytes <= endedBytesMax) break;
      const before = oldest.heldBytes;
      this.#endedBytes -= before - oldest.forgetOutput();
    }
    this.#scheduleExpiry();
    if (this.#running === 0) {
      this.#idle ??= setTimeout(() => this.#rest(), restAfterMs);
      this.#idle.unref?.();
    }
  }

  /** A sandbox that has done its work gives back what it took for it. */
  #rest(): void {
    this.#idle = undefined;
    if (this.#running === 0) this.#options.platform.relax();
  }

  #scheduleExpiry(): void {
    const [oldest] = this.#ended;
    if (oldest === undefined || this.#expiry !== undefined) return;
    this.#expiry = setTimeout(
      () => {
        this.#expiry = undefined;
        const now = performance.now();
        for (const exec of this.#ended) {
          if (exec.endedAt + receiptMs > now) break;
          this.#ended.delete(exec);
          this.#endedBytes -= exec.heldBytes;
          this.#execs.delete(exec.id);
        }
        this.#scheduleExpiry();
      },
      Math.max(1_000, oldest.endedAt + receiptMs - performance.now()),
    );
    this.#expiry.unref?.();
  }
}

/** What makes two requests the same command. Its hash alone is kept, for arguments may be large. */
function contentOf(request: ExecRequest): string {
  const { argv, shell, cwd, user, stdin, pty, timeoutMs, graceMs } = request;
  const env = Object.entries(request.env).sort(([a], [b]) => (a < b ? -1 : 1));
  const text = JSON.stringify([argv, shell, env, cwd, user, stdin, pty, timeoutMs, graceMs]);
  // Two sums with different factors; an accident is out of the question, and the daemon has no reason to deceive itself.
  let a = 0x811c9dc5;
  let b = 0x1505;
  for (let i = 0; i < text.length; i++) {
    const unit = text.charCodeAt(i);
    a = Math.imul(a ^ unit, 0x0100_0193);
    b = (Math.imul(b, 33) + unit) | 0;
  }
  return `${text.length}.${a >>> 0}.${b >>> 0}`;
}

class Exec {
  readonly id: string;
  readonly content: string;
  endedAt = 0;
  readonly #child: Child;
  readonly #platform: Platform;
  readonly #startedAt = Date.now();
  readonly #onEnd: (exec: Exec) => void;
  readonly #graceMs: number;
  readonly #log = new OutputLog();
  readonly #waitingForRoom: (() => void)[] = [];
  #openSources: number;
  #status: { code: number | null; signal: string | null } | undefined;
  #exit: ExecExit | undefined;
  #cause: 'timeout' | 'killed' | undefined;
  #timeout: ReturnType<typeof setTimeout> | undefined;
  #call: Call | undefined;
  #reader: LogReader | undefined;
  #stdin: Promise<void> = Promise.resolve();
  #killing: Promise<void> | undefined;
  #killNow: (() => void) | undefined;

  constructor(options: {
    child: Child;
    request: ExecRequest;
    content: string;
    platform: Platform;
    onEnd: (exec: Exec) => void;
  }) {
    const { child, request } = options;
    this.id = request.execId;
    this.content = options.content;
    this.#child = child;
    this.#platform = options.platform;
    this.#onEnd = options.onEnd;
    this.#graceMs = duration(request.graceMs) ?? graceMsDefault;
    this.#openSources = child.sources.length;
    this.#log.onRoom = () => {
      for (const go of this.#waitingForRoom.splice(0)) go();
    };
    for (const source of child.sources) void this.#pump(source);
    void child.exited.then((status) => this.#died(status));
    const timeoutMs = duration(request.timeoutMs);
    if (timeoutMs !== undefined) {
      this.#timeout = setTimeout(() => {
        this.#cause ??= 'timeout';
        void this.kill(this.#graceMs);
      }, timeoutMs);
    }
  }

  get heldBytes(): number {
    return this.#log.end - this.#log.start;
  }

  /** Gives up what has been read. Returns how many bytes are held then. */
  forgetOutput(): number {
    return this.#log.forget(0);
  }

  summary(): ExecSummary {
    return {
      execId: this.id,
      pid: this.#child.pid,
      start: this.#log.start,
      end: this.#log.end,
      startedAt: this.#startedAt,
      ...(this.#exit && { exit: this.#exit }),
    };
  }

  /** One reader at a time: the newest. */
  attach(call: Call, from: number): void {
    if (!Number.isSafeInteger(from) || from < 0 || from > this.#log.end) {
      throw new Refusal('invalid', `from ${from}: the output so far ends at ${this.#log.end}`);
    }
    this.#call?.fail(new Refusal('conflict', 'another reader of the same command has taken over'));
    const start = Math.max(from, this.#log.start);
    call.reply({ type: 'started', pid: this.#child.pid, startedAt: this.#startedAt, from });
    if (start > from) call.reply({ type: 'gap', from, to: start });
    this.#call = call;
    call.onControl = (control) => this.#control(control);
    call.onGone = () => {
      if (this.#call !== call) return;
      this.#call = undefined;
      this.#reader = undefined;
    };
    this.#reader = new LogReader(this.#log, {
      call,
      from: start,
      lanes,
      host: { finished: () => this.#tellExit(call) },
    });
    this.#stdin = this.#stdin.then(() => this.#feed(call));
    this.#reader.wake();
  }

  signal(request: { signal: string; tree: boolean; graceMs?: number }): void {
    const signal = signalName(request.signal);
    if (this.#exit !== undefined && !request.tree) return;
    if (request.tree && (signal === 'SIGTERM' || signal === 'SIGKILL')) {
      if (this.#status === undefined) this.#cause ??= 'killed';
      const graceMs = duration(request.graceMs);
      if (signal === 'SIGKILL' || graceMs !== undefined) {
        void this.kill(signal === 'SIGKILL' ? 0 : (graceMs ?? 0));
        return;
      }
    }
    if (request.tree) {
      signalAll([this], signal, this.#platform);
    } else {
      signalGroup(this.#child.foregroundGroup() ?? this.#child.pid, signal, this.#platform);
    }
  }

  /** SIGTERM to everything of the command, SIGKILL to what is left after `graceMs`; resolves when nothing is left. */
  kill(graceMs: number): Promise<void> {
    if (graceMs === 0) this.#killNow?.();
    this.#killing ??= this.#killTree(graceMs).finally(() => {
      this.#killing = undefined;
    });
    return this.#killing;
  }

  async #killTree(graceMs: number): Promise<void> {
    let now = graceMs === 0;
    this.#killNow = () => {
      now = true;
    };
    if (!now) {
      signalAll([this], 'SIGTERM', this.#platform);
      const deadline = performance.now() + graceMs;
      while (!now && performance.now() < deadline) {
        if (!alive([this], this.#platform)) return;
        await sleep(Math.min(killPollMs, deadline - performance.now()));
      }
    }
    await killAll(() => [this], this.#platform);
    this.#killNow = undefined;
  }

  get command(): Command {
    return { mark: this.id, pid: this.#child.pid, buried: this.#status !== undefined };
  }

  async #pump(source: Source): Promise<void> {
    try {
      for (;;) {
        if (this.#log.full && this.#exit === undefined) {
          await new Promise<void>((resolve) => this.#waitingForRoom.push(resolve));
          continue;
        }
        const bytes = await source.read();
        if (bytes === undefined) break;
        // Left-over children go on writing; closing their pipe would kill them.
        if (this.#exit !== undefined || bytes.length === 0) continue;
        this.#log.push(source.lane, bytes);
        this.#reader?.wake();
      }
    } catch {
      // A pipe that cannot be read has ended.
    } finally {
      source.close();
      this.#openSources--;
      this.#settle();
    }
  }

  #died(status: { code: number | null; signal: string | null }): void {
    this.#status = status;
    clearTimeout(this.#timeout);
    this.#settle();
    if (this.#exit === undefined) this.#drainLater();
  }

  // Only time in which we could read counts: bytes that wait for the reader are not lost.
  #drainLater(): void {
    setTimeout(() => {
      if (this.#exit !== undefined) return;
      if (this.#log.full) this.#waitingForRoom.push(() => this.#drainLater());
      else this.#finish();
    }, drainMs);
  }

  #settle(): void {
    if (this.#status !== undefined && this.#openSources === 0) this.#finish();
  }

  #finish(): void {
    if (this.#exit !== undefined || this.#status === undefined) return;
    const { code, signal } = this.#status;
    const reason = this.#cause ?? (signal !== null ? 'signaled' : code === null ? 'unknown' : 'exited');
    this.#exit = { code, signal, reason };
    this.endedAt = performance.now();
    this.#child.release();
    this.#log.onRoom();
    this.#reader?.wake();
    this.#onEnd(this);
  }

  #tellExit(call: Call): boolean {
    if (this.#exit === undefined) return false;
    call.reply({ type: 'exit', end: this.#log.end, exit: this.#exit });
    call.end();
    if (this.#call === call) {
      this.#call = undefined;
      this.#reader = undefined;
    }
    return true;
  }

  async #feed(call: Call): Promise<void> {
    try {
      for await (const bytes of call.input()) {
        // A command that has stopped reading is a broken pipe, which is its business.
        if (this.#status === undefined) await this.#child.write(bytes).catch(() => {});
      }
      if (!call.over) this.#child.endStdin();
    } catch {
      // The daemon has gone; the next reader may go on writing.
    }
  }

  #control(control: ExecControl): void {
    try {
      if (control.op === 'resize') {
        const side = (it: number) => Math.min(Math.max(Math.trunc(Number(it)) || 1, 1), 65_535);
        if (this.#status === undefined)
          this.#child.resize({ cols: side(control.cols), rows: side(control.rows) });
      } else if (control.op === 'signal') {
        this.signal(control);
      }
    } catch {
      // There is no way to answer a control; the daemon checks what it sends.
    }
  }
}

const killPollMs = 25;
const killRoundsMax = 400;

/** Again and again, since a process may have forked while its parent was being killed. */
async function killAll(execs: () => Exec[], platform: Platform): Promise<void> {
  for (let round = 0; round < killRoundsMax && alive(execs(), platform); round++) {
    signalAll(execs(), 'SIGKILL', platform);
    await sleep(round < 5 ? 1 : killPollMs);
  }
}

function signalAll(execs: Exec[], signal: NodeJS.Signals, platform: Platform): void {
  const commands = execs.map((it) => it.command);
  const members = membersOf(commands, platform);
  for (const member of members) signalProcess(member, signal, platform);
  if (members.length > 0) return;
  // Without /proc the groups are all we know.
  for (const { pid, buried } of commands) if (!buried) signalGroup(pid, signal, platform);
}

function alive(execs: Exec[], platform: Platform): boolean {
  const commands = execs.map((it) => it.command);
  return commands.some((it) => !it.buried) || membersOf(commands, platform).length > 0;
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

function duration(ms: number | undefined): number | undefined {
  if (ms === undefined) return undefined;
  if (typeof ms !== 'number' || !(ms >= 0))
    throw new Refusal('invalid', `${ms} is no number of milliseconds`);
  return Math.min(ms, timerMsMax);
}

const signals = new Set(
  'HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS'
    .split(' ')
    .map((it) => `SIG${it}`),
);

function signalName(name: string): NodeJS.Signals {
  if (!signals.has(name))
    throw new Refusal(
      'invalid',
      `signal ${JSON.stringify(String(name).slice(0, 32))}: write SIGTERM and the like`,
    );
  return name as NodeJS.Signals;
}
