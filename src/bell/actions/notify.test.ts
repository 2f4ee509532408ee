// Notifications: what of a guest's text is shown, that nobody can speak for another, and where they go on hosts without a desktop.
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { text } from 'node:stream/consumers';
import { expect, test, vi } from 'vitest';
import type { Caller } from '../bell.ts';
import { callOf, type DesktopOptions, testDesktop, testLog, web } from '../desktop.fixture.ts';
import { createNotify } from './notify.ts';

const shows = { 'notify-send': 'exit 0' };

function setUp(options: Partial<DesktopOptions> & { webhook?: string } = {}) {
  const host = testDesktop({ programs: shows, ...options });
  const log = testLog();
  const stop = new AbortController();
  const notify = createNotify({
    programs: host.programs,
    webhook: options.webhook,
    log,
    stopped: stop.signal,
    now: () => new Date('2026-01-02T03:04:05Z'),
  });
  return {
    ...{ host, log, stop, notify },
    run: (args: Record<string, unknown>, caller: Caller = web) =>
      notify.run(notify.parse(args), callOf(caller)),
    [Symbol.dispose]: () => host[Symbol.dispose](),
  };
}

const corpus: [what: string, args: Record<string, unknown>, title: string, body: string][] = [
  ['plain text', { title: 'Build', body: 'Tests passed' }, 'Build', 'Tests passed'],
  ['no title', { body: 'x' }, 'sandbox', 'x'],
  ['no body', { title: 'x' }, 'x', ''],
  [
    'options of notify-send',
    { title: '--icon=/etc/passwd', body: '-u critical' },
    '--icon=/etc/passwd',
    '-u critical',
  ],
  ['a shell', { title: '$(id)`id`;id', body: '$HOME' }, '$(id)`id`;id', '$HOME'],
  ['tags', { title: '<b>x</b>', body: '<img src="x"/>&amp;' }, '<b>x</b>', '&lt;img src="x"/&gt;&amp;amp;'],
  ['escapes of notify-send', { title: 'x', body: '\\074b\\076 \\n \\' }, 'x', '\\\\074b\\\\076 \\\\n \\\\'],
  ['NUL and controls', { title: 'a\0b\u001b[31mc\u0085', body: 'a\0\u0007b' }, 'ab[31mc', 'ab'],
  ['lines', { title: 'a\nb\r\nc', body: 'a\r\nb\n\n\n\n\nc\td' }, 'a b c', 'a\nb\n\nc d'],
  ['text turned around', { title: '\u202egnp.exe', body: '\u2066x' }, '\\u202egnp.exe', '\\\\u2066x'],
  ['half a character', { title: 'a\ud800', body: '\udc00' }, 'a\\ud800', '\\\\udc00'],
  ['nothing but what goes away', { title: '\0\n', body: '\u001b' }, 'sandbox', ''],
  ['a title as long as can be', { title: 't'.repeat(9_999) }, `${'t'.repeat(255)}…`, ''],
  ['a body as long as can be', { title: 'x', body: 'b'.repeat(99_999) }, 'x', `${'b'.repeat(4_094)}…`],
  ['fields of others', { title: 'x', session_id: 'abc', urgency: 'critical' }, 'x', ''],
];

test.each(corpus)('shown without harm: %s', async (_, args, title, body) => {
  using set = setUp();
  expect(await set.run(args)).toEqual({ shown: true, by: 'notify-send' });
  expect(set.host.calls('notify-send')).toEqual([['-a', 'Glovebox', '--', `web: ${title}`, body]]);
});

const wrong: [what: string, args: Record<string, unknown>][] = [
  ['title is no text', { title: 1 }],
  ['title is no text', { title: null }],
  ['body is no text', { title: 'x', body: ['y'] }],
  ['body is no text', { title: 'x', body: {} }],
];

test.each(wrong)('refused: %s', (what, args) => {
  using set = setUp();
  expect(() => set.notify.parse(args)).toThrow(
    expect.objectContaining({ code: 'bad_request', message: expect.stringContaining(what) }),
  );
});

test('many lines stay within the bound', async () => {
  using set = setUp();
  await set.run({ title: 'x', body: 'a\nb\n'.repeat(4_000) });
  const body = set.host.calls('notify-send')[0]?.[4] ?? '';
  expect(body.length).toBeLessThanOrEqual(4_096);
  expect(body).toMatch(/^a\nb\na.*…$/s);
});

const callers: [Caller, string][] = [
  [{ kind: 'sandbox', id: '0123456789abcdef', name: 'web' }, 'web: other: hi'],
  [{ kind: 'sandbox', id: '0123456789abcdef' }, '0123456789ab: other: hi'],
  [{ kind: 'sandbox', id: 'x', name: '-u\u202e' }, 'u\\u202e: other: hi'],
  [{ kind: 'token', name: 'ci' }, 'token ci: other: hi'],
  [{ kind: 'stranger', address: '127.0.0.1' }, 'stranger 127.0.0.1: other: hi'],
];

