// OpenSandbox's network policies: the first rule whose target matches decides, in the order written; else the default.
import { NetworkPolicy } from '../contract/opensandbox.ts';
import { Failure } from '../lib/failure.ts';
import type { Entry } from './entries.ts';
import { parseDocument } from './json.ts';
import { parseEntry, type Resource } from './patterns.ts';

type NetworkRule = NetworkPolicy['egress'][number];

const rulesMax = 4_096;

/** Throws Failure('invalid') with file, line and column. */
export function parseNetworkPolicy(text: string, fileName: string): NetworkPolicy {
  const { value, document } = parseDocument(NetworkPolicy, text, fileName);
  value.egress.forEach((rule, index) => {
    try {
      targetOf(rule, index);
    } catch (thrown) {
      throw document.failure(['egress', index, 'target'], Failure.from(thrown, 'egress').message);
    }
  });
  return value;
}

/** Throws Failure('invalid') with the index of the first target that is none. */
export function checkNetworkPolicy(policy: NetworkPolicy): void {
  policy.egress.forEach(targetOf);
}

/** The policy with rules put before its own, which lose those about the same targets. Of several about one target, the first counts. */
export function patchNetworkPolicy(policy: NetworkPolicy, rules: readonly NetworkRule[]): NetworkPolicy {
  const seen = new Set<string>();
  const first = rules.filter((rule, index) => {
    const { text } = targetOf(rule, index);
    return !seen.has(text) && seen.add(text);
  });
  const egress = [...first, ...policy.egress.filter((rule, index) => !seen.has(targetOf(rule, index).text))];
  if (egress.length > rulesMax)
    throw new Failure('exhausted', `a network policy has at most ${rulesMax} rules`);
  return { ...policy, egress };
}

/** The policy without rules about these targets, and how many that were. Targets that it does not name are ignored. */
export function deleteTargets(
  policy: NetworkPolicy,
  targets: readonly string[],
): { policy: NetworkPolicy; matched: number } {
  const gone = new Set(
    targets.map((target, index) => parseEntry('targets', index, target, 'network-policy').text),
  );
  const egress = policy.egress.filter((rule, index) => !gone.has(targetOf(rule, index).text));
  return { policy: { ...policy, egress }, matched: policy.egress.length - egress.length };
}

export function networkPolicyEntries(policy: NetworkPolicy): Entry[] {
  return policy.egress.map((rule, index): Entry => {
    const { pattern, text } = targetOf(rule, index);
    return {
      effect: rule.action,
      pattern,
      port: undefined,
      protocols: ['tcp', 'udp'],
      request: undefined,
      rule: { id: `egress[${index}]`, text: `${rule.action} ${text}`, source: 'network-policy' },
    };
  });
}

const targetOf = (rule: NetworkRule, index: number): Resource =>
  parseEntry('egress', index, rule.target, 'network-policy');
