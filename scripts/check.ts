// `npm run check`: types, lint and format, generated files, and the quick tests (layers and units without a back end). The same here and in CI.
import { spawnSync } from 'node:child_process';

const steps: [string, string[]][] = [
  ['types', ['node_modules/typescript/bin/tsc', '-p', '.']],
  ['lint', ['node_modules/@biomejs/biome/bin/biome', 'check', '.']],
  ['generated files', ['scripts/generate.ts', '--check']],
  [
    'layers and units',
    [
      'node_modules/vitest/vitest.mjs',
      'run',
      'test/layers',
      'src/contract',
      'src/channel',
      'src/store',
      'src/guest',
    ],
  ],
];

for (const [name, args] of steps) {
  const started = performance.now();
  const { status } = spawnSync(process.execPath, args, {
    stdio: 'inherit',
    env: { ...process.env, GLOVEBOX_TEST_BARE: '1' },
  });
  console.error(
    `check: ${name} ${status === 0 ? 'ok' : 'FAILED'} (${((performance.now() - started) / 1000).toFixed(1)} s)`,
  );
  if (status !== 0) process.exit(1);
}
