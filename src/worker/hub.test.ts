// Who may become a worker, whose token is taken, and what is known of workers: the hub alone, without connections.
import { createHmac, createPublicKey, type KeyObject } from 'node:crypto';
import { SignJWT } from 'jose';
import { beforeEach, describe, expect, test } from 'vitest';
import { FakeClock } from '../channel/faults.ts';
import type { EnrolRequest, NewEnrolment } from '../contract/worker.ts';
import type { Failure } from '../lib/failure.ts';
import { Kept, KeptLog, makeHub, newEnrolment } from './controller.fixture.ts';
import type { WorkerHub } from './hub.ts';
import { newPrivateKey, publicHalf, signToken } from './keys.ts';
import { callerOf } from './throttle.ts';

const dayMs = 86_400_000;
let kept: Kept;
let log: KeptLog;
let fake: FakeClock;
let now: Date;
let hub: WorkerHub;

const open = () => makeHub(kept, log, { clock: fake, now: () => now, random: () => 0.5 });
beforeEach(() => {
  kept = new Kept();
  log = new KeptLog();
  fake = new FakeClock();
  now = new Date('2026-03-04T05:06:07Z');
  hub = open();
});

const publicKey = () => publicHalf(newPrivateKey());
const tokenFor = (request: Partial<NewEnrolment> = {}) => hub.enrolment(newEnrolment(request)).token;
const enrol = (request: Partial<EnrolRequest> & { token: string }, address = '192.0.2.1') =>
  hub.enrol({ publicKey: publicKey(), labels: {}, ...request }, address);

function failureOf(work: () => unknown): Failure {
  try {
    work();
  } catch (thrown) {
    return thrown as Failure;
  }
  throw new Error('it did not fail');
}

/** A worker, and the key with which it signs. */
function worker(id: string): KeyObject {
  const key = newPrivateKey();
  enrol({ token: tokenFor({ workerId: id }), publicKey: publicHalf(key) });
  return key;
}

