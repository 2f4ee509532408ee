// Projects side by side: what a key of one can do with, and learn of, what is another's, over every route; how keys come to an end; roles, quotas, rates.
import { once } from 'node:events';
import { type IncomingMessage, request } from 'node:http';
import { expect, test, vi } from 'vitest';
import { WebSocket } from 'ws';
import { nameLabel } from '../contract/admin.ts';
import { fullPathOf, type Route, routes } from '../contract/routes.ts';
import type { SnapshotRecord } from '../contract/snapshot.ts';
import type { Role } from '../contract/tenant.ts';
import { fakeTenants, records, startTestApi, type TestApi, testKey, testOwnerKey } from './fake.fixture.ts';
import { Tenants } from './tenants.ts';

const keyHeader = 'OPEN-SANDBOX-API-KEY';
const everyRoute = Object.entries(routes) as [string, Route][];

/** Two projects on one server, each with a sandbox and things in and around it. */
interface Neighbours {
  api: TestApi;
  tenants: Tenants;
  keyOf(project: string, role?: Role): string;
}

async function neighbours(options: Parameters<typeof fakeTenants>[0] = {}): Promise<Neighbours> {
  const tenants = fakeTenants(options);
  const api = await startTestApi({ tenants });
  api.service.add(ids.owners, { metadata: { [nameLabel]: 'owners-web' } });
  for (const [name, id] of [
    ['alpha', ids.alpha],
    ['beta', ids.beta],
  ] as const) {
    const project = tenants.create({ name, quotas: { ports: 5 } });
    api.service.add(id, { project, metadata: { [nameLabel]: `${name}-web` } });
    api.network.happen({ sandbox: id, sandboxName: `${name}-web`, host: `${name}.example` });
    api.network.kept.push({
      ...{ id: `rule-of-${name}`, sandboxId: id, decision: 'allow', resources: [`${name}.example`] },
      ...{ protocols: ['tcp'], createdVia: 'added', createdAt: '2026-01-01T00:00:00.000Z' },
    });
    api.network.ask(`question-of-${name}`, id);
    const { id: snapshot } = api.snapshots.create(id);
    await vi.waitFor(() => expect(api.snapshots.get(snapshot).state).toBe('Ready'));
    api.service.gone.push({
      ...{
        id: `${ids.gone}-${name}`,
        name: `${name}-gone`,
        state: 'Gone',
        reason: 'removed',
        message: 'gone',
      },
      ...{ since: new Date('2026-01-01T00:00:00Z'), commands: [], project },
    });
  }
  return { api, tenants, keyOf: (project, role = 'admin') => tenants.createKey(project, { role }).key };
}

const ids = {
  alpha: 'a1a1a1a1-0000-4000-8000-000000000001',
  beta: 'b2b2b2b2-0000-4000-8000-000000000002',
  gone: 'c3c3c3c3-0000-4000-8000-000000000003',
  owners: 'e5e5e5e5-0000-4000-8000-000000000005',
};

/** What a request names. */
interface Names {
  sandbox: string;
  project: string;
  rule: string;
  question: string;
  key: string;
  snapshot: string;
}

const queries: Record<string, string> = {
  why: '',
  networkLog: 'sandbox={sandbox}',
  listRules: 'sandbox={sandbox}',
  listSecrets: 'sandbox={sandbox}',
  bellLog: 'sandbox={sandbox}',
  auditLog: 'sandbox={sandbox}',
  interruptCommand: 'id=x',
  filesInfo: 'path=/x',
  deleteFiles: 'path=/x',
  searchFiles: 'path=/',
  downloadFile: 'path=/x',
  listDirectory: 'path=/',
  deleteDirectories: 'path=/x',
  packArchive: 'path=/',
  unpackArchive: 'path=/',
  importImage: 'name=x',
  loadTemplate: 'name=x',
  buildTemplate: 'name=x',
  forgetBellDecision: 'action=notify&sandbox={sandbox}',
};

