// Machines of bubblewrap on this very host, made by its root: what a guest sees, what it cannot do, how it ends, and that nothing of it stays.
// What every runtime owes is in conformance.test.ts, with the real agent.
import { execFileSync, spawnSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { totalmem } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { BubblewrapHome, removeAll, soon } from '../../../test/bubblewrap.ts';
import { until } from '../../../test/daemon.ts';
import { ImageStore } from '../../image/store.ts';
import type { BubblewrapRuntime } from './bubblewrap.ts';
import { hostIdBase } from './rootfs.ts';

const present = process.env.GLOVEBOX_TEST_PRESENT?.split(',').includes('bubblewrap') ?? false;
const asRoot = process.getuid?.() === 0;

describe.runIf(present && asRoot)('bubblewrap, as root', () => {
  let home: BubblewrapHome;
  let runtime: BubblewrapRuntime;

  beforeEach(() => {
    home = new BubblewrapHome();
    runtime = home.open();
  });
  afterEach(async ({ task }) => {
    // So that one failure does not weigh on what is tested next.
    if (task.result?.state === 'fail') await removeAll(await runtime.list(soon()));
    runtime[Symbol.dispose]();
    await home.close();
  });

  test('the check starts a machine for real and leaves nothing', async () => {
    const check = await runtime.check(soon());
    expect(check).toMatchObject({ usable: true, version: expect.stringMatching(/^\d+\.\d+/) });
    expect(check.capabilities).toMatchObject({ users: 'all', isolation: 'namespaces', imagePull: false });
    expect(home.left()).toEqual([]);
  });

  test('a missing bubblewrap is a problem with a next step, and so is a create', async () => {
    using without = home.open({ bwrap: '/no/such/bwrap' });
    const { usable, problems } = await without.check(soon());
    expect(usable).toBe(false);
    expect(problems).toContainEqual({
      message: 'bubblewrap is not installed',
      hint: expect.stringContaining('apt-get'),
      fatal: true,
    });
    await expect(without.create(home.spec(), soon())).rejects.toMatchObject({
      code: 'unavailable',
      hint: 'Install bubblewrap.',
    });
  });

  test('the guest’s root is none of the host’s users', async () => {
    const machine = await runtime.create(
      home.spec({ id: 'ids', job: 'cat /proc/self/uid_map; id -u' }),
      soon(),
    );
    expect((await home.output('ids')).split(/\s+/)).toEqual(['', '0', String(hostIdBase), '65536', '0', '']);
    const uids = readFileSync(
      '/sys/fs/cgroup/pids/glovebox/'.concat(home.homeId, '/ids/cgroup.procs'),
      'utf8',
    )
      .trim()
      .split('\n')
      .map((pid) => /^Uid:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]);
    expect(new Set(uids)).toEqual(new Set([String(hostIdBase)]));
    await machine.remove(soon());
  });

  test.each([
    ['nothing', {}, 4_096],
    ['an empty section', { defaults: {} }, 4_096],
    ['a limit of its own', { defaults: { pids: 100 } }, 100],
  ])('a request that asks for no limits has some, with %s in the configuration', async (_, options, pids) => {
    using configured = home.open(options);
    const machine = await configured.create(home.spec({ id: 'limits' }), soon());
    const said = (file: string) => {
      const [controller] = file.split('.');
      const path = `/sys/fs/cgroup/${controller}/glovebox/${home.homeId}/limits/${file}`;
      return Number(readFileSync(path, 'utf8'));
    };
    expect(said('pids.max')).toBe(pids);
    expect(said('memory.limit_in_bytes')).toBeLessThan(totalmem() * 0.76);
    await machine.remove(soon());
  });

  test('the host image shows the host’s programs and nothing of its data', async () => {
    const hidden = [
      '/etc/shadow',
      '/etc/ssh',
      '/root/.ssh',
      '/var/lib/dpkg',
      '/var/run/docker.sock',
      '/run/systemd',
      '/boot',
      '/sys/kernel',
      home.folder,
    ];
    const job = [
      'ls -A /root /home/user /var/lib /run /tmp /srv /opt',
      ...hidden.map((path) => `ls -d ${path} 2>/dev/null`),
      'touch /usr/x /etc/alternatives/x 2>/dev/null && echo written',
      'for it in / /etc /root /home/user /tmp /var /opt /srv /run; do touch $it/new || echo "no $it"; done',
      '/usr/bin/env python3 -c "print(6 * 7)"',
      'cat /etc/passwd | cut -d: -f1 | tr "\\n" " "; hostname',
    ].join('\n');
    const output = await home.run(runtime, { job });
    expect(output).toBe(
      '/home/user:\n\n/opt:\n\n/root:\n\n/run:\nlock\n\n/srv:\n\n/tmp:\n\n/var/lib:\n42\nroot user nobody glovebox\n',
    );
  });

  test('root inside can neither change the host’s kernel nor gain by set-user-id programs', async () => {
    const job = [
      'for it in /proc/sys/kernel/core_pattern /proc/sys/kernel/sysrq /proc/sys/net/ipv4/ip_forward /proc/sysrq-trigger /proc/kcore /proc/irq/default_smp_affinity; do',
      '  ( : >>$it ) 2>/dev/null && echo "writable $it"',
      'done',
      'mkdir /s; cp /.glovebox/agent/busybox /s/id; chmod 6755 /s/id',
      `/usr/bin/python3 -c 'import os; os.setgid(65534); os.setuid(65534); os.execv("/s/id", ["id"])'`,
      'unshare -U true 2>/dev/null && echo "made a user namespace"',
      'cat /proc/sys/user/max_user_namespaces',
      'mount -t tmpfs none /mnt 2>/dev/null && echo mounted',
      'mknod /disk b 254 0 2>/dev/null && echo "made a device"',
      'grep -E "CapBnd|NoNewPrivs|Seccomp:" /proc/self/status | tr "\\t\\n" "  "; echo',
      'cat /proc/net/dev | grep -c :; ls /proc | grep -c "^[0-9]"',
      // 0, 1 and 2, and those of the shell itself; none of the launch.
      'ls -l /proc/1/fd | grep -E "/(stage|machines|tmp)/"',
    ].join('\n');
    const output = await home.run(runtime, { job });
    expect(output).toMatch(
      /^uid=65534\(nobody\) gid=65534\(nogroup\)( groups=.*)?\n0\nCapBnd:\s+00000000000404fb NoNewPrivs:\s+1 Seccomp:\s+2 \n1\n[3-6]\n$/,
    );
  });

  test('images: with a shell, with one program, and with nothing at all', async () => {
    const outputs = [];
    for (const name of ['busybox', 'scratch', 'empty'] as const)
      outputs.push(
        await home.run(runtime, {
          image: home.image(name),
          job: 'ls / | tr "\\n" " "; cat /etc/hosts | head -1; echo >/new && echo new',
        }),
      );
    const [shell, scratch, empty] = outputs;
    expect(shell).toContain('bin dev etc');
    expect(scratch).toBe('busybox dev etc output proc sys 127.0.0.1\tlocalhost glovebox\nnew\n');
    expect(empty).toBe('dev etc output proc sys 127.0.0.1\tlocalhost glovebox\nnew\n');
    expect(existsSync(join(home.folder, 'empty/new'))).toBe(false);
  });

  test('links of a hostile image lead none of our mounts out of it', async () => {
    const target = join(home.folder, 'outside');
    mkdirSync(target);
    chmodSync(target, 0o777);
    const image = join(home.folder, home.image('empty'));
    for (const name of ['proc', 'dev', '.glovebox', 'etc', 'data', 'up'])
      symlinkSync(name === 'up' ? '../../../../tmp' : `/oldroot${target}`, join(image, name));
    const mounts = [
      { hostPath: '/usr/share', guestPath: '/data/here', readOnly: true },
      { hostPath: '/usr/lib', guestPath: '/up/there', readOnly: true },
    ];
    const job =
      'test -e /proc/self/status && test -c /dev/null && test -d /tmp/there/os-release/.. || ls /tmp/there >/dev/null && echo fine; ls -d /oldroot/*/*';
    expect(await home.run(runtime, { image: 'empty', mounts, job })).toContain('fine');
    expect(execFileSync('ls', ['-A', target], { encoding: 'utf8' })).toBe('');
  });

  test('mounts: read-only ones stay as they are, odd names work, missing and reserved ones are refused', async () => {
    const odd = join(home.folder, 'a b\t#\\"c,d:é');
    mkdirSync(odd);
    chmodSync(odd, 0o777);
    writeFileSync(join(odd, 'file'), 'content\n');
    const mounts = [
      { hostPath: odd, guestPath: '/one two', readOnly: false },
      { hostPath: odd, guestPath: '/read/only', readOnly: true },
      { hostPath: join(odd, 'file'), guestPath: '/etc/file', readOnly: true },
    ];
    const job =
      'cat "/one two/file" /etc/file; echo x >"/one two/new"; touch /read/only/x 2>/dev/null || echo refused; stat -c %a /read';
    expect(await home.run(runtime, { mounts, job })).toBe('content\ncontent\nrefused\n755\n');
    expect(readFileSync(join(odd, 'new'), 'utf8')).toBe('x\n');
    const refused = [
      ['/no/such/folder', '/mnt', /no such file/],
      ['relative', '/mnt', /not an absolute path/],
      ['/usr', '/', /not yours/],
      ['/usr', '/proc/1', /not yours/],
      ['/usr', '/tmp/../.glovebox/agent', /not yours/],
      ['/dev/null', '/mnt/x', /neither a folder/],
    ] as const;
    for (const [hostPath, guestPath, message] of refused)
      await expect(
        runtime.create(home.spec({ mounts: [{ hostPath, guestPath, readOnly: true }] }), soon()),
        guestPath,
      ).rejects.toMatchObject({ code: 'invalid', message: expect.stringMatching(message) });
  });

  test('what cannot be given is refused before anything is made', async () => {
    const cases = [
      [{ limits: { gpu: 'all' } }, 'unsupported', /gpu/],
      [{ limits: { memoryBytes: 1024 } }, 'invalid', /the least is/],
      [{ limits: { pids: -1 } }, 'invalid', /positive/],
      [{ pull: 'always' }, 'unsupported', /no registries/],
      [{ platform: { os: 'linux', arch: 'riscv64' } }, 'unsupported', /riscv64/],
      [{ platform: { os: 'windows', arch: 'amd64' } }, 'unsupported', /windows/],
      [{ id: '../escape' }, 'invalid', /not a possible id/],
    ] as const;
    for (const [changes, code, message] of cases)
      await expect(runtime.create({ ...home.spec(), ...changes }, soon())).rejects.toMatchObject({
        code,
        message: expect.stringMatching(message),
      });
    using foreign = home.open({
      images: {
        resolve: async () => ({
          kind: 'folder',
          path: '/',
          image: { env: {}, entrypoint: [] },
          arch: 's390x',
        }),
      },
    });
    await expect(foreign.create(home.spec({ image: 'mainframe' }), soon())).rejects.toMatchObject({
      code: 'unsupported',
      message: expect.stringMatching(/mainframe is for s390x/),
    });
  });

  test('every address is the guest’s own, and its routes are in the hands of nobody inside', async () => {
    const job = [
      'cat /etc/resolv.conf /proc/sys/net/ipv4/ip_unprivileged_port_start; ls /sys/class/net 2>/dev/null',
      'ip route show table local; ip -6 route show table local',
      'ip route del local default dev lo table local 2>/dev/null && echo changed',
    ].join('\n');
    const seen = await home.run(runtime, { job });
    expect(seen).toMatch(/^nameserver 127.0.0.1\n0\nlocal default dev lo/);
    expect(seen.match(/^local default dev lo/gm)).toHaveLength(2);
    expect(seen).not.toContain('changed');
  });

  test.each([
    ['is missing', '/none/ip'],
    ['makes no routes', '/bin/false'],
  ])('where `ip` %s, a guest has its loopback and nothing else, and that is said', async (_what, ip) => {
    using poor = home.open({ ip });
    const connect = (address: string) =>
      `/usr/bin/python3 -c 'import socket; socket.create_connection(("${address}", 80))' 2>&1 | tail -1`;
    const job = `${connect('1.2.3.4')}; ${connect('127.0.0.1')}; sed -n 's/^ *\\([^ :]*\\):.*/\\1/p' /proc/net/dev`;
    const machine = await poor.create(home.spec({ id: 'poor', job }), soon());
    expect(await home.output('poor')).toMatch(/unreachable\n.*refused\nlo\n$/);
    expect(machine.network).toBe('loopback');
    expect(poor.capabilities.network).toBe('loopback');
    using later = home.open();
    expect((await later.list(soon())).map((it) => it.network)).toEqual(['loopback']);
    await machine.remove(soon());
    const { usable, problems } = await poor.check(soon());
    expect(usable).toBe(true);
    expect(problems.map((it) => it.hint).join()).toContain('iproute2');
  });

  test('a host without control groups says so, and holds the number of processes by other means or not at all', async () => {
    using bare = home.open({ cgroups: null });
    expect(bare.capabilities).toMatchObject({ pause: false, limits: { diskBytes: 'tmpfs' } });
    const failure = await bare
      .create(home.spec({ limits: { memoryBytes: 2 ** 28 } }), soon())
      .catch((it) => it);
    expect(failure).toMatchObject({ code: 'unsupported', hint: expect.stringContaining('Delegate=yes') });
    const machine = await bare.create(home.spec({ id: 'bare', job: 'echo here' }), soon());
    expect(machine.pausing).toBeUndefined();
    expect(await home.output('bare')).toBe('here\n');
    await machine.remove(soon());
  });

  test('a daemon with a closed umask makes open machines', async () => {
    const before = process.umask(0o077);
    try {
      expect(
        await home.run(runtime, { image: home.image('busybox'), job: 'stat -c %a / /.glovebox; umask' }),
      ).toBe('755\n755\n0022\n');
    } finally {
      process.umask(before);
    }
  });

  test('an agent that cannot be started is a failure of create, in bubblewrap’s words', async () => {
    using broken = home.open({
      agent: { folder: join(home.folder, 'agent'), command: ['/.glovebox/agent/none'], environment: {} },
    });
    await expect(broken.create(home.spec(), soon())).rejects.toMatchObject({
      message: expect.stringMatching(/none: No such file/),
    });
  });

  test('hostile trees are removed, and nothing beside them', async () => {
    const outside = join(home.folder, 'outside');
    mkdirSync(outside);
    writeFileSync(join(outside, 'file'), 'stays');
    const long = 'd'.repeat(200);
    const job = [
      `/usr/bin/python3 -c 'import os; [(os.mkdir("${long}"), os.chdir("${long}")) for _ in range(400)]'`,
      `cd /; mkdir -p /closed/in; touch /closed/in/file; chown -R 7:7 /closed; chmod 000 /closed/in /closed`,
      `ln -s ${outside} /link; ln -s / /all; mkfifo /fifo; : >"/$(printf 'bad\\377name\\nline')"; ls / | wc -l`,
    ].join('\n');
    expect(await home.run(runtime, { job })).toMatch(/^\d+\n$/);
    expect(readFileSync(join(outside, 'file'), 'utf8')).toBe('stays');
  });

  test('a killed monitor takes its guest along', async () => {
    const machine = await runtime.create(home.spec({ id: 'm' }), soon());
    const record = JSON.parse(readFileSync(join(home.folder, 'machines/m/machine.json'), 'utf8'));
    process.kill(record.monitor.pid, 'SIGKILL');
    expect(await machine.exited).toMatchObject({ reason: 'exited' });
    const inside = JSON.parse(readFileSync(join(home.folder, 'machines/m/stage/bwrap.json'), 'utf8'))[
      'child-pid'
    ];
    await until(
      'the guest',
      () => existsSync(`/proc/${inside}`),
      (there) => !there,
    );
    await machine.remove(soon());
  });

  test('after a restart of the host its machines are lost, and can be removed', async () => {
    const machine = await runtime.create(home.spec({ id: 'm' }), soon());
    const path = join(home.folder, 'machines/m/machine.json');
    const record = JSON.parse(readFileSync(path, 'utf8'));
    process.kill(record.monitor.pid, 'SIGKILL');
    await machine.exited;
    writeFileSync(path, JSON.stringify({ ...record, bootId: 'an earlier one' }));
    using later = home.open();
    const found = await later.list(soon());
    expect(found.map((it) => it.id)).toEqual(['m']);
    expect(await found[0]?.exited).toMatchObject({ reason: 'lost', message: 'the host was restarted' });
    await removeAll(found);
    expect(await later.list(soon())).toEqual([]);
  });

  test('what half a create left is found by folder and by control group, and removed', async () => {
    mkdirSync(join(home.folder, 'machines/half/upper'), { recursive: true });
    const group = `/sys/fs/cgroup/pids/glovebox/${home.homeId}/stray`;
    mkdirSync(group, { recursive: true });
    const found = await runtime.list(soon());
    expect(found.map((it) => it.id).sort()).toEqual(['half', 'stray']);
    expect((await Promise.all(found.map((it) => it.exited))).map((it) => it.reason)).toEqual([
      'lost',
      'lost',
    ]);
    await removeAll(found);
    expect(existsSync(group)).toBe(false);
  });

  test('the host image knows which system it is', async () => {
    expect(await home.run(runtime, { image: 'host', job: 'cat /etc/os-release' })).toBe(
      readFileSync('/etc/os-release', 'utf8'),
    );
  });

  test('a machine of the host’s own files can be saved and made again, but its image is for this host alone', async () => {
    const idShift = { uidBase: hostIdBase, gidBase: hostIdBase };
    const images = new ImageStore({ folder: join(home.folder, 'images'), idShift, inUse: () => [] });
    using keeping = home.open({ images });
    const spec = home.spec({ job: 'echo kept >/srv/file; rm /etc/shells /etc/profile; mkdir /opt/own' });
    const machine = await keeping.create(spec, soon());
    await home.output(spec.id);
    const image = { env: {}, entrypoint: ['true'] };
    await machine.saving?.save('of-host:1', image, soon());
    await machine.remove(soon());
    expect(await images.kept.list(soon())).toMatchObject([{ name: 'of-host:1', base: 'host' }]);
    // The host's own programs are there as ever, and what was deleted is not.
    const job = 'cat /srv/file; ls /etc/shells /etc/profile /opt; /usr/bin/env echo up';
    const again = home.spec({ image: 'of-host:1', job });
    const made = await keeping.create(again, soon());
    expect(made.image).toEqual(image);
    const output = await home.output(again.id);
    expect(output).toMatch(/^kept\n/);
    expect(output).toContain('/opt:\nown\nup\n');
    expect(output.match(/No such file/g)).toHaveLength(2);
    await made.saving?.save('of-host:2', image, soon());
    await made.remove(soon());
    for (const name of ['host', 'of-host:1', 'of-host:2'])
      expect(
        await images.kept
          .export(name, soon())
          [Symbol.asyncIterator]()
          .next()
          .catch((it) => it),
        name,
      ).toMatchObject({ code: 'unsupported', hint: expect.any(String) });
    expect(readdirSync(join(home.folder, 'images/tmp'))).toEqual([]);
  });

  test('a hundred machines at once are made and removed', { timeout: 240_000 }, async () => {
    const patient = AbortSignal.timeout(200_000);
    const startedAt = performance.now();
    const specs = Array.from({ length: 100 }, (_, at) =>
      home.spec({ id: `n-${at}`, image: at % 2 ? home.image('scratch') : 'host', job: `echo ${at}` }),
    );
    const machines = await Promise.all(specs.map((spec) => runtime.create(spec, patient)));
    const madeAt = performance.now();
    const outputs = await Promise.all(specs.map((spec) => home.output(spec.id)));
    expect(outputs).toEqual(specs.map((_, at) => `${at}\n`));
    expect(await runtime.list(soon())).toHaveLength(100);
    const removingAt = performance.now();
    await Promise.all(machines.map((machine) => machine.remove(patient)));
    const seconds = (from: number, to: number) => ((to - from) / 1000).toFixed(1);
    console.info(
      `100 machines made in ${seconds(startedAt, madeAt)} s, removed in ${seconds(removingAt, performance.now())} s`,
    );
    expect(await runtime.list(soon())).toEqual([]);
    expect(spawnSync('find', [join(home.folder, 'machines'), '-mindepth', '1']).stdout.toString()).toBe('');
    for (const { runFolder } of specs) rmSync(runFolder, { recursive: true });
  });
});
