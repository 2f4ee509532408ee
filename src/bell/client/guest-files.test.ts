// The client as our own sandboxes have it: in a guest with a shell and nothing else, started by the agent's runtime.
import { chmod, cp, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { agentEnvironment, ensureAgentBundle } from '../../agent/bundle.ts';
import { clientScripts, engineVariables, shimScripts, unsetVariables } from './guest-files.ts';
import { lines, openDoor, run } from './programs.fixture.ts';
import { clientScript } from './stand-alone.ts';

const agentFolder = '/.glovebox/agent';
let root: string;
let guest: string[];

beforeAll(async () => {
  const bundle = await ensureAgentBundle();
  root = await mkdtemp(join(tmpdir(), 'bell-guest-'));
  const scripts = {
    ...clientScripts(agentFolder),
    ...shimScripts(['make', 'notify-send', 'wc'], undefined, (it) => it === 'wc'),
  };
  await mkdir(join(root, 'bin'));
  for (const [name, text] of Object.entries(scripts)) {
    await writeFile(join(root, 'bin', name), text);
    await chmod(join(root, 'bin', name), 0o755);
  }
  await writeFile(join(root, 'bell.js'), await clientScript());
  // The shell of an image that has only this.
  await cp('/bin/busybox', join(root, 'sh'));
  await writeFile(join(root, 'bunfig.toml'), 'preload = ["/work/evil.js"]');
  await writeFile(join(root, 'evil.js'), 'console.log("evil"); process.exit(9)');
  const files = ['ld.so', 'lib', 'bun', 'bunfig.toml', 'package.json', 'tsconfig.json'];
  guest = [
    ...['bwrap', '--unshare-all', '--share-net', '--die-with-parent', '--proc', '/proc', '--dev', '/dev'],
    ...['--ro-bind', join(root, 'sh'), '/bin/sh', '--ro-bind', join(root, 'bin'), `${agentFolder}/bin`],
    ...files.flatMap((it) => ['--ro-bind', join(bundle, it), `${agentFolder}/${it}`]),
    ...['--ro-bind', join(root, 'bell.js'), `${agentFolder}/bell.js`],
    // A working folder of a stranger.
    ...[
      '--ro-bind',
      root,
      '/work',
      '--chdir',
      '/work',
      '--clearenv',
      '--setenv',
      'PATH',
      `${agentFolder}/bin`,
    ],
    ...['LD_PRELOAD', 'NODE_OPTIONS', 'BUN_OPTIONS'].flatMap((it) => [
      '--setenv',
      it,
      it === 'LD_PRELOAD' ? '/no/such.so' : '--preload=/work/evil.js',
    ]),
  ];
});
afterAll(() => rm(root, { recursive: true }));

test.each([
  ['sandbox-comm', ['exec', 'make', "a b'c"], ['make', "a b'c"], undefined],
  ['glovebox-bell', ['exec', '--', 'make', '*'], ['make', '*'], undefined],
  ['make', ['test', '--json', ''], ['make', 'test', '--json', ''], undefined],
  ['wc', ['-l'], ['wc', '-l'], 'a\n'],
] as const)('%s of %o runs in a guest that has only sh', async (name, args, command, stdin) => {
  await using door = await openDoor(
    lines({ type: 'stdout', data: 'ü\n', encoding: 'utf8' }, { type: 'exit', code: 4 }),
  );
  const ended = await run(
    [...guest, '--setenv', 'SANDBOX_COMM_URL', door.url, `${agentFolder}/bin/${name}`, ...args],
    {
      ...(stdin === undefined ? {} : { stdin }),
    },
  );
  expect(ended).toEqual({ code: 4, stdout: 'ü\n', stderr: '' });
  expect(door.asked.map((it) => it.body)).toEqual([
    { action: 'exec', args: { command, ...(stdin === undefined ? {} : { stdin }) } },
  ]);
});

test('notify-send of a guest notifies', async () => {
  await using door = await openDoor((response) => response.end('{"ok":true}'));
  const ended = await run([
    ...guest,
    '--setenv',
    'SANDBOX_COMM_URL',
    door.url,
    'notify-send',
    '-u',
    'low',
    'T',
    'B',
  ]);
  expect(ended).toEqual({ code: 0, stdout: '', stderr: '' });
  expect(door.asked.map((it) => it.body)).toEqual([{ action: 'notify', args: { title: 'T', body: 'B' } }]);
});

test('what the agent is kept from, the client is', () => {
  const emptied = Object.entries(agentEnvironment()).flatMap(([name, value]) => (value === '' ? [name] : []));
  expect(unsetVariables).toEqual(expect.arrayContaining(emptied));
  expect(agentEnvironment()).toMatchObject(engineVariables);
});

test.each([
  '',
  'a/b',
  '../x',
  '-rf',
  'a b',
  '$(id)',
  'a\nb',
  `x${'y'.repeat(64)}`,
])('%j is no name of a shim', (name) => {
  expect(() => shimScripts([name])).toThrow(expect.objectContaining({ code: 'invalid' }));
});

test('a folder with a name that a shell would read is refused', () => {
  expect(() => clientScripts('/a b')).toThrow(expect.objectContaining({ code: 'invalid' }));
});
