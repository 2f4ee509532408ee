import { defineConfig } from 'vitest/config';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

/** Files that take minutes: begun first, so that the end does not wait for one of them alone. */
const longest = [
  'e2e/crowd',
  'compat/docker-sandbox-commands',
  'bubblewrap/crash',
  'network/programs',
  'network/workers',
  'e2e/ssh',
];

class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const rank = ({ moduleId }: TestSpecification) => {
      const at = longest.findIndex((it) => moduleId.includes(it));
      return at < 0 ? longest.length : at;
    };
    return (await super.sort(files)).sort((a, b) => rank(a) - rank(b));
  }
}

export default defineConfig({
  test: {
    include: ['src/**/*.test.ts', 'sdk/**/*.test.ts', 'test/**/*.test.ts'],
    // Tests wait on conditions; these limits only end what hangs, on a slow and shared machine.
    testTimeout: 600_000,
    hookTimeout: 600_000,
    expect: { poll: { timeout: 60_000 } },
    setupFiles: ['test/patience.ts'],
    // Real machines and engines are shared by the files: two at a time fits two cores.
    maxWorkers: 2,
    sequence: { sequencer: LongestFirst },
    // `npm run check` runs what needs neither images nor engines, on a machine that may have none.
    globalSetup: process.env.GLOVEBOX_TEST_BARE === undefined ? ['test/setup.ts'] : [],
  },
});
