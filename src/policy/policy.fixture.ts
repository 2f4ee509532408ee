// What the tests of policies share: rules in one line, attempts from text, and a generator that makes the same "random" values in every run.
import type { Rule } from '../contract/network.ts';
import { compilePolicy } from './compile.ts';
import { parseTarget } from './names.ts';
import type { Attempt, Policy, PolicySources } from './policy.ts';
import { protocolsOf } from './rules.ts';

export function rule(
  decision: Rule['decision'],
  resources: string | string[],
  more: Partial<Omit<Rule, 'decision' | 'resources'>> = {},
): Rule {
  const content = { decision, resources: [resources].flat(), ...more };
  return {
    id: more.id ?? `${decision} ${resources}`,
    protocols: protocolsOf(content),
    createdVia: 'added',
    createdAt: '2026-01-01T00:00:00.000Z',
    ...content,
  };
}

export const policyOf = (rules: Rule[], more: Partial<PolicySources> = {}): Policy =>
  compilePolicy({ rules, hostAddresses: [], sandboxName: 'demo', ...more });

/** `host[:port]` (443 when absent), perhaps behind a method and before a path: `GET api.test:443 /v1`. */
export function attemptOf(text: string, protocol: Attempt['protocol'] = 'tcp'): Attempt {
  const words = text.split(' ');
  const [method, target, path] = words.length === 1 ? [undefined, text, undefined] : words;
  const { host, port } = parseTarget(target as string, 443);
  return {
    host,
    port,
    protocol,
    ...(method === undefined || path === undefined ? {} : { request: { method, path } }),
  };
}

export const effectOf = (policy: Policy, text: string): string => policy.decide(attemptOf(text)).effect;

/** Mulberry32: small, and good enough to try many values. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed;
  }

  /** A whole number from 0 to below `end`. */
  below(end: number): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(this.#state ^ (this.#state >>> 15), this.#state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * end);
  }

  one<Item>(items: readonly Item[]): Item {
    return items[this.below(items.length)] as Item;
  }

  list<Item>(most: number, make: () => Item): Item[] {
    return Array.from({ length: this.below(most + 1) }, make);
  }

  shuffled<Item>(items: readonly Item[]): Item[] {
    const left = [...items];
    return items.map(() => left.splice(this.below(left.length), 1)[0] as Item);
  }
}
