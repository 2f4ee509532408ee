// SandD's daemons at the door of a real daemon: off by default, with a token, and used like any worker.
import { type ChildProcess, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { SandboxClient, UnsupportedError } from '../../sdk/src/index.ts';
import { call } from '../client.ts';
import { commandLine, environmentOf } from '../command-line.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon } from '../daemon.ts';

const fixture = join(import.meta.dirname, 'sandd-daemon.fixture.ts');
const node = join(import.meta.dirname, '../../bin/node');
let daemon: TestDaemon | undefined;
let sandd: ChildProcess | undefined;
let home: string;

afterEach(async () => {
  if (sandd !== undefined && sandd.exitCode === null && sandd.signalCode === null) {
    const gone = new Promise((resolve) => sandd?.once('exit', resolve));
    sandd.kill('SIGKILL');
    await gone;
  }
  await daemon?.stop();
  daemon = undefined;
  await expectNothingLeft(home);
});

const start = ({ url }: TestDaemon, query: string) => {
  const address = `${url.replace(/^http/, 'ws')}/ws${query}`;
  sandd = spawn(
    node,
    ['--disable-warning=ExperimentalWarning', fixture, address, 'old-1', 'label:env=prod'],
    {
      stdio: 'ignore',
    },
  );
};

/** What a handshake is answered with instead. */
async function refusal({ url }: TestDaemon, query = ''): Promise<{ status: number; text: string }> {
  const { request } = await import('node:http');
  return await new Promise((resolve, reject) => {
    const asked = request(`${url}/ws${query}`, {
      headers: {
        ...{ Connection: 'Upgrade', Upgrade: 'websocket', 'Sec-WebSocket-Version': '13' },
        ...{ 'Sec-WebSocket-Key': 'AAAAAAAAAAAAAAAAAAAAAA==', 'Sec-WebSocket-Protocol': 'sandd.v1' },
      },
    });
    asked.on('response', async (response) => {
      let text = '';
      for await (const piece of response) text += piece;
      resolve({ status: response.statusCode ?? 0, text });
    });
    asked.on('upgrade', () => reject(new Error('it was let in')));
    asked.on('error', reject);
    asked.end();
  });
}

test('without a word in the configuration none is let in', async () => {
  home = makeHome();
  daemon = await startDaemon({ home, runtime: 'bubblewrap' });
  expect(await refusal(daemon)).toMatchObject({ status: 501, text: expect.stringContaining('SandD') });
});

test('with a token: listed, worked on by the command line and the SDK, and one of a broadcast', async () => {
  home = makeHome();
  const hash = createHash('sha256').update('secret').digest('hex');
  writeFileSync(join(home, 'tokens'), `${hash}\n`);
  writeFileSync(
    join(home, 'config.toml'),
    `[workers]\nsandd = "token"\nsandd_token_file = "${home}/tokens"\n`,
  );
  daemon = await startDaemon({ home, runtime: 'bubblewrap' });
  expect((await refusal(daemon)).status).toBe(401);
  expect((await refusal(daemon, '?token=guess')).status).toBe(401);
  start(daemon, '?token=secret');
  const client = new SandboxClient({ url: daemon.url, apiKey: daemon.apiKey });
  expect(await client.workers.waitFor('old-1', { timeout: '4m' })).toMatchObject({
    ...{ protocol: 'sandd', capabilities: ['exec', 'pty'], labels: { env: 'prod' }, schedulable: false },
  });
  const glovebox = commandLine(environmentOf(home), () => home);
  expect(
    await glovebox('exec', 'worker:old-1', '--', 'sh', '-c', 'echo out; echo err >&2; exit 3'),
  ).toMatchObject({
    ...{ code: 3, stdout: 'out\n', stderr: 'err\n' },
  });
  const system = client.workers.handle('old-1');
  writeFileSync(join(home, 'there'), 'content');
  expect(await system.files.read(join(home, 'there'))).toBe('content');
  await expect(system.files.list('/')).rejects.toThrow(UnsupportedError);
  const answers = [];
  for await (const it of client.workers.broadcast('echo all', { labels: { env: 'prod' } })) answers.push(it);
  expect(answers).toMatchObject([{ workerId: 'old-1', exitCode: 0 }]);
  expect((await call(daemon, 'GET', '/stats')).body).toMatchObject({
    ...{ total_daemons: 1, by_platform: { linux: 1 }, oldest_connection_secs: expect.any(Number) },
  });
  expect((await fetch(`${daemon.url}/stats`)).status).toBe(401);
  expect((await call(daemon, 'PATCH', '/v1/workers/old-1', { labels: {} })).status).toBe(501);
}, 600_000);

test('whoever comes: the doctor warns', async () => {
  home = makeHome();
  writeFileSync(join(home, 'config.toml'), '[workers]\nsandd = "insecure"\n');
  daemon = await startDaemon({ home, runtime: 'bubblewrap' });
  start(daemon, '');
  const client = new SandboxClient({ url: daemon.url, apiKey: daemon.apiKey });
  await client.workers.waitFor('old-1', { timeout: '4m' });
  const glovebox = commandLine(environmentOf(home), () => home);
  expect((await glovebox('doctor')).stdout).toMatch(/warn\s+configuration: workers\.sandd is insecure/);
}, 600_000);
