// What a scraper reads from a real daemon: well-formed by a reader that forgives nothing, and true of what was done.
import { afterAll, beforeAll, expect, test } from 'vitest';
import { call, create, list, remove, run } from '../client.ts';
import { expectNothingLeft, startDaemon, type TestDaemon, until } from '../daemon.ts';

let daemon: TestDaemon;
beforeAll(async () => {
  daemon = await startDaemon({ runtime: 'bubblewrap' });
});
afterAll(async () => {
  for (const { id } of await list(daemon)) await remove(daemon, id);
  expect(await daemon.stop()).toBe(0);
  await expectNothingLeft(daemon.home);
});

interface Scraped {
  types: Map<string, string>;
  /** By name and labels as they are written. */
  values: Map<string, number>;
}

/** Prometheus' text format 0.0.4, each family whole and once, HELP and TYPE before its samples. Throws at the first thing that is not so. */
function read(text: string): Scraped {
  if (!text.endsWith('\n')) throw new Error('the last line does not end');
  const types = new Map<string, string>();
  const values = new Map<string, number>();
  let family: string | undefined;
  let helped: string | undefined;
  for (const line of text.slice(0, -1).split('\n')) {
    const [, help] = /^# HELP ([a-z_]+) \S.*$/.exec(line) ?? [];
    const [, typed, type] = /^# TYPE ([a-z_]+) (counter|gauge|histogram)$/.exec(line) ?? [];
    if (help !== undefined) {
      if (types.has(help)) throw new Error(`${help} comes twice`);
      helped = help;
      family = undefined;
    } else if (typed !== undefined && type !== undefined) {
      if (typed !== helped) throw new Error(`TYPE of ${typed} behind HELP of ${helped}`);
      if ((type === 'counter') !== typed.endsWith('_total')) throw new Error(`${typed} is a ${type}`);
      types.set(typed, type);
      family = typed;
    } else {
      const sample =
        /^([a-z_]+)(\{(?:[a-z_]+="(?:[^"\\]|\\[\\n"])*",?)+\})? (\d+(?:\.\d+)?(?:e[+-]\d+)?|\+Inf)$/.exec(
          line,
        );
      if (sample === null || family === undefined) throw new Error(`no sample: ${line}`);
      const [, name = '', labels = '', value] = sample;
      const suffixes = types.get(family) === 'histogram' ? ['_bucket', '_sum', '_count'] : [''];
      if (!suffixes.some((suffix) => name === family + suffix)) throw new Error(`${name} in ${family}`);
      if (values.has(name + labels)) throw new Error(`${name}${labels} comes twice`);
      values.set(name + labels, value === '+Inf' ? Number.POSITIVE_INFINITY : Number(value));
    }
  }
  return { types, values };
}

async function scrape(): Promise<Scraped & { text: string }> {
  const reply = await fetch(`${daemon.url}/metrics`, {
    headers: { Authorization: `Bearer ${daemon.apiKey}` },
  });
  expect(reply.status).toBe(200);
  const text = await reply.text();
  return { ...read(text), text };
}

test('what was done is counted, and nothing that a guest or caller says is a label', async () => {
  const id = await create(daemon, { metadata: { 'glovebox.name': 'measured' } });
  await run(daemon, id, 'true');
  await run(daemon, id, 'exit 3');
  await run(daemon, id, 'bash -c "exec 3<>/dev/tcp/refused.example/80; echo GET / >&3; cat <&3"');
  await call(daemon, 'POST', '/v1/sandboxes', {
    image: { uri: 'host' },
    entrypoint: ['no-such-program'],
    resourceLimits: {},
  });
  await call(daemon, 'GET', '/v1/sandboxes/none');
  const dying = await create(daemon, { entrypoint: ['sh', '-c', 'exit 4'] });
  const expected: [string, number][] = [
    ['glovebox_sandboxes_created_total{runtime="bubblewrap"}', 2],
    ['glovebox_sandbox_creation_seconds_count{runtime="bubblewrap"}', 2],
    ['glovebox_sandbox_creation_seconds_bucket{runtime="bubblewrap",le="+Inf"}', 2],
    ['glovebox_sandboxes_ended_total{runtime="bubblewrap",by="main",reason="exited"}', 1],
    ['glovebox_sandboxes_removed_total{runtime="bubblewrap",reason="create-failed"}', 1],
    ['glovebox_sandboxes{runtime="bubblewrap",state="Running"}', 1],
    ['glovebox_sandboxes{runtime="bubblewrap",state="Failed"}', 1],
    ['glovebox_commands_ended_total{runtime="bubblewrap",outcome="ok"}', 1],
    ['glovebox_api_requests_total{operation="getSandbox",status="4xx"}', 1],
    ['glovebox_questions_open', 0],
  ];
  const { text, values, types } = await until(
    'counts',
    scrape,
    (it) =>
      expected.every(([name, count]) => it.values.get(name) === count) &&
      (it.values.get('glovebox_egress_names_refused_total') ?? 0) > 0,
  );
  expect(values.get('glovebox_commands_ended_total{runtime="bubblewrap",outcome="failed"}')).toBeGreaterThan(
    0,
  );
  expect([...values.keys()].filter((it) => it.startsWith('glovebox_sandbox_creations_failed_total'))).toEqual(
    [
      expect.stringMatching(
        /^glovebox_sandbox_creations_failed_total\{runtime="bubblewrap",code="[a-z-]+"\}$/,
      ),
    ],
  );
  for (const said of [id, dying, 'measured', 'refused.example', 'no-such-program'])
    expect(text).not.toContain(said);
  expect(types.get('glovebox_api_request_duration_seconds')).toBe('histogram');
  expect(types.get('glovebox_bell_calls_total')).toBe('counter');
});

test('the process tells of itself', async () => {
  const { values } = await until(
    'a look at the event loop',
    scrape,
    (it) => Number(it.values.get('glovebox_event_loop_delay_seconds_count')) > 0,
  );
  expect(values.get('process_resident_memory_bytes')).toBeGreaterThan(10 * 1024 * 1024);
  expect(values.get('process_open_fds')).toBeGreaterThan(10);
  expect(values.get('process_max_fds')).toBeGreaterThan(values.get('process_open_fds') as number);
  expect(values.get('process_cpu_seconds_total')).toBeGreaterThan(0);
  const startedAt = values.get('process_start_time_seconds') as number;
  expect(Date.now() / 1000 - startedAt).toBeLessThan(3_600);
  expect(startedAt).toBeLessThan(Date.now() / 1000);
  expect([...values.keys()].some((it) => /^glovebox_build_info\{version="[^"]+"\}$/.test(it))).toBe(true);
});

test('calls of the bell are counted by action and outcome', async () => {
  const id = await create(daemon, { glovebox: { bell: {} } });
  await run(daemon, id, 'sandbox-comm ping; sandbox-comm exec no-such-command');
  await until(
    'calls',
    scrape,
    ({ values }) =>
      values.get('glovebox_bell_calls_total{action="ping",outcome="ok"}') === 1 &&
      values.get('glovebox_bell_calls_total{action="exec",outcome="refused"}') === 1 &&
      Number(values.get('glovebox_egress_attempts_total{decision="allow",protocol="http"}')) >= 2 &&
      Number(values.get('glovebox_egress_bytes_total{direction="out"}')) > 0,
  );
});
