import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['src/**/*.test.ts', 'sdk/**/*.test.ts', 'test/**/*.test.ts'],
    // Tests wait on conditions; these limits only end what hangs, on a slow and shared machine.
    testTimeout: 60_000,
    hookTimeout: 180_000,
    // Real machines and engines are shared by the files: two at a time fits two cores.
    maxWorkers: 2,
    // `npm run check` runs what needs neither images nor engines, on a machine that may have none.
    globalSetup: process.env.GLOVEBOX_TEST_BARE === undefined ? ['test/setup.ts'] : [],
  },
});
