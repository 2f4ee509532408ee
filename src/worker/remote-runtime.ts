// On the controller: one runtime of one worker, as if it were here. Each question is a stream of the link; what becomes of machines is heard on one that stays.
//
// A worker that cannot be reached says nothing about its machines: calls fail with `unavailable`, `exited` waits. Only its own word ends a machine: that it
// ended, or that the worker, back again, no longer has it. Or the end of the worker as one of ours.
import { readdir, readFile, stat } from 'node:fs/promises';
import { join, relative } from 'node:path';
import type { Channel, EndReason } from '../channel/channel.ts';
import { type Clock, systemClock } from '../channel/clock.ts';
import type { MemoryUse } from '../contract/sandbox.ts';
import {
  imagesMax,
  type LinkDone,
  LinkReply,
  type MachineFacts,
  machinesMax,
  type RunFile,
  type RuntimeCall,
  type RuntimeFacts,
  runFilesBytesMax,
  runFilesMax,
  type WireExit,
  type WireImage,
} from '../contract/worker-link.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import type {
  Capabilities,
  ImageDefaults,
  Keeping,
  KeptImage,
  Machine,
  MachineExit,
  MachineSpec,
  NetworkWalls,
  Pausing,
  Runtime,
  RuntimeCheck,
  RuntimeImages,
  Saving,
} from '../runtime/runtime.ts';
import type { Link } from './link.ts';
import type { AgentRelay } from './relay.ts';
import { ask, type Call } from './rpc.ts';

/** A drop of less is nobody's business: calls wait for its end. */
export const unreachableAfterMs = 3_000;
/** What was given up is undone by the worker, which then answers. */
const abortAnswerMs = 30_000;
const watchAgainMs = 5_000;
/** Ends that were heard before the answer that names their machines. */
const earlyEndsMax = 1_024;
const labelsBytesMax = 512 * 1024;

const nothingKnown: Capabilities = {
  pause: false,
  limits: {},
  users: 'single',
  isolation: 'none',
  imagePull: false,
  network: 'open',
  keep: false,
  mounts: { owner: false, overlay: false, hidden: false },
};

export interface RemoteRuntimeOptions {
  link: Link;
  /** The one of this link. */
  relay: AgentRelay;
  /** As the worker names it, e.g. `bubblewrap`. */
  runtime: string;
  /** The run folder here of a machine that was put there, by the store's word; undefined for any other. Machines that are made get theirs from their spec. */
  runFolderOf: (machine: string) => string | undefined;
  /** A tar of an image for a worker that lacks it; undefined when there is none here either. */
  imageSource?:
    | ((name: string, runtime: string, signal: AbortSignal) => Promise<AsyncIterable<Uint8Array> | undefined>)
    | undefined;
  log: Log;
  clock?: Clock;
}

export class RemoteRuntime implements Runtime {
  readonly name: string;
  /** This and the next are there until the worker has said that its runtime lacks them. */
  images?: RuntimeImages;
  start?: (spec: MachineSpec, signal: AbortSignal) => Promise<Machine>;
  readonly #options: RemoteRuntimeOptions;
  readonly #doing: string;
  readonly #clock: Clock;
  readonly #machines = new Map<string, RemoteMachine>();
  /** Of machines that are being made: where their agents are to come out. */
  readonly #making = new Map<string, string>();
  readonly #early = new Map<string, { exit: MachineExit; memory?: MemoryUse | undefined }>();
  readonly #sending = new Map<string, { sent: Promise<void>; abort: AbortController; waiting: number }>();
  readonly #onReach = new Set<(reachable: boolean) => void>();
  readonly #stops: (() => void)[] = [];
  #inFlight = 0;
  #check: RuntimeCheck | undefined;
  #reachable: boolean;
  #cancelUnreachable = () => {};
  #cancelWatch = () => {};
  #revoked: EndReason | undefined;

