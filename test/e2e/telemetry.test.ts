// A real daemon that sends to a receiver which forgives nothing: one trace from the caller's span down to the steps, the same numbers as /metrics, and
// nothing in it that is secret.
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { OtlpReceiver, plain, type WireSpan } from '../../src/lib/otlp.fixture.ts';
import { call, create, list, remove, run } from '../client.ts';
import { expectNothingLeft, startDaemon, type TestDaemon } from '../daemon.ts';

const traceId = '4bf92f3577b34da6a3ce929d0e0e4736';
const callerSpan = '00f067aa0ba902b7';
const secrets = ['s3cr3t-argument', 's3cr3t-variable', 's3cr3t-content', 's3cr3t-query', 's3cr3t-header'];

describe('a daemon that sends telemetry', { timeout: 300_000 }, () => {
  let daemon: TestDaemon;
  const receiver = new OtlpReceiver();
  beforeAll(async () => {
    daemon = await startDaemon({
      runtime: 'bubblewrap',
      env: {
        OTEL_EXPORTER_OTLP_ENDPOINT: await receiver.listen(),
        OTEL_EXPORTER_OTLP_HEADERS: 'x-key=s3cr3t-header%20two',
        OTEL_SERVICE_NAME: 'boxes',
      },
    });
  });
  afterAll(async () => {
    for (const { id } of await list(daemon).catch(() => [])) await remove(daemon, id);
    await daemon.stop();
    await receiver[Symbol.asyncDispose]();
    await expectNothingLeft(daemon.home);
  });

  const spansOf = (name: string) => receiver.spans.filter((it) => it.name === name);
  const one = async (name: string): Promise<WireSpan> => {
    await vi.waitFor(() => expect(receiver.spans.map((it) => it.name)).toContain(name));
    return spansOf(name)[0] as WireSpan;
  };

  test('a request continues its caller’s trace, with what was done for it inside', async () => {
    const traceparent = `00-${traceId}-${callerSpan}-01`;
    const body = {
      ...{ image: { uri: 'host' }, entrypoint: ['tail', '-f', '/dev/null'], resourceLimits: {} },
      env: { TOKEN: 's3cr3t-variable' },
    };
    const made = await call(daemon, 'POST', '/v1/sandboxes', body, { traceparent });
    expect(made.status).toBe(202);
    const id = String(made.body.id);
    const request = await one('POST /sandboxes');
    expect(request).toMatchObject({ traceId, parentSpanId: callerSpan, kind: 2, status: {} });
    expect(plain(request.attributes)).toMatchObject({
      ...{ 'http.request.method': 'POST', 'http.route': '/sandboxes', 'http.response.status_code': '202' },
      'glovebox.operation': 'createSandbox',
    });
    const creation = await one('sandbox.create');
    expect(creation).toMatchObject({ traceId, parentSpanId: request.spanId });
    expect(plain(creation.attributes)).toMatchObject({ 'sandbox.id': id, runtime: 'bubblewrap' });
    for (const step of ['workspaces', 'machine', 'agent', 'network', 'setup'])
      expect(await one(`sandbox.${step}`)).toMatchObject({ traceId, parentSpanId: creation.spanId });

    await call(daemon, 'PUT', `/v1/sandboxes/${id}/nothing?token=s3cr3t-query`, { text: 's3cr3t-content' });
    expect((await run(daemon, id, 'echo s3cr3t-argument; exit 3')).exitCode).toBe(3);
    const command = await one('command');
    expect(plain(command.attributes)).toMatchObject({ 'command.outcome': 'failed' });
    const around = receiver.spans.find((it) => it.spanId === command.parentSpanId);
    expect(around?.name).toMatch(/^POST .*\/command$/);

    // Refused, because nothing is allowed: that is an attempt, too.
    await run(daemon, id, 'curl -s -m 60 "http://192.0.2.1/path?x=s3cr3t-query" || true');
    await vi.waitFor(() => expect(receiver.spans.some((it) => it.name.startsWith('egress '))).toBe(true));
    const attempt = receiver.spans.find((it) => it.name.startsWith('egress ')) as WireSpan;
    expect(plain(attempt.attributes)).toMatchObject({
      ...{ 'sandbox.id': id, 'server.address': '192.0.2.1', 'glovebox.decision': 'deny' },
    });
    expect(attempt.status).toEqual({ code: 2, message: 'denied' });
    await remove(daemon, id);
  });

  test('who has decided not to sample is not traced', async () => {
    const before = receiver.spans.length;
    const traceparent = `00-${'a'.repeat(32)}-${callerSpan}-00`;
    expect((await call(daemon, 'GET', '/v1/sandboxes', undefined, { traceparent })).status).toBe(200);
    // A later one that is.
    await call(daemon, 'GET', '/v1/sandboxes', undefined, {
      traceparent: `00-${'b'.repeat(32)}-${callerSpan}-01`,
    });
    await vi.waitFor(() => expect(receiver.spans.some((it) => it.traceId === 'b'.repeat(32))).toBe(true));
    expect(receiver.spans.slice(before).some((it) => it.traceId === 'a'.repeat(32))).toBe(false);
  });

  test('at the end what is left is sent, with the numbers of /metrics, well-formed and without a secret', async () => {
    const reply = await fetch(`${daemon.url}/metrics`, {
      headers: { Authorization: `Bearer ${daemon.apiKey}` },
    });
    const text = await reply.text();
    expect(await daemon.stop()).toBe(0);
    expect(receiver.problems).toEqual([]);
    const created = receiver.metrics.find((it) => it.name === 'glovebox_sandboxes_created_total');
    const [, count] = /^glovebox_sandboxes_created_total\{runtime="bubblewrap"\} (\d+)$/m.exec(text) ?? [];
    expect(created).toMatchObject({ sum: { dataPoints: [{ asDouble: Number(count) }] } });
    const names = [...text.matchAll(/^# TYPE (\S+) /gm)].map((it) => it[1] as string);
    const sent = new Set(receiver.metrics.map(({ name }) => name));
    // Those without any number yet are named for scrapers alone.
    const used = names.filter((name) => new RegExp(`^${name}(_count)?[ {]`, 'm').test(text));
    expect(used.filter((name) => !sent.has(name))).toEqual([]);
    expect(receiver.resource).toMatchObject({ 'service.name': 'boxes' });
    expect(receiver.requests[0]?.headers['x-key']).toBe('s3cr3t-header two');
    const all = receiver.requests.map((it) => it.text).join('\n');
    for (const secret of [...secrets, daemon.apiKey]) expect(all).not.toContain(secret);
  });
});

test('a receiver that is not there, or does not answer, slows or breaks nothing', {
  timeout: 300_000,
}, async () => {
  await using silent = new OtlpReceiver();
  silent.instead = () => true;
  for (const endpoint of ['http://127.0.0.1:9', await silent.listen()]) {
    const daemon = await startDaemon({
      runtime: 'bubblewrap',
      env: { GLOVEBOX_TELEMETRY_OTLP_ENDPOINT: endpoint },
    });
    const id = await create(daemon);
    expect(await run(daemon, id, 'echo hi')).toMatchObject({ stdout: 'hi\n', exitCode: 0 });
    await remove(daemon, id);
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(daemon.home);
  }
});

test('OTEL_SDK_DISABLED means that nothing is sent', { timeout: 300_000 }, async () => {
  await using receiver = new OtlpReceiver();
  const env = { OTEL_EXPORTER_OTLP_ENDPOINT: await receiver.listen(), OTEL_SDK_DISABLED: 'true' };
  const daemon = await startDaemon({ runtime: 'bubblewrap', env });
  await call(daemon, 'GET', '/v1/sandboxes');
  expect(await daemon.stop()).toBe(0);
  expect(receiver.requests).toEqual([]);
  await expectNothingLeft(daemon.home);
});
