// Mounts with owners, overlays and hidden files, as guests see them and as they lie on the host: for both kinds of walls, with the real agent, as root.
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import {
  chmodSync,
  chownSync,
  createReadStream,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { type Outcome, run } from '../../../test/agents.ts';
import { leftovers, makeHome, until } from '../../../test/daemon.ts';
import { dockerImage, rootfsTar } from '../../../test/images.ts';
import { agentCommand, agentEnvironment, ensureAgentBundle } from '../../agent/bundle.ts';
import { guestProtocol } from '../../contract/guest.ts';
import { homeIdOf } from '../../daemon/platform.ts';
import type { Guest } from '../../guest/guest.ts';
import { ImageStore } from '../../image/store.ts';
import { type AgentDoor, openDoor } from '../../sandbox/door.ts';
import { BubblewrapRuntime } from '../bubblewrap/bubblewrap.ts';
import { hostIdBase } from '../bubblewrap/rootfs.ts';
import { DockerRuntime } from '../docker/docker.ts';
import type { Machine, MachineSpec, Mount, Runtime } from '../runtime.ts';

const present = process.env.GLOVEBOX_TEST_PRESENT?.split(',') ?? [];
const asRoot = process.getuid?.() === 0;
const searchPath = { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' };
const owner = { uid: 4242, gid: 4243 };
const soon = () => AbortSignal.timeout(30_000);
const newId = () => `m-${randomBytes(5).toString('hex')}`;

interface Walls {
  runtime: Runtime;
  /** A name to create from. */
  image(name: 'busybox' | 'hostile'): string;
  /** The host's id of a user of the guest. */
  hostId(id: number): number;
  close(): void;
}

const agent = async () => ({
  folder: await ensureAgentBundle(),
  command: agentCommand(),
  environment: agentEnvironment(),
});

/** busybox, with links at places where a workspace may be wanted: out of the image, and into the kernel's own. */
function hostileTar(folder: string): string {
  const root = join(folder, 'hostile');
  mkdirSync(root);
  execFileSync('tar', ['-C', root, '-xf', rootfsTar('busybox')]);
  symlinkSync(`../../../../../..${folder}/victim`, join(root, 'out'));
  symlinkSync('/proc/self', join(root, 'kernel'));
  writeFileSync(join(root, 'etc/passwd'), 'root:x:0:0::/:/bin/sh\ndev:x:1234:1235::/:/bin/sh\n');
  execFileSync('tar', ['--numeric-owner', '-C', root, '-cf', `${root}.tar`, '.']);
  rmSync(root, { recursive: true });
  return `${root}.tar`;
}

const openers: Record<string, (home: string, homeId: string) => Promise<Walls>> = {
  async bubblewrap(home, homeId) {
    const images = new ImageStore({
      folder: join(home, 'images'),
      idShift: { uidBase: hostIdBase, gidBase: hostIdBase },
      inUse: () => [],
    });
    await images.import(createReadStream(rootfsTar('busybox')), { name: 'busybox' });
    await images.import(createReadStream(hostileTar(home)), { name: 'hostile' });
    const runtime = new BubblewrapRuntime({
      ...{ homeId, images, agent: await agent() },
      ...{ stateRoot: join(home, 'machines'), folder: join(home, 'bubblewrap') },
    });
    return {
      runtime,
      image: (name) => name,
      hostId: (id) => hostIdBase + id,
      close: () => runtime[Symbol.dispose](),
    };
  },
  async docker(home, homeId) {
    const runtime = new DockerRuntime({ homeId, agent: await agent() });
    const hostile = `glovebox-test/mounts-${homeId}:latest`;
    execFileSync('docker', ['import', hostileTar(home), hostile], { stdio: 'ignore' });
    return {
      runtime,
      image: (name) => (name === 'hostile' ? hostile : dockerImage('busybox')),
      hostId: (id) => id,
      close() {
        runtime[Symbol.dispose]();
        execFileSync('docker', ['image', 'rm', hostile], { stdio: 'ignore' });
      },
    };
  },
};

for (const name of ['bubblewrap', 'docker'].filter((it) => asRoot && present.includes(it)))
  describe(`mounts, ${name}`, () => {
    const home = makeHome();
    const homeId = homeIdOf(home);
    const project = join(home, 'project');
    let walls: Walls;
    const running: { machine: Machine; door: AgentDoor; spec: MachineSpec }[] = [];

    beforeAll(async () => {
      for (const folder of ['run', 'machines']) mkdirSync(join(home, folder));
      walls = await (openers[name] as (typeof openers)[string])(home, homeId);
    });
    afterEach(async () => {
      for (const { machine, door, spec } of running.splice(0)) {
        await machine.remove(soon());
        await door.close();
        await rm(spec.runFolder, { recursive: true, force: true });
      }
      rmSync(project, { recursive: true, force: true });
      rmSync(join(home, 'layers'), { recursive: true, force: true });
      await until(
        'what is left',
        () => leftovers(home),
        (left) => left.length === 0,
      );
    });
    afterAll(() => {
      walls?.close();
      rmSync(home, { recursive: true });
    });

    /** On the host: what shows a folder of this home, what stands in for a hidden one, and where the helper gathers. */
    const mountsOfOurs = (): string[] =>
      readFileSync('/proc/self/mountinfo', 'utf8')
        .split('\n')
        .filter((line) => [home, '/cover-f', '/dist/agent-', 'idmapped'].some((it) => line.includes(it)));
    /** A folder of user 4242 with these files; a text of null makes a folder. */
    const makeProject = (files: Record<string, string> = {}): void => {
      mkdirSync(project, { mode: 0o750 });
      for (const [path, text] of Object.entries(files)) {
        mkdirSync(join(project, path, '..'), { recursive: true });
        writeFileSync(join(project, path), text);
      }
      execFileSync('chown', ['-R', `${owner.uid}:${owner.gid}`, project]);
    };
    const makeLayers = (): { upper: string; work: string } => {
      const layers = { upper: join(home, 'layers/upper'), work: join(home, 'layers/work') };
      for (const path of Object.values(layers)) mkdirSync(path, { recursive: true });
      return layers;
    };
    const mounted = (more: Partial<Mount> = {}): Mount => ({
      ...{ hostPath: project, guestPath: '/work/project', readOnly: false, owner },
      ...more,
    });
    const specOf = (mounts: Mount[], more: Partial<MachineSpec> = {}): MachineSpec => {
      const id = newId();
      const folders = { runFolder: join(home, 'run', id), stateFolder: join(home, 'machines', id) };
      return {
        ...{ id, image: walls.image('busybox'), limits: {}, labels: {}, user: '1000:1000', mounts },
        ...{ ...folders, ...more },
      };
    };
    const doorOf = async (spec: MachineSpec): Promise<AgentDoor> => {
      const token = randomBytes(24).toString('base64url');
      mkdirSync(spec.runFolder, { recursive: true, mode: 0o755 });
      const boot = { protocol: guestProtocol, sandboxId: spec.id, token };
      writeFileSync(join(spec.runFolder, 'boot.json'), JSON.stringify(boot), { mode: 0o644 });
      // Under every umask, as the sandbox layer makes them.
      chmodSync(spec.runFolder, 0o755);
      chmodSync(join(spec.runFolder, 'boot.json'), 0o644);
      return openDoor({ runFolder: spec.runFolder, token, onRefused: () => {} });
    };
    const start = async (mounts: Mount[], more: Partial<MachineSpec> = {}) => {
      const spec = specOf(mounts, more);
      const door = await doorOf(spec);
      try {
        const machine = await walls.runtime.create(spec, soon());
        running.push({ machine, door, spec });
        return { machine, spec, door, guest: await door.connected(soon()) };
      } catch (thrown) {
        await door.close();
        await rm(spec.runFolder, { recursive: true, force: true });
        throw thrown;
      }
    };
    const sh = (guest: Guest, line: string, user = '1000:1000'): Promise<Outcome> =>
      run(guest, ['sh', '-c', line], { env: searchPath, cwd: '/', user });
    const refusal = (mounts: Mount[], more: Partial<MachineSpec> = {}) =>
      start(mounts, more).then(
        () => expect.fail('it was made'),
        (it) => it,
      );

    test('states that it can', async () => {
      const { capabilities } = await walls.runtime.check(soon());
      expect(capabilities.mounts).toEqual({ owner: true, overlay: true, hidden: true });
    });

    test('what the guest’s user writes belongs to the owner on the host, and the owner’s files are the user’s', async () => {
      makeProject({ file: 'from the host' });
      chmodSync(join(project, 'file'), 0o600);
      const { guest } = await start([mounted()]);
      const seen = await sh(guest, 'cd /work/project && stat -c %u:%g . file && cat file');
      expect(seen).toMatchObject({ code: 0, stdout: '1000:1000\n1000:1000\nfrom the host' });
      const wrote = await sh(guest, 'cd /work/project && echo more >>file && mkdir new && echo x >new/x');
      expect(wrote).toMatchObject({ code: 0 });
      for (const path of ['file', 'new', 'new/x']) expect(statSync(join(project, path))).toMatchObject(owner);
      expect(readFileSync(join(project, 'file'), 'utf8')).toBe('from the hostmore\n');
    });

    test('files of others on the host are a stranger’s, also for the guest’s root', async () => {
      makeProject({ secret: 'theirs' });
      chownSync(join(project, 'secret'), 4300, 4300);
      chmodSync(join(project, 'secret'), 0o600);
      const { guest } = await start([mounted()]);
      for (const user of ['1000:1000', '0:0']) {
        const tried = await sh(guest, 'cat /work/project/secret; echo x >/work/project/secret', user);
        expect(tried).toMatchObject({ stdout: '' });
        expect(tried.code).not.toBe(0);
      }
      expect((await sh(guest, 'stat -c %u /work/project/secret')).stdout).toBe('65534\n');
      expect(readFileSync(join(project, 'secret'), 'utf8')).toBe('theirs');
    });

    test('the user may be a name of the image’s', async () => {
      makeProject({ file: '' });
      const { guest } = await start([mounted()], { user: 'dev', image: walls.image('hostile') });
      expect((await sh(guest, 'stat -c %u:%g /work/project/file', 'dev')).stdout).toBe('1234:1235\n');
    });

    test('a user that the image does not have is refused, and leaves nothing', async () => {
      makeProject();
      expect(await refusal([mounted()], { user: 'nobody-knows' })).toMatchObject({ code: 'invalid' });
    });

    test('read-only holds, for root and for files', async () => {
      makeProject({ file: 'as it was' });
      const single = mounted({ hostPath: join(project, 'file'), guestPath: '/work/single', readOnly: true });
      const { guest } = await start([mounted({ readOnly: true }), single]);
      expect((await sh(guest, 'cat /work/single')).stdout).toBe('as it was');
      for (const user of ['1000:1000', '0:0'])
        for (const line of [
          '>/work/project/file',
          '>/work/single',
          '>/work/project/new',
          'rm /work/project/file',
        ])
          expect((await sh(guest, line, user)).code).not.toBe(0);
      expect(readFileSync(join(project, 'file'), 'utf8')).toBe('as it was');
      expect(readdirSync(project)).toEqual(['file']);
    });

    test('an overlay leaves the host as it is, and its upper folder is in the kernel’s format', async () => {
      makeProject({ changed: 'old', deleted: '1', kept: '1', 'folder/inside': '1', 'replaced/inside': '1' });
      const overlay = makeLayers();
      const before = execFileSync('sh', ['-c', 'find . -printf "%p %U %m %T@ %s\n" | sort'], {
        cwd: project,
      });
      const { guest } = await start([mounted({ overlay })]);
      const done = await sh(
        guest,
        'cd /work/project && echo new >changed && rm deleted && echo 1 >added && rm -r folder && rm -r replaced && mkdir replaced && ls',
      );
      expect(done).toMatchObject({ code: 0, stdout: 'added\nchanged\nkept\nreplaced\n' });
      expect(
        execFileSync('sh', ['-c', 'find . -printf "%p %U %m %T@ %s\n" | sort'], { cwd: project }),
      ).toEqual(before);
      const { upper } = overlay;
      expect(readdirSync(upper).sort()).toEqual(['added', 'changed', 'deleted', 'folder', 'replaced']);
      expect(readFileSync(join(upper, 'changed'), 'utf8')).toBe('new\n');
      for (const name of ['deleted', 'folder']) {
        const whiteout = lstatSync(join(upper, name));
        expect([whiteout.isCharacterDevice(), whiteout.rdev]).toEqual([true, 0]);
      }
      expect(statSync(join(upper, 'added'))).toMatchObject({
        uid: walls.hostId(1000),
        gid: walls.hostId(1000),
      });
      expect(attributesOf(join(upper, 'replaced'))).toContain('trusted.overlay.opaque=y');
    });

    test('hidden files and folders of a mount cannot be read, whoever tries and however', async () => {
      makeProject({ '.env': 'secret', 'sub/key.pem': 'secret', '.aws/credentials': 'secret', open: 'open' });
      symlinkSync('sub/key.pem', join(project, 'link'));
      symlinkSync(`${project}/.env`, join(project, 'absolute'));
      const hidden = ['.env', 'link', '.aws', 'sub/not-there', 'absolute'];
      const { guest } = await start([mounted({ hidden })]);
      const tries = [
        'cat .env sub/key.pem link .aws/credentials absolute',
        'ls -A .aws',
        'ln .env hard && cat hard',
        'mv .env moved && cat moved',
        'rm -f .env; cat .env',
        'mv sub elsewhere && cat elsewhere/key.pem; mv elsewhere sub',
        'umount .env; umount -l /work/project/.env; cat .env',
        'mount -o remount,rw .env; mount --bind /work /tmp && cat /tmp/project/.env',
        'cat /proc/1/root/work/project/.env /proc/1/cwd/work/project/.env /proc/self/root/work/project/.env',
        'cp -a . /tmp/copy; cat /tmp/copy/.env /tmp/copy/sub/key.pem /tmp/copy/.aws/credentials',
        'unshare -m umount .env; unshare -rm cat .env',
        'dd if=.env; tar -cf - . | grep -c secret',
        'chmod 777 .env .aws; cat .env; ls .aws',
      ];
      for (const user of ['1000:1000', '0:0'])
        for (const line of tries) {
          const { stdout } = await sh(guest, `cd /work/project && { ${line}; }`, user);
          expect(stdout.replaceAll(/^0\n/gm, ''), line).toBe('');
        }
      expect((await sh(guest, 'cat /work/project/open')).stdout).toBe('open');
      expect(readFileSync(join(project, '.env'), 'utf8')).toBe('secret');
      expect(readFileSync(join(project, 'sub/key.pem'), 'utf8')).toBe('secret');
    });

    test('hidden files of an overlay are not there, and their names are free', async () => {
      makeProject({
        '.env': 'secret',
        'sub/key.pem': 'secret',
        'sub/code': 'code',
        '.aws/credentials': 'secret',
      });
      chmodSync(join(project, 'sub'), 0o700);
      symlinkSync('sub/key.pem', join(project, 'link'));
      const overlay = makeLayers();
      const hidden = ['.aws/credentials', '.env', '.aws', 'link', 'nowhere/file'];
      const { guest } = await start([mounted({ overlay, hidden })]);
      const seen = await sh(
        guest,
        'cd /work/project && ls -A . sub; stat -c "%a %u" sub; cat sub/code .env',
        '0:0',
      );
      expect(seen.stdout).toBe('.:\nsub\n\nsub:\ncode\n700 1000\ncode');
      const wrote = await sh(
        guest,
        'cd /work/project && echo own >.env && mkdir .aws && echo 1 >sub/key.pem && cat .env',
      );
      expect(wrote).toMatchObject({ code: 0, stdout: 'own\n' });
      expect(readFileSync(join(overlay.upper, '.env'), 'utf8')).toBe('own\n');
      expect(readFileSync(join(project, '.env'), 'utf8')).toBe('secret');
      expect((await sh(guest, 'ls -A /work/project/.aws')).stdout).toBe('');
    });

    test('many hidden paths are hidden, and too many are refused', async () => {
      const paths = Array.from({ length: 400 }, (_, index) => `folder-${index % 7}/file-${index}`);
      makeProject(Object.fromEntries(paths.map((path) => [path, 'secret'])));
      const { guest } = await start([mounted({ hidden: paths })]);
      expect((await sh(guest, 'cat /work/project/*/*', '0:0')).stdout).toBe('');
      const tooMany = Array.from({ length: 10_001 }, (_, index) => `${index}`);
      expect(await refusal([mounted({ hidden: tooMany })])).toMatchObject({ code: 'invalid' });
      expect(await refusal([mounted({ hidden: ['../outside'] })])).toMatchObject({ code: 'invalid' });
    });

    test('links in the folder that lead out of it lead into the guest only', async () => {
      makeProject({});
      writeFileSync(join(home, 'outside'), 'the host’s');
      symlinkSync(join(home, 'outside'), join(project, 'absolute'));
      symlinkSync('../outside', join(project, 'relative'));
      symlinkSync('/etc/shadow', join(project, 'shadow'));
      for (const overlay of [undefined, makeLayers()]) {
        const hidden = ['absolute', 'relative', 'shadow'];
        const { guest } = await start([mounted({ hidden, ...(overlay && { overlay }) })]);
        const { stdout } = await sh(
          guest,
          'cd /work/project; cat absolute relative shadow; echo x >relative',
          '0:0',
        );
        expect(stdout).toBe('');
      }
      expect(readFileSync(join(home, 'outside'), 'utf8')).toBe('the host’s');
    });

    test('a folder of the host that is a link, or has one on its way, is not followed', async () => {
      makeProject({});
      symlinkSync(project, join(home, 'link'));
      try {
        const failure = await refusal([mounted({ hostPath: join(home, 'link') })]);
        expect(failure).toMatchObject({ code: 'invalid', hint: expect.stringContaining('true path') });
      } finally {
        rmSync(join(home, 'link'));
      }
    });

    test('links of a hostile image at the target lead nowhere on the host, nor to what is the kernel’s', async () => {
      makeProject({ file: 'seen' });
      const victim = join(home, 'victim');
      mkdirSync(victim);
      try {
        const image = walls.image('hostile');
        const { guest } = await start([mounted({ guestPath: '/out/project' })], { image });
        expect((await sh(guest, `cat /out/project/file ${victim}/project/file`)).stdout).toBe('seenseen');
        expect(readdirSync(victim)).toEqual([]);
        for (const guestPath of [
          '/kernel/project',
          '/proc/project',
          '/dev/project',
          '/.glovebox/agent',
          '/sys/x',
        ])
          expect(await refusal([mounted({ guestPath })], { image })).toMatchObject({ code: 'invalid' });
      } finally {
        rmSync(victim, { recursive: true });
      }
    });

    test('mounts below one another are made in their order', async () => {
      makeProject({ 'inner/file': 'covered' });
      const hostPath = join(home, 'inner');
      mkdirSync(hostPath);
      writeFileSync(join(hostPath, 'file'), 'inner');
      try {
        const inner: Mount = { hostPath, guestPath: '/work/project/inner', readOnly: true };
        const { guest } = await start([mounted(), inner]);
        expect((await sh(guest, 'cat /work/project/inner/file')).stdout).toBe('inner');
      } finally {
        rmSync(hostPath, { recursive: true });
      }
    });

    test('a machine that is stopped and started again has its mounts again, and what it wrote', async () => {
      if (walls.runtime.start === undefined) return;
      makeProject({ '.env': 'secret', file: '1' });
      const overlay = makeLayers();
      const { guest, machine, spec, door } = await start([
        mounted({ overlay, hidden: ['.env', 'later.pem'] }),
      ]);
      expect(await sh(guest, 'cd /work/project && rm file && echo 1 >added')).toMatchObject({ code: 0 });
      await machine.keeping?.stop(soon());
      writeFileSync(join(project, 'later.pem'), 'secret');
      await door.close();
      running.pop();
      const again = await doorOf(spec);
      running.push({ machine: await walls.runtime.start(spec, soon()), door: again, spec });
      const second = await again.connected(soon());
      expect((await sh(second, 'ls -A /work/project; stat -c %u /work/project/added')).stdout).toBe(
        'added\n1000\n',
      );
    });

    test('an abort at any moment of create leaves nothing, and the host’s mounts are as before', async () => {
      makeProject({ '.env': 'secret' });
      const overlay = makeLayers();
      const mounts = [
        mounted({ hidden: ['.env'] }),
        mounted({ guestPath: '/work/overlay', overlay, hidden: ['.env'] }),
      ];
      const startedAt = performance.now();
      await start(mounts);
      const takesMs = performance.now() - startedAt;
      expect(mountsOfOurs()).toEqual([]);
      for (const share of [0.2, 0.4, 0.6, 0.8]) {
        const spec = specOf(mounts);
        const door = await doorOf(spec);
        const abort = new AbortController();
        const timer = setTimeout(() => abort.abort(), takesMs * share);
        const result = await walls.runtime.create(spec, abort.signal).catch((it) => it);
        clearTimeout(timer);
        if (!(result instanceof Error)) await result.remove(soon());
        await door.close();
        await rm(spec.runFolder, { recursive: true, force: true });
        expect(existsSync(spec.stateFolder)).toBe(false);
        await until('helpers', helpers, (pids) => pids.length === 0);
      }
      await running[0]?.machine.remove(soon());
      expect(mountsOfOurs()).toEqual([]);
      expect(readFileSync(join(project, '.env'), 'utf8')).toBe('secret');
    });

    test('a folder’s content costs nothing: it is not walked, nor copied', async () => {
      makeProject({});
      const timed = async () => {
        const startedAt = performance.now();
        const { machine } = await start([
          mounted(),
          mounted({ guestPath: '/work/overlay', overlay: makeLayers() }),
        ]);
        const tookMs = performance.now() - startedAt;
        await machine.remove(soon());
        rmSync(join(home, 'layers'), { recursive: true });
        return tookMs;
      };
      /** Of three, what the machine's other work has disturbed least. */
      const best = async () => Math.min(await timed(), await timed(), await timed());
      const empty = await best();
      writeFileSync(join(project, 'sparse'), '');
      truncateSync(join(project, 'sparse'), 2 ** 31);
      expect(await best()).toBeLessThan(empty * 2 + 500);
    }, 60_000);

    if (name === 'docker')
      test('the engine does not know of them', async () => {
        makeProject({});
        const { spec } = await start([mounted()]);
        const config = execFileSync('docker', ['inspect', `glovebox-${spec.id}`], { encoding: 'utf8' });
        expect(config).not.toContain(project);
      });
  });

/** The extended attributes of a folder, as tar writes them. */
function attributesOf(folder: string): string {
  const options = ['--xattrs', '--xattrs-include=*', '--no-recursion', '-cf', '-'];
  return execFileSync('tar', [...options, '-C', folder, '.'], { encoding: 'latin1' });
}

/** Helpers on this host, of whichever test. */
function helpers(): string[] {
  return readdirSync('/proc').filter((pid) => {
    try {
      return /^\d+$/.test(pid) && readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('/mounts.js');
    } catch {
      return false;
    }
  });
}
