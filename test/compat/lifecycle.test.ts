// OpenSandbox's lifecycle beyond a plain sandbox, by its own npm client against one real daemon, on every runtime of this machine: volumes.
import { existsSync, mkdirSync, readdirSync, readFileSync, realpathSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ConnectionConfig, Sandbox, SandboxManager, type Volume } from '@alibaba-group/opensandbox';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { DiagnosticContent } from '../../src/contract/diagnostics.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon } from '../daemon.ts';
import { dockerImage } from '../images.ts';
import { runtimes } from '../runtimes.ts';

let daemon: TestDaemon;
let connectionConfig: ConnectionConfig;
let manager: SandboxManager;
let shared: string;

const homeOf = () => realpathSync(daemon.home);
const imageOf = (runtime: string) => (runtime === 'docker' ? dockerImage('busybox') : 'host');

beforeAll(async () => {
  const home = makeHome();
  shared = join(realpathSync(home), 'shared');
  mkdirSync(shared);
  mkdirSync(join(realpathSync(home), 'secret'));
  writeFileSync(join(home, 'config.toml'), `[storage]\nallowed_host_paths = [${JSON.stringify(shared)}]\n`);
  daemon = await startDaemon({ home });
  connect();
});

function connect(): void {
  connectionConfig = new ConnectionConfig({ domain: daemon.url, apiKey: daemon.apiKey });
  manager = SandboxManager.create({ connectionConfig });
}

async function restartAfterKill(): Promise<void> {
  await manager.close();
  await daemon.kill();
  daemon = await startDaemon({ home: daemon.home });
  connect();
}

afterAll(async () => {
  const { items } = await manager.listSandboxInfos({ pageSize: 200 });
  await Promise.all(items.map(({ id }) => manager.killSandbox(id)));
  await manager.close();
  expect(await daemon.stop()).toBe(0);
  await expectNothingLeft(daemon.home);
});

