// What came of a sandbox, through the SDK, against a server that behaves as the test says.
import { afterEach, beforeEach, expect, test } from 'vitest';
import { json, ScriptedServer, sandboxId } from '../../test/scripted-server.ts';
import { ProtocolError, SandboxClient } from './index.ts';

let server: ScriptedServer;
let client: SandboxClient;
beforeEach(async () => {
  server = await new ScriptedServer().listen();
  client = new SandboxClient({ url: server.url, apiKey: 'key' });
});
afterEach(() => server[Symbol.asyncDispose]());

const at = '2026-01-29T10:15:23.000Z';
const told = {
  ...{ id: sandboxId, name: 'my web', state: 'Gone', reason: 'removed', message: 'removed on request' },
  ...{ since: at, explanation: 'It was removed.', next: 'Create it again.', createdAt: at },
  ending: { at, of: 'main', reason: 'exited', message: 'it ended', exitCode: 3 },
  command: { id: 'c1', command: 'make', startedAt: at, explanation: 'It ended with exit code 2.' },
  commands: [{ id: 'c2', command: 'test', startedAt: at, finishedAt: at, explanation: 'It was killed.' }],
  ...{ refused: [], bell: [] },
};

test('names are escaped, dates are dates, and the rest is as the server says', async () => {
  server.on('GET', /\/why$/, (_, response) => json(response, 200, told));
  const why = await client.why('my web', { command: 'c1' });
  expect(why).toMatchObject({
    ...{ name: 'my web', since: new Date(at), createdAt: new Date(at) },
    ending: { at: new Date(at), exitCode: 3 },
    command: { id: 'c1', startedAt: new Date(at) },
    commands: [{ finishedAt: new Date(at) }],
  });
  const [request] = server.requests('GET', /^\/v1\/sandboxes\/my%20web\/why$/);
  expect([...(request?.query ?? [])]).toEqual([['command', 'c1']]);
});

test.each([
  { since: 'yesterday' },
  { commands: undefined },
  { ending: { at: 'x' } },
  { command: { id: 7 } },
])('an answer with %j is refused', async (wrong) => {
  server.on('GET', /\/why$/, (_, response) => json(response, 200, { ...told, ...wrong }));
  await expect(client.why('web')).rejects.toThrow(ProtocolError);
});
