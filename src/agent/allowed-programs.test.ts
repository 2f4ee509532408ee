// Where only some programs may be started: by what they really are, and by what they are called.
import {
  chmodSync,
  copyFileSync,
  mkdtempSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type BundledAgent, nextExecId, run, startBundledAgent } from '../../test/agents.ts';

let agent: BundledAgent;
let folder: string;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'glovebox-allowed-'));
  copyFileSync(realpathSync('/usr/bin/env'), join(folder, 'mine'));
  // One file with two names, of which only one is on the list.
  writeFileSync(join(folder, 'many'), '#!/bin/sh\necho "$0"\n');
  chmodSync(join(folder, 'many'), 0o755);
  symlinkSync('many', join(folder, 'some'));
  symlinkSync('/usr/bin/id', join(folder, 'echo'));
  agent = await startBundledAgent({
    boot: {
      allowedCommands: ['echo', 'ls', join(folder, 'mine'), join(folder, 'some'), '/nonexistent/program'],
    },
  });
});
afterAll(async () => {
  await agent?.[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});

const at = (name: string) => join(folder, name);

test('those on the list run, by name and by path', async () => {
  expect(await run(agent.guest, ['echo', 'hello'])).toMatchObject({ code: 0, stdout: 'hello\n' });
  expect(await run(agent.guest, [realpathSync('/usr/bin/ls'), '/dev/null'])).toMatchObject({ code: 0 });
  expect(await run(agent.guest, [at('mine'), 'A=b', at('mine')])).toMatchObject({ code: 0 });
  expect(await run(agent.guest, [at('some')])).toMatchObject({ code: 0 });
});

const pty = { pty: { cols: 80, rows: 24 } };
const refused: [string, string | string[], object][] = [
  ['another program', ['id'], {}],
  ['another program on a terminal', ['id'], pty],
  ['a shell line, for no shell is on the list', 'echo hello', {}],
  ['a shell line on a terminal', 'echo hello', pty],
  ['a shell by its path', ['/bin/sh', '-c', 'echo hello'], {}],
  ['a program of the same name elsewhere', ['./echo'], { cwd: 'FOLDER' }],
  ['a program of the same name, found by another PATH', ['echo'], { env: { PATH: 'FOLDER' } }],
  ['the same file by a name that is not on the list', ['FOLDER/many'], {}],
  ['by another PATH, even when it would be the same', ['echo'], { env: { PATH: '/usr/bin:/bin:/tmp' } }],
  ['with a library of its own', ['echo'], { env: { LD_PRELOAD: '/tmp/evil.so' } }],
  ['with a start-up file', ['echo'], { env: { BASH_ENV: '/tmp/evil' } }],
];
test.each(refused)('%s is refused', async (_what, command, more) => {
  const filled = JSON.parse(JSON.stringify([command, more]).replaceAll('FOLDER', folder));
  const what = typeof filled[0] === 'string' ? { shell: filled[0] } : { argv: filled[0] };
  const failure = await agent.guest
    .exec({ execId: nextExecId(), env: {}, stdin: 'none', ...what, ...filled[1] })
    .catch((thrown) => thrown);
  expect(failure).toMatchObject({ code: 'permission', details: { guest: 'permission' } });
});

test('a program that is on the list and not there is not found', async () => {
  await expect(run(agent.guest, ['/nonexistent/program'])).rejects.toMatchObject({
    details: { guest: 'command-not-found' },
  });
});

test('a shell line runs where its shell is on the list, and starts what it likes', async () => {
  await using open = await startBundledAgent({ boot: { allowedCommands: ['bash', 'sh'] } });
  expect(await run(open.guest, 'id -u')).toMatchObject({ code: 0, stdout: `${process.getuid?.()}\n` });
  await expect(run(open.guest, ['id'])).rejects.toMatchObject({ code: 'permission' });
});
