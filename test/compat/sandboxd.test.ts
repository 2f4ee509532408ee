// The first version of Docker Sandboxes' API as its clients use it: curl on the socket, and the real docker on what it hands out.
import { randomUUID } from 'node:crypto';
import { mkdirSync, mkdtempSync, realpathSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { left } from '../../src/dockergate/gate.fixture.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { dockerImage } from '../images.ts';
import { type Lab, openLab } from '../network/lab.ts';
import { runtimes } from '../runtimes.ts';
import { curlAt, run } from './sandboxd.fixture.ts';

const present = runtimes.includes('docker');

interface Vm {
  vm_id: string;
  vm_name: string;
  vm_config: { socketPath: string; fileSharingDirectories: string[] };
  ca_cert_path: string;
  proxy_env_vars: Record<string, string>;
  started: boolean;
}

/** A credential that the daemon's environment has. */
const ofVariable = `variable-${randomUUID()}`;
const place: { daemon?: TestDaemon; lab?: Lab; folder?: string; file?: string } = {};
const home = () => (place.daemon as TestDaemon).home;
const socket = () => join(home(), 'sandboxes/sandboxd.sock');

const curl = (method: string, path: string, body?: unknown) => curlAt(socket(), method, path, body);

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
  place.daemon = await startDaemon({ home, env: { SANDBOXD_TEST_CREDENTIAL: ofVariable } });
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
    ['POST', '/vm', { agent_name: 'x', credential_sources: { openai: { source: 'file' } } }, 400],
    ['POST', '/vm', { agent_name: 'x', credential_sources: { own: { source: 'file', path: '/x' } } }, 400],
    ['POST', '/vm', { agent_name: 'x', credential_sources: { openai: { source: 'exec', path: 'id' } } }, 400],
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
  'credentials of the host are put into requests on their way out, and are nowhere inside',
  async () => {
    const lab = place.lab as Lab;
    const ofFile = `file-${randomUUID()}`;
    const file = join(place.folder as string, 'credential');
    writeFileSync(file, `${ofFile}\n`);
    const vm = await createVm({
      name: 'credentials',
      workspace_dir: makeFolder('beside'),
      policy: { default: 'deny' },
      service_domains: { 'good.test': 'filed', 'www.good.test': 'named' },
      service_auth_config: { filed: { header_name: 'x-api-key' } },
      credential_sources: {
        filed: { source: 'file', path: file },
        named: { source: 'env', name: 'SANDBOXD_TEST_CREDENTIAL' },
      },
    });
    const { body: details } = await curl('GET', '/vm/credentials');
    expect(details).toMatchObject({ credential_count: 2 });
    const hosts = ['good.test', 'www.good.test', 'evil.test'];
    const change = { vm_name: 'credentials', allow_hosts: hosts, allow_cidrs: [lab.network] };
    expect((await curl('POST', '/network/proxyconfig', change)).status).toBe(200);
    await docker(vm, 'load', '-i', place.file as string);
    const authority = ['-v', `${vm.ca_cert_path}:/authority.crt:ro`, '-e', 'CURL_CA_BUNDLE=/authority.crt'];
    await docker(vm, 'run', '-d', '--name', 'client', ...authority, 'sandboxd-test/debian:1', 'sleep', '600');
    const inside = (line: string) => docker(vm, 'exec', 'client', 'sh', '-c', `${line}; true`);
    const ask = async (url: string, header: string) => {
      const fetched = await inside(`curl -sS -m 10 -o /dev/null -w '%{http_code}' -H '${header}' ${url}`);
      expect(fetched).toBe('200');
      return (url.includes('evil') ? lab.evil : lab.good).seen.at(-1)?.headers ?? {};
    };
    const { 'x-api-key': key, authorization: none } = await ask('https://good.test/x', 'x-api-key: mine');
    expect([key, none]).toEqual([ofFile, undefined]);
    const { authorization } = await ask('https://www.good.test/x', 'authorization: Bearer mine');
    expect(authorization).toBe(`Bearer ${ofVariable}`);
    // Neither in the clear nor to anybody else.
    for (const url of ['http://good.test/x', 'https://evil.test/x', 'http://www.good.test/x'])
      expect(JSON.stringify(await ask(url, 'x-api-key: mine'))).not.toMatch(/(file|variable)-[0-9a-f-]{36}/);
    const own = await run('docker', ['inspect', `glovebox-${vm.vm_id}`]);
    expect(own.code).toBe(0);
    const shown = [JSON.stringify([vm, details]), own.stdout, await docker(vm, 'inspect', 'client')];
    const seen = [...shown, await inside('env; tr "\\0" "\\n" </proc/1/environ')].join('\n');
    const credentials = [ofFile, ofVariable];
    for (const credential of credentials) expect(seen).not.toContain(credential);
    // The search finds what is there, and, each being in two pieces, not itself.
    const planted = randomUUID();
    await inside(`printf %s%s ${planted.slice(0, 20)} ${planted.slice(20)} >/var/tmp/planted`);
    const pattern = [...credentials, planted].map((it) => `${it.slice(0, 20)}()${it.slice(20)}`).join('|');
    const found = await inside(`grep -rlE '${pattern}' / --exclude-dir=proc --exclude-dir=sys 2>/dev/null`);
    expect(found).toBe('/var/tmp/planted\n');
    expect((await run('grep', ['-rlE', credentials.join('|'), home()])).stdout).toBe('');
    expect((await curl('DELETE', '/vm/credentials')).status).toBe(204);
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
