// Commands: started once, read by whoever is attached, outliving every connection, and killed with everything they started.
//
//   started ──process dead──▶ draining ──pipes empty, or 200 ms──▶ ended ──10 minutes──▶ forgotten
import type {
  ExecControl,
  ExecExit,
  ExecLimits,
  ExecRequest,
  ExecSummary,
  HostBoot,
} from '../contract/guest.ts';
import { guestFolder, laneOf } from '../contract/guest-wire.ts';
import type { AllowedPrograms } from './allowed-programs.ts';
import type { Call } from './call.ts';
import { type ExecGroup, ExecGroups } from './exec-groups.ts';
import { explain, prepare } from './lookup.ts';
import { LogReader, OutputLog } from './output.ts';
import type { Child, DirectSocket, Platform, Source } from './platform/platform.ts';
import type { Receipt, Receipts } from './receipts.ts';
import { Refusal } from './refusal.ts';
import { type Command, markOf, membersOf, signalGroup, signalProcess } from './tree.ts';

/** How long after its death a command's pipes may still bring something: children that it left behind hold them open. */
const drainMs = 200;
const graceMsDefault = 5_000;
const timerMsMax = 2_147_483_647;
const runningMax = 1_024;
/** Ended commands are kept so that nobody misses an end, or runs one twice. */
const receiptsMax = 16_384;
const receiptMs = 10 * 60_000;
/** Of them all, the running ones and the newest: what fits into one message. */
const listedMax = 8_192;
/** An end that nobody has asked for yet keeps a retiring agent no longer than this. */
const untoldMs = 60_000;
const idlePollMs = 200;
/** Output held of all ended commands together; the oldest is given up first. */
const endedBytesMax = 16 * 1024 * 1024;
const idCharsMax = 128;
const restAfterMs = 2_000;
/** The daemon gives no command such an id. */
const rehearsalId = 'glovebox:rehearsal';
/** A shell that does not even end when it has nothing to do keeps nobody. */
const rehearsalTimes = { timeoutMs: 5_000, graceMs: 0 };
const lanes = { stdout: laneOf.data, stderr: laneOf.stderr };

export interface ExecsOptions {
  platform: Platform;
  own: { uid: number; gid: number };
  openDirect: (id: string) => DirectSocket;
  /** Absent: any program may be started. */
  allowed?: AllowedPrograms;
  /** Absent: what was started is remembered by this process alone. */
  receipts?: Receipts;
  host?: HostBoot;
}

