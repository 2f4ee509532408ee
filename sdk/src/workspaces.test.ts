// Folders of the host in sandboxes through the client: what is asked of the server, and what its answers become.
import { afterEach, beforeEach, expect, test } from 'vitest';
import { json, ScriptedServer, sandboxId } from '../../test/scripted-server.ts';
import { SandboxClient, type Workspaces } from './index.ts';

let server: ScriptedServer;
let workspaces: Workspaces;

beforeEach(async () => {
  server = await new ScriptedServer().listen();
  workspaces = new SandboxClient({ url: server.url, apiKey: 'key' }).handle(sandboxId).workspaces;
});

afterEach(async () => {
  await server[Symbol.asyncDispose]();
});

const base = `/v1/sandboxes/${sandboxId}/workspaces`;
const answers = (method: string, path: string, value: unknown, status = 200) =>
  server.on(method, new RegExp(`^${base}${path}$`), (_, response) => json(response, status, value));
const last = () => {
  const { method, path, query, body } = server.seen.at(-1) as (typeof server.seen)[number];
  const sent = body.length > 0 ? { body: JSON.parse(body.toString()) } : {};
  return { asked: `${method} ${path.replace(base, '')}`, query: Object.fromEntries(query), ...sent };
};
const checkpoint = {
  ...{ id: 'c3', at: '2026-01-01T00:00:00Z', label: 'npm test', automatic: true, changed: 2 },
};

test('workspaces are listed with what their mode knows', async () => {
  const one = {
    path: '/w',
    mode: 'clone',
    readOnly: false,
    hide: ['.env'],
    remote: 'glovebox-x',
    unfetched: 2,
  };
  answers('GET', '', { items: [one] });
  expect(await workspaces.list()).toEqual([one]);
});

test('changes and a patch are those of the workspace that is named, or of the first', async () => {
  const change = { path: 'a', kind: 'modified', type: 'file', added: 1, removed: 0, conflict: false };
  answers('GET', '/changes', { items: [change] });
  expect(await workspaces.changes()).toEqual([change]);
  expect(last()).toEqual({ asked: 'GET /changes', query: {} });
  await workspaces.changes({ workspace: '/w' });
  expect(last().query).toEqual({ path: '/w' });
  const patch = Buffer.from([0x2b, 0xff, 0x0a]);
  server.on('GET', /\/diff$/, (_, response) => void response.writeHead(200).end(patch));
  expect(await workspaces.diff({ workspace: '/w' })).toEqual(new Uint8Array(patch));
  expect(last()).toEqual({ asked: 'GET /diff', query: { path: '/w' } });
});

test('apply tells what could not be brought, and throws nothing for it', async () => {
  const result = {
    ...{ applied: ['a'], merged: ['b'] },
    conflicts: [{ path: 'c', reason: 'both' }],
    refused: [{ path: 'd', reason: 'a device' }],
  };
  answers('POST', '/apply', result);
  expect(await workspaces.apply()).toEqual(result);
  expect(last()).toEqual({ asked: 'POST /apply', query: {}, body: {} });
  await workspaces.apply({
    ...{ workspace: '/w', paths: ['a'], patch: 'p', conflicts: 'theirs', dryRun: true },
    signal: AbortSignal.timeout(60_000),
  });
  expect(last().body).toEqual({
    ...{ path: '/w', paths: ['a'], patch: 'p', conflicts: 'theirs', dryRun: true },
  });
});

test('discard tells the paths', async () => {
  answers('POST', '/discard', { discarded: ['a', 'b'] });
  expect(await workspaces.discard()).toEqual(['a', 'b']);
  expect(last()).toEqual({ asked: 'POST /discard', query: {}, body: {} });
  await workspaces.discard({ workspace: '/w', paths: ['a'] });
  expect(last().body).toEqual({ path: '/w', paths: ['a'] });
});

test('checkpoints have dates; undo goes to one, or to where the server says', async () => {
  const made = { ...checkpoint, at: new Date(checkpoint.at) };
  answers('GET', '/checkpoints', { items: [checkpoint] });
  answers('POST', '/checkpoints', checkpoint, 201);
  answers('POST', '/undo', { checkpoint, restored: ['a'] });
  expect(await workspaces.checkpoints()).toEqual([made]);
  expect(await workspaces.checkpoint('here')).toEqual(made);
  expect(last().body).toEqual({ label: 'here' });
  expect(await workspaces.undo()).toEqual({ checkpoint: made, restored: ['a'] });
  expect(last().body).toEqual({});
  await workspaces.undo('c3');
  expect(last().body).toEqual({ checkpoint: 'c3' });
});

test('synchronised ones tell when they were alike, and what was kept', async () => {
  const at = '2026-01-01T00:00:00Z';
  const item = {
    path: '/w',
    state: 'halted',
    message: 'm',
    lastAt: at,
    conflicts: [{ path: 'a', kept: 'b', at }],
  };
  answers('GET', '/sync', { items: [item, { path: '/x', state: 'watching', conflicts: [] }] });
  expect(await workspaces.syncStatus()).toEqual([
    { ...item, lastAt: new Date(at), conflicts: [{ path: 'a', kept: 'b', at: new Date(at) }] },
    { path: '/x', state: 'watching', conflicts: [] },
  ]);
});

test('what is refused is an error of its kind, with the next step', async () => {
  server.on('GET', /\/changes$/, (_, response) =>
    json(response, 409, { code: 'X', message: '"/w" is no overlay' }, { 'Glovebox-Hint': 'Use --overlay.' }),
  );
  await expect(workspaces.changes()).rejects.toMatchObject({
    ...{ name: 'ConflictError', hint: 'Use --overlay.', sandboxId },
  });
});

const malformed: [string, () => Promise<unknown>, unknown][] = [
  ['workspaces', () => workspaces.list(), { items: [{ path: '/w' }] }],
  ['changes', () => workspaces.changes(), { items: [{ path: 'a', kind: 'added', type: 'file' }] }],
  ['what was applied', () => workspaces.apply(), { applied: [], merged: [] }],
  ['what was discarded', () => workspaces.discard(), { discarded: 'a' }],
  ['checkpoints', () => workspaces.checkpoints(), { items: [{ ...checkpoint, at: 'yesterday' }] }],
  ['what was restored', () => workspaces.undo(), { checkpoint: {}, restored: [] }],
];
test.each(malformed)('an answer about %s that is none is a ProtocolError', async (_, call, value) => {
  server.on('GET', /\/workspaces/, (_, response) => json(response, 200, value));
  server.on('POST', /\/workspaces/, (_, response) => json(response, 200, value));
  await expect(call()).rejects.toMatchObject({ name: 'ProtocolError' });
});
