// Many at once, and killed again and again: nothing acknowledged is lost, nothing is left on the host.
import { afterEach, describe, expect, test } from 'vitest';
import { call, create, list, remove, run } from '../client.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon } from '../daemon.ts';
import { imageFor, runtimes } from '../runtimes.ts';

const crowd: Record<string, number> = { bubblewrap: 100, docker: 30 };
const cycles: Record<string, number> = { bubblewrap: 200, docker: 50 };
const longMs = 20 * 60_000;

let daemon: TestDaemon | undefined;
afterEach(() => daemon?.kill());

/** A small repeatable generator, so that a failure can be played again from its seed. */
function randomFrom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

describe.each(runtimes)('%s', (runtime) => {
  test(`${crowd[runtime]} concurrent creates all succeed, all can be removed, and nothing is left`, {
    timeout: longMs,
  }, async () => {
    daemon = await startDaemon({ runtime });
    const uri = await imageFor(runtime, daemon, 'busybox');
    const here = daemon;
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
    const random = randomFrom(seed);
    const home = makeHome();
    const acknowledged = new Set<string>();
    const doubtful = new Set<string>();
    let uri = '';
    for (let cycle = 0; cycle < (cycles[runtime] as number); cycle++) {
      const said = `cycle ${cycle}, GLOVEBOX_TEST_SEED=${seed}`;
      daemon = await startDaemon({ runtime, home });
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
      const id = await create(daemon, { image: { uri } });
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
      await new Promise((resolve) => setTimeout(resolve, random() * (runtime === 'docker' ? 400 : 60)));
      await daemon.kill();
      await settled;
    }
    daemon = await startDaemon({ runtime, home });
    for (const { id } of await list(daemon)) await remove(daemon, id);
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(home);
  });
});
