import { expect, test } from 'vitest';
import { DiagnosticContent, diagnosticBytesMax } from '../../contract/diagnostics.ts';
import { exited, startTestApi, type TestApi } from '../fake.fixture.ts';

const path = '/v1/sandboxes/s/diagnostics';

async function served(output: string): Promise<TestApi> {
  const api = await startTestApi();
  api.service.programs.server = async (io) => {
    io.out(output);
    return exited(3);
  };
  const main = { execId: 'main', argv: ['server'], stdin: 'none' as const, background: true };
  await (await api.service.executions('s').start(main)).exit;
  api.network.happen({ sandbox: 's', host: 'denied.example', decision: 'deny' });
  api.network.happen({ sandbox: 'other', host: 'foreign.example' });
  return api;
}

test.each([
  ['/logs?scope=container', 'logs', 'container', 'one\ntwo\nthree\n'],
  ['/logs?scope=container&tail=1', 'logs', 'container', 'three\n'],
  ['/logs?scope=process', 'logs', 'process', /main ended with 3: server/],
  ['/logs?scope=network', 'logs', 'network', /^\S+Z network deny \w+ (GET )?denied\.example:\d+ \(.+\)\n$/],
  ['/logs?scope=network&since=2100-01-01T00:00:00Z', 'logs', 'network', ''],
  ['/logs?scope=all', 'logs', 'all', /== container ==\none\n[\s\S]*== network ==\n.*denied\.example/],
  ['/events?scope=all', 'events', 'all', /lifecycle created\n[\s\S]*process main started: server\n/],
  ['/events?scope=container&limit=1', 'events', 'container', /^\S+Z process main ended with 3\n$/],
  ['/events?scope=lifecycle', 'events', 'lifecycle', /^\S+Z lifecycle created\n$/],
] as const)('%s is answered as the specification has it', async (query, kind, scope, expected) => {
  await using api = await served('one\ntwo\nthree\n');
  const { status, json } = await api.call('GET', `${path}${query}`);
  expect(status).toBe(200);
  const content = DiagnosticContent.parse(json);
  expect(content).toMatchObject({
    sandboxId: 's',
    kind,
    scope,
    delivery: 'inline',
    contentType: 'text/plain; charset=utf-8',
  });
  if (typeof expected === 'string') expect(content.content).toBe(expected);
  else expect(content.content).toMatch(expected);
  expect(content.content).not.toContain('foreign.example');
  expect(content.contentLength).toBe(Buffer.byteLength(content.content));
  expect(content.truncated).toBe(/tail=1|limit=1/.test(query));
});

test.each([
  ['/logs', /^one\ntwo\n$/],
  ['/events', /process main started/],
  ['/inspect', /"glovebox"[\s\S]*"image"/],
  ['/summary?tail=1&event_limit=2', /== inspect ==[\s\S]*== events ==[\s\S]*== logs ==\ntwo\n$/],
] as const)('%s without a scope is the older text', async (query, expected) => {
  await using api = await served('one\ntwo\n');
  const { status, headers, text } = await api.call('GET', `${path}${query}`);
  expect([status, headers.get('content-type'), headers.get('deprecation')]).toEqual([
    ...[200, 'text/plain; charset=utf-8', 'true'],
  ]);
  expect(text).toMatch(expected);
  expect(text).not.toContain('token-of-s');
});

test.each([
  ['/logs?scope=container&tail=0', 400, 'tail'],
  ['/logs?scope=container&tail=10001', 400, 'tail'],
  ['/logs?scope=', 400, 'scope'],
  ['/logs?scope=kernel', 400, 'scope'],
  ['/logs?scope=network&since=yesterday', 400, 'since'],
  ['/logs?scope=network&since=2026-99-01T00:00:00Z', 400, 'since'],
  ['/events?limit=501', 400, 'limit'],
  ['/processes', 404, ''],
] as const)('%s is refused', async (query, status, named) => {
  await using api = await startTestApi();
  const answer = await api.call('GET', `${path}${query}`);
  expect([answer.status, Object.keys(answer.json)]).toEqual([status, ['code', 'message']]);
  expect(answer.json.message).toContain(named);
});

test('what a guest writes is bounded and commands no terminal', async () => {
  await using api = await served(`\u001b[2Jhidden\u0007\n${'x'.repeat(99)}\n`.repeat(12_000));
  const { json } = await api.call('GET', `${path}/logs?scope=container&tail=10000`);
  expect(json.truncated).toBe(true);
  expect(json.contentLength).toBeLessThanOrEqual(diagnosticBytesMax);
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what it looks for
  expect(json.content).not.toMatch(/[\u0000-\u0008\u000b-\u001f]/);
  expect(json.content).toContain('[2Jhidden\n');
});

test('a sandbox without a main process says so', async () => {
  await using api = await startTestApi();
  const { json } = await api.call('GET', `${path}/logs?scope=container`);
  expect([json.content, json.truncated, json.warnings]).toEqual([
    '',
    false,
    [expect.stringContaining('no main process')],
  ]);
});
