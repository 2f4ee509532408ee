// The operator's rules, in `sbx`'s dialect: denials win, an allowance by host covers every request, one with methods and a path covers those only.
import type { Rule } from '../contract/network.ts';
import { Failure } from '../lib/failure.ts';
import type { Entry, RequestPattern } from './entries.ts';
import { quoted } from './names.ts';
import { parsePathPattern } from './paths.ts';
import { atEntry, parseEntry, type Resource, tooWide } from './patterns.ts';

export const methodsKnown: ReadonlySet<string> = new Set(
  'GET HEAD POST PUT PATCH DELETE OPTIONS CONNECT TRACE'.split(' '),
);

/** What is compared and compiled; both a new rule and a stored one are that. */
export type RuleContent = Pick<Rule, 'decision' | 'resources'> & {
  [Field in 'methods' | 'path' | 'name' | 'sandboxId' | 'createdVia']?: Rule[Field] | undefined;
} & { protocols?: Rule['protocols'] | undefined };

/** What a rule covers when it does not say: denials also cover UDP, but for rules about HTTP requests. */
export const protocolsOf = (rule: RuleContent): Rule['protocols'] =>
  rule.protocols ?? (rule.decision === 'deny' && rule.methods === undefined ? ['tcp', 'udp'] : ['tcp']);

/**
 * Throws Failure('invalid') for what cannot be parsed, can never match, or allows far more than it seems to, with the entry and the column.
 * A rule that is `createdVia` the default (a preset) may allow everything below a public suffix.
 */
export function validateRule(rule: RuleContent): void {
  const resources = resourcesOf(rule);
  requestOf(rule);
  if (rule.name !== undefined && /\p{Cc}/u.test(rule.name))
    throw new Failure('invalid', 'name: has control characters');
  if (rule.decision !== 'allow' || rule.createdVia === 'default') return;
  resources.forEach(({ pattern }, index) => {
    const reason = tooWide(pattern);
    if (reason !== undefined) throw atEntry('resources', index, rule.resources[index] as string, reason);
  });
}

/**
 * The first rule of the same scope that says the contrary of the very same thing. Rules that overlap are no conflict: the order of decisions
 * says which holds.
 */
export function conflictOf(rule: RuleContent, existing: readonly Rule[]): Rule | undefined {
  if (rule.decision === 'bypass') return undefined;
  const texts = new Set(resourcesOf(rule).map((it) => it.text));
  const methods = methodsOf(rule);
  return existing.find(
    (other) =>
      other.decision !== rule.decision &&
      other.decision !== 'bypass' &&
      other.sandboxId === rule.sandboxId &&
      other.path === rule.path &&
      sameMethods(methods, methodsOf(other)) &&
      protocolsOf(other).some((it) => protocolsOf(rule).includes(it)) &&
      resourcesOf(other).some((it) => texts.has(it.text)),
  );
}

/** One entry for each resource. Throws as `validateRule` does, but for what is only too wide. */
export function entriesOf(rule: Rule): { bypass: Entry[]; decide: Entry[] } {
  const request = requestOf(rule);
  const entries = resourcesOf(rule).map(
    ({ pattern, port, text }): Entry => ({
      effect: rule.decision === 'bypass' ? 'allow' : rule.decision,
      pattern,
      port,
      // What has a method is HTTP, and that goes over TCP here.
      protocols: request === undefined ? rule.protocols : ['tcp'],
      request,
      rule: {
        id: rule.id,
        text: textOf(rule, text),
        source: rule.sandboxId === undefined ? 'global' : 'sandbox',
      },
    }),
  );
  return rule.decision === 'bypass' ? { bypass: entries, decide: [] } : { bypass: [], decide: entries };
}

/** As a person would write it, with the one resource that matters. */
function textOf({ decision, methods = [], path, name }: Rule, resource: string): string {
  const words = [decision, resource];
  if (methods.length > 0) words.push(methods.join(','));
  if (path !== undefined) words.push(path);
  if (name !== undefined) words.push(`(${name})`);
  return words.join(' ');
}

function resourcesOf(rule: RuleContent): Resource[] {
  return rule.resources.map((text, index) => parseEntry('resources', index, text, 'sbx'));
}

function requestOf(rule: RuleContent): RequestPattern | undefined {
  const methods = methodsOf(rule);
  if (methods === undefined) {
    if (rule.path !== undefined)
      throw new Failure('invalid', 'path: needs methods; ANY stands for every method');
    return undefined;
  }
  if (rule.decision === 'bypass')
    throw new Failure('invalid', 'methods: a bypass is not looked into, so it cannot depend on requests');
  if (!protocolsOf(rule).includes('tcp'))
    throw new Failure('invalid', 'protocols: HTTP requests go over tcp only');
  if (rule.path === undefined) return { methods: methods.has('ANY') ? undefined : methods, path: undefined };
  try {
    return { methods: methods.has('ANY') ? undefined : methods, path: parsePathPattern(rule.path) };
  } catch (thrown) {
    const failure = Failure.from(thrown, 'path');
    throw new Failure('invalid', `path: ${quoted(rule.path)}: ${failure.message}`);
  }
}

function methodsOf({ methods }: RuleContent): ReadonlySet<string> | undefined {
  if (methods === undefined || methods.length === 0) return undefined;
  const known = [...methodsKnown].join(', ');
  methods.forEach((method, index) => {
    if (method === 'ANY' && methods.length > 1)
      throw new Failure('invalid', `methods[${index}]: ANY stands alone`);
    if (method !== 'ANY' && !methodsKnown.has(method))
      throw new Failure('invalid', `methods[${index}]: ${quoted(method)} is none of ANY, ${known}`);
  });
  return new Set(methods);
}

/** Whether the sets share a method; two rules without methods are about the same, too. */
function sameMethods(a: ReadonlySet<string> | undefined, b: ReadonlySet<string> | undefined): boolean {
  if (a === undefined || b === undefined) return a === b;
  return a.has('ANY') || b.has('ANY') || !a.isDisjointFrom(b);
}
