// Workspaces, agents, templates and ports: what their requests become, and what their answers look like.
import { afterEach, beforeEach, expect, test } from 'vitest';
import { Failure } from '../lib/failure.ts';
import { startTestApi, type TestApi, testOwnerKey } from './fake.fixture.ts';

let api: TestApi;
beforeEach(async () => {
  api = await startTestApi();
  api.service.add('w', { workspaces: [{ path: '/srv/p', mode: 'overlay', readOnly: false }] });
});
afterEach(() => api[Symbol.asyncDispose]());

const answers: [method: string, path: string, body: unknown, status: number, part: unknown][] = [
  ['GET', '/sandboxes/w/workspaces', undefined, 200, { items: [{ path: '/srv/p', mode: 'overlay' }] }],
  ['GET', '/sandboxes/w/workspaces/changes', undefined, 200, { items: [] }],
  ['POST', '/sandboxes/w/workspaces/apply', {}, 200, { applied: ['a'] }],
  ['POST', '/sandboxes/w/workspaces/apply', { dryRun: true }, 200, { applied: [] }],
  [
    'POST',
    '/sandboxes/w/workspaces/apply',
    { paths: ['../x'] },
    400,
    { message: expect.stringContaining('paths.0') },
  ],
  [
    'POST',
    '/sandboxes/w/workspaces/apply',
    { paths: ['/x'] },
    400,
    { message: expect.stringContaining('paths.0') },
  ],
  ['POST', '/sandboxes/w/workspaces/discard', { paths: ['a/b'] }, 200, { discarded: ['a/b'] }],
  ['GET', '/sandboxes/w/workspaces/checkpoints', undefined, 200, { items: [{ id: 'c1' }] }],
  ['POST', '/sandboxes/w/workspaces/checkpoints', { label: 'before' }, 201, { label: 'before' }],
  ['POST', '/sandboxes/w/workspaces/undo', {}, 200, { restored: ['a'] }],
  ['GET', '/sandboxes/w/workspaces/sync', undefined, 200, { items: [] }],
  ['GET', '/agents', undefined, 200, { items: [{ name: 'shell' }] }],
  ['GET', '/agents/shell', undefined, 200, { command: ['bash', '-l'] }],
  ['GET', '/agents/nobody', undefined, 404, { message: expect.stringContaining('nobody') }],
  ['GET', '/templates', undefined, 200, { items: [{ name: 'kept' }] }],
  ['POST', '/sandboxes/w/save', { name: 'mine:1' }, 201, { name: 'mine:1' }],
  ['POST', '/sandboxes/w/save', { name: 'Not A Name' }, 400, { message: expect.stringContaining('name') }],
  ['POST', '/templates/load?name=x', new Uint8Array(3), 201, { name: 'x' }],
  ['DELETE', '/templates/kept', undefined, 204, undefined],
  ['GET', '/sandboxes/w/ports', undefined, 200, { items: [] }],
  ['POST', '/sandboxes/w/ports', [{ sandboxPort: 80 }], 201, { items: [{ sandboxPort: 80 }] }],
  [
    'POST',
    '/sandboxes/w/ports',
    [{ sandboxPort: 70_000 }],
    400,
    { message: expect.stringContaining('sandboxPort') },
  ],
  ['POST', '/sandboxes/w/ports', [], 400, { message: expect.any(String) }],
  ['POST', '/sandboxes/w/ports/unpublish', [{ sandboxPort: 80 }], 200, { unpublished: 1 }],
];

test.each(answers)('%s %s %j → %i', async (method, path, body, status, part) => {
  const answer = await api.call(method, `/v1${path}`, body);
  expect(answer.status).toBe(status);
  if (part !== undefined) expect(answer.json).toMatchObject(part as object);
});

test('a patch comes as it is', async () => {
  const answer = await api.call('GET', '/v1/sandboxes/w/workspaces/diff');
  expect([answer.headers.get('content-type'), answer.text]).toEqual(['text/x-diff', 'diff --git a/a b/a\n']);
});

test('a build tells of itself line by line', async () => {
  const owner = { 'Glovebox-Owner': testOwnerKey };
  const build = (query: string, headers: Record<string, string>, bytes = 0) =>
    api.call('POST', `/v1/templates/build?name=x&${query}`, new Uint8Array(bytes), headers);
  const answer = await build('arg=A%3Db', owner, 1024);
  const lines = answer.text.split('\n').filter((line) => line !== '');
  expect(lines.map((line) => JSON.parse(line).type)).toEqual(['done']);
  expect((await build('arg=b', owner)).json.message).toMatch(/"b" is not KEY=VALUE/);
  expect((await build('file=box.toml', {})).status).toBe(200);
  for (const query of ['file=Dockerfile', 'file=x.toml.Dockerfile', 'file=./Dockerfile', ''])
    expect((await build(query, {})).status, query).toBe(403);
});

test('what fails before its first byte is an error, not a cut connection', async () => {
  const refuses = await startTestApi({
    templates: {
      export: async function* () {
        yield* [] as Uint8Array[];
        throw new Failure('unsupported', 'it lives of this host’s own files', {
          hint: 'Give a project’s “own” folder.',
        });
      },
    } as never,
  });
  const answer = await refuses.call('GET', '/v1/templates/x/export');
  expect([answer.status, answer.json.message]).toEqual([501, 'it lives of this host’s own files']);
  // Headers hold plain characters only; those that stand for one are spelt with it.
  expect(answer.headers.get('glovebox-hint')).toBe('Give a project\'s "own" folder.');
  await refuses[Symbol.asyncDispose]();
});

test('names that no agent has are told, and those that it has prepare the request', async () => {
  const made = await api.call('POST', '/v1/sandboxes', {
    resourceLimits: {},
    glovebox: { agent: 'shell' },
  });
  expect(made.status).toBe(202);
  expect(api.service.created.at(-1)).toMatchObject({ agent: 'shell' });
  const neither = await api.call('POST', '/v1/sandboxes', { resourceLimits: {} });
  expect(neither.json.message).toContain('image: is missing');
});
