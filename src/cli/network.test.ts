// The verbs about the way out as real processes, against a server that behaves as the test says.
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import type { ServerResponse } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { empty, json, ScriptedServer, sandboxId } from '../../test/scripted-server.ts';
import { readPolicyFile } from './policy-file.ts';
import { Keys } from './terminal.ts';

const binary = join(import.meta.dirname, '../../bin/glovebox');
const otherId = '0b000000-0000-4000-8000-000000000002';
let server: ScriptedServer;
let folder: string;
const running = new Set<ChildProcessWithoutNullStreams>();

beforeEach(async () => {
  server = await new ScriptedServer().listen();
  folder = mkdtempSync(join(tmpdir(), 'glovebox-cli-'));
});

afterEach(async () => {
  for (const child of running) child.kill('SIGKILL');
  await server[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});

interface Result {
  code: number | null;
  stdout: string;
  stderr: string;
}

function start(
  command: string,
  args: readonly string[],
  more: Record<string, string> = {},
): { child: ChildProcessWithoutNullStreams; shown: () => string; ended: Promise<Result> } {
  const env = {
    ...process.env,
    ...{ GLOVEBOX_URL: server.url, GLOVEBOX_API_KEY: 'key', GLOVEBOX_HOME: join(folder, 'home') },
    ...more,
  };
  const child = spawn(command, args, { env, cwd: folder });
  running.add(child);
  child.stdin.on('error', () => {});
  let stdout = '';
  let stderr = '';
  child.stdout.on('data', (data) => {
    stdout += data;
  });
  child.stderr.on('data', (data) => {
    stderr += data;
  });
  const ended = new Promise<Result>((resolve) => {
    child.on('close', (code) => {
      running.delete(child);
      resolve({ code, stdout, stderr });
    });
  });
  return { child, shown: () => stdout, ended };
}

async function glovebox(
  args: readonly string[],
  options: { input?: string; env?: Record<string, string> } = {},
): Promise<Result> {
  const { child, ended } = start(binary, args, options.env);
  child.stdin.end(options.input ?? '');
  return await ended;
}

/** The command line at a terminal, which shows stdout and stderr alike. */
function atTerminal(line: string): ReturnType<typeof start> {
  return start('script', ['-qefc', `${binary} ${line}`, '/dev/null'], { TERM: 'vt100', NO_COLOR: '1' });
}

async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await new Promise((resolve) => setTimeout(resolve, 5));
}

const bodies = (method: string, pattern: RegExp) =>
  server.requests(method, pattern).map((it) => JSON.parse(it.body.toString()));

function rule(more: Record<string, unknown> = {}): Record<string, unknown> {
  return {
    ...{ id: '11111111-aaaa', decision: 'allow', resources: ['example.com'], protocols: ['tcp'] },
    ...{ createdVia: 'added', createdAt: '2026-01-01T00:00:00Z', ...more },
  };
}