const api = async (method: string, path: string, body?: object) => {
  const reply = await fetch(`${daemon.url}/v1${path}`, {
    method,
    headers: { 'OPEN-SANDBOX-API-KEY': daemon.apiKey, 'Content-Type': 'application/json' },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  const text = await reply.text();
  return {
    status: reply.status,
    headers: reply.headers,
    text,
    json: text.startsWith('{') ? JSON.parse(text) : undefined,
  };
};

const volumeNames = async () =>
  (await api('GET', '/volumes')).json.items.map((it: { name: string }) => it.name);

describe.each(runtimes)('%s', (runtime) => {
  const create = (volumes: Volume[], more: object = {}) =>
    Sandbox.create({
      ...{ connectionConfig, image: imageOf(runtime), volumes, timeoutSeconds: 600 },
      ...{ extensions: { 'glovebox.runtime': runtime }, ...more },
    });
  const outputOf = async (sandbox: Sandbox, command: string) => {
    const { logs, exitCode } = await sandbox.commands.run(command);
    return [exitCode, logs.stdout.map((it) => it.text).join('')];
  };
  const named = (name: string, more: Partial<Volume> = {}): Volume => ({
    ...{ name: 'v', mountPath: '/data', pvc: { claimName: `${runtime}-${name}` } },
    ...more,
  });

  test('named volumes outlive sandboxes and a daemon that is killed; those of one sandbox go with it', async () => {
    const first = await create([
      named('kept'),
      {
        ...named('own'),
        name: 'w',
        mountPath: '/own',
        pvc: { claimName: `${runtime}-own`, deleteOnSandboxTermination: true },
      },
    ]);
    expect(
      await outputOf(
        first,
        'mkdir -p /data/deep && echo one > /data/deep/note && echo two > /own/x && id -u',
      ),
    ).toEqual([0, '0']);
    await restartAfterKill();
    const again = await Sandbox.connect({ connectionConfig, sandboxId: first.id });
    expect(await outputOf(again, 'cat /data/deep/note /own/x')).toEqual([0, 'onetwo']);
    expect((await api('DELETE', `/volumes/${runtime}-kept`)).status).toBe(409);
    expect(await volumeNames()).toEqual(expect.arrayContaining([`${runtime}-kept`, `${runtime}-own`]));
    await again.kill();
    expect(await volumeNames()).not.toContain(`${runtime}-own`);

    const second = await create([named('kept', { readOnly: true, subPath: 'deep' })]);
    expect(await outputOf(second, 'cat /data/note')).toEqual([0, 'one']);
    expect((await outputOf(second, 'echo no > /data/note'))[0]).not.toBe(0);
    await second.kill();
    expect((await api('DELETE', `/volumes/${runtime}-kept`)).status).toBe(204);
    expect(readdirSync(join(homeOf(), 'volumes'))).toEqual([]);
  });

  test('a folder of the host is written into and read, and only one that is allowed, however it is reached', async () => {
    const folder = join(shared, runtime);
    const host = (path: string, more: Partial<Volume> = {}): Volume => ({
      ...{ name: 'v', mountPath: '/mnt/shared', host: { path } },
      ...more,
    });
    const sandbox = await create([
      host(folder),
      { ...host(folder, { subPath: 'below', readOnly: false }), name: 'w', mountPath: '/below' },
    ]);
    expect(await outputOf(sandbox, 'echo inside > /mnt/shared/file && echo more > /below/file')).toEqual([
      0,
      '',
    ]);
    expect(readFileSync(join(folder, 'file'), 'utf8')).toBe('inside\n');
    expect(readFileSync(join(folder, 'below/file'), 'utf8')).toBe('more\n');
    await outputOf(sandbox, `ln -s ${homeOf()}/secret /mnt/shared/out`);
    const refused = { statusCode: 400 };
    await expect(create([host(join(folder, 'out'))])).rejects.toMatchObject({
      ...refused,
      error: { code: 'VOLUME::HOST_PATH_NOT_ALLOWED' },
    });
    await expect(create([host(folder, { subPath: 'out' })])).rejects.toMatchObject({
      ...refused,
      error: { code: 'VOLUME::INVALID_SUB_PATH' },
    });
    await expect(create([host('/etc')])).rejects.toMatchObject({
      ...refused,
      error: { code: 'VOLUME::HOST_PATH_NOT_ALLOWED' },
    });
    await sandbox.kill();
    expect(existsSync(join(homeOf(), 'secret'))).toBe(true);
    expect(readdirSync(join(homeOf(), 'secret'))).toEqual([]);
  });

  test('use makes it live longer, and what does not fit its state is refused in the words that clients know', async () => {
    const sandbox = await create([], {
      secureAccess: true,
      extensions: { 'glovebox.runtime': runtime, 'access.renew.extend.seconds': '3600' },
    });
    // Its client has looked whether it is healthy, which is use.
    const { expiresAt } = await sandbox.getInfo();
    expect((expiresAt?.getTime() ?? 0) - Date.now()).toBeGreaterThan(3_000_000);
    const path = `/sandboxes/${sandbox.id}`;
    const past = { expiresAt: '2020-01-01T00:00:00Z' };
    const refusals: [string, string, object | undefined, number, string][] = [
      ['POST', `${path}/resume`, undefined, 409, 'DOCKER::SANDBOX_NOT_PAUSED'],
      ['POST', `${path}/renew-expiration`, past, 400, 'DOCKER::INVALID_EXPIRATION'],
      ['GET', `${path}/endpoints/65536`, undefined, 400, 'DOCKER::INVALID_PORT'],
      ['GET', `${path}/diagnostics/logs?scope=odd`, undefined, 400, 'SANDBOX::INVALID_PARAMETER'],
    ];
    for (const [method, route, body, status, code] of refusals) {
      const answer = await api(method, route, body);
      expect({ route, status: answer.status, json: answer.json }).toEqual({
        ...{ route, status },
        json: { code, message: expect.any(String) },
      });
    }
    await sandbox.kill();
    await sandbox.close();
  });

  test('one that nobody uses is paused, and diagnostics tell of it', async () => {
    const sandbox = await create([], {
      entrypoint: ['sh', '-c', 'echo from the main process; exec sleep 600'],
      extensions: { 'glovebox.runtime': runtime, 'glovebox.idle.pause.seconds': '3' },
      // Which would be use, or come too late.
      skipHealthCheck: true,
    });
    const path = `/sandboxes/${sandbox.id}`;
    await vi.waitFor(async () =>
      expect((await manager.getSandboxInfo(sandbox.id)).status).toMatchObject({
        state: 'Paused',
        reason: 'idle',
      }),
    );
    const again = await api('POST', `${path}/pause`);
    expect([again.status, again.json.code]).toEqual([409, 'DOCKER::SANDBOX_NOT_RUNNING']);
    const events = await api('GET', `${path}/diagnostics/events?scope=lifecycle`);
    expect(events.json.content).toMatch(/created\n[\s\S]* Running [\s\S]* Pausing [\s\S]* Paused \(idle\)/);
    expect((await api('POST', `${path}/resume`)).status).toBe(202);
    await vi.waitFor(async () => {
      const logs = await api('GET', `${path}/diagnostics/logs?scope=container`);
      expect(DiagnosticContent.parse(logs.json).content).toBe('from the main process\n');
    });
    const old = await api('GET', `${path}/diagnostics/summary`);
    expect([old.headers.get('deprecation'), old.text]).toEqual([
      'true',
      expect.stringMatching(/== inspect ==[\s\S]*== logs ==\nfrom the main process\n$/),
    ]);
    await manager.killSandbox(sandbox.id);
    await sandbox.close();
  });

  test('one that is removed by hand has no end, and a main process that cannot start is told as that', async () => {
    const sandbox = await create([], { timeoutSeconds: null });
    expect((await sandbox.getInfo()).expiresAt).toBeNull();
    const renewal = { expiresAt: new Date(Date.now() + 600_000).toISOString() };
    const answer = await api('POST', `/sandboxes/${sandbox.id}/renew-expiration`, renewal);
    expect([answer.status, answer.json.code]).toEqual([409, 'DOCKER::INVALID_EXPIRATION']);
    await sandbox.kill();
    await sandbox.close();
    await expect(create([], { entrypoint: ['/no/such/program'] })).rejects.toMatchObject({
      error: { code: 'DOCKER::SANDBOX_START_FAILED' },
    });
  });

  test('what a request names and is not there is told in the words that clients know', async () => {
    const nothing = named('nothing', { pvc: { claimName: `${runtime}-nothing`, createIfNotExists: false } });
    await expect(create([nothing])).rejects.toMatchObject({
      ...{ statusCode: 404, error: { code: 'VOLUME::PVC_NOT_FOUND' } },
    });
    const body = { image: { uri: imageOf(runtime) }, resourceLimits: {}, entrypoint: ['true'] };
    const extensions = { 'glovebox.runtime': 'qemu' };
    const elsewhere = await api('POST', '/sandboxes', { ...body, extensions });
    expect([elsewhere.status, elsewhere.json.message]).toEqual([400, expect.stringContaining('"qemu"')]);
    expect(elsewhere.headers.get('Glovebox-Hint')).toMatch(/Choose one/);
    if (runtime !== 'docker') return;
    await expect(create([], { image: '127.0.0.1:1/none:1' })).rejects.toMatchObject({
      error: { code: 'DOCKER::SANDBOX_IMAGE_PULL_FAILED' },
    });
  });
});
