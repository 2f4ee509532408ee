// OpenSandbox's policies: read with line and column, patched in front, and cut by target.
import { expect, test } from 'vitest';
import type { NetworkPolicy } from '../contract/opensandbox.ts';
import { checkNetworkPolicy, deleteTargets, parseNetworkPolicy, patchNetworkPolicy } from './opensandbox.ts';

const policy = (...egress: ['allow' | 'deny', string][]): NetworkPolicy => ({
  defaultAction: 'deny',
  egress: egress.map(([action, target]) => ({ action, target })),
});

test('what is left out is to deny', () => {
  expect(parseNetworkPolicy('{}', 'f')).toEqual({ defaultAction: 'deny', egress: [] });
  expect(parseNetworkPolicy('{"egress":[{"target":"a.test"}]}', 'f')).toEqual(policy(['deny', 'a.test']));
});

test.each([
  ['{"egress": [\n  {"action": "permit", "target": "a.test"}]}', '2:14: egress.0.action: '],
  ['{"egress": [\n  {"action": "allow", "host": "a.test"}]}', '2:3: egress.0.target: '],
  ['{"egres": []}', '1:2: unknown field "egres"'],
  [
    '{"egress": [\n  {"action": "allow", "target": "a.test"},\n  {"action": "allow", "target": "*"}]}',
    '3:33: egress[1]: "*": is no target',
  ],
  [
    '{"egress": [{"action": "allow", "target": "a.test:443"}]}',
    '1:43: egress[0]: "a.test:443": names a port',
  ],
  ['{"egress": [{"action": "allow" "target": "a.test"}]}', '1:32: expected "," or "}", found "\\""'],
])('%j is refused with its place', (text, reason) => {
  expect(() => parseNetworkPolicy(text, 'policy.json')).toThrow(expect.objectContaining({ code: 'invalid' }));
  expect(() => parseNetworkPolicy(text, 'policy.json')).toThrow(`policy.json:${reason}`);
});

test('a policy without a file is refused with the index', () => {
  expect(() => checkNetworkPolicy(policy(['allow', 'a.test'], ['deny', 'a b']))).toThrow('egress[1]: "a b"');
  expect(() => checkNetworkPolicy(policy(['allow', 'a.test']))).not.toThrow();
});

test('a patch goes in front, its first rule about a target counts, and older ones about the same go', () => {
  const base = policy(
    ['allow', 'a.test'],
    ['allow', '*.b.test'],
    ['deny', 'c.test'],
    ['allow', '10.1.1.1/8'],
  );
  const patch = policy(
    ['deny', 'A.test.'],
    ['allow', 'd.test'],
    ['allow', 'a.test'],
    ['deny', '10.0.0.0/8'],
  ).egress;
  expect(patchNetworkPolicy(base, patch)).toEqual(
    policy(
      ['deny', 'A.test.'],
      ['allow', 'd.test'],
      ['deny', '10.0.0.0/8'],
      ['allow', '*.b.test'],
      ['deny', 'c.test'],
    ),
  );
  expect(patchNetworkPolicy({ ...base, defaultAction: 'allow' }, [])).toEqual({
    ...base,
    defaultAction: 'allow',
  });
  expect(() => patchNetworkPolicy(base, policy(['allow', '**']).egress)).toThrow('egress[0]: "**"');
});

test('a patch cannot make a policy too long', () => {
  const many = policy(
    ...Array.from({ length: 4_096 }, (_, index) => ['allow', `h${index}.test`] as ['allow', string]),
  );
  expect(() => patchNetworkPolicy(many, policy(['allow', 'x.test']).egress)).toThrow(
    expect.objectContaining({ code: 'exhausted' }),
  );
  expect(patchNetworkPolicy(many, policy(['deny', 'h7.test']).egress).egress).toHaveLength(4_096);
});

test('rules are removed by their target, and others are ignored', () => {
  const base = policy(['allow', 'a.test'], ['deny', 'A.test'], ['allow', 'b.test']);
  expect(deleteTargets(base, ['a.TEST.', 'unknown.test'])).toEqual({
    policy: policy(['allow', 'b.test']),
    matched: 2,
  });
  expect(deleteTargets(base, ['*.a.test'])).toEqual({ policy: base, matched: 0 });
  expect(() => deleteTargets(base, ['a.test', 'a b'])).toThrow('targets[1]: "a b"');
});