test.each(callers)('whoever sends it stands in front: %j', async (caller, title) => {
  using set = setUp();
  await set.run({ title: 'other: hi' }, caller);
  expect(set.host.calls('notify-send')[0]?.[3]).toBe(title);
});

test('without notify-send, or when it fails, the next program speaks with the desktop', async () => {
  using set = setUp({ programs: { 'notify-send': 'exit 1', gdbus: 'exit 0', busctl: 'exit 0' } });
  expect(await set.run({ title: 'a"b', body: '\\074 <\n' })).toEqual({ shown: true, by: 'gdbus' });
  expect(set.host.calls('gdbus')[0]?.slice(-8)).toEqual([
    ...['"Glovebox"', '0', '""', '"web: a\\"b"', '"\\\\074 &lt;"', '[]', '{}', '-1'],
  ]);
  using last = setUp({ programs: { busctl: 'exit 0' } });
  expect(await last.run({ title: '-x', body: '--y' })).toEqual({ shown: true, by: 'busctl' });
  expect(last.host.calls('busctl')[0]?.slice(-8)).toEqual([
    ...['Glovebox', '0', '', 'web: -x', '--y', '0', '0', '-1'],
  ]);
});

test('on macOS text is an argument of the script, never part of it', async () => {
  using set = setUp({ programs: { osascript: 'exit 0' }, platform: 'darwin', env: {} });
  const hostile = '" & (do shell script "id") & "';
  expect(await set.run({ title: hostile, body: hostile })).toEqual({ shown: true, by: 'osascript' });
  const [args = []] = set.host.calls('osascript');
  expect(args.slice(-2)).toEqual([`web: ${hostile}`, hostile]);
  expect(args.slice(0, -2).join(' ')).not.toContain('do shell script');
});

const headless: [string, Partial<DesktopOptions>][] = [
  ['no session bus', { env: {} }],
  ['no program', { programs: {} }],
  ['nobody who shows it', { programs: { 'notify-send': 'exit 1' } }],
];

test.each(headless)('where there is %s, the log has it', async (_, options) => {
  using set = setUp(options);
  expect(await set.run({ title: 'Build', body: 'done' })).toEqual({ shown: false, by: 'log' });
  expect(set.log.lines).toEqual([
    { level: 'info', message: 'notification', fields: { from: 'web', title: 'Build', body: 'done' } },
  ]);
});

async function webhook(answer: (request: IncomingMessage, response: ServerResponse) => void) {
  const posted: { path: string | undefined; body: unknown }[] = [];
  let closed = 0;
  const server = createServer(async (request, response) => {
    response.once('close', () => {
      closed += 1;
    });
    posted.push({ path: request.url, body: JSON.parse(await text(request)) });
    answer(request, response);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    posted,
    closed: () => closed,
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/hook?key=secret`,
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

test('it is posted to the webhook, whether a desktop shows it or not', async () => {
  await using hook = await webhook((_, response) => response.end());
  using set = setUp({ webhook: hook.url });
  expect(await set.run({ title: 'Build', body: '<b>' })).toEqual({ shown: true, by: 'notify-send' });
  await vi.waitFor(() => expect(hook.posted).toHaveLength(1));
  expect(hook.posted).toEqual([
    {
      path: '/hook?key=secret',
      body: { sandbox: 'web', title: 'Build', body: '<b>', at: '2026-01-02T03:04:05.000Z' },
    },
  ]);
  expect(set.log.lines).toEqual([]);
});

test('a webhook sends our post nowhere else, and its failure is in the log without its address', async () => {
  await using hook = await webhook((_, response) =>
    response.writeHead(307, { location: '/elsewhere' }).end(),
  );
  using set = setUp({ webhook: hook.url });
  await set.run({ title: 'x' });
  await vi.waitFor(() => expect(set.log.lines).toHaveLength(1));
  expect(set.log.lines[0]).toMatchObject({ level: 'warn', fields: { why: 'HTTP 307' } });
  expect(hook.posted.map(({ path }) => path)).toEqual(['/hook?key=secret']);
  using dead = setUp({ webhook: 'http://127.0.0.1:1/?key=secret' });
  expect(await dead.run({ title: 'x' })).toEqual({ shown: true, by: 'notify-send' });
  await vi.waitFor(() => expect(dead.log.lines).toHaveLength(1));
  expect(JSON.stringify(dead.log.lines)).not.toContain('secret');
});

test('a webhook that hangs collects no more than a few posts, and the guest does not wait for it', async () => {
  await using hook = await webhook(() => {});
  using set = setUp({ webhook: hook.url });
  for (let n = 0; n < 12; n += 1) await set.run({ title: 'x' });
  await vi.waitFor(() => expect(hook.posted).toHaveLength(8));
  expect(set.log.lines.map(({ fields }) => fields.why)).toEqual(Array(4).fill('too many under way'));
  set.stop.abort();
  await vi.waitFor(() => expect(hook.closed()).toBe(8));
  expect(set.log.lines).toHaveLength(4);
});
