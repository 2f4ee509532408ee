// Isolated sessions, as OpenSandbox's npm client makes them: what code in one, root included, gets to see and to do of its sandbox and of other sessions; and that the walls of a
// sandbox hold that may make such walls itself.
import {
  ConnectionConfig,
  type CreateIsolatedSessionRequest,
  type NetworkPolicy,
  Sandbox,
} from '@alibaba-group/opensandbox';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { call, list, remove } from '../client.ts';
import { expectNothingLeft, startDaemon, type TestDaemon } from '../daemon.ts';
import { runtimes } from '../runtimes.ts';

const extensions = { 'bootstrap.execd.isolation': 'enable' };
const networkPolicy: NetworkPolicy = { defaultAction: 'deny', egress: [] };
/** Of all that can be seen, asked without starting another one. */
const programs = 'for it in /proc/[0-9]*/comm; do read -r name <$it && echo $name; done';
const said = (execution: { logs: { stdout: { text: string }[] } }) =>
  execution.logs.stdout
    .map(({ text }) => text)
    .join('\n')
    .replace(/\n+/g, '\n');

describe.runIf(runtimes.includes('bubblewrap'))('on bubblewrap', () => {
  let daemon: TestDaemon;
  let connectionConfig: ConnectionConfig;
  let sandbox: Sandbox;

  const connect = async () => {
    connectionConfig = new ConnectionConfig({ domain: daemon.url, apiKey: daemon.apiKey });
  };
  beforeAll(async () => {
    daemon = await startDaemon({ runtime: 'bubblewrap' });
    await connect();
    const resource = { memory: '512Mi' };
    sandbox = await Sandbox.create({
      connectionConfig,
      image: 'host',
      extensions,
      networkPolicy,
      resource,
      env: { A_TOKEN: 't', PLAIN: 'p' },
    });
  });
  // What one test leaves must not fail the next.
  afterEach(async () => {
    for (const { session_id } of await sandbox.isolation.list())
      await (await sandbox.isolation.attach(session_id)).delete();
  });
  afterAll(async () => {
    for (const { id } of await list(daemon)) await remove(daemon, id);
    await sandbox.close();
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(daemon.home);
  });

  const outside = async (line: string) => said(await sandbox.commands.run(line));
  const made = (request: Partial<CreateIsolatedSessionRequest> & { path?: string } = {}) => {
    const { path = '/work/a', ...more } = request;
    return sandbox.isolation.create({ workspace: { path, mode: 'rw' }, ...more });
  };
  const raw = (path: string, body?: unknown) =>
    call(
      daemon,
      body === undefined ? 'GET' : 'POST',
      `/sandboxes/${sandbox.id}/proxy/44772/v1/isolated${path}`,
      body,
    );

  test('root in a session sees neither what is not its own, nor can it take itself rights', async () => {
    await outside(
      'mkdir -p /work/b /srv/data; echo theirs >/work/b/secret; echo mine >/srv/data/file; echo >/tmp/outside',
    );
    const other = await made({ path: '/work/b' });
    await other.run('echo hidden >/tmp/of-b; sleep 1000 & true');
    await using _ = { [Symbol.asyncDispose]: () => other.delete() };
    const session = await made({ binds: [{ source: '/srv/data', dest: '/data', readonly: true }] });
    const run = async (code: string) => said(await session.run(code));
    expect(await run('id -u; pwd; ls -A /work /tmp /home /root; cat /data/file')).toBe(
      '0\n/work/a\n/home:\n/root:\n/tmp:\n/work:\na\nmine',
    );
    // Neither the processes of the sandbox nor those of another session.
    expect(await run(programs)).toBe('bash');
    expect(await run('ls -A /.glovebox /.glovebox/layer; find / -xdev -type s 2>/dev/null')).toBe(
      '/.glovebox:\nagent\nlayer\n/.glovebox/layer:',
    );
    expect(await run('grep -h Cap /proc/self/status | grep -vc 0000000000000000')).toBe('0');
    const tries = [
      ...['touch /usr/x', 'touch /etc/x', 'touch /x', 'touch /data/x', 'touch /.glovebox/x', 'touch /dev/x'],
      ...['umount /data', 'umount /work/a', 'mount -o remount,rw /data', 'mount -o remount,bind,rw /usr'],
      ...['umount -l /tmp', 'chroot / true', 'mknod /tmp/device c 1 1', 'hostname other'],
      ...[
        'echo 1 >/proc/sys/kernel/panic',
        'echo 1 >/proc/sys/net/ipv4/ip_forward',
        'echo b >/proc/sysrq-trigger',
      ],
      ...['echo 0 >/proc/sys/user/max_user_namespaces', 'cat /proc/1/root/work/b/secret', 'cat /proc/kcore'],
    ];
    const lines = tries.map((it) => `(${it}) >/dev/null 2>&1 && echo ${JSON.stringify(it)}`);
    expect(await run(`${lines.join('\n')}\ntrue`)).toBe('');
    await session.delete();
    expect(await outside('ls /work/a /tmp')).toBe('/tmp:\noutside\n/work/a:');
  });

  test('files are asked for as the session sees them, whatever links lie in the way', async () => {
    await outside('mkdir -p /work/links; echo outside >/srv/of-sandbox; echo low >/work/links/low');
    const session = await sandbox.isolation.create({ workspace: { path: '/work/links', mode: 'overlay' } });
    await session.run(
      'ln -s /srv/of-sandbox abs; ln -s ../../../../srv/of-sandbox up; ln -s /proc/1/root/srv proc; ln -s /work/links/new round; mkdir dir; echo >new; ln -s /tmp dir/tmp',
    );
    for (const path of ['abs', 'up', 'proc/of-sandbox', '/srv/of-sandbox', '../../srv/of-sandbox'])
      await expect(session.files.readFile(path), path).rejects.toMatchObject({
        statusCode: expect.any(Number),
      });
    await session.files.writeFiles([
      { path: 'round', data: 'through a link' },
      { path: 'dir/tmp/file', data: 'in its own /tmp' },
      { path: 'low', data: 'changed' },
    ]);
    expect(said(await session.run('cat new /tmp/file low'))).toBe('through a linkin its own /tmpchanged');
    await expect(session.files.writeFiles([{ path: '/usr/x', data: '' }])).rejects.toMatchObject({
      statusCode: 403,
    });
    await expect(session.files.deleteFiles(['/etc/passwd'])).rejects.toMatchObject({ statusCode: 403 });
    // Nothing of it is in the sandbox.
    expect(await outside('ls -A /work/links; cat /work/links/low; ls /tmp/file 2>/dev/null')).toBe(
      'low\nlow',
    );
    await session.delete();
    await expect(session.files.readFile('low')).rejects.toMatchObject({ statusCode: 404 });
  });

  test('modes, users, network and variables are as asked for', async () => {
    const readOnly = await sandbox.isolation.create({
      workspace: { path: '/work/a', mode: 'ro' },
      share_net: false,
      profile: 'balanced',
    });
    // Of the network it has its own loopback, which nobody answers at; else the agent is there.
    const connects = '(exec 3<>/dev/tcp/127.0.0.1/3128) 2>/dev/null && echo connects; true';
    expect(
      said(await readOnly.run(`touch x 2>/dev/null || echo refused; ${connects}; ls /srv/of-sandbox`)),
    ).toBe('refused\n/srv/of-sandbox');
    await readOnly.delete();
    const user = await made({ path: '/work/user', uid: 1234, gid: 1235, env_passthrough: { mode: 'deny' } });
    await user.files.writeFiles([{ path: 'given', data: 'x' }]);
    const code = `id -u; id -g; echo >made; rm given; ${connects}; echo "[$A_TOKEN$PLAIN]"; touch /work/a/x 2>/dev/null || echo refused`;
    expect(said(await user.run(code))).toBe('1234\n1235\nconnects\n[p]\nrefused');
    expect(await outside('stat -c %u:%g /work/user /work/user/made')).toBe('1234:1235\n1234:1235');
    await user.delete();
    const named = await made({
      uid: 77,
      uid_mode: 'userns',
      env_passthrough: { mode: 'allow', keys: ['A_TOKEN'] },
    });
    expect(said(await named.run('id -u; echo >as-77; echo "[$A_TOKEN$PLAIN]"'))).toBe('77\n[t]');
    expect(await outside('stat -c %u /work/a/as-77')).toBe('0');
    await named.delete();
  });

  test('a session goes on over exit, an interrupt and a daemon that is killed, and ends when it is idle', async () => {
    const session = await sandbox.isolation.create({
      workspace: { path: '/work/kept', mode: 'overlay' },
      idle_timeout_seconds: 7_200,
    });
    await session.run('x=1; f() { echo f; }; export E=e; cd /tmp; echo kept >/work/kept/file');
    const ended = await session.run('y=2; exit 3');
    expect(ended.exitCode).toBe(3);
    expect((await session.run('sleep 1000', { timeout_seconds: 1 })).exitCode).not.toBe(0);
    const all = 'echo $x $y $E; f; pwd; cat /work/kept/file; echo $$';
    expect(said(await session.run(all))).toBe('1 2 e\nf\n/tmp\nkept\n1');
    expect(said(await session.run('echo "[$E$N]"', { envs: { E: "it's", N: 'new' } }))).toBe("[it'snew]");
    expect(said(await session.run('echo "[$E$N]"'))).toBe('[e]');
    await daemon.kill();
    daemon = await startDaemon({ home: daemon.home, runtime: 'bubblewrap' });
    await connect();
    sandbox = await Sandbox.connect({ connectionConfig, sandboxId: sandbox.id });
    const again = await sandbox.isolation.attach(session.sessionId);
    expect(again.info).toMatchObject({ ...session.info, idle_timeout_seconds: 7_200 });
    expect(await sandbox.isolation.list()).toMatchObject([
      { session_id: session.sessionId, status: 'active' },
    ]);
    expect(said(await again.run(all))).toBe('1 2 e\nf\n/tmp\nkept\n1');
    expect(await again.files.readFile('file')).toBe('kept\n');
    expect(await again.get()).toMatchObject({ idle_remaining_seconds: expect.any(Number) });
    await again.delete();
    expect(await sandbox.isolation.list()).toEqual([]);
    const idle = await made({ idle_timeout_seconds: 1 });
    await expect.poll(() => raw(`/session/${idle.sessionId}`).then((it) => it.status)).toBe(404);
    expect((await raw(`/session/${idle.sessionId}/run`, { code: 'true' })).body).toMatchObject({
      code: 'SESSION_NOT_FOUND',
    });
    // All that is left in the sandbox is its agent, its main process, and who asks.
    await expect
      .poll(async () => new Set((await outside(programs)).split('\n')))
      .toEqual(new Set(['bash', 'ld.so']));
  });

  const wrong: [what: string, request: object, status: number, words: string][] = [
    ['no workspace', {}, 400, 'workspace'],
    ['a relative path', { workspace: { path: 'work' } }, 400, 'workspace.path'],
    ['all of the disk', { workspace: { path: '/work/..' } }, 400, 'workspace.path'],
    ['our own folder', { workspace: { path: '/.glovebox/run' } }, 400, 'workspace.path'],
    ['a file', { workspace: { path: '/etc/passwd' } }, 400, 'not a directory'],
    ['a mode that is none', { workspace: { path: '/work', mode: 'wr' } }, 400, 'workspace.mode'],
    ['processes', { workspace: { path: '/work' }, binds: [{ source: '/proc', dest: '/p' }] }, 400, 'binds.0'],
    [
      'what is not there',
      { workspace: { path: '/work' }, extra_writable: ['/nowhere'] },
      400,
      'extra_writable.0',
    ],
    [
      'a bind under a layer',
      { workspace: { path: '/work', mode: 'overlay' }, binds: [{ source: '/srv', dest: '/work/srv' }] },
      400,
      'layer',
    ],
    ['a group without a user', { workspace: { path: '/work' }, gid: 1 }, 400, 'gid'],
    ['a word of nobody', { workspace: { path: '/work' }, walls: 'thick' }, 400, 'walls'],
  ];
  test.each(wrong)('%s is refused', async (_, request, status, words) => {
    const answer = await raw('/session', request);
    expect([answer.status, answer.body.code]).toEqual([status, 'INVALID_REQUEST_BODY']);
    expect(answer.body.message).toContain(words);
    expect(await sandbox.isolation.list()).toEqual([]);
  });

  test('the walls of a sandbox hold that may make namespaces: its root has no more of the host than before', async () => {
    const bwrap =
      '/.glovebox/agent/ld.so --library-path /.glovebox/agent/lib /.glovebox/agent/bwrap --unshare-user --cap-add ALL';
    // Root of a namespace of its own, with all the rights in there, over the same files.
    const asRoot = async (line: string) =>
      outside(`${bwrap} --dev-bind / / bash -c ${JSON.stringify(line)} 2>&1; true`);
    expect(await asRoot('grep CapEff /proc/self/status')).not.toMatch(/0000000000000000$/);
    expect(await asRoot('mount -t tmpfs x /mnt && echo done')).toBe('done');
    const tries = [
      // The host's folders, read-only mounts, and what lies under mounts.
      ...[
        'mount -o remount,bind,rw /.glovebox/agent',
        'umount -l /.glovebox/agent',
        'umount -l /proc',
        'umount -l /dev',
      ],
      ...['touch /.glovebox/agent/x', 'touch /.glovebox/run/x'],
      // Settings of the kernel, its memory and its devices.
      ...[
        'echo x >/proc/sys/kernel/core_pattern',
        'echo 1 >/proc/sys/vm/drop_caches',
        'echo b >/proc/sysrq-trigger',
      ],
      ...['echo 1 >/proc/sys/net/ipv4/ip_forward', 'echo 1 >/proc/sys/kernel/unprivileged_bpf_disabled'],
      ...['mknod /tmp/null c 1 3', 'head -c 1 /proc/kcore', 'head -c 1 /dev/mem', 'dmesg -c'],
      // Its limits and its network.
      ...[
        'echo max >/sys/fs/cgroup/pids/pids.max',
        'echo 99999999999 >/sys/fs/cgroup/memory/memory.limit_in_bytes',
      ],
      ...[
        'test -e /sys/fs/cgroup/pids.max && echo max >/sys/fs/cgroup/pids.max',
        'test -e /sys/fs/cgroup/memory.max && echo max >/sys/fs/cgroup/memory.max',
        'mount -t cgroup2 x /mnt && echo max >/mnt/pids.max',
      ],
      ...[
        'mount -t sysfs x /mnt',
        'mount -t debugfs x /mnt',
        'mount -t tracefs x /mnt',
        'mount -t bpf x /mnt',
        'mount -t ext4 /dev/sda /mnt',
      ],
      ...[
        'ip route del local default dev lo',
        'ip link set lo down',
        'hostname other',
        'nsenter -t 1 -m true',
        'chroot /proc/1/root true',
      ],
    ];
    for (const it of tries) expect(await asRoot(`(${it}) >/dev/null 2>&1 && echo done`), it).toBe('');
    // A sandbox that was not made for it is as ever.
    const bare = await Sandbox.create({ connectionConfig, image: 'host', networkPolicy });
    const without = said(
      await bare.commands.run(
        `${bwrap} --ro-bind / / true 2>&1; unshare --user true 2>&1; grep CapBnd /proc/self/status`,
      ),
    );
    expect(without).toMatch(
      /No permissions to create new namespace[\s\S]*Operation not permitted[\s\S]*00000000000404fb$/,
    );
    expect(await bare.isolation.capabilities()).toMatchObject({
      available: false,
      message: expect.stringContaining('bootstrap.execd.isolation'),
    });
    await expect(bare.isolation.create({ workspace: { path: '/tmp' } })).rejects.toThrow(
      /503.*NOT_SUPPORTED/,
    );
    await bare.kill();
    await bare.close();
  });

  test('a fork has isolated sessions of its own, over the disk of its source and none of its sessions', async () => {
    await outside('mkdir -p /work/forked; echo shared >/work/forked/file');
    const session = await made({ path: '/work/forked' });
    const layered = await sandbox.isolation.create({ workspace: { path: '/work/forked', mode: 'overlay' } });
    await session.run('x=of-source; echo kept >kept; echo hidden >/tmp/hidden');
    await layered.run('echo layered >layered');
    const { status, body } = await call(daemon, 'POST', `/v1/sandboxes/${sandbox.id}/fork`, { timeout: 600 });
    expect(status).toBe(201);
    const [{ id, extensions: wishes }] = body.items as [{ id: string; extensions: object }];
    expect(wishes).toEqual(extensions);
    const fork = await Sandbox.connect({ connectionConfig, sandboxId: id });
    await using _ = { [Symbol.asyncDispose]: () => fork.close() };
    expect(await fork.isolation.capabilities()).toEqual(await sandbox.isolation.capabilities());
    expect(await fork.isolation.list()).toEqual([]);
    const inFork = said(await fork.commands.run(`ls -A /work/forked; cat /work/forked/file; ${programs}`));
    expect(inFork.split('\n').slice(0, 3)).toEqual(['file', 'kept', 'shared']);
    expect(new Set(inFork.split('\n').slice(3))).toEqual(new Set(['bash', 'ld.so']));
    const its = await fork.isolation.create({ workspace: { path: '/work/forked', mode: 'rw' } });
    const code = `echo "[$x]"; ls -A . /tmp; ${programs}; echo of-fork >file; touch /usr/x 2>/dev/null || echo refused`;
    expect(said(await its.run(code))).toBe('[]\n.:\nfile\nkept\n/tmp:\nbash\nrefused');
    expect(said(await session.run('echo "[$x]"; cat file kept'))).toBe('[of-source]\nshared\nkept');
    await remove(daemon, id);
  });

  test('nothing gets out of a nested sandbox but through its policy', async () => {
    const session = await made();
    const connects = (where: string) =>
      `timeout 5 bash -c '(exec 3<>/dev/tcp/${where}) 2>/dev/null && cat <&3 | head -c 1' || true`;
    for (const where of ['1.1.1.1/443', '169.254.169.254/80', `127.0.0.1/${new URL(daemon.url).port}`])
      expect(said(await session.run(connects(where))), where).toBe('');
    await session.delete();
  });
});

describe.runIf(runtimes.includes('docker'))('on docker', () => {
  test('a sandbox that could make namespaces is refused, with the way that there is', async () => {
    await using daemon = Object.assign(await startDaemon({ runtime: 'docker' }), {
      async [Symbol.asyncDispose]() {
        expect(await daemon.stop()).toBe(0);
        await expectNothingLeft(daemon.home);
      },
    });
    const request = { image: { uri: 'none' }, entrypoint: ['true'], resourceLimits: {}, extensions };
    const answer = await call(daemon, 'POST', '/v1/sandboxes', request);
    expect([answer.status, answer.body.code]).toEqual([501, 'SANDBOX::NOT_SUPPORTED']);
    expect(answer.body.message).toContain('bootstrap.execd.isolation');
    expect(answer.headers.get('glovebox-hint')).toContain('bubblewrap');
  });
});