const bodies: Record<string, object> = {
  createSandbox: { image: { uri: 'host' } },
  patchMetadata: { team: 'x' },
  renewExpiration: { expiresAt: '2030-01-01T00:00:00Z' },
  saveSandbox: { name: 'x' },
  publishPorts: [{ sandboxPort: 80 }],
  unpublishPorts: [{ sandboxPort: 80 }],
  addRule: { decision: 'allow', resources: ['other.example'], sandbox: '{sandbox}' },
  checkPolicy: { target: 'example.com:443', sandbox: '{sandbox}' },
  learnPolicy: { sandbox: '{sandbox}' },
  answerQuestion: { allow: true },
  setSecret: { name: 'github', source: { type: 'value', value: 'v' }, sandbox: '{sandbox}' },
  setBellDecision: { action: 'notify', decision: 'allow', sandbox: '{sandbox}' },
  runCommand: { command: 'true' },
  startProcess: { command: ['true'] },
  signalProcess: { signal: 'TERM' },
  createPty: {},
  setPermissions: { '/x': { mode: 644 } },
  makeDirectories: { '/x': { mode: 755 } },
  moveFiles: [{ src: '/x', dest: '/y' }],
  replaceContents: { '/x': { old: 'a', new: 'b' } },
  createKey: { role: 'viewer' },
};

const named = (text: string, names: Names): string =>
  text
    .replaceAll('{sandboxId}', encodeURIComponent(names.sandbox))
    .replaceAll('{sandbox}', names.sandbox)
    .replaceAll('{project}', names.project)
    .replaceAll('{ruleId}', names.rule)
    .replaceAll('{questionId}', names.question)
    .replaceAll('{keyId}', names.key)
    .replaceAll('{snapshotId}', names.snapshot)
    .replaceAll('{port}', '8080')
    .replaceAll(/\{\w+\}/g, 'x');

interface Seen {
  status: number | undefined;
  headers: string[];
  body: string;
}

/** Everything that the caller gets to see, with what it named itself left out. */
async function seen(
  api: TestApi,
  [id, route]: [string, Route],
  names: Names,
  headers: Record<string, string>,
): Promise<Seen> {
  const search = queries[id] === undefined ? '' : `?${named(queries[id], names)}`;
  const json = bodies[id] ?? (typeof route.body === 'object' ? {} : undefined);
  // Filled by value, so that braces of JSON stay.
  const body = json === undefined ? undefined : JSON.stringify(json).replaceAll('{sandbox}', names.sandbox);
  const call = request(`${api.url}${named(fullPathOf(route), names)}${search}`, {
    method: route.method,
    headers: {
      ...headers,
      ...(body === undefined
        ? {}
        : { 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(body) }),
      ...(route.webSocket === undefined
        ? {}
        : {
            ...{ Connection: 'Upgrade', Upgrade: 'websocket', 'Sec-WebSocket-Version': '13' },
            'Sec-WebSocket-Key': Buffer.alloc(16).toString('base64'),
            ...(route.webSocket === '' ? {} : { 'Sec-WebSocket-Protocol': route.webSocket }),
          }),
    },
  });
  const answer = Promise.race([
    once(call, 'response'),
    once(call, 'upgrade').then(([reply, socket]) => {
      socket.destroy();
      return [reply];
    }),
  ]);
  call.end(body);
  const [reply] = (await answer) as [IncomingMessage];
  let text = '';
  // What never ends has answered with its head.
  if (route.endless && reply.statusCode !== undefined && reply.statusCode < 400) reply.destroy();
  else for await (const chunk of reply) text += chunk;
  const without = (it: string) =>
    Object.values(names)
      .reduce((left, name) => left.replaceAll(name, '<named>'), it)
      // What differs between two requests that are the same.
      .replaceAll(/made-\d+|\d{4}-\d\d-\d\dT[\d:.]+Z/g, '<made>');
  const kept: string[] = [];
  for (let at = 0; at < reply.rawHeaders.length; at += 2)
    if (!/^(date|x-request-id|content-length)$/i.test(reply.rawHeaders[at] ?? ''))
      kept.push(`${reply.rawHeaders[at]}: ${without(reply.rawHeaders[at + 1] ?? '')}`);
  return { status: reply.statusCode, headers: kept, body: without(text) };
}