function serveRules(...items: object[]): void {
  server.on('GET', /^\/v1\/policy\/rules$/, (_, response) =>
    json(response, 200, { initialized: true, items }),
  );
  server.on('POST', /^\/v1\/policy\/rules$/, (_, response) => json(response, 201, rule()));
  server.on('DELETE', /^\/v1\/policy\/rules\//, (_, response) => empty(response));
}

function entry(more: Record<string, unknown> = {}): Record<string, unknown> {
  return {
    ...{ seq: 1, at: '2026-01-29T10:15:23.456Z', sandbox: sandboxId, sandboxName: 'my-sandbox' },
    ...{ kind: 'forward', protocol: 'https', host: 'api.example.com', port: 443 },
    ...{ decision: 'allow', reason: 'rule', ...more },
  };
}

function serveLog(...items: object[]): void {
  server.on('GET', /^\/v1\/network\/log$/, (_, response) => json(response, 200, { items }));
}

const wrongUse: [string[], RegExp][] = [
  [['network', 'proxy', 'web', '--policy', 'maybe'], /'maybe' is invalid\. Allowed choices are allow, deny/],
  [['network', 'log', '--limit', 'few'], /--limit: 'few' is not a number/],
  [['policy', 'allow', 'example.com'], /missing required argument 'resources'/],
  [
    ['policy', 'allow', 'files', '/etc'],
    /'files' is no kind of rule.*\nhint: Write: glovebox policy allow network files \/etc/,
  ],
  [
    ['policy', 'allow', 'network', '-g', 'a.com,,b.com'],
    /RESOURCES: 'a\.com,,b\.com' has an empty place\nhint: /,
  ],
  [['policy', 'allow', 'network', 'a', 'b', 'c'], /more than one list of resources\nhint: .* a,b,c\n/],
  [['policy', 'deny', 'network', '-g', '--sandbox', 'web', 'a'], /--sandbox and -g exclude each other/],
  [['policy', 'deny', 'network', 'a', '--protocol', 'icmp'], /--protocol: 'icmp' is neither tcp nor udp/],
  [['policy', 'rm', 'network'], /give either --id or --resource\nhint: /],
  [['policy', 'check', 'network'], /policy check: no target\nhint: /],
  [['policy', 'approval'], /needs a terminal\nhint: /],
  [['policy', 'reset'], /policy reset: forgets all global rules\nhint: Add -f/],
  [['secret', 'set'], /secret set: name a service\nhint: There are anthropic, /],
  [['secret', 'set', 'github', '-t', 'x', '--file', 'y'], /a value comes from one place only/],
  [['secret', 'set', 'github', '--refresh', '5m'], /--refresh goes with --command only/],
  [['secret', 'set', 'github', '--env', 'NOT_SET_HERE'], /NOT_SET_HERE is not set in this shell\nhint: /],
  [['secret', 'set-custom', 'mine', '-t', 'x'], /give at least one --host\nhint: /],
  [
    ['secret', 'set-custom', '--host', 'a', '-t', 'x', '--format', '%s'],
    /--format: .*\nhint: Name the header/,
  ],
  [
    ['secret', 'set-custom', '--host', 'a', '-t', 'x', '--substitute', 'cookie'],
    /'cookie' is none of header/,
  ],
  [['secret', 'import'], /name a service, or give --all\nhint: In this environment there is: /],
  [['secret', 'rm'], /secret rm: name a secret\nhint: Or add -f/],
  [['create', '--allow', ','], /--allow: ',' has an empty place/],
];
test.each(wrongUse)('wrong use: %j ends with 2', async (args, message) => {
  const { code, stdout, stderr } = await glovebox(args);
  expect(stderr).toMatch(message);
  expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
});

const added: [string[], object, string][] = [
  [
    ['allow', 'network', 'a.com,*.b.com:443'],
    { decision: 'allow', resources: ['a.com', '*.b.com:443'] },
    'global',
  ],
  [
    ['allow', 'network', '-g', 'localhost:9999'],
    { decision: 'allow', resources: ['localhost:9999'] },
    'global',
  ],
  [
    ['deny', 'network', 'web', 'a.com'],
    { decision: 'deny', resources: ['a.com'], sandbox: 'web' },
    'sandbox:web',
  ],
  [
    ['ask', 'network', '--sandbox', 'web', '**', '--name', 'mine'],
    { decision: 'ask', resources: ['**'], sandbox: 'web', name: 'mine' },
    'sandbox:web',
  ],
  [
    ['bypass', 'network', 'a.com', '--protocol', 'TCP,udp'],
    { decision: 'bypass', resources: ['a.com'], protocols: ['tcp', 'udp'] },
    'global',
  ],
  [
    ['deny', 'network', 'a.com', '--method', 'get,Head', '--path', '/x/**'],
    { decision: 'deny', resources: ['a.com'], methods: ['GET', 'HEAD'], path: '/x/**' },
    'global',
  ],
];
test.each(added)('policy %j is sent as %j', async (args, body, scope) => {
  serveRules();
  expect(await glovebox(['policy', ...args])).toEqual({
    ...{ code: 0, stderr: '', stdout: `Rule added to policy local (scope: ${scope}): 11111111-aaaa\n` },
  });
  expect(bodies('POST', /rules$/)).toEqual([body]);
});

test('a contradiction is told with the next step', async () => {
  const message = 'deny: "example.com" conflicts with existing allow rule "r7"';
  server.on('POST', /^\/v1\/policy\/rules$/, (_, response) =>
    json(response, 409, { message }, { 'Glovebox-Failure': 'conflict', 'Glovebox-Hint': 'Remove r7 first.' }),
  );
  expect(await glovebox(['policy', 'deny', 'network', 'example.com'])).toEqual({
    ...{ code: 1, stdout: '', stderr: `glovebox: add a rule (deny): ${message}\nhint: Remove r7 first.\n` },
  });
});

test('rules are removed by the beginning of their id, or by what they name', async () => {
  const scoped = rule({ id: '33333333-cccc', sandboxId, methods: ['POST', 'GET'], path: '/x' });
  serveRules(rule(), rule({ id: '22222222-bbbb', resources: ['b.com', 'c.com'] }), scoped);
  expect(await glovebox(['policy', 'rm', 'network', '--id', '3333'])).toMatchObject({
    ...{ code: 0, stdout: 'Rule removed from policy local (scope: sandbox:web): 33333333-cccc\n' },
  });
  expect((await glovebox(['policy', 'rm', 'network', '--resource', 'Example.com'])).stdout).toContain(
    '(scope: global): 11111111-aaaa',
  );
  const byRequest = ['--sandbox', 'web', '--resource', 'example.com', '--method', 'GET,POST', '--path', '/x'];
  expect((await glovebox(['policy', 'rm', 'network', ...byRequest])).stdout).toContain('33333333-cccc');
  expect(server.requests('DELETE', /rules/).map((it) => it.path.split('/').at(-1))).toEqual([
    ...['33333333-cccc', '11111111-aaaa', '33333333-cccc'],
  ]);
});

test('a rule that names more than what is to go needs --force', async () => {
  serveRules(rule({ id: '22222222-bbbb', resources: ['b.com', 'c.com'] }));
  const line = ['policy', 'rm', 'network', '--resource', 'b.com'];
  expect(await glovebox(line)).toMatchObject({
    ...{
      code: 1,
      stdout: '',
      stderr: expect.stringMatching(/a rule would go\. It also names c\.com\.\nhint: Add --force/),
    },
  });
  expect(server.requests('DELETE', /rules/)).toHaveLength(0);
  expect((await glovebox([...line, '--force'])).code).toBe(0);
  expect(await glovebox(['policy', 'rm', 'network', '--resource', 'nope.com'])).toMatchObject({
    ...{ code: 1, stderr: expect.stringMatching(/names 'nope\.com'\nhint: See/) },
  });
});

const checks = [
  ['allow', 0, 'example.com:443 allowed\n  detail: as the rule says\n  rule: allow example.com\n'],
  ['deny', 1, 'example.com:443 denied\n  detail: as the rule says\n  rule: allow example.com\n'],
  ['ask', 1, 'example.com:443 ask\n  detail: as the rule says\n  rule: allow example.com\n'],
] as const;
test.each(checks)('policy check of what is decided %s ends with %i', async (decision, code, stdout) => {
  const answer = {
    ...{ target: 'example.com:443', decision, reason: 'rule', message: 'as the rule says' },
    rule: { id: 'r1', text: 'allow example.com', source: 'global' },
  };
  server.on('POST', /^\/v1\/policy\/check$/, (_, response) => json(response, 200, answer));
  const line = ['policy', 'check', 'network', '--sandbox', 'web', '--method', 'get', '--path', '/x'];
  expect(await glovebox([...line, 'example.com'])).toEqual({ code, stdout, stderr: '' });
  expect(bodies('POST', /check$/)[0]).toEqual({
    ...{ target: 'example.com', sandbox: 'web', method: 'GET', path: '/x' },
  });
  const machine = await glovebox([...line, '--json', 'example.com']);
  expect({ code: machine.code, answer: JSON.parse(machine.stdout) }).toEqual({ code, answer });
});

test('policy ls counts by scope, or shows each rule, or JSON in the words of sbx', async () => {
  serveRules(
    ...[rule(), rule({ id: '22222222-bbbb', decision: 'deny', name: 'no\u202efun' })],
    rule({ id: '33333333-cccc', sandboxId, methods: ['GET'], path: '/x', createdVia: 'learned' }),
  );
  expect((await glovebox(['policy', 'ls'])).stdout).toBe(
    [
      'POLICY        SOURCE  APPLIES TO   SUMMARY',
      'local-policy  local   all          network: 1 allow, 1 deny',
      'local-policy  local   sandbox:web  http: 1 allow\n',
    ].join('\n'),
  );
  const wide = (await glovebox(['policy', 'ls', '--wide', 'web'])).stdout.split('\n');
  expect(
    server
      .requests('GET', /rules$/)
      .at(-1)
      ?.query.get('sandbox'),
  ).toBe('web');
  expect(wide[0]).toMatch(
    /^SOURCE +APPLIES TO +POLICY\/RULE +RULE_ID +TYPE +DECISION +RESOURCES +METHOD +PATH +CREATED VIA$/,
  );
  expect(wide[2]).toMatch(
    /^local +all +no\uFFFDfun +22222222-bbbb +network +deny +example\.com +- +- +added$/,
  );
  const filtered = ['policy', 'ls', '--json', '--type', 'http', '--created-via', 'learned'];
  expect(JSON.parse((await glovebox(filtered)).stdout)).toEqual([
    expect.objectContaining({
      ...{ id: '33333333-cccc', applies_to: 'sandbox:web', resource_type: 'http', sandbox_id: sandboxId },
      ...{ provenance: { created_via: 'learned' }, actions: ['net:connect:tcp'], resources: ['example.com'] },
    }),
  ]);
});

test('policy init, reset, profile ls and inspect', async () => {
  serveRules(rule());
  server.on('POST', /^\/v1\/policy\/init$/, (_, response) => json(response, 200, { items: [rule()] }));
  server.on('POST', /^\/v1\/policy\/reset$/, (_, response) => empty(response));
  const preset = {
    name: 'balanced',
    description: 'common places',
    rules: [{ decision: 'allow', resources: ['a', 'b'] }],
  };
  server.on('GET', /^\/v1\/policy\/presets$/, (_, response) => json(response, 200, { items: [preset] }));
  expect(await glovebox(['policy', 'init', 'balanced'])).toMatchObject({
    ...{ code: 0, stdout: "Global network policy initialized with 'balanced': 1 rule of 1 place\n" },
  });
  expect(bodies('POST', /init$/)).toEqual([{ preset: 'balanced' }]);
  expect((await glovebox(['policy', 'reset', '-f'])).code).toBe(0);
  expect(server.requests('POST', /reset$/)).toHaveLength(1);
  expect((await glovebox(['policy', 'profile', 'ls'])).stdout).toMatch(/\nbalanced +2 +common places\n$/);
  expect((await glovebox(['policy', 'inspect', '1111'])).stdout).toMatch(
    /^rule: +11111111-aaaa\napplies to: +all\n/,
  );
  expect(await glovebox(['policy', 'inspect', 'zzz'])).toMatchObject({
    ...{ code: 1, stderr: expect.stringMatching(/there is no rule 'zzz'\nhint: /) },
  });
});

test('network log writes the line that scripts know, and what else is known behind it', async () => {
  serveLog(
    entry({ method: 'GET', path: '/data', rule: { id: 'r1', text: 'allow **.example.com' } }),
    entry({
      ...{ seq: 2, protocol: 'tcp', host: '2001:db8::1', port: 22, decision: 'deny', reason: 'default' },
      ...{ sandboxName: undefined, process: { pid: 7, command: 'git' } },
    }),
    entry({
      ...{ seq: 3, method: 'POST', path: '/a', status: 200, bytesOut: 12, bytesIn: 345, durationMs: 6.7 },
      ...{ secrets: ['github'], alarm: 'placeholder seen' },
    }),
  );
  const { code, stdout } = await glovebox(['network', 'log', 'web', '--limit', '0']);
  expect({ code, lines: stdout.trimEnd().split('\n') }).toEqual({
    code: 0,
    lines: [
      '2026-01-29T10:15:23Z sandbox=my-sandbox request GET https://api.example.com/data allowed rule="allow **.example.com" reason=rule',
      `2026-01-29T10:15:23Z sandbox=${sandboxId} request CONNECT tcp://[2001:db8::1]:22 denied reason=default process=git[7]`,
      '2026-01-29T10:15:23Z sandbox=my-sandbox request POST https://api.example.com/a allowed reason=rule status=200 bytes=12/345 ms=7 secrets=github alarm="placeholder seen"',
    ],
  });
  const { query } = server.requests('GET', /log$/)[0] ?? {};
  expect([query?.get('sandbox'), query?.get('limit')]).toEqual(['web', '100000']);
  const { entries } = JSON.parse((await glovebox(['network', 'log', '--json'])).stdout);
  expect(entries[1]).toMatchObject({
    ...{ timestamp: '2026-01-29T10:15:23.456Z', sandbox: sandboxId, type: 'request', method: 'CONNECT' },
    ...{ url: 'tcp://[2001:db8::1]:22', action: 'denied', reason: 'default', process: { pid: 7 } },
  });
  expect((await glovebox(['network', 'log', '-q'])).stdout.split('\n')[0]).toBe(
    'https://api.example.com/data',
  );
});

test('what a sandbox wrote into the log cannot forge lines, play with the terminal, or break JSON', async () => {
  serveLog(
    entry({
      ...{ method: 'GET', path: '/a b\n2026-01-29T10:15:23Z sandbox=x\u001b[2J\u202e\u009b' },
      process: { pid: 1, command: 'evil\nname "x"' },
    }),
  );
  const { stdout } = await glovebox(['network', 'log']);
  expect(stdout.trimEnd().split('\n')).toHaveLength(1);
  expect(stdout).toContain(
    'https://api.example.com/a%20b\uFFFD2026-01-29T10:15:23Z%20sandbox=x\uFFFD[2J\uFFFD\uFFFD ',
  );
  expect(stdout).toContain('process="evil\uFFFDname \\"x\\"[1]"');
  for (const line of [
    ['network', 'log', '--json'],
    ['policy', 'log', '--json'],
    ['policy', 'log'],
  ]) {
    const shown = (await glovebox(line)).stdout;
    // biome-ignore lint/suspicious/noControlCharactersInRegex: they must not be there
    expect(shown, line.join(' ')).not.toMatch(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u202e]/);
  }
  const parsed = JSON.parse((await glovebox(['network', 'log', '--json'])).stdout);
  expect(parsed.entries[0].path).toBe('/a b\n2026-01-29T10:15:23Z sandbox=x\u001b[2J\u202e\u009b');
});