describe('enrolling', () => {
  test('a token makes one worker, and only its hash is kept', () => {
    const { token, id } = hub.enrolment(newEnrolment({ workerId: 'gpu-1', labels: { zone: 'cellar' } }));
    expect(token).toMatch(/^gbw_[\w-]{43}$/);
    expect(hub.enrolments()).toMatchObject([{ id, workerId: 'gpu-1', replace: false }]);
    expect(JSON.stringify(hub.enrolments())).not.toContain(token);
    expect(enrol({ token, workerId: 'gpu-1' })).toEqual({ workerId: 'gpu-1', controllerId: 'controller-1' });
    expect(hub.enrolments()).toEqual([]);
    expect(hub.get('gpu-1')).toMatchObject({ state: 'offline', labels: { zone: 'cellar' }, epoch: 0 });
    const disk = [...kept.enrolments.records.values(), ...kept.workers.records.values()].join();
    expect(disk).not.toContain(token);
    expect(disk).not.toContain(token.slice(4));
  });

  test('wrong, used, expired, taken back and revoked tokens are refused in the same words', () => {
    const used = tokenFor({ workerId: 'used' });
    enrol({ token: used });
    const expired = tokenFor({ expiresInSeconds: 10 });
    const { token: dropped, id } = hub.enrolment(newEnrolment());
    hub.dropEnrolment(id);
    const removedKey = publicKey();
    const removed = tokenFor({ workerId: 'removed' });
    enrol({ token: removed, publicKey: removedKey });
    hub.remove('removed');
    now = new Date(now.getTime() + 10_000);
    const failures = [
      failureOf(() => enrol({ token: 'gbw_wrong' }, '192.0.2.2')),
      failureOf(() => enrol({ token: used }, '192.0.2.2')),
      failureOf(() => enrol({ token: expired }, '192.0.2.2')),
      failureOf(() => enrol({ token: dropped }, '192.0.2.2')),
      failureOf(() => enrol({ token: removed, publicKey: removedKey }, '192.0.2.2')),
    ].map(({ code, message, hint }) => ({ code, message, hint }));
    expect(new Set(failures.map((it) => JSON.stringify(it))).size).toBe(1);
    expect(failures[0]?.code).toBe('unauthenticated');
    expect(log.text).not.toContain(used);
  });

  test('whoever did not hear the answer may ask again with the same key, until the token expires', () => {
    const token = tokenFor({ expiresInSeconds: 60 });
    const key = publicKey();
    const first = enrol({ token, publicKey: key });
    hub = open();
    expect(enrol({ token, publicKey: key })).toEqual(first);
    expect(first.workerId).toMatch(/^worker-[0-9a-f]{8}$/);
    expect(hub.list().length).toBe(1);
    now = new Date(now.getTime() + 60_000);
    expect(failureOf(() => enrol({ token, publicKey: key })).code).toBe('unauthenticated');
    hub.enrolments();
    expect(kept.enrolments.records.size).toBe(0);
  });

  test('an enrolment that was cut off by our own death goes on with the same key', () => {
    const token = tokenFor({ workerId: 'w' });
    const key = publicKey();
    kept.workers.save = () => {
      throw new Error('the power went');
    };
    expect(() => enrol({ token, publicKey: key })).toThrow('the power went');
    kept.workers.save = Object.getPrototypeOf(kept.workers).save;
    hub = open();
    expect(hub.list()).toEqual([]);
    expect(failureOf(() => enrol({ token })).code).toBe('unauthenticated');
    expect(enrol({ token, publicKey: key }).workerId).toBe('w');
  });

  test('an id that is taken is refused, with the token still good, unless it may be replaced', () => {
    worker('w');
    const token = tokenFor();
    expect(failureOf(() => enrol({ token, workerId: 'w' }))).toMatchObject({ code: 'conflict' });
    expect(enrol({ token, workerId: 'other' }).workerId).toBe('other');
    expect(failureOf(() => hub.enrolment(newEnrolment({ workerId: 'w' }))).code).toBe('conflict');
    hub.patch('w', { allowedCommands: ['/bin/true'] });
    const replacement = tokenFor({ workerId: 'w', replace: true, labels: { new: 'yes' } });
    expect(enrol({ token: replacement }).workerId).toBe('w');
    expect(hub.get('w')).toMatchObject({ labels: { new: 'yes' }, allowedCommands: ['/bin/true'] });
  });

  test('a token for one worker makes no other; a key must be one', () => {
    const token = tokenFor({ workerId: 'a' });
    expect(failureOf(() => enrol({ token, workerId: 'b' }))).toMatchObject({ code: 'invalid' });
    const zero = Buffer.alloc(32).toString('base64url');
    const one = Buffer.concat([Buffer.from([1]), Buffer.alloc(31)]).toString('base64url');
    for (const bad of ['A'.repeat(42), zero, one, `${publicKey().slice(0, 42)}-`.replace(/.-$/, '9_')])
      expect(failureOf(() => enrol({ token, publicKey: bad })).code).toBe('invalid');
    expect(enrol({ token, workerId: 'a' }).workerId).toBe('a');
  });

  test('guessing is slow from one address, and does not keep others out', () => {
    const token = tokenFor();
    for (let i = 0; i < 10; i++)
      expect(failureOf(() => enrol({ token: `guess-${i}` })).code).toBe('unauthenticated');
    const limited = failureOf(() => enrol({ token }));
    expect(limited).toMatchObject({ code: 'exhausted', details: { retryAfterMs: 5_000 } });
    expect(enrol({ token }, '192.0.2.99').controllerId).toBe('controller-1');
    fake.advance(5_000);
    expect(enrol({ token: tokenFor() }).controllerId).toBe('controller-1');
  });

  test.each([
    ['192.0.2.1', '192.0.2.1'],
    ['::ffff:192.0.2.1', '192.0.2.1'],
    ['2001:db8:1:2:3:4:5:6', '2001:db8:1:2'],
    ['2001:0DB8:1:2::9', '2001:db8:1:2'],
    ['2001:db8::1', '2001:db8:0:0'],
    ['::1', '0:0:0:0'],
    ['fe80::1%eth0', 'fe80:0:0:0'],
  ])('%s counts as %s', (address, caller) => {
    expect(callerOf(address)).toBe(caller);
  });
});

