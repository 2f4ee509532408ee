// Opening pages: which ones, by which program, and how the browser's answer finds its way back.
import { networkInterfaces } from 'node:os';
import { expect, test, vi } from 'vitest';
import type { Caller } from '../bell.ts';
import { callOf, type DesktopOptions, lives, testDesktop, textOf, web } from '../desktop.fixture.ts';
import { createOpenUrl, type OpenUrlOptions } from './open-url.ts';

function setUp(options: Partial<DesktopOptions & Omit<OpenUrlOptions, 'programs'>> = {}) {
  const host = testDesktop({ programs: { 'xdg-open': 'exit 0' }, ...options });
  const stop = new AbortController();
  const forwarded: string[] = [];
  const openUrl = createOpenUrl({
    stopped: stop.signal,
    lookup: async () => ['93.184.216.34'],
    async forward(sandboxId, port) {
      forwarded.push(`${sandboxId}:${port}`);
      return { [Symbol.asyncDispose]: async () => void forwarded.push(`end ${port}`) };
    },
    ...options,
    programs: host.programs,
  });
  return {
    ...{ host, stop, forwarded, openUrl },
    async run(args: Record<string, unknown>, caller: Caller = web) {
      const input = openUrl.parse(args);
      openUrl.check?.(input, caller);
      return await openUrl.run(input, callOf(caller));
    },
    [Symbol.dispose]: () => host[Symbol.dispose](),
  };
}

const opened: [url: string, href: string][] = [
  ['https://example.com', 'https://example.com/'],
  ['HTTP://EXAMPLE.COM:80/A?b=c#d', 'http://example.com/A?b=c#d'],
  ['https://example.com/$(id);`id`&x=\'"|<>\\', "https://example.com/$(id);%60id%60&x='%22|%3C%3E/"],
  ['https://example.com/a b', 'https://example.com/a%20b'],
  ['https://bücher.example/', 'https://xn--bcher-kva.example/'],
  ['https://1.1.1.1/', 'https://1.1.1.1/'],
  ['https://[2606:4700::1111]/', 'https://[2606:4700::1111]/'],
  ['https:\\\\example.com\\--help', 'https://example.com/--help'],
];

test.each(opened)('opened: %s', async (url, href) => {
  using set = setUp();
  expect(await set.run({ url })).toEqual({ opened: true, by: 'xdg-open' });
  expect(set.host.calls('xdg-open')).toEqual([[href]]);
});

const wrong: [args: Record<string, unknown>, why: string][] = [
  [{}, 'url is missing'],
  [{ url: 1 }, 'url is no text'],
  [{ url: ['https://example.com/'] }, 'url is no text'],
  [{ url: '' }, 'is no URL'],
  [{ url: 'example.com' }, 'is no URL'],
  [{ url: '--help' }, 'is no URL'],
  [{ url: 'file:///etc/passwd' }, 'https:// or http://'],
  [{ url: 'javascript:alert(1)' }, 'https:// or http://'],
  [{ url: 'data:text/html,x' }, 'https:// or http://'],
  [{ url: 'ftp://example.com/' }, 'https:// or http://'],
  [{ url: 'x-apple.systempreferences:com.apple' }, 'https:// or http://'],
  [{ url: 'vscode://file/etc/passwd' }, 'https:// or http://'],
  [{ url: 'ms-msdt:/id' }, 'https:// or http://'],
  [{ url: 'smb://host/share' }, 'https:// or http://'],
  [{ url: 'view-source:https://example.com/' }, 'https:// or http://'],
  [{ url: 'blob:https://example.com/x' }, 'https:// or http://'],
  [{ url: 'java\nscript:alert(1)' }, 'control characters'],
  [{ url: 'https://exam\0ple.com/' }, 'control characters'],
  [{ url: 'https://example.com/\u001b[2J' }, 'control characters'],
  [{ url: 'https://google.com@evil.example/' }, 'user name'],
  [{ url: 'https://u:p@example.com/' }, 'user name'],
  [{ url: `https://example.com/${'a'.repeat(8_192)}` }, 'longer than'],
  [{ url: `https://example.com/${'ü'.repeat(4_000)}` }, 'longer than'],
  [{ url: 'https://example.com/', browser: 'x' }, 'takes url, callback_port; it was given "browser"'],
  [{ url: 'https://example.com/', callback_port: '8085' }, 'callback_port'],
  [{ url: 'https://example.com/', callback_port: 80 }, 'callback_port'],
  [{ url: 'https://example.com/', callback_port: 65_536 }, 'callback_port'],
  [{ url: 'https://example.com/', callback_port: 8_085.5 }, 'callback_port'],
];