const strange: Names = {
  sandbox: 'd4d4d4d4-0000-4000-8000-000000000004',
  project: 'delta',
  rule: 'rule-of-delta',
  question: 'question-of-delta',
  key: '0123456789ab',
  snapshot: 'f6f6f6f6-0000-4000-8000-000000000006',
};

const ofAlpha = ({ api, tenants }: Pick<Neighbours, 'api' | 'tenants'>, sandbox: string): Names => ({
  ...{ sandbox, project: 'alpha', rule: 'rule-of-alpha', question: 'question-of-alpha' },
  key: tenants.keys('alpha')[0]?.id ?? '',
  snapshot: api.snapshots.list({ sandboxId: ids.alpha })[0]?.id ?? '',
});

const forProjects = everyRoute.filter(([, it]) => it.access !== 'open');

test.each(
  forProjects,
)('%s answers a key of another project as if what it names were not there', async (id, route) => {
  const { api, tenants, keyOf } = await neighbours();
  await using _ = api;
  keyOf('alpha');
  const headers = { [keyHeader]: keyOf('beta') };
  const unknown = await seen(api, [id, route], strange, headers);
  // By id, by name, by the beginning of an id; of one that is there, that is gone, and of the owner's.
  const before = JSON.stringify([api.network.kept, [...api.network.open], [...api.service.sandboxes]]);
  for (const sandbox of [
    ...[
      ids.alpha,
      'alpha-web',
      ids.alpha.slice(0, 6),
      `${ids.gone}-alpha`,
      'alpha-gone',
      ids.owners,
      'owners-web',
    ],
  ]) {
    const foreign = await seen(api, [id, route], ofAlpha({ api, tenants }, sandbox), headers);
    expect({ id, sandbox, ...foreign }).toEqual({ id, sandbox, ...unknown });
  }
  // Where it is about one thing, there is none.
  if (route.tenant?.scope === 'sandbox' || route.tenant?.scope === 'project')
    expect(unknown.status).toBe(404);
  if (route.tenant === undefined) expect(unknown.status).toBe(403);
  // Neither was there, so nothing has changed but what the key made itself.
  if (id !== 'createSandbox')
    expect(JSON.stringify([api.network.kept, [...api.network.open], [...api.service.sandboxes]])).toBe(
      before,
    );
});

test('a snapshot of another project is nothing to make a sandbox of, by its id or by its image', async () => {
  const { api, keyOf } = await neighbours();
  await using _ = api;
  const headers = { [keyHeader]: keyOf('beta') };
  const [{ id, image }] = api.snapshots.list({ sandboxId: ids.alpha }) as [SnapshotRecord];
  const asked = async (body: object) => {
    const { status, json } = await api.call('POST', '/v1/sandboxes', body, headers);
    return [status, json.code];
  };
  expect(await asked({ snapshotId: id })).toEqual([404, 'SNAPSHOT::NOT_FOUND']);
  expect(await asked({ snapshotId: strange.snapshot })).toEqual([404, 'SNAPSHOT::NOT_FOUND']);
  expect(await asked({ image: { uri: image } })).toEqual([400, 'SANDBOX::INVALID_PARAMETER']);
  expect(api.service.created).toEqual([]);
  const own = { [keyHeader]: keyOf('alpha') };
  const made = await api.call('POST', '/v1/sandboxes', { snapshotId: id }, own);
  expect([made.status, made.json.entrypoint]).toEqual([202, ['tail', '-f', '/dev/null']]);
  expect(api.service.created).toMatchObject([{ snapshotId: id, image, project: { name: 'alpha' } }]);
});

test.each(forProjects)('%s does for a key of the project itself what the table says', async (id, route) => {
  const { api, tenants, keyOf } = await neighbours();
  await using _ = api;
  keyOf('alpha');
  const names = ofAlpha({ api, tenants }, ids.alpha);
  const { status, body } = await seen(api, [id, route], names, { [keyHeader]: keyOf('alpha') });
  if (route.tenant === undefined) return expect({ id, status }).toEqual({ id, status: 403 });
  expect({
    id,
    refused: status === 401 || status === 403 || /there is no (sandbox|project)/.test(body),
  }).toEqual({
    id,
    refused: false,
  });
});