test('network log -f writes each entry as it comes, and ends with 69 when the server goes', async () => {
  const opened = new Promise<ServerResponse>((resolve) => {
    server.on('GET', /^\/v1\/network\/log$/, (_, response) => {
      response.write(`${JSON.stringify(entry())}\n`);
      resolve(response);
    });
  });
  const { shown, ended } = start(binary, ['network', 'log', '-f', '--json']);
  const response = await opened;
  await until(() => shown().split('\n').length === 2);
  response.write(`\n${JSON.stringify(entry({ seq: 2 }))}\n`);
  await until(() => shown().split('\n').length === 3);
  expect(
    shown()
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line).seq),
  ).toEqual([1, 2]);
  response.end();
  expect(await ended).toMatchObject({ code: 69, stderr: expect.stringContaining('the server has ended it') });
});

test('policy log sums up by host, in the two tables and the JSON that scripts know', async () => {
  const blocked = { host: 'blocked.example.com', decision: 'deny', reason: 'default', kind: 'transparent' };
  serveLog(
    entry({ rule: { id: 'r1', text: 'allow *.example.com' } }),
    entry({
      seq: 2,
      at: '2026-01-29T11:00:00Z',
      port: 80,
      protocol: 'http',
      rule: { id: 'r1', text: 'allow *.example.com' },
    }),
    entry({ seq: 3, ...blocked }),
    entry({ seq: 4, ...blocked, port: 8443, dropped: 9 }),
  );
  const { stdout } = await glovebox(['policy', 'log', 'my-sandbox'], { env: { TZ: 'UTC' } });
  const lines = stdout.trimEnd().split('\n');
  expect(lines[0]).toBe('Blocked requests:');
  expect(lines[1]).toMatch(/^SANDBOX +TYPE +HOST +PROXY +RULE +REASON +LAST SEEN +COUNT$/);
  expect(lines[2]).toMatch(
    /^my-sandbox +network +blocked\.example\.com +transparent +- +default +10:15:23 29-Jan +1$/,
  );
  expect(lines[3]).toMatch(/blocked\.example\.com:8443 .* 10$/);
  expect(lines.slice(4, 6)).toEqual(['', 'Allowed requests:']);
  expect(lines[7]).toMatch(/api\.example\.com +forward +allow \*\.example\.com +rule +11:00:00 29-Jan +2$/);
  const parsed = JSON.parse((await glovebox(['policy', 'log', '--json', '--limit', '1'])).stdout);
  expect(parsed.blocked_hosts).toHaveLength(1);
  expect(parsed.allowed_hosts).toEqual([
    expect.objectContaining({
      ...{
        host: 'api.example.com',
        vm_name: 'my-sandbox',
        proxy_type: 'forward',
        rule: 'allow *.example.com',
      },
      ...{ last_seen: '2026-01-29T11:00:00.000Z', since: '2026-01-29T10:15:23.456Z', count_since: 2 },
    }),
  ]);
  expect((await glovebox(['policy', 'log', '-q'])).stdout.split('\n')).toContain('blocked.example.com:8443');
});

