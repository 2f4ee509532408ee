// On a worker: its runtimes, served to the controller over the link, and the sockets at which the agents of their machines dial in.
//
//   <home>/run/<machine>/       as the controller's own run folder of that machine, which came along with it, and agent.sock
//   <home>/machines/<machine>/  what the runtime keeps of it
//   <home>/images-of/<machine>  the name of the image that it is made from, which stays for as long as it is there
//   <home>/making/<machine>     a create or start that the controller has not confirmed: taken back when it is lost, and by the next process
//
// Machines outlive this process: the next one lists what its runtimes have and opens the sockets again, and the agents dial on.
import { randomBytes } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { mkdir, readdir, readFile, realpath, rm, writeFile } from 'node:fs/promises';
import { dirname, join, sep } from 'node:path';
import type { MemoryUse } from '../contract/sandbox.ts';
import {
  LinkControl,
  type LinkReply,
  LinkRequest,
  type MachineFacts,
  MachineId,
  type RunFile,
  type RuntimeCall,
  runFilesBytesMax,
  type WireExit,
  type WireImage,
  type WireSpec,
} from '../contract/worker-link.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import type {
  KeptImage,
  Machine,
  MachineExit,
  MachineSpec,
  Mount,
  Runtime,
  RuntimeImages,
} from '../runtime/runtime.ts';
import type { IncomingCall, Link } from './link.ts';
import { MachineSocket, StreamCount } from './relay.ts';

const memoryEveryMs = 2_000;
/** What a lost controller has begun is undone within this. */
const undoDeadlineMs = 120_000;
const listDeadlineMs = 60_000;
const removeDeadlineMs = 120_000;
const imagesFolder = 'images-of';
/** Of machines and of images, in one message. */
const chunkItems = 256;
const chunkBytes = 256 * 1024;

export interface RuntimeHostOptions {
  link: Link;
  runtimes: readonly Runtime[];
  /** The worker's own folder; only the worker's user may enter it. */
  home: string;
  /** Folders of the worker's machine that sandboxes may be shown, and what lies below them. */
  mountFolders?: readonly string[];
  log: Log;
}

/** A machine that its runtime has, from one start to its end. */
interface Hosted {
  runtime: Runtime;
  machine: Machine;
  run: string;
  /** Since it was made or found, by our own doing. */
  paused?: boolean;
  exit?: MachineExit;
  memory?: MemoryUse;
}

/** What was begun and not confirmed, as it is written down. */
interface Making {
  runtime: string;
  what: 'create' | 'start';
}

export class RuntimeHost {
  readonly #options: RuntimeHostOptions;
  readonly #runtimes: Map<string, Runtime>;
  readonly #hosted = new Map<string, Hosted>();
  /** By machine: an id is one machine's, whatever its runtime, for its folders have its name. */
  readonly #sockets = new Map<string, MachineSocket>();
  readonly #count = new StreamCount();
  /** Those that hear what becomes of a runtime's machines. */
  readonly #watchers = new Map<IncomingCall, string>();
  readonly #calls = new Set<Promise<void>>();
  readonly #process = randomBytes(6).toString('base64url');
  #runs = 0;
  #stopListening = () => {};
  #timer: NodeJS.Timeout | undefined;

  private constructor(options: RuntimeHostOptions) {
    this.#options = options;
    this.#runtimes = new Map(options.runtimes.map((it) => [it.name, it]));
  }

