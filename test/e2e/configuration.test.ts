// Configuration as an operator lives with it: a running daemon takes over what it can when it is told to, and files begin as examples that work.
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { SandboxClient } from '../../sdk/src/index.ts';
import { type ConfigExample, configExamples, configExampleText } from '../../src/contract/config-examples.ts';
import { commandLine, environmentOf } from '../command-line.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon } from '../daemon.ts';
import { freePort } from '../ports.ts';

/** Each starts a daemon or the command line several times. */
const slowMs = 600_000;

interface Line {
  msg: string;
  [field: string]: unknown;
}

const linesOf = (file: string): Line[] =>
  readFileSync(file, 'utf8')
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line));

describe('a daemon that reads its configuration again', { timeout: slowMs }, () => {
  let daemon: TestDaemon;
  let folder: string;
  let file: string;
  let log: string;
  let access: string;
  let port: number;

  const standing = () =>
    `[runtime]\ntype = "memory"\n[ingress]\nmode = "gateway"\n[ingress.gateway]\nport = ${port}\n[log]\nfile_enabled = true\nfile_path = "${log}"\naccess_file_path = "${access}"\n`;

  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), 'glovebox-configuration-'));
    [file, log, access] = ['my.toml', 'daemon.log', 'access.log'].map((name) => join(folder, name)) as [
      string,
      string,
      string,
    ];
    mkdirSync(join(folder, 'shared'));
    port = await freePort();
    writeFileSync(file, standing());
    daemon = await startDaemon({ home: makeHome(), args: ['--config', file] });
  });
  afterAll(async () => {
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(daemon.home);
    rmSync(folder, { recursive: true, force: true });
  });

  const told = (msg: string) => linesOf(log).filter((it) => it.msg === msg);
  const readAgain = 'the configuration has been read again';
  const refused = 'the configuration cannot be used; all stays as it was';

  /** Resolves with what the daemon says to it. */
  async function reload(document: string, message = readAgain): Promise<Line> {
    writeFileSync(file, `${document}\n${standing()}`);
    const before = told(message).length;
    process.kill(daemon.pid, 'SIGHUP');
    return await vi.waitFor(() => {
      const all = told(message);
      expect(all.length).toBe(before + 1);
      return all.at(-1) as Line;
    });
  }

  async function call(path: string, init: { key?: string; body?: unknown } = {}) {
    const response = await fetch(`${daemon.url}/v1${path}`, {
      method: init.body === undefined ? 'GET' : 'POST',
      headers: {
        'OPEN-SANDBOX-API-KEY': init.key ?? daemon.apiKey,
        ...(init.body === undefined ? {} : { 'Content-Type': 'application/json' }),
      },
      ...(init.body === undefined ? {} : { body: JSON.stringify(init.body) }),
    });
    return { status: response.status, body: (await response.json()) as { message?: string } };
  }

  test('another key counts from then on, and the one before no more', async () => {
    expect(await reload('server.api_key = "another"')).toMatchObject({ changed: ['server.api_key'] });
    expect((await call('/sandboxes')).status).toBe(401);
    expect((await call('/sandboxes', { key: 'another' })).status).toBe(200);
    expect(await reload('')).toMatchObject({ changed: ['server.api_key'] });
    expect((await call('/sandboxes')).status).toBe(200);
    // A key file that was written anew is read, too.
    writeFileSync(join(daemon.home, 'api-key'), 'third\n');
    await reload('');
    expect((await call('/sandboxes')).status).toBe(401);
    expect((await call('/sandboxes', { key: 'third' })).status).toBe(200);
    writeFileSync(join(daemon.home, 'api-key'), `${daemon.apiKey}\n`);
    await reload('');
    expect((await call('/sandboxes')).status).toBe(200);
  });

  test('limits hold for the next request', async () => {
    const create = { image: { uri: 'x' }, entrypoint: ['sleep', '1'], resourceLimits: {}, timeout: 7200 };
    await reload('server.max_sandbox_timeout_seconds = 3600');
    const { status, body } = await call('/sandboxes', { body: create });
    expect(status).toBe(400);
    expect(body.message).toContain('3600');
    await reload('server.rate_limit.administrator_per_minute = 1');
    const statuses = [(await call('/sandboxes')).status, (await call('/sandboxes')).status];
    expect(statuses).toContain(429);
    await reload('');
    expect((await call('/sandboxes')).status).toBe(200);
  });

  test('folders of the host that may be mounted', async () => {
    const folders = { name: 'v', host: { path: join(folder, 'shared') }, mountPath: '/mnt' };
    const create = {
      image: { uri: 'x' },
      entrypoint: ['sleep', '1'],
      resourceLimits: {},
      volumes: [folders],
    };
    const before = await call('/sandboxes', { body: create });
    expect(before.body.message).toContain('allowed_host_paths');
    await reload(`storage.allowed_host_paths = ["${folder}"]`);
    // The memory runtime mounts nothing; it is asked only once the folder is allowed.
    const after = await call('/sandboxes', { body: create });
    expect(after.body.message).not.toContain('allowed_host_paths');
    await reload('');
    expect((await call('/sandboxes', { body: create })).body.message).toContain('allowed_host_paths');
  });

  test('what sandboxes get that ask for nothing', async () => {
    const client = new SandboxClient({ url: daemon.url, apiKey: daemon.apiKey });
    const kilobytes = async () => {
      await using sandbox = await client.create({ image: 'host', runtime: 'bubblewrap', keep: false });
      return Number((await sandbox.run('df -k --output=size /root | tail -n 1')).stdout);
    };
    const before = await kilobytes();
    await reload('bubblewrap.disk = "16Mi"');
    expect(await kilobytes()).toBe(16_384);
    await reload('');
    expect(await kilobytes()).toBe(before);
  });

  test('what becomes of sandboxes that nobody uses', async () => {
    const client = new SandboxClient({ url: daemon.url, apiKey: daemon.apiKey });
    await using before = await client.create({ image: 'host', runtime: 'bubblewrap', keep: false });
    await reload('[sandbox]\nidle_pause_seconds = 1');
    await using after = await client.create({ image: 'host', runtime: 'bubblewrap', keep: false });
    await vi.waitFor(async () => expect(await after.info()).toMatchObject({ state: 'Paused' }));
    expect(await before.info()).toMatchObject({ state: 'Running' });
    await reload('');
  });

  test('keys of signed addresses are rotated, and whether ports ask for credentials', async () => {
    const key = (id: string) => `${id}=base64:${Buffer.from(`the secret of key ${id}`).toString('base64')}`;
    const keys = (...ids: string[]) => `[ingress.secure_access]\nkeys = ${JSON.stringify(ids.map(key))}`;
    const client = new SandboxClient({ url: daemon.url, apiKey: daemon.apiKey });
    await using sandbox = await client.create({ image: 'host', runtime: 'bubblewrap', keep: false });
    const address = async () => {
      const expires = Math.floor(Date.now() / 1000) + 3_600;
      const { body } = await call(`/sandboxes/${sandbox.id}/endpoints/9?expires=${expires}`);
      return `http://${(body as { endpoint: string }).endpoint}/`;
    };
    // Nothing listens behind it: whoever is let in hears so.
    const status = async (at: string) => (await fetch(at)).status;
    await reload(keys('a'));
    const first = await address();
    expect(await status(first)).toBe(502);
    expect(await reload(keys('b', 'a'))).toMatchObject({ changed: ['ingress.secure_access.keys'] });
    const second = await address();
    expect([await status(first), await status(second)]).toEqual([502, 502]);
    await reload(keys('c', 'b'));
    expect([await status(second), await status(await address())]).toEqual([502, 502]);
    await reload(keys('c'));
    expect(await status(second)).toBe(401);
    await reload(`${keys('c')}\nenabled = false`);
    expect(await status(`http://127.0.0.1:${port}/${sandbox.id}/9/`)).toBe(502);
    await reload(keys('c'));
    expect(await status(`http://127.0.0.1:${port}/${sandbox.id}/9/`)).toBe(401);
  });

  test('pools come, change and go, and a mistake in one changes none', async () => {
    const pool = (more: string) => `[pools.web]\nimage = "host"\nruntime = "bubblewrap"\n${more}`;
    const ready = (count: number) =>
      vi.waitFor(async () =>
        expect((await call('/pools/web')).body).toMatchObject({ status: { available: count, starting: 0 } }),
      );
    expect(await reload(pool('buffer_max = 1'))).toMatchObject({
      changed: expect.arrayContaining(['pools.web']),
    });
    await ready(1);
    const { problems } = await reload(pool('buffer_max = -1'), refused);
    expect(problems).toEqual([expect.stringContaining('pools.web.buffer_max')]);
    await ready(1);
    await reload(pool('buffer_max = 2'));
    await ready(2);
    await reload('');
    expect((await call('/pools/web')).status).toBe(404);
  });

  test('what cannot change under a daemon is named, and a mistake changes nothing', async () => {
    await reload('server.backlog = 7\nserver.host = "127.0.0.9"');
    expect(told('these settings have changed and hold from the next start on').at(-1)?.keys).toEqual([
      ...['server.host', 'server.backlog'],
    ]);
    const { problems } = await reload('server.api_key = "lost"\nserver.prot = 1', refused);
    expect(problems).toEqual([`${file}:2: unknown key "server.prot"; did you mean "server.port"?`]);
    expect((await call('/sandboxes', { key: 'lost' })).status).toBe(401);
    expect((await call('/sandboxes')).status).toBe(200);
    await reload('');
  });

  test('a log that somebody has moved away goes on in a new file', async () => {
    renameSync(access, `${access}.old`);
    process.kill(daemon.pid, 'SIGHUP');
    await vi.waitFor(() => readFileSync(access));
    await call('/sandboxes');
    await vi.waitFor(() =>
      expect(linesOf(access).at(-1)).toMatchObject({
        operation: 'listSandboxes',
        status: 200,
        method: 'GET',
      }),
    );
    expect(JSON.stringify(linesOf(`${access}.old`))).not.toContain(daemon.apiKey);
  });
});

