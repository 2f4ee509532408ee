// The real bundle in real walls: images without anything, other users, the first process of a namespace, a full disk.
import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type BundledAgent, run, startBundledAgent, until } from '../../test/agents.ts';
import { guestFolder } from '../contract/guest.ts';
import { Failure } from '../lib/failure.ts';
import { agentCommand, agentEnvironment } from './bundle.ts';

const name = `glovebox-agent-test-${process.pid}`;
const images = { empty: `${name}-empty`, busybox: `${name}-busybox` };
let folder: string;
let containers = 0;

function docker(...args: string[]): string {
  return execFileSync('docker', args, { encoding: 'utf8' }).trim();
}

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'glovebox-images-'));
  mkdirSync(join(folder, 'empty'));
  mkdirSync(join(folder, 'busybox/bin'), { recursive: true });
  cpSync('/bin/busybox', join(folder, 'busybox/bin/busybox'));
  for (const tool of ['sh', 'echo', 'id', 'sleep', 'env', 'setsid', 'ls', 'cat', 'stty'])
    execFileSync('ln', ['-s', 'busybox', join(folder, 'busybox/bin', tool)]);
  for (const kind of ['empty', 'busybox'] as const) {
    const tar = join(folder, `${kind}.tar`);
    execFileSync('tar', ['-C', join(folder, kind), '-cf', tar, '.']);
    docker('import', tar, images[kind]);
  }
});

afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
  for (const image of Object.values(images)) docker('rmi', '-f', image);
});

/** An agent as the first process of a hardened container, whose image sets whatever might disturb it. */
async function startInContainer(image: string, more: string[] = []): Promise<BundledAgent> {
  const container = `${name}-${containers++}`;
  const agent = await startBundledAgent({
    command: (bundle, runFolder) => [
      'docker',
      'run',
      '--rm',
      `--name=${container}`,
      '--network=none',
      '--cap-drop=ALL',
      '--security-opt=no-new-privileges',
      '--read-only',
      '--pids-limit=64',
      `--volume=${bundle}:${guestFolder}/agent:ro`,
      `--volume=${runFolder}:${guestFolder}/run:ro`,
      ...Object.entries({
        ...{
          NODE_OPTIONS: '--bogus',
          LD_PRELOAD: '/evil.so',
          LD_LIBRARY_PATH: '/evil',
          BUN_OPTIONS: '--bogus',
        },
        ...agentEnvironment(),
      }).map(([key, value]) => `--env=${key}=${value}`),
      ...more,
      `--entrypoint=${agentCommand()[0]}`,
      image,
      ...agentCommand().slice(1),
    ],
  });
  return {
    ...agent,
    async [Symbol.asyncDispose]() {
      execFileSync('docker', ['rm', '-f', container], { stdio: 'ignore' });
      await agent[Symbol.asyncDispose]();
    },
  };
}

