// Snapshots through OpenSandbox's own npm client, on every runtime of this machine; forks; and a daemon that is killed in the middle of all of it.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readdirSync, realpathSync } from 'node:fs';
import { join } from 'node:path';
import { ConnectionConfig, Sandbox, SandboxManager } from '@alibaba-group/opensandbox';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { call, create, list, remove, run } from '../client.ts';
import { expectNothingLeft, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { imageFor, runtimes } from '../runtimes.ts';
import { Specification } from './specification.ts';

interface Snapshot {
  id: string;
  name?: string;
  status: { state: string; reason: string; message: string };
}

const specification = new Specification();

describe.each(runtimes)('%s', (runtime) => {
  let daemon: TestDaemon;
  let image: string;
  let manager: SandboxManager;
  let connectionConfig: ConnectionConfig;

  const connect = async () => {
    await manager?.close();
    connectionConfig = new ConnectionConfig({ domain: daemon.url, apiKey: daemon.apiKey });
    manager = SandboxManager.create({ connectionConfig });
  };

  let unwatch: () => void;
  beforeAll(async () => {
    unwatch = specification.watch();
    daemon = await startDaemon({ runtime });
    image = await imageFor(runtime, daemon, 'busybox');
    await connect();
  });

  afterAll(async () => {
    const { items } = await manager.listSandboxInfos({ pageSize: 200 });
    await Promise.all(items.map(({ id }) => manager.killSandbox(id)));
    await until(
      'a snapshot of a fork',
      () => images(),
      (left) => left.length === known.size,
    );
    // The newest may be made of older ones.
    for (const { id } of (await manager.listSnapshots({ pageSize: 200 })).items)
      await manager.deleteSnapshot(id);
    expect(images()).toEqual([]);
    await manager.close();
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(daemon.home);
    unwatch();
    expect(await specification.seen()).toEqual([]);
  });

  /** Ids of snapshots that are to be there. */
  const known = new Set<string>();

  /** What the runtime keeps of this home's snapshots. */
  const images = (): string[] => {
    if (runtime === 'bubblewrap')
      return readdirSync(join(daemon.home, 'images/names')).filter((it) => it.includes('snapshot'));
    const homeId = createHash('sha256').update(realpathSync(daemon.home)).digest('hex').slice(0, 12);
    const tags = execFileSync('docker', ['images', '-q', `glovebox/snapshot/${homeId}`], {
      encoding: 'utf8',
    });
    return tags.split('\n').filter((it) => it !== '');
  };

  const settled = async (id: string) =>
    await vi.waitFor(
      async () => {
        const snapshot = await manager.getSnapshot(id);
        expect(snapshot.status.state).not.toBe('Creating');
        return snapshot;
      },
      { timeout: 120_000 },
    );

  const ready = async (sandboxId: string, name?: string): Promise<string> => {
    const { id } = await manager.createSnapshot(sandboxId, name === undefined ? {} : { name });
    expect((await settled(id)).status).toMatchObject({ state: 'Ready', reason: 'snapshot_ready' });
    known.add(id);
    return id;
  };

  const forget = async (id: string) => {
    await manager.deleteSnapshot(id);
    known.delete(id);
  };

  const content = async (id: string) => (await run(daemon, id, 'cat /work/file')).stdout.trim();

  test('the client makes one, finds it, makes sandboxes of it with and without an entrypoint, and removes it', async () => {
    const source = await Sandbox.create({
      ...{ connectionConfig, image, timeoutSeconds: 3_600, resource: { pids: '200' } },
      ...{ env: { TOKEN: 'of-the-creator' }, metadata: { team: 'gloves' } },
    });
    await source.commands.run('mkdir -p /work && echo one > /work/file');
    const made = await manager.createSnapshot(source.id, { name: 'first' });
    expect(made).toMatchObject({ sandboxId: source.id, name: 'first', status: { state: 'Creating' } });
    known.add(made.id);
    expect((await settled(made.id)).status.state).toBe('Ready');
    await source.commands.run('echo two > /work/file');

    const found = await manager.listSnapshots({
      name: 'first',
      sandboxId: source.id,
      states: ['Ready', 'Failed'],
    });
    expect(found).toMatchObject({
      items: [{ id: made.id }],
      pagination: { page: 1, totalItems: 1, hasNextPage: false },
    });
    expect((await manager.listSnapshots({ states: ['failed'] })).items).toEqual([]);
    expect((await manager.listSnapshots({ name: 'second' })).items).toEqual([]);

    const plain = await Sandbox.create({ connectionConfig, snapshotId: made.id, timeoutSeconds: null });
    const info = await plain.getInfo();
    // Nothing of the source's but what is on its disk.
    expect(info).toMatchObject({
      snapshotId: made.id,
      entrypoint: ['tail', '-f', '/dev/null'],
      expiresAt: null,
    });
    expect([info.image, Object.keys(info.metadata ?? {})]).toEqual([undefined, []]);
    expect(await content(plain.id)).toBe('one');
    expect((await run(daemon, plain.id, 'echo "[$TOKEN]"')).stdout).toBe('[]\n');
    const served = await Sandbox.create({
      ...{ connectionConfig, snapshotId: made.id, metadata: { role: 'served' } },
      entrypoint: ['sh', '-c', 'cp /work/file /work/seen; exec sleep 1000'],
    });
    await vi.waitFor(async () =>
      expect((await run(daemon, served.id, 'cat /work/seen')).stdout).toBe('one\n'),
    );

    await expect(manager.deleteSnapshot(made.id)).rejects.toMatchObject({
      ...{ statusCode: 409, error: { code: 'SNAPSHOT::DELETE_CONFLICT' } },
    });
    expect((await manager.getSnapshot(made.id)).status.state).toBe('Ready');
    await Promise.all([plain, served, source].map((it) => it.kill()));
    await forget(made.id);
    await expect(manager.getSnapshot(made.id)).rejects.toMatchObject({
      ...{ statusCode: 404, error: { code: 'SNAPSHOT::NOT_FOUND' } },
    });
    await expect(Sandbox.create({ connectionConfig, snapshotId: made.id })).rejects.toMatchObject({
      ...{ statusCode: 404, error: { code: 'SNAPSHOT::NOT_FOUND' } },
    });
    expect(images()).toEqual([]);
  });

  test('of one that is paused, or stopped, or made of a snapshot itself; of one that has failed there is none', async () => {
    const id = await create(daemon, { image: { uri: image }, glovebox: { keep: true } });
    await run(daemon, id, 'mkdir -p /work && echo kept > /work/file');
    await manager.pauseSandbox(id);
    const paused = await ready(id);
    expect((await manager.getSandboxInfo(id)).status.state).toBe('Paused');
    await manager.resumeSandbox(id);
    expect((await call(daemon, 'POST', `/v1/sandboxes/${id}/stop`)).status).toBe(200);
    const stopped = await ready(id);
    await remove(daemon, id);
    const copy = await create(daemon, { image: undefined, snapshotId: paused });
    const other = await create(daemon, { image: undefined, snapshotId: stopped });
    expect([await content(copy), await content(other)]).toEqual(['kept', 'kept']);
    await run(daemon, copy, 'echo more > /work/more');
    const again = await ready(copy);
    await Promise.all([remove(daemon, copy), remove(daemon, other)]);
    const refused = await call(daemon, 'DELETE', `/v1/snapshots/${paused}`);
    expect([refused.status, refused.body.code]).toEqual([409, 'SNAPSHOT::DELETE_CONFLICT']);
    expect(refused.body.message).toContain(`snapshot ${again}`);
    for (const it of [again, paused, stopped]) await forget(it);
    const failed = await create(daemon, { image: { uri: image }, entrypoint: ['sh', '-c', 'exit 3'] });
    await vi.waitFor(async () => expect((await manager.getSandboxInfo(failed)).status.state).toBe('Failed'));
    await expect(manager.createSnapshot(failed)).rejects.toMatchObject({
      ...{ statusCode: 409, error: { code: 'SNAPSHOT::INVALID_SOURCE_STATE' } },
    });
    await expect(manager.createSnapshot('none')).rejects.toMatchObject({
      ...{ statusCode: 404, error: { code: 'SANDBOX::NOT_FOUND' } },
    });
    await remove(daemon, failed);
    const { body } = await call(daemon, 'POST', `/v1/sandboxes/${failed}/snapshots`, { name: '' });
    expect(body).toMatchObject({ code: 'SANDBOX::INVALID_PARAMETER' });
  });

  test('forks have the disk of their source and what it was asked to be, and each goes its own way', async () => {
    const id = await create(daemon, {
      ...{ image: { uri: image }, env: { MODE: 'source' }, resourceLimits: { pids: '150' } },
      metadata: { 'glovebox.name': 'origin', team: 'gloves' },
      networkPolicy: { defaultAction: 'deny', egress: [{ action: 'allow', target: 'fork.example' }] },
    });
    const policyOf = async (of: string) =>
      (
        (await call(daemon, 'GET', `/v1/sandboxes/${of}/proxy/18080/policy`)).body.policy as {
          egress: object[];
        }
      ).egress;
    await run(daemon, id, 'mkdir -p /work && echo shared > /work/file');
    const { status, body } = await call(daemon, 'POST', `/v1/sandboxes/${id}/fork`, {
      ...{ count: 2, timeout: 600, metadata: { 'glovebox.name': 'try' } },
    });
    expect(status).toBe(201);
    const forks = body.items as { id: string; metadata: object; expiresAt: string; glovebox: object }[];
    expect(forks.map((it) => it.metadata)).toEqual([
      { 'glovebox.name': 'try-1' },
      { 'glovebox.name': 'try-2' },
    ]);
    for (const fork of forks) {
      expect(fork).toMatchObject({ expiresAt: expect.any(String), glovebox: { limits: { pids: 150 } } });
      expect((await run(daemon, fork.id, 'echo $MODE; cat /work/file')).stdout).toBe('source\nshared\n');
      await run(daemon, fork.id, `echo ${fork.id} > /work/file`);
      // The way out of its source, which is its own from then on.
      expect(await policyOf(fork.id)).toEqual(await policyOf(id));
      const change = [{ action: 'allow', target: `${fork.id}.example` }];
      const { status: changed } = await call(
        ...([daemon, 'PATCH', `/v1/sandboxes/${fork.id}/proxy/18080/policy`, change] as const),
      );
      expect([changed, (await policyOf(fork.id)).length, (await policyOf(id)).length]).toEqual([200, 2, 1]);
    }
    expect(await Promise.all([id, ...forks.map((it) => it.id)].map(content))).toEqual([
      ...['shared', ...forks.map((it) => it.id)],
    ]);
    expect((await manager.listSnapshots()).items).toEqual([]);
    const tooMany = await call(daemon, 'POST', `/v1/sandboxes/${id}/fork`, { count: 17 });
    expect(tooMany.status).toBe(400);
    for (const it of [id, ...forks.map((it) => it.id)]) await remove(daemon, it);
    await vi.waitFor(() => expect(images()).toEqual([]));
  });

  test('killed in the middle of capture, removal, restore and fork: what was acknowledged is kept, the rest is gone', async () => {
    const id = await create(daemon, { image: { uri: image } });
    await run(daemon, id, 'mkdir -p /work && echo alive > /work/file');
    const [removing, restored] = [await ready(id, 'removing'), await ready(id, 'restored')];
    await run(daemon, id, 'dd if=/dev/urandom of=/work/large bs=1048576 count=48 2>/dev/null');
    const captured = await manager.createSnapshot(id, { name: 'captured' });
    known.add(captured.id);
    // None of these is answered.
    const unanswered = [
      call(daemon, 'DELETE', `/v1/snapshots/${removing}`),
      call(daemon, 'POST', '/v1/sandboxes', { snapshotId: restored }),
      call(daemon, 'POST', `/v1/sandboxes/${id}/fork`, { count: 2 }),
    ].map((it) => it.catch(() => undefined));
    await until(
      'a restore that has begun',
      () => list(daemon),
      (all) => all.length > 1,
    );
    await daemon.kill();
    await Promise.all(unanswered);
    daemon = await startDaemon({ home: daemon.home, runtime });
    await connect();

    expect(await settled(captured.id)).toMatchObject({ name: 'captured', status: { state: 'Ready' } });
    const copy = await create(daemon, { image: undefined, snapshotId: captured.id });
    expect(await content(copy)).toBe('alive');
    const sum = 'sha256sum < /work/large';
    expect((await run(daemon, copy, sum)).stdout).toBe((await run(daemon, id, sum)).stdout);
    // Its removal had begun, or had not: it is never stuck on its way.
    await vi.waitFor(async () => {
      const { items } = await manager.listSnapshots({ name: 'removing' });
      expect(items.map((it) => it.status.state)).toBeOneOf([[], ['Ready']]);
    });
    const left = (await manager.listSnapshots({ pageSize: 200 })).items as unknown as Snapshot[];
    known.clear();
    for (const snapshot of left) known.add(snapshot.id);
    expect(left.map((it) => it.name)).toEqual(expect.arrayContaining(['captured', 'restored']));
    const states = (await list(daemon)).map((it) => it.state);
    expect(states.filter((it) => it !== 'Running')).toEqual([]);
    for (const it of await list(daemon)) await remove(daemon, it.id);
    // That of the fork is gone with the last of what was made of it.
    await vi.waitFor(() => expect(images()).toHaveLength(left.length));
    for (const snapshot of left) await forget(snapshot.id);
    expect(images()).toEqual([]);
  });
});
