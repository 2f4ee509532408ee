// What a client can do through a gate, and what it cannot: with the real docker, and with requests that docker would never send.
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { dockerImage } from '../../test/images.ts';
import { hostDocker, left, loadInto, openVm, type TestVm } from './gate.fixture.ts';

const present = (process.env.GLOVEBOX_TEST_PRESENT ?? '').split(',').includes('docker');
const both: { one?: TestVm; two?: TestVm } = {};
const one = () => both.one as TestVm;
const two = () => both.two as TestVm;

describe.runIf(present)('a gate', () => {
  beforeAll(async () => {
    both.one = await openVm();
    both.two = await openVm();
    await loadInto(one(), dockerImage('busybox'), 'test/busybox:1');
    await loadInto(two(), dockerImage('busybox'), 'test/busybox:1');
    await two().ok('run', '-d', '--name', 'theirs', '-v', 'theirs:/data', 'test/busybox:1', 'sleep', '600');
    await one().ok('run', '-d', '--name', 'mine', 'test/busybox:1', 'sleep', '600');
  }, 60_000);

  afterAll(async () => {
    const ids = [one().id, two().id];
    await one()[Symbol.asyncDispose]();
    await two()[Symbol.asyncDispose]();
    expect(ids.flatMap(left)).toEqual([]);
  }, 60_000);

  test('shows a sandbox its own containers, images and volumes alone', async () => {
    expect(await one().ok('ps', '-a', '--format', '{{.Names}} {{.Image}}')).toBe('mine test/busybox:1\n');
    expect(await one().ok('images', '--format', '{{.Repository}}:{{.Tag}}')).toBe('test/busybox:1\n');
    expect(await one().ok('volume', 'ls', '-q')).toBe('');
    expect(await two().ok('volume', 'ls', '-q')).toBe('theirs\n');
  });

  test('knows nothing of what belongs to others', async () => {
    const id = (await two().ok('inspect', '-f', '{{.Id}}', 'theirs')).trim();
    const made = JSON.parse(
      (await two().call('POST', '/containers/theirs/exec', { Cmd: ['true'] })).body,
    ) as { Id: string };
    const own = `glovebox-${one().id}`;
    for (const name of [
      id,
      id.slice(0, 12),
      'theirs',
      own,
      `glovebox-vm-${two().id.replaceAll('-', '').slice(0, 16)}-theirs`,
    ])
      for (const [method, verb] of [
        ...[
          ['GET', 'json'],
          ['GET', 'logs?stdout=1'],
          ['GET', 'top'],
          ['GET', 'export'],
          ['GET', 'archive?path=/etc'],
          ['POST', 'stop'],
        ],
        ...[
          ['POST', 'kill'],
          ['POST', 'exec'],
          ['POST', 'attach?stream=1'],
          ['POST', 'rename?name=x'],
          ['POST', 'wait'],
          ['GET', 'changes'],
        ],
      ] as const)
        expect([
          name,
          verb,
          (
            await one().call(
              method,
              `/containers/${name}/${verb}`,
              method === 'POST' ? { Cmd: ['id'] } : undefined,
            )
          ).status,
        ]).toEqual([name, verb, 404]);
    expect((await one().call('DELETE', `/containers/${id}?force=1`)).status).toBe(404);
    expect((await one().call('POST', `/commit?container=${id}&repo=stolen`)).status).toBe(404);
    expect((await one().call('POST', `/exec/${made.Id}/start`, { Detach: true })).status).toBe(404);
    expect((await one().call('GET', `/exec/${made.Id}/json`)).status).toBe(404);
    const volume = `glovebox-vm-${two().id.replaceAll('-', '').slice(0, 16)}-theirs`;
    for (const name of ['theirs', volume])
      expect((await one().call('GET', `/volumes/${name}`)).status).toBe(404);
    expect(await two().ok('inspect', '-f', '{{.State.Running}}', 'theirs')).toBe('true\n');
  });

  const image = 'test/busybox:1';
  const create = (body: object) =>
    one().call('POST', '/v1.41/containers/create', { Image: image, Cmd: ['true'], ...body });

  test.each([
    ['a privileged container', { Privileged: true }],
    ['the host’s processes', { PidMode: 'host' }],
    ['the host’s shared memory', { IpcMode: 'host' }],
    ['the host’s name', { UTSMode: 'host' }],
    ['the host’s users', { UsernsMode: 'host' }],
    ['the host’s control groups', { CgroupnsMode: 'host' }],
    ['the host’s network', { NetworkMode: 'host' }],
    ['another network', { NetworkMode: 'lan' }],
    ['a capability that is dropped', { CapAdd: ['NET_RAW'] }],
    ['a capability beyond the usual', { CapAdd: ['CAP_SYS_ADMIN'] }],
    ['all capabilities', { CapAdd: ['ALL'] }],
    [
      'a device',
      { Devices: [{ PathOnHost: '/dev/sda', PathInContainer: '/dev/sda', CgroupPermissions: 'rwm' }] },
    ],
    ['rules for devices', { DeviceCgroupRules: ['a *:* rwm'] }],
    ['a graphics card', { DeviceRequests: [{ Count: -1 }] }],
    ['no seccomp filter', { SecurityOpt: ['seccomp=unconfined'] }],
    ['no AppArmor', { SecurityOpt: ['apparmor:unconfined'] }],
    ['no labels', { SecurityOpt: ['label=disable'] }],
    ['new privileges', { SecurityOpt: ['no-new-privileges:false'] }],
    ['a parent of control groups', { CgroupParent: '/' }],
    ['settings of the kernel', { Sysctls: { 'net.ipv4.ip_forward': '1' } }],
    ['another runtime', { Runtime: 'runc' }],
    ['unmasked paths', { MaskedPaths: [] }],
    ['writable paths of the kernel', { ReadonlyPaths: [] }],
    ['links', { Links: ['theirs:x'] }],
    ['a published port', { PortBindings: { '80/tcp': [{ HostPort: '8080' }] } }],
    ['a driver of volumes', { VolumeDriver: 'evil' }],
    ['names of its own', { ExtraHosts: ['good.test:10.0.0.1'] }],
    ['a name server of its own', { Dns: ['10.0.0.1'] }],
    ['its death put off', { OomScoreAdj: -1000 }],
    ['the root of the host', { Binds: ['/:/host'] }],
    ['a folder of the host', { Binds: ['/etc:/x:ro'] }],
    ['the engine’s socket', { Binds: ['/var/run/docker.sock:/var/run/docker.sock'] }],
    ['a folder of the host as a mount', { Mounts: [{ Type: 'bind', Source: '/etc', Target: '/x' }] }],
    [
      'a volume that is a folder of the host',
      {
        Mounts: [
          {
            Type: 'volume',
            Source: 'v',
            Target: '/x',
            VolumeOptions: {
              DriverConfig: { Name: 'local', Options: { type: 'none', o: 'bind', device: '/' } },
            },
          },
        ],
      },
    ],
    [
      'shared propagation',
      { Mounts: [{ Type: 'bind', Source: '/w', Target: '/x', BindOptions: { Propagation: 'rshared' } }] },
    ],
    ['a field that nobody knows', { Surprise: { Deep: 1 } }],
    ['a field in another spelling', { privileged: true }],
    ['volumes of others', { VolumesFrom: ['theirs'] }],
    ['processes of others', { PidMode: 'container:theirs' }],
  ])('refuses %s', async (_what, HostConfig) => {
    const { status, body } = await create({ HostConfig });
    expect({ status, body }).toMatchObject({
      status: expect.toSatisfy((it: number) => [400, 403, 404].includes(it)),
    });
    expect(JSON.parse(body)).toEqual({ message: expect.any(String) });
    expect(await one().ok('ps', '-aq', '--filter', 'status=created')).toBe('');
  });

  test('refuses labels of ours, other spellings of fields, and containers in foreign networks', async () => {
    for (const body of [
      { Labels: { 'glovebox.vm': two().id } },
      { hostconfig: { Privileged: true } },
      { Hostname: 'x' },
      { MacAddress: '02:00:00:00:00:01' },
      { NetworkingConfig: { EndpointsConfig: { lan: {} } } },
      {
        HostConfig: {
          NetworkMode: `container:${(await two().ok('inspect', '-f', '{{.Id}}', 'theirs')).trim()}`,
        },
      },
    ])
      expect((await create(body)).status).toBe(403);
  });

  test('shows a workspace and nothing that lies in it or that a link in it leads to', async () => {
    const { workspace } = one();
    mkdirSync(join(workspace, 'sub'));
    writeFileSync(join(workspace, 'file'), 'in the workspace');
    symlinkSync('/etc', join(workspace, 'out'));
    const shown = await one().ok('run', '--rm', '-v', `${workspace}:/w`, image, 'cat', '/w/file');
    expect(shown).toBe('in the workspace');
    for (const source of ['sub', 'out', 'out/..', 'file', '../hosts', '..'].map((it) => `${workspace}/${it}`))
      expect([source, (await create({ HostConfig: { Binds: [`${source}:/x`] } })).status]).toEqual([
        source,
        403,
      ]);
    expect((await create({ HostConfig: { Binds: [`${workspace}:/proc/x`] } })).status).toBe(400);
  });

  test('gives containers the walls of the sandbox', async () => {
    const status = await one().ok(
      'run',
      '--rm',
      image,
      'grep',
      '-E',
      '^(NoNewPrivs|Seccomp|CapEff):',
      '/proc/self/status',
    );
    expect(status).toMatch(/NoNewPrivs:\t1\n/);
    expect(status).toMatch(/Seccomp:\t2\n/);
    const links = await one().ok('run', '--rm', image, 'ip', '-o', 'link');
    expect(links.trim().split('\n')).toHaveLength(1);
    expect(links).toContain('lo:');
    expect(
      (await one().docker('run', '--rm', image, 'wget', '-T', '2', '-O', '-', 'http://172.17.0.1/')).code,
    ).not.toBe(0);
  });

  test('stops, freezes and thaws containers with their sandbox, and starts none while it does not run', async () => {
    await using vm = await openVm({ readOnly: true, limits: { memoryBytes: 64 * 2 ** 20, pids: 32 } });
    await loadInto(vm, dockerImage('busybox'), 'test/busybox:1');
    mkdirSync(join(vm.workspace, 'sub'));
    const run = [
      'run',
      '-d',
      '--name',
      'it',
      '--memory',
      '1g',
      '-v',
      `${vm.workspace}/sub:/w`,
      image,
      'sleep',
      '600',
    ];
    const id = (await vm.ok(...run)).trim();
    const host = hostDocker('inspect', '-f', '{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}}', id);
    expect(host).toBe(`${64 * 2 ** 20} 32\n`);
    expect((await vm.docker('exec', 'it', 'touch', '/w/x')).code).toBe(1);
    const state = () => hostDocker('inspect', '-f', '{{.State.Status}}', id).trim();
    await vm.gate.freeze(true);
    expect(state()).toBe('paused');
    await vm.gate.freeze(false);
    expect(state()).toBe('running');
    await vm.gate.stopContainers();
    expect(state()).toBe('exited');
    vm.halt();
    for (const args of [
      ['start', 'it'],
      ['restart', 'it'],
      ['run', image, 'true'],
    ])
      expect((await vm.docker(...args)).stderr).toContain('does not run');
  }, 60_000);

  test('does not take an image’s labels for its own', async () => {
    await one().ok(
      'commit',
      '--change',
      `LABEL glovebox.vm=${two().id} glovebox.home=x glovebox.sandbox=y`,
      'mine',
      'labelled:1',
    );
    const id = (await one().ok('create', 'labelled:1', 'true')).trim();
    expect(JSON.parse(hostDocker('inspect', '-f', '{{json .Config.Labels}}', id))).toMatchObject({
      'glovebox.vm': one().id,
      'glovebox.home': '',
      'glovebox.sandbox': '',
    });
    expect(await two().ok('ps', '-aq', '--no-trunc')).not.toContain(id);
    await one().ok('rm', id);
    await one().ok('rmi', 'labelled:1');
  });

  test.each([
    ['POST', '/images/create?fromImage=busybox&tag=latest', 403],
    ['POST', '/images/create?fromSrc=http://127.0.0.1/x.tar', 403],
    ['POST', '/build', 403],
    ['POST', '/session', 403],
    ['POST', '/grpc', 403],
    ['POST', '/swarm/init', 403],
    ['GET', '/secrets', 403],
    ['GET', '/plugins', 403],
    ['POST', '/networks/create', 403],
    ['POST', '/networks/bridge/connect', 403],
    ['POST', '/auth', 403],
    ['GET', '/containers/mine/attach/ws', 404],
    ['GET', '/containers/mine/top?ps_args=-eo%20pid,args%20;id', 400],
    ['GET', '/images/glovebox-test%2Fbusybox:1/json', 404],
    ['GET', '/images/..%2F..%2Fcontainers/json', 400],
    ['GET', '//containers/json', 400],
    ['GET', '/containers//json', 400],
    ['GET', '/containers/../info', 400],
    ['GET', '/containers/%2e%2e/info', 400],
    ['GET', '/containers/%252e%252e/json', 400],
    ['GET', '/containers/mine%00/json', 400],
    ['GET', '/containers/mine%0d%0aX:%20y/json', 400],
    ['GET', '/v1.41/v1.41/containers/json', 404],
    ['GET', '/v9.99/containers/json', 400],
    ['GET', '/v1.12/containers/json', 400],
    ['GET', '/v1.41/../v1.41/containers/json', 400],
    ['TRACE', '/containers/json', 404],
    ['GET', 'http://docker/containers/json', 400],
  ] as const)('refuses %s %s', async (method, path, status) => {
    const answer = await one().call(method, path, method === 'POST' ? {} : undefined);
    expect(answer.status).toBe(status);
    expect(JSON.parse(answer.body)).toEqual({ message: expect.any(String) });
  });

  test.each([
    [
      'two lengths',
      'POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Length: 2\r\nContent-Length: 40\r\n\r\n{}',
    ],
    [
      'a length and chunks',
      'POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
    ],
    [
      'chunks in a strange spelling',
      'POST /containers/create HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n',
    ],
    [
      'a broken chunk',
      'POST /containers/create HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n',
    ],
    [
      'chunks before the bare connection',
      'POST /containers/mine/attach HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
    ],
    ['no host', 'GET /containers/json HTTP/1.1\r\n\r\n'],
  ])('refuses a request with %s', async (_what, text) => {
    expect(await raw(one().socket, text)).toMatch(/^HTTP\/1\.1 400 /);
  });

  test('refuses archives that call images what they are not', async () => {
    const manifest = (tag: string) => JSON.stringify([{ Config: 'c.json', RepoTags: [tag], Layers: [] }]);
    for (const entries of [
      [['repositories', '{}']],
      [['manifest.json', manifest('../../x')]],
      [['manifest.json', manifest('a@sha256:00')]],
      [
        ['manifest.json', '[]'],
        ['manifest.json', manifest('x')],
      ],
      [
        ['x/../manifest.json', manifest('x')],
        ['manifest.json', '[]'],
      ],
      [['manifest.json', '', '2']],
      [
        ['x', '18 path=manifest.json\n', 'x'],
        ['y', manifest('x')],
      ],
    ] as const) {
      const { status } = await sendTar(one(), entries);
      expect([entries[0], status]).toEqual([entries[0], 400]);
    }
    expect(await one().ok('images', '--format', '{{.Repository}}')).toBe('test/busybox\n');
  });
});

