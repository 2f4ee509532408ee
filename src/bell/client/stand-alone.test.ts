// One file, three languages: whatever a container has, the same program.
import { execFile } from 'node:child_process';
import { chmod, mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { bun, lines, openDoor, others, run } from './programs.fixture.ts';
import { standAlone, standAloneClient } from './stand-alone.ts';

let folder: string;
let file: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'bell-alone-'));
  file = join(folder, 'sandbox-comm');
  await writeFile(file, await standAloneClient());
  await chmod(file, 0o755);
  // Each a PATH with one runtime and nothing else.
  const runtimes: [string, string[]][] = [
    ['node', [process.execPath]],
    ['python3', others.python.slice(0, 1)],
    ['bun', [bun]],
    ['nothing', []],
  ];
  for (const [name, targets] of runtimes) {
    await mkdir(join(folder, 'only', name), { recursive: true });
    for (const target of targets) await symlink(target, join(folder, 'only', name, name));
  }
  // An old Node.js, and a new python3.
  await mkdir(join(folder, 'only/old'));
  await writeFile(join(folder, 'only/old/node'), '#!/bin/sh\necho v16.20.2\n', { mode: 0o755 });
  for (const target of others.python.slice(0, 1)) await symlink(target, join(folder, 'only/old/python3'));
});
afterAll(() => rm(folder, { recursive: true }));

/** Says what it is by the header of its requests being right, and its exit code being the command's. */
async function works(command: (string | undefined)[], path = process.env.PATH as string) {
  await using door = await openDoor(
    lines({ type: 'stdout', data: 'out', encoding: 'utf8' }, { type: 'exit', code: 5 }),
  );
  const ended = await run([...(command as string[]), '--url', door.url, 'exec', 'make', "it's $HOME", ''], {
    env: { PATH: path },
    cwd: folder,
  });
  expect({ ...ended, asked: door.asked.map((it) => it.body) }).toEqual({
    code: 5,
    stdout: 'out',
    stderr: '',
    asked: [{ action: 'exec', args: { command: ['make', "it's $HOME", ''] } }],
  });
}

describe('started', () => {
  test('by itself', () => works([file]));
  test('with a relative name', () => works(['./sandbox-comm']));
  test.each(['sh', 'bash', 'dash'])('by %s', (shell) => works([shell, 'sandbox-comm']));
  test('by busybox', () => works(['busybox', 'sh', 'sandbox-comm']));
  test.each([process.execPath, ...others.node])('by %s', (node) => works([node, 'sandbox-comm']));
  test.each(others.python)('by %s, whose warnings are errors', (python) =>
    works([python, '-W', 'error', 'sandbox-comm']));
  test('by bun', () => works([bun, './sandbox-comm']));
  test.each(['node', 'python3', 'bun', 'old'])('where there is only %s', (name) =>
    works(['/bin/sh', 'sandbox-comm'], join(folder, 'only', name)));
});

test('where there is no runtime it says what it needs', async () => {
  expect(await run(['/bin/sh', file, 'ping'], { env: { PATH: join(folder, 'only/nothing') } })).toEqual({
    code: 69,
    stdout: '',
    stderr: 'sandbox-comm: needs Node.js (18 or later), python3 or bun\n',
  });
});

test('a project whose scripts are modules does not matter', async () => {
  const project = join(folder, 'project');
  await mkdir(project);
  await writeFile(join(project, 'package.json'), '{"type":"module"}');
  await writeFile(join(project, 'json.py'), 'raise SystemExit(9)');
  await writeFile(join(project, 'sandbox-comm'), await readFile(file));
  await works([process.execPath, join(project, 'sandbox-comm')]);
  await works([bun, join(project, 'sandbox-comm')]);
  await works(['python3', join(project, 'sandbox-comm')]);
});

test('it is valid shell up to where the shell leaves', async () => {
  const head = (await readFile(file, 'utf8')).split('\n').slice(0, 2).join('\n');
  await writeFile(join(folder, 'head'), `${head}\n`);
  for (const shell of ['bash', 'dash']) await promisify(execFile)(shell, ['-n', join(folder, 'head')]);
});

test.each([
  ['JavaScript', 'x = """', ''],
  ['Python', '', 'x = "*/"'],
])('%s that would leave its wrapping is refused', (_, js, python) => {
  expect(() => standAlone(js, python)).toThrow(expect.objectContaining({ code: 'invalid' }));
});