test('network proxy sends what the options say, and shows what results', async () => {
  const path = new RegExp(`^/v1/sandboxes/${sandboxId}/network$`);
  const lists = { allowedDomains: ['a.com', '*.b.com'], blockedDomains: [], bypassDomains: ['p.com'] };
  const config = {
    policy: 'deny',
    network: { ...lists, allowCIDR: [], blockCIDR: ['10.0.0.0/8'], bypassCIDR: [] },
  };
  server.on('GET', path, (_, response) => json(response, 200, {}));
  server.on('PATCH', path, (_, response) => json(response, 200, config));
  expect(await glovebox(['network', 'proxy', 'web'])).toMatchObject({
    ...{ code: 0, stdout: '', stderr: expect.stringContaining('no proxy configuration of its own') },
  });
  const hosts = [
    '--allow-host',
    'a.com',
    '--allow-host',
    '*.b.com',
    '--block-host',
    'c',
    '--bypass-host',
    'p.com',
  ];
  const networks = ['--allow-cidr', '1.0.0.0/8', '--block-cidr', '10.0.0.0/8', '--bypass-cidr', '2.0.0.0/8'];
  const { stdout } = await glovebox(['network', 'proxy', 'web', '--policy', 'deny', ...hosts, ...networks]);
  expect(bodies('PATCH', path)).toEqual([
    {
      ...{ policy: 'deny', allowHosts: ['a.com', '*.b.com'], blockHosts: ['c'], bypassHosts: ['p.com'] },
      ...{ allowCidrs: ['1.0.0.0/8'], blockCidrs: ['10.0.0.0/8'], bypassCidrs: ['2.0.0.0/8'] },
    },
  ]);
  expect(stdout).toBe(
    'policy:            deny\nallowed hosts:     a.com, *.b.com\nbypassed hosts:    p.com\nblocked networks:  10.0.0.0/8\n',
  );
  const machine = await glovebox(['network', 'proxy', 'web', '--policy', 'deny', '--json']);
  expect(JSON.parse(machine.stdout)).toEqual(config);
});

