// The proxy configuration: as a file, with line and column of what is wrong in it, and as it is changed.
import { expect, test } from 'vitest';
import { ProxyConfigChange } from '../contract/network.ts';
import { changeProxyConfig, checkProxyConfig, defaultProxyConfig, parseProxyConfig } from './docker.ts';

const changed = (change: Partial<ProxyConfigChange>, config = defaultProxyConfig) =>
  changeProxyConfig(config, ProxyConfigChange.parse(change));

test('a file may leave lists out, and without a list of blocks private networks stay blocked', () => {
  expect(parseProxyConfig('{"policy": "deny"}', 'f')).toEqual({ ...defaultProxyConfig, policy: 'deny' });
  expect(parseProxyConfig('{"policy":"allow","network":{"allowedDomains":["a.test"]}}', 'f')).toEqual({
    policy: 'allow',
    network: { ...defaultProxyConfig.network, allowedDomains: ['a.test'] },
  });
  const none = parseProxyConfig('{"policy":"allow","network":{"blockCIDR":[]}}', 'f');
  expect(none.network.blockCIDR).toEqual([]);
});

test('what is written can be read again', () => {
  const config = changed({ allowHosts: ['*.a.test:443'], blockCidrs: ['8.8.8.8'], policy: 'deny' });
  expect(parseProxyConfig(JSON.stringify(config, null, 2), 'f')).toEqual(config);
  expect(() => checkProxyConfig(config)).not.toThrow();
});

test.each([
  ['', '1:1: expected a value, found the end of the file'],
  ['{', '1:2: expected a key in double quotes, found the end of the file'],
  ['{\n  "policy": "allow",\n}', '3:1: expected a key in double quotes, found "}"'],
  ['{"policy": allow}', '1:12: expected a value, found "a"'],
  ['{"policy": "allow"} x', '1:21: expected the end, found "x"'],
  ['{"policy": "allow", "policy": "deny"}', '1:21: the key "policy" is given twice'],
  ['{"policy": "maybe"}', '1:12: policy: '],
  ['{}', '1:1: policy: '],
  ['[]', '1:1: '],
  ['{\n "policy": "allow",\n "polcy": 1\n}', '3:2: unknown field "polcy"'],
  ['{"policy":"allow","network":{\n  "allowedDomain": []\n}}', '2:3: unknown field "allowedDomain"'],
  ['{"policy":"allow","network":{"allowedDomains":[\n"a.test",\n  7]}}', '3:3: network.allowedDomains.1: '],
  [
    '{"policy":"allow","network":{"allowedDomains":[\n"a.test",\n  "a b"]}}',
    '3:3: allowedDomains[1]: "a b": has a character that no host has, column 2',
  ],
  [
    '{"policy":"allow","network":{"blockCIDR":["10.0.0.0/8",\n\n    "10.0.0/8"]}}',
    '3:5: blockCIDR[1]: "10.0.0/8": is no range of addresses like 10.0.0.0/8, column 1',
  ],
  [
    '{"policy":"allow","network":{"blockedDomains":["A.test."],"allowedDomains":["a.test"]}}',
    '1:48: blockedDomains[0]: "a.test": contradicts the same entry in allowedDomains',
  ],
  [
    '{"policy":"allow","network":{"blockCIDR":["10.1.1.1/8"],"allowCIDR":["10.0.0.0/8"]}}',
    '1:43: blockCIDR[0]: "10.0.0.0/8": contradicts the same entry in allowCIDR',
  ],
])('%j is refused with its place', (text, reason) => {
  expect(() => parseProxyConfig(text, 'proxy-config.json')).toThrow(
    expect.objectContaining({ code: 'invalid' }),
  );
  expect(() => parseProxyConfig(text, 'proxy-config.json')).toThrow(`proxy-config.json:${reason}`);
});

