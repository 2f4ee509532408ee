import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import type { NetworkPolicy } from '../contract/opensandbox.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import { parseTarget } from '../policy/names.ts';
import { openSqliteStore } from '../store/sqlite/sqlite.ts';
import type { Store } from '../store/store.ts';
import { Policies } from './policies.ts';

let home: string;
let store: Store;
let hostAddresses: string[];
let changes: (string | undefined)[];
let logged: string[];

beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), 'glovebox-policies-'));
  store = openSqliteStore(join(home, 'db'));
  hostAddresses = [];
  changes = [];
  logged = [];
});
afterEach(() => {
  vi.useRealTimers();
  store.close();
  rmSync(home, { recursive: true, force: true });
});

const write = (_: object, message: string) => void logged.push(message);
const log: Log = { debug: write, info: write, warn: write, error: write };

/** As a daemon makes them, and as the next one does over the same home. */
const open = () =>
  new Policies({
    store,
    folder: join(home, 'network'),
    templateFile: join(home, 'proxy-config.json'),
    dangerouslyAllowMetadata: false,
    nameOf: (id) => `name-of-${id}`,
    log,
    now: () => new Date('2026-01-02T03:04:05Z'),
    onChange: (id) => void changes.push(id),
    hostAddresses: () => hostAddresses,
  });

const effect = (policies: Policies, sandboxId: string | undefined, target: string) => {
  const { host, port } = parseTarget(target, 443);
  return policies.of(sandboxId).decide({ host, port, protocol: 'tcp' }).effect;
};

const failureOf = (work: () => unknown): Failure => {
  try {
    work();
  } catch (error) {
    if (error instanceof Failure) return error;
  }
  throw new Error('it did not fail');
};

const onlyGood: NetworkPolicy = { defaultAction: 'deny', egress: [{ action: 'allow', target: 'good.test' }] };
const brokenPolicy: NetworkPolicy = { defaultAction: 'deny', egress: [{ action: 'allow', target: 'a b' }] };
const allow = (...resources: string[]) => ({ decision: 'allow' as const, resources });
const deny = (...resources: string[]) => ({ decision: 'deny' as const, resources });

describe('rules of the operator', () => {
  test('hold for all sandboxes or for one, and for the next daemon', () => {
    const policies = open();
    policies.open('one', {});
    policies.open('two', {});
    expect(effect(policies, 'one', 'a.test')).toBe('deny');
    policies.addRule(allow('a.test'), undefined);
    policies.addRule(allow('b.test'), 'one');
    expect(changes).toEqual([undefined, 'one']);
    const next = open();
    next.adopt('one');
    next.adopt('two');
    for (const it of [policies, next]) {
      expect(effect(it, 'one', 'a.test')).toBe('allow');
      expect(effect(it, 'two', 'a.test')).toBe('allow');
      expect(effect(it, 'one', 'b.test')).toBe('allow');
      expect(effect(it, 'two', 'b.test')).toBe('deny');
      expect(effect(it, undefined, 'b.test')).toBe('deny');
    }
  });

  test('are refused when they contradict one of the same scope, and can be taken away', () => {
    const policies = open();
    policies.open('one', {});
    const { id } = policies.addRule(allow('a.test'), undefined);
    const conflict = failureOf(() => policies.addRule(deny('a.test'), undefined));
    expect(conflict).toMatchObject({ code: 'conflict', hint: expect.stringContaining(id) });
    expect(conflict.message).toBe(`deny: "a.test" conflicts with existing allow rule "${id}"`);
    policies.addRule(deny('a.test'), 'one');
    expect(effect(policies, 'one', 'a.test')).toBe('deny');
    policies.removeRule(id);
    expect(failureOf(() => policies.removeRule(id)).code).toBe('not-found');
    expect(effect(policies, undefined, 'a.test')).toBe('deny');
  });

  test('about UDP are refused, for none would be kept', () => {
    const policies = open();
    for (const decision of ['allow', 'ask'] as const)
      expect(
        failureOf(() =>
          policies.addRule({ decision, resources: ['a.test'], protocols: ['tcp', 'udp'] }, undefined),
        ),
      ).toMatchObject({ code: 'unsupported', message: expect.stringContaining('UDP has no way out') });
    expect(policies.addRule(deny('a.test'), undefined).protocols).toEqual(['tcp', 'udp']);
  });

  test('a preset is chosen once, until it is given up; rules of single sandboxes stay', () => {
    const policies = open();
    policies.open('one', { rules: [allow('mine.test')] });
    expect(policies.initialized).toBe(false);
    expect(failureOf(() => policies.init('balancd'))).toMatchObject({
      code: 'invalid',
      hint: 'Choose one of allow-all, balanced, deny-all.',
    });
    expect(policies.init('allow-all').map((it) => it.resources)).toEqual([['**']]);
    expect(effect(policies, 'one', 'anything.test')).toBe('allow');
    expect(failureOf(() => policies.init('deny-all'))).toMatchObject({
      code: 'conflict',
      hint: expect.stringContaining('policy reset'),
    });
    policies.reset();
    expect(policies.initialized).toBe(false);
    expect(effect(policies, 'one', 'anything.test')).toBe('deny');
    expect(effect(policies, 'one', 'mine.test')).toBe('allow');
    policies.init('balanced');
    expect(effect(policies, 'one', 'registry.npmjs.org')).toBe('allow');
  });
});

