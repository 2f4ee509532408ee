// The API of Docker Sandboxes as its clients use it: curl on the socket, and the real docker on what it hands out.
import { execFile } from 'node:child_process';
import { mkdirSync, mkdtempSync, realpathSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { left } from '../../src/dockergate/gate.fixture.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { dockerImage } from '../images.ts';
import { type Lab, openLab } from '../network/lab.ts';
import { runtimes } from '../runtimes.ts';

const present = runtimes.includes('docker');

interface Vm {
  vm_id: string;
  vm_name: string;
  vm_config: { socketPath: string; fileSharingDirectories: string[] };
  ca_cert_path: string;
  proxy_env_vars: Record<string, string>;
  started: boolean;
}

const place: { daemon?: TestDaemon; lab?: Lab; folder?: string; file?: string } = {};
const home = () => (place.daemon as TestDaemon).home;
const socket = () => join(home(), 'sandboxes/sandboxd.sock');

function run(
  command: string,
  args: string[],
  cwd?: string,
): Promise<{ code: number; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    execFile(
      command,
      args,
      { encoding: 'utf8', timeout: 60_000, ...(cwd === undefined ? {} : { cwd }) },
      (error, stdout, stderr) =>
        resolve({ code: error === null ? 0 : ((error.code as number | undefined) ?? -1), stdout, stderr }),
    ).stdin?.end();
  });
}

async function curl(method: string, path: string, body?: unknown): Promise<{ status: number; body: never }> {
  const data = body === undefined ? [] : ['-H', 'Content-Type: application/json', '-d', JSON.stringify(body)];
  const args = [
    '-s',
    '--unix-socket',
    socket(),
    '-X',
    method,
    ...data,
    '-w',
    '\n%{http_code}',
    `http://sandboxd${path}`,
  ];
  const lines = (await run('curl', args)).stdout.split('\n');
  const status = Number(lines.pop());
  const text = lines.join('\n').trim();
  return { status, body: (text === '' ? undefined : JSON.parse(text)) as never };
}

async function createVm(request: object): Promise<Vm> {
  const { status, body } = await curl('POST', '/vm', request);
  expect({ status, body }).toMatchObject({ status: 200 });
  return body;
}

async function docker(vm: Vm, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await run(
    'docker',
    ['--host', `unix://${vm.vm_config.socketPath}`, ...args],
    place.folder,
  );
  if (code !== 0) throw new Error(`docker ${args.join(' ')}: ${code} ${stderr}`);
  return stdout;
}

function makeFolder(name: string): string {
  const folder = join(place.folder as string, name);
  mkdirSync(folder, { recursive: true });
  return folder;
}

beforeAll(async () => {
  if (!present) return;
  const home = makeHome();
  place.lab = await openLab();
  place.folder = realpathSync(mkdtempSync('/var/tmp/glovebox-sandboxd-'));
  writeFileSync(join(home, 'config.toml'), place.lab.config);
  place.daemon = await startDaemon({ home });
  place.file = join(place.folder, 'image.tar');
  await run('docker', ['tag', dockerImage('debian'), 'sandboxd-test/debian:1']);
  await run('docker', ['save', '-o', place.file, 'sandboxd-test/debian:1']);
  await run('docker', ['rmi', 'sandboxd-test/debian:1']);
});

afterAll(async () => {
  if (!present) return;
  await place.daemon?.stop();
  await place.lab?.[Symbol.asyncDispose]();
  if (place.folder) rmSync(place.folder, { recursive: true, force: true });
  if (place.daemon) await expectNothingLeft(place.daemon.home);
});

test.runIf(present)('the socket is for the daemon’s own user alone', () => {
  expect(statSync(socket()).mode & 0o777).toBe(0o600);
  expect(statSync(join(home(), 'sandboxes')).mode & 0o077).toBe(0);
});