describe('tokens of workers', () => {
  const seconds = () => Math.floor(now.getTime() / 1000);
  const jwt = (claims: Record<string, unknown>) =>
    new SignJWT({ sub: 'w', aud: 'controller-1', iat: seconds(), exp: seconds() + 300, ...claims });
  const signed = (key: KeyObject, claims: Record<string, unknown> = {}) =>
    jwt(claims).setProtectedHeader({ alg: 'EdDSA' }).sign(key);
  const base64 = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const claims = () => ({ sub: 'w', aud: 'controller-1', iat: seconds(), exp: seconds() + 300 });

  const bad: [string, (key: KeyObject) => string | Promise<string>][] = [
    ['alg none', () => `${base64({ alg: 'none' })}.${base64(claims())}.`],
    ['alg none, with a signature', (key) => noneWithSignature(key)],
    [
      'HS256 with the public key as the secret',
      (key) => {
        const head = `${base64({ alg: 'HS256' })}.${base64(claims())}`;
        const secret = Buffer.from(publicHalf(key), 'base64url');
        return `${head}.${createHmac('sha256', secret).update(head).digest('base64url')}`;
      },
    ],
    [
      'HS256 with the public key in PEM as the secret',
      (key) => {
        const head = `${base64({ alg: 'HS256' })}.${base64(claims())}`;
        const secret = createPublicKey(key).export({ type: 'spki', format: 'pem' });
        return `${head}.${createHmac('sha256', secret).update(head).digest('base64url')}`;
      },
    ],
    [
      'a key that the token itself brings',
      (_) => {
        const own = newPrivateKey();
        const jwk = { kty: 'OKP', crv: 'Ed25519', x: publicHalf(own) };
        return jwt({}).setProtectedHeader({ alg: 'EdDSA', jwk }).sign(own);
      },
    ],
    ['another key', () => signed(newPrivateKey())],
    ["another worker's key", () => signed(worker('other'))],
    ['another audience', (key) => signed(key, { aud: 'controller-2' })],
    ['no audience', (key) => signed(key, { aud: undefined })],
    ['another subject', (key) => signed(key, { sub: 'nobody' })],
    ['no subject', (key) => signed(key, { sub: undefined })],
    ['a subject that is no text', (key) => signed(key, { sub: 7 as never })],
    ['a token that has expired', (key) => signed(key, { iat: seconds() - 400, exp: seconds() - 61 })],
    ['a token that lasts too long', (key) => signed(key, { exp: seconds() + 601 })],
    ['a token without an end', (key) => signed(key, { exp: undefined })],
    ['a token without a beginning', (key) => signed(key, { iat: undefined })],
    ['a token of the future', (key) => signed(key, { iat: seconds() + 62, exp: seconds() + 300 })],
    [
      'a critical extension',
      (key) =>
        jwt({})
          .setProtectedHeader({ alg: 'EdDSA', crit: ['x'], x: 1 } as never)
          .sign(key, { crit: { x: true } }),
    ],
    [
      'a changed letter',
      // The last one holds bits that mean nothing.
      async (key) => (await signed(key)).replace(/\.(.)(?=[^.]*$)/, (_, it) => (it === 'A' ? '.B' : '.A')),
    ],
    ['nothing', () => ''],
    ['no JWT', () => 'abc'],
    ['a very long one', (key) => signed(key, { pad: 'x'.repeat(4_000) })],
  ];
  const noneWithSignature = async (key: KeyObject) =>
    (await signed(key)).replace(/^[^.]+/, base64({ alg: 'none' }));

  test.each(bad)('%s is refused, without a word about why', async (_name, make) => {
    const token = await make(worker('w'));
    await expect(hub.authorize(`Bearer ${token}`, '192.0.2.1')).rejects.toMatchObject({
      ...{ code: 'unauthenticated', message: 'this is no token of a worker of this controller' },
      ...{ hint: undefined, details: undefined },
    });
    expect(log.lines.at(-1)).toMatchObject({ level: 'warn', fields: { address: '192.0.2.1' } });
  });

  test.each([
    undefined,
    '',
    'Bearer',
    'Basic dzp3',
    'Bearer a.b.c d.e.f',
  ])('the header %j is refused', async (header) => {
    worker('w');
    await expect(hub.authorize(header, '192.0.2.1')).rejects.toMatchObject({ code: 'unauthenticated' });
  });

  test('the right token is taken, also when the clocks differ by a minute', async () => {
    const key = worker('w');
    for (const offset of [0, -60, 59]) {
      const at = new Date(now.getTime() + offset * 1000);
      const token = await signToken(key, { workerId: 'w', controllerId: 'controller-1', at });
      expect(await hub.authorize(`Bearer ${token}`, '192.0.2.1')).toMatchObject({ workerId: 'w' });
    }
    const at = new Date(now.getTime() - 301_000);
    const late = await signToken(key, { workerId: 'w', controllerId: 'controller-1', at });
    expect(await hub.authorize(`bearer ${late}`, '192.0.2.1')).toMatchObject({ workerId: 'w' });
  });

  test('a worker that was removed, or whose key was replaced, is refused, also by the next controller process', async () => {
    const key = worker('w');
    hub = open();
    await hub.authorize(`Bearer ${await signed(key)}`, '192.0.2.1');
    enrol({ token: tokenFor({ workerId: 'w', replace: true }) });
    await expect(hub.authorize(`Bearer ${await signed(key)}`, '192.0.2.1')).rejects.toThrow('no token');
    const other = worker('v');
    hub.remove('v');
    hub = open();
    await expect(hub.authorize(`Bearer ${await signed(other, { sub: 'v' })}`, '192.0.2.1')).rejects.toThrow();
    expect(hub.list().map((it) => it.id)).toEqual(['w']);
  });

  test('whoever shows bad tokens has to wait; the worker they name is not kept out elsewhere', async () => {
    const key = worker('w');
    const wrong = await signed(newPrivateKey());
    for (let i = 0; i < 10; i++)
      await expect(hub.authorize(`Bearer ${wrong}`, '192.0.2.66')).rejects.toThrow('no token');
    const right = `Bearer ${await signed(key)}`;
    await expect(hub.authorize(right, '192.0.2.66')).rejects.toMatchObject({
      ...{ code: 'exhausted', details: { retryAfterMs: 2_000 } },
    });
    await hub.authorize(right, '192.0.2.1');
    // With another name for each token the address as a whole runs out.
    for (let i = 0; i < 50; i++)
      await hub.authorize(`Bearer ${await signed(key, { sub: `n${i}` })}`, '192.0.2.66').catch(() => {});
    await expect(
      hub.authorize(`Bearer ${await signed(key, { sub: 'fresh' })}`, '192.0.2.66'),
    ).rejects.toMatchObject({ code: 'exhausted' });
    fake.advance(3_600_000);
    await hub.authorize(right, '192.0.2.66');
  });

  test('a worker that connects all the time is slowed down', async () => {
    const right = `Bearer ${await signed(worker('w'))}`;
    for (let i = 0; i < 30; i++) await hub.authorize(right, `192.0.2.${i}`);
    await expect(hub.authorize(right, '192.0.2.200')).rejects.toMatchObject({
      ...{ code: 'exhausted', details: { retryAfterMs: 1_000 } },
    });
    fake.advance(1_000);
    await hub.authorize(right, '192.0.2.200');
  });

  test('of very many at the same moment some are asked to come back a little later', async () => {
    const right = `Bearer ${await signed(worker('w'))}`;
    const results = await Promise.allSettled(
      Array.from({ length: 300 }, (_, i) => hub.authorize(right, `198.51.100.${i % 250}`)),
    );
    const reasons = results.flatMap((it) => (it.status === 'rejected' ? [it.reason as Failure] : []));
    expect(reasons.some((it) => it.message.includes('at the same moment'))).toBe(true);
    expect(reasons.every((it) => it.code === 'exhausted' && Number(it.details?.retryAfterMs) > 0)).toBe(true);
    fake.advance(60_000);
    await hub.authorize(right, '192.0.2.1');
  });
});