  /** Takes up what an earlier process has left, then answers the controller. */
  static async open(options: RuntimeHostOptions): Promise<RuntimeHost> {
    const it = new RuntimeHost(options);
    for (const folder of ['run', 'machines', 'making', imagesFolder])
      await mkdir(join(options.home, folder), { recursive: true, mode: 0o700 });
    await it.#takeUp();
    it.#stopListening = options.link.onCall('runtime', (call) => {
      const answered = it.#answer(call).finally(() => it.#calls.delete(answered));
      it.#calls.add(answered);
    });
    it.#timer = setInterval(() => it.#tellMemory(), memoryEveryMs);
    it.#timer.unref();
    return it;
  }

  /** Lets go of the machines, which go on; what is being made is undone. Idempotent. */
  async close(): Promise<void> {
    this.#stopListening();
    clearInterval(this.#timer);
    for (const call of this.#watchers.keys()) call.reset({ code: 'restart', message: 'the worker stops' });
    this.#watchers.clear();
    await Promise.all(this.#calls);
    await Promise.all([...this.#sockets.values()].map((it) => it.close()));
    this.#sockets.clear();
  }

  /**
   * The controller has let this worker go for good, and nobody will ever ask for its machines again: ends them and takes them away. No request is answered
   * from now on. Never rejects; what cannot be taken away is said in the log.
   */
  async removeAll(): Promise<void> {
    const { log } = this.#options;
    this.#stopListening();
    await Promise.all(this.#calls);
    for (const runtime of this.#runtimes.values())
      try {
        const signal = AbortSignal.timeout(removeDeadlineMs);
        for (const { machine } of await this.#list(runtime, signal)) {
          const of = { runtime: runtime.name, machine: machine.id };
          await this.#remove(runtime, machine.id, signal).then(
            () => log.info(of, 'ended and removed, as this worker was let go'),
            (error) => log.error({ ...of, error: String(error) }, 'could not be removed'),
          );
        }
      } catch (error) {
        log.error({ runtime: runtime.name, error: String(error) }, 'its machines could not be removed');
      }
  }

  // ---- what is there

  async #takeUp(): Promise<void> {
    const { home, log } = this.#options;
    let all = true;
    for (const runtime of this.#runtimes.values())
      await this.#list(runtime, AbortSignal.timeout(listDeadlineMs)).catch((error) => {
        // A back end that is down now may be up when the controller asks.
        all = false;
        log.warn(
          { runtime: runtime.name, error: String(error) },
          'a runtime cannot be asked for its machines',
        );
      });
    for (const id of await readdir(join(home, 'making'))) {
      const making = await this.#making(id);
      const runtime = this.#runtimes.get(making?.runtime ?? '');
      if (making === undefined || runtime === undefined) await rm(this.#makingFile(id), { force: true });
      else await this.#undo(runtime, id, making.what);
    }
    if (!all) return;
    const known = new Set([...this.#hosted.values()].map(({ machine }) => machine.id));
    for (const id of await readdir(join(home, 'run')))
      if (!known.has(id)) await rm(join(home, 'run', id), { recursive: true, force: true });
    for (const id of await readdir(join(home, imagesFolder)))
      if (!known.has(id)) await rm(join(home, imagesFolder, id), { force: true });
  }

  /** The runtime's machines as of now; opens the sockets of those that run. */
  async #list(runtime: Runtime, signal: AbortSignal): Promise<Hosted[]> {
    const machines = (await runtime.list(signal)).filter(({ id }) => MachineId.safeParse(id).success);
    const hosted = machines.map((machine) => this.#host(runtime, machine));
    const there = new Set(machines.map(({ id }) => id));
    for (const [key, it] of this.#hosted)
      if (it.runtime === runtime && !there.has(it.machine.id) && it.exit !== undefined)
        this.#hosted.delete(key);
    // An end that has happened is known a moment later.
    await Promise.resolve();
    for (const it of hosted) {
      if (it.exit !== undefined || this.#sockets.has(it.machine.id)) continue;
      await this.#openSocket(runtime, it.machine.id).catch((error) =>
        this.#options.log.warn(
          { sandbox: it.machine.id, error: String(error) },
          'the socket of a machine cannot be opened',
        ),
      );
    }
    return hosted;
  }

  #host(runtime: Runtime, machine: Machine): Hosted {
    const key = `${runtime.name}/${machine.id}`;
    const known = this.#hosted.get(key);
    if (known?.machine === machine) return known;
    const hosted: Hosted = { runtime, machine, run: `${this.#process}.${++this.#runs}` };
    this.#hosted.set(key, hosted);
    void machine.exited.then((exit) => this.#ended(key, hosted, exit));
    return hosted;
  }

  #ended(key: string, hosted: Hosted, exit: MachineExit): void {
    hosted.exit = exit;
    const memory = memoryOf(hosted.machine) ?? hosted.memory;
    if (memory !== undefined) hosted.memory = memory;
    const { id } = hosted.machine;
    if (this.#hosted.get(key) === hosted) {
      void this.#closeSocket(id);
      if (exit.reason === 'removed') this.#hosted.delete(key);
    }
    this.#tell(hosted.runtime.name, {
      ...{ type: 'exited', machine: id, run: hosted.run, exit: wireExit(exit) },
      ...(memory === undefined ? {} : { memory }),
    });
  }

  #tell(runtime: string, reply: LinkReply): void {
    for (const [call, name] of this.#watchers) if (name === runtime) call.reply(reply);
  }

  #tellMemory(): void {
    for (const runtime of new Set(this.#watchers.values())) {
      const uses = [...this.#hosted.values()].flatMap((it) => {
        if (it.runtime.name !== runtime || it.exit !== undefined) return [];
        const memory = memoryOf(it.machine);
        if (memory === undefined || sameUse(memory, it.memory)) return [];
        it.memory = memory;
        return [{ machine: it.machine.id, run: it.run, memory }];
      });
      for (const chunk of chunked(uses)) this.#tell(runtime, { type: 'memory', uses: chunk });
    }
  }

  // ---- requests

  async #answer(call: IncomingCall): Promise<void> {
    const abort = new AbortController();
    const confirmed = Promise.withResolvers<boolean>();
    const { source, stop } = call.input();
    call.onMessage = (message) => {
      const control = LinkControl.safeParse(message);
      if (control.data?.type === 'end') stop();
      else if (control.data?.type === 'confirm') confirmed.resolve(true);
      else {
        abort.abort(new Failure('aborted', 'the controller no longer wants it'));
        confirmed.resolve(false);
      }
    };
    call.onGone = (reason) => {
      abort.abort(new Failure('aborted', `the controller is gone: ${reason.message}`));
      confirmed.resolve(false);
    };
    const asked: Asked = {
      ...{ call, signal: abort.signal, confirmed: confirmed.promise },
      input: source,
    };
    try {
      const request = LinkRequest.safeParse(call.request);
      if (!request.success) {
        const issue = request.error.issues[0];
        throw new Failure('invalid', `a request over the link: ${issue?.path.join('.')}: ${issue?.message}`);
      }
      const { runtime: name, call: wanted } = request.data;
      const runtime = this.#runtimes.get(name);
      if (runtime === undefined)
        throw new Failure('not-found', `this worker has no runtime ${name}`, {
          hint: `It has ${[...this.#runtimes.keys()].join(', ') || 'none'}.`,
        });
      if (wanted.do === 'watch') return await this.#watch(runtime, asked);
      call.reply({ type: 'done', ...(await this.#do(runtime, wanted, asked)) });
    } catch (error) {
      call.reply(errorReply(error));
    }
    call.end();
  }

  async #do(runtime: Runtime, wanted: Exclude<RuntimeCall, { do: 'watch' }>, asked: Asked) {
    const { call, signal } = asked;
    switch (wanted.do) {
      case 'check': {
        const { problems, version, ...check } = await runtime.check(signal);
        const shown = problems
          .slice(0, 100)
          .map((it) => ({ ...it, message: cut(it.message), hint: cut(it.hint) }));
        return {
          check: {
            ...check,
            problems: shown,
            ...(version === undefined ? {} : { version: version.slice(0, 256) }),
          },
        };
      }
      case 'list':
        this.#sendMachines(call, await this.#list(runtime, signal));
        return {};
      case 'create':
      case 'start':
        return this.#make(runtime, wanted, asked);
      case 'remove':
        await this.#remove(runtime, wanted.machine, signal);
        return {};
      case 'pause':
      case 'resume': {
        const hosted = await this.#find(runtime, wanted.machine, signal);
        const { pausing } = hosted.machine;
        if (pausing === undefined)
          throw new Failure('unsupported', `runtime ${runtime.name} cannot pause machines here`);
        await pausing[wanted.do](signal);
        hosted.paused = wanted.do === 'pause';
        return {};
      }
      case 'stop': {
        const { machine } = await this.#find(runtime, wanted.machine, signal);
        if (machine.keeping === undefined)
          throw new Failure('unsupported', `machine ${machine.id} cannot be stopped and kept`);
        await machine.keeping.stop(signal);
        return {};
      }
      case 'save': {
        const { machine } = await this.#find(runtime, wanted.machine, signal);
        if (machine.saving === undefined)
          throw new Failure('unsupported', `machine ${machine.id} cannot be made an image`);
        await machine.saving.save(wanted.name, plain(wanted.defaults), signal);
        return {};
      }
      case 'images': {
        const images = (await imagesOf(runtime).list(signal)).map(wireImage);
        for (const chunk of chunked(images)) call.reply({ type: 'images', images: chunk });
        return {};
      }
      case 'has-image':
        return { has: await imagesOf(runtime).has(wanted.name, signal) };
      case 'remove-image':
        await imagesOf(runtime).remove(wanted.name, signal);
        return {};
      case 'load-image':
        return { image: wireImage(await imagesOf(runtime).load(wanted.name, asked.input, signal)) };
      case 'export-image':
        await call.writeAll(imagesOf(runtime).export(wanted.name, signal));
        return {};
      case 'build-image': {
        const { do: _, name, ...build } = wanted;
        const images = imagesOf(runtime);
        if (images.build === undefined)
          throw new Failure('unsupported', `runtime ${runtime.name} has no builder of images`);
        const say = (text: string) => {
          for (let at = 0; at < text.length; at += chunkBytes / 4)
            call.reply({ type: 'output', text: text.slice(at, at + chunkBytes / 4) });
        };
        const built = await images.build(name, plain({ ...build, context: asked.input }), say, signal);
        return { image: wireImage(built) };
      }
      default:
        return wanted satisfies never;
    }
  }

  /** Until the stream is gone. */
  async #watch(runtime: Runtime, { call, signal }: Asked): Promise<void> {
    const { images } = runtime;
    call.reply({
      type: 'facts',
      facts: {
        starts: runtime.start !== undefined,
        images: images !== undefined,
        builds: images?.build !== undefined,
      },
    });
    const machines = await this.#list(runtime, signal);
    if (call.signal.aborted) return;
    this.#sendMachines(call, machines);
    call.reply({ type: 'ready' });
    this.#watchers.set(call, runtime.name);
    await new Promise<void>((resolve) => {
      signal.addEventListener('abort', () => resolve(), { once: true });
      if (signal.aborted) resolve();
    });
    this.#watchers.delete(call);
    call.reset({ code: 'closed', message: 'nobody watches any more' });
  }

  #sendMachines(call: IncomingCall, hosted: readonly Hosted[]): void {
    for (const chunk of chunked(hosted.map(factsOf))) call.reply({ type: 'machines', machines: chunk });
  }

  async #find(runtime: Runtime, id: string, signal: AbortSignal): Promise<Hosted> {
    const key = `${runtime.name}/${id}`;
    if (!this.#hosted.has(key)) await this.#list(runtime, signal);
    const hosted = this.#hosted.get(key);
    if (hosted !== undefined) return hosted;
    throw new Failure('lost', `this worker no longer has machine ${id}`);
  }

  // ---- making and taking away

  async #make(
    runtime: Runtime,
    { do: what, spec, files }: Extract<RuntimeCall, { do: 'create' | 'start' }>,
    { call, signal, confirmed, input }: Asked,
  ) {
    const { id } = spec;
    const doing = `${what === 'create' ? 'make' : 'start'} machine ${id}`;
    await this.#allowMounts(spec.mounts, doing);
    const start = runtime.start?.bind(runtime);
    if (what === 'start' && start === undefined)
      throw new Failure('unsupported', `${doing}: runtime ${runtime.name} cannot start machines again`);
    const fresh = await this.#claim(runtime, id, what);
    let hosted: Hosted;
    try {
      if (what === 'create') await writeFile(this.#imageFile(id), spec.image, { mode: 0o600 });
      await this.#writeFiles(id, files, input);
      await this.#openSocket(runtime, id);
      const wanted = this.#specOf(spec, (line) => call.reply({ type: 'progress', line: cut(line) }));
      const machine = await (what === 'create' ? runtime.create(wanted, signal) : start?.(wanted, signal));
      hosted = this.#host(runtime, machine as Machine);
    } catch (error) {
      // The runtime has left nothing, or what was there before.
      if (what === 'create') await this.#clear(id);
      else {
        await this.#closeSocket(id);
        // Nothing was kept there: it was removed, and so is this.
        if (fresh) await rm(this.#runFolder(id), { recursive: true, force: true });
      }
      await rm(this.#makingFile(id), { force: true });
      throw error;
    }
    call.reply({ type: 'done', machine: factsOf(hosted) });
    if (await confirmed) {
      await rm(this.#makingFile(id), { force: true });
      return {};
    }
    await this.#undo(runtime, id, what);
    throw new Failure('aborted', `${doing}: it was no longer wanted`);
  }

  /** One at a time makes a machine of an id, and a new one takes no other's place. Resolves with whether it has made the run folder. */
  async #claim(runtime: Runtime, id: string, what: Making['what']): Promise<boolean> {
    const making: Making = { runtime: runtime.name, what };
    const conflict = (why: string) => new Failure('conflict', `machine ${id} ${why}`);
    await writeFile(this.#makingFile(id), JSON.stringify(making), { flag: 'wx', mode: 0o600 }).catch(
      (error) => {
        if ((error as NodeJS.ErrnoException).code === 'EEXIST') throw conflict('is being made or started');
        throw Failure.from(error, `make machine ${id}`);
      },
    );
    try {
      if (what === 'create')
        await mkdir(this.#runFolder(id), { mode: 0o755 }).catch((error) => {
          if ((error as NodeJS.ErrnoException).code === 'EEXIST') throw conflict('is there already');
          throw Failure.from(error, `make machine ${id}`);
        });
      else {
        const hosted = this.#hosted.get(`${runtime.name}/${id}`);
        if (hosted !== undefined && hosted.exit === undefined) throw conflict('is running');
        return (await mkdir(this.#runFolder(id), { recursive: true, mode: 0o755 })) !== undefined;
      }
      return true;
    } catch (error) {
      await rm(this.#makingFile(id), { force: true });
      throw error;
    }
  }

  async #undo(runtime: Runtime, id: string, what: Making['what']): Promise<void> {
    const signal = AbortSignal.timeout(undoDeadlineMs);
    try {
      const [hosted] = (await this.#list(runtime, signal)).filter(({ machine }) => machine.id === id);
      if (what === 'create') {
        await hosted?.machine.remove(signal);
        await this.#clear(id);
      } else {
        await hosted?.machine.keeping?.stop(signal);
        await this.#closeSocket(id);
      }
      await rm(this.#makingFile(id), { force: true });
    } catch (error) {
      // Its note stays, and the next process tries again.
      this.#options.log.error(
        { sandbox: id, error: String(error) },
        'what a lost controller had begun could not be undone',
      );
    }
  }

  async #remove(runtime: Runtime, id: string, signal: AbortSignal): Promise<void> {
    const key = `${runtime.name}/${id}`;
    if (!this.#hosted.has(key)) await this.#list(runtime, signal);
    const hosted = this.#hosted.get(key);
    // The folders may be those of another runtime's machine of this name.
    if (hosted === undefined) return;
    await hosted.machine.remove(signal);
    this.#hosted.delete(key);
    await this.#clear(id);
  }

  async #clear(id: string): Promise<void> {
    await this.#closeSocket(id);
    await rm(this.#runFolder(id), { recursive: true, force: true });
    await rm(this.#stateFolder(id), { recursive: true, force: true });
    await rm(this.#imageFile(id), { force: true });
  }

  async #openSocket(runtime: Runtime, machine: string): Promise<void> {
    await this.#closeSocket(machine);
    const runFolder = this.#runFolder(machine);
    const socket = await MachineSocket.open(runFolder, {
      ...{ link: this.#options.link, runtime: runtime.name, machine, count: this.#count },
      // Nothing else of the guest runs before its agent has dialled; what does later must not find the agent's token.
      onFirst: () => void rm(join(runFolder, 'boot.json'), { force: true }).catch(() => undefined),
    });
    this.#sockets.set(machine, socket);
  }

  async #closeSocket(machine: string): Promise<void> {
    const socket = this.#sockets.get(machine);
    this.#sockets.delete(machine);
    await socket?.close();
  }

  async #writeFiles(id: string, files: readonly RunFile[], source: AsyncIterable<Uint8Array>): Promise<void> {
    const total = files.reduce((sum, it) => sum + it.sizeBytes, 0);
    if (total > runFilesBytesMax)
      throw new Failure('invalid', `machine ${id}: ${total} bytes of files; the most is ${runFilesBytesMax}`);
    const pieces: Uint8Array[] = [];
    for await (const bytes of source) pieces.push(bytes.slice());
    const all = Buffer.concat(pieces);
    if (all.length !== total)
      throw new Failure(
        'protocol',
        `machine ${id}: ${all.length} bytes of files came where ${total} were said`,
      );
    let at = 0;
    for (const { path, mode, sizeBytes } of files) {
      const file = join(this.#runFolder(id), path);
      await mkdir(dirname(file), { recursive: true, mode: 0o755 });
      // Never over what is there: the guest sees this folder read-only, and a running one holds its files.
      await rm(file, { force: true });
      await writeFile(file, all.subarray(at, at + sizeBytes), { mode });
      at += sizeBytes;
    }
  }

  /** Paths of the controller mean nothing here, but for those that the worker's owner has named. */
  async #allowMounts(mounts: WireSpec['mounts'], doing: string): Promise<void> {
    for (const { hostPath, overlay } of mounts)
      for (const path of [hostPath, ...(overlay === undefined ? [] : [overlay.upper, overlay.work])])
        if (!(await this.#isBelowMountFolder(path)))
          throw new Failure(
            'unsupported',
            `${doing}: ${path} is no folder that this worker shows to sandboxes`,
            {
              hint: 'Sync the folder or copy it into the sandbox instead, or start the worker with --mount-folder.',
            },
          );
  }

  async #isBelowMountFolder(path: string): Promise<boolean> {
    const target = await realpath(path).catch(() => undefined);
    // A path that leads elsewhere may lead elsewhere again by the time it is mounted.
    if (target !== path) return false;
    for (const folder of this.#options.mountFolders ?? []) {
      const root = await realpath(folder).catch(() => undefined);
      if (
        root !== undefined &&
        (target === root || target.startsWith(root.endsWith(sep) ? root : root + sep))
      )
        return true;
    }
    return false;
  }

  #specOf(spec: WireSpec, onProgress: (line: string) => void): MachineSpec {
    return plain({
      ...spec,
      mounts: spec.mounts.map((it): Mount => plain(it)),
      runFolder: this.#runFolder(spec.id),
      stateFolder: this.#stateFolder(spec.id),
      onProgress,
    }) as MachineSpec;
  }

  #runFolder(id: string): string {
    return join(this.#options.home, 'run', id);
  }

  #stateFolder(id: string): string {
    return join(this.#options.home, 'machines', id);
  }

  #imageFile(id: string): string {
    return join(this.#options.home, imagesFolder, id);
  }

  #makingFile(id: string): string {
    return join(this.#options.home, 'making', id);
  }

  async #making(id: string): Promise<Making | undefined> {
    if (!MachineId.safeParse(id).success) return undefined;
    try {
      const { runtime, what } = JSON.parse(await readFile(this.#makingFile(id), 'utf8'));
      return what === 'create' || what === 'start' ? { runtime: String(runtime), what } : undefined;
    } catch {
      // Cut short by a crash: nothing was begun before it was whole.
      return undefined;
    }
  }
}

/** Names of the images of all machines that there are on the worker of this home, running or not, and of those that are being made. */
export function imagesOfMachines(home: string): string[] {
  const folder = join(home, imagesFolder);
  return (
    unlessGone(() => readdirSync(folder), folder)?.flatMap((id) => {
      const file = join(folder, id);
      return unlessGone(() => readFileSync(file, 'utf8'), file) ?? [];
    }) ?? []
  );
}

function unlessGone<T>(read: () => T, path: string): T | undefined {
  try {
    return read();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw Failure.from(error, `read ${path}`);
  }
}

/** One request while it is answered. */
interface Asked {
  call: IncomingCall;
  /** Aborted when the controller no longer wants it, or is gone. */
  signal: AbortSignal;
  /** Resolves, never rejects: whether the controller has taken what was made. */
  confirmed: Promise<boolean>;
  /** The bytes that come with the request; read at most once. */
  input: AsyncIterable<Uint8Array>;
}

function imagesOf(runtime: Runtime): RuntimeImages {
  if (runtime.images !== undefined) return runtime.images;
  throw new Failure('unsupported', `runtime ${runtime.name} keeps no images`);
}

function memoryOf(machine: Machine): MemoryUse | undefined {
  try {
    return machine.memory?.();
  } catch {
    // It went while we looked.
    return undefined;
  }
}

function sameUse(a: MemoryUse, b: MemoryUse | undefined): boolean {
  return a.kills === b?.kills && a.peakBytes === b.peakBytes;
}

function factsOf({ machine, run, exit, memory, paused = machine.paused }: Hosted): MachineFacts {
  const used = memory ?? memoryOf(machine);
  return {
    ...{ id: machine.id, run, image: machine.image, paused, network: machine.network },
    pauses: machine.pausing !== undefined,
    keeps: machine.keeping !== undefined,
    saves: machine.saving !== undefined,
    ...(used === undefined ? {} : { memory: used }),
    ...(exit === undefined ? {} : { exit: wireExit(exit) }),
  };
}

function wireExit({ at, message, ...exit }: MachineExit): WireExit {
  return { ...exit, message: cut(message), at: at.getTime() };
}

function wireImage({ createdAt, ...image }: KeptImage): WireImage {
  return { ...image, createdAt: createdAt.getTime() };
}

/** Of at most so many items, and about so many bytes. */
function* chunked<T>(items: readonly T[]): Generator<T[]> {
  let chunk: T[] = [];
  let bytes = 0;
  for (const item of items) {
    const size = JSON.stringify(item).length;
    if (chunk.length > 0 && (chunk.length === chunkItems || bytes + size > chunkBytes)) {
      yield chunk;
      chunk = [];
      bytes = 0;
    }
    chunk.push(item);
    bytes += size;
  }
  if (chunk.length > 0) yield chunk;
}

function errorReply(thrown: unknown): Extract<LinkReply, { type: 'error' }> {
  const { code, message, hint, details } = Failure.from(thrown, 'answer the controller');
  const told = Object.entries(details ?? {}).filter(
    ([, value]) =>
      ['string', 'number', 'boolean'].includes(typeof value) ||
      (Array.isArray(value) && value.length <= 256 && value.every((it) => typeof it === 'string')),
  ) as [string, string | number | boolean | string[]][];
  return {
    ...{ type: 'error', code, message: cut(message) },
    ...(hint === undefined ? {} : { hint: cut(hint) }),
    ...(told.length === 0 ? {} : { details: Object.fromEntries(told) }),
  };
}

function cut(text: string): string {
  return text.slice(0, 4096);
}

type Plain<T> = { [Key in keyof T]: Exclude<T[Key], undefined> };

/** Without the members that are undefined, which a schema allows and our types do not. */
function plain<T extends object>(value: T): Plain<T> {
  return Object.fromEntries(Object.entries(value).filter(([, it]) => it !== undefined)) as Plain<T>;
}