test('to allow takes off the other lists, to block too, and each entry is there once', () => {
  const blocked = changed({ blockHosts: ['A.test', 'b.test:443'], bypassHosts: ['c.test'] });
  expect(blocked.network).toMatchObject({
    blockedDomains: ['a.test', 'b.test:443'],
    bypassDomains: ['c.test'],
  });
  const allowed = changed({ allowHosts: ['a.TEST', 'a.test.', 'c.test'] }, blocked);
  expect(allowed.network).toMatchObject({
    allowedDomains: ['a.test', 'c.test'],
    blockedDomains: ['b.test:443'],
    bypassDomains: [],
  });
  expect(changed({ blockHosts: ['c.test'] }, allowed).network).toMatchObject({
    allowedDomains: ['a.test'],
    blockedDomains: ['b.test:443', 'c.test'],
  });
  expect(changed({ allowHosts: ['d.test'], bypassHosts: ['d.test'] }).network).toMatchObject({
    allowedDomains: ['d.test'],
    bypassDomains: ['d.test'],
  });
});

test('ranges change in the same way, and a single address is a range', () => {
  const allowed = changed({ allowCidrs: ['10.9.9.9/8', '192.168.1.7'] });
  expect(allowed.network.allowCIDR).toEqual(['10.0.0.0/8', '192.168.1.7/32']);
  expect(allowed.network.blockCIDR).not.toContain('10.0.0.0/8');
  expect(allowed.network.blockCIDR).toContain('192.168.0.0/16');
  const again = changed({ blockCidrs: ['10.0.0.0/8'], bypassCidrs: ['fd00::1'] }, allowed);
  expect(again.network.allowCIDR).toEqual(['192.168.1.7/32']);
  expect(again.network.blockCIDR.at(-1)).toBe('10.0.0.0/8');
  expect(again.network.bypassCIDR).toEqual(['fd00::1/128']);
});

test('a change leaves the configuration it began with as it was', () => {
  const before = structuredClone(defaultProxyConfig);
  changed({ policy: 'deny', allowHosts: ['a.test'], allowCidrs: ['10.0.0.0/8'] });
  expect(defaultProxyConfig).toEqual(before);
  expect(changed({})).toEqual(before);
});

test.each([
  [{ allowHosts: ['a.test', '**'] }, 'allowHosts[1]: "**": is no pattern of this list'],
  [{ blockHosts: ['a b'] }, 'blockHosts[0]: "a b": has a character'],
  [{ bypassHosts: ['a.test:0'] }, 'bypassHosts[0]: "a.test:0": has a port'],
  [{ allowCidrs: ['10.0.0.0/99'] }, 'allowCidrs[0]: "10.0.0.0/99": is no range'],
  [{ bypassCidrs: ['a.test'] }, 'bypassCidrs[0]: "a.test": is no range'],
  [
    { allowHosts: ['a.test'], blockHosts: ['A.test'] },
    'blockHosts[0]: "a.test": contradicts the same entry in allowHosts',
  ],
  [
    { allowCidrs: ['10.0.0.0/8'], blockCidrs: ['10.0.0.1/8'] },
    'blockCidrs[0]: "10.0.0.0/8": contradicts the same entry in allowCidrs',
  ],
])('the change %j is refused', (change, reason) => {
  expect(() => changed(change)).toThrow(expect.objectContaining({ code: 'invalid' }));
  expect(() => changed(change)).toThrow(reason);
});

test('the lists are bounded', () => {
  const names = (from: number) => Array.from({ length: 1_024 }, (_, index) => `h${from + index}.test`);
  let config = defaultProxyConfig;
  for (let from = 0; from < 4_096; from += 1_024) config = changed({ allowHosts: names(from) }, config);
  expect(() => changed({ allowHosts: ['one.more.test'] }, config)).toThrow(
    'allowedDomains would have more than 4096',
  );
  const file = JSON.stringify({
    policy: 'allow',
    network: { allowedDomains: [...config.network.allowedDomains, 'x.test'] },
  });
  expect(() => parseProxyConfig(file, 'f')).toThrow('at most 4096 entries');
});