test.each(forProjects)('%s is refused to roles below the one that the table names', async (id, route) => {
  const { api, tenants, keyOf } = await neighbours();
  await using _ = api;
  keyOf('alpha');
  const names = ofAlpha({ api, tenants }, ids.alpha);
  for (const role of ['viewer', 'member', 'admin'] as const) {
    const { status, body } = await seen(api, [id, route], names, { [keyHeader]: keyOf('alpha', role) });
    const order = ['viewer', 'member', 'admin'];
    const may = route.tenant !== undefined && order.indexOf(role) >= order.indexOf(route.tenant.role);
    expect({ id, role, may: status !== 403, body }).toEqual({ id, role, may, body });
    if (may) return;
  }
});

test('what a viewer may call changes nothing', () => {
  const changing = everyRoute.filter(
    ([, it]) => it.tenant?.role === 'viewer' && it.method !== 'GET' && it.webSocket === undefined,
  );
  // They ask what would be, and keep nothing.
  expect(changing.map(([id]) => id).sort()).toEqual(['checkPolicy', 'learnPolicy', 'reportEvent']);
  const talking = everyRoute.filter(([, it]) => it.tenant?.role === 'viewer' && it.webSocket !== undefined);
  expect(talking).toEqual([]);
});

test('ports of guests are reached by members of their own project alone', async () => {
  const { api, keyOf } = await neighbours();
  await using _ = api;
  const get = async (key: string, id: string) => {
    const reply = await fetch(`${api.url}/sandboxes/${id}/proxy/8080/`, { headers: { [keyHeader]: key } });
    return { status: reply.status, body: (await reply.text()).replaceAll(id, '<id>') };
  };
  // Nothing listens there, which only those who may look get to know.
  expect((await get(keyOf('alpha', 'member'), ids.alpha)).status).toBe(502);
  expect((await get(keyOf('alpha', 'viewer'), ids.alpha)).status).toBe(403);
  const beta = keyOf('beta');
  const unknown = await get(beta, strange.sandbox);
  expect(unknown.status).toBe(404);
  for (const id of [ids.alpha, ids.owners]) expect(await get(beta, id)).toEqual(unknown);
});

test('lists hold what is of the project, and nothing else', async () => {
  const { api, keyOf } = await neighbours();
  await using _ = api;
  const headers = { [keyHeader]: keyOf('beta') };
  const get = async (path: string) => (await api.call('GET', path, undefined, headers)).text;
  for (const path of [
    ...['/v1/sandboxes', '/v1/sandboxes?metadata=glovebox.name%3Dalpha-web', '/v1/policy/rules'],
    ...['/v1/network/log', '/v1/network/questions', '/v1/projects', '/v1/projects/beta/keys', '/v1/agents'],
    ...['/v1/templates', '/v1/images'],
  ])
    expect({ path, text: await get(path) }).toEqual({
      path,
      text: expect.not.stringMatching(/alpha|a1a1a1a1/),
    });
  const items = async (path: string) => JSON.parse(await get(path)).items;
  expect((await items('/v1/sandboxes')).map((it: { id: string }) => it.id)).toEqual([ids.beta]);
  expect((await items('/v1/policy/rules')).map((it: { id: string }) => it.id)).toEqual(['rule-of-beta']);
  expect((await items('/v1/network/log')).map((it: { host: string }) => it.host)).toEqual(['beta.example']);
  expect((await items('/v1/network/questions')).map((it: { id: string }) => it.id)).toEqual([
    'question-of-beta',
  ]);
  expect((await items('/v1/projects')).map((it: { name: string }) => it.name)).toEqual(['beta']);
  // The administrator sees all of it.
  const all = await api.call('GET', '/v1/sandboxes');
  expect(all.json.items.map((it: { glovebox: { project?: string } }) => it.glovebox.project)).toEqual([
    ...['beta', 'alpha', undefined, undefined],
  ]);
});

