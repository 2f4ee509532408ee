// Many at once, and killed again and again: nothing acknowledged is lost, nothing is left on the host.
import { afterEach, describe, expect, test } from 'vitest';
import { call, create, list, remove, run } from '../client.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon } from '../daemon.ts';
import { imageFor, runtimes } from '../runtimes.ts';

const crowd: Record<string, number> = { bubblewrap: 100, docker: 30 };
const cycles: Record<string, number> = { bubblewrap: 200, docker: 50 };
/** Homes that go through their share of the cycles at the same time: a cycle mostly waits, for one process after the other. */
const homes = 5;
const longMs = 60 * 60_000;

const daemons = new Set<TestDaemon>();
async function start(options: { runtime: string; home?: string }): Promise<TestDaemon> {
  const daemon = await startDaemon(options);
  daemons.add(daemon);
  return daemon;
}
afterEach(async () => {
  await Promise.all([...daemons].map((it) => it.kill()));
  daemons.clear();
});

/** A small repeatable generator, so that a failure can be played again from its seed. */
function randomFrom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

/** Creates, executes, kills and restarts in one home, until it is done or `over`. */
async function killAgainAndAgain(runtime: string, times: number, seed: number, over: AbortSignal) {
  const random = randomFrom(seed);
  const home = makeHome();
  const acknowledged = new Set<string>();
  const doubtful = new Set<string>();
  let uri = '';
  for (let cycle = 0; cycle < times && !over.aborted; cycle++) {
    const said = `cycle ${cycle}, GLOVEBOX_TEST_SEED=${seed}`;
    const daemon = await start({ runtime, home });
    if (cycle === 0) uri = await imageFor(runtime, daemon, 'busybox');
    const there = new Map((await list(daemon)).map((it) => [it.id, it.state]));
    for (const id of acknowledged) expect(there.get(id), `${said}: ${id}`).toBe('Running');
    // A creation that was made but not answered before the kill may be there; nothing else that we do not know.
    const unknown = [...there.keys()].filter((id) => !acknowledged.has(id) && !doubtful.has(id));
    expect(unknown.length, `${said}: ${unknown}`).toBeLessThanOrEqual(1);
    for (const id of [...doubtful, ...unknown]) if (there.has(id)) await remove(daemon, id);
    doubtful.clear();

    const oldest = [...acknowledged][0];
    if (oldest !== undefined)
      expect((await run(daemon, oldest, 'cat /tmp/mark')).stdout, said).toBe(`${oldest}\n`);
    const createdAt = performance.now();
    const id = await create(daemon, { image: { uri } });
    const createMs = performance.now() - createdAt;
    acknowledged.add(id);
    expect((await run(daemon, id, `echo ${id} > /tmp/mark; echo ok`)).stdout, said).toBe('ok\n');

    // Something is under way when the daemon dies: a creation, a removal, or a command.
    const victim = [...acknowledged].at(0) as string;
    const removing = acknowledged.size > 3;
    if (removing) {
      acknowledged.delete(victim);
      doubtful.add(victim);
    }
    const underway = removing
      ? call(daemon, 'DELETE', `/v1/sandboxes/${victim}`)
      : call(daemon, 'POST', '/v1/sandboxes', {
          image: { uri },
          entrypoint: ['tail', '-f', '/dev/null'],
          resourceLimits: {},
        });
    const settled = underway.then(
      (answer) => {
        if (!removing && answer.status === 202) doubtful.add(answer.body.id as string);
      },
      () => undefined,
    );
    // As long as a creation takes here and now, so that each of its steps may be the last.
    await new Promise((resolve) => setTimeout(resolve, random() * createMs));
    await daemon.kill();
    await settled;
    daemons.delete(daemon);
  }
  const daemon = await start({ runtime, home });
  for (const { id } of await list(daemon)) await remove(daemon, id);
  expect(await daemon.stop()).toBe(0);
  await expectNothingLeft(home);
}

describe.each(runtimes)('%s', (runtime) => {
  test(`${crowd[runtime]} concurrent creates all succeed, all can be removed, and nothing is left`, {
    timeout: longMs,
  }, async () => {
    const here = await start({ runtime });
    const uri = await imageFor(runtime, here, 'busybox');
    const ids = await Promise.all(
      Array.from({ length: crowd[runtime] as number }, () => create(here, { image: { uri } })),
    );
    expect(new Set(ids).size).toBe(crowd[runtime]);
    const outputs = await Promise.all(ids.map((id) => run(here, id, 'echo $((40 + 2))')));
    expect(new Set(outputs.map((it) => it.stdout))).toEqual(new Set(['42\n']));
    await Promise.all(ids.map((id) => remove(here, id)));
    expect(await list(here)).toEqual([]);
    expect(await here.stop()).toBe(0);
    await expectNothingLeft(here.home);
  });

  test(`${cycles[runtime]} cycles of create, exec, kill -9, restart: no record lost, nothing left`, {
    timeout: longMs,
  }, async () => {
    const seed = Number(process.env.GLOVEBOX_TEST_SEED ?? Date.now() % 1_000_000);
    const failed = new AbortController();
    const outcomes = await Promise.allSettled(
      Array.from({ length: homes }, async (_, nth) => {
        try {
          await killAgainAndAgain(runtime, (cycles[runtime] as number) / homes, seed + nth, failed.signal);
        } catch (error) {
          failed.abort();
          throw error;
        }
      }),
    );
    for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason;
  });
});
