// A daemon killed at every step of making and removing a machine leaves nothing that the next one does not find and remove.
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { BubblewrapHome, removeAll, soon } from '../../../test/bubblewrap.ts';
import { until } from '../../../test/daemon.ts';

const present = process.env.GLOVEBOX_TEST_PRESENT?.split(',').includes('bubblewrap') ?? false;
const scenario = join(import.meta.dirname, '../../../test/bubblewrap-crash.ts');

const crashAt = (home: BubblewrapHome, step: number, ...mode: string[]) =>
  spawnSync(process.execPath, [scenario, home.folder, home.homeId, String(step), ...mode], {
    encoding: 'utf8',
    // Fifty starts of the same program.
    env: { ...process.env, NODE_COMPILE_CACHE: join(home.folder, 'compiled') },
  });

/** Running machines of the home, by their records. */
function runningIn(home: BubblewrapHome): boolean {
  try {
    const { monitor } = JSON.parse(readFileSync(join(home.folder, 'machines/crash/machine.json'), 'utf8'));
    return readFileSync(`/proc/${monitor.pid}/comm`, 'utf8').trim() === 'bwrap';
  } catch {
    return false;
  }
}

describe.runIf(present)('bubblewrap: kill -9 of the daemon', () => {
  test('at any step of create and remove leaves nothing after the next start', {
    timeout: 600_000,
  }, async () => {
    const home = new BubblewrapHome();
    // The first makes the shared layers, so that the steps counted in the second are those of machines alone.
    crashAt(home, 0);
    const whole = crashAt(home, 0);
    expect(whole.stdout, whole.stderr).toMatch(/^survived \d+/);
    const steps = Number(whole.stdout.trim().split(' ')[1]);
    let aliveAfterwards = 0;
    for (let step = 1; step <= steps; step++) {
      const { signal, stdout, stderr } = crashAt(home, step);
      // The number of looks and tries varies a little from run to run.
      if (signal !== 'SIGKILL') expect(stdout, stderr).toMatch(/^survived/);
      if (runningIn(home)) aliveAfterwards++;
      using later = home.open();
      await removeAll(await later.list(soon()));
      await until(
        `what a crash at step ${step} of ${steps} left`,
        () => home.left(),
        (left) => left.length === 0,
      );
    }
    // Crashes behind the start leave running machines: a test that never sees one tests nothing.
    expect(aliveAfterwards).toBeGreaterThan(0);
    await home.close();
  });

  test('at any step of stop and start leaves a machine that the next daemon finds, starts and removes', {
    timeout: 600_000,
  }, async () => {
    const home = new BubblewrapHome();
    const whole = crashAt(home, 0, 'keep');
    expect(whole.stdout, whole.stderr).toMatch(/^survived \d+/);
    const steps = Number(whole.stdout.trim().split(' ')[1]);
    let left = '';
    let crashes = 0;
    // One more than there are, so that the last of them is seen to live.
    for (let step = 1; step <= steps + 1; step++) {
      const { signal, stdout, stderr } = crashAt(home, step, 'keep');
      const survived = signal !== 'SIGKILL';
      if (!survived) crashes++;
      // The number of looks and tries varies a little from run to run.
      const end = survived ? 'survived \\d+\\n' : '';
      expect(stdout, `step ${step} of ${steps}: ${stderr}`).toMatch(new RegExp(`^${left}${end}$`));
      left = survived ? '' : 'found (stopped|lost)\\n';
    }
    expect(crashes).toBeGreaterThan(steps / 2);
    const last = crashAt(home, 0, 'keep');
    expect(last.stdout, last.stderr).toMatch(new RegExp(`^${left}survived \\d+\\n$`));
    await home.close();
  });
});