test('who follows a log or questions is told of the own project only', async () => {
  const { api, keyOf } = await neighbours();
  await using _ = api;
  const headers = { [keyHeader]: keyOf('beta') };
  const linesOf = async (path: string) => {
    const call = request(`${api.url}${path}`, { headers }).end();
    const [reply] = (await once(call, 'response')) as [IncomingMessage];
    const state = { text: '', call };
    reply.setEncoding('utf8').on('data', (text: string) => {
      state.text += text;
    });
    reply.on('error', () => undefined);
    return state;
  };
  const log = await linesOf('/v1/network/log?follow=true');
  const questions = await linesOf('/v1/network/questions?follow=true');
  await vi.waitFor(() => expect(api.network.followers).toBe(2));
  api.network.happen({ sandbox: ids.alpha, host: 'later.alpha.example' });
  api.network.happen({ sandbox: ids.beta, host: 'later.beta.example' });
  api.network.ask('later-of-alpha', ids.alpha);
  api.network.ask('later-of-beta', ids.beta);
  await vi.waitFor(() => expect(log.text).toContain('later.beta.example'));
  await vi.waitFor(() => expect(questions.text).toContain('later-of-beta'));
  expect(log.text + questions.text).not.toMatch(/alpha/);
  log.call.destroy();
  questions.call.destroy();
});

test('the key decides whose a new sandbox is, whatever the request says and whoever sends it', async () => {
  const { api, keyOf } = await neighbours();
  await using _ = api;
  const headers = { [keyHeader]: keyOf('beta', 'member'), 'Glovebox-Owner': testOwnerKey };
  const made = await api.call('POST', '/v1/sandboxes', { image: { uri: 'host' } }, headers);
  expect(made).toMatchObject({ status: 202, json: { glovebox: { project: 'beta' } } });
  expect(api.service.created.at(-1)).toMatchObject({ project: { name: 'beta' }, byOwner: false });
  const forged = { image: { uri: 'host' }, glovebox: { project: 'alpha' } };
  expect((await api.call('POST', '/v1/sandboxes', forged, headers)).status).toBe(400);
  expect((await api.call('POST', '/v1/sandboxes', { image: { uri: 'host' } })).json.glovebox.project).toBe(
    undefined,
  );
});

const beyond: [string, object][] = [
  ['volumes', { volumes: [{ name: 'v', mountPath: '/mnt', host: { path: '/etc' } }] }],
  [
    'volumes',
    {
      volumes: [
        {
          ...{ name: 'v', mountPath: '/v' },
          ossfs: { bucket: 'data', endpoint: 'a.example', accessKeyId: 'a', accessKeySecret: 'b' },
        },
      ],
    },
  ],
  ['glovebox.workspaces', { glovebox: { workspaces: [{ path: '/home', mode: 'mount' }] } }],
  ['glovebox.bell', { glovebox: { bell: {} } }],
  ['glovebox.worker', { glovebox: { worker: 'w1' } }],
  ['extensions', { extensions: { 'glovebox.runtime': 'memory' } }],
  ['publish 0.0.0.0', { glovebox: { ports: [{ sandboxPort: 80, hostIp: '0.0.0.0' }] } }],
];
test.each(beyond)('%s is nothing that a project may ask for', async (field, part) => {
  const { api, keyOf } = await neighbours();
  await using _ = api;
  const headers = { [keyHeader]: keyOf('beta'), 'Glovebox-Owner': testOwnerKey };
  const answer = await api.call('POST', '/v1/sandboxes', { image: { uri: 'host' }, ...part }, headers);
  expect(answer.status).toBe(403);
  expect(answer.json.message).toContain(field);
  expect(api.service.created).toEqual([]);
});

test('rules and answers of projects are for their sandboxes only', async () => {
  const { api, keyOf } = await neighbours();
  await using _ = api;
  const headers = { [keyHeader]: keyOf('beta') };
  const rule = { decision: 'allow', resources: ['**'] };
  expect((await api.call('POST', '/v1/policy/rules', rule, headers)).status).toBe(403);
  const always = { allow: true, scope: 'always' };
  expect((await api.call('POST', '/v1/network/questions/question-of-beta', always, headers)).status).toBe(
    403,
  );
  expect(api.network.open.has('question-of-beta')).toBe(true);
  const own = await api.call('POST', '/v1/policy/rules', { ...rule, sandbox: 'beta-web' }, headers);
  expect(own).toMatchObject({ status: 201, json: { sandboxId: ids.beta } });
});

