// Agents and published ports as the server tells of them.
import { afterEach, beforeEach, expect, test } from 'vitest';
import { json, ScriptedServer, sandboxId } from '../../test/scripted-server.ts';
import { SandboxClient } from './index.ts';

let server: ScriptedServer;
let client: SandboxClient;
beforeEach(async () => {
  server = await new ScriptedServer().listen();
  client = new SandboxClient({ url: server.url, apiKey: 'key' });
});
afterEach(() => server[Symbol.asyncDispose]());

const agent = {
  ...{ name: 'claude', description: 'd', command: ['claude'], source: 'built-in', available: ['anthropic'] },
  ...{ install: [], setup: [], env: {}, files: [], hosts: [], rules: [], credentials: ['anthropic'] },
};

test('agents are listed and looked up', async () => {
  server.on('GET', /\/agents$/, (_, response) => json(response, 200, { items: [agent] }));
  server.on('GET', /\/agents\/claude$/, (_, response) => json(response, 200, agent));
  expect(await client.agents.list()).toEqual([agent]);
  expect(await client.agents.get('claude')).toEqual(agent);
});

test('an agent without a command is no agent', async () => {
  server.on('GET', /\/agents\/claude$/, (_, response) =>
    json(response, 200, { ...agent, command: 'claude' }),
  );
  await expect(client.agents.get('claude')).rejects.toMatchObject({ name: 'ProtocolError' });
});

test('ports are published one by one or together, and told as they are', async () => {
  const port = { hostIp: '127.0.0.1', hostPort: 8080, sandboxPort: 80, protocol: 'tcp4' };
  server.on('GET', /\/ports$/, (_, response) =>
    json(response, 200, { items: [{ ...port, problem: 'taken' }] }),
  );
  server.on('POST', /\/ports$/, (_, response) => json(response, 201, { items: [port] }));
  server.on('POST', /\/ports\/unpublish$/, (_, response) => json(response, 200, { unpublished: 2 }));
  const { published } = client.handle(sandboxId);
  expect(await published.list()).toEqual([{ ...port, problem: 'taken' }]);
  expect(await published.publish({ sandboxPort: 80 })).toEqual([port]);
  expect(await published.unpublish([{ sandboxPort: 80 }, { sandboxPort: 81 }])).toBe(2);
  const bodies = server.seen.filter((it) => it.method === 'POST').map((it) => JSON.parse(String(it.body)));
  expect(bodies).toEqual([[{ sandboxPort: 80 }], [{ sandboxPort: 80 }, { sandboxPort: 81 }]]);
});

test('a port that is taken is a ConflictError with the next step', async () => {
  server.on('POST', /\/ports$/, (_, response) =>
    json(
      response,
      409,
      { code: 'X', message: 'port 127.0.0.1:80 of the host is taken' },
      { 'Glovebox-Hint': 'Choose.' },
    ),
  );
  await expect(client.handle(sandboxId).published.publish({ sandboxPort: 80 })).rejects.toMatchObject({
    ...{ name: 'ConflictError', hint: 'Choose.', sandboxId },
  });
});
