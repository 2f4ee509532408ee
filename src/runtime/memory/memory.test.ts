// What every runtime owes, as far as one without walls can keep it.
import { existsSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { makeHome } from '../../../test/daemon.ts';
import { runtimeConformance } from '../conformance.ts';
import { MemoryRuntime } from './memory.ts';

const home = makeHome();
const runtime = new MemoryRuntime({ acknowledgeNoIsolation: true });
const { capabilities } = await runtime.check();

runtimeConformance('memory', capabilities, () => {
  const folders = { run: join(home, 'run'), state: join(home, 'machines') };
  for (const folder of Object.values(folders)) mkdirSync(folder);
  return {
    capabilities,
    // Its machines are in this process, so a later daemon is the same object.
    open: () => runtime,
    images: { shell: 'any', scratch: 'any' },
    defaults: {
      env: { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' },
      cwd: tmpdir(),
      entrypoint: [],
    },
    bun: { command: [process.execPath], libc: '' },
    folders,
    processes: () => [],
    leftovers: () => Object.values(folders).flatMap((folder) => readdirSync(folder)),
    close: () => rmSync(home, { recursive: true }),
  };
});

test('it does not start for someone who has not said that they want no walls', () => {
  expect(() => new MemoryRuntime({ acknowledgeNoIsolation: false })).toThrow(/walls nothing off/);
});

test('a mount elsewhere than at its own path is refused', async () => {
  const folder = join(home, 'machine');
  const failure = await runtime
    .create(
      {
        id: 'moved',
        image: 'any',
        limits: {},
        mounts: [{ hostPath: '/usr', guestPath: '/elsewhere', readOnly: true }],
        runFolder: folder,
        stateFolder: folder,
        labels: {},
      },
      new AbortController().signal,
    )
    .catch((it) => it);
  expect(failure).toMatchObject({ code: 'unsupported', hint: expect.stringContaining('own path') });
  expect(existsSync(folder)).toBe(false);
});