describe('in a hardened container', () => {
  test('an empty image serves files, and says that it has no commands', async () => {
    await using agent = await startInContainer(images.empty, ['--tmpfs=/work']);
    const names = (await agent.guest.list('/', { depth: 1 })).map((it) => it.path);
    expect(names).toContain(guestFolder);
    expect(names).not.toContain('/bin');
    await agent.guest.write('/work/a/b', [Buffer.from('text')] as never);
    const { bytes, entry } = await agent.guest.read('/work/a/b');
    let text = '';
    for await (const piece of bytes) text += piece;
    expect([text, entry.owner, entry.size]).toEqual(['text', '0', 4]);
    const shell = await run(agent.guest, 'true').catch((it) => it);
    expect([shell.details, shell.message]).toMatchObject([
      { exitCode: 127 },
      expect.stringContaining('neither bash nor sh'),
    ]);
    // The bundle itself is all that can run here, also to get ready for commands.
    await agent.guest.rehearse({ env: {}, times: 1 });
    const bundle = agentCommand().slice(0, 4);
    expect((await run(agent.guest, [...bundle, '--version'])).stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
  });

  test.each([
    ['its own root', []],
    ['another user', ['--user=1234:5678']],
  ])('an image of one static binary runs commands, as %s', async (_who, options) => {
    await using agent = await startInContainer(images.busybox, options);
    const ids = options.length > 0 ? '1234 5678' : '0 0';
    expect((await run(agent.guest, 'echo $(id -u) $(id -g) "$LD_LIBRARY_PATH"')).stdout).toBe(`${ids} \n`);
    expect((await run(agent.guest, ['env'], { env: { LD_PRELOAD: 'x' } })).stdout).toContain('LD_PRELOAD=x');
    const pty = await run(agent.guest, 'stty size', { pty: { cols: 70, rows: 20 } });
    expect(pty.stdout).toBe('20 70\r\n');
    expect((await run(agent.guest, 'sleep 1000', { timeoutMs: 100, graceMs: 0 })).reason).toBe('timeout');
    expect((await agent.guest.metrics()).memoryTotalBytes).toBeGreaterThan(0);
  });

  test('the first process buries the dead', async () => {
    await using agent = await startInContainer(images.busybox);
    const zombies = async () => {
      const stats = await run(agent.guest, 'for p in /proc/[0-9]*; do cat $p/stat; done');
      return stats.stdout.split('\n').filter((line) => / Z /.test(line)).length;
    };
    await run(
      agent.guest,
      'for i in 1 2 3 4 5 6 7 8 9 10; do setsid sh -c "sh -c \\"sleep 0.1\\" & exit" & done; wait',
    );
    await until('no zombie is left', async () => (await zombies()) === 0);
    expect((await run(agent.guest, 'cat /proc/1/comm')).code).toBe(0);
  });

  test('a fork bomb at the limit of processes leaves the agent answering', async () => {
    await using agent = await startInContainer(images.busybox);
    const bomb = run(agent.guest, 'while :; do sleep 1000 & done', { timeoutMs: 1_500, graceMs: 0 });
    await agent.guest.ping();
    expect((await bomb).reason).not.toBe('unknown');
    await until('commands run again', async () =>
      run(agent.guest, 'echo hi').then(
        (it) => it.stdout === 'hi\n',
        () => false,
      ),
    );
  });
});

describe('in namespaces of its own', () => {
  test('as the first process it buries orphans, and takes everything with it', async () => {
    await using agent = await startBundledAgent({
      prefix: ['unshare', '--pid', '--fork', '--mount-proc', '--kill-child'],
    });
    const { stdout } = await run(agent.guest, 'cat /proc/1/cmdline | tr "\\0" " "');
    expect(stdout).toContain('agent.js');
    await run(agent.guest, 'for i in $(seq 20); do (setsid sleep 0.05 &) ; done');
    await until('no zombie is left', async () => {
      const { stdout: stats } = await run(agent.guest, 'cat /proc/[0-9]*/stat');
      return !/ Z /.test(stats);
    });
  });

  test('a full disk is told, and the old file stays as it was', async () => {
    await using agent = await startBundledAgent({
      prefix: [
        'unshare',
        '--mount',
        'sh',
        '-c',
        `mkdir -p ${folder}/small && mount -t tmpfs -o size=1m tmpfs ${folder}/small && exec "$0" "$@"`,
      ],
    });
    const { guest } = agent;
    const path = `${folder}/small/file`;
    await guest.write(path, [Buffer.from('old')] as never);
    const big = Array.from({ length: 32 }, () => Buffer.alloc(64 * 1024, 1));
    const failure = await guest.write(path, big as never).catch((thrown) => thrown);
    expect(failure).toBeInstanceOf(Failure);
    expect([failure.code, failure.details.errno]).toEqual(['full', 'ENOSPC']);
    expect((await run(guest, ['cat', path])).stdout).toBe('old');
    expect((await guest.list(`${folder}/small`, { depth: 1 })).map((it) => it.path)).toEqual([path]);
  });

  test('what the image root says to Bun is not obeyed', async () => {
    const root = join(folder, 'cwd');
    mkdirSync(root);
    writeFileSync(join(root, 'bunfig.toml'), 'preload = ["./first.js"]');
    writeFileSync(
      join(root, 'first.js'),
      `require('fs').writeFileSync(${JSON.stringify(join(root, 'ran'))}, '')`,
    );
    writeFileSync(join(root, '.env'), 'NODE_OPTIONS=--bogus');
    await using agent = await startBundledAgent({ cwd: root });
    await agent.guest.ping();
    expect(() => readFileSync(join(root, 'ran'))).toThrow(/ENOENT/);
  });
});
