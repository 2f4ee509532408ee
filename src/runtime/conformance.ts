// What every runtime owes, as tests: a driver's test file calls `runtimeConformance`. Nothing is skipped in silence: which facts apply follows from
// the capabilities that the driver states, and where an ability is missing, the test is that it is refused.
// The guest is asked from inside, as its root, through the same channel and agent as in the product.
import { randomBytes } from 'node:crypto';
import { existsSync, readFileSync, realpathSync, rmSync } from 'node:fs';
import { mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { networkInterfaces } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { agentCommand } from '../agent/bundle.ts';
import { type AgentBoot, guestProtocol } from '../contract/guest.ts';
import type { Guest } from '../guest/guest.ts';
import { Failure } from '../lib/failure.ts';
import { type AgentDoor, openDoor } from '../sandbox/door.ts';
import {
  type Argument,
  attempt,
  call,
  callsPerAttempt,
  hostCapabilities,
  listeners,
  type NetworkOutcome,
  type NetworkStep,
  nameQuestion,
  networkFile,
  quotaOf,
  tcp,
  udp,
  unixAddress,
  WayOut,
} from './conformance-probe.ts';
import type { Capabilities, ImageDefaults, Limits, Machine, MachineSpec, Runtime } from './runtime.ts';
import { probeFile, refusalAnswers, refusalCalls, refusals } from './seccomp/probe.ts';
import { hostArch, type SeccompArch } from './seccomp/profile.ts';

export interface ConformanceHarness {
  /** As `check` must state them. */
  capabilities: Capabilities;
  /** Another Runtime object over the same home, as a daemon would make after a restart. */
  open(): Runtime;
  /** An image with a shell and busybox's tools, and one with nothing but the file /busybox. */
  images: { shell: string; scratch: string };
  /** What the first of them says about commands. */
  defaults: ImageDefaults;
  /** Host folders below which each machine gets one of its own. */
  folders: { run: string; state: string };
  /** Ids of the host's processes in a machine. */
  processes(id: string): number[];
  /** Everything on the host that bears the home's mark: containers, processes, mounts, control groups, sockets, folders. Empty when all is clean. */
  leftovers(): string[];
  close(): void;
}

interface Running {
  machine: Machine;
  guest: Guest;
  door: AgentDoor;
  /** What the guest sends to the world, as it comes to the door. */
  out: WayOut;
  spec: MachineSpec;
}

interface Ran {
  code: number | null;
  signal: string | null;
  stdout: string;
  stderr: string;
}

/** How a guest runs Bun from the agent's folder, and where its libc lies there: so the image needs nothing for the probes. */
const bun = (() => {
  const command = agentCommand();
  const libraries = command[command.indexOf('--library-path') + 1];
  return {
    command: command.slice(0, command.findIndex((it) => it.endsWith('/bun')) + 1),
    libc: `${libraries}/libc.so.6`,
  };
})();

const mebibyte = 2 ** 20;
const settleMs = 30_000;
const searchPath = { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' };
const newId = () => `c-${randomBytes(5).toString('hex')}`;
const soon = () => AbortSignal.timeout(settleMs);

/** Declares the suite. `open` is called once, before the first test. */
export function runtimeConformance(
  name: string,
  stated: Capabilities,
  open: () => ConformanceHarness | Promise<ConformanceHarness>,
): void {
  describe(`${name}: what every runtime owes`, () => {
    let harness: ConformanceHarness;
    let runtime: Runtime;
    const running: Running[] = [];
    /** Names of images that may have been made; the last one first, for each may be built on those before. */
    const templates: string[] = [];

    beforeAll(async () => {
      harness = await open();
      runtime = harness.open();
    });
    afterEach(async () => {
      await Promise.all(running.splice(0).map(end));
      for (const name of templates.splice(0))
        if (await runtime.images?.has(name, soon())) await runtime.images?.remove(name, soon());
      await until(
        'what is left on the host',
        () => harness.leftovers(),
        (left) => left.length === 0,
      );
    });
    afterAll(() => harness?.close());

    const end = async ({ machine, door, spec }: Running) => {
      await machine.remove(soon());
      await door.close();
      await rm(spec.runFolder, { recursive: true, force: true });
    };
    const specOf = (changes: Partial<MachineSpec> = {}): MachineSpec => {
      const id = newId();
      const folders = {
        runFolder: join(harness.folders.run, id),
        stateFolder: join(harness.folders.state, id),
      };
      return { id, image: harness.images.shell, limits: {}, mounts: [], labels: {}, ...folders, ...changes };
    };
    /** A run folder with an open door, as the sandbox layer makes it. */
    const openRunFolder = async (spec: MachineSpec, out?: WayOut): Promise<AgentDoor> => {
      const boot: AgentBoot = {
        protocol: guestProtocol,
        sandboxId: spec.id,
        token: randomBytes(24).toString('base64url'),
      };
      await mkdir(spec.runFolder, { recursive: true, mode: 0o755 });
      await writeFile(join(spec.runFolder, 'boot.json'), JSON.stringify(boot), { mode: 0o644 });
      const onEgress = out && { onEgress: out.take };
      return openDoor({ runFolder: spec.runFolder, token: boot.token, onRefused: () => {}, ...onEgress });
    };
    const start = async (changes: Partial<MachineSpec> = {}): Promise<Running> => {
      const spec = specOf(changes);
      await using undo = new AsyncDisposableStack();
      undo.defer(() => rm(spec.runFolder, { recursive: true, force: true }));
      const out = new WayOut();
      const door = undo.adopt(await openRunFolder(spec, out), (it) => it.close());
      const machine = undo.adopt(await runtime.create(spec, soon()), (it) => it.remove(soon()));
      const died = machine.exited.then((exit) => expect.fail(`it ended before its hello: ${exit.message}`));
      died.catch(() => {});
      const guest = await Promise.race([door.connected(soon()), died]);
      undo.move();
      const result = { machine, guest, door, out, spec };
      running.push(result);
      return result;
    };
    /** What creating such a machine fails with; nothing of it may stay. */
    const refusal = async (changes: Partial<MachineSpec>): Promise<Failure> => {
      const failure = await start(changes).then(
        () => expect.fail('it was made'),
        (it) => it,
      );
      expect(failure).toBeInstanceOf(Failure);
      return failure;
    };

    test('states its capabilities, and is usable', async () => {
      const check = await runtime.check(soon());
      expect(check.capabilities).toEqual(stated);
      expect(check).toMatchObject({ usable: true });
    });

    test('a machine runs commands, and its image says what for', async () => {
      const { guest, machine } = await start();
      expect(machine.image).toEqual(harness.defaults);
      expect(machine.paused).toBe(false);
      expect(machine.network).toBe(stated.network);
      expect(await shell(guest, 'echo out; echo err >&2; exit 3')).toEqual({
        code: 3,
        signal: null,
        stdout: 'out\n',
        stderr: 'err\n',
      });
      expect((await shell(guest, 'echo "$GREETING"', { GREETING: 'hello' })).stdout).toBe('hello\n');
    });

    test('an image with one static program and nothing else runs it', async () => {
      const { guest } = await start({ image: harness.images.scratch });
      const program = stated.isolation === 'none' ? '/bin/busybox' : '/busybox';
      expect(await run(guest, [program, 'echo', 'alone'])).toMatchObject({ code: 0, stdout: 'alone\n' });
      if (stated.isolation === 'none') return;
      await guest.write('/new/file', Readable.from([Buffer.from('kept')]), {}, soon());
      const { bytes } = await guest.read('/new/file', {}, soon());
      expect(String(Buffer.concat(await bytes.toArray()))).toBe('kept');
    });

    test('commands run as the guest’s root, and as other users where the wall can', async () => {
      const { guest } = await start();
      const root = stated.isolation === 'none' ? process.getuid?.() : 0;
      expect((await shell(guest, 'id -u')).stdout).toBe(`${root}\n`);
      const asNobody = run(guest, ['id', '-u'], {}, '65534:65534');
      if (stated.users === 'all') {
        expect((await asNobody).stdout).toBe('65534\n');
        // What root may do in there is not handed on.
        const status = await run(guest, ['cat', '/proc/self/status'], {}, '65534:65534');
        expect(status.stdout).toMatch(/^CapEff:\t0+$/m);
      } else await expect(asNobody).rejects.toBeInstanceOf(Failure);
    });

    test('mounts are there, and read-only ones cannot be written', async () => {
      const hostPath = join(harness.folders.run, 'shared');
      try {
        await mkdir(hostPath, { mode: 0o777 });
        await writeFile(join(hostPath, 'file'), 'from the host');
        const at = stated.isolation === 'none' ? hostPath : '/mnt/shared';
        const { guest } = await start({ mounts: [{ hostPath, guestPath: at, readOnly: true }] });
        expect((await shell(guest, `cat ${at}/file`)).stdout).toBe('from the host');
        if (stated.isolation !== 'none') expect((await shell(guest, `echo x >${at}/file`)).code).not.toBe(0);
        expect(await readFile(join(hostPath, 'file'), 'utf8')).toBe('from the host');
      } finally {
        rmSync(hostPath, { recursive: true, force: true });
      }
    });

    test('an exact mount is what lies at its path, and never behind a link', async () => {
      if (runtime.hostRoot === undefined) return;
      const top = realpathSync(await mkdtemp(join(harness.folders.run, 'exact-')));
      try {
        await mkdir(join(top, 'there/deep'), { recursive: true, mode: 0o755 });
        await writeFile(join(top, 'there/deep/file'), 'from the host');
        await symlink(join(top, 'there'), join(top, 'link'));
        const mounted = (hostPath: string) =>
          start({ mounts: [{ hostPath, guestPath: '/mnt/shared', readOnly: true, exact: true }] });
        const { guest } = await mounted(join(top, 'there/deep'));
        expect((await shell(guest, 'cat /mnt/shared/file')).stdout).toBe('from the host');
        for (const path of ['link', 'link/deep'])
          await expect(mounted(join(top, path))).rejects.toMatchObject({ code: 'invalid' });
      } finally {
        rmSync(top, { recursive: true, force: true });
      }
    });

    test('the same id twice is a conflict, and the first machine stays', async () => {
      const { spec, guest } = await start();
      const failure = await runtime.create(spec, soon()).catch((it) => it);
      expect(failure).toMatchObject({ code: 'conflict' });
      await guest.ping(soon());
    });

    test('removing ends it, and all that it started, and may be repeated', async () => {
      const { guest, machine, spec } = await start();
      await shell(guest, '(sleep 3600 &) ; (sleep 3600 &)');
      const inside = harness.processes(spec.id);
      expect(inside.length).toBeGreaterThanOrEqual(stated.isolation === 'none' ? 0 : 3);
      await machine.remove(soon());
      await machine.remove(soon());
      expect(await machine.exited).toMatchObject({ reason: 'removed' });
      // The kernel may need a moment to bury the dead.
      const alive = () => inside.filter((pid) => existsSync(`/proc/${pid}`));
      await until('processes of a removed machine', alive, (pids) => pids.length === 0);
      expect(existsSync(spec.stateFolder)).toBe(false);
    });

    test('another daemon of the same home finds its machines, adopts them and removes them', async () => {
      const all = await Promise.all([start(), start()]);
      const later = harness.open();
      const found = await later.list(soon());
      expect(new Set(found.map((it) => it.id))).toEqual(new Set(all.map((it) => it.spec.id)));
      expect(found.map((it) => it.image)).toEqual(found.map(() => harness.defaults));
      expect(found.map((it) => it.network)).toEqual(found.map(() => stated.network));
      for (const machine of found) await machine.remove(soon());
      expect((await found[0]?.exited)?.reason).toBe('removed');
      // The earlier daemon learns of it, too.
      for (const { machine } of all) expect((await machine.exited).reason).toMatch(/removed|exited|lost/);
      expect(await later.list(soon())).toEqual([]);
    });

    /** Ends what runs, and makes it run again with a door of its own, as a sandbox's life does. */
    const startAgain = async (it: Running, by: Runtime = runtime): Promise<void> => {
      await it.door.close();
      it.door = await openRunFolder(it.spec, it.out);
      it.machine = (await by.start?.(it.spec, soon())) ?? expect.fail('it cannot start machines again');
      it.guest = await it.door.connected(soon());
    };
    const stop = async ({ machine }: Running) => machine.keeping?.stop(soon());

    if (!stated.keep) {
      test('keeps no machines, and does not pretend to', async () => {
        expect((await start()).machine.keeping).toBeUndefined();
        expect(runtime.start).toBeUndefined();
      });
    } else {
      test('what a machine has on its disk survives a stop, and what ran in it does not', async () => {
        const it = await start();
        await shell(it.guest, 'echo kept >/file; rm /etc/group; (exec sleep 3611 &)');
        const inside = harness.processes(it.spec.id);
        const startedAt = performance.now();
        await stop(it);
        expect(performance.now() - startedAt).toBeLessThan(5_000);
        expect(await it.machine.exited).toMatchObject({ reason: 'stopped' });
        expect(inside.filter((pid) => existsSync(`/proc/${pid}`))).toEqual([]);
        await stop(it);
        await startAgain(it);
        expect(it.machine).toMatchObject({ id: it.spec.id, paused: false, network: stated.network });
        expect(it.machine.image).toEqual(harness.defaults);
        expect(await shell(it.guest, 'cat /file; ls /etc/group; ps')).toMatchObject({
          stdout: expect.stringMatching(/^kept\n/),
          stderr: expect.stringContaining('/etc/group'),
        });
        expect((await shell(it.guest, 'ps -o args')).stdout).not.toContain('3611');
        await stop(it);
        expect(await it.machine.exited).toMatchObject({ reason: 'stopped' });
      });

      test('a machine that was started again has its way out through the door alone, as before', async () => {
        const it = await start();
        await stop(it);
        await startAgain(it);
        expect((await shell(it.guest, "sed -n 's/^ *\\([^ :]*\\):.*/\\1/p' /proc/net/dev")).stdout).toBe(
          'lo\n',
        );
        const capture = stated.network === 'captured';
        expect(await it.guest.egress({ capture, ports: capture ? [443] : [] }, soon())).toEqual({
          unavailable: 0,
        });
        await it.guest.write('/network.js', Readable.from([await readFile(networkFile)]), {}, soon());
        const step: NetworkStep = capture
          ? { kind: 'stream', address: '93.184.216.34', port: 443, send: 'hello' }
          : { kind: 'stream', address: '127.0.0.1', port: 3128, send: 'hello' };
        const ran = await run(it.guest, [...bun.command, '/network.js', JSON.stringify([step])]);
        expect(JSON.parse(ran.stdout)).toMatchObject([{ received: 'heard: hello' }]);
      });

      test('a machine that ended by itself can be started again', async () => {
        const it = await start();
        await shell(it.guest, 'echo kept >/file');
        for (const pid of harness.processes(it.spec.id)) {
          try {
            process.kill(pid, 'SIGKILL');
          } catch {
            // It went with another.
          }
        }
        await it.machine.exited;
        await startAgain(it);
        expect((await shell(it.guest, 'cat /file')).stdout).toBe('kept\n');
      });

      test('one that runs cannot be started, and one that was removed is not found', async () => {
        const it = await start();
        expect(await runtime.start?.(it.spec, soon()).catch((thrown) => thrown)).toMatchObject({
          code: 'conflict',
        });
        await stop(it);
        await it.machine.remove(soon());
        expect(await runtime.start?.(it.spec, soon()).catch((thrown) => thrown)).toMatchObject({
          code: 'not-found',
        });
        expect(existsSync(it.spec.stateFolder)).toBe(false);
      });

      test('an abort at any moment of a start leaves it stopped, with its disk', async () => {
        const it = await start();
        await shell(it.guest, 'echo kept >/file');
        await stop(it);
        const startedAt = performance.now();
        await startAgain(it);
        const takesMs = performance.now() - startedAt;
        await stop(it);
        for (const share of [0, 0.1, 0.3, 0.5, 0.8]) {
          const abort = new AbortController();
          const timer = setTimeout(() => abort.abort(), takesMs * share);
          const result = await runtime.start?.(it.spec, abort.signal).catch((thrown) => thrown);
          clearTimeout(timer);
          if (!(result instanceof Error)) await result.keeping?.stop(soon());
          const [found] = await harness.open().list(soon());
          expect(await found?.exited, `aborted after ${Math.round(takesMs * share)} ms`).toMatchObject({
            reason: 'stopped',
          });
          expect(harness.processes(it.spec.id)).toEqual([]);
        }
        await startAgain(it);
        expect((await shell(it.guest, 'cat /file')).stdout).toBe('kept\n');
      });

      test('another daemon finds what was stopped as such, starts it, and removes it', async () => {
        const it = await start();
        await shell(it.guest, 'echo kept >/file');
        await stop(it);
        const later = harness.open();
        const [found] = await later.list(soon());
        expect(found?.id).toBe(it.spec.id);
        expect(await found?.exited).toMatchObject({ reason: 'stopped' });
        await found?.keeping?.stop(soon());
        await startAgain(it, later);
        expect((await shell(it.guest, 'cat /file')).stdout).toBe('kept\n');
        await it.machine.keeping?.stop(soon());
        const [again] = await harness.open().list(soon());
        await again?.remove(soon());
        expect(await harness.open().list(soon())).toEqual([]);
      });
    }

    if (stated.pause && stated.keep) {
      test('a frozen machine can be stopped, and runs when it is started again', async () => {
        const it = await start();
        await it.machine.pausing?.pause(soon());
        await stop(it);
        await startAgain(it);
        expect(it.machine.paused).toBe(false);
        expect((await shell(it.guest, 'echo up')).stdout).toBe('up\n');
      });
    }

    const template = () => {
      const name = `conformance/${newId()}:1`;
      templates.unshift(name);
      return name;
    };
    const images = () => runtime.images ?? expect.fail('it keeps no images');
    const defaults: ImageDefaults = {
      env: { GREETING: 'from the template', PATH: '/bin' },
      cwd: '/data',
      user: 'nobody',
      entrypoint: ['sh', '-c', 'echo started'],
    };
    const save = async (it: Running, name: string) => {
      expect(it.machine.saving, 'it can be saved').toBeDefined();
      await it.machine.saving?.save(name, defaults, soon());
    };
    const removeImages = async (...names: string[]) => {
      for (const name of names) await images().remove(name, soon());
      expect((await images().list(soon())).filter((it) => templates.includes(it.name))).toEqual([]);
    };

    if (stated.keep) {
      test('a saved machine is an image: with its files and without those it had deleted, without its mounts and processes', async () => {
        const hostPath = join(harness.folders.run, 'shared');
        const name = template();
        try {
          await mkdir(hostPath, { mode: 0o777 });
          await writeFile(join(hostPath, 'file'), 'from the host');
          const it = await start({ mounts: [{ hostPath, guestPath: '/mnt/shared', readOnly: false }] });
          await shell(
            it.guest,
            'mkdir /data; echo new >/data/file; ln -s file /data/link; rm /etc/group; rm -r /root; mkdir /root; echo mine >/root/x; chown -R 65534:65534 /data; echo secret >/etc/hosts',
          );
          await save(it, name);
          const made = await start({ image: name });
          expect(made.machine.image).toEqual(defaults);
          const look =
            'cat /data/link; stat -c %u:%a /data/file; ls /etc/group; ls -A /mnt/shared; ls /root; grep -c secret /etc/hosts';
          expect((await shell(made.guest, look)).stdout).toBe(
            `new\n${stated.users === 'all' ? 65534 : 0}:644\nx\n0\n`,
          );
          // The machine goes on, and what it writes now is its own.
          await shell(it.guest, 'echo later >/data/file');
          expect((await shell(made.guest, 'cat /data/file')).stdout).toBe('new\n');
          const [kept] = (await images().list(soon())).filter((image) => image.name === name);
          expect(kept).toMatchObject({ name, id: expect.any(String), base: harness.images.shell });
          expect(kept?.sizeBytes).toBeGreaterThan(0);
          expect(Math.abs(Date.now() - Number(kept?.createdAt))).toBeLessThan(120_000);
          expect(await images().has(name, soon())).toBe(true);
          await Promise.all(running.splice(0).map(end));
          await removeImages(name);
          expect(await images().has(name, soon())).toBe(false);
        } finally {
          rmSync(hostPath, { recursive: true, force: true });
        }
      });

      test('an image is made of an image: what one layer deletes is gone in the next, and the lower one stays while it is built on', async () => {
        const [first, second] = [template(), template()];
        const one = await start();
        await shell(one.guest, 'mkdir -p /data/a /data/b; echo 1 >/data/a/one; echo 1 >/data/b/one');
        await stop(one);
        await save(one, first);
        const two = await start({ image: first });
        await shell(two.guest, 'rm -r /data/a; mkdir /data/a; echo 2 >/data/a/two; rm /data/b/one');
        await save(two, second);
        await Promise.all(running.splice(0).map(end));
        const three = await start({ image: second });
        expect((await shell(three.guest, 'find /data -type f')).stdout).toBe('/data/a/two\n');
        expect(
          await images()
            .remove(second, soon())
            .catch((it) => it),
        ).toMatchObject({ code: 'conflict' });
        expect(
          await images()
            .remove(first, soon())
            .catch((it) => it),
        ).toMatchObject({ code: 'conflict' });
        await stop(three);
        expect(
          await images()
            .remove(second, soon())
            .catch((it) => it),
        ).toMatchObject({ code: 'conflict' });
        await startAgain(three);
        expect((await shell(three.guest, 'cat /data/a/two')).stdout).toBe('2\n');
        await Promise.all(running.splice(0).map(end));
        await removeImages(second, first);
        expect(
          await images()
            .remove(first, soon())
            .catch((it) => it),
        ).toMatchObject({ code: 'not-found' });
      });

      test('a saved image replaces the one of its name, and machines of that one keep their files', async () => {
        const name = template();
        const one = await start();
        await shell(one.guest, 'echo 1 >/version');
        await save(one, name);
        const old = await start({ image: name });
        await shell(one.guest, 'echo 2 >/version');
        await save(one, name);
        const fresh = await start({ image: name });
        await stop(old);
        await startAgain(old);
        expect((await shell(old.guest, 'cat /version')).stdout).toBe('1\n');
        expect((await shell(fresh.guest, 'cat /version')).stdout).toBe('2\n');
        await Promise.all(running.splice(0).map(end));
        await removeImages(name);
      });

      test('an aborted save leaves no image, and the machine runs on', async () => {
        const it = await start();
        const name = template();
        const abort = new AbortController();
        const saving = it.machine.saving?.save(name, defaults, abort.signal).catch((thrown) => thrown);
        abort.abort();
        expect(await saving).toMatchObject({ code: 'aborted' });
        expect(await images().has(name, soon())).toBe(false);
        await it.guest.ping(soon());
      });

      test('an exported image is, loaded under another name, what guests saw of all its layers, and disturbs none', async () => {
        const [first, second, copy] = [template(), template(), template()];
        const one = await start();
        const changes = [
          'mkdir -p /data/replaced /data/emptied /data/folder && echo 1 >/data/replaced/old && echo 1 >/data/emptied/old',
          'echo 1 >/data/file && echo 1 >/data/gone && echo 1 >/data/grown && ln /data/file /data/linked && ln -s file "/data/a link"',
          'chmod 4755 /data/linked && chmod 1777 /data/folder && rm /etc/group',
        ];
        expect(await shell(one.guest, changes.join(' && '))).toMatchObject({ code: 0, stderr: '' });
        await save(one, first);
        const two = await start({ image: first });
        // A folder made anew hides what was below it, a file takes a folder's place and the other way round.
        const more = [
          'rm -r /data/replaced && mkdir /data/replaced && echo 2 >/data/replaced/new && rm /data/emptied/old /data/gone',
          'rmdir /data/folder && echo 2 >/data/folder && rm "/data/a link" && mkdir "/data/a link" && echo 2 >"/data/a link/x"',
          'echo 2 >>/data/grown && ln /data/folder /data/also && touch -d "2001-02-03 04:05" /data/also',
        ];
        expect(await shell(two.guest, more.join(' && '))).toMatchObject({ code: 0, stderr: '' });
        await save(two, second);
        await Promise.all(running.splice(0).map(end));
        const before = await images().list(soon());
        const loaded = await images().load(copy, images().export(second, soon()), soon());
        expect(loaded).toMatchObject({ name: copy });
        const others = (await images().list(soon())).filter((image) => image.name !== copy);
        expect(others).toEqual(before);
        const [seen, made] = await Promise.all([start({ image: second }), start({ image: copy })]);
        expect(made.machine.image).toEqual(defaults);
        const [expected, actual] = await Promise.all([everyFile(seen.guest), everyFile(made.guest)]);
        expect(actual).toEqual(expected);
        const names = expected.map((line) => line.split('|')[0]).sort();
        expect(names.filter((it) => it?.startsWith('/data/'))).toEqual([
          ...['/data/a link', '/data/a link/x', '/data/also', '/data/emptied', '/data/file', '/data/folder'],
          ...['/data/grown', '/data/linked', '/data/replaced', '/data/replaced/new'],
        ]);
        expect(names).not.toContain('/etc/group');
        await Promise.all(running.splice(0).map(end));
        await removeImages(copy, second, first);
      });

      test('what is no image is not loaded, and leaves nothing', async () => {
        const name = template();
        const garbage = Readable.from([Buffer.from('this is no archive of anything at all')]);
        expect(
          await images()
            .load(name, garbage, soon())
            .catch((it) => it),
        ).toMatchObject({ code: 'invalid' });
        expect(await images().has(name, soon())).toBe(false);
        expect(
          await images()
            .remove(name, soon())
            .catch((it) => it),
        ).toMatchObject({ code: 'not-found' });
      });
    }

    test('several machines at once', async () => {
      const all = await Promise.all(Array.from({ length: 6 }, () => start()));
      const answers = await Promise.all(all.map(({ guest, spec }) => shell(guest, `echo ${spec.id}`)));
      expect(answers.map((it) => it.stdout.trim())).toEqual(all.map((it) => it.spec.id));
    });

    test('an abort at any moment of create leaves nothing', async () => {
      const startedAt = performance.now();
      await end(await start().finally(() => running.splice(0)));
      const takesMs = performance.now() - startedAt;
      for (const share of [0, 0.02, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9]) {
        const abort = new AbortController();
        const spec = specOf();
        const door = await openRunFolder(spec);
        const timer = setTimeout(() => abort.abort(), takesMs * share);
        const result = await runtime.create(spec, abort.signal).catch((it) => it);
        clearTimeout(timer);
        if (!(result instanceof Error)) await result.remove(soon());
        await door.close();
        await rm(spec.runFolder, { recursive: true, force: true });
        expect(harness.leftovers(), `aborted after ${Math.round(takesMs * share)} ms`).toEqual([]);
      }
    });

    if (stated.pause) {
      test('a frozen machine is seen as such, thaws, and can be removed frozen', async () => {
        const { machine, guest, door, spec } = await start();
        door.hold();
        await machine.pausing?.pause(soon());
        const seen = async () => (await harness.open().list(soon())).find((it) => it.id === spec.id)?.paused;
        expect(await seen()).toBe(true);
        await machine.pausing?.resume(soon());
        door.release();
        await guest.ping(soon());
        expect(await seen()).toBe(false);
        door.hold();
        await machine.pausing?.pause(soon());
        await machine.remove(soon());
      });
    } else {
      test('cannot freeze machines, and does not pretend to', async () => {
        expect((await start()).machine.pausing).toBeUndefined();
      });
    }

    const absurd: Required<Limits> = {
      cpu: 1,
      memoryBytes: 256 * mebibyte,
      pids: 64,
      diskBytes: 64 * mebibyte,
      gpu: 1,
    };
    for (const limit of Object.keys(absurd) as (keyof Limits)[]) {
      if (stated.limits[limit] !== undefined) continue;
      test(`a limit on ${limit} cannot be kept here, so it is refused`, async () => {
        expect(await refusal({ limits: { [limit]: absurd[limit] } })).toMatchObject({ code: 'unsupported' });
      });
    }

    if (stated.limits.memoryBytes?.startsWith('cgroup')) {
      test('a memory bomb dies alone, inside', async () => {
        const { guest } = await start({ limits: { memoryBytes: 256 * mebibyte } });
        expect(await shell(guest, 'tail /dev/zero')).toMatchObject({ code: 137 });
        await guest.ping(soon());
      });

      test('a machine that the lack of memory killed says so', async () => {
        const { guest, machine } = await start({ limits: { memoryBytes: 256 * mebibyte } });
        // The agent is made the kernel's first choice.
        void shell(guest, 'echo 1000 >/proc/$PPID/oom_score_adj; exec tail /dev/zero').catch(() => {});
        expect(await machine.exited).toMatchObject({ reason: 'out-of-memory' });
      });
    }

    if (stated.limits.pids !== undefined) {
      test('a fork bomb stays bounded, and its machine can be removed', async () => {
        const pids = 64;
        const { guest, machine, spec } = await start({ limits: { pids } });
        // The sleepers stay when the bomb has choked on itself.
        const line = 'i=0; while [ $i -lt 40 ]; do sleep 3600 & i=$((i+1)); done; b() { b | b & }; b; wait';
        await guest.exec(
          { execId: 'bomb', argv: ['sh', '-c', line], env: searchPath, stdin: 'none' },
          soon(),
        );
        const counts: number[] = [];
        await until(
          'processes of the bomb',
          () => counts[counts.push(harness.processes(spec.id).length) - 1] ?? 0,
          (it) => it > pids / 2,
        );
        for (let look = 0; look < 20; look++) counts.push(harness.processes(spec.id).length);
        // The wall's own processes may stand beside the guest's.
        expect(Math.max(...counts)).toBeLessThanOrEqual(pids + 4);
        await machine.remove(soon());
      });
    }

    if (stated.limits.cpu?.startsWith('cgroup')) {
      test('the share of the processors is bounded by a quota', async () => {
        const { spec } = await start({ limits: { cpu: 0.5 } });
        const shares = harness.processes(spec.id).map(quotaOf);
        expect(shares).toContain(0.5);
      });
    }

    if (stated.limits.diskBytes !== undefined) {
      test('the writable layer cannot grow beyond its limit', async () => {
        const { guest } = await start({ limits: { diskBytes: 32 * mebibyte } });
        const filled = await shell(guest, 'dd if=/dev/zero of=/big bs=1M count=64 2>&1; echo; wc -c </big');
        expect(filled.stdout).toMatch(/no space left|quota|write error/i);
        expect(Number(filled.stdout.trim().split('\n').at(-1))).toBeLessThanOrEqual(32 * mebibyte);
      });
    }

    if (stated.isolation === 'none') {
      test('says that it walls nothing off', async () => {
        const { problems } = await runtime.check(soon());
        expect(problems.map((it) => it.message).join(' ')).toMatch(/isolat|wall/i);
      });

      test('has no way out of its own to serve, and says so', async () => {
        const { guest } = await start();
        const failure = await guest.egress({ capture: true, ports: [443] }, soon()).catch((it) => it);
        expect(failure).toMatchObject({ code: 'unsupported' });
      });
      return;
    }

    // From the host, for as the first process of its namespace the agent cannot be killed from inside.
    const killAgent = ({ spec }: Running) => {
      const isAgent = (pid: number) => readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('agent.js');
      for (const pid of harness.processes(spec.id).filter(isAgent)) {
        try {
          process.kill(pid, 'SIGKILL');
        } catch (thrown) {
          // The engine's init, which names the agent in its arguments too, may have gone with the agent.
          if ((thrown as NodeJS.ErrnoException).code !== 'ESRCH') throw thrown;
        }
      }
    };

    test('an unknown image is not found, and nothing is left', async () => {
      expect(await refusal({ image: '127.0.0.1:1/none-such:1' })).toMatchObject({
        code: expect.stringMatching(/not-found|unavailable|invalid/),
      });
    });

    test('the death of the agent ends the machine, with a reason', async () => {
      const it = await start();
      const { machine } = it;
      killAgent(it);
      expect(await machine.exited).toMatchObject({
        reason: 'exited',
        message: expect.any(String),
        at: expect.any(Date),
      });
    });

    test('a machine that ended while no daemon looked is found with its end, and can be removed', async () => {
      const it = await start();
      const { machine, spec } = it;
      killAgent(it);
      await machine.exited;
      const [found] = await harness.open().list(soon());
      expect(found?.id).toBe(spec.id);
      expect((await found?.exited)?.reason).toMatch(/exited|lost/);
      await found?.remove(soon());
      expect(await harness.open().list(soon())).toEqual([]);
    });

    test('an adopted machine tells when it ends', async () => {
      const it = await start();
      const [found] = await harness.open().list(soon());
      killAgent(it);
      expect((await found?.exited)?.reason).toMatch(/exited|lost/);
    });

    describe('a guest that is root and hostile', () => {
      let hostile: Running;
      const ask = async (calls: Argument[][]): Promise<{ value: number; errno: number }[]> => {
        const path = '/probe.js';
        await hostile.guest.write(path, Readable.from([await readFile(probeFile)]), {}, soon());
        const ran = await run(hostile.guest, [...bun.command, path, bun.libc, JSON.stringify(calls)]);
        expect(ran, ran.stderr).toMatchObject({ code: 0 });
        return JSON.parse(ran.stdout);
      };

      test('gets from the kernel what the profile says', async () => {
        hostile = await start();
        const answers = await ask(refusalCalls(hostArch() as SeccompArch));
        expect(refusalAnswers(JSON.stringify(answers))).toEqual(refusals);
      });

      test('has no network but its own loopback, and reaches nobody by it', async () => {
        hostile = await start();
        const other = await start();
        using host = await listeners();
        // The other sandbox listens on the same port of its own loopback.
        const listen = [
          'const heard = (it) => { console.log("heard"); it.end?.("no"); }',
          `require("dgram").createSocket("udp4", heard).bind(${host.port})`,
          `require("net").createServer(heard).listen(${host.port}, "0.0.0.0", () => console.log("ready"))`,
        ].join(';');
        const server = await other.guest.exec(
          { execId: 'server', argv: [...bun.command, '-e', listen], env: {}, stdin: 'none' },
          soon(),
        );
        let said = '';
        const reading = (async () => {
          for await (const piece of server.output)
            if (piece.type === 'output') said += Buffer.from(piece.bytes).toString();
        })();
        await until(
          'the other sandbox’s server',
          () => said,
          (it) => it !== '',
        );
        expect((await shell(hostile.guest, "sed -n 's/^ *\\([^ :]*\\):.*/\\1/p' /proc/net/dev")).stdout).toBe(
          'lo\n',
        );

        const own = Object.values(networkInterfaces()).flatMap((it) => it ?? []);
        const addresses = new Set([
          '127.0.0.1',
          '::1',
          '0.0.0.0',
          '172.17.0.1',
          '169.254.169.254',
          '192.0.2.1',
          '2001:db8::1',
          ...own.map((it) => it.address),
        ]);
        const targets = [...addresses].flatMap((address) =>
          [host.port, 53].map((port) => ({ address, port })),
        );
        const sockets = targets.flatMap((target) => [tcp, udp].map((kind) => ({ ...target, kind })));
        const calls = sockets.flatMap(({ address, port, kind }, at) =>
          attempt(kind, address, port, at * callsPerAttempt),
        );
        const answers = await ask(calls);
        const reached = sockets.filter(({ kind, address }, at) => {
          const sent = answers[at * callsPerAttempt + 2];
          // A datagram to its own loopback leaves the guest's hands, but not the guest. Where connections are captured every address is there.
          const own =
            kind === udp &&
            (stated.network === 'captured' || ['127.0.0.1', '::1', '0.0.0.0'].includes(address));
          return sent?.value !== -1 && !own;
        });
        expect(reached).toEqual([]);
        expect(host.heard).toEqual([]);
        server.signal('SIGKILL');
        await reading;
        expect(said).toBe('ready\n');
      });

      const onNetwork = async (steps: NetworkStep[]): Promise<NetworkOutcome[]> => {
        await hostile.guest.write('/network.js', Readable.from([await readFile(networkFile)]), {}, soon());
        const ran = await run(hostile.guest, [...bun.command, '/network.js', JSON.stringify(steps)]);
        expect(ran, ran.stderr).toMatchObject({ code: 0 });
        return JSON.parse(ran.stdout);
      };

      test('finds a proxy and SOCKS at its loopback, and what it sends there comes to the door', async () => {
        hostile = await start();
        expect(await hostile.guest.egress({ capture: false, ports: [] }, soon())).toEqual({ unavailable: 0 });
        const proxies = [
          ['127.0.0.1', 3128],
          ['::1', 3128],
          ['127.0.0.1', 1080],
        ] as const;
        const outcomes = await onNetwork(
          proxies.map(([address, port]) => ({ kind: 'stream', address, port, send: `to ${port}` })),
        );
        expect(outcomes.map((it) => it.received)).toEqual([
          'heard: to 3128',
          'heard: to 3128',
          'heard: to 1080',
        ]);
        expect(hostile.out.intents).toEqual(outcomes.map(({ client }) => ({ kind: 'proxy', client })));
      });

      if (stated.network === 'captured') {
        test('is caught on its way to any address, on the ports that are named and no others', async () => {
          hostile = await start();
          using host = await listeners();
          const ports = [80, 443, 5432];
          expect(await hostile.guest.egress({ capture: true, ports }, soon())).toEqual({ unavailable: 0 });
          const own = Object.values(networkInterfaces()).flatMap((it) => it ?? []);
          const hosts = own
            .filter((it) => !it.internal && !it.address.startsWith('fe80'))
            .map((it) => it.address);
          const addresses = [
            '93.184.216.34',
            '169.254.169.254',
            '10.0.0.1',
            '2001:db8::1',
            'fd00::7',
            ...hosts,
          ];
          const caught = addresses.flatMap((address) => ports.map((port) => ({ address, port })));
          const outcomes = await onNetwork(caught.map((it) => ({ kind: 'stream', send: 'hello', ...it })));
          expect(outcomes.map((it) => it.received)).toEqual(caught.map(() => 'heard: hello'));
          expect(hostile.out.intents).toEqual(
            caught.map((it, at) => ({ kind: 'caught', client: outcomes[at]?.client, ...it })),
          );
          const refused = addresses.flatMap((address): NetworkStep[] => [
            { kind: 'stream', address, port: host.port, send: 'hello' },
            { kind: 'stream', address, port: 22, send: 'hello' },
            // So that QUIC falls back.
            { kind: 'datagram', address, port: 443, hex: '00' },
          ]);
          expect((await onNetwork(refused)).map((it) => it.error)).toEqual(refused.map(() => 'ECONNREFUSED'));
          expect(host.heard).toEqual([]);
        });

        test('asks for names whom it likes and hears its own agent, and its connections come with the name', async () => {
          hostile = await start();
          await hostile.guest.egress({ capture: true, ports: [443] }, soon());
          const question = { kind: 'datagram', port: 53, hex: nameQuestion('files.example.org') } as const;
          const answers = await onNetwork([
            { ...question, address: '8.8.8.8' },
            { ...question, address: '127.0.0.1' },
            { ...question, address: '8.8.8.8', hex: nameQuestion('refused.example.org') },
          ]);
          const [address, same, none] = answers.map(
            ({ hex = '' }) => /c00c00010001.{8}0004(.{8})/.exec(hex)?.[1],
          );
          expect([same, none]).toEqual([address, undefined]);
          const synthetic = [...Buffer.from(address ?? '', 'hex')].join('.');
          expect(synthetic).toMatch(/^198\.1[89]\./);
          // As programs ask, which goes by the guest's own settings.
          expect((await shell(hostile.guest, 'nslookup files.example.org')).stdout).toContain(synthetic);
          const [outcome] = await onNetwork([
            { kind: 'stream', address: synthetic, port: 443, send: 'hello' },
          ]);
          expect(hostile.out.intents.at(-1)).toEqual({
            ...{ kind: 'caught', client: outcome?.client, address: synthetic, port: 443 },
            name: 'files.example.org',
          });
        });

        test('cannot change its routes, its addresses or its loopback', async () => {
          hostile = await start();
          const look = async () =>
            (await shell(hostile.guest, 'cat /proc/net/fib_trie /proc/net/ipv6_route /proc/net/if_inet6'))
              .stdout;
          const before = await look();
          expect(before).toMatch(/\/0 host LOCAL/);
          expect(before).toMatch(/^0{32} 00 0{32} 00 0{32} 00000400 .* lo$/m);
          for (const line of [
            'ip route del local default dev lo table local',
            'ip route add 10.0.0.0/8 dev lo',
            'ip -6 route del local default dev lo table local',
            'ip rule add from all lookup 7',
            'ip addr add 192.0.2.1/24 dev lo',
            'ip link set lo down',
            'ifconfig lo 127.0.0.2',
            'ip link add name d0 type dummy',
            'echo 1 >/proc/sys/net/ipv4/ip_forward',
            'echo 1024 >/proc/sys/net/ipv4/ip_unprivileged_port_start',
          ])
            expect((await shell(hostile.guest, line)).code, line).not.toBe(0);
          expect(await look()).toBe(before);
        });
      }

      test('reaches no Unix socket of the host but its channel, by path or by name', async () => {
        hostile = await start();
        using host = await listeners();
        const paths = [
          host.unixPath,
          '/run/docker.sock',
          '/var/run/docker.sock',
          '/run/containerd/containerd.sock',
          '/run/dbus/system_bus_socket',
          '/run/systemd/private',
        ];
        const addresses = [...paths, `\0${host.abstractName}`, '/.glovebox/run/agent.sock'];
        const calls = addresses.flatMap((address, at) => [
          call('socket', 1, 1, 0),
          call('connect', { result: at * 2 }, { hex: unixAddress(address) }, unixAddress(address).length / 2),
        ]);
        const answers = await ask(calls);
        expect(addresses.filter((_, at) => answers[at * 2 + 1]?.value === 0)).toEqual([
          '/.glovebox/run/agent.sock',
        ]);
        expect(host.heard).toEqual([]);
      });

      test('cannot write what belongs to the host’s kernel, nor its own walls', async () => {
        hostile = await start();
        const paths = [
          ...['core_pattern', 'modprobe', 'hotplug', 'sysrq', 'hostname', 'core_uses_pid'].map(
            (it) => `/proc/sys/kernel/${it}`,
          ),
          ...['/proc/sys/fs/binfmt_misc/register', '/proc/sys/fs/suid_dumpable', '/proc/sys/vm/panic_on_oom'],
          ...[
            '/proc/sys/net/ipv4/ip_forward',
            '/proc/sysrq-trigger',
            '/proc/irq/0/smp_affinity',
            '/proc/kcore',
            '/proc/kmsg',
          ],
          ...[
            '/sys/kernel/uevent_helper',
            '/sys/kernel/mm/ksm/run',
            '/sys/fs/cgroup/release_agent',
            '/sys/fs/cgroup/cgroup.procs',
          ],
          ...[
            '/sys/fs/cgroup/memory/release_agent',
            '/sys/fs/cgroup/memory/memory.limit_in_bytes',
            '/sys/fs/cgroup/devices/devices.allow',
          ],
          ...[
            '/dev/mem',
            '/dev/kmem',
            '/dev/port',
            '/dev/kmsg',
            '/dev/kvm',
            '/dev/fuse',
            '/dev/net/tun',
            '/dev/sda',
            '/dev/vda',
            '/dev/loop-control',
          ],
        ];
        // Opened for writing, and nothing is written. What the wall has covered with /dev/null may be opened.
        const open = (it: string) =>
          `[ -e ${it} ] && ! [ ${it} -ef /dev/null ] && ( : >>${it} ) 2>/dev/null && echo ${it}`;
        const make = (it: string) => `( : >>${it} ) 2>/dev/null && echo ${it}`;
        const ours = ['/.glovebox/agent/new', '/.glovebox/run/new', '/.glovebox/run/boot.json'];
        const tries = [...paths.map(open), ...ours.map(make)].join('; ');
        expect((await shell(hostile.guest, `${tries}; true`)).stdout).toBe('');
      });

      test('sees no process, file or device of the host', async () => {
        const secret = join(harness.folders.run, 'secret');
        await writeFile(secret, 'of the host');
        try {
          hostile = await start();
          const { stdout } = await shell(
            hostile.guest,
            `cat ${secret}; cat /proc/[0-9]*/cmdline | tr '\\0' ' '`,
          );
          expect(stdout).not.toContain('of the host');
          expect(stdout).not.toContain('vitest');
          const inside = await shell(hostile.guest, 'ls -d /proc/[0-9]*');
          expect(inside.stdout.trim().split('\n').length).toBeLessThan(12);
          expect((await shell(hostile.guest, 'mknod /disk b 254 0 && cat /disk')).code).not.toBe(0);
        } finally {
          rmSync(secret);
        }
      });

      test('cannot mount, make namespaces or get privileges back', async () => {
        hostile = await start();
        for (const line of [
          'mount -t tmpfs none /mnt',
          'mount -t proc none /mnt',
          'unshare -U true',
          'unshare -m true',
          'chroot / mount -o remount,rw /proc/sys',
        ]) {
          expect((await shell(hostile.guest, line)).code, line).not.toBe(0);
        }
        const { stdout: status } = await shell(hostile.guest, 'cat /proc/self/status');
        expect(status).toMatch(/^NoNewPrivs:\s*1$/m);
        expect(status).toMatch(/^Seccomp:\s*2$/m);
        const held = BigInt(`0x${/^CapBnd:\s*(\w+)$/m.exec(status)?.[1]}`);
        expect(Object.entries(hostCapabilities).filter(([, bit]) => (held >> BigInt(bit)) & 1n)).toEqual([]);
      });
    });
  });
}

async function run(
  guest: Guest,
  argv: string[],
  env: Record<string, string> = {},
  user?: string,
): Promise<Ran> {
  return finish(guest, { argv, env, ...(user === undefined ? {} : { user }) });
}

/** All that a guest has on its disk, sorted by name: kind and mode, owner, links; of what is no folder, size, time and what a link says, too. */
async function everyFile(guest: Guest): Promise<string[]> {
  const ours = ['/proc', '/sys', '/dev', '/.glovebox', '/etc/hosts', '/etc/hostname', '/etc/resolv.conf'];
  const not = ours.map((path) => `-path ${path} -prune`).join(' -o ');
  const folders = "-type d -exec stat -c '%n|%f|%u:%g' {} +";
  const others = "-exec stat -c '%n|%f|%u:%g|%h|%s|%Y|%N' {} +";
  const ran = await shell(guest, `find / -xdev ${not} -o ${folders} -o ${others}`);
  expect(ran, ran.stderr).toMatchObject({ code: 0, stderr: '' });
  return ran.stdout.trim().split('\n').sort();
}

async function shell(guest: Guest, line: string, env: Record<string, string> = {}): Promise<Ran> {
  return finish(guest, { argv: ['sh', '-c', line], env });
}

async function finish(
  guest: Guest,
  spec: { argv: string[]; env: Record<string, string>; user?: string },
): Promise<Ran> {
  const env = { ...searchPath, ...spec.env };
  const child = await guest.exec({ execId: newId(), stdin: 'none', cwd: '/', ...spec, env }, soon());
  const text = { stdout: '', stderr: '' };
  for await (const piece of child.output) {
    if (piece.type === 'output') text[piece.lane] += Buffer.from(piece.bytes).toString('latin1');
  }
  const { code, signal } = await child.exit;
  return { code, signal, ...text };
}

/** Waits for a condition; fails with what it last saw. */
async function until<T>(what: string, look: () => T, holds: (seen: T) => boolean): Promise<void> {
  const deadline = performance.now() + settleMs;
  for (;;) {
    const seen = look();
    if (holds(seen)) return;
    if (performance.now() > deadline) expect.fail(`${what}: still ${JSON.stringify(seen)}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