  constructor(options: RemoteRuntimeOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock({ keepsProcessAlive: false });
    const { link, relay, runtime } = options;
    this.name = `worker/${link.workerId}/${runtime}`;
    this.#doing = `worker ${link.workerId}`;
    this.#reachable = link.connected;
    this.#learn({ starts: true, images: true, builds: true });
    relay.serve(
      runtime,
      (machine) =>
        this.#making.get(machine) ?? this.#machines.get(machine)?.runFolder ?? options.runFolderOf(machine),
    );
    this.#stops.push(
      link.onReach((connected) => this.#reach(connected)),
      link.onChannel((channel) => this.#watch(channel)),
    );
    void link.ended.then((reason) => {
      if (reason.code === 'revoked') this.#revoke(reason);
    });
  }

  /** Whether it can be asked now. */
  get reachable(): boolean {
    return this.#reachable;
  }

  /** Lets go of the worker; its machines go on. */
  [Symbol.dispose](): void {
    for (const stop of this.#stops) stop();
    this.#cancelUnreachable();
    this.#cancelWatch();
    for (const { abort } of this.#sending.values()) abort.abort();
  }

  async check(signal: AbortSignal): Promise<RuntimeCheck> {
    try {
      const { check } = await this.#ask({ do: 'check' }, signal);
      if (check === undefined) throw this.#broke('told nothing of its runtime');
      this.#check = plain({
        ...check,
        capabilities: { ...check.capabilities, limits: plain(check.capabilities.limits) },
      });
      return this.#check;
    } catch (error) {
      if (signal.aborted) throw error;
      const { message, hint = 'Look at the worker and its connection.' } = Failure.from(error, this.#doing);
      return {
        ...{ usable: false, capabilities: this.#check?.capabilities ?? nothingKnown },
        problems: [{ message, hint, fatal: true }],
      };
    }
  }

  create(spec: MachineSpec, signal: AbortSignal): Promise<Machine> {
    return this.#begin('create', spec, signal);
  }

  async list(signal: AbortSignal): Promise<Machine[]> {
    const before = new Set(this.#machines.values());
    const facts = new Map<string, MachineFacts>();
    await this.#counted(() =>
      this.#ask({ do: 'list' }, signal, { onReply: (reply) => this.#gather(facts, reply) }),
    );
    this.#settle(before, facts);
    return [...facts.keys()].flatMap((id) => this.#machines.get(id) ?? []);
  }

  // ---- reach

  #reach(connected: boolean): void {
    this.#cancelUnreachable();
    this.#cancelUnreachable = () => {};
    if (connected) return this.#tellReach(true);
    this.#cancelUnreachable = this.#clock.setTimer(unreachableAfterMs, () => this.#tellReach(false));
  }

  #tellReach(reachable: boolean): void {
    if (reachable === this.#reachable) return;
    this.#reachable = reachable;
    for (const handler of [...this.#onReach]) handler(reachable);
  }

  #watchReach(handler: (reachable: boolean) => void): () => void {
    this.#onReach.add(handler);
    if (!this.#reachable) handler(false);
    return () => this.#onReach.delete(handler);
  }

  #channel(): Channel {
    const { link } = this.#options;
    if (this.#revoked !== undefined) throw new Failure('unavailable', this.#revoked.message);
    if (link.connected || this.#reachable) {
      try {
        return link.channel();
      } catch {
        // It has ended just now.
      }
    }
    throw new Failure('unavailable', `worker ${link.workerId} is not connected`, {
      hint: 'Its sandboxes go on; try again when `glovebox workers ls` shows it online.',
    });
  }

  // ---- one question

  async #ask(
    wanted: RuntimeCall,
    signal: AbortSignal,
    on: { onReply?: (reply: LinkReply) => void; input?: AsyncIterable<Uint8Array>; confirms?: boolean } = {},
  ): Promise<LinkDone> {
    const doing = `${this.#doing}: ${wanted.do}`;
    if (signal.aborted) throw Failure.from(signal.reason, doing);
    const call = ask(this.#channel(), { op: 'runtime', runtime: this.#options.runtime, call: wanted });
    return this.#answer(call, doing, signal, on);
  }

  #answer(
    call: Call,
    doing: string,
    signal: AbortSignal,
    {
      onReply,
      input,
      confirms = false,
    }: { onReply?: (reply: LinkReply) => void; input?: AsyncIterable<Uint8Array>; confirms?: boolean },
  ): Promise<LinkDone> {
    const { promise, resolve, reject } = Promise.withResolvers<LinkDone>();
    let cancelTimer = () => {};
    const leave = (failure: Failure) => {
      reject(failure);
      call.reset({ code: failure.code, message: failure.message });
    };
    const abort = () => {
      const failure = Failure.from(signal.reason, doing);
      if (!this.#options.link.connected || call.over) return leave(failure);
      // What was begun is undone before anybody goes on.
      call.reply({ type: 'abort' });
      cancelTimer = this.#clock.setTimer(abortAnswerMs, () => leave(failure));
    };
    signal.addEventListener('abort', abort, { once: true });
    call.onMessage = (message) => {
      const parsed = LinkReply.safeParse(message);
      if (!parsed.success) {
        const issue = parsed.error.issues[0];
        return leave(this.#broke(`broke the rules: ${issue?.path.join('.')}: ${issue?.message}`));
      }
      const reply = parsed.data;
      if (reply.type === 'done') {
        // It was made, and will be taken back: the next answer says so.
        if (confirms && signal.aborted) return;
        if (confirms) call.reply({ type: 'confirm' });
        resolve(reply);
        return call.end();
      }
      if (reply.type === 'error') {
        const { code, message: text, hint, details } = reply;
        reject(
          signal.aborted
            ? Failure.from(signal.reason, doing)
            : new Failure(code, `${this.#doing}: ${text}`, plain({ hint, details })),
        );
        return call.end();
      }
      try {
        onReply?.(reply);
      } catch (error) {
        leave(Failure.from(error, doing));
      }
    };
    call.onEnd = () => {
      reject(this.#broke('ended without an answer'));
      call.end();
    };
    call.onGone = ({ code, message }) =>
      reject(
        signal.aborted
          ? Failure.from(signal.reason, doing)
          : new Failure('unavailable', `${doing}: the worker was lost: ${message}`, {
              hint: 'It takes back what was begun and not finished; try again when it is back.',
              details: { end: code },
            }),
      );
    if (input !== undefined)
      void call.writeAll(input).then(
        () => call.reply({ type: 'end' }),
        (error) => leave(Failure.from(error, doing)),
      );
    return promise.finally(() => {
      cancelTimer();
      signal.removeEventListener('abort', abort);
    });
  }

  #broke(what: string): Failure {
    return new Failure('protocol', `${this.#doing} ${what}`);
  }

  /** While something is asked whose answer names machines, ends of unknown ones are kept for it. */
  async #counted<T>(work: () => Promise<T>): Promise<T> {
    this.#inFlight++;
    try {
      return await work();
    } finally {
      if (--this.#inFlight === 0) this.#early.clear();
    }
  }

  // ---- what becomes of machines

  #watch(channel: Channel): void {
    this.#cancelWatch();
    const stopped = new AbortController();
    let cancelTimer = () => {};
    this.#cancelWatch = () => {
      cancelTimer();
      stopped.abort();
    };
    const again = (error: unknown) => {
      // Not one that it has: its next process may, on a new channel.
      if (stopped.signal.aborted || Failure.from(error, 'watch').code === 'not-found') return;
      this.#options.log.warn(
        { worker: this.#options.link.workerId, runtime: this.#options.runtime, error: String(error) },
        'a runtime of a worker does not tell of its machines',
      );
      cancelTimer = this.#clock.setTimer(watchAgainMs, () => this.#watch(channel));
    };
    const before = new Set(this.#machines.values());
    const facts = new Map<string, MachineFacts>();
    let ready = false;
    void this.#counted(async () => {
      const call = ask(channel, { op: 'runtime', runtime: this.#options.runtime, call: { do: 'watch' } });
      stopped.signal.addEventListener(
        'abort',
        () => call.reset({ code: 'closed', message: 'no longer watched' }),
        { once: true },
      );
      const hear = (reply: LinkReply) => {
        if (reply.type === 'facts') this.#learn(reply.facts);
        else if (reply.type === 'ready' && !ready) {
          ready = true;
          this.#settle(before, facts);
        } else if (reply.type === 'exited')
          this.#ended(reply.machine, reply.run, exitOf(reply.exit), reply.memory && plain(reply.memory));
        else if (reply.type === 'memory')
          for (const { machine, run, memory } of reply.uses) {
            const it = this.#machines.get(machine);
            if (it?.run === run) it.used = plain(memory);
          }
        else if (!ready) this.#gather(facts, reply);
      };
      await this.#answer(call, `${this.#doing}: watch`, new AbortController().signal, { onReply: hear });
    }).catch((error) => {
      // A new channel brings a new watch.
      let same = false;
      try {
        same = this.#options.link.channel() === channel;
      } catch {
        // There is none now.
      }
      if (same) again(error);
    });
  }

  #learn({ starts, images, builds }: RuntimeFacts): void {
    if (starts) this.start = (spec, signal) => this.#begin('start', spec, signal);
    else delete this.start;
    const { build: _, ...rest } = this.#images;
    if (images) this.images = builds ? this.#images : rest;
    else delete this.images;
  }

  #gather(facts: Map<string, MachineFacts>, reply: LinkReply): void {
    if (reply.type !== 'machines') return;
    for (const it of reply.machines) {
      if (facts.has(it.id)) throw this.#broke(`told of machine ${it.id} twice`);
      facts.set(it.id, it);
    }
    if (facts.size > machinesMax) throw this.#broke(`told of more than ${machinesMax} machines`);
  }

  /** Compares what the worker has with what was known when it was asked. */
  #settle(before: ReadonlySet<RemoteMachine>, facts: ReadonlyMap<string, MachineFacts>): void {
    for (const machine of before) {
      if (this.#machines.get(machine.id) !== machine || facts.has(machine.id)) continue;
      this.#machines.delete(machine.id);
      machine.end({ reason: 'lost', message: `its worker no longer has it`, at: new Date() });
    }
    for (const it of facts.values()) {
      const known = this.#machines.get(it.id);
      if (known === undefined) this.#machines.set(it.id, this.#machine(it, undefined));
      else if (before.has(known)) known.renew(it);
    }
  }

  #ended(id: string, run: string, exit: MachineExit, memory: MemoryUse | undefined): void {
    const machine = this.#machines.get(id);
    if (machine?.run !== run) {
      if (this.#inFlight > 0 && this.#early.size < earlyEndsMax) this.#early.set(run, { exit, memory });
      return;
    }
    if (memory !== undefined) machine.used = memory;
    if (exit.reason === 'removed') this.#machines.delete(id);
    machine.end(exit);
  }

  #machine(facts: MachineFacts, runFolder: string | undefined): RemoteMachine {
    const machine = new RemoteMachine(facts, runFolder, {
      watchReach: (handler) => this.#watchReach(handler),
      ask: async (call, signal) => void (await this.#ask(call, signal)),
      removed: (it) => {
        if (this.#machines.get(it.id) === it) this.#machines.delete(it.id);
      },
      revoked: () => this.#revoked !== undefined,
    });
    const early = this.#early.get(facts.run);
    if (early?.memory !== undefined) machine.used = early.memory;
    if (early !== undefined) machine.end(early.exit);
    return machine;
  }

  /** The worker is none of ours any more, and what it has of ours is beyond our reach for ever. */
  #revoke(reason: EndReason): void {
    this.#revoked = reason;
    for (const machine of this.#machines.values())
      machine.end({ reason: 'lost', message: reason.message, at: new Date() });
    this.#machines.clear();
  }

  // ---- making machines

  async #begin(what: 'create' | 'start', spec: MachineSpec, signal: AbortSignal): Promise<Machine> {
    const { id, runFolder } = spec;
    const doing = `${what === 'create' ? 'make' : 'start'} machine ${id}`;
    if (signal.aborted) throw Failure.from(signal.reason, doing);
    if (JSON.stringify(spec.labels).length > labelsBytesMax)
      throw new Failure('invalid', `${doing}: labels of more than ${labelsBytesMax} bytes`);
    if (what === 'create') await this.#bringImage(spec, signal);
    const { files, contents } = await runFilesOf(runFolder);
    const { runFolder: _, stateFolder: __, onProgress, ...wire } = spec;
    // A second one of the same id is refused by the worker, and must not take the way of the first.
    const placed = !this.#making.has(id) && this.#machines.get(id)?.runFolder === undefined;
    if (placed) this.#making.set(id, runFolder);
    try {
      return await this.#counted(async () => {
        const { machine: facts } = await this.#ask({ do: what, spec: wire, files }, signal, {
          ...{ input: once(contents), confirms: true },
          onReply: (reply) => reply.type === 'progress' && onProgress?.(reply.line),
        });
        if (facts?.id !== id) throw this.#broke('told of another machine than was asked for');
        const machine = this.#machine(facts, runFolder);
        this.#machines.get(id)?.end({ reason: 'stopped', message: 'it was started again', at: new Date() });
        this.#machines.set(id, machine);
        return machine;
      });
    } finally {
      if (placed) this.#making.delete(id);
    }
  }

  /** Sends an image that the worker lacks, once for all who wait for it. */
  async #bringImage({ image, pull, onProgress }: MachineSpec, signal: AbortSignal): Promise<void> {
    const { imageSource, link, runtime } = this.#options;
    if (imageSource === undefined || pull === 'always' || this.images === undefined) return;
    if (await this.#images.has(image, signal)) return;
    let sending = this.#sending.get(image);
    if (sending === undefined) {
      const abort = new AbortController();
      const sent = (async () => {
        const source = await imageSource(image, runtime, abort.signal);
        if (source === undefined) return;
        onProgress?.(`sending image ${image} to worker ${link.workerId}`);
        await this.#images.load(
          image,
          reported(source, (bytes) =>
            onProgress?.(`sending image ${image}: ${Math.round(bytes / 2 ** 20)} MiB`),
          ),
          abort.signal,
        );
      })().finally(() => this.#sending.delete(image));
      sending = { sent, abort, waiting: 0 };
      this.#sending.set(image, sending);
    } else onProgress?.(`image ${image} is on its way to worker ${link.workerId}`);
    sending.waiting++;
    try {
      await raced(sending.sent, signal);
    } finally {
      // Whoever still waits gets it; when nobody does, the rest is not worth its way.
      if (--sending.waiting === 0)
        sending.abort.abort(new Failure('aborted', `send image ${image}: nobody waits for it`));
    }
  }

  readonly #images: RuntimeImages = {
    list: async (signal) => {
      const images: KeptImage[] = [];
      await this.#ask({ do: 'images' }, signal, {
        onReply: (reply) => {
          if (reply.type !== 'images') return;
          images.push(...reply.images.map(imageOf));
          if (images.length > imagesMax) throw this.#broke(`told of more than ${imagesMax} images`);
        },
      });
      return images;
    },
    has: async (name, signal) => (await this.#ask({ do: 'has-image', name }, signal)).has === true,
    remove: async (name, signal) => void (await this.#ask({ do: 'remove-image', name }, signal)),
    load: async (name, source, signal) =>
      this.#imageIn(await this.#ask({ do: 'load-image', name }, signal, { input: source })),
    export: (name, signal) => this.#export(name, signal),
    build: async (name, { context, ...build }, onOutput, signal) =>
      this.#imageIn(
        await this.#ask({ do: 'build-image', name, ...build }, signal, {
          input: context,
          onReply: (reply) => reply.type === 'output' && onOutput(reply.text),
        }),
      ),
  };

  #imageIn({ image }: LinkDone): KeptImage {
    if (image === undefined) throw this.#broke('told nothing of the image');
    return imageOf(image);
  }

  async *#export(name: string, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    const doing = `${this.#doing}: export-image`;
    if (signal.aborted) throw Failure.from(signal.reason, doing);
    const call = ask(this.#channel(), {
      ...{ op: 'runtime', runtime: this.#options.runtime },
      call: { do: 'export-image', name },
    });
    const { source, stop } = call.input();
    const answered = this.#answer(call, doing, signal, {}).finally(stop);
    answered.catch(() => {});
    try {
      yield* source;
      await answered;
    } catch (error) {
      // The answer knows better why the bytes broke off.
      await answered;
      throw error;
    } finally {
      call.reset({ code: 'closed', message: 'nobody reads the image any more' });
    }
  }
}

