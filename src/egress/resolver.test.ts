import { mkdtemp, rm, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test, vi } from 'vitest';
import { type DnsServer, dnsServer, type Script } from '../../test/network/dns-server.ts';
import { Failure } from '../lib/failure.ts';
import { useRunningTime } from '../lib/running-time.fixture.ts';
import { createResolver, parseHosts, type Resolver, type ResolverOptions } from './resolver.ts';
import { UpstreamError } from './upstream.ts';

const { signal } = new AbortController();

async function scripted(
  script: Script,
  options: Partial<ResolverOptions> = {},
): Promise<{ resolver: Resolver; dns: DnsServer }> {
  useRunningTime();
  const dns = await dnsServer(script);
  const resolver = createResolver({
    hosts: {},
    hostsFile: '/nonexistent',
    nameServers: [dns.address],
    ...options,
  });
  onTestFinished(async () => {
    resolver.close();
    await dns[Symbol.asyncDispose]();
  });
  return { resolver, dns };
}

const both: Script = ({ type }) => ({
  addresses: type === 'A' ? ['192.0.2.1', '192.0.2.2'] : ['2001:db8::1'],
});

async function codeOf(promise: Promise<unknown>): Promise<string> {
  const error = await promise.then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof UpstreamError)) throw new Error(`not an UpstreamError: ${error}`);
  return `${error.code}: ${error.message}`;
}

test('both families are asked for at once, and come in turns', async () => {
  const { resolver, dns } = await scripted(both);
  expect(await resolver.resolve('example.test', 'a', signal)).toEqual([
    '192.0.2.1',
    '2001:db8::1',
    '192.0.2.2',
  ]);
  expect(dns.questions.toSorted()).toEqual(['example.test A', 'example.test AAAA']);
});

test('fixed names and the hosts file come before any question', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'glovebox-hosts-'));
  onTestFinished(() => rm(folder, { recursive: true }));
  const hostsFile = join(folder, 'hosts');
  await writeFile(hostsFile, '192.0.2.7 inner.test Alias # 192.0.2.8 no.test\n192.0.2.9 fixed.test\n');
  let now = 0;
  const { resolver, dns } = await scripted(both, {
    hosts: { 'Fixed.test.': ['192.0.2.5'] },
    hostsFile,
    now: () => now,
  });
  expect(await resolver.resolve('fixed.test', 'a', signal)).toEqual(['192.0.2.5']);
  expect(await resolver.resolve('inner.test', 'a', signal)).toEqual(['192.0.2.7']);
  expect(await resolver.resolve('alias', 'a', signal)).toEqual(['192.0.2.7']);

  await writeFile(hostsFile, '192.0.2.17 inner.test\n');
  await utimes(hostsFile, 1, 1);
  now += 2_000;
  expect(await resolver.resolve('inner.test', 'a', signal)).toEqual(['192.0.2.17']);
  expect(dns.questions).toEqual([]);
});

test('a hosts file is read with care', () => {
  const text = [
    'fe80::1%eth0 zone.test',
    '999.1.1.1 wrong.test',
    'just words',
    '192.0.2.1',
    '2001:db8::1\tsix.test',
    `192.0.2.1 many.test`,
    ...Array.from({ length: 40 }, (_, at) => `192.0.2.${at} many.test`),
  ].join('\n');
  const names = parseHosts(text);
  expect([...names.keys()]).toEqual(['six.test', 'many.test']);
  expect(names.get('many.test')).toHaveLength(32);
});

test('a name of one label, and localhost, are never asked for', async () => {
  const { resolver, dns } = await scripted(both, { hosts: { localhost: ['192.0.2.66'] } });
  expect(await codeOf(resolver.resolve('intranet', 'a', signal))).toBe('dns: intranet: no such name');
  expect(await resolver.resolve('localhost', 'a', signal)).toEqual(['127.0.0.1', '::1']);
  expect(await resolver.resolve('metadata.localhost', 'a', signal)).toEqual(['127.0.0.1', '::1']);
  expect(dns.questions).toEqual([]);
});

test('an answer is kept for its TTL, within a second and a minute', async () => {
  let now = 0;
  const ttls: Record<string, number> = { 'zero.test': 0, 'ten.test': 10, 'day.test': 86_400 };
  const { resolver, dns } = await scripted(
    ({ name, type }) => ({
      addresses: type === 'A' ? ['192.0.2.1'] : ['2001:db8::1'],
      ttl: ttls[name] as number,
    }),
    { now: () => now },
  );
  const asked = async (name: string, at: number) => {
    now = at;
    const before = dns.questions.length;
    await resolver.resolve(name, 'a', signal);
    return dns.questions.length > before;
  };
  const rows = [
    ['zero.test', 999, 1_000],
    ['ten.test', 9_999, 10_000],
    ['day.test', 59_999, 60_000],
  ] as const;
  for (const [name, kept, gone] of rows) {
    expect(await asked(name, 0)).toBe(true);
    expect([name, await asked(name, kept)]).toEqual([name, false]);
    expect([name, await asked(name, gone)]).toEqual([name, true]);
  }
});

