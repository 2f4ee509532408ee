// Pools on real runtimes through the HTTP API: what is handed out is fresh and its owner's alone, and a daemon that is killed forgets nothing of it.
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { call, create, list, remove, run } from '../client.ts';
import { expectNothingLeft, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { imageFor, runtimes } from '../runtimes.ts';

interface Pool {
  status: { available: number; starting: number; allocated: number };
  glovebox: { hits: number };
}

describe.each(runtimes)('%s', (runtime) => {
  let daemon: TestDaemon;
  let uri: string;
  beforeAll(async () => {
    daemon = await startDaemon({ runtime });
    uri = await imageFor(runtime, daemon, 'busybox');
  });
  afterAll(async () => {
    for (const { id } of await list(daemon)) await remove(daemon, id);
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(daemon.home);
  });

  const pool = async () => (await call(daemon, 'GET', '/v1/pools/web')).body as unknown as Pool;
  const filled = (count: number) =>
    until('pool', pool, ({ status }) => status.available === count && status.starting === 0);

  test.each([
    'started',
    'frozen',
  ])('%s ones are handed out fresh, and once, over a kill -9', async (state) => {
    const capacitySpec = { bufferMin: 2, bufferMax: 2, poolMin: 0, poolMax: 20 };
    const template = { image: { uri } };
    const made = await call(daemon, 'POST', '/v1/pools', {
      ...{ name: 'web', template, capacitySpec, glovebox: { state } },
    });
    expect(made.status).toBe(201);
    await filled(2);
    expect(await list(daemon)).toEqual([]);
    const wish = { image: { uri }, timeout: 600, env: { WHOSE: 'mine' }, metadata: { team: 'x' } };
    const first = await create(daemon, wish);
    expect((await pool()).glovebox.hits).toBe(1);
    const said = await run(daemon, first, 'echo $WHOSE; echo dirty > /tmp/mark; ls /tmp');
    expect(said).toMatchObject({ stdout: 'mine\nmark\n', exitCode: 0 });
    await filled(2);
    const pending = Array.from({ length: 4 }, () => create(daemon, wish).catch(() => undefined));
    const second = await Promise.any(
      pending.map(async (it) => (await it) ?? Promise.reject(new Error('none'))),
    );
    await daemon.kill();
    await Promise.all(pending);
    daemon = await startDaemon({ runtime, home: daemon.home });
    // What was answered is there; of the others each is whole or gone.
    const before = (await list(daemon)).map(({ id }) => id);
    expect(before).toEqual(expect.arrayContaining([first, second]));
    expect((await run(daemon, first, 'cat /tmp/mark; echo $WHOSE')).stdout).toBe('dirty\nmine\n');
    await filled(2);
    const later = await create(daemon, { ...wish, env: {} });
    expect((await pool()).glovebox.hits).toBe(1);
    expect(before).not.toContain(later);
    expect((await run(daemon, later, 'ls /tmp; echo "$WHOSE"')).stdout).toBe('\n');
    for (const { id } of await list(daemon)) await remove(daemon, id);
    expect((await call(daemon, 'DELETE', '/v1/pools/web')).status).toBe(204);
  });
});
