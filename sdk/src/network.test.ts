// Policy, log, questions and secrets through the SDK, against a server that behaves as the test says.
import type { ServerResponse } from 'node:http';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { empty, json, ScriptedServer, sandboxId } from '../../test/scripted-server.ts';
import { type LogEntry, SandboxClient, SandboxError } from './index.ts';

let server: ScriptedServer;
let client: SandboxClient;

beforeEach(async () => {
  server = await new ScriptedServer().listen();
  client = new SandboxClient({ url: server.url, apiKey: 'key' });
});

afterEach(async () => {
  await server[Symbol.asyncDispose]();
});

const rule = {
  ...{ id: 'r1', decision: 'allow', resources: ['example.com'], protocols: ['tcp'], createdVia: 'added' },
  createdAt: '2026-01-01T00:00:00Z',
};

function entry(seq: number, more: object = {}): object {
  return {
    ...{ seq, at: '2026-01-29T10:15:23Z', sandbox: sandboxId, kind: 'forward', protocol: 'https' },
    ...{ host: 'example.com', port: 443, decision: 'allow', reason: 'rule', ...more },
  };
}

/** What was sent last to a path. */
function sent(method: string, pattern: RegExp): unknown {
  return JSON.parse(server.requests(method, pattern).at(-1)?.body.toString() ?? 'null');
}

async function failureOf(promise: Promise<unknown>): Promise<SandboxError> {
  const error = await promise.then(
    () => undefined,
    (it: unknown) => it,
  );
  expect(error).toBeInstanceOf(SandboxError);
  return error as SandboxError;
}

/** Answers with these lines, then leaves the connection open. */
function stream(pattern: RegExp, ...lines: string[]): Promise<ServerResponse> {
  return new Promise((resolve) => {
    server.on('GET', pattern, (_, response) => {
      response.writeHead(200, { 'content-type': 'application/x-ndjson' });
      for (const line of lines) response.write(line);
      resolve(response);
    });
  });
}

test('each kind of rule is sent as the contract has it', async () => {
  server.on('POST', /^\/v1\/policy\/rules$/, (_, response) => json(response, 201, rule));
  expect(await client.policy.allow('example.com')).toEqual({ ...rule, createdAt: new Date(rule.createdAt) });
  expect(sent('POST', /rules$/)).toEqual({ decision: 'allow', resources: ['example.com'] });
  await client.policy.deny(['a.com', 'b.com'], { sandbox: 'web', methods: ['POST'], path: '/x/**' });
  expect(sent('POST', /rules$/)).toEqual({
    ...{ decision: 'deny', resources: ['a.com', 'b.com'], sandbox: 'web', methods: ['POST'], path: '/x/**' },
  });
  await client.policy.ask('a.com', { name: 'mine' });
  expect(sent('POST', /rules$/)).toEqual({ decision: 'ask', resources: ['a.com'], name: 'mine' });
  await client.policy.bypass('a.com', { protocols: ['tcp'] });
  expect(sent('POST', /rules$/)).toEqual({ decision: 'bypass', resources: ['a.com'], protocols: ['tcp'] });
});

test('rules are listed, removed, initialized, reset and learned', async () => {
  server.on('GET', /^\/v1\/policy\/rules$/, (_, response) =>
    json(response, 200, { initialized: false, items: [rule] }),
  );
  server.on('DELETE', /^\/v1\/policy\/rules\/r1$/, (_, response) => empty(response));
  server.on('POST', /^\/v1\/policy\/init$/, (_, response) => json(response, 200, { items: [rule] }));
  server.on('POST', /^\/v1\/policy\/reset$/, (_, response) => empty(response));
  server.on('GET', /^\/v1\/policy\/presets$/, (_, response) =>
    json(response, 200, { items: [{ name: 'balanced', description: 'common places', rules: [] }] }),
  );
  const learned = { sandbox: sandboxId, rules: [{ decision: 'allow', resources: ['a:443'] }] };
  server.on('POST', /^\/v1\/policy\/learn$/, (_, response) =>
    json(response, 200, { ...learned, replayed: 7, differing: 0 }),
  );
  const list = await client.policy.rules({ sandbox: 'web' });
  expect(list).toMatchObject({ initialized: false, rules: [{ id: 'r1' }] });
  expect(server.requests('GET', /rules$/)[0]?.query.get('sandbox')).toBe('web');
  await client.policy.remove('r1');
  expect(await client.policy.init('balanced')).toMatchObject([{ id: 'r1' }]);
  expect(sent('POST', /init$/)).toEqual({ preset: 'balanced' });
  await client.policy.reset();
  expect(sent('POST', /reset$/)).toEqual({});
  expect(await client.policy.presets()).toMatchObject([{ name: 'balanced' }]);
  expect(await client.policy.learn('web', { paths: true })).toMatchObject({ replayed: 7, ...learned });
  expect(sent('POST', /learn$/)).toEqual({ sandbox: 'web', paths: true });
});

