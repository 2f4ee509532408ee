// Every method that OpenSandbox's npm client has, and every operation of its specifications, against a real daemon on every runtime of this machine.
// The tables are complete by their types: a method that a new version of the client has and they have not is an error of `npm run check`.
import {
  ConnectionConfig,
  type CredentialVault,
  type ExecdCommands,
  type ExecdHealth,
  type ExecdMetrics,
  type IsolationService,
  type IsolationSession,
  Sandbox,
  type Sandboxes,
  type SandboxFiles,
  SandboxManager,
} from '@alibaba-group/opensandbox';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { call } from '../client.ts';
import { expectNothingLeft, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { freePort } from '../ports.ts';
import { imageFor, runtimes } from '../runtimes.ts';
import { Specification } from './specification.ts';

type Calls<T> = {
  [K in keyof T as NonNullable<T[K]> extends (...args: never[]) => unknown
    ? K
    : never]-?: () => Promise<void>;
};
/** Each a test, in the order written. */
const all = <T>(name: string, calls: Calls<T>): void => {
  describe(name, () => {
    for (const [method, body] of Object.entries<() => Promise<void>>(calls)) test(method, body);
  });
};

const specification = new Specification();

describe.each(runtimes)('%s', (runtime) => {
  let daemon: TestDaemon;
  let unwatch: () => void;
  let connectionConfig: ConnectionConfig;
  let manager: SandboxManager;
  let image: string;
  let sandbox: Sandbox;

  beforeAll(async () => {
    specification.done.clear();
    unwatch = specification.watch();
    daemon = await startDaemon({
      runtime,
      // Only addresses at a gateway are signed.
      env: {
        GLOVEBOX_INGRESS_MODE: 'gateway',
        GLOVEBOX_INGRESS_GATEWAY_PORT: String(await freePort()),
        GLOVEBOX_INGRESS_GATEWAY_ROUTE_MODE: 'uri',
      },
    });
    image = await imageFor(runtime, daemon, 'debian');
    connectionConfig = new ConnectionConfig({ domain: daemon.url, apiKey: daemon.apiKey });
    manager = SandboxManager.create({ connectionConfig });
  });

  afterAll(async () => {
    const { items } = await manager.listSandboxInfos({ pageSize: 200 });
    await Promise.all(items.map(({ id }) => manager.killSandbox(id)));
    const snapshots = await manager.listSnapshots({ pageSize: 200 });
    await Promise.all(snapshots.items.map(({ id }) => manager.deleteSnapshot(id)));
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(daemon.home);
    unwatch();
    expect(await specification.seen()).toEqual([]);
  });

  const said = (execution: { logs: { stdout: { text: string }[] } }) =>
    execution.logs.stdout.map(({ text }) => text).join('\n');
  const made = async (): Promise<Sandbox> =>
    await Sandbox.create({
      connectionConfig,
      image,
      ...(runtime === 'bubblewrap' ? { extensions: { 'bootstrap.execd.isolation': 'enable' } } : {}),
      metadata: { suite: 'methods' },
      networkPolicy: { defaultAction: 'deny', egress: [{ action: 'allow', target: 'kept.test' }] },
      credentialProxy: { enabled: true },
    });

  all<Omit<typeof Sandbox, 'prototype'>>('Sandbox', {
    create: async () => {
      sandbox = await made();
      expect((await sandbox.getInfo()).status.state).toBe('Running');
    },
    connect: async () => {
      const other = await Sandbox.connect({ connectionConfig, sandboxId: sandbox.id });
      expect(said(await other.commands.run('echo connected'))).toBe('connected');
      await other.close();
    },
    resume: async () => {
      await manager.pauseSandbox(sandbox.id);
      const resumed = await Sandbox.resume({ connectionConfig, sandboxId: sandbox.id });
      expect(said(await resumed.commands.run('echo resumed'))).toBe('resumed');
      await resumed.close();
    },
  });

  all<Omit<Sandbox, 'close' | 'kill'>>('of a sandbox', {
    getInfo: async () =>
      expect(await sandbox.getInfo()).toMatchObject({ id: sandbox.id, image: { uri: image } }),
    isHealthy: async () => expect(await sandbox.isHealthy()).toBe(true),
    getMetrics: async () => expect((await sandbox.getMetrics()).memoryTotalMiB).toBeGreaterThan(0),
    pause: async () => {
      await sandbox.pause();
      expect((await sandbox.getInfo()).status.state).toBe('Paused');
    },
    resume: async () => {
      const before = sandbox;
      sandbox = await sandbox.resume();
      expect(sandbox.id).toBe(before.id);
    },
    renew: async () => {
      const { expiresAt } = await sandbox.renew(3600);
      expect((await sandbox.getInfo()).expiresAt).toEqual(expiresAt);
    },
    patchMetadata: async () => {
      const { metadata } = await sandbox.patchMetadata({ suite: null, patched: 'yes' });
      expect(metadata).toEqual({ patched: 'yes' });
    },
    getEgressPolicy: async () =>
      expect(await sandbox.getEgressPolicy()).toMatchObject({
        defaultAction: 'deny',
        egress: [{ action: 'allow', target: 'kept.test' }],
      }),
    patchEgressRules: async () => {
      await sandbox.patchEgressRules([{ action: 'allow', target: 'added.test' }]);
      expect((await sandbox.getEgressPolicy()).egress?.[0]).toEqual({
        action: 'allow',
        target: 'added.test',
      });
    },
    deleteEgressRules: async () => {
      await sandbox.deleteEgressRules(['added.test']);
      expect((await sandbox.getEgressPolicy()).egress).toEqual([{ action: 'allow', target: 'kept.test' }]);
    },
    getEndpoint: async () => expect((await sandbox.getEndpoint(8080)).endpoint).toMatch(/8080$/),
    getSignedEndpoint: async () => {
      await sandbox.files.writeFiles([{ path: '/srv/index.html', data: 'signed in' }]);
      await sandbox.commands.run('cd /srv && exec python3 -m http.server 8080 --bind 127.0.0.1', {
        background: true,
      });
      const expires = Math.floor(Date.now() / 1000) + 600;
      const { endpoint, headers = {} } = await sandbox.getSignedEndpoint(8080, expires);
      const answer = await until(
        'the server inside',
        () => fetch(`http://${endpoint}/index.html`, { headers }),
        (it) => it.status !== 502,
      );
      expect([answer.status, await answer.text()]).toEqual([200, 'signed in']);
    },
    getEndpointUrl: async () => {
      const { headers = {} } = await sandbox.getEndpoint(8080);
      const answer = await fetch(`${await sandbox.getEndpointUrl(8080)}/index.html`, { headers });
      expect(await answer.text()).toBe('signed in');
    },
    waitUntilReady: async () =>
      await sandbox.waitUntilReady({ readyTimeoutSeconds: 30, pollingIntervalMillis: 50 }),
  });

  all<ExecdHealth>('health', { ping: async () => expect(await sandbox.health.ping()).toBe(true) });
  all<ExecdMetrics>('metrics', {
    getMetrics: async () => expect((await sandbox.metrics.getMetrics()).cpuCount).toBeGreaterThan(0),
  });

  let command = '';
  let session = '';
  all<ExecdCommands>('commands', {
    run: async () => expect(said(await sandbox.commands.run('echo $((6 * 7))'))).toBe('42'),
    runStream: async () => {
      const types: string[] = [];
      for await (const { type } of sandbox.commands.runStream('echo streamed')) types.push(type);
      expect(types).toEqual(expect.arrayContaining(['init', 'stdout', 'execution_complete']));
    },
    getCommandStatus: async () => {
      command = (await sandbox.commands.run('echo begun; exec sleep 600', { background: true })).id ?? '';
      expect(await sandbox.commands.getCommandStatus(command)).toMatchObject({ id: command, running: true });
    },
    getBackgroundCommandLogs: async () => {
      const { content } = await until(
        'the output of the background command',
        () => sandbox.commands.getBackgroundCommandLogs(command),
        (it) => it.content !== '',
      );
      expect(content).toBe('begun\n');
    },
    interrupt: async () => {
      await sandbox.commands.interrupt(command);
      await until(
        'the end of the command',
        () => sandbox.commands.getCommandStatus(command),
        (it) => it.running === false,
      );
    },
    createSession: async () => {
      session = await sandbox.commands.createSession({ workingDirectory: '/tmp' });
      expect(session).not.toBe('');
    },
    runInSession: async () => {
      await sandbox.commands.runInSession(session, 'kept=yes');
      expect(said(await sandbox.commands.runInSession(session, 'echo $kept $PWD'))).toBe('yes /tmp');
    },
    deleteSession: async () => {
      await sandbox.commands.deleteSession(session);
      await expect(sandbox.commands.runInSession(session, 'true')).rejects.toMatchObject({ statusCode: 404 });
    },
  });

  /** The same on a sandbox and in an isolated session of one. */
  const filesOf = (files: () => SandboxFiles, top: string): Calls<SandboxFiles> => ({
    createDirectories: async () => await files().createDirectories([{ path: `${top}/deep/er`, mode: 755 }]),
    writeFiles: async () =>
      await files().writeFiles([
        { path: `${top}/a.txt`, data: 'eins\nzwei\n', mode: 644 },
        { path: `${top}/b.bin`, data: Uint8Array.of(0, 1, 2, 255) },
      ]),
    readFile: async () => {
      expect(await files().readFile(`${top}/a.txt`)).toBe('eins\nzwei\n');
      expect(await files().readFile(`${top}/a.txt`, { offset: 2, limit: 1 })).toBe('zwei');
    },
    readBytes: async () =>
      expect([...(await files().readBytes(`${top}/b.bin`, { range: 'bytes=1-3' }))]).toEqual([1, 2, 255]),
    readBytesStream: async () => {
      const chunks: Uint8Array[] = [];
      for await (const chunk of files().readBytesStream(`${top}/b.bin`)) chunks.push(chunk);
      expect([...Buffer.concat(chunks)]).toEqual([0, 1, 2, 255]);
    },
    getFileInfo: async () =>
      expect((await files().getFileInfo([`${top}/a.txt`]))[`${top}/a.txt`]).toMatchObject({
        size: 10,
        mode: 644,
      }),
    search: async () =>
      expect((await files().search({ path: top, pattern: '*.txt' })).map((it) => it.path)).toEqual([
        `${top}/a.txt`,
      ]),
    listDirectory: async () =>
      expect((await files().listDirectory({ path: top })).map((it) => it.path).sort()).toEqual([
        `${top}/a.txt`,
        `${top}/b.bin`,
        `${top}/deep`,
      ]),
    setPermissions: async () => {
      await files().setPermissions([{ path: `${top}/a.txt`, mode: 600, owner: 'root', group: 'root' }]);
      expect((await files().getFileInfo([`${top}/a.txt`]))[`${top}/a.txt`]).toMatchObject({
        mode: 600,
      });
    },
    replaceContents: async () => {
      await files().replaceContents([{ path: `${top}/a.txt`, oldContent: 'eins', newContent: 'uno' }]);
      expect(await files().readFile(`${top}/a.txt`)).toBe('uno\nzwei\n');
    },
    replaceContentsDetailed: async () =>
      expect(
        await files().replaceContentsDetailed([
          { path: `${top}/a.txt`, oldContent: 'zwei', newContent: 'due' },
        ]),
      ).toEqual([{ path: `${top}/a.txt`, replacedCount: 1 }]),
    moveFiles: async () => {
      await files().moveFiles([{ src: `${top}/a.txt`, dest: `${top}/deep/c.txt` }]);
      expect(await files().readFile(`${top}/deep/c.txt`)).toBe('uno\ndue\n');
    },
    deleteFiles: async () => {
      await files().deleteFiles([`${top}/b.bin`]);
      await expect(files().readFile(`${top}/b.bin`)).rejects.toMatchObject({ statusCode: 404 });
    },
    deleteDirectories: async () => {
      await files().deleteDirectories([`${top}/deep`]);
      expect(await files().listDirectory({ path: top })).toEqual([]);
    },
  });
  all<SandboxFiles>(
    'files',
    filesOf(() => sandbox.files, '/tmp/methods'),
  );

  const name = 'token';
  all<CredentialVault>('credentialVault', {
    create: async () =>
      expect(
        await sandbox.credentialVault.create({
          credentials: [{ name, source: { type: 'inline', value: 'sk-first' } }],
          bindings: [
            { name: 'api', match: { hosts: ['kept.test'] }, auth: { type: 'bearer', credential: name } },
          ],
        }),
      ).toMatchObject({ revision: 1 }),
    get: async () => expect(await sandbox.credentialVault.get()).toMatchObject({ revision: 1 }),
    patch: async () =>
      expect(
        await sandbox.credentialVault.patch({
          credentials: { replace: [{ name, source: { type: 'inline', value: 'sk-second' } }] },
        }),
      ).toMatchObject({ revision: 2 }),
    listCredentials: async () =>
      expect(await sandbox.credentialVault.listCredentials()).toMatchObject([{ name }]),
    getCredential: async () =>
      expect(await sandbox.credentialVault.getCredential(name)).toMatchObject({ name }),
    listBindings: async () =>
      expect(await sandbox.credentialVault.listBindings()).toMatchObject([{ name: 'api' }]),
    getBinding: async () =>
      expect(await sandbox.credentialVault.getBinding('api')).toMatchObject({ name: 'api' }),
    delete: async () => {
      await sandbox.credentialVault.delete();
      await expect(sandbox.credentialVault.get()).rejects.toMatchObject({ statusCode: 404 });
    },
  });

  let snapshot = '';
  const ready = async (id: string) =>
    await until(
      'the snapshot',
      () => manager.getSnapshot(id),
      (it) => it.status.state !== 'Creating',
    );
  let second = '';
  all<Sandboxes>('sandboxes', {
    createSandbox: async () => {
      second = (
        await sandbox.sandboxes.createSandbox({
          image: { uri: image },
          entrypoint: ['tail', '-f', '/dev/null'],
          timeout: 600,
          resourceLimits: { cpu: '1', memory: '256Mi' },
          secureAccess: false,
        })
      ).id;
    },
    getSandbox: async () => expect(await sandbox.sandboxes.getSandbox(second)).toMatchObject({ id: second }),
    listSandboxes: async () =>
      expect((await sandbox.sandboxes.listSandboxes({ states: ['Running'] })).items).toHaveLength(2),
    patchSandboxMetadata: async () =>
      expect((await sandbox.sandboxes.patchSandboxMetadata(second, { n: '2' })).metadata).toEqual({ n: '2' }),
    pauseSandbox: async () => await sandbox.sandboxes.pauseSandbox(second),
    resumeSandbox: async () => await sandbox.sandboxes.resumeSandbox(second),
    renewSandboxExpiration: async () => {
      const expiresAt = new Date(Date.now() + 7_200_000).toISOString();
      const renewed = await sandbox.sandboxes.renewSandboxExpiration(second, { expiresAt });
      expect(renewed.expiresAt?.toISOString()).toBe(expiresAt);
    },
    createSnapshot: async () => {
      await (await Sandbox.connect({ connectionConfig, sandboxId: second })).commands.run(
        'echo kept >/root/kept',
      );
      snapshot = (await sandbox.sandboxes.createSnapshot(second, { name: 'methods' })).id;
    },
    getSnapshot: async () => expect((await ready(snapshot)).status.state).toBe('Ready'),
    listSnapshots: async () =>
      expect((await sandbox.sandboxes.listSnapshots({ sandboxId: second })).items).toMatchObject([
        { id: snapshot, name: 'methods' },
      ]),
    deleteSnapshot: async () => {
      const restored = await Sandbox.create({ connectionConfig, snapshotId: snapshot });
      expect(said(await restored.commands.run('cat /root/kept'))).toBe('kept');
      await restored.kill();
      await sandbox.sandboxes.deleteSnapshot(snapshot);
      await expect(sandbox.sandboxes.getSnapshot(snapshot)).rejects.toMatchObject({ statusCode: 404 });
    },
    getSandboxEndpoint: async () =>
      expect((await sandbox.sandboxes.getSandboxEndpoint(second, 8080, true)).endpoint).toMatch(/8080$/),
    getSignedEndpoint: async () => {
      const expires = Math.floor(Date.now() / 1000) + 60;
      expect((await sandbox.sandboxes.getSignedEndpoint(second, 8080, expires)).endpoint).toBeTruthy();
    },
    invalidateEndpointCache: async () => sandbox.sandboxes.invalidateEndpointCache?.(second),
    deleteSandbox: async () => {
      await sandbox.sandboxes.deleteSandbox(second);
      await expect(sandbox.sandboxes.getSandbox(second)).rejects.toMatchObject({ statusCode: 404 });
    },
  });

  all<Omit<SandboxManager, 'close'>>('SandboxManager', {
    listSandboxInfos: async () =>
      expect((await manager.listSandboxInfos({ metadata: { patched: 'yes' } })).items).toMatchObject([
        { id: sandbox.id },
      ]),
    getSandboxInfo: async () =>
      expect(await manager.getSandboxInfo(sandbox.id)).toMatchObject({ id: sandbox.id }),
    patchSandboxMetadata: async () =>
      expect((await manager.patchSandboxMetadata(sandbox.id, { by: 'manager' })).metadata).toMatchObject({
        by: 'manager',
      }),
    pauseSandbox: async () => await manager.pauseSandbox(sandbox.id),
    resumeSandbox: async () => await manager.resumeSandbox(sandbox.id),
    renewSandbox: async () => await manager.renewSandbox(sandbox.id, 3600),
    createSnapshot: async () => {
      snapshot = (await manager.createSnapshot(sandbox.id)).id;
      expect((await ready(snapshot)).status.state).toBe('Ready');
    },
    getSnapshot: async () =>
      expect(await manager.getSnapshot(snapshot)).toMatchObject({ sandboxId: sandbox.id }),
    listSnapshots: async () =>
      expect((await manager.listSnapshots({ states: ['ready'] })).items).toMatchObject([{ id: snapshot }]),
    deleteSnapshot: async () => await manager.deleteSnapshot(snapshot),
    killSandbox: async () => {
      const { id } = await made();
      await manager.killSandbox(id);
      await expect(manager.getSandboxInfo(id)).rejects.toMatchObject({ statusCode: 404 });
    },
  });

  // Docker's sandboxes cannot be given them, and the client is told so in the way that it expects.
  const refused = { message: expect.stringContaining('503') };
  const isolating = runtime === 'bubblewrap';
  const workspace = { path: '/home/box' };
  let isolated: IsolationSession;
  all<IsolationService>('isolation', {
    capabilities: async () =>
      expect(await sandbox.isolation.capabilities()).toMatchObject(
        isolating ? { available: true } : { available: false, message: expect.stringMatching(/./) },
      ),
    create: async () => {
      const made = sandbox.isolation.create({ workspace: { ...workspace, mode: 'rw' } });
      if (isolating) isolated = await made;
      else await expect(made).rejects.toMatchObject(refused);
    },
    list: async () =>
      expect(await sandbox.isolation.list()).toMatchObject(
        isolating ? [{ session_id: isolated.sessionId, status: 'active' }] : [],
      ),
    attach: async () => {
      const attached = sandbox.isolation.attach(isolating ? isolated.sessionId : 'none');
      if (isolating) expect((await attached).info).toMatchObject(isolated.info);
      else await expect(attached).rejects.toMatchObject(refused);
    },
    runOnce: async () => {
      const ran = sandbox.isolation.runOnce('echo once', workspace.path);
      if (isolating) expect(said(await ran)).toBe('once');
      else await expect(ran).rejects.toMatchObject(refused);
    },
    withSession: async () => {
      const ran = sandbox.isolation.withSession({ workspace }, (it) => it.run('echo within'));
      if (isolating) expect(said(await ran)).toBe('within');
      else await expect(ran).rejects.toMatchObject(refused);
    },
  });
  if (isolating) {
    all<Omit<IsolationSession, 'delete'>>('of an isolated session', {
      run: async () => expect(said(await isolated.run('pwd; echo $$'))).toBe('/home/box\n1'),
      get: async () => expect(await isolated.get()).toMatchObject({ status: 'active', profile: 'strict' }),
    });
    all<SandboxFiles>(
      'files of an isolated session',
      filesOf(() => isolated.files, '/home/box'),
    );
    test('the end of an isolated session', async () => {
      await isolated.delete();
      await expect(isolated.get()).rejects.toThrow(/404.*SESSION_NOT_FOUND/);
    });
  }

  describe('what the client has no methods for', () => {
    const execd = async (method: string, path: string, body?: unknown) => {
      const answer = await call(daemon, method, `/sandboxes/${sandbox.id}/proxy/44772${path}`, body);
      expect(answer.status, `${method} ${path}: ${JSON.stringify(answer.body)}`).toBeLessThan(300);
      return answer.body;
    };

    test('code contexts', async () => {
      const { id } = await execd('POST', '/code/context', { language: 'python' });
      await execd('POST', '/code', { code: 'x = 1', context: { id, language: 'python' } });
      expect(await execd('GET', '/code/contexts?language=python')).toMatchObject([{ id }]);
      expect(await execd('GET', `/code/contexts/${id}`)).toMatchObject({ language: 'python' });
      const running = call(daemon, 'POST', `/sandboxes/${sandbox.id}/proxy/44772/code`, {
        code: 'open("/tmp/running", "w").close()\nimport time\ntime.sleep(600)',
        context: { id, language: 'python' },
      });
      await until(
        'the run',
        () => sandbox.files.search({ path: '/tmp', pattern: 'running' }),
        (it) => it.length === 1,
      );
      await execd('DELETE', `/code?id=${id}`);
      expect(JSON.stringify((await running).body)).toContain('KeyboardInterrupt');
      await execd('DELETE', `/code/contexts/${id}`);
      await execd('DELETE', '/code/contexts?language=python');
    });

    test('metrics as they come', async () => {
      const stop = new AbortController();
      const reply = await fetch(`${daemon.url}/sandboxes/${sandbox.id}/proxy/44772/metrics/watch`, {
        headers: { 'OPEN-SANDBOX-API-KEY': daemon.apiKey },
        signal: stop.signal,
      });
      const reader = reply.body?.getReader();
      expect(Buffer.from((await reader?.read())?.value ?? []).toString()).toContain('mem_used_mib');
      stop.abort();
    });

    test('so every operation of the specifications was answered', async () => {
      await until('all replies', specification.seen.bind(specification), () => true);
      const missing = (['lifecycle', 'execd', 'egress'] as const).flatMap((api) =>
        specification
          .operations(api)
          .filter((it) => !it.includes('/v1/isolated/session') && !specification.done.has(it)),
      );
      expect(missing).toEqual([]);
    });

    test('close and kill', async () => {
      const other = await Sandbox.connect({ connectionConfig, sandboxId: sandbox.id });
      await other.close();
      await sandbox.kill();
      await expect(sandbox.getInfo()).rejects.toMatchObject({ statusCode: 404 });
      await sandbox.close();
      await manager.close();
      manager = SandboxManager.create({ connectionConfig });
    });
  });
});
