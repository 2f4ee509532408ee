// Signatures of routes: who made them, for what, until when. Codes were computed apart from this code.
import { expect, test } from 'vitest';
import { RouteSigner } from './signed-routes.ts';

const id = '0d9c7c1e-4a52-4f0b-9a3d-6a8c1f2e3b4d';
const keys = [
  { id: 'k', secret: Buffer.from('first secret of 20b.') },
  { id: '0', secret: Buffer.from('second secret of 21b.') },
];
const now = new Date('2026-11-26T12:00:00Z');
const signer = (options: Partial<ConstructorParameters<typeof RouteSigner>[0]> = {}) =>
  new RouteSigner({ form: 'hmac', keys, activeKey: 'k', now: () => now, ...options });

test.each([
  ['opensandbox', '1f6d48f4k'],
  ['hmac', '03pikx4sv61k'],
] as const)('%s: the code is the one that others compute', (form, signature) => {
  expect(signer({ form }).sign(id, 8080, 2_000_000_000)).toEqual({ expires: 'x2qxvk', signature });
  expect(signer({ form }).check(id, 8080, { expires: 'x2qxvk', signature })).toBe('valid');
});

const changes: [what: string, id: string, port: number, change: (text: string) => string][] = [
  ['another sandbox', id.replace('0d', '1d'), 8080, (it) => it],
  ['another port', id, 8081, (it) => it],
  ['a port that moves into the expiry', id, 808, (it) => it],
  ['another letter', id, 8080, (it) => (it[0] === '0' ? '1' : '0') + it.slice(1)],
  ['another key that there is', id, 8080, (it) => `${it.slice(0, -1)}0`],
  ['a key that there is not', id, 8080, (it) => `${it.slice(0, -1)}z`],
  ['capitals', id, 8080, (it) => it.toUpperCase()],
  ['a shorter one', id, 8080, (it) => it.slice(1)],
  ['none', id, 8080, () => ''],
];
test.each(changes)('a signature does not hold for %s', (_, sandboxId, port, change) => {
  for (const form of ['hmac', 'opensandbox'] as const) {
    const { expires, signature } = signer({ form }).sign(id, 8080, 2_000_000_000);
    expect(signer({ form }).check(sandboxId, port, { expires, signature: change(signature) })).toBe('forged');
  }
});

test('a signature of one form is none of the other', () => {
  const part = signer({ form: 'opensandbox' }).sign(id, 8080, 2_000_000_000);
  expect(signer().check(id, 8080, part)).toBe('forged');
});

test('an expiry cannot be changed, and holds to its second', () => {
  const seconds = now.getTime() / 1000 + 60;
  const part = signer().sign(id, 8080, seconds);
  const at = (ms: number) => signer({ now: () => new Date(ms) }).check(id, 8080, part);
  expect(at(seconds * 1000)).toBe('valid');
  expect(at(seconds * 1000 + 1)).toBe('expired');
  const later = (seconds + 3_600).toString(36);
  expect(signer().check(id, 8080, { ...part, expires: later })).toBe('forged');
  for (const expires of [`0${part.expires}`, part.expires.toUpperCase(), '', '-1', `${part.expires}.0`])
    expect(signer().check(id, 8080, { ...part, expires })).toBe('forged');
});

test.each([0, now.getTime() / 1000, now.getTime(), 36 ** 7, Number.NaN])('%d is no expiry', (seconds) => {
  expect(() => signer().sign(id, 8080, seconds)).toThrow(/expires: /);
});

test('keys are rotated: new ones sign, old ones still hold, and those taken away do not', () => {
  const before = signer().sign(id, 8080, 2_000_000_000);
  const after = signer({ activeKey: '0' }).sign(id, 8080, 2_000_000_000);
  expect([before.signature.at(-1), after.signature.at(-1)]).toEqual(['k', '0']);
  expect(signer({ activeKey: '0' }).check(id, 8080, before)).toBe('valid');
  const alone = signer({ activeKey: '0', keys: keys.slice(1) });
  expect(alone.check(id, 8080, before)).toBe('forged');
  expect(alone.check(id, 8080, after)).toBe('valid');
});

test('a running signer takes other keys over, and stays as it was where these cannot be', () => {
  const running = signer();
  const before = running.sign(id, 8080, 2_000_000_000);
  const next = { form: 'hmac', keys: keys.slice(1) } as const;
  expect(() => running.use({ ...next, activeKey: 'k' })).toThrow(/no route key "k"/);
  expect(running.check(id, 8080, before)).toBe('valid');
  running.use({ ...next, activeKey: '0' });
  expect(running.check(id, 8080, before)).toBe('forged');
  expect(running.check(id, 8080, running.sign(id, 8080, 2_000_000_000))).toBe('valid');
});

test.each([
  [{ activeKey: 'x' }, /no route key "x"/],
  [{ keys: [...keys, keys[0] as (typeof keys)[0]] }, /the same id/],
  [{ keys: [{ id: 'kk', secret: Buffer.from('x') }], activeKey: 'kk' }, /one of 0-9/],
])('%j cannot sign', (options, says) => {
  expect(() => signer(options)).toThrow(says);
});