test('learn prints commands that make the rules, and makes them only when the log comes out the same', async () => {
  serveRules();
  const rules = [
    { decision: 'allow', resources: ['*.a.com:443', 'b.com:443'] },
    { decision: 'allow', resources: ['c.com:443'], methods: ['GET'], path: '/it/**' },
  ];
  let differing = 0;
  server.on('POST', /^\/v1\/policy\/learn$/, (_, response) =>
    json(response, 200, { sandbox: sandboxId, rules, replayed: 12, differing }),
  );
  const { stdout, stderr } = await glovebox(['policy', 'learn', 'web', '--paths']);
  expect(bodies('POST', /learn$/)).toEqual([{ sandbox: 'web', paths: true }]);
  expect(stdout).toBe(
    [
      "glovebox policy allow network --sandbox web '*.a.com:443,b.com:443'",
      "glovebox policy allow network --sandbox web --method GET --path '/it/**' c.com:443\n",
    ].join('\n'),
  );
  expect(stderr).toBe('2 rules; 12 attempts of the log replayed against them: all come out the same.\n');
  expect(bodies('POST', /rules$/)).toEqual([]);
  expect((await glovebox(['policy', 'learn', 'web', '--apply'])).stdout.split('\n')).toHaveLength(3);
  expect(bodies('POST', /rules$/)).toEqual(
    rules.map((it) => ({ ...it, sandbox: 'web', createdVia: 'learned' })),
  );
  differing = 3;
  expect(await glovebox(['policy', 'learn', 'web', '--apply'])).toMatchObject({
    ...{
      code: 1,
      stderr: expect.stringMatching(/3 of 12 attempts would come out otherwise; no rule was added\nhint: /),
    },
  });
  expect(bodies('POST', /rules$/)).toHaveLength(2);
});

function question(id: string, more: Record<string, unknown> = {}): Record<string, unknown> {
  return {
    ...{ id, at: new Date().toISOString(), until: new Date(Date.now() + 600_000).toISOString() },
    ...{
      sandbox: sandboxId,
      sandboxName: 'web',
      host: 'new.example.com',
      port: 443,
      protocol: 'https',
      ...more,
    },
  };
}

test('approval at a terminal: a key answers the question that is shown', async () => {
  let stream: ServerResponse | undefined;
  server.on('GET', /^\/v1\/network\/questions$/, (_, response) => {
    response.writeHead(200);
    response.flushHeaders();
    stream = response;
  });
  server.on('POST', /\/questions\/gone$/, (_, response) =>
    json(response, 404, { message: 'no such question' }),
  );
  server.on('POST', /\/questions\/q\d$/, (_, response) => empty(response));
  const { child, shown, ended } = atTerminal('policy approval');
  await until(() => shown().includes('Waiting for questions') && stream !== undefined);
  stream?.write(
    `${JSON.stringify(question('q1', { method: 'POST', path: '/x\u001b[2J', rule: 'ask **' }))}\n`,
  );
  await until(() => shown().includes('[q]uit'));
  expect(shown()).toContain(
    'web wants to reach new.example.com:443, https (POST /x\uFFFD[2J) by rule: ask **',
  );
  child.stdin.write('s');
  await until(() => shown().includes('allowed for this sandbox'));
  stream?.write(`${JSON.stringify(question('q2'))}\n${JSON.stringify(question('gone'))}\n`);
  await until(() => shown().split('[q]uit').length === 3);
  child.stdin.write('n');
  await until(() => shown().split('[q]uit').length === 4);
  child.stdin.write('o');
  await until(() => shown().includes('too late'));
  child.stdin.write('q');
  expect((await ended).code).toBe(0);
  expect(bodies('POST', /questions/)).toEqual([
    { allow: true, scope: 'sandbox' },
    { allow: false, scope: 'once' },
    { allow: true, scope: 'once' },
  ]);
});

test('a key that nobody waited for answers nothing, nor does what is pasted; Ctrl-C always counts', async () => {
  const modes: boolean[] = [];
  const input = Object.assign(new PassThrough(), { setRawMode: (on: boolean) => modes.push(on) });
  let interrupts = 0;
  {
    using keys = new Keys(input as unknown as NodeJS.ReadStream);
    keys.onInterrupt = () => interrupts++;
    const press = async (text: string) => {
      const seen = once(input, 'data');
      input.write(text);
      await seen;
    };
    await press('a');
    const next = keys.next(new AbortController().signal);
    await press('sss');
    await press('\u001b[A');
    await press('n');
    expect(await next).toBe('n');
    await press('\u0003');
    await expect(keys.next(AbortSignal.abort())).rejects.toThrow(/aborted/);
  }
  expect({ modes, interrupts }).toEqual({ modes: [true, false], interrupts: 1 });
});

