// Sandboxes that are kept, through the client: what is asked of the server, and what its answers become.
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { json, ScriptedServer, sandbox, sandboxId } from '../../test/scripted-server.ts';
import { SandboxClient } from './index.ts';

let server: ScriptedServer;
let client: SandboxClient;

beforeEach(async () => {
  server = await new ScriptedServer().listen();
  client = new SandboxClient({ url: server.url, apiKey: 'key' });
});

afterEach(async () => {
  await server[Symbol.asyncDispose]();
});

const sent = (path: RegExp) => JSON.parse(server.requests('POST', path).at(-1)?.body.toString() || 'null');

test('create asks for what OpenSandbox has no field for in a part of its own', async () => {
  await client.create({
    ...{ agent: 'claude', keep: true, autoStop: '30s', name: 'a-b', user: 'me', cwd: '/w' },
    workspaces: [
      { path: '/w', mode: 'overlay' },
      { path: '/lib', readOnly: true },
    ],
    ports: [{ sandboxPort: 3000, hostPort: 8080 }],
    files: [{ path: '~/x', content: 'y' }],
    setup: [{ run: 'true' }],
  });
  const body = sent(/^\/v1\/sandboxes$/);
  expect(body).not.toHaveProperty('image');
  expect(body.glovebox).toEqual({
    ...{ agent: 'claude', keep: true, autoStopAfterSeconds: 30, user: 'me', cwd: '/w' },
    workspaces: [
      { path: '/w', mode: 'overlay' },
      { path: '/lib', readOnly: true },
    ],
    ports: [{ sandboxPort: 3000, hostPort: 8080 }],
    files: [{ path: '~/x', content: 'y' }],
    setup: [{ run: 'true' }],
  });
  await client.create({ agent: 'claude', autoStop: null, pull: 'always' });
  expect(sent(/^\/v1\/sandboxes$/).glovebox).toEqual({
    ...{ agent: 'claude', autoStopAfterSeconds: null, pull: 'always' },
  });
  await client.create({ autoStop: null, autoPause: '90s', renewOnUse: 600_000 });
  expect(sent(/^\/v1\/sandboxes$/)).toMatchObject({
    glovebox: { autoStopAfterSeconds: null },
    extensions: { 'glovebox.idle.pause.seconds': '90', 'access.renew.extend.seconds': '600' },
  });
  await client.create({ autoPause: null });
  expect(sent(/^\/v1\/sandboxes$/).extensions).toEqual({ 'glovebox.idle.pause.seconds': '0' });
  await client.create();
  expect(sent(/^\/v1\/sandboxes$/)).not.toHaveProperty('glovebox');
  expect(sent(/^\/v1\/sandboxes$/).image).toEqual({ uri: 'host' });
});

test('a server that knows nothing of this gives sandboxes without it', async () => {
  expect(await client.find('web')).toMatchObject({
    ...{ keep: false, workspaces: [], ports: [], holds: 0, commands: 0 },
  });
});

test('wake, stop and save ask for it, and tell what became of it', async () => {
  const stopped = sandbox({ status: { state: 'Stopped' }, glovebox: { keep: true, holds: 1 } });
  server.on('POST', /\/(start|stop)$/, (_, response) => json(response, 200, stopped));
  server.on('POST', /\/save$/, (_, response) =>
    json(response, 201, {
      ...{ name: 'mine:1', runtime: 'docker', id: 'i', sizeBytes: 5, createdAt: '2026-01-01T00:00:00Z' },
    }),
  );
  const handle = client.handle(sandboxId);
  expect(await handle.stop()).toMatchObject({ state: 'Stopped', keep: true, holds: 1 });
  await handle.wake();
  expect(await handle.save('mine:1')).toMatchObject({ name: 'mine:1', sizeBytes: 5 });
  expect(sent(/\/save$/)).toEqual({ name: 'mine:1' });
  expect(server.requests('POST', /\/(start|stop)$/)).toHaveLength(2);
});

test('a hold is a connection, which is made again when it drops, until it is released', async () => {
  const hold = await client.handle(sandboxId).hold();
  expect(server.attachments).toHaveLength(1);
  server.attachments[0]?.connection.destroy();
  while (server.attachments.length < 2) await delay(5);
  const ended = new Promise((resolve) => server.attachments[1]?.socket.on('close', resolve));
  hold.release();
  await ended;
  expect(server.attachments).toHaveLength(2);
});

test('a sandbox that is not there cannot be held', async () => {
  server.refuseAttach = { status: 404, failure: 'not-found' };
  await expect(client.handle(sandboxId).hold()).rejects.toMatchObject({ code: 'not-found' });
});
