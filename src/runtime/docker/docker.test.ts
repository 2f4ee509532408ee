// Machines on a real engine: how they are hardened, how they end, and that nothing of them stays. What every runtime owes is in
// conformance.test.ts, with the real agent; here the first process is the image's own sleep.
import { execFileSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { until } from '../../../test/daemon.ts';
import { dockerImage, rootfsTar } from '../../../test/images.ts';
import { Failure } from '../../lib/failure.ts';
import type { MachineSpec } from '../runtime.ts';
import { wallOff } from './capture.ts';
import { type DockerOptions, DockerRuntime, droppedCapabilities } from './docker.ts';

const present = process.env.GLOVEBOX_TEST_PRESENT?.split(',').includes('docker') ?? false;
const never = new AbortController().signal;
const docker = (...args: string[]) => execFileSync('docker', args, { encoding: 'utf8' }).trim();

/** Hands the engine an image that nobody here could build, as an archive made by hand. */
function loadImage(reference: string, architecture: string): void {
  const layer = readFileSync(rootfsTar('scratch'));
  const config = {
    architecture,
    os: 'linux',
    config: {},
    rootfs: { type: 'layers', diff_ids: [`sha256:${createHash('sha256').update(layer).digest('hex')}`] },
  };
  const folder = mkdtempSync(join(tmpdir(), 'glovebox-image-'));
  writeFileSync(join(folder, 'layer.tar'), layer);
  writeFileSync(join(folder, 'config.json'), JSON.stringify(config));
  const manifest = [{ Config: 'config.json', RepoTags: [reference], Layers: ['layer.tar'] }];
  writeFileSync(join(folder, 'manifest.json'), JSON.stringify(manifest));
  execFileSync('sh', ['-c', 'tar -C "$1" -c . | docker load', 'sh', folder]);
  rmSync(folder, { recursive: true });
}

describe.runIf(present)('machines on the Docker engine', () => {
  const homeId = randomBytes(6).toString('hex');
  const runtimes: DockerRuntime[] = [];
  const images: string[] = [];
  let folder: string;
  let image: string;

  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'glovebox-docker-'));
    for (const name of ['agent', 'run', 'state']) mkdirSync(join(folder, name));
    image = dockerImage('busybox');
  });
  afterEach(() => {
    for (const runtime of runtimes.splice(0)) runtime[Symbol.dispose]();
    const left = [
      docker('ps', '-aq', '--filter', `label=glovebox.home=${homeId}`),
      readdirSync(join(folder, 'state')),
    ];
    // What one test left must not fail the next.
    if (left[0] !== '') docker('rm', '-fv', ...String(left[0]).split(/\s+/));
    rmSync(join(folder, 'state'), { recursive: true });
    mkdirSync(join(folder, 'state'));
    expect(left).toEqual(['', []]);
  });
  afterAll(() => {
    rmSync(folder, { recursive: true });
    if (images.length > 0) docker('rmi', '-f', ...images);
  });

  const agentWith = (command: string[]) => ({
    folder: join(folder, 'agent'),
    command,
    environment: { AGENT: 'here' },
  });
  const runtimeWith = (options: Partial<DockerOptions> = {}): DockerRuntime => {
    const runtime = new DockerRuntime({
      homeId,
      agent: agentWith(['/bin/sleep', '3600']),
      ...options,
    });
    runtimes.push(runtime);
    return runtime;
  };
  const specOf = (changes: Partial<MachineSpec> = {}): MachineSpec => {
    const id = `t-${randomBytes(6).toString('hex')}`;
    const folders = { runFolder: join(folder, 'run'), stateFolder: join(folder, 'state', id) };
    return { id, image, limits: {}, mounts: [], labels: { purpose: 'test' }, ...folders, ...changes };
  };
  const importImage = (...changes: string[]): string => {
    const reference = `glovebox-test/docker-${randomBytes(4).toString('hex')}:1`;
    docker('import', ...changes.flatMap((it) => ['--change', it]), rootfsTar('busybox'), reference);
    images.push(reference);
    return reference;
  };
  const inspect = (id: string) => JSON.parse(docker('inspect', `glovebox-${id}`))[0];

  test('a container is hardened by default, as inspect sees it', async () => {
    const spec = specOf({ limits: { cpu: 0.5, memoryBytes: 64 * 2 ** 20 } });
    const machine = await runtimeWith().create(spec, never);
    const { Config: config, HostConfig: host, Mounts: mounts, State: state } = inspect(spec.id);
    expect(config).toMatchObject({
      User: '0:0',
      Entrypoint: ['/bin/sleep', '3600'],
      Healthcheck: { Test: ['NONE'] },
      Labels: { purpose: 'test', 'glovebox.home': homeId, 'glovebox.sandbox': spec.id },
    });
    expect(host).toMatchObject({
      NetworkMode: 'none',
      Privileged: false,
      Init: true,
      IpcMode: 'private',
      CgroupnsMode: 'private',
      PidMode: '',
      PidsLimit: 4096,
      NanoCpus: 5e8,
      Memory: 64 * 2 ** 20,
      MemorySwap: 64 * 2 ** 20,
      CapAdd: null,
      LogConfig: { Type: 'none' },
      RestartPolicy: { Name: '' },
      PortBindings: null,
      Devices: null,
    });
    expect(host.CapDrop.map((it: string) => it.replace('CAP_', '')).sort()).toEqual(droppedCapabilities);
    expect(host.SecurityOpt[0]).toBe('no-new-privileges');
    expect(JSON.parse(host.SecurityOpt[1].replace('seccomp=', '')).defaultAction).toBe('SCMP_ACT_ERRNO');
    expect(host.MaskedPaths).toEqual(
      expect.arrayContaining(['/proc/kcore', '/proc/kallsyms', '/sys/firmware']),
    );
    expect(host.ReadonlyPaths).toEqual(expect.arrayContaining(['/proc/sys', '/proc/sysrq-trigger']));
    expect(mounts.map((it: { Destination: string; RW: boolean }) => [it.Destination, it.RW]).sort()).toEqual([
      ['/.glovebox/agent', false],
      ['/.glovebox/run', false],
      ['/etc/hosts', true],
      ['/etc/resolv.conf', true],
    ]);
    const status = readFileSync(`/proc/${state.Pid}/status`, 'utf8');
    expect(status).toMatch(/^NoNewPrivs:\s*1$/m);
    expect(status).toMatch(/^Seccomp:\s*2$/m);
    expect(docker('exec', `glovebox-${spec.id}`, 'ls', '/sys/class/net')).toBe('lo');
    await machine.remove(never);
    expect(await machine.exited).toMatchObject({ reason: 'removed' });
  });

  test('the image says what its commands get; our agent gets its own environment', async () => {
    const spec = specOf({
      image: importImage(
        'ENV GREETING=hello UNWANTED=yes',
        'USER nobody',
        'WORKDIR /srv',
        'ENTRYPOINT ["/bin/app"]',
        'CMD ["run"]',
        'HEALTHCHECK CMD true',
        'VOLUME /data',
      ),
    });
    const runtime = runtimeWith();
    const machine = await runtime.create(spec, never);
    const defaults = {
      env: { GREETING: 'hello', UNWANTED: 'yes' },
      cwd: '/srv',
      user: 'nobody',
      entrypoint: ['/bin/app', 'run'],
    };
    expect(machine.image).toMatchObject({ ...defaults, env: expect.objectContaining(defaults.env) });
    const env = readFileSync(`/proc/${inspect(spec.id).State.Pid}/environ`, 'utf8').split('\0');
    expect(env).toContain('AGENT=here');
    expect(env.filter((it) => /^(GREETING|UNWANTED)/.test(it))).toEqual([]);
    const volumes = inspect(spec.id).Mounts.filter((it: { Type: string }) => it.Type === 'volume');
    expect(volumes).toHaveLength(1);

    const [found] = await runtimeWith().list(never);
    expect(found?.image).toEqual(machine.image);
    await found?.remove(never);
    expect(docker('volume', 'ls', '-q')).not.toContain(volumes[0].Name);
  });

  test.each([
    [
      'python with threads and children',
      'python3 -c "import subprocess, threading; t = threading.Thread(target=print); t.start(); t.join(); subprocess.check_call([\'true\'])"',
    ],
    [
      'apt, as its own user',
      'mkdir /repo && : >/repo/Packages && echo "deb [trusted=yes] file:/repo ./" >/etc/apt/sources.list && apt-get update && apt-get check',
    ],
    [
      'dpkg',
      'mkdir -p /p/DEBIAN && printf "Package: p\\nVersion: 1\\nArchitecture: all\\nMaintainer: a\\nDescription: d\\n" >/p/DEBIAN/control && dpkg-deb -b /p /p.deb && dpkg -i /p.deb',
    ],
    [
      'adding and becoming a user',
      'useradd -m ada && su ada -c "test $(id -u) -ge 0 && touch ~/x" && chown nobody /home/ada/x',
    ],
    ['job control and links', 'sleep 1 & kill %1; mkfifo /f && ln -s /f /g && ln /f /h && sync'],
  ])('%s work behind the walls', async (_what, line) => {
    const spec = specOf({ image: dockerImage('debian') });
    const machine = await runtimeWith().create(spec, never);
    try {
      docker('exec', `glovebox-${spec.id}`, 'bash', '-mec', line);
    } finally {
      await machine.remove(never);
    }
  });

  test('the configuration weakens or changes only what it names', async () => {
    const spec = specOf({ limits: { pids: 33 } });
    const runtime = runtimeWith({
      network: 'bridge',
      dropCapabilities: ['NET_RAW'],
      noNewPrivileges: false,
      seccompProfile: 'unconfined',
    });
    const machine = await runtime.create(spec, never);
    const { HostConfig: host } = inspect(spec.id);
    expect(host).toMatchObject({ NetworkMode: 'bridge', PidsLimit: 33, SecurityOpt: ['seccomp=unconfined'] });
    expect(docker('exec', `glovebox-${spec.id}`, 'ls', '/sys/class/net').split(/\s+/)).toContain('eth0');
    await machine.remove(never);
    const { problems } = await runtime.check(never);
    expect(problems.map((it) => it.message)).toEqual([
      'guests may make any system call',
      'guests are on the network "bridge", past every rule of ours',
    ]);
  });

  test('every address is local to a captured container, names are asked for inside, and an adopted one is known', async () => {
    const spec = specOf();
    const machine = await runtimeWith().create(spec, never);
    expect(machine.network).toBe('captured');
    const within = (...command: string[]) => docker('exec', `glovebox-${spec.id}`, ...command);
    expect(within('ip', 'route', 'show', 'table', 'local')).toMatch(/^local default dev lo/m);
    expect(within('cat', '/proc/net/ipv6_route')).toMatch(/^0{32} 00 0{32} 00 0{32} 00000400 .* lo$/m);
    expect(within('cat', '/etc/resolv.conf')).toBe('nameserver 127.0.0.1');
    expect(inspect(spec.id).Config.Labels['glovebox.network']).toBe('captured');
    expect((await runtimeWith().list(never)).map((it) => it.network)).toEqual(['captured']);
    await machine.remove(never);
  });

  test('a container that is not seen to have a network of its own gets no routes', async () => {
    const id = docker(
      'run',
      '-d',
      '--network',
      'host',
      '--label',
      `glovebox.home=${homeId}`,
      image,
      'sleep',
      '60',
    );
    try {
      const { Pid: pid } = JSON.parse(docker('inspect', id))[0].State;
      const before = execFileSync('ip', ['route', 'show', 'table', 'local'], { encoding: 'utf8' });
      expect(await wallOff({ id, pid }, { capture: true })).toBe(false);
      // The number of a process that is not the container's.
      expect(await wallOff({ id, pid: process.pid }, { capture: true })).toBe(false);
      expect(execFileSync('ip', ['route', 'show', 'table', 'local'], { encoding: 'utf8' })).toBe(before);
    } finally {
      docker('rm', '-f', id);
    }
  });

  test('the engine’s own way of network "none" serves where the fast one cannot be verified', async () => {
    const spec = specOf();
    const runtime = runtimeWith({ runtimeClass: 'runc' });
    const machine = await runtime.create(spec, never);
    expect(machine.network).toBe('loopback');
    expect(docker('exec', `glovebox-${spec.id}`, 'cat', '/etc/resolv.conf')).toContain(
      'nameserver 127.0.0.1',
    );
    const check = await runtime.check(never);
    expect(check.capabilities.network).toBe('loopback');
    expect(check.problems.map((it) => it.message).join()).toMatch(/cannot be captured/);
    expect(inspect(spec.id)).toMatchObject({
      Config: { Hostname: spec.id },
      HostConfig: { Runtime: 'runc' },
    });
    expect(docker('exec', `glovebox-${spec.id}`, 'ls', '/sys/class/net')).toBe('lo');
    await machine.remove(never);
  });

  const refused: [what: string, changes: Partial<MachineSpec>, code: string, says: RegExp][] = [
    [
      'the engine’s socket',
      { mounts: [{ hostPath: '/var/run/docker.sock', guestPath: '/s', readOnly: true }] },
      'invalid',
      /commands the whole host/,
    ],
    [
      'a folder above the socket',
      { mounts: [{ hostPath: '/run/', guestPath: '/s', readOnly: true }] },
      'invalid',
      /docker\.sock/,
    ],
    [
      'the whole host',
      { mounts: [{ hostPath: '/etc/..', guestPath: '/s', readOnly: true }] },
      'invalid',
      /commands the whole host/,
    ],
    [
      'a mount over our agent',
      { mounts: [{ hostPath: '/srv', guestPath: '/.glovebox/agent', readOnly: true }] },
      'invalid',
      /taken/,
    ],
    [
      'a mount over /proc by a detour',
      { mounts: [{ hostPath: '/srv', guestPath: '/x/../proc/sys', readOnly: true }] },
      'invalid',
      /taken/,
    ],
    [
      'a relative mount',
      { mounts: [{ hostPath: 'srv', guestPath: '/x', readOnly: true }] },
      'invalid',
      /absolute/,
    ],
    [
      'a mount of nothing',
      { mounts: [{ hostPath: '/no/such/folder', guestPath: '/x', readOnly: true }] },
      'invalid',
      /does not exist/,
    ],
    ['too many processors', { limits: { cpu: 4096 } }, 'invalid', /CPUs/],
    ['a negative limit', { limits: { memoryBytes: -1 } }, 'invalid', /memoryBytes/],
    ['too little memory', { limits: { memoryBytes: 1024 } }, 'invalid', /memory/],
    ['a GPU where there is none', { limits: { gpu: 'all' } }, 'unsupported', /gpu/],
    ['a disk limit where storage cannot', { limits: { diskBytes: 1e9 } }, 'unsupported', /diskBytes/],
    ['an id that is a path', { id: '../x' }, 'invalid', /id/],
    ['an image that is no name', { image: 'Not An Image' }, 'invalid', /not the name of an image/],
    ['another platform', { platform: { os: 'linux', arch: 's390x' } }, 'unsupported', /s390x/],
    ['another system', { platform: { os: 'windows', arch: 'amd64' } }, 'unsupported', /windows/],
  ];
  test.each(refused)('refuses %s', async (_what, changes, code, says) => {
    const failure = await runtimeWith()
      .create(specOf(changes), never)
      .catch((it) => it);
    expect(failure).toBeInstanceOf(Failure);
    expect([failure.code, failure.message]).toEqual([code, expect.stringMatching(says)]);
  });

  test('refuses an image of another architecture', async () => {
    const reference = `glovebox-test/other-${randomBytes(4).toString('hex')}:1`;
    loadImage(reference, 's390x');
    images.push(reference);
    const failure = await runtimeWith()
      .create(specOf({ image: reference }), never)
      .catch((it) => it);
    expect(failure).toMatchObject({ code: 'unsupported', message: expect.stringContaining('linux/s390x') });
  });

  test('refuses a runtime class and a seccomp profile that are not there', async () => {
    expect(
      await runtimeWith({ runtimeClass: 'none-such' })
        .create(specOf(), never)
        .catch((it) => it),
    ).toMatchObject({
      code: 'unsupported',
      hint: expect.stringContaining('runc'),
    });
    expect(
      await runtimeWith({ seccompProfile: '/none/such' })
        .create(specOf(), never)
        .catch((it) => it),
    ).toMatchObject({ code: 'invalid' });
    expect((await runtimeWith({ runtimeClass: 'none-such' }).check(never)).usable).toBe(false);
  });

  test('the same id twice is a conflict, and the first one stays', async () => {
    const runtime = runtimeWith();
    const spec = specOf();
    const machine = await runtime.create(spec, never);
    expect(await runtime.create(spec, never).catch((it) => it)).toMatchObject({ code: 'conflict' });
    expect(readdirSync(spec.stateFolder)).toEqual(['hosts', 'resolv.conf']);
    expect(inspect(spec.id).State.Running).toBe(true);
    await machine.remove(never);
    await machine.remove(never);
  });

  test('an agent that cannot start leaves nothing', async () => {
    const failure = await runtimeWith({ agent: agentWith(['/no/such/agent']) })
      .create(specOf({ image: dockerImage('scratch') }), never)
      .catch((it) => it);
    // With the engine's init the container starts and ends at once; without it, the start fails.
    if (failure instanceof Error) expect(failure).toBeInstanceOf(Failure);
    else {
      expect(await failure.exited).toMatchObject({ reason: 'exited', exitCode: 127 });
      await failure.remove(never);
    }
  });

  test('machines end with their reason, each told through one stream of events', async () => {
    const runtime = runtimeWith();
    const machines = await Promise.all([1, 2, 3].map(() => runtime.create(specOf(), never)));
    const [killed, removed, gone] = machines as [
      (typeof machines)[0],
      (typeof machines)[0],
      (typeof machines)[0],
    ];
    docker('kill', `glovebox-${killed.id}`);
    expect(await killed.exited).toMatchObject({ reason: 'exited', exitCode: 137 });
    await removed.remove(never);
    expect(await removed.exited).toMatchObject({ reason: 'removed' });
    docker('rm', '-f', `glovebox-${gone.id}`);
    expect((await gone.exited).reason).toMatch(/exited|lost/);
    await Promise.all(machines.map((it) => it.remove(never)));
  });

  test('running out of memory is told as such, also when it is noticed late', async () => {
    const runtime = runtimeWith({ agent: agentWith(['/bin/tail', '/dev/zero']) });
    const machine = await runtime.create(specOf({ limits: { memoryBytes: 16 * 2 ** 20 } }), never);
    expect(await machine.exited).toMatchObject({ reason: 'out-of-memory', exitCode: 137 });
    const [found] = await runtimeWith().list(never);
    expect(await found?.exited).toMatchObject({ reason: 'out-of-memory', exitCode: 137 });
    await machine.remove(never);
  });

  test('pause freezes and resume thaws; a frozen machine is removed like any other', async () => {
    const runtime = runtimeWith();
    const spec = specOf();
    const machine = await runtime.create(spec, never);
    await machine.pausing?.pause(never);
    await machine.pausing?.pause(never);
    expect(inspect(spec.id).State.Paused).toBe(true);
    expect((await runtime.list(never)).map((it) => it.paused)).toEqual([true]);
    await machine.pausing?.resume(never);
    await machine.pausing?.resume(never);
    expect(inspect(spec.id).State.Paused).toBe(false);
    await machine.pausing?.pause(never);
    await machine.remove(never);
  });

  test('list finds what runs, what has ended and what was never started, and all of it can be removed', async () => {
    const specs = [specOf(), specOf()];
    for (const spec of specs) await runtimeWith().create(spec, never);
    docker('kill', `glovebox-${specs[1]?.id}`);
    docker('create', '--label', `glovebox.home=${homeId}`, '--label', 'glovebox.sandbox=half', image, 'true');
    docker(
      'run',
      '-d',
      '--label',
      'glovebox.home=someone-else',
      '--name',
      `other-${homeId}`,
      image,
      'sleep',
      '60',
    );
    const found = await runtimeWith().list(never);
    expect(new Set(found.map((it) => it.id))).toEqual(new Set([specs[0]?.id, specs[1]?.id, 'half']));
    const ended = (id: string | undefined) => found.find((it) => it.id === id)?.exited;
    expect(await ended(specs[1]?.id)).toMatchObject({ reason: 'exited', exitCode: 137 });
    expect(await ended('half')).toMatchObject({ reason: 'lost' });
    await Promise.all(found.map((it) => it.remove(never)));
    docker('rm', '-f', `other-${homeId}`);
  });

  test('thirty machines at once', async () => {
    const runtime = runtimeWith();
    const numbers = [...Array(30).keys()];
    const machines = await Promise.all(numbers.map(() => runtime.create(specOf(), never)));
    expect(await runtime.list(never)).toHaveLength(30);
    await Promise.all(machines.map((it) => it.remove(never)));
    expect(await runtime.list(never)).toEqual([]);
  });

  test('an abort at any time leaves nothing', async () => {
    const runtime = runtimeWith();
    for (const afterMs of [0, 1, 3, 8, 20, 50, 70]) {
      const abort = new AbortController();
      const creating = runtime.create(specOf(), abort.signal).catch((it) => it);
      setTimeout(() => abort.abort(), afterMs);
      const result = await creating;
      if (result instanceof Error) expect(result).toMatchObject({ name: 'Failure', code: 'aborted' });
      else await result.remove(never);
      await until(
        'containers',
        () => docker('ps', '-aq', '--filter', `label=glovebox.home=${homeId}`),
        (it) => it === '',
      );
      expect(readdirSync(join(folder, 'state'))).toEqual([]);
    }
  });

  test('check tells the version, the limits that hold and what is weak', async () => {
    const check = await runtimeWith().check(never);
    expect(check).toMatchObject({
      usable: true,
      version: docker('version', '--format', '{{.Server.Version}}'),
    });
    expect(check.capabilities).toMatchObject({
      pause: true,
      isolation: 'container',
      users: 'all',
      imagePull: true,
      network: 'captured',
    });
    expect(check.capabilities.limits.memoryBytes).toMatch(/^cgroup-v[12]$/);
  });
});
