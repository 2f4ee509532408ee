// Machines on a worker while the link to it is cut, gone, or hostile, and while the worker or the controller is replaced.
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { mkdir, rm } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { leftovers, makeHome } from '../../test/daemon.ts';
import type { Channel } from '../channel/channel.ts';
import { Pattern, seeded } from '../channel/faults.ts';
import { guestProtocol } from '../contract/guest.ts';
import type { LinkReply, LinkRequest } from '../contract/worker-link.ts';
import type { Guest, GuestProcess } from '../guest/guest.ts';
import type { Log } from '../lib/log.ts';
import { MemoryRuntime } from '../runtime/memory/memory.ts';
import type { KeptImage, Machine, MachineSpec, Runtime, RuntimeImages } from '../runtime/runtime.ts';
import { type AgentDoor, openDoor } from '../sandbox/door.ts';
import { ControllerEnd, noLog, WorkerEnd } from './linked.fixture.ts';
import { AgentRelay, linkStreamsMax, machineStreamsMax, StreamCount } from './relay.ts';
import { RemoteRuntime, type RemoteRuntimeOptions } from './remote-runtime.ts';
import { ask, type Call, takeCalls } from './rpc.ts';
import { imagesOfMachines, RuntimeHost } from './runtime-host.ts';

const soon = () => AbortSignal.timeout(60_000);
const path = { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' };

let here: string;
let there: string;
let undo: (() => unknown)[];

beforeEach(() => {
  here = makeHome();
  there = makeHome();
  mkdirSync(join(here, 'run'));
  undo = [];
});

afterEach(async () => {
  for (const step of undo.reverse()) await step();
  for (const home of [here, there]) rmSync(home, { recursive: true, force: true });
});

/** The controller's side of one runtime of the worker. */
interface Near {
  end: ControllerEnd;
  remote: RemoteRuntime;
  logged: { message: string; fields: Record<string, unknown> }[];
}

function near(runtime = 'memory', options: { graceMs?: number } & Partial<RemoteRuntimeOptions> = {}): Near {
  const { graceMs, ...rest } = options;
  const end = new ControllerEnd(graceMs === undefined ? {} : { graceMs });
  const logged: Near['logged'] = [];
  const write = (fields: Record<string, unknown>, message: string) => void logged.push({ fields, message });
  const log: Log = { debug: write, info: write, warn: write, error: write };
  const relay = new AgentRelay({ link: end.link, log });
  const remote = new RemoteRuntime({
    ...{ link: end.link, relay, runtime, log },
    runFolderOf: (machine) =>
      existsSync(join(here, 'run', machine)) ? join(here, 'run', machine) : undefined,
    ...rest,
  });
  undo.push(() => {
    remote[Symbol.dispose]();
    end.leave();
  });
  return { end, remote, logged };
}

/** The worker's side, in this process. */
async function far(
  runtimes: Runtime[],
  reach: () => ControllerEnd,
): Promise<{ worker: WorkerEnd; host: RuntimeHost }> {
  const worker = new WorkerEnd(reach);
  const host = await RuntimeHost.open({ link: worker.link, runtimes, home: there, log: noLog });
  undo.push(async () => {
    await host.close();
    worker.leave();
  });
  return { worker, host };
}

const connected = ({ end }: Near) => vi.waitFor(() => expect(end.link.connected).toBe(true));

interface Running {
  machine: Machine;
  guest: Guest;
  door: AgentDoor;
  spec: MachineSpec;
  token: string;
}

function specOf(changes: Partial<MachineSpec> = {}): MachineSpec {
  const id = `m-${randomBytes(5).toString('hex')}`;
  const folders = { runFolder: join(here, 'run', id), stateFolder: join(here, 'machines', id) };
  return { ...{ id, image: 'any', limits: {}, mounts: [], labels: {} }, ...folders, ...changes };
}

async function openAt(spec: MachineSpec, token: string): Promise<AgentDoor> {
  await mkdir(spec.runFolder, { recursive: true, mode: 0o755 });
  const boot = { protocol: guestProtocol, sandboxId: spec.id, token };
  writeFileSync(join(spec.runFolder, 'boot.json'), JSON.stringify(boot), { mode: 0o644 });
  return openDoor({ runFolder: spec.runFolder, token, onRefused: () => {} });
}

async function start(remote: Runtime, changes: Partial<MachineSpec> = {}): Promise<Running> {
  const spec = specOf(changes);
  const token = randomBytes(24).toString('base64url');
  const door = await openAt(spec, token);
  undo.push(() => door.close());
  const machine = await remote.create(spec, soon());
  undo.push(() => machine.remove(soon()).catch(() => undefined));
  const guest = await door.connected(soon());
  return { machine, guest, door, spec, token };
}

const run = (guest: Guest, line: string, execId = randomBytes(4).toString('hex')) =>
  guest.exec({ execId, argv: ['sh', '-c', line], env: path, cwd: '/', stdin: 'none' }, soon());

async function outputOf(process: GuestProcess): Promise<string> {
  const pieces: Uint8Array[] = [];
  for await (const piece of process.output) {
    expect(piece.type).toBe('output');
    if (piece.type === 'output') pieces.push(piece.bytes);
  }
  return String(Buffer.concat(pieces));
}

const memory = () => new MemoryRuntime({ acknowledgeNoIsolation: true });
const lines = (count: number) => Array.from({ length: count }, (_, at) => `${at + 1}\n`).join('');

describe('while the link comes and goes', () => {
  test('commands and files go on over cuts at any moment, every byte once', async () => {
    const it = near();
    await far([memory()], () => it.end);
    await connected(it);
    const { guest } = await start(it.remote);
    const random = seeded(5);
    let cuts = 0;
    let cutting = true;
    const cutter = (async () => {
      while (cutting) {
        await new Promise((resolve) => setTimeout(resolve, 20 + random() * 120));
        it.end.cut();
        cuts++;
      }
    })();
    try {
      const pattern = new Pattern(3);
      const size = 4_000_000;
      const file = join(there, 'file');
      async function* source() {
        for (let at = 0; at < size; at += 50_000) yield pattern.bytes(at, 50_000);
      }
      const writing = guest.write(file, source(), {}, soon());
      const commands = Array.from({ length: 5 }, async () => outputOf(await run(guest, 'seq 1 20000')));
      expect(await writing).toBe(size);
      for (const output of await Promise.all(commands)) expect(output === lines(20_000)).toBe(true);
      let at = 0;
      while (at < size) {
        // The agent of this runtime has no connections for bytes alone, which longer pieces would ask for.
        const { bytes } = await guest.read(file, { offset: at, length: 200_000 }, soon());
        for await (const piece of bytes) {
          expect(pattern.differsAt(at, piece)).toBe(-1);
          at += piece.length;
        }
      }
      expect(at).toBe(size);
      await vi.waitFor(() => expect(cuts).toBeGreaterThan(3));
    } finally {
      cutting = false;
      await cutter;
    }
    expect(it.end.errors).toEqual([]);
  });

  test('machines are made and taken away over cuts at any moment: each call is done or has left nothing', async () => {
    const it = near('memory', { graceMs: 50 });
    await far([memory()], () => it.end);
    await connected(it);
    const random = seeded(9);
    for (let round = 0; round < 12; round++) {
      const spec = specOf();
      const door = await openAt(spec, 'token');
      const timer = setTimeout(() => {
        it.end.open = false;
        it.end.cut();
        setTimeout(() => {
          it.end.open = true;
        }, 200);
      }, random() * 60);
      const made = await it.remote.create(spec, soon()).catch((thrown) => thrown);
      await new Promise((resolve) => setTimeout(resolve, 60));
      clearTimeout(timer);
      await connected(it);
      if (made instanceof Error)
        expect(made).toMatchObject({ code: expect.stringMatching(/unavailable|lost/) });
      else await vi.waitFor(() => made.remove(soon()));
      await door.close();
      await rm(spec.runFolder, { recursive: true });
    }
    await vi.waitFor(async () => expect(await it.remote.list(soon())).toEqual([]));
    expect(['run', 'machines', 'making'].flatMap((name) => readdirSync(join(there, name)))).toEqual([]);
  });

  test('a worker out of reach ends nothing: calls fail, its machines are there again with it', async () => {
    const it = near('memory', { graceMs: 100 });
    await far([memory()], () => it.end);
    await connected(it);
    const { machine, guest, door } = await start(it.remote);
    let exited = false;
    void machine.exited.then(() => {
      exited = true;
    });
    const reach: boolean[] = [];
    machine.reach?.onChange((reachable) => {
      reach.push(reachable);
      if (reachable) door.release();
      else door.hold();
    });
    it.end.open = false;
    it.end.cut();
    await vi.waitFor(() => expect(reach).toEqual([false]));
    const unavailable = {
      code: 'unavailable',
      message: expect.stringContaining('worker w1 is not connected'),
    };
    expect(await it.remote.list(soon()).catch((thrown) => thrown)).toMatchObject(unavailable);
    expect(await it.remote.create(specOfReady(), soon()).catch((thrown) => thrown)).toMatchObject(
      unavailable,
    );
    expect(await machine.remove(soon()).catch((thrown) => thrown)).toMatchObject(unavailable);
    expect(await it.remote.check(soon())).toMatchObject({
      usable: false,
      problems: [{ message: 'worker w1 is not connected', fatal: true }],
    });
    it.end.open = true;
    await vi.waitFor(() => expect(reach).toEqual([false, true]));
    expect(await outputOf(await run(guest, 'echo back'))).toBe('back\n');
    expect(exited).toBe(false);
    expect(await it.remote.list(soon())).toEqual([machine]);
  });

  function specOfReady(): MachineSpec {
    const spec = specOf();
    mkdirSync(spec.runFolder);
    return spec;
  }

  test('a worker that comes back without a machine tells of its end', async () => {
    const it = near('memory', { graceMs: 50 });
    const first = await far([memory()], () => it.end);
    await connected(it);
    const { machine } = await start(it.remote);
    first.worker.leave();
    await first.host.close();
    // Machines of this runtime are objects of its process: the next one has none.
    await far([memory()], () => it.end);
    expect(await machine.exited).toMatchObject({
      reason: 'lost',
      message: expect.stringContaining('no longer has it'),
    });
    expect(await it.remote.list(soon())).toEqual([]);
  });

  test('the removal of a worker ends its machines, and they can be removed without it', async () => {
    const it = near();
    await far([memory()], () => it.end);
    await connected(it);
    const { machine } = await start(it.remote);
    it.end.revoke();
    expect(await machine.exited).toMatchObject({ reason: 'lost', message: 'worker w1 was removed' });
    await machine.remove(soon());
  });

  test('a worker that was let go ends its machines, with all that they run, and leaves nothing of them', async () => {
    const it = near();
    const { host } = await far([memory()], () => it.end);
    await connected(it);
    const machines = [await start(it.remote), await start(it.remote)];
    const pids = join(there, 'pids');
    for (const { guest } of machines) (await run(guest, `echo $$ >>${pids}; exec sleep 100000`)).detach();
    await expect.poll(() => existsSync(pids) && readFileSync(pids, 'utf8').trim().split('\n').length).toBe(2);
    it.end.revoke();
    await host.removeAll();
    for (const pid of readFileSync(pids, 'utf8').trim().split('\n'))
      await expect.poll(() => existsSync(`/proc/${pid}`)).toBe(false);
    for (const folder of ['run', 'machines', 'making', 'images-of'])
      expect(readdirSync(join(there, folder))).toEqual([]);
    for (const { machine } of machines) expect(await machine.exited).toMatchObject({ reason: 'lost' });
  });

  test('the next controller finds the machines, and commands go on with their output', async () => {
    let it = near();
    const reach = () => it.end;
    await far([memory()], reach);
    await connected(it);
    const { guest, spec, door, token } = await start(it.remote);
    const go = join(there, 'go');
    const command = await run(
      guest,
      `echo before; until [ -e ${go} ]; do sleep 0.05; done; echo after`,
      'job',
    );
    await door.leave();
    it.remote[Symbol.dispose]();
    it.end.leave();
    command.detach();
    it = near();
    await connected(it);
    const again = await openDoor({ runFolder: spec.runFolder, token, onRefused: () => {} });
    undo.push(() => again.close());
    const [found] = await it.remote.list(soon());
    expect(found?.id).toBe(spec.id);
    const next = await again.connected(soon());
    expect(await next.execs(soon())).toMatchObject([{ execId: 'job' }]);
    const attached = await next.attach('job', 0, soon());
    const output = outputOf(attached);
    writeFileSync(go, '');
    expect(await output).toBe('before\nafter\n');
    expect(await attached.exit).toMatchObject({ code: 0 });
  });
});

describe.runIf(process.env.GLOVEBOX_TEST_PRESENT?.split(',').includes('bubblewrap'))(
  'a worker whose process is killed',
  () => {
    /** Another process that serves bubblewrap to the controller, ready when it has said so. */
    async function farProcess(address: string): Promise<ChildProcess> {
      const child = spawn(process.execPath, [join(import.meta.dirname, 'far.fixture.ts'), address, there], {
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      undo.push(() => kill(child));
      const [line] = await new Promise<string[]>((resolve, reject) => {
        createInterface({ input: child.stdout as NodeJS.ReadableStream }).once('line', (it) => resolve([it]));
        child.once('exit', (code) => reject(new Error(`the worker ended with ${code}`)));
      });
      expect(line).toBe('ready');
      return child;
    }

    async function kill(child: ChildProcess): Promise<void> {
      if (child.exitCode !== null || child.signalCode !== null) return;
      const gone = new Promise((resolve) => child.once('exit', resolve));
      child.kill('SIGKILL');
      await gone;
    }

    const left = () => [
      ...['run', 'machines', 'making'].flatMap((name) => readdirSync(join(there, name))),
      ...leftovers(there),
    ];

    test('in the middle of commands: they go on, and their output comes whole', async () => {
      const it = near('bubblewrap', { graceMs: 100 });
      const address = await it.end.listen();
      const first = await farProcess(address);
      await connected(it);
      const { machine, guest, door, spec } = await start(it.remote, { image: 'host' });
      machine.reach?.onChange((reachable) => (reachable ? door.release() : door.hold()));
      const counting = await run(guest, 'seq 1 3000; until [ -e /gate ]; do sleep 0.05; done; seq 3001 6000');
      const output = outputOf(counting);
      await kill(first);
      await vi.waitFor(() => expect(it.end.link.connected).toBe(false));
      await farProcess(address);
      await connected(it);
      await guest.write('/gate', (async function* () {})(), {}, soon());
      expect(await outputOf(await run(guest, 'echo back'))).toBe('back\n');
      expect(await output).toContain('3000\n');
      expect(await it.remote.list(soon())).toEqual([machine]);
      expect(existsSync(join(there, 'run', spec.id, 'boot.json'))).toBe(false);
      await machine.remove(soon());
      expect(await machine.exited).toMatchObject({ reason: 'removed' });
      await vi.waitFor(() => expect(left().filter((path) => !path.startsWith('process'))).toEqual([]));
    });

    test('at any moment of a creation or a start: it fails, and the next process leaves nothing of it', async () => {
      const it = near('bubblewrap', { graceMs: 100 });
      const address = await it.end.listen();
      let child = await farProcess(address);
      await connected(it);
      const kept = await start(it.remote, { image: 'host' });
      await kept.machine.keeping?.stop(soon());
      for (const waitMs of [0, 15, 40, 80, 150]) {
        const spec = specOf({ image: 'host' });
        const door = await openAt(spec, 'token');
        const creating = it.remote.create(spec, soon()).catch((thrown) => thrown);
        const starting = it.remote.start?.(kept.spec, soon()).catch((thrown) => thrown);
        await new Promise((resolve) => setTimeout(resolve, waitMs));
        await kill(child);
        const results = await Promise.all([creating, starting]);
        child = await farProcess(address);
        await connected(it);
        // Either it was done, and is there, or it was taken back.
        const machines = await it.remote.list(soon());
        const byId = new Map(machines.map((machine) => [machine.id, machine]));
        const [created, started] = results;
        if (created instanceof Error) {
          expect(created).toMatchObject({ code: 'unavailable' });
          expect(byId.has(spec.id)).toBe(false);
          expect(existsSync(join(there, 'run', spec.id))).toBe(false);
        } else await byId.get(spec.id)?.remove(soon());
        expect(byId.has(kept.spec.id)).toBe(true);
        if (started instanceof Error)
          expect(await byId.get(kept.spec.id)?.exited).toMatchObject({ reason: 'stopped' });
        else await byId.get(kept.spec.id)?.keeping?.stop(soon());
        await door.close();
        await rm(spec.runFolder, { recursive: true });
      }
      const [last] = await it.remote.list(soon());
      await last?.remove(soon());
      child.kill('SIGTERM');
      await new Promise((resolve) => child.once('exit', resolve));
      await vi.waitFor(() => expect(left()).toEqual([]));
    });
  },
);

describe('images and folders', () => {
  /** A runtime that has images and no machines but those of the memory runtime. */
  function withImages(delay: () => Promise<void> = async () => {}) {
    const stored = new Map<string, Buffer>();
    const loads: string[] = [];
    const aborted: string[] = [];
    const kept = (name: string): KeptImage => ({
      ...{ name, id: `sha256:${name}`, sizeBytes: stored.get(name)?.length ?? 0, createdAt: new Date(0) },
    });
    const images: RuntimeImages = {
      list: async () => [...stored.keys()].map(kept),
      has: async (name) => stored.has(name),
      remove: async (name) => void stored.delete(name),
      load: async (name, source, signal) => {
        loads.push(name);
        signal.addEventListener('abort', () => aborted.push(name));
        const pieces: Uint8Array[] = [];
        for await (const bytes of source) pieces.push(bytes.slice());
        await delay();
        signal.throwIfAborted();
        stored.set(name, Buffer.concat(pieces));
        return kept(name);
      },
      async *export(name) {
        yield stored.get(name) ?? Buffer.alloc(0);
      },
      build: async (name, { context }, onOutput) => {
        for await (const bytes of context) onOutput(`took ${bytes.length}`);
        stored.set(name, Buffer.from('built'));
        return kept(name);
      },
    };
    return { runtime: Object.assign(memory(), { images }), stored, loads, aborted };
  }

  test('an image that the worker lacks is sent once, for all who wait for it', async () => {
    const there = withImages();
    const asked: string[] = [];
    const it = near('memory', {
      imageSource: async (name) => {
        asked.push(name);
        if (name !== 'mine') return undefined;
        return (async function* () {
          for (let count = 0; count < 20; count++) yield Buffer.alloc(100_000, count);
        })();
      },
    });
    await far([there.runtime], () => it.end);
    await connected(it);
    const progress: string[] = [];
    const all = await Promise.all(
      Array.from({ length: 4 }, () =>
        start(it.remote, { image: 'mine', onProgress: (line) => void progress.push(line) }),
      ),
    );
    expect(all.length).toBe(4);
    expect(there.loads).toEqual(['mine']);
    expect(there.stored.get('mine')?.length).toBe(2_000_000);
    expect(progress).toContain('sending image mine to worker w1');
    await start(it.remote, { image: 'of a registry' });
    expect(there.loads).toEqual(['mine']);
    expect(asked).toEqual(['mine', 'of a registry']);
  });

  test('an image goes on its way for those who still wait, and not for nobody', async () => {
    const gate = Promise.withResolvers<void>();
    const there = withImages(() => gate.promise);
    const it = near('memory', {
      imageSource: async () =>
        (async function* () {
          yield Buffer.from('image');
        })(),
    });
    await far([there.runtime], () => it.end);
    await connected(it);
    const aborts = [new AbortController(), new AbortController()];
    const creations = aborts.map(async (abort) => {
      const spec = specOf({ image: 'mine' });
      mkdirSync(spec.runFolder);
      return it.remote.create(spec, abort.signal).catch((thrown) => thrown);
    });
    await vi.waitFor(() => expect(there.loads).toEqual(['mine']));
    aborts[0]?.abort();
    expect(await creations[0]).toMatchObject({ code: 'aborted' });
    expect(there.aborted).toEqual([]);
    aborts[1]?.abort();
    expect(await creations[1]).toMatchObject({ code: 'aborted' });
    await vi.waitFor(() => expect(there.aborted).toEqual(['mine']));
    gate.resolve();
    expect(await it.remote.images?.list(soon())).toEqual([]);
    expect(there.stored.has('mine')).toBe(false);
  });

  test('images of machines are known from before they are made until they are removed, also to the next process', async () => {
    const it = near();
    let seenAtCreation: string[] = [];
    class Seeing extends MemoryRuntime {
      override async create(spec: MachineSpec, signal: AbortSignal): Promise<Machine> {
        seenAtCreation = imagesOfMachines(there);
        if (spec.image === 'fails') throw new Error('no room');
        return super.create(spec, signal);
      }
    }
    const runtime = new Seeing({ acknowledgeNoIsolation: true });
    const first = await far([runtime], () => it.end);
    await connected(it);
    const one = await start(it.remote, { image: 'one:latest' });
    expect(seenAtCreation).toEqual(['one:latest']);
    await expect(start(it.remote, { image: 'fails' })).rejects.toThrow();
    expect(seenAtCreation.sort()).toEqual(['fails', 'one:latest']);
    expect(imagesOfMachines(there)).toEqual(['one:latest']);
    first.worker.leave();
    await first.host.close();
    writeFileSync(join(there, 'images-of', 'gone'), 'of a machine that is no more');
    await far([runtime], () => it.end);
    expect(imagesOfMachines(there)).toEqual(['one:latest']);
    await connected(it);
    await one.machine.remove(soon());
    expect(imagesOfMachines(there)).toEqual([]);
  });

  test('the store of the worker is as its own: names, bytes both ways, builds, refusals', async () => {
    const there = withImages();
    const it = near();
    await far([there.runtime], () => it.end);
    await connected(it);
    const images = it.remote.images as RuntimeImages;
    async function* big() {
      for (let count = 0; count < 30; count++) yield Buffer.alloc(70_000, count);
    }
    expect(await images.load('a', big(), soon())).toMatchObject({ name: 'a', sizeBytes: 2_100_000 });
    expect(await images.has('a', soon())).toBe(true);
    expect(await images.list(soon())).toEqual([
      { name: 'a', id: 'sha256:a', sizeBytes: 2_100_000, createdAt: new Date(0) },
    ]);
    let bytes = 0;
    for await (const piece of images.export('a', soon())) bytes += piece.length;
    expect(bytes).toBe(2_100_000);
    for await (const _ of images.export('a', soon())) break;
    const said: string[] = [];
    const build = { dockerfile: 'Dockerfile', args: {}, noCache: false, network: false };
    const context = (async function* () {
      yield Buffer.from('a context');
    })();
    expect(await images.build?.('b', { ...build, context }, (text) => said.push(text), soon())).toMatchObject(
      { name: 'b' },
    );
    expect(said).toEqual(['took 9']);
    const failing = (async function* () {
      yield Buffer.from('x');
      throw new Error('the disk here broke');
    })();
    expect(await images.load('c', failing, soon()).catch((thrown) => thrown)).toMatchObject({
      message: expect.stringContaining('the disk here broke'),
    });
    await images.remove('a', soon());
    expect(await images.has('a', soon())).toBe(false);
    expect(await images.has('c', soon())).toBe(false);
  });

  test('a folder of the controller is none of the worker’s, and one that its owner has named is shown', async () => {
    const it = near();
    const shown = join(there, 'shown');
    mkdirSync(join(shown, 'below'), { recursive: true });
    const worker = new WorkerEnd(() => it.end);
    const host = await RuntimeHost.open({
      ...{ link: worker.link, runtimes: [memory()], home: there, log: noLog, mountFolders: [shown] },
    });
    undo.push(async () => {
      await host.close();
      worker.leave();
    });
    await connected(it);
    const mount = (hostPath: string) => ({ mounts: [{ hostPath, guestPath: hostPath, readOnly: true }] });
    for (const path of [here, '/etc', `${shown}/../machines`, `${shown}-else`]) {
      const failure = await start(it.remote, mount(path)).catch((thrown) => thrown);
      expect(failure, path).toMatchObject({
        code: 'unsupported',
        message: expect.stringContaining(path),
        hint: expect.stringMatching(/sync/i),
      });
    }
    await start(it.remote, mount(join(shown, 'below')));
    expect(readdirSync(join(there, 'run')).length).toBe(1);
  });
});

describe('a hostile worker', () => {
  /** A worker of the test's making: what it answers to each request, and its channel. */
  async function hostile(
    it: Near,
    answer: (call: Call, wanted: LinkRequest['call']) => void,
  ): Promise<Channel> {
    const worker = new WorkerEnd(() => it.end);
    undo.push(() => worker.leave());
    const channel = await new Promise<Channel>((resolve) => {
      worker.link.onChannel((channel) => {
        takeCalls(channel, (call) => answer(call, (call.request as LinkRequest).call));
        resolve(channel);
      });
    });
    await connected(it);
    return channel;
  }

  const facts = (id: string, more: object = {}) => ({
    ...{ id, run: `${id}.1`, image: { env: {}, entrypoint: [] }, paused: false, network: 'captured' },
    ...{ pauses: false, keeps: false, saves: false, ...more },
  });

  const lies: [string, unknown[], RegExp][] = [
    ['what is no reply', [{ type: 'surprise' }], /broke the rules/],
    [
      'a machine whose id is a path',
      [{ type: 'machines', machines: [facts('../../etc')] }],
      /broke the rules/,
    ],
    [
      'a machine twice',
      [{ type: 'machines', machines: [facts('a'), facts('a')] }],
      /told of machine a twice/,
    ],
    [
      'machines without end',
      Array.from({ length: 41 }, (_, at) => ({
        type: 'machines',
        machines: Array.from({ length: 256 }, (_, item) => facts(`m${at}-${item}`)),
      })),
      /more than 10000 machines/,
    ],
    ['nothing at all', [], /ended without an answer/],
  ];
  test.each(lies)('that answers a list with %s is refused', async (_, replies, message) => {
    const it = near();
    await hostile(it, (call, wanted) => {
      if (wanted.do !== 'list') return;
      for (const reply of replies) call.reply(reply);
      call.end();
    });
    const failure = await it.remote.list(soon()).catch((thrown) => thrown);
    expect(failure).toMatchObject({ code: 'protocol', message: expect.stringMatching(message) });
  });

  test('that names another machine than it was asked to make gets no machine', async () => {
    const it = near();
    await hostile(it, (call, wanted) => {
      if (wanted.do === 'create') call.reply({ type: 'done', machine: facts('another') });
    });
    const spec = specOf();
    mkdirSync(spec.runFolder);
    expect(await it.remote.create(spec, soon()).catch((thrown) => thrown)).toMatchObject({
      code: 'protocol',
    });
  });

  test('reaches the door of no machine that was not put there, and it is logged', async () => {
    // A sandbox of somebody else, with a door.
    const it = near('memory', { runFolderOf: () => undefined });
    const spec = specOf();
    const door = await openAt(spec, 'token');
    undo.push(() => door.close());
    const channel = await hostile(it, () => {});
    for (const [runtime, machine] of [
      ['memory', spec.id],
      ['bubblewrap', spec.id],
      ['memory', '../run'],
    ] as const) {
      const call = ask(channel, { op: 'agent', runtime, machine });
      await vi.waitFor(() => expect(call.goneReason).toMatchObject({ code: 'refused' }));
    }
    expect(it.logged.map(({ message }) => message)).toEqual([
      'a connection of an agent on a worker was refused',
    ]);
  });

  test('has so many connections for one machine, and so many in all, and a greedy machine leaves the others theirs', () => {
    const count = new StreamCount();
    let own = 0;
    while (count.take('greedy') !== undefined) own++;
    expect(own).toBe(machineStreamsMax);
    const gave: (() => void)[] = [];
    for (let machine = 0; machine < 200; machine++)
      for (;;) {
        const give = count.take(`m${machine}`);
        if (give === undefined) break;
        gave.push(give);
      }
    expect(own + gave.length).toBe(linkStreamsMax);
    expect(count.take('late')).toBeUndefined();
    for (const give of gave) {
      give();
      give();
    }
    expect(count.take('greedy')).toBeUndefined();
    expect(count.take('late')).toBeDefined();
  });

  test('that floods a machine’s door with connections has its bound of them', async () => {
    const it = near();
    const spec = specOf();
    const door = await openAt(spec, 'token');
    undo.push(() => door.close());
    const channel = await hostile(it, () => {});
    const calls = Array.from({ length: machineStreamsMax + 20 }, () =>
      ask(channel, { op: 'agent', runtime: 'memory', machine: spec.id }),
    );
    await vi.waitFor(() =>
      expect(
        calls.filter(({ goneReason }) => goneReason?.code === 'exhausted').length,
      ).toBeGreaterThanOrEqual(20),
    );
    expect(it.end.link.connected).toBe(true);
  });

  test('that tells of ends of machines that nobody knows is not remembered', async () => {
    const it = near();
    await hostile(it, (call, wanted) => {
      const say = (reply: unknown) => call.reply(reply as LinkReply);
      if (wanted.do === 'watch') {
        say({ type: 'facts', facts: { starts: false, images: false, builds: false } });
        say({ type: 'ready' });
        for (let at = 0; at < 3_000; at++)
          say({
            type: 'exited',
            machine: `m${at}`,
            run: `r${at}`,
            exit: { reason: 'exited', message: '', at: 0 },
          });
      }
      if (wanted.do === 'list') {
        say({ type: 'machines', machines: [facts('mine')] });
        say({ type: 'done' });
      }
    });
    const [machine] = await it.remote.list(soon());
    expect(machine).toMatchObject({ id: 'mine' });
    expect(it.remote.start).toBeUndefined();
    expect(it.remote.images).toBeUndefined();
  });
});

test('a guest’s connection that is cut at one end ends at the other, and half a connection stays half', async () => {
  const it = near();
  await far([memory()], () => it.end);
  await connected(it);
  const { spec } = await start(it.remote);
  const socket = connect(join(there, 'run', spec.id, 'agent.sock'));
  const closed = new Promise((resolve) => socket.once('close', resolve));
  socket.on('error', () => undefined);
  // No hello: the door at the other end refuses it, and says so before it closes.
  const heard: Buffer[] = [];
  socket.on('data', (bytes) => heard.push(bytes));
  socket.write('this is no hello, and too long for a header');
  await closed;
});