test('a check is sent whole, and a contradiction is a ConflictError with the next step', async () => {
  const answer = { target: 'a:443', decision: 'deny', reason: 'default', message: 'no rule allows it' };
  server.on('POST', /^\/v1\/policy\/check$/, (_, response) => json(response, 200, answer));
  expect(await client.policy.check('a', { sandbox: 'web', method: 'GET', path: '/' })).toEqual(answer);
  expect(sent('POST', /check$/)).toEqual({ target: 'a', sandbox: 'web', method: 'GET', path: '/' });
  server.on('POST', /^\/v1\/policy\/rules$/, (_, response) =>
    json(response, 409, { message: 'deny: "a" conflicts' }, { 'Glovebox-Hint': 'Remove the other.' }),
  );
  expect(await failureOf(client.policy.deny('a'))).toMatchObject({
    ...{
      name: 'ConflictError',
      message: 'add a rule (deny): deny: "a" conflicts',
      hint: 'Remove the other.',
    },
  });
});

test('the log has dates, and an answer of another shape is a ProtocolError', async () => {
  const items = [entry(1, { process: { pid: 7, command: 'curl' } })];
  server.on('GET', /^\/v1\/network\/log$/, (_, response) => json(response, 200, { items }));
  const [first] = await client.network.log({ sandbox: 'web', limit: 5 });
  expect(first).toMatchObject({ seq: 1, at: new Date('2026-01-29T10:15:23Z'), process: { pid: 7 } });
  const { query } = server.requests('GET', /log$/)[0] ?? {};
  expect([...(query ?? [])]).toEqual([
    ['sandbox', 'web'],
    ['limit', '5'],
  ]);
  items.push(entry(2, { port: 'https' }));
  expect(await failureOf(client.network.log())).toMatchObject({
    ...{ name: 'ProtocolError', message: expect.stringMatching(/expected port to be a number, got "https"/) },
  });
});

test('following the log yields entries however they are cut up, and leaving the loop ends the request', async () => {
  const text = `${JSON.stringify(entry(1, { host: 'münchen.example' }))}\n\n${JSON.stringify(entry(2))}\n`;
  const bytes = Buffer.from(text);
  const middle = bytes.indexOf('ü') + 1;
  const opened = new Promise<ServerResponse>((resolve) => {
    server.on('GET', /^\/v1\/network\/log$/, async (_, response) => {
      response.write(bytes.subarray(0, middle));
      await new Promise((done) => setImmediate(done));
      response.write(bytes.subarray(middle));
      resolve(response);
    });
  });
  const seen: LogEntry[] = [];
  for await (const it of client.network.followLog({ sandbox: 'web' })) {
    seen.push(it);
    if (it.seq === 2) break;
  }
  expect(seen.map((it) => it.host)).toEqual(['münchen.example', 'example.com']);
  expect(server.requests('GET', /log$/)[0]?.query.get('follow')).toBe('true');
  const response = await opened;
  if (!response.destroyed) await new Promise((resolve) => response.on('close', resolve));
});

test('a signal ends following with an AbortError, and a server that stops with an UnavailableError', async () => {
  const abort = new AbortController();
  const opened = stream(/^\/v1\/network\/log$/, `${JSON.stringify(entry(1))}\n`);
  const follow = client.network.followLog({ signal: abort.signal });
  expect((await follow.next()).value).toMatchObject({ seq: 1 });
  const next = failureOf(follow.next());
  abort.abort();
  expect(await next).toMatchObject({ name: 'AbortError' });
  await opened;

  const again = client.network.followLog();
  const reopened = stream(/^\/v1\/network\/log$/, `${JSON.stringify(entry(1))}\n`);
  await again.next();
  (await reopened).end();
  expect(await failureOf(again.next())).toMatchObject({ name: 'UnavailableError', retryable: true });
});

