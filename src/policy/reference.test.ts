// The reference page says what matches what, in tables; each of their rows is decided here, so that the page cannot be wrong.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import type { ProxyConfigChange, Rule } from '../contract/network.ts';
import type { NetworkPolicy } from '../contract/opensandbox.ts';
import { changeProxyConfig, defaultProxyConfig } from './docker.ts';
import { attemptOf, policyOf, rule } from './policy.fixture.ts';
import type { Policy } from './policy.ts';

const page = readFileSync(join(import.meta.dirname, '../../docs/reference/policy.md'), 'utf8');

/** Rows of the table that has this in the first cell of its head: policy, attempt, decision, reason. */
function rowsOf(head: string): string[][] {
  const lines = page.split('\n');
  const start = lines.indexOf(`| ${head} | attempt | decision | reason |`) + 2;
  const end = lines.findIndex((line, index) => index >= start && !line.startsWith('|'));
  return lines.slice(start, end).map((line) =>
    line
      .split('|')
      .slice(1, -1)
      .map((cell) => cell.trim().replace(/^`|`$/g, '')),
  );
}

const statementsOf = (cell: string): string[][] =>
  cell === '' ? [] : cell.split('; ').map((statement) => statement.split(' '));

function operatorPolicy(cell: string): Policy {
  return policyOf(
    statementsOf(cell).map(([decision, resource = '', methods, path]) =>
      rule(decision as Rule['decision'], resource, {
        ...(methods === undefined ? {} : { methods: methods.split(',') }),
        ...(path === undefined ? {} : { path }),
      }),
    ),
  );
}

function proxyPolicy(cell: string): Policy {
  const change: ProxyConfigChange = {
    ...{ allowHosts: [], blockHosts: [], bypassHosts: [] },
    ...{ allowCidrs: [], blockCidrs: [], bypassCidrs: [] },
  };
  const lists: Record<string, string[]> = {
    ...{
      'allow-host': change.allowHosts,
      'block-host': change.blockHosts,
      'bypass-host': change.bypassHosts,
    },
    ...{
      'allow-cidr': change.allowCidrs,
      'block-cidr': change.blockCidrs,
      'bypass-cidr': change.bypassCidrs,
    },
  };
  for (const [option = '', value = ''] of statementsOf(cell))
    if (option === 'policy') change.policy = value as 'allow' | 'deny';
    else lists[option]?.push(value);
  return policyOf([], {
    own: { kind: 'proxy-config', config: changeProxyConfig(defaultProxyConfig, change) },
  });
}

function networkPolicy(cell: string): Policy {
  const policy: NetworkPolicy = { defaultAction: 'deny', egress: [] };
  for (const [action, value = ''] of statementsOf(cell))
    if (action === 'default') policy.defaultAction = value as 'allow' | 'deny';
    else policy.egress.push({ action: action as 'allow' | 'deny', target: value });
  return policyOf([], { own: { kind: 'network-policy', policy } });
}

function outcomeOf(policy: Policy, text: string): [string, string] {
  const [what = '', resolved] = text.split(' → ');
  const udp = what.startsWith('udp ');
  const attempt = attemptOf(udp ? what.slice(4) : what, udp ? 'udp' : 'tcp');
  const decision = policy.decide(attempt);
  const { denied } = resolved === undefined ? {} : policy.addresses(attempt, decision, [resolved]);
  const { effect, reason } = denied ?? decision;
  return [effect, reason];
}

test.each([
  ['rules', operatorPolicy, 100],
  ['configuration', proxyPolicy, 38],
  ['policy', networkPolicy, 18],
] as const)('the table of %s says what is decided', (head, policyFrom, atLeast) => {
  const rows = rowsOf(head);
  expect(rows.length).toBeGreaterThanOrEqual(atLeast);
  const decided = rows.map(([policy = '', attempt = '']) => [
    policy,
    attempt,
    ...outcomeOf(policyFrom(policy), attempt),
  ]);
  expect(decided).toEqual(rows);
});

test('the page names the ranges that a proxy configuration blocks by default', () => {
  for (const range of defaultProxyConfig.network.blockCIDR) expect(page).toContain(`\`${range}\``);
});