test('a key that has expired opens nothing and says so, to who has all of it', async () => {
  let now = new Date('2026-01-01T00:00:00Z');
  const { api, tenants } = await neighbours({ now: () => now });
  await using _ = api;
  const { key } = tenants.createKey('beta', { role: 'member', expiresAt: '2026-01-01T01:00:00Z' });
  const get = (text: string) => api.call('GET', '/v1/sandboxes', undefined, { [keyHeader]: text });
  expect((await get(key)).status).toBe(200);
  now = new Date('2026-01-01T01:00:00Z');
  const expired = await get(key);
  expect(expired).toMatchObject({ status: 401, json: { code: 'INVALID_API_KEY' } });
  expect(expired.json.message).toMatch(/has expired at 2026-01-01T01:00:00/);
  const wrong = await get(`${key.slice(0, -1)}${key.endsWith('A') ? 'B' : 'A'}`);
  expect(wrong).toMatchObject({ status: 401, json: { message: `the API key in ${keyHeader} is wrong` } });
  expect(() => tenants.createKey('beta', { role: 'member', expiresAt: '2026-01-01T00:59:00Z' })).toThrow(
    /expiresAt: .* is not in the future/,
  );
});

const wrongKeys = ['', 'gbx_', 'gbx_0123456789ab_', `gbx_0123456789ab_${'A'.repeat(43)}`, 'x'.repeat(10_000)];
test.each(wrongKeys)('no key: %j', async (key) => {
  const { api } = await neighbours();
  await using _ = api;
  const headers = { [keyHeader]: key };
  expect((await api.call('GET', '/v1/sandboxes', undefined, headers)).status).toBe(401);
});

const closed = (socket: WebSocket) => once(socket, 'close') as Promise<[number, Buffer]>;

test.each([
  'revoked',
  'expired',
  'removed',
] as const)('what a key has open is cut when it is %s', async (end) => {
  let expire = () => {};
  const now = () => new Date();
  const { api, tenants, keyOf } = await neighbours({ now });
  await using _ = api;
  const soon = new Date(Date.now() + 1_000);
  const { key, id } =
    end === 'expired'
      ? tenants.createKey('beta', { role: 'member', expiresAt: soon.toISOString() })
      : tenants.createKey('beta', { role: 'member' });
  expire = () => undefined;
  const other = keyOf('beta');
  const open = async (text: string) => {
    const socket = new WebSocket(`${api.url}/v1/sandboxes/${ids.beta}/hold`, {
      headers: { [keyHeader]: text },
    });
    await once(socket, 'open');
    return socket;
  };
  const cut = await open(key);
  const stays = await open(other);
  const over = closed(cut);
  const stream = request(`${api.url}/v1/network/log?follow=true`, { headers: { [keyHeader]: key } }).end();
  const [reply] = (await once(stream, 'response')) as [IncomingMessage];
  reply.on('error', () => undefined).resume();
  const streamOver = once(reply, 'close');
  expire();
  if (end === 'revoked') tenants.revokeKey('beta', id);
  if (end === 'removed') {
    const removed = await api.call('DELETE', '/v1/projects/beta?sandboxes=true');
    expect(removed.status).toBe(204);
    expect([...api.service.sandboxes.keys()]).toEqual(['s', ids.owners, ids.alpha]);
  }
  const [code, reason] = await over;
  expect({ code, reason: reason.toString() }).toEqual({ code: 1008, reason: expect.stringContaining(id) });
  await streamOver;
  expect((await api.call('GET', '/v1/sandboxes', undefined, { [keyHeader]: key })).status).toBe(401);
  // Others of the project go on, where there is still one.
  if (end !== 'removed') expect(stays.readyState).toBe(WebSocket.OPEN);
  stays.terminate();
});

test('a request whose key is revoked while its body comes does nothing', async () => {
  const { api, tenants } = await neighbours();
  await using _ = api;
  const { key, id } = tenants.createKey('beta', { role: 'member' });
  const call = request(`${api.url}/v1/sandboxes`, { method: 'POST', headers: { [keyHeader]: key } });
  const answered = once(call, 'response') as Promise<[IncomingMessage]>;
  call.write('{"image":{"uri":');
  await vi.waitFor(() => expect(tenants.keys('beta').find((it) => it.id === id)?.lastUsedAt).toBeDefined());
  tenants.revokeKey('beta', id);
  call.end('"host"}}');
  const [reply] = await answered;
  reply.resume();
  expect(reply.statusCode).toBe(401);
  expect(api.service.created).toEqual([]);
});