test.each([
  ['no JSON', 'hello\n', /a line of the server's answer is not JSON/],
  ['another shape', '{"seq":1}\n', /expected at to be a date, got nothing/],
  ['no end', 'x'.repeat(2 * 1024 * 1024), /a line without an end/],
])('following a log with %s fails as a ProtocolError', async (_, line, message) => {
  stream(/^\/v1\/network\/log$/, line);
  const error = await failureOf(client.network.followLog().next());
  expect(error).toMatchObject({ name: 'ProtocolError', message: expect.stringMatching(message) });
});

test('questions are listed, followed and answered', async () => {
  const question = {
    ...{ id: 'q1', at: '2026-01-01T00:00:00Z', until: '2026-01-01T00:00:30Z', sandbox: sandboxId },
    ...{ host: 'example.com', port: 443, protocol: 'https' },
  };
  server.on('GET', /^\/v1\/network\/questions$/, (_, response) => json(response, 200, { items: [question] }));
  server.on('POST', /^\/v1\/network\/questions\/q1$/, (_, response) => empty(response));
  expect(await client.network.questions()).toMatchObject([{ id: 'q1', until: new Date(question.until) }]);
  await client.network.answer('q1', { allow: true, scope: 'always' });
  expect(sent('POST', /questions/)).toEqual({ allow: true, scope: 'always' });
  stream(/^\/v1\/network\/questions$/, `${JSON.stringify(question)}\n`);
  const follow = client.network.followQuestions();
  expect((await follow.next()).value).toMatchObject({ id: 'q1', at: new Date(question.at) });
  await follow.return(undefined);
});

test('secrets go out with their value and come back without', async () => {
  const info = {
    ...{ id: 's1', name: 'github', service: true, sourceType: 'value', masked: 'gho_****', placeholder: 'p' },
    ...{ env: ['GH_TOKEN'], bindings: [{ hosts: ['api.github.com'], ports: [443] }] },
    createdAt: '2026-01-01T00:00:00Z',
  };
  server.on('PUT', /^\/v1\/secrets$/, (_, response) => json(response, 200, info));
  server.on('GET', /^\/v1\/secrets$/, (_, response) => json(response, 200, { items: [info] }));
  server.on('DELETE', /^\/v1\/secrets\/s1$/, (_, response) => empty(response));
  const secret = { name: 'github', source: { type: 'value' as const, value: 'gho_very-secret' } };
  expect(await client.secrets.set(secret)).toMatchObject({ id: 's1', createdAt: new Date(info.createdAt) });
  expect(sent('PUT', /secrets$/)).toEqual(secret);
  expect(await client.secrets.list({ sandbox: 'web' })).toMatchObject([{ name: 'github' }]);
  expect(server.requests('GET', /secrets$/)[0]?.query.get('sandbox')).toBe('web');
  await client.secrets.remove('s1');
  expect(server.requests('DELETE', /secrets\/s1$/)).toHaveLength(1);
});

test('the proxy configuration of a sandbox, read and changed', async () => {
  const path = new RegExp(`^/v1/sandboxes/${sandboxId}/network$`);
  server.on('GET', path, (_, response) => json(response, 200, {}));
  const lists = { allowedDomains: ['a.com'], blockedDomains: [], bypassDomains: [] };
  const config = {
    policy: 'deny',
    network: { ...lists, allowCIDR: [], blockCIDR: [], bypassCIDR: [] },
  };
  server.on('PATCH', path, (_, response) => json(response, 200, config));
  const { network } = client.handle(sandboxId);
  expect(await network.proxyConfig()).toEqual({});
  expect(await network.changeProxyConfig({ policy: 'deny', allowHosts: ['a.com'] })).toEqual(config);
  expect(sent('PATCH', path)).toEqual({ policy: 'deny', allowHosts: ['a.com'] });
  server.on('PATCH', path, (_, response) => json(response, 200, { policy: 'deny', network: lists }));
  expect(await failureOf(network.changeProxyConfig({}))).toMatchObject({ name: 'ProtocolError' });
});

test('create carries rules and a policy of its own', async () => {
  const networkPolicy = {
    defaultAction: 'deny' as const,
    egress: [{ action: 'allow' as const, target: '*.python.org' }],
  };
  await client.create({ networkPolicy, rules: [{ decision: 'allow', resources: ['pypi.org'] }] });
  expect(sent('POST', /^\/v1\/sandboxes$/)).toMatchObject({
    networkPolicy,
    glovebox: { rules: [{ decision: 'allow', resources: ['pypi.org'] }] },
  });
  await client.create();
  expect(sent('POST', /^\/v1\/sandboxes$/)).not.toHaveProperty('glovebox');
  expect(sent('POST', /^\/v1\/sandboxes$/)).not.toHaveProperty('networkPolicy');
});