describe('a policy that a sandbox brings', () => {
  test('counts instead of what is allowed everywhere, and under what the operator denies', () => {
    const policies = open();
    policies.addRule(allow('wide.test'), undefined);
    policies.open('one', { networkPolicy: onlyGood });
    expect(policies.networkPolicy('one')).toEqual(onlyGood);
    expect(effect(policies, 'one', 'wide.test')).toBe('deny');
    expect(effect(policies, 'one', 'good.test')).toBe('allow');
    policies.addRule(deny('good.test'), undefined);
    expect(effect(policies, 'one', 'good.test')).toBe('deny');
  });

  test('that cannot be compiled is refused, and nothing of the request is recorded', () => {
    const policies = open();
    const refused = failureOf(() =>
      policies.open('one', { networkPolicy: brokenPolicy, rules: [allow('a.test')] }),
    );
    expect(refused).toMatchObject({ code: 'invalid', message: expect.stringContaining('egress[0]') });
    expect(store.rules()).toEqual([]);
    expect(store.networkPolicy('one')).toBeUndefined();
    expect(policies.hasOwn('one')).toBe(false);
  });

  test('is replaced at once; a broken one, and one that its check refuses, leave the old', () => {
    const policies = open();
    policies.open('one', { networkPolicy: onlyGood });
    expect(failureOf(() => policies.replaceNetworkPolicy('one', brokenPolicy)).code).toBe('invalid');
    const other = { ...onlyGood, egress: [{ action: 'allow' as const, target: '*.other.test' }] };
    const veto = () => {
      throw new Failure('conflict', 'no');
    };
    expect(failureOf(() => policies.replaceNetworkPolicy('one', other, veto)).code).toBe('conflict');
    expect(effect(policies, 'one', 'good.test')).toBe('allow');
    policies.replaceNetworkPolicy('one', other);
    expect(changes).toEqual(['one']);
    expect(effect(policies, 'one', 'good.test')).toBe('deny');
    const next = open();
    next.adopt('one');
    expect(effect(next, 'one', 'a.other.test')).toBe('allow');
  });

  test('goes with the sandbox', () => {
    const policies = open();
    policies.open('one', {});
    policies.changeProxyConfig('one', change({ blockHosts: ['bad.test'] }));
    expect(existsSync(join(home, 'network/one/proxy-config.json'))).toBe(true);
    policies.forget('one');
    expect(existsSync(join(home, 'network/one'))).toBe(false);
    expect(policies.hasOwn('one')).toBe(false);
  });
});

const change = (some: object) => ({
  ...{ allowHosts: [], blockHosts: [], bypassHosts: [], allowCidrs: [], blockCidrs: [], bypassCidrs: [] },
  ...some,
});