test('what an endpoint gives to a key opens that sandbox, as that key, and no longer than the key does', async () => {
  const { api, tenants } = await neighbours();
  await using _ = api;
  const { key, id } = tenants.createKey('beta', { role: 'member' });
  const endpoint = await api.call('GET', `/v1/sandboxes/${ids.beta}/endpoints/44772`, undefined, {
    [keyHeader]: key,
  });
  const token = endpoint.json.headers['OpenSandbox-Secure-Access'] as string;
  expect(token).not.toContain(`token-of-${ids.beta}`);
  const ping = async (sandbox: string, given = token) => {
    const headers = { 'OpenSandbox-Secure-Access': given };
    return (await fetch(`${api.url}/sandboxes/${sandbox}/proxy/44772/ping`, { headers })).status;
  };
  expect(await ping(ids.beta)).toBe(200);
  expect(await ping(ids.alpha)).toBe(401);
  expect(await ping(ids.owners)).toBe(401);
  const other = token.replace(/^gbe_[0-9a-f]{12}/, `gbe_${tenants.createKey('alpha', { role: 'admin' }).id}`);
  expect(await ping(ids.beta, other)).toBe(401);
  tenants.revokeKey('beta', id);
  expect(await ping(ids.beta)).toBe(401);
});

test('each key, and a project, has a rate; beyond it there is 429 with Retry-After, until time has passed', async () => {
  let nowMs = 0;
  const { api, tenants, keyOf } = await neighbours({
    monotonicMs: () => nowMs,
    limits: { key: { perMinute: 60, burst: 3 } },
  });
  await using _ = api;
  const get = (key: string) => api.call('GET', '/v1/sandboxes', undefined, { [keyHeader]: key });
  const [one, two] = [keyOf('beta'), keyOf('beta')];
  for (let at = 0; at < 3; at++) expect((await get(one)).status).toBe(200);
  const refused = await get(one);
  expect(refused).toMatchObject({ status: 429, json: { code: 'TOO_MANY_REQUESTS' } });
  expect(refused.headers.get('retry-after')).toBe('1');
  // Nobody else's.
  expect((await get(two)).status).toBe(200);
  expect((await get(testKey)).status).toBe(200);
  nowMs += 1_000;
  expect((await get(one)).status).toBe(200);
  expect((await get(one)).status).toBe(429);
  tenants.setQuotas('beta', { requestsPerMinute: 1 });
  nowMs += 60_000;
  expect((await get(one)).status).toBe(200);
  const ofAll = await get(two);
  expect({ status: ofAll.status, after: ofAll.headers.get('retry-after') }).toEqual({
    status: 429,
    after: '60',
  });
});

test('who fails too often is told to wait; whoever has a key at the same address comes in', async () => {
  let nowMs = 0;
  const { api, keyOf } = await neighbours({
    monotonicMs: () => nowMs,
    limits: { failures: { perMinute: 6, burst: 2 } },
  });
  await using _ = api;
  const get = (key: string) => api.call('GET', '/v1/sandboxes', undefined, { [keyHeader]: key });
  expect((await get('wrong')).status).toBe(401);
  expect((await get('')).status).toBe(401);
  const refused = await get('wrong');
  expect({ status: refused.status, after: refused.headers.get('retry-after') }).toEqual({
    status: 429,
    after: '10',
  });
  expect((await get(testKey)).status).toBe(200);
  expect((await get(keyOf('beta'))).status).toBe(200);
  nowMs += 10_000;
  expect((await get('wrong')).status).toBe(401);
});