test('an absence is kept for five seconds, a failure for one', async () => {
  let now = 0;
  const { resolver, dns } = await scripted(({ name }) => (name === 'no.test' ? 'absent' : 'broken'), {
    now: () => now,
  });
  expect(await codeOf(resolver.resolve('no.test', 'a', signal))).toBe('dns: no.test: no such name');
  const first = dns.questions.length;
  now = 4_999;
  await codeOf(resolver.resolve('no.test', 'a', signal));
  expect(dns.questions.length).toBe(first);
  now = 5_000;
  await codeOf(resolver.resolve('no.test', 'a', signal));
  expect(dns.questions.length).toBeGreaterThan(first);

  expect(await codeOf(resolver.resolve('ill.test', 'a', signal))).toContain('no usable answer');
  const second = dns.questions.length;
  now += 1_000;
  await codeOf(resolver.resolve('ill.test', 'a', signal));
  expect(dns.questions.length).toBeGreaterThan(second);
});

test('at most 32 addresses are taken of a name', async () => {
  const { resolver } = await scripted(({ type }) =>
    type === 'AAAA' ? 'absent' : { addresses: Array.from({ length: 28 }, (_, at) => `192.0.2.${at}`) },
  );
  expect(await resolver.resolve('many.test', 'a', signal)).toHaveLength(28);
  const { resolver: more } = await scripted(({ type }) => ({
    addresses: Array.from({ length: type === 'A' ? 28 : 14 }, (_, at) =>
      type === 'A' ? `192.0.2.${at}` : `2001:db8::${at + 1}`,
    ),
  }));
  expect(await more.resolve('many.test', 'a', signal)).toHaveLength(32);
});

test('equal questions at the same time are one question', async () => {
  const { resolver, dns } = await scripted(both);
  const answers = await Promise.all(
    Array.from({ length: 40 }, (_, at) => resolver.resolve('example.test', `caller ${at % 4}`, signal)),
  );
  expect(new Set(answers.map(String)).size).toBe(1);
  expect(dns.questions).toHaveLength(2);
});

test('names that never answer hold up their own caller only', async () => {
  const { resolver, dns } = await scripted(
    ({ name, type }) => (name.startsWith('slow') ? 'silence' : both({ name, type, nth: 1 })),
    { tryMs: 5_000 },
  );
  const gaveUp = new AbortController();
  const slow = Array.from({ length: 40 }, (_, at) =>
    resolver.resolve(`slow${at}.test`, 'hostile', gaveUp.signal).catch((error: Error) => error.message),
  );
  const own = resolver
    .resolve('example.test', 'hostile', gaveUp.signal)
    .catch((error: Error) => error.message);
  expect(await resolver.resolve('example.test', 'other', signal)).toContain('192.0.2.1');
  const names = new Set(dns.questions.map((question) => question.split(' ')[0]));
  expect(names.size).toBe(16 + 1);
  gaveUp.abort(new Error('gone'));
  expect(new Set(await Promise.all([...slow, own]))).toEqual(new Set(['gone']));
});

test('who leaves before the answer does not get to ask more', async () => {
  const { resolver, dns } = await scripted(() => 'silence', { tryMs: 60_000 });
  const asked = () => new Set(dns.questions.map((question) => question.split(' ')[0]));
  const leaving = new AbortController();
  const ask = (name: string, who: string) => resolver.resolve(name, who, leaving.signal).catch(() => {});
  const first = Array.from({ length: 16 }, (_, at) => ask(`first${at}.test`, 'hostile'));
  await vi.waitFor(() => expect(asked().size).toBe(16));
  leaving.abort(new Error('gone'));
  await Promise.all(first);
  void resolver.resolve('second.test', 'hostile', signal).catch(() => {});
  void resolver.resolve('other.test', 'other', signal).catch(() => {});
  // Asked after it, so the second would be here by now.
  await vi.waitFor(() => expect(asked()).toContain('other.test'));
  expect(asked()).not.toContain('second.test');
});

test('a family that is never answered does not hold up the other', async () => {
  const { resolver } = await scripted((question) => (question.type === 'AAAA' ? 'silence' : both(question)), {
    tryMs: 60_000,
  });
  expect(await resolver.resolve('example.test', 'a', signal)).toEqual(['192.0.2.1', '192.0.2.2']);
});

test('name servers that are silent end in an error', async () => {
  const { resolver } = await scripted(() => 'silence', { tryMs: 100 });
  expect(await codeOf(resolver.resolve('example.test', 'a', signal))).toContain('no usable answer');
});

test('options that make no sense are refused', () => {
  const options = { hosts: {}, nameServers: [] };
  for (const wrong of [
    { nameServers: ['dns.example'] },
    { nameServers: ['192.0.2.1:port'] },
    { hosts: { 'a.test': ['b.test'] } },
    { hosts: { 'a.test': [] } },
  ])
    expect(() => createResolver({ ...options, ...wrong })).toThrow(Failure);
});