describe('a file to begin with', { timeout: slowMs }, () => {
  let home: string;
  beforeAll(() => {
    home = makeHome();
  });
  afterAll(() => rmSync(home, { recursive: true, force: true }));

  const glovebox = (...args: string[]) => commandLine(environmentOf(home), () => home)(...args);

  test('is written for its owner alone, and over nothing that is there', async () => {
    expect(await glovebox('init-config', '--example', 'bubblewrap')).toMatchObject({ code: 0, stdout: '' });
    const file = join(home, 'config.toml');
    expect(statSync(file).mode & 0o777).toBe(0o600);
    const written = readFileSync(file, 'utf8');
    expect(await glovebox('config', 'check')).toMatchObject({ code: 0, stdout: `${file}: fine\n` });

    writeFileSync(file, '# mine\n');
    const again = await glovebox('init-config', '--example', 'bubblewrap');
    expect(again).toMatchObject({ code: 1, stderr: expect.stringContaining('--force') });
    expect(readFileSync(file, 'utf8')).toBe('# mine\n');
    expect(await glovebox('init-config', '--example', 'bubblewrap', '--force')).toMatchObject({ code: 0 });
    expect(readFileSync(file, 'utf8')).toBe(written);
    expect(readdirSync(home)).toEqual(['config.toml']);
    expect(await glovebox('init-config', '-', '--example', 'bubblewrap')).toMatchObject({ stdout: written });
  });

  test('names that there are not are refused with what to take', async () => {
    const k8s = await glovebox('init-config', 'x.toml', '--example', 'k8s');
    expect(k8s).toMatchObject({ code: 2, stderr: expect.stringContaining('no Kubernetes runtime yet') });
    const none = await glovebox('init-config', 'x.toml', '--example', 'constructor');
    expect(none).toMatchObject({ code: 2, stderr: expect.stringContaining('There are bubblewrap, docker') });
    const nowhere = await glovebox('init-config', 'no/folder/x.toml');
    expect(nowhere).toMatchObject({ code: 1, stderr: expect.stringContaining('folder that is there') });
  });

  test('a file of OpenSandbox is checked: what is refused, where, and what to use', async () => {
    const file = join(home, 'sandbox.toml');
    writeFileSync(file, '[runtime]\ntype = "docker"\nexecd_image = "opensandbox/execd:v1"\n');
    const good = await glovebox('config', 'check', file);
    expect(good).toMatchObject({ code: 0, stdout: `${file}: fine\n` });
    expect(good.stderr).toContain('runtime.execd_image has no effect');
    writeFileSync(file, '[runtime]\ntype = "kubernetes"\n[kubernetes]\nnamespace = "x"\n');
    const bad = await glovebox('config', 'check', file);
    expect(bad).toMatchObject({ code: 78, stdout: '' });
    expect(bad.stderr).toContain(`${file}:2: runtime.type = "kubernetes" is refused`);
    expect(bad.stderr).toContain(`${file}:4: kubernetes.namespace is refused`);
    const machine = await glovebox('config', 'check', '--json', file);
    expect(machine.code).toBe(78);
    expect(JSON.parse(machine.stdout).problems).toHaveLength(2);
    expect(await glovebox('config', 'check', 'none.toml')).toMatchObject({ code: 78 });
    expect(JSON.parse((await glovebox('config', 'schema')).stdout)).toHaveProperty('properties.server');
  });

  test.each(
    Object.keys(configExamples) as ConfigExample[],
  )('the example %s starts a daemon', async (name) => {
    const file = join(home, `${name}.toml`);
    writeFileSync(file, configExampleText(name));
    const daemon = await startDaemon({ home: makeHome(), args: ['--config', file] });
    const response = await fetch(`${daemon.url}/v1/sandboxes`, {
      headers: { 'OPEN-SANDBOX-API-KEY': daemon.apiKey },
    });
    expect(response.status).toBe(200);
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(daemon.home);
  });
});