describe('a proxy configuration', () => {
  test('begins with the default, is kept in its file, and what is changed there by hand is kept', () => {
    const policies = open();
    policies.open('one', {});
    expect(policies.proxyConfig('one')).toBeUndefined();
    policies.changeProxyConfig('one', change({ policy: 'deny', allowHosts: ['good.test'] }));
    expect(effect(policies, 'one', 'good.test')).toBe('allow');
    expect(effect(policies, 'one', 'other.test')).toBe('deny');
    const file = join(home, 'network/one/proxy-config.json');
    const byHand = JSON.parse(readFileSync(file, 'utf8'));
    byHand.network.allowedDomains.push('hand.test');
    writeFileSync(file, JSON.stringify(byHand));
    policies.changeProxyConfig('one', change({ blockHosts: ['bad.test'] }));
    expect(effect(policies, 'one', 'hand.test')).toBe('allow');
    const next = open();
    next.adopt('one');
    expect(effect(next, 'one', 'hand.test')).toBe('allow');
  });

  test('and a network policy exclude each other, with the way out in the hint', () => {
    const policies = open();
    policies.open('one', { networkPolicy: onlyGood });
    expect(failureOf(() => policies.changeProxyConfig('one', change({ policy: 'allow' })))).toMatchObject({
      code: 'conflict',
      hint: expect.stringContaining('policy allow network'),
    });
    policies.open('two', {});
    policies.changeProxyConfig('two', change({ policy: 'allow' }));
    expect(failureOf(() => policies.replaceNetworkPolicy('two', onlyGood))).toMatchObject({
      code: 'conflict',
      hint: expect.stringContaining('network proxy'),
    });
  });

  test('of the home is what new sandboxes without a policy get; a broken one makes none', () => {
    const template = join(home, 'proxy-config.json');
    writeFileSync(template, '{"policy":"deny","network":{"allowedDomains":["template.test"]}}');
    const policies = open();
    policies.open('one', {});
    expect(effect(policies, 'one', 'template.test')).toBe('allow');
    policies.open('two', { networkPolicy: onlyGood });
    expect(effect(policies, 'two', 'template.test')).toBe('deny');
    writeFileSync(template, '{\n  "policy": "denied"\n}');
    expect(failureOf(() => policies.open('three', {}))).toMatchObject({
      code: 'invalid',
      message: expect.stringContaining(`${template}:2:`),
    });
  });

  test('that cannot be read any more allows nothing, and is mended from its file', () => {
    const policies = open();
    policies.addRule(allow('**'), undefined);
    mkdirSync(join(home, 'network/one'), { recursive: true });
    const file = join(home, 'network/one/proxy-config.json');
    writeFileSync(file, '{ not JSON');
    policies.adopt('one');
    expect(logged).toEqual([
      'the policy of a sandbox cannot be read; it reaches nothing until that is mended',
    ]);
    expect(effect(policies, 'one', 'a.test')).toBe('deny');
    expect(failureOf(() => policies.changeProxyConfig('one', change({ policy: 'allow' }))).code).toBe(
      'invalid',
    );
    rmSync(file);
    policies.changeProxyConfig('one', change({ policy: 'allow' }));
    expect(effect(policies, 'one', 'a.test')).toBe('allow');
  });
});

test('an address that this host gets later is closed, too', () => {
  vi.useFakeTimers({ toFake: ['performance'] });
  const policies = open();
  const { host, port } = parseTarget('8.8.8.8:443');
  policies.addRule(allow('8.8.8.0/24'), undefined);
  const dial = () => {
    const attempt = { host, port, protocol: 'tcp' as const };
    const policy = policies.of(undefined);
    return policy.addresses(attempt, policy.decide(attempt), ['8.8.8.8']).dial;
  };
  expect(dial()).toEqual(['8.8.8.8']);
  hostAddresses = ['8.8.8.8'];
  vi.advanceTimersByTime(31_000);
  expect(dial()).toEqual([]);
});