test.each(wrong)('no request: %j', (args, why) => {
  using set = setUp();
  expect(() => set.openUrl.parse(args)).toThrow(
    expect.objectContaining({ code: 'bad_request', message: expect.stringContaining(why) }),
  );
});

const own = Object.values(networkInterfaces())
  .flatMap((all) => all ?? [])
  .filter(({ family, internal }) => family === 'IPv4' && !internal)
  .map(({ address }) => `http://${address}/`);

const refused = [
  ...['http://localhost/', 'http://LOCALHOST./', 'http://x.localhost:9999/', 'http://127.0.0.1:8080/'],
  ...['http://0x7f.1/', 'http://2130706433/', 'http://0177.0.0.1/', 'http://127.1/', 'http://0.0.0.0/'],
  ...[
    'http://[::1]/',
    'http://[::ffff:127.0.0.1]/',
    'http://[fe80::1]/',
    'http://[fd00::1]/',
    'http://[::]/',
  ],
  ...['http://10.0.0.1/', 'http://192.168.1.1/', 'http://172.16.0.1/', 'http://169.254.169.254/latest/'],
  ...['http://100.64.0.1/', 'http://224.0.0.1/', 'http://[64:ff9b::7f00:1]/'],
  ...['http://host.docker.internal:9999/', 'http://metadata.google.internal/', 'http://printer.local/'],
  ...['http://router/', 'http://fritz.home.arpa/', 'http://wiki.corp/', 'http://１２７.0.0.1/', ...own],
];

test.each(refused)('not of the public internet, and nobody is asked: %s', (url) => {
  using set = setUp();
  expect(() => set.openUrl.check?.(set.openUrl.parse({ url }), web)).toThrow(
    expect.objectContaining({ code: 'not_allowed' }),
  );
});

test.each([
  [['127.0.0.1']],
  [['93.184.216.34', '10.0.0.1']],
  [['::1']],
  [['169.254.169.254']],
])('a public name that leads to %j is not opened', async (addresses) => {
  using set = setUp({ lookup: async () => addresses });
  await expect(set.run({ url: 'https://rebound.example/', callback_port: 8_085 })).rejects.toMatchObject({
    code: 'not_allowed',
  });
  expect(set.host.calls('xdg-open')).toEqual([]);
  expect(set.forwarded).toEqual([]);
});

test('where names cannot be looked up the browser finds out', async () => {
  using set = setUp({ lookup: () => Promise.reject(new Error('ENOTFOUND')) });
  expect(await set.run({ url: 'https://example.com/' })).toMatchObject({ opened: true });
});

test('a person is shown the page, without what would steer a terminal, and where answers go', () => {
  using set = setUp();
  const { describe, parse } = set.openUrl;
  expect(describe(parse({ url: 'https://example.com/\u202egpj' }))).toBe('https://example.com/%E2%80%AEgpj');
  const long = describe(parse({ url: `https://example.com/${'a'.repeat(5_000)}`, callback_port: 8_085 }));
  expect(long).toMatch(/^https:\/\/example\.com\/a+… \(answers at port 8085 go to the sandbox\)$/);
  expect(long.length).toBeLessThan(700);
});

test('when one program gives up the next opens it', async () => {
  using set = setUp({ programs: { 'xdg-open': 'exit 3', gio: 'exit 0' } });
  expect(await set.run({ url: 'https://example.com/' })).toEqual({ opened: true, by: 'gio' });
  expect(set.host.calls('gio')).toEqual([['open', 'https://example.com/']]);
});

