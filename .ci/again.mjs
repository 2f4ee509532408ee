// After a run of all tests in which some failed: runs the files of those once more, alone, on a machine that does nothing else, and says of each what came of it.
// A test that fails again fails the run. One that passes now was flaky: it is named, with its first failure above, and is a defect to be mended.
// More than a few failed files are no accident, and are not run again. Usage: node again.mjs REPORT, the JSON report of the first run.
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { relative, resolve } from 'node:path';

const filesMax = 4;
const root = resolve(import.meta.dirname, '..');
const report = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const failed = report.testResults.filter(({ status }) => status === 'failed');
const names = failed.map(({ name }) => relative(root, name));

if (failed.length === 0 || failed.length > filesMax) {
  console.log(`\n${failed.length} files failed: nothing is run again.`);
  process.exit(1);
}

console.log(`\nRun again, one after the other: ${names.join(', ')}`);
const still = names.filter((name) => {
  const { status } = spawnSync(
    'bin/node',
    ['node_modules/vitest/vitest.mjs', 'run', '--maxWorkers=1', name],
    {
      cwd: root,
      stdio: 'inherit',
    },
  );
  return status !== 0;
});

const flaky = failed.filter((_, index) => !still.includes(names[index]));
for (const { name, assertionResults } of flaky)
  for (const { fullName } of assertionResults.filter((it) => it.status === 'failed'))
    console.log(`FLAKY, failed once and passed once: ${relative(root, name)}: ${fullName}`);
for (const name of still) console.log(`FAILED twice: ${name}`);
process.exit(still.length === 0 ? 0 : 1);