describe('what is known', () => {
  test('labels are changed as RFC 7396 has it; the operator wins over the worker', () => {
    const key = publicKey();
    enrol({
      token: tokenFor({ workerId: 'w', labels: { tier: 'a' } }),
      publicKey: key,
      labels: { zone: 'x', os: 'y' },
    });
    expect(hub.get('w').labels).toEqual({ tier: 'a', zone: 'x', os: 'y' });
    expect(hub.patch('w', { labels: { zone: 'z', os: null, tier: null } }).labels).toEqual({ zone: 'z' });
    hub = open();
    expect(hub.get('w').labels).toEqual({ zone: 'z' });
    const failure = failureOf(() => hub.patch('w', { labels: { 'not a label': 'x' } }));
    expect(failure).toMatchObject({ code: 'invalid' });
    expect(failureOf(() => hub.patch('w', { labels: { __proto__x: 'y'.repeat(257) } })).code).toBe('invalid');
    expect(hub.get('w').labels).toEqual({ zone: 'z' });
  });

  test('commands and placing are decided by the operator, and kept', () => {
    worker('w');
    expect(hub.get('w')).toMatchObject({ schedulable: true, sandboxes: 0 });
    hub.patch('w', { schedulable: false, allowedCommands: ['/usr/bin/df'] });
    hub = open();
    expect(hub.get('w')).toMatchObject({ schedulable: false, allowedCommands: ['/usr/bin/df'] });
    expect(hub.patch('w', { allowedCommands: null }).allowedCommands).toBeUndefined();
  });

  test('workers are listed by id, and by all labels that were asked for', () => {
    for (const [id, labels] of [
      ['b', { zone: 'x', gpu: 'yes' }],
      ['a', { zone: 'x' }],
      ['c', {}],
    ] as const)
      enrol({ token: tokenFor({ workerId: id, labels }) });
    const ids = (labels?: Record<string, string>) => hub.list(labels).map((it) => it.id);
    expect(ids()).toEqual(['a', 'b', 'c']);
    expect(ids({ zone: 'x' })).toEqual(['a', 'b']);
    expect(ids({ zone: 'x', gpu: 'yes' })).toEqual(['b']);
    expect(ids({ constructor: 'x' })).toEqual([]);
    expect(hub.stats()).toEqual({ workers: 3, online: 0, byPlatform: {} });
  });

  test('what is not there is not found, whatever is asked of it', () => {
    for (const ask of [
      () => hub.get('x'),
      () => hub.patch('x', {}),
      () => hub.remove('x'),
      () => hub.link('x'),
      () => hub.dropEnrolment('x'),
    ])
      expect(failureOf(ask).code).toBe('not-found');
  });

  test('enrolments that nobody has used are gone when they expire', () => {
    tokenFor({ expiresInSeconds: 86_400 });
    expect(hub.enrolments().length).toBe(1);
    now = new Date(now.getTime() + dayMs);
    expect(hub.enrolments()).toEqual([]);
  });
});
