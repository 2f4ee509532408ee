// The verbs about pools as real processes, against a server that behaves as the test says.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { commandLine, environmentOf } from '../../test/command-line.ts';
import { empty, json, ScriptedServer } from '../../test/scripted-server.ts';

let server: ScriptedServer;
let folder: string;
let glovebox: ReturnType<typeof commandLine>;

const pool = {
  ...{ name: 'ci', template: { image: { uri: 'node' }, resourceLimits: { memory: '1Gi' } } },
  capacitySpec: { bufferMin: 8, bufferMax: 8, poolMin: 0, poolMax: 1_000 },
  status: {
    ...{
      total: 5,
      allocated: 3,
      available: 2,
      starting: 0,
      revision: 'r',
      reason: 'cannot-start',
      failures: 4,
    },
    ...{ message: 'no image\u001b[2J node', retryAt: '2026-01-29T10:15:23.000Z' },
  },
  glovebox: { source: 'api', runtime: 'docker', state: 'frozen', hits: 12, misses: 7 },
};

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'glovebox-cli-'));
  server = await new ScriptedServer().listen();
  glovebox = commandLine(
    environmentOf(join(folder, 'home'), { GLOVEBOX_URL: server.url, GLOVEBOX_API_KEY: 'key' }),
    () => folder,
  );
  for (const method of ['GET', 'POST'])
    server.on(method, /^\/v1\/pools(\/ci)?$/, ({ path }, response) =>
      json(response, 200, method === 'GET' && path.endsWith('s') ? { items: [pool] } : pool),
    );
  server.on('DELETE', /^\/v1\/pools\/ci$/, (_, response) => empty(response));
});

afterAll(async () => {
  await server[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});

beforeEach(() => {
  server.seen.length = 0;
});

test('a pool is made with what was said of it', async () => {
  const words = 'pool create ci node --memory 1Gi --ready 8 --memory-max 8Gi --frozen --runtime docker';
  expect(await glovebox(...words.split(' '))).toMatchObject({ code: 0, stdout: 'ci\n' });
  expect(server.seen.map(({ method, body }) => [method, JSON.parse(body.toString())])).toEqual([
    [
      'POST',
      {
        name: 'ci',
        template: { image: { uri: 'node' }, resourceLimits: { memory: '1Gi' }, runtime: 'docker' },
        capacitySpec: { bufferMin: 8, bufferMax: 8, poolMin: 0, poolMax: 1_000 },
        glovebox: { state: 'frozen', memoryMax: '8Gi' },
      },
    ],
  ]);
  expect(await glovebox('pool', 'create', 'ci', 'node', '--ready', 'many')).toMatchObject({
    ...{ code: 2, stderr: expect.stringContaining('--ready') },
  });
});

test('a list tells what is ready, and why there is not more', async () => {
  const { stdout } = await glovebox('pool', 'ls');
  const [, line = ''] = stdout.split('\n');
  expect(line).toMatch(/^ci +node +docker +2\/8 frozen +3\/1000 +12 +7 +cannot-start: no image.*node$/);
  expect(line).not.toContain('\u001b');
  const shown = await glovebox('pool', 'show', 'ci');
  expect(JSON.parse(shown.stdout)).toMatchObject([{ name: 'ci', available: 2, failures: 4 }]);
});

test('a pool is removed', async () => {
  expect(await glovebox('pool', 'rm', 'ci')).toMatchObject({ code: 0, stdout: 'ci\n' });
  expect(server.seen.map(({ method, path }) => [method, path])).toEqual([['DELETE', '/v1/pools/ci']]);
});