test('a project has so many requests under way at the most, and others go on', async () => {
  const { api, tenants, keyOf } = await neighbours();
  await using _ = api;
  const key = keyOf('beta');
  const [tenant] = [tenants.holderOf(key)];
  if (tenant === undefined) throw new Error('no tenant');
  const held = Array.from({ length: 256 }, () => tenants.follow(tenant, { abort: () => undefined }));
  const get = (text: string) => api.call('GET', '/v1/sandboxes', undefined, { [keyHeader]: text });
  const refused = await get(key);
  expect({ status: refused.status, after: refused.headers.get('retry-after') }).toEqual({
    status: 429,
    after: '1',
  });
  expect((await get(keyOf('alpha'))).status).toBe(200);
  held[0]?.[Symbol.dispose]();
  expect((await get(key)).status).toBe(200);
});

test('the audit log names the project and the key', async () => {
  const { api, tenants } = await neighbours();
  await using _ = api;
  const { key, id } = tenants.createKey('beta', { role: 'member' });
  await api.call('DELETE', `/v1/sandboxes/${ids.beta}`, undefined, { [keyHeader]: key });
  await api.call('DELETE', `/v1/sandboxes/${ids.alpha}`, undefined, { [keyHeader]: key });
  await api.call('POST', '/v1/projects', { name: 'mine' }, { [keyHeader]: key });
  expect(api.audit.entries.filter((it) => it.by === 'project')).toMatchObject([
    { operation: 'deleteSandbox', sandbox: ids.beta, project: 'beta', key: id, status: 204 },
    { operation: 'createProject', project: 'beta', key: id, status: 403, event: 'refused' },
  ]);
});

test('projects and keys outlive the daemon; of the keys only hashes are on the disk', () => {
  const projects = records<Parameters<ReturnType<typeof records>['save']>[1]>();
  const keys = records<Parameters<ReturnType<typeof records>['save']>[1]>();
  const open = () =>
    new Tenants({ projects, keys, now: () => new Date() } as ConstructorParameters<typeof Tenants>[0]);
  const before = open();
  before.create({ name: 'beta', quotas: { sandboxes: 3 } });
  const { key, id } = before.createKey('beta', { role: 'admin', label: 'ci' });
  const after = open();
  expect(after.get('beta').quotas).toEqual({ sandboxes: 3 });
  expect(after.holderOf(key)).toMatchObject({ keyId: id, role: 'admin', project: { name: 'beta' } });
  const [, secret = ''] = /^gbx_[^_]+_(.{40,})$/.exec(key) ?? [];
  expect(secret).not.toBe('');
  expect(JSON.stringify([...keys.kept.values()])).not.toContain(secret);
  expect(JSON.stringify(after.keys('beta'))).not.toContain('hash');
  after.revokeKey('beta', id);
  expect(open().holderOf(key)).toBe(undefined);
});

const wrongProjects: [string, unknown][] = [
  ['no name', {}],
  ['capitals', { name: 'Beta' }],
  ['a path', { name: '../x' }],
  ['too long', { name: 'x'.repeat(41) }],
  ['a negative quota', { name: 'x', quotas: { sandboxes: -1 } }],
  ['no cores', { name: 'x', quotas: { cpu: 0 } }],
  ['an unknown quota', { name: 'x', quotas: { disks: 1 } }],
];
test.each(wrongProjects)('a project with %s is refused', async (_what, body) => {
  const { api } = await neighbours();
  await using _ = api;
  expect((await api.call('POST', '/v1/projects', body)).status).toBe(400);
});

test('a name is taken once, and used again after its project is gone without what that had', async () => {
  const { api, tenants, keyOf } = await neighbours();
  await using _ = api;
  const key = keyOf('beta');
  expect((await api.call('POST', '/v1/projects', { name: 'beta' })).status).toBe(409);
  const kept = await api.call('DELETE', '/v1/projects/beta');
  expect(kept).toMatchObject({ status: 409, json: { message: expect.stringContaining('1 sandbox') } });
  expect((await api.call('DELETE', '/v1/projects/beta?sandboxes=true')).status).toBe(204);
  expect((await api.call('POST', '/v1/projects', { name: 'beta' })).status).toBe(201);
  expect(tenants.holderOf(key)).toBe(undefined);
  const headers = { [keyHeader]: keyOf('beta') };
  expect((await api.call('GET', '/v1/network/log', undefined, headers)).json.items).toEqual([]);
  expect((await api.call('GET', `/v1/sandboxes/${ids.gone}-beta/why`, undefined, headers)).status).toBe(404);
});