function raw(path: string, text: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(path);
    let answer = '';
    socket.on('data', (piece) => {
      answer += piece;
      if (answer.includes('\r\n')) socket.destroy();
    });
    socket.on('close', () => resolve(answer)).on('error', reject);
    socket.write(text);
  });
}

async function sendTar(
  vm: TestVm,
  entries: readonly (readonly [name: string, content: string, type?: string])[],
) {
  const blocks = entries.flatMap(([name, content, type = '0']) => {
    const head = Buffer.alloc(512);
    head.write(name, 0);
    head.write('0000644\0', 100);
    head.write(`${content.length.toString(8).padStart(11, '0')}\0`, 124);
    head.write(type, 156);
    head.write(type === '2' ? 'other.json' : '', 157);
    head.write('ustar\x0000', 257);
    head.fill(32, 148, 156);
    head.write(
      `${head
        .reduce((sum, byte) => sum + byte, 0)
        .toString(8)
        .padStart(6, '0')}\0 `,
      148,
    );
    return [head, Buffer.from(content.padEnd(Math.ceil(content.length / 512) * 512, '\0'))];
  });
  const body = Buffer.concat([...blocks, Buffer.alloc(1024)]);
  const text = await new Promise<string>((resolve, reject) => {
    const socket = connect(vm.socket);
    let answer = '';
    socket.on('data', (piece) => {
      answer += piece;
      if (answer.includes('\r\n\r\n')) socket.destroy();
    });
    socket.on('close', () => resolve(answer)).on('error', reject);
    socket.write(
      `POST /images/load HTTP/1.1\r\nHost: d\r\nContent-Type: application/x-tar\r\nContent-Length: ${body.length}\r\n\r\n`,
    );
    socket.write(body);
  });
  return { status: Number(/^HTTP\/1\.1 (\d+)/.exec(text)?.[1]) };
}