test.runIf(present)(
  'a machine is made, listed, looked at, kept alive, stopped, started again and deleted',
  async () => {
    expect(await curl('GET', '/health')).toMatchObject({ status: 200, body: { status: 'ok', vms: 0 } });
    const workspace = makeFolder('one');
    const vm = await createVm({ agent_name: 'sandbox-agent', workspace_dir: workspace });
    expect(vm).toMatchObject({
      vm_name: 'sandbox-agent-vm',
      started: true,
      vm_config: { fileSharingDirectories: [workspace] },
    });
    const { body: list } = await curl('GET', '/vm');
    const entry = {
      vm_id: vm.vm_id,
      agent: 'sandbox-agent',
      agent_name: 'sandbox-agent',
      workspace_dir: workspace,
    };
    expect(list).toMatchObject([
      {
        ...entry,
        vm_name: vm.vm_name,
        active: true,
        status: 'running',
        vm_config: { socketPath: vm.vm_config.socketPath },
      },
    ]);
    const { body: details } = await curl('GET', `/vm/${vm.vm_name}`);
    expect(details).toMatchObject({ vm_id: vm.vm_id, ip_addresses: [], credential_count: 0 });
    expect(details).not.toHaveProperty('status');
    expect(statSync(join(home(), 'sandboxes/vm', vm.vm_name, 'docker-public.sock')).isSocket()).toBe(true);
    expect((await curl('POST', `/vm/${vm.vm_name}/keepalive`)).status).toBe(204);
    expect((await curl('POST', `/vm/${vm.vm_name}/stop`)).status).toBe(204);
    expect((await curl('GET', '/vm')).body).toMatchObject([{ status: 'stopped', active: false }]);
    expect(await curl('GET', '/vm')).toMatchObject({ body: [{ status: 'stopped' }] });
    const again = await createVm({ agent_name: 'sandbox-agent', workspace_dir: workspace });
    expect(again).toMatchObject({ vm_id: vm.vm_id, started: true });
    expect(
      await curl('POST', '/vm', { agent_name: 'sandbox-agent', workspace_dir: makeFolder('other') }),
    ).toMatchObject({ status: 409 });
    expect((await curl('DELETE', `/vm/${vm.vm_name}`)).status).toBe(204);
    expect(await curl('DELETE', `/vm/${vm.vm_name}`)).toMatchObject({
      status: 404,
      body: { message: expect.any(String) },
    });
    expect(left(vm.vm_id)).toEqual([]);
  },
);

test.runIf(present)('what is wrong is told in a message', async () => {
  for (const [method, path, body, status] of [
    ['GET', '/nothing', undefined, 404],
    ['GET', '/vm/nobody', undefined, 404],
    ['POST', '/vm', {}, 400],
    ['POST', '/vm', { agent_name: 'a', workspace_dir: 'relative' }, 400],
    ['POST', '/vm', { agent_name: 'a-b', surprise: true }, 400],
    ['POST', '/vm', { vm_name: 'one', name: 'two' }, 400],
    [
      'POST',
      '/vm',
      { agent_name: 'x', credential_sources: { openai: { source: 'env', path: 'GLOVEBOX_NOT_SET' } } },
      400,
    ],
    ['POST', '/network/proxyconfig', { vm_name: 'nobody' }, 404],
  ] as const)
    expect(await curl(method, path, body)).toMatchObject({ status, body: { message: expect.any(String) } });
  expect((await curl('GET', '/vm')).body).toEqual([]);
});

test.runIf(present)(
  'docker on the socket loads, runs, executes and reads, as a client of the first version does it',
  async () => {
    const lab = place.lab as Lab;
    const workspace = makeFolder('work');
    const vm = await createVm({
      name: 'rivet',
      agent_name: 'sandbox-agent',
      workspace_dir: workspace,
      policy: { default: 'deny' },
    });
    const change = {
      vm_name: 'rivet',
      allow_hosts: ['good.test'],
      allow_cidrs: [lab.network],
      policy: 'DENY',
    };
    expect((await curl('POST', '/network/proxyconfig', change)).status).toBe(200);
    expect(await docker(vm, 'load', '-i', place.file as string)).toContain(
      'Loaded image: sandboxd-test/debian:1',
    );
    const proxy = 'http://host.docker.internal:3128';
    const variables = [
      '-e',
      `HTTP_PROXY=${proxy}`,
      '-e',
      `HTTPS_PROXY=${proxy}`,
      '-e',
      `http_proxy=${proxy}`,
      '-e',
      'NO_PROXY=localhost,127.0.0.1',
    ];
    const mount = ['-v', `${workspace}:${workspace}`, '-w', workspace];
    await docker(
      vm,
      'run',
      '-d',
      '--name',
      'sandbox',
      ...variables,
      ...mount,
      'sandboxd-test/debian:1',
      'sleep',
      '600',
    );
    expect(await docker(vm, 'exec', 'sandbox', 'sh', '-c', 'echo hello >file; pwd')).toBe(`${workspace}\n`);
    expect(statSync(join(workspace, 'file')).size).toBe(6);
    const fetch = (url: string, ...args: string[]) =>
      docker(vm, 'exec', 'sandbox', 'sh', '-c', `curl -s -m 10 ${args.join(' ')} ${url}; true`);
    expect(await fetch('http://good.test/x')).toBe('hello from good.test\n');
    expect(await fetch('http://good.test/x', '--noproxy', "'*'")).toBe('hello from good.test\n');
    expect(await fetch('http://evil.test/x', '-o /dev/null -w %{http_code}')).toBe('403');
    expect(
      await fetch(`http://${lab.evil.address}/x`, '--noproxy', "'*'", '-o /dev/null -w %{http_code}'),
    ).not.toBe('200');
    expect(lab.evil.seen).toEqual([]);
    // The host's own servers are as far away as any.
    const { port } = new URL((place.daemon as TestDaemon).url);
    expect(
      await fetch(`http://127.0.0.1:${port}/health`, '--noproxy', "'*'", '-o /dev/null -w %{http_code}'),
    ).toBe('000');
    expect(await docker(vm, 'ps', '--format', '{{.Names}} {{.Image}}')).toBe(
      'sandbox sandboxd-test/debian:1\n',
    );
    await curl('POST', '/vm/rivet/stop');
    const state = async () => (await docker(vm, 'inspect', '-f', '{{.State.Running}}', 'sandbox')).trim();
    expect(await state()).toBe('false');
    await createVm({ name: 'rivet', workspace_dir: workspace });
    await docker(vm, 'start', 'sandbox');
    expect(await fetch('http://good.test/x')).toBe('hello from good.test\n');
    expect((await curl('DELETE', '/vm/rivet')).status).toBe(204);
    expect(left(vm.vm_id)).toEqual([]);
  },
);

