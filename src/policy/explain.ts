// Decisions in words: why, for the person who reads the log or for the agent that is told no, and the command that would change it. Nothing here
// names an address that the guest did not name itself, and nothing a guest says gets into a command unless it is plain.
import { targetText } from './names.ts';
import type { Attempt, Decision, Reason, Source } from './policy.ts';

export interface Naming {
  sandboxName: string | undefined;
  /** What holds where no rule speaks. */
  fallback: 'global' | 'proxy-config' | 'network-policy';
}

type Guard = Exclude<Reason, 'rule' | 'default' | 'request-needed'>;

export function ruleMessage(attempt: Attempt, effect: Decision['effect'], rule: string): string {
  const what = attempt.request === undefined ? targetOf(attempt) : `This request to ${targetOf(attempt)}`;
  switch (effect) {
    case 'allow':
      return `${what} is allowed by the rule "${rule}".`;
    case 'deny':
      return `${what} is denied by the rule "${rule}".`;
    case 'ask':
      return `${what} needs a person's consent, says the rule "${rule}".`;
  }
}

/** `elsewhere` is what rules do allow at this host. */
export function defaultMessage(
  attempt: Attempt,
  effect: 'allow' | 'deny',
  elsewhere: { ports: readonly number[]; requests: boolean },
): string {
  const target = targetOf(attempt);
  if (effect === 'allow') return `${target} is allowed, since no rule denies it.`;
  if (elsewhere.requests) return `No rule allows this request to ${target}; rules allow others.`;
  if (elsewhere.ports.length > 0)
    return `No rule allows ${target}; rules allow this host on port ${elsewhere.ports.join(', ')}.`;
  return `No rule allows ${target}.`;
}

export const openMessage = (attempt: Attempt): string =>
  `What is allowed at ${targetOf(attempt)} depends on the method and the path of each request.`;

/** Of the place that the guest named itself. */
export function guardMessage(attempt: Attempt, guard: Guard): string {
  const target = targetOf(attempt);
  switch (guard) {
    case 'metadata':
      return `${target} is a cloud's metadata service, which no sandbox may reach.`;
    case 'host-address':
      return attempt.host.kind === 'name' && attempt.host.name !== 'localhost'
        ? `${target} is the host itself, which is reached by the name localhost only.`
        : `${target} is the host itself; reaching it needs a rule that names exactly this.`;
    case 'private-address':
      return `${target} is in a private network; reaching it needs a rule that names the address or its range.`;
    case 'unusable-address':
      return `${target} is no address that can be connected to.`;
  }
}

/** Of what a name has been resolved to. */
export function resolvedMessage(attempt: Attempt, guard: Guard | 'rule'): string {
  const target = targetOf(attempt);
  switch (guard) {
    case 'rule':
      return `${target} leads to an address that a rule denies.`;
    case 'metadata':
      return `${target} leads to a cloud's metadata service, which no sandbox may reach.`;
    case 'host-address':
      return `${target} leads to the host itself; reaching it needs a rule that names its address.`;
    case 'private-address':
      return `${target} leads into a private network; reaching it needs a rule that names the address or its range.`;
    case 'unusable-address':
      return `${target} leads to no address that can be connected to.`;
  }
}

/** The command that takes a rule out of the way. */
export function remedyForRule(attempt: Attempt, rule: { id: string; source: Source }, naming: Naming) {
  switch (rule.source) {
    case 'global':
    case 'sandbox':
      return `glovebox policy rm network --id ${quote(rule.id)}`;
    case 'proxy-config':
      return proxyRemedy(attempt, naming);
    case 'network-policy':
      return allowRemedy(attempt, naming);
  }
}

/** The command that allows what no rule does. */
export const remedyForDefault = (attempt: Attempt, naming: Naming): string | undefined =>
  naming.fallback === 'proxy-config' ? proxyRemedy(attempt, naming) : allowRemedy(attempt, naming);

export function allowRemedy(attempt: Attempt, { sandboxName, fallback }: Naming): string | undefined {
  // What is allowed everywhere does not count for a sandbox that has a policy of its own.
  if (sandboxName === undefined && fallback !== 'global') return undefined;
  const { request } = attempt;
  const words = ['glovebox policy allow network'];
  if (sandboxName !== undefined) words.push('--sandbox', quote(sandboxName));
  words.push(quote(targetOf(attempt)));
  if (attempt.protocol === 'udp') words.push('--protocol udp');
  if (request !== undefined && /^[A-Z]{3,16}$/.test(request.method)) {
    words.push('--method', request.method);
    if (/^\/(?:[\w~@-][\w~@.-]*(?:\/[\w~@-][\w~@.-]*)*)?$/.test(request.path) && request.path.length <= 200)
      words.push('--path', request.path);
  }
  return words.join(' ');
}

function proxyRemedy(attempt: Attempt, { sandboxName }: Naming): string | undefined {
  if (sandboxName === undefined || attempt.protocol === 'udp') return undefined;
  return `glovebox network proxy ${quote(sandboxName)} --allow-host ${quote(targetOf(attempt))}`;
}

const targetOf = ({ host, port }: Attempt): string => targetText(host, port);

/** For a POSIX shell. */
const quote = (word: string): string =>
  /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