test('a browser that stays in the foreground has opened it, and stays when the daemon stops', async () => {
  using set = setUp({ programs: { 'xdg-open': 'echo $$ > "$0.pid"; exec /bin/sleep 600' } });
  expect(await set.run({ url: 'https://example.com/' })).toEqual({ opened: true, by: 'xdg-open' });
  set.stop.abort();
  const pid = Number(textOf(`${set.host.folder}/xdg-open.pid`));
  expect(lives(pid)).toBe(true);
  process.kill(pid, 'SIGKILL');
  await vi.waitFor(() => expect(lives(pid)).toBe(false), 10_000);
});

const useless: [string, Partial<DesktopOptions>, string][] = [
  ['a desktop', { env: {} }, 'no desktop'],
  ['a program', { programs: {} }, 'no program that opens pages'],
];

test.each(useless)('without %s there is no page', async (_, options, why) => {
  using set = setUp(options);
  expect(await set.openUrl.unavailable()).toContain(why);
  await expect(set.run({ url: 'https://example.com/' })).rejects.toMatchObject({ code: 'unavailable' });
  using mac = setUp({ platform: 'darwin', env: {}, programs: { open: 'exit 0' } });
  expect(await mac.openUrl.unavailable()).toBeUndefined();
  expect(await mac.run({ url: 'https://example.com/' })).toMatchObject({ by: 'open' });
});

const login = {
  url: 'https://login.example/?redirect_uri=http%3A%2F%2Flocalhost%3A8085',
  callback_port: 8_085,
};

test("the browser's answer comes back for a while", async () => {
  using set = setUp({ forwardingMs: 400 });
  expect(await set.run(login)).toEqual({ opened: true, by: 'xdg-open', callback_port: 8_085 });
  expect(set.forwarded).toEqual(['0123456789abcdef:8085']);
  await vi.waitFor(() => expect(set.forwarded).toEqual(['0123456789abcdef:8085', 'end 8085']));
});

test('the same port again is the same way back, and the way ends with the daemon', async () => {
  using set = setUp();
  await set.run(login);
  await set.run(login);
  expect(set.forwarded).toEqual(['0123456789abcdef:8085']);
  set.stop.abort();
  await vi.waitFor(() => expect(set.forwarded).toEqual(['0123456789abcdef:8085', 'end 8085']));
});

test('when the page cannot be opened there is no way back', async () => {
  using set = setUp({ programs: { 'xdg-open': 'exit 1' } });
  await expect(set.run(login)).rejects.toMatchObject({ code: 'failed' });
  expect(set.forwarded).toEqual(['0123456789abcdef:8085', 'end 8085']);
});

test('a port that is taken opens nothing', async () => {
  using set = setUp({ forward: () => Promise.reject(new Error('EADDRINUSE /home/me')) });
  await expect(set.run(login)).rejects.toMatchObject({
    code: 'unavailable',
    message: 'open_url: port 8085 of the host is not free for the answer',
  });
  expect(set.host.calls('xdg-open')).toEqual([]);
});

test('there are only so many ways back', async () => {
  using set = setUp();
  for (let n = 0; n < 16; n += 1) await set.run({ ...login, callback_port: 9_000 + n });
  await expect(set.run(login)).rejects.toMatchObject({ code: 'too_many_requests', retryAfterSeconds: 60 });
  set.stop.abort();
  await vi.waitFor(() => expect(set.forwarded.filter((it) => it.startsWith('end'))).toHaveLength(16));
});

test.each<Caller>([
  { kind: 'token', name: 'ci' },
  { kind: 'stranger', address: '127.0.0.1' },
])('who is no sandbox of ours has no way back: %j', async (caller) => {
  using set = setUp();
  await expect(set.run(login, caller)).rejects.toMatchObject({ code: 'not_allowed' });
  expect(await set.run({ url: login.url }, caller)).toMatchObject({ opened: true });
});