interface MachineHost {
  /** Returns what ends the watching. */
  watchReach: (handler: (reachable: boolean) => void) => () => void;
  ask: (call: RuntimeCall, signal: AbortSignal) => Promise<void>;
  removed: (machine: RemoteMachine) => void;
  revoked: () => boolean;
}

class RemoteMachine implements Machine {
  readonly id: string;
  readonly image: ImageDefaults;
  readonly paused: boolean;
  readonly network: NetworkWalls;
  readonly exited: Promise<MachineExit>;
  readonly reach: NonNullable<Machine['reach']>;
  readonly pausing?: Pausing;
  readonly keeping?: Keeping;
  readonly saving?: Saving;
  readonly memory?: () => MemoryUse;
  /** Where its agent comes out here, when it was made by this object's runtime. */
  readonly runFolder: string | undefined;
  run: string;
  used: MemoryUse | undefined;
  readonly #host: MachineHost;
  readonly #unwatch: (() => void)[] = [];
  #over = false;
  #removed = false;
  readonly #end: (exit: MachineExit) => void;

  constructor(facts: MachineFacts, runFolder: string | undefined, host: MachineHost) {
    const { id, image, paused, network, run, pauses, keeps, saves, memory, exit } = facts;
    this.id = id;
    this.paused = paused;
    this.network = network;
    this.image = plain(image);
    this.runFolder = runFolder;
    this.run = run;
    this.reach = { onChange: (handler) => void this.#unwatch.push(host.watchReach(handler)) };
    this.#host = host;
    const ended = Promise.withResolvers<MachineExit>();
    this.exited = ended.promise;
    this.#end = ended.resolve;
    if (pauses)
      this.pausing = {
        pause: (signal) => host.ask({ do: 'pause', machine: id }, signal),
        resume: (signal) => host.ask({ do: 'resume', machine: id }, signal),
      };
    if (keeps)
      this.keeping = {
        stop: async (signal) => {
          await host.ask({ do: 'stop', machine: id }, signal);
          this.end({ reason: 'stopped', message: 'it was stopped', at: new Date() });
        },
      };
    if (saves)
      this.saving = {
        save: (name, defaults, signal) => host.ask({ do: 'save', machine: id, name, defaults }, signal),
      };
    if (memory !== undefined) {
      this.used = plain(memory);
      this.memory = () => this.used ?? { kills: 0 };
    }
    if (exit !== undefined) this.end(exitOf(exit));
  }

  /** The same machine, as its worker tells of it now. */
  renew(facts: MachineFacts): void {
    this.run = facts.run;
    if (facts.memory !== undefined) this.used = plain(facts.memory);
    if (facts.exit !== undefined) this.end(exitOf(facts.exit));
  }

  end(exit: MachineExit): void {
    if (this.#over) return;
    this.#over = true;
    for (const unwatch of this.#unwatch.splice(0)) unwatch();
    this.#end(exit);
  }

  async remove(signal: AbortSignal): Promise<void> {
    if (this.#removed) return;
    if (!this.#host.revoked()) await this.#host.ask({ do: 'remove', machine: this.id }, signal);
    this.#removed = true;
    this.#host.removed(this);
    this.end({ reason: 'removed', message: 'it was removed', at: new Date() });
  }
}

/** What a run folder holds but its socket, to go along with its machine. */
async function runFilesOf(folder: string): Promise<{ files: RunFile[]; contents: Uint8Array }> {
  const files: RunFile[] = [];
  const contents: Buffer[] = [];
  let total = 0;
  for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const file = join(entry.parentPath, entry.name);
    const content = await readFile(file);
    total += content.length;
    if (files.length >= runFilesMax || total > runFilesBytesMax)
      throw new Failure(
        'invalid',
        `${folder}: more than ${runFilesMax} files or ${runFilesBytesMax} bytes to send along`,
      );
    const { mode } = await stat(file);
    files.push({ path: relative(folder, file), mode: mode & 0o777, sizeBytes: content.length });
    contents.push(content);
  }
  return { files, contents: Buffer.concat(contents) };
}

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  if (bytes.length > 0) yield bytes;
}

const reportEveryBytes = 16 * 2 ** 20;

async function* reported(
  source: AsyncIterable<Uint8Array>,
  tell: (bytes: number) => void,
): AsyncGenerator<Uint8Array> {
  let sent = 0;
  let told = 0;
  for await (const bytes of source) {
    yield bytes;
    sent += bytes.length;
    if (sent - told < reportEveryBytes) continue;
    told = sent;
    tell(sent);
  }
}

function exitOf({ at, ...exit }: WireExit): MachineExit {
  return plain({ ...exit, at: new Date(at) });
}

function imageOf({ createdAt, ...image }: WireImage): KeptImage {
  return plain({ ...image, createdAt: new Date(createdAt) });
}

type Plain<T> = { [Key in keyof T]: Exclude<T[Key], undefined> };

/** Without the members that are undefined, which a schema allows and our types do not. */
function plain<T extends object>(value: T): Plain<T> {
  return Object.fromEntries(Object.entries(value).filter(([, it]) => it !== undefined)) as Plain<T>;
}

function raced<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  const aborted = Promise.withResolvers<never>();
  const abort = () => aborted.reject(Failure.from(signal.reason, 'wait for an image'));
  if (signal.aborted) abort();
  signal.addEventListener('abort', abort, { once: true });
  return Promise.race([promise, aborted.promise]).finally(() => signal.removeEventListener('abort', abort));
}