test('approval: no key in time is a no, and Ctrl-C ends with 130', async () => {
  server.on('GET', /^\/v1\/network\/questions$/, (_, response) => {
    // From when it is asked for: the program takes its time to start.
    const soon = question('q1', { until: new Date(Date.now() + 3_000).toISOString() });
    response.write(`${JSON.stringify(soon)}\n`);
  });
  const { child, shown, ended } = atTerminal('policy approval');
  await until(() => shown().includes('no answer in time: refused'));
  child.stdin.write('\u0003');
  expect((await ended).code).toBe(130);
  expect(server.requests('POST', /questions/)).toHaveLength(0);
});

const ofBell = { host: 'localhost', port: 9999, protocol: 'bell', action: 'open_url' };

test('approval of an action of the host says what it would do', async () => {
  const asked = question('q1', { ...ofBell, detail: 'https://a.example/\u001b[2J' });
  server.on('GET', /^\/v1\/network\/questions$/, (request, response) => {
    if (request.query.get('follow') !== 'true') return json(response, 200, { items: [asked] });
    response.write(`${JSON.stringify(asked)}\n`);
  });
  server.on('POST', /\/questions\/q1$/, (_, response) => empty(response));
  expect((await glovebox(['policy', 'approval', 'ls'])).stdout).toMatch(
    /\nq1 +web +this host +open_url https:\/\/a\.example\/\uFFFD\[2J +- +\d+ s\n$/,
  );
  const { child, shown, ended } = atTerminal('policy approval');
  await until(() => shown().includes('[q]uit'));
  expect(shown()).toContain('Sandbox web asks: may it open_url https://a.example/\uFFFD[2J?');
  child.stdin.write('a');
  await until(() => shown().includes('allowed always'));
  child.stdin.write('q');
  expect((await ended).code).toBe(0);
  expect(bodies('POST', /questions/)).toEqual([{ allow: true, scope: 'always' }]);
});

test('approval without a terminal: list and answer', async () => {
  server.on('GET', /^\/v1\/network\/questions$/, (_, response) =>
    json(response, 200, { items: [question('q1')] }),
  );
  server.on('POST', /\/questions\/q1$/, (_, response) => empty(response));
  expect((await glovebox(['policy', 'approval', 'ls'])).stdout).toMatch(
    /\nq1 +web +new\.example\.com:443 +https +- +\d+ s\n$/,
  );
  const line = ['policy', 'approval', 'answer'];
  expect(await glovebox([...line, 'q1', 'allow', '--scope', 'always'])).toMatchObject({
    code: 0,
    stdout: 'q1\n',
  });
  expect(bodies('POST', /questions/)).toEqual([{ allow: true, scope: 'always' }]);
  server.on('POST', /\/questions\/q2$/, (_, response) =>
    json(response, 404, { message: 'no such question' }),
  );
  expect(await glovebox([...line, 'q2', 'deny'])).toMatchObject({
    ...{ code: 1, stderr: expect.stringMatching(/no question q2 waits for an answer\nhint: /) },
  });
});

function secret(more: Record<string, unknown> = {}): Record<string, unknown> {
  return {
    ...{ id: 's1', name: 'github', service: true, sourceType: 'value', masked: 'gho_GCaw****…****43qy' },
    ...{ placeholder: 'proxy-managed', env: ['GH_TOKEN'], createdAt: '2026-01-01T00:00:00Z' },
    ...{ bindings: [{ hosts: ['api.github.com'], ports: [443] }], ...more },
  };
}

function serveSecrets(...items: object[]): void {
  server.on('GET', /^\/v1\/secrets$/, (_, response) => json(response, 200, { items }));
  server.on('PUT', /^\/v1\/secrets$/, ({ body }, response) =>
    json(response, 200, secret({ name: JSON.parse(body.toString()).name })),
  );
  server.on('DELETE', /^\/v1\/secrets\//, (_, response) => empty(response));
}

test('secret set takes a value from stdin, the line, a variable, a file or a command, and shows none', async () => {
  serveSecrets();
  const value = 'gho_very-secret';
  writeFileSync(join(folder, 'token'), value);
  const sources: [string[], object][] = [
    [[], { type: 'value', value }],
    [['-t', value], { type: 'value', value }],
    [['--env', 'MY_TOKEN'], { type: 'value', value }],
    [['--file', 'token'], { type: 'file', path: join(folder, 'token') }],
    [['--command', 'gh auth token'], { type: 'command', command: ['sh', '-c', 'gh auth token'] }],
    [
      ['--command', 'x', '--refresh', 'on-demand', '--sandbox', 'web'],
      { type: 'command', command: ['sh', '-c', 'x'], refreshSeconds: 0 },
    ],
  ];
  for (const [options, source] of sources) {
    const input = options.length === 0 ? `${value}\n` : '';
    const result = await glovebox(['secret', 'set', 'github', ...options], {
      input,
      env: { MY_TOKEN: value },
    });
    expect(result.code, options.join(' ')).toBe(0);
    expect(result.stdout + result.stderr).not.toContain(value);
    expect(result.stderr).toMatch(options[0] === '-t' ? /can be seen by others/ : /^$/);
    expect(bodies('PUT', /secrets$/).at(-1).source).toEqual(source);
  }
  expect(bodies('PUT', /secrets$/).at(-1).sandbox).toBe(sandboxId);
});

test('secret set does not replace what is there unless it may', async () => {
  serveSecrets(secret());
  expect(await glovebox(['secret', 'set', 'github', '-t', 'x'])).toMatchObject({
    ...{
      code: 1,
      stderr: expect.stringMatching(/a secret 'github' already.*; nothing was set\nhint: Add -f/),
    },
  });
  expect(server.requests('PUT', /secrets$/)).toHaveLength(0);
  expect((await glovebox(['secret', 'set', 'github', '-f'], { input: 'x' })).code).toBe(0);
  expect(await glovebox(['secret', 'set', 'github', '-f'], { input: '\n' })).toMatchObject({
    ...{ code: 2, stderr: expect.stringContaining('the value is empty') },
  });
});

test('a secret that is typed is not shown, and declining to replace one is an error', async () => {
  serveSecrets();
  const typing = atTerminal('secret set github');
  await until(() => typing.shown().includes('(is not shown)'));
  typing.child.stdin.write('gho_typed\r');
  expect((await typing.ended).code).toBe(0);
  expect(typing.shown()).not.toContain('gho_typed');
  expect(bodies('PUT', /secrets$/)).toEqual([
    { name: 'github', source: { type: 'value', value: 'gho_typed' } },
  ]);
  serveSecrets(secret());
  const declining = atTerminal('secret set github');
  await until(() => declining.shown().includes('[y/N]'));
  declining.child.stdin.write('n\r');
  expect((await declining.ended).code).toBe(1);
  expect(declining.shown()).toContain('nothing was set');
  expect(server.requests('PUT', /secrets$/)).toHaveLength(1);
});

test('secret set-custom sends its binding; a later set keeps it', async () => {
  serveSecrets();
  const line = ['secret', 'set-custom', '-t', 'v', '--host', '*.shop.example', '--env', 'SHOP_KEY'];
  await glovebox([...line, '--placeholder', 'sk-{rand}']);
  const more = ['--header', 'Authorization', '--format', 'Bearer %s', '--method', 'get', '--path', '/v1/*'];
  await glovebox(['secret', 'set-custom', 'shop', '--value', 'v', '--host', 'a', '--port', '8443', ...more]);
  const hosts = ['*.shop.example'];
  const custom = { name: 'shop.example', bindings: [{ hosts, substitute: ['header'] }], env: ['SHOP_KEY'] };
  expect(bodies('PUT', /secrets$/)).toMatchObject([
    { ...custom, placeholder: 'sk-{rand}', source: { value: 'v' } },
    {
      name: 'shop',
      bindings: [
        {
          ...{ hosts: ['a'], ports: [8443], header: 'Authorization', format: 'Bearer %s' },
          ...{ methods: ['GET'], paths: ['/v1/*'] },
        },
      ],
    },
  ]);
  const kept = {
    env: ['SHOP_KEY'],
    placeholder: 'sk-1',
    bindings: [{ hosts, ports: [443], substitute: ['body'] }],
  };
  serveSecrets(secret({ name: 'shop', service: false, ...kept }));
  expect((await glovebox(['secret', 'set', 'shop', '-f'], { input: 'new' })).code).toBe(0);
  expect(bodies('PUT', /secrets$/).at(-1)).toEqual({
    ...{ name: 'shop', ...kept, source: { type: 'value', value: 'new' } },
  });
  expect(await glovebox(['secret', 'set', 'nope'], { input: 'x' })).toMatchObject({
    ...{
      code: 2,
      stderr: expect.stringMatching(/neither a service nor .*\nhint: .*set-custom nope --host HOST/),
    },
  });
});

test('secret import takes what the environment holds, and leaves what is there', async () => {
  serveSecrets(secret({ name: 'openai' }));
  const env = { OPENAI_API_KEY: 'sk-one', GITHUB_TOKEN: 'gho_two', GH_TOKEN: '' };
  const dry = await glovebox(['secret', 'import', '--all', '--dry-run', '--force'], { env });
  expect(dry.stdout).toMatch(/^Would import github from GITHUB_TOKEN \(scope: global\)$/m);
  expect(server.requests('PUT', /secrets$/)).toHaveLength(0);
  const all = await glovebox(['secret', 'import', '--all'], { env });
  expect(all.stderr).toContain('openai is there already');
  expect(bodies('PUT', /secrets$/)).toContainEqual({
    name: 'github',
    source: { type: 'value', value: 'gho_two' },
  });
  expect(bodies('PUT', /secrets$/).map((it) => it.name)).not.toContain('openai');
  expect(dry.stdout + dry.stderr + all.stdout + all.stderr).not.toMatch(/sk-one|gho_two/);
  expect(await glovebox(['secret', 'import', 'openai'], { env })).toMatchObject({ code: 1 });
  expect(await glovebox(['secret', 'import', 'xai'], { env: { ...env, XAI_API_KEY: '' } })).toMatchObject({
    ...{
      code: 1,
      stderr: expect.stringMatching(/XAI_API_KEY is not set\nhint: In this environment there is: /),
    },
  });
});

test('secret ls shows two tables, and rm removes within its scope', async () => {
  const custom = { service: false, placeholder: 'sk-9', bindings: [{ hosts: ['a', 'b'], ports: [8443] }] };
  serveSecrets(
    ...[secret(), secret({ id: 's2', sandboxId, sourceType: 'command', masked: '' })],
    ...[secret({ id: 's3', name: 'shop', ...custom }), secret({ id: 's4', sandboxId: otherId })],
  );
  const { stdout } = await glovebox(['secret', 'ls']);
  expect(stdout).toMatch(
    /^SCOPE +TYPE +NAME +SECRET\n\(global\) +service +github +gho_GCaw\*{4}…\*{4}43qy\n/,
  );
  expect(stdout).toMatch(/\nweb +service +github +\(command\)\n/);
  expect(stdout).toMatch(
    /\n\nCUSTOM SECRETS\nSCOPE +TARGETS +ENV +PLACEHOLDER +SECRET +NAME\n\(global\) +a:8443,b:8443 +GH_TOKEN +sk-9 +gho_\S+ +shop\n$/,
  );
  expect((await glovebox(['secret', 'rm', 'github'])).stdout).toBe(
    'Secret removed (scope: global): github\n',
  );
  expect((await glovebox(['secret', 'rm', '--sandbox', 'web', '-f'])).stdout).toContain(
    '(scope: sandbox:web)',
  );
  expect((await glovebox(['secret', 'rm', 'github', '--all-sandboxes'])).code).toBe(0);
  expect(server.requests('DELETE', /secrets/).map((it) => it.path.split('/').at(-1))).toEqual([
    ...['s1', 's2', 's1', 's2', 's4'],
  ]);
  expect(await glovebox(['secret', 'rm', 'shop', '--sandbox', 'web'])).toMatchObject({
    ...{ code: 1, stderr: expect.stringMatching(/there is no secret 'shop' \(scope: sandbox:web\)\nhint: /) },
  });
});

test('create brings rules and a policy of its own', async () => {
  writeFileSync(join(folder, 'policy.json'), '{"egress": [{"action": "allow", "target": "*.python.org"}]}');
  const line = [
    'create',
    '--allow',
    'a.com,b.com',
    '--deny',
    'c.com',
    '--network-policy-file',
    'policy.json',
  ];
  expect((await glovebox(line)).code).toBe(0);
  expect(bodies('POST', /^\/v1\/sandboxes$/)[0]).toMatchObject({
    networkPolicy: { defaultAction: 'deny', egress: [{ action: 'allow', target: '*.python.org' }] },
    glovebox: {
      rules: [
        { decision: 'allow', resources: ['a.com', 'b.com'] },
        { decision: 'deny', resources: ['c.com'] },
      ],
    },
  });
});

const files: [string, string, RegExp][] = [
  ['no JSON', '{\n  "egress": [,]\n}', /policy\.json:2:14: expected a value, found ','$/],
  ['an end too early', '{"egress": [', /policy\.json:1:13: expected a value, found the end/],
  ['more behind its end', '{} {}', /policy\.json:1:4: expected nothing more, found '\{'/],
  ['a key that there is not', '{\n  "egres": []\n}', /policy\.json:2:12: Unrecognized key: "egres"$/],
  [
    'a wrong value',
    '{"egress": [\n  {"action": "allow", "target": "a"},\n  {"action": "permit", "target": "b"}\n]}',
    /policy\.json:3:14: egress\[1\]\.action: Invalid option/,
  ],
  [
    'something missing',
    '{"egress": [{"action": "deny"}]}',
    /policy\.json:1:13: egress\[0\]\.target: Invalid input/,
  ],
];
test.each(files)('a policy file with %s is refused with line and column', async (_, text, message) => {
  const file = join(folder, 'policy.json');
  writeFileSync(file, text);
  await expect(readPolicyFile(file)).rejects.toMatchObject({
    ...{
      message: expect.stringMatching(message),
      exitCode: 2,
      hint: expect.stringMatching(/JSON|defaultAction/),
    },
  });
});

test('what the server refuses of a policy file is told with line and column, too', async () => {
  const message = 'networkPolicy.egress[1].target: "*.*" can never match';
  server.on('POST', /^\/v1\/sandboxes$/, (_, response) =>
    json(response, 400, { message }, { 'Glovebox-Failure': 'invalid', 'Glovebox-Hint': 'Write a name.' }),
  );
  writeFileSync(join(folder, 'policy.json'), '{"egress": [{"target": "a"},\n {"target": "*.*"}]}');
  expect(await glovebox(['create', '--name', 'web', '--network-policy-file', 'policy.json'])).toEqual({
    ...{ code: 2, stdout: '' },
    stderr: `glovebox: policy.json:2:2: create the sandbox 'web': ${message}\nhint: Write a name.\n`,
  });
  expect(await glovebox(['create', '--network-policy-file', 'missing.json'])).toMatchObject({
    ...{ code: 1, stderr: expect.stringMatching(/there is no file missing\.json\nhint: /) },
  });
  expect(await glovebox(['create', '--network-policy-file', '.'])).toMatchObject({
    ...{ code: 1, stderr: expect.stringMatching(/\. cannot be read: it is a folder\nhint: /) },
  });
});

test('completion knows the verbs, sandboxes, presets, rules, questions and services', async () => {
  serveRules(rule());
  serveSecrets(secret());
  server.on('GET', /^\/v1\/policy\/presets$/, (_, response) =>
    json(response, 200, { items: [{ name: 'balanced', description: 'common places', rules: [] }] }),
  );
  server.on('GET', /^\/v1\/network\/questions$/, (_, response) =>
    json(response, 200, { items: [question('q1')] }),
  );
  const lines: [string[], string[]][] = [
    [
      ['network', 'proxy', '--policy', ''],
      ['allow', 'deny'],
    ],
    [['policy', 'init', ''], ['balanced']],
    [['policy', 'allow', ''], ['network']],
    [['policy', 'deny', 'network', '--sandbox', ''], ['web']],
    [
      ['policy', 'approval', ''],
      ['watch', 'ls', 'answer'],
    ],
    [['policy', 'approval', 'answer', ''], ['q1']],
    [['policy', 'inspect', ''], ['11111111-aaaa']],
    [
      ['secret', 'set', 'an'],
      ['anthropic', 'anthropic-oauth'],
    ],
    [['secret', 'rm', ''], ['github']],
  ];
  for (const [line, words] of lines) {
    const { stdout } = await glovebox(['__complete', ...line]);
    expect(
      stdout
        .trimEnd()
        .split('\n')
        .map((it) => it.split('\t')[0]),
      line.join(' '),
    ).toEqual(words);
  }
});