test.runIf(present)(
  'a machine that goes by another door takes its containers along, also over a daemon that was killed',
  async () => {
    const vm = await createVm({ name: 'killed' });
    await docker(vm, 'load', '-i', place.file as string);
    await docker(vm, 'run', '-d', '-v', 'kept:/data', 'sandboxd-test/debian:1', 'sleep', '600');
    const before = place.daemon as TestDaemon;
    await before.kill();
    place.daemon = await startDaemon({ home: before.home });
    expect(await docker(vm, 'ps', '-q')).not.toBe('');
    const reply = await fetch(`${place.daemon.url}/v1/sandboxes/${vm.vm_id}`, {
      method: 'DELETE',
      headers: { 'OPEN-SANDBOX-API-KEY': place.daemon.apiKey },
    });
    expect(reply.status).toBe(204);
    await until(
      'what is left in the engine',
      () => left(vm.vm_id),
      (it) => it.length === 0,
    );
  },
);

test.runIf(present && runtimes.includes('bubblewrap'))(
  'the second version shows sandboxes, runs commands in them, and judges hosts',
  async () => {
    expect(await curl('GET', '/daemon/health')).toMatchObject({ status: 200, body: { status: 'ok' } });
    const request = { agent: 'shell', name: 'second', template: 'host', environment: { GREETING: 'hello' } };
    expect(await curl('POST', '/sandbox', request)).toMatchObject({
      status: 201,
      body: { name: 'second', status: 'running' },
    });
    expect(await curl('POST', '/sandbox', request)).toMatchObject({ status: 409 });
    const exec = { cmd: ['sh', '-c', 'echo $GREETING; echo no >&2; exit 3'] };
    const outcome = { exit_code: 3, stdout: 'hello\n', stderr: 'no\n' };
    expect(await curl('POST', '/sandbox/second/exec', exec)).toMatchObject({ status: 200, body: outcome });
    expect(await curl('POST', '/sandbox/second/exec', { cmd: ['id'], workdir: '/' })).toMatchObject({
      status: 400,
    });
    expect(
      await curl('POST', '/policy/network/check', { target: 'evil.test', sandbox_id: 'second' }),
    ).toMatchObject({ body: { allowed: false } });
    expect((await curl('GET', '/sandbox')).body).toMatchObject([{ name: 'second' }]);
    expect(await curl('POST', '/sandbox/second/stop')).toMatchObject({ body: { status: 'stopped' } });
    expect((await curl('DELETE', '/sandbox/second')).status).toBe(204);
    expect((await curl('GET', '/sandbox/second')).status).toBe(404);
  },
);

test.runIf(present)('a home folder with a long path hands out a socket under a short one', async () => {
  const parent = mkdtempSync(join(tmpdir(), `glovebox-${'long-'.repeat(20)}`));
  const long = join(parent, 'home');
  const daemon = await startDaemon({ home: long, env: { XDG_RUNTIME_DIR: '' } });
  try {
    const args = ['-s', '--unix-socket', `/proc/self/cwd/sandboxd.sock`, 'http://sandboxd/daemon/info'];
    const info = JSON.parse((await run('curl', args, join(long, 'sandboxes'))).stdout) as {
      api_socket: string;
    };
    expect(info.api_socket.length).toBeLessThan(108);
    const { stdout } = await run('curl', ['-s', '--unix-socket', info.api_socket, 'http://sandboxd/vm']);
    expect(JSON.parse(stdout)).toEqual([]);
  } finally {
    await daemon.stop();
    await expectNothingLeft(long);
    rmSync(parent, { recursive: true, force: true });
  }
});
