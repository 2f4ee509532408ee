// The verbs about snapshots and forks as real processes, through the SDK, against the API itself.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { commandLine, environmentOf } from '../../test/command-line.ts';
import { startTestApi, type TestApi, testKey } from '../api/fake.fixture.ts';

let api: TestApi;
let folder: string;
let glovebox: ReturnType<typeof commandLine>;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'glovebox-cli-'));
  api = await startTestApi();
  api.service.add('11111111-2222-4333-8444-555555555555', { metadata: { 'glovebox.name': 'web' } });
  glovebox = commandLine(
    environmentOf(join(folder, 'home'), { GLOVEBOX_URL: api.url, GLOVEBOX_API_KEY: testKey }),
    () => folder,
  );
});

afterAll(async () => {
  await api[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});

test('a snapshot is made, listed, restored by its name, and removed when nothing is made of it', async () => {
  const made = await glovebox('snapshot', 'create', 'web', '--name', 'before');
  const id = made.stdout.trim();
  expect([made.code, api.snapshots.get(id)]).toMatchObject([0, { state: 'Ready', name: 'before' }]);
  const listed = await glovebox('snapshot', 'ls', '--sandbox', 'web', '--state', 'ready');
  expect(listed.stdout).toMatch(new RegExp(`SNAPSHOT .*\\n${id} +before +Ready +web `));
  expect(JSON.parse((await glovebox('snapshot', 'ls', '--json')).stdout)).toMatchObject([
    { id, name: 'before' },
  ]);

  const copy = await glovebox('create', '--snapshot', 'before', '--name', 'copy', '--json');
  expect([copy.code, JSON.parse(copy.stdout)]).toMatchObject([0, { name: 'copy', snapshot_id: id }]);
  expect(api.service.created.at(-1)).toMatchObject({ snapshotId: id, image: expect.stringContaining(id) });
  const refused = await glovebox('snapshot', 'rm', id);
  expect([refused.code === 0, refused.stderr]).toEqual([
    false,
    expect.stringContaining('sandbox copy was made of it'),
  ]);
  for (const [sandbox, { metadata }] of api.service.sandboxes)
    if (metadata['glovebox.name'] === 'copy') api.service.sandboxes.delete(sandbox);
  expect((await glovebox('snapshot', 'rm', id.slice(0, 8))).stdout).toBe(`${id}\n`);
});

test('forks are called after their sandbox, or as it is said', async () => {
  expect((await glovebox('fork', 'web')).stdout).toBe('web-fork\n');
  expect((await glovebox('fork', '-n', '2', '--name', 'try', '--timeout', '30m', 'web')).stdout).toBe(
    'try-1\ntry-2\n',
  );
  expect(api.service.created.at(-1)).toMatchObject({
    timeoutMs: 1_800_000,
    image: expect.stringContaining('snapshot'),
  });
});

test.each([
  [['create', '--snapshot', 'x', 'debian'], 'an image is named already'],
  [['run', '--snapshot', 'x', '--template', 'y'], 'an image is named already'],
  [['snapshot', 'ls', '--state', 'odd'], "'odd' is no state"],
  [['fork', '--count', '0', 'web'], '--count'],
  [['snapshot', 'create', 'nowhere'], "no sandbox is called 'nowhere'"],
])('glovebox %j is refused', async (args, message) => {
  const { code, stderr } = await glovebox(...args);
  expect([code === 0, stderr]).toEqual([false, expect.stringContaining(message)]);
});
