// The verbs about projects as real processes, against a server that behaves as the test says.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { commandLine, environmentOf } from '../../test/command-line.ts';
import { empty, json, ScriptedServer } from '../../test/scripted-server.ts';

let server: ScriptedServer;
let folder: string;
let glovebox: ReturnType<typeof commandLine>;

const day = 86_400_000;
const at = new Date(Date.now() - 2 * day).toISOString();
const project = {
  ...{ id: 'p1', name: 'ci', keys: 2, createdAt: at },
  quotas: { sandboxes: 20, memoryBytes: 8 * 2 ** 30, requestsPerMinute: 60 },
  usage: { sandboxes: 2, cpu: 1.5, memoryBytes: 2 ** 30, ports: 0 },
};

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'glovebox-cli-'));
  server = await new ScriptedServer().listen();
  glovebox = commandLine(
    environmentOf(join(folder, 'home'), { GLOVEBOX_URL: server.url, GLOVEBOX_API_KEY: 'key' }),
    () => folder,
  );
  for (const method of ['GET', 'POST', 'PATCH'])
    server.on(method, /^\/v1\/projects(\/ci)?$/, ({ path }, response) =>
      json(response, 200, method === 'GET' && path.endsWith('s') ? { items: [project] } : project),
    );
  server.on('DELETE', /^\/v1\/projects\/ci(\/keys\/\w+)?$/, (_, response) => empty(response));
  server.on('POST', /\/keys$/, (_, response) =>
    json(response, 201, { id: 'k1', role: 'member', createdAt: at, key: 'gbx_secret' }),
  );
  server.on('GET', /\/keys$/, (_, response) =>
    json(response, 200, {
      items: [
        { id: 'k1', role: 'viewer', label: 'a\u001b[2Jb', createdAt: at, expiresAt: at },
        {
          ...{ id: 'k2', role: 'admin', createdAt: at, lastUsedAt: at },
          expiresAt: new Date(Date.now() + 3 * day).toISOString(),
        },
      ],
    }),
  );
});

afterAll(async () => {
  await server[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});

beforeEach(() => {
  server.seen.length = 0;
});

const changes = () =>
  server.seen
    .filter(({ method }) => method !== 'GET')
    .map(({ method, path, body }) => [
      method,
      path,
      body.length === 0 ? undefined : JSON.parse(body.toString()),
    ]);

test('quotas that are set join those that are there, and those that are unset leave', async () => {
  const set = await glovebox(
    'project',
    'set',
    'ci',
    '--cpu',
    '2.5',
    '--unset',
    'requests',
    '--unset',
    'ports',
  );
  expect(set).toMatchObject({ code: 0, stdout: 'ci\n' });
  expect(changes()).toEqual([
    ['PATCH', '/v1/projects/ci', { quotas: { sandboxes: 20, memoryBytes: 8 * 2 ** 30, cpu: 2.5 } }],
  ]);
});

test('a list shows what is used of what may be; a project that is made says what comes next', async () => {
  const { stdout } = await glovebox('project', 'ls');
  expect(
    stdout
      .split('\n')[1]
      ?.split(/ {2,}/)
      .map((it) => it.trim()),
  ).toEqual([...['ci', '2/20', '1.5', '1.0 GiB/8.0 GiB', '0/0', '60', '2']]);
  const made = await glovebox('project', 'create', 'ci', '--memory', '8Gi');
  expect(made).toMatchObject({
    code: 0,
    stdout: 'ci\n',
    stderr: expect.stringMatching(/project key create ci/),
  });
});

test('a new key alone is on stdout; a list of keys has no control characters of a label', async () => {
  const made = await glovebox('project', 'key', 'create', 'ci', '--expires', '12h');
  expect(made).toMatchObject({ code: 0, stdout: 'gbx_secret\n' });
  expect(made.stderr).toMatch(/shown this once/);
  const [[, , body]] = changes() as [[string, string, { role: string; expiresAt: string }]];
  expect(body.role).toBe('member');
  const left = Date.parse(body.expiresAt) - Date.now();
  expect(left).toBeGreaterThan(0);
  expect(left).toBeLessThanOrEqual(12 * 3_600_000);
  const { stdout } = await glovebox('project', 'key', 'ls', 'ci');
  expect(stdout).toMatch(/k1 .*viewer .*expired .*never/);
  expect(stdout).toMatch(/k2 .*admin .*- .*in \d+ .*ago/);
  expect(stdout).not.toContain('\u001b');
});

test('removing takes the sandboxes with it only when that was said; a script is not asked', async () => {
  expect(await glovebox('project', 'rm', 'ci')).toMatchObject({ code: 0, stdout: 'ci\n' });
  expect(server.seen.map(({ query }) => query.get('sandboxes'))).toEqual(['false']);
  server.seen.length = 0;
  expect(await glovebox('project', 'rm', '-f', '--sandboxes', 'ci')).toMatchObject({
    code: 0,
    stdout: 'ci\n',
  });
  expect(await glovebox('project', 'key', 'revoke', 'ci', 'k1', 'k2')).toMatchObject({
    ...{ code: 0, stderr: expect.stringMatching(/Revoked 2 keys/) },
  });
  expect(server.seen[0]?.query.get('sandboxes')).toBe('true');
  expect(changes().map(([method, path]) => `${method} ${path}`)).toEqual([
    ...['DELETE /v1/projects/ci', 'DELETE /v1/projects/ci/keys/k1', 'DELETE /v1/projects/ci/keys/k2'],
  ]);
});

test.each([
  [['set', 'ci'], /name at least one quota/],
  [['set', 'ci', '--unset', 'disk'], /'disk' is no quota/],
  [['create', 'ci', '--cpu', '0'], /--cpu: '0' is not a number/],
  [['create', 'ci', '--sandboxes', '1.5'], /--sandboxes: '1.5' is not a whole number/],
  [['create', 'ci', '--requests', '0'], /--requests/],
  [['key', 'create', 'ci', '--role', 'root'], /--role: 'root' is none/],
  [['key', 'create', 'ci', '--expires', 'soon'], /--expires: 'soon' is not a duration/],
  [['key', 'revoke', 'ci'], /missing required argument/],
] as [string[], RegExp][])('project %j is refused, and nothing is asked for', async (args, words) => {
  expect(await glovebox('project', ...args)).toMatchObject({ code: 2, stderr: expect.stringMatching(words) });
  expect(changes()).toEqual([]);
});