export class Execs {
  readonly #options: ExecsOptions;
  readonly #groups: ExecGroups;
  /** Ids that were signalled before their commands came, and when. */
  readonly #fenced = new Map<string, number>();
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
    this.#groups = new ExecGroups(options.host?.groups);
  }

  start(call: Call, request: ExecRequest): void {
    checkId(request.execId);
    const content = this.#contentOf(request);
    const known = this.#execs.get(request.execId);
    if (known !== undefined) {
      if (known.content !== content) {
        throw new Refusal('conflict', `${request.execId} is the id of another command`);
      }
      known.attach(call, 0);
      return;
    }
    const receipt = this.#options.receipts?.find(request.execId);
    if (receipt !== undefined) {
      tellPast(call, { id: request.execId, receipt, content, from: 0 });
      return;
    }
    if (this.#fenced.has(request.execId)) throw canceled(request.execId);
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

  /** Nothing is remembered of it once it has ended. In an image without a shell the agent's own loader stands for one. */
  rehearse(call: Call, { env }: { env: Record<string, string> }): void {
    if (this.#options.receipts) throw new Refusal('unsupported', 'what is written down cannot be forgotten');
    const request = { op: 'exec', execId: rehearsalId, env, stdin: 'none', ...rehearsalTimes } as const;
    try {
      this.start(call, { ...request, shell: 'echo' });
    } catch (thrown) {
      if (!(thrown instanceof Refusal) || thrown.code !== 'command-not-found') throw thrown;
      this.start(call, { ...request, argv: [`${guestFolder}/agent/ld.so`, '--help'] });
    }
  }

  attach(call: Call, request: { execId: string; from: number }): void {
    const { execId, from } = request;
    const receipt = this.#options.receipts?.find(execId);
    if (receipt === undefined || this.#execs.has(execId)) this.#find(execId).attach(call, from);
    else tellPast(call, { id: execId, receipt, from });
  }

  signal(request: { execId: string; signal: string; tree: boolean; graceMs?: number }): void {
    const { execId } = request;
    checkId(execId);
    if (!this.#execs.has(execId)) {
      const receipt = this.#options.receipts?.find(execId);
      if (receipt?.ended) return;
      if (receipt?.digest) throw unknownEnd(execId);
      this.#fence(execId);
    }
    this.#find(execId).signal(request);
  }

  /** Of its first process. Throws Refusal('not-found') when it has ended. */
  pidOf(execId: string): number {
    const exec = this.#find(execId);
    if (this.#ended.has(exec)) throw new Refusal('not-found', `command ${execId} has ended`);
    return exec.summary().pid;
  }

  /** Running ones first, then the newest of those that have ended. */
  list(): ExecSummary[] {
    const ended = [...this.#ended].reverse();
    const running = [...this.#execs.values()].filter((it) => !this.#ended.has(it));
    return [...running, ...ended].slice(0, listedMax).map((it) => it.summary());
  }

  /** Resolves when nothing runs and every end has been told, or has waited for long. */
  async idle(): Promise<void> {
    const needed = (it: Exec) => !it.told && it.endedAt + untoldMs > performance.now();
    while (this.#running > 0 || [...this.#ended].some(needed)) await sleep(idlePollMs);
  }

  /** Kills everything and starts nothing more. */
  async stop(): Promise<void> {
    this.#stopping = true;
    await killAll(() => [...this.#execs.values()], this.#options.platform);
  }

  // Forgotten after as long as the end of a command, unless it is on the disk.
  #fence(id: string): void {
    const { receipts } = this.#options;
    if (receipts) {
      if (receipts.find(id) === undefined) receipts.add(id, '');
      return;
    }
    const now = performance.now();
    for (const [old, at] of this.#fenced) {
      if (at + receiptMs > now) break;
      this.#fenced.delete(old);
    }
    if (this.#fenced.size >= receiptsMax)
      throw new Refusal('exhausted', `${receiptsMax} unknown commands have been signalled`);
    this.#fenced.set(id, now);
  }

  #contentOf(request: ExecRequest): string {
    const text = contentOf(request);
    return this.#options.receipts?.digestOf(text) ?? sumOf(text);
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
    if (request.limits?.outputBytes !== undefined && request.directStdout !== undefined)
      throw new Refusal('unsupported', 'limits.outputBytes: not for output on a connection of its own');
    const prepared = prepare(request, own, this.#options.host?.mark);
    const candidates = this.#options.allowed?.check(prepared) ?? prepared.candidates;
    const { spec } = prepared;
    if (spec.user && !platform.abilities.users)
      throw new Refusal('unsupported', 'no other users in this runtime');
    const group = this.#groups.make(request.limits);
    let direct: DirectSocket | undefined;
    try {
      if (request.directStdout !== undefined && !request.pty)
        direct = this.#options.openDirect(request.directStdout);
      const whole = { ...spec, ...(direct && { directStdout: direct }) };
      this.#options.receipts?.add(request.execId, content);
      const child = startFirst(candidates, (path) => {
        const start = () => platform.spawn({ ...whole, path });
        return group === undefined ? start() : group.within(start);
      });
      const onEnd = (exec: Exec) => this.#onEnd(exec);
      const mark = markOf(request.execId, this.#options.host?.mark);
      return new Exec({ child, request, content, mark, group, platform, onEnd });
    } catch (thrown) {
      if (this.#options.receipts?.find(request.execId)) this.#options.receipts.takeBack(request.execId);
      if (group) this.#groups.drop(group);
      throw thrown;
    } finally {
      direct?.close();
    }
  }

  #onEnd(exec: Exec): void {
    this.#running--;
    if (exec.id === rehearsalId) return void this.#execs.delete(exec.id);
    this.#ended.add(exec);
    this.#endedBytes += exec.heldBytes;
    if (exec.group) this.#groups.drop(exec.group);
    const { exit, end } = exec.summary();
    try {
      if (exit) this.#options.receipts?.ended(exec.id, exit, end);
    } catch {
      // A full disk: the end is told by this agent, and by a later one as unknown.
    }
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

/** The first of the programs that the kernel starts. Throws why the first could not be. */
function startFirst(candidates: string[], start: (path: string) => Child): Child {
  let why: Refusal | undefined;
  for (const path of candidates) {
    try {
      return start(path);
    } catch (thrown) {
      why ??= explain(thrown, path);
      // As the shells do: what cannot run does not hide what can, further along the PATH.
      if (why.code !== 'not-executable') break;
    }
  }
  throw why;
}

/** The answer about a command of an agent that has ended since: what is known of it, and none of its output. */
function tellPast(call: Call, past: { id: string; receipt: Receipt; content?: string; from: number }): void {
  const { id, receipt, content, from } = past;
  const { digest, at, ended } = receipt;
  if (digest === '') throw canceled(id);
  if (content !== undefined && content !== digest)
    throw new Refusal('conflict', `${id} is the id of another command`);
  if (ended === undefined) throw unknownEnd(id);
  const { end, exit } = ended;
  if (!Number.isSafeInteger(from) || from < 0 || from > end)
    throw new Refusal('invalid', `from ${from}: its output ended at ${end}`);
  call.reply({ type: 'started', pid: 0, startedAt: at, from });
  if (from < end) call.reply({ type: 'gap', from, to: end });
  call.reply({ type: 'exit', end, exit });
  call.end();
}

function canceled(id: string): Refusal {
  return new Refusal('canceled', `${id} was signalled before it came, and does not run any more`);
}

function unknownEnd(id: string): Refusal {
  return new Refusal(
    'unknown',
    `${id} may have run: the agent that was to start it has ended, and nobody saw how; it is not run again`,
  );
}

function checkId(id: unknown): void {
  if (typeof id !== 'string' || !/^[\w.:-]{1,128}$/.test(id))
    throw new Refusal('invalid', `execId: 1 to ${idCharsMax} letters, digits and . : - _`);
}

/** What makes two requests the same command. Also compared with what was written down by agents of other versions. */
function contentOf(request: ExecRequest): string {
  const { argv, shell, cwd, user, stdin, pty, timeoutMs, graceMs, limits } = request;
  const env = Object.entries(request.env).sort(([a], [b]) => (a < b ? -1 : 1));
  const size = pty && { cols: pty.cols, rows: pty.rows };
  const content: unknown[] = [argv, shell, env, cwd, user, stdin, size, timeoutMs, graceMs];
  if (limits) content.push([limits.memoryBytes, limits.pids, limits.cpu, limits.outputBytes]);
  return JSON.stringify(content);
}

/** Of a content that is only compared with those of this process. Kept in its place, for arguments may be large. */
function sumOf(text: string): string {
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
  /** Absent: nothing but bytes is limited, if that. */
  readonly group: ExecGroup | undefined;
  endedAt = 0;
  /** Whether a reader has heard of its end. */
  told = false;
  readonly #child: Child;
  readonly #mark: string;
  readonly #outputBytesMax: number;
  readonly #platform: Platform;
  readonly #startedAt = Date.now();
  readonly #onEnd: (exec: Exec) => void;
  readonly #graceMs: number;
  readonly #log = new OutputLog();
  readonly #waitingForRoom: (() => void)[] = [];
  #openSources: number;
  #status: { code: number | null; signal: string | null } | undefined;
  #exit: ExecExit | undefined;
  #cause: Exclude<ExecExit['reason'], 'exited' | 'signaled' | 'unknown'> | undefined;
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
    mark: string;
    group: ExecGroup | undefined;
    platform: Platform;
    onEnd: (exec: Exec) => void;
  }) {
    const { child, request } = options;
    this.id = request.execId;
    this.content = options.content;
    this.#mark = options.mark;
    this.group = options.group;
    this.#outputBytesMax = request.limits?.outputBytes ?? Number.POSITIVE_INFINITY;
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
    if (timeoutMs !== undefined)
      this.#timeout = setTimeout(() => this.#endFor('timeout', this.#graceMs), timeoutMs);
    this.#tighten(request.limits);
  }

  #tighten(limits: ExecLimits | undefined): void {
    try {
      if (limits && this.group && !this.group.tighten(limits)) this.#endFor('oom', 0);
    } catch {
      // Without its limits it must not go on.
      this.#endFor('killed', 0);
    }
  }

  #endFor(cause: 'timeout' | 'killed' | 'oom' | 'output-limit', graceMs: number): void {
    this.#cause ??= cause;
    void this.kill(graceMs);
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
    return {
      ...{ mark: this.#mark, pid: this.#child.pid, buried: this.#status !== undefined },
      ...(this.group && { group: this.group.pids }),
    };
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
        const room = this.#outputBytesMax - this.#log.end;
        if (bytes.length > room) this.#endFor('output-limit', this.#graceMs);
        if (room <= 0) continue;
        this.#log.push(source.lane, bytes.subarray(0, room));
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
    // The kernel kills the greediest process, and a shell that waits for it tells so by its own status.
    if (code === 128 + 9 && this.group !== undefined && this.group.oomKills > 0) this.#cause ??= 'oom';
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
    this.told = true;
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
