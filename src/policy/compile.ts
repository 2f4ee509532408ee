// Rules of three dialects and the guards around addresses, compiled into one policy: a list of entries of which the first that holds decides.
// Guarded places (this host, private networks, metadata services) are judged by the same list without the allowances that do not name them.
import { Failure } from '../lib/failure.ts';
import { type Address, classOf, isLoopback, knownRange, parseAddress, within } from './addresses.ts';
import { defaultProxyConfig, proxyConfigEntries } from './docker.ts';
import { type Entry, EntryIndex, holdsAt, judge, type Protocol, type Verdict } from './entries.ts';
import {
  allowRemedy,
  defaultMessage,
  guardMessage,
  type Naming,
  openMessage,
  remedyForDefault,
  remedyForRule,
  resolvedMessage,
  ruleMessage,
} from './explain.ts';
import { parseHost, quoted } from './names.ts';
import { networkPolicyEntries } from './opensandbox.ts';
import {
  type Attempt,
  type Decision,
  type Host,
  type Policy,
  type PolicySources,
  portsMax,
  type Reason,
} from './policy.ts';
import { entriesOf } from './rules.ts';

/** Throws Failure('invalid') when something in the sources cannot be parsed. */
export function compilePolicy(sources: PolicySources): Policy {
  return new CompiledPolicy(sources);
}

type Guard = Exclude<Reason, 'rule' | 'default' | 'request-needed'>;

/** What a place asks of the rules that may open it. */
type Ground =
  | { kind: 'public' }
  /** No rule opens it. */
  | { kind: 'closed'; guard: Guard }
  /** Only some rules open it; `byDefault` when the default does, too. */
  | { kind: 'guarded'; guard: Guard; opens: (entry: Entry) => boolean; byDefault: boolean };

/** Names of metadata services that clouds resolve inside their networks. */
const metadataNames: ReadonlySet<string> = new Set([
  'metadata.google.internal',
  'metadata.goog',
  'instance-data.ec2.internal',
]);

/** Ranges shorter than this (in bits) name no network. */
const shortestNaming = { 4: 8, 6: 7 };

/** The private ranges that a proxy configuration lists by default, so that one which does not list them means to open them. */
const listedRanges = defaultProxyConfig.network.blockCIDR.map(knownRange);

class CompiledPolicy implements Policy {
  readonly ports: readonly number[];
  readonly opens: boolean;
  readonly #decide: EntryIndex;
  readonly #bypass: EntryIndex;
  readonly #fallback: 'allow' | 'deny';
  readonly #hostAddresses: ReadonlySet<string>;
  readonly #metadata: boolean;
  readonly #strange: boolean;
  readonly #naming: Naming;

  constructor(sources: PolicySources) {
    const { decide, bypass } = orderedEntries(sources);
    this.#decide = new EntryIndex(decide);
    this.#bypass = new EntryIndex(bypass);
    this.#fallback = defaultOf(sources.own);
    this.#hostAddresses = new Set(sources.hostAddresses.map(canonicalAddress));
    this.#metadata = sources.dangerouslyAllowMetadata === true;
    this.#strange = sources.strange === true;
    this.#naming = { sandboxName: sources.sandboxName, fallback: sources.own?.kind ?? 'global' };
    this.ports = portsOf(decide);
    this.opens = this.#fallback === 'allow' || decide.some(({ effect }) => effect !== 'deny');
  }

  decide(attempt: Attempt): Decision {
    const about = this.#decide.about(attempt.host);
    const ground = this.#groundOf(attempt.host);
    if (ground.kind === 'closed') return this.#guarded(attempt, ground.guard);
    const entries = about.filter((entry) => holdsAt(entry, attempt.port, attempt.protocol));
    const verdict = this.#judge(entries, ground, attempt);
    if (verdict.effect === 'deny' && verdict.entry === undefined && ground.kind === 'guarded')
      return this.#guarded(attempt, ground.guard);
    return this.#decision(attempt, verdict, about, entries);
  }

  addresses(
    attempt: Attempt,
    decision: Decision,
    resolved: readonly string[],
  ): { dial: string[]; denied?: Decision } {
    if (decision.effect === 'deny') return { dial: [], denied: decision };
    const entries = this.#decide
      .about(attempt.host)
      .filter((entry) => holdsAt(entry, attempt.port, attempt.protocol));
    // A name that somebody allowed, rather than everything, passes the blocks of a proxy configuration.
    const allowing = entries.filter(
      ({ effect, pattern }) => effect !== 'deny' && pattern.kind !== 'everything',
    );
    const explicit = {
      any: allowing.length > 0,
      own: allowing.some(({ rule }) => rule.source === 'proxy-config'),
    };
    const verdict = judge(entries, attempt.request, this.#fallback);
    const own =
      this.#naming.fallback === 'proxy-config' &&
      !verdict.open &&
      (verdict.entry === undefined || verdict.entry.rule.source === 'proxy-config');
    const dial: string[] = [];
    let denied: Decision | undefined;
    for (const text of resolved) {
      const address = parseAddress(text);
      const denial =
        address === undefined
          ? this.#resolvedTo(attempt, 'unusable-address')
          : this.#denialOf(attempt, address, explicit, own);
      if (denial === undefined) dial.push((address as Address).text);
      else denied ??= denial;
    }
    return dial.length > 0 || denied === undefined ? { dial } : { dial, denied };
  }

  mayResolve(name: string): boolean {
    const host = hostOrNone(name);
    if (host?.kind !== 'name') return false;
    const ground = this.#groundOf(host);
    if (ground.kind === 'closed') return false;
    const about = this.#decide.about(host);
    // Ports that no rule names are all alike, and 0 stands for them.
    const ports = new Set([0, ...about.flatMap(({ port }) => port ?? [])]);
    for (const port of ports)
      for (const protocol of ['tcp', 'udp'] as const) {
        const entries = about.filter((entry) => holdsAt(entry, port, protocol));
        if (this.#judge(entries, ground, { protocol }).effect !== 'deny') return true;
      }
    return false;
  }

  #judge(
    entries: readonly Entry[],
    ground: Exclude<Ground, { kind: 'closed' }>,
    { protocol, request }: { protocol: Protocol; request?: Attempt['request'] },
  ): Verdict {
    // UDP goes out where a rule says so, never by default.
    const fallback = protocol === 'udp' ? 'deny' : this.#fallback;
    if (ground.kind === 'public') return judge(entries, request, fallback);
    return judge(
      entries.filter((entry) => entry.effect === 'deny' || this.#opensGround(ground, entry)),
      request,
      ground.byDefault ? fallback : 'deny',
    );
  }

  #groundOf(host: Host): Ground {
    if (host.kind === 'address') return this.#groundOfAddress(parseAddress(host.address) as Address);
    const named = (entry: Entry) => entry.pattern.kind === 'name';
    if (host.name === 'localhost')
      return { kind: 'guarded', guard: 'host-address', opens: named, byDefault: false };
    if (host.name.endsWith('.localhost')) return { kind: 'closed', guard: 'host-address' };
    if (!metadataNames.has(host.name)) return { kind: 'public' };
    return this.#metadata
      ? { kind: 'guarded', guard: 'metadata', opens: named, byDefault: false }
      : { kind: 'closed', guard: 'metadata' };
  }

  #groundOfAddress(address: Address): Ground {
    const kind = classOf(address, this.#hostAddresses);
    switch (kind) {
      case 'public':
        return { kind };
      case 'unusable':
        return { kind: 'closed', guard: 'unusable-address' };
      case 'metadata':
        return this.#metadata
          ? { kind: 'guarded', guard: 'metadata', opens: names, byDefault: false }
          : { kind: 'closed', guard: 'metadata' };
      case 'host':
        return { kind: 'guarded', guard: 'host-address', opens: namesHost, byDefault: false };
      case 'private': {
        // A proxy configuration decides itself about the ranges that it lists by default.
        const listed = listedRanges.some((range) => within(address, range));
        const opens = (entry: Entry) => names(entry) || (listed && entry.rule.source === 'proxy-config');
        const byDefault = listed && this.#naming.fallback === 'proxy-config';
        return { kind: 'guarded', guard: 'private-address', opens, byDefault };
      }
    }
  }

  #opensGround(ground: Exclude<Ground, { kind: 'closed' }>, entry: Entry): boolean {
    if (ground.kind === 'public') return true;
    const { source } = entry.rule;
    return ground.opens(entry) && (!this.#strange || source === 'global' || source === 'proxy-config');
  }

  /** Why an address must not be dialled for this attempt. */
  #denialOf(
    attempt: Attempt,
    address: Address,
    explicit: { any: boolean; own: boolean },
    own: boolean,
  ): Decision | undefined {
    const { host } = attempt;
    if (host.kind === 'address') {
      // What was decided is dialled, and nothing else.
      if (host.address !== address.text) return this.#resolvedTo(attempt, 'unusable-address');
      const { request: _, ...place } = attempt;
      const decision = this.decide(place);
      return decision.effect === 'deny' ? decision : undefined;
    }
    if (host.name === 'localhost' && !isLoopback(address))
      return this.#resolvedTo(attempt, 'unusable-address');
    const ground = this.#groundOfAddress(address);
    if (ground.kind === 'closed') return this.#resolvedTo(attempt, ground.guard);
    const entry = this.#decide
      .aboutAddress(address)
      .filter((it) => holdsAt(it, attempt.port, attempt.protocol))
      .filter((it) => !(explicit.any && it.effect === 'deny' && it.rule.source === 'proxy-config'))
      // A rule about some requests to an address opens it to none that were meant for a name.
      .find((it) => it.effect === 'deny' || (it.request === undefined && this.#opensGround(ground, it)));
    if (entry?.effect === 'deny') return this.#resolvedTo(attempt, 'rule', entry);
    if (ground.kind === 'public' || entry !== undefined) return undefined;
    if (host.name === 'localhost') return undefined;
    if (ground.guard === 'private-address' && (explicit.own || (own && ground.byDefault))) return undefined;
    return this.#resolvedTo(attempt, ground.guard);
  }

  /** `about`: what speaks of the host; `entries`: of that, what speaks of the port. */
  #decision(
    attempt: Attempt,
    verdict: Verdict,
    about: readonly Entry[],
    entries: readonly Entry[],
  ): Decision {
    const { effect, entry, dependsOnRequest, open } = verdict;
    const rest = {
      dependsOnRequest,
      // Whichever of several allowances comes first: one that names the port means what is spoken there.
      opaque:
        effect !== 'deny' &&
        !dependsOnRequest &&
        entry?.request === undefined &&
        entries.some((it) => it.effect === effect && isOpaque(it)),
      bypass: effect !== 'deny' && !dependsOnRequest && this.#bypasses(attempt),
    };
    if (open) return { effect, reason: 'request-needed', message: openMessage(attempt), ...rest };
    if (entry !== undefined)
      return {
        effect,
        reason: 'rule',
        rule: entry.rule,
        message: ruleMessage(attempt, effect, entry.rule.text),
        ...withRemedy(effect === 'deny' ? remedyForRule(attempt, entry.rule, this.#naming) : undefined),
        ...rest,
      };
    const allowed = effect === 'allow';
    // Where no rule looks at requests, one for this request alone is more than what is asked for.
    const { request: _, ...place } = attempt;
    return {
      effect,
      reason: 'default',
      message: defaultMessage(attempt, allowed ? 'allow' : 'deny', {
        ports: [...new Set(about.flatMap((it) => (it.effect === 'deny' ? [] : (it.port ?? []))))].slice(0, 4),
        requests: dependsOnRequest,
      }),
      ...withRemedy(allowed ? undefined : remedyForDefault(dependsOnRequest ? attempt : place, this.#naming)),
      ...rest,
    };
  }

  #bypasses({ host, port, protocol }: Attempt): boolean {
    return this.#bypass.about(host).some((entry) => holdsAt(entry, port, protocol));
  }

  #guarded(attempt: Attempt, guard: Guard): Decision {
    const { host } = attempt;
    const canOpen =
      guard === 'private-address' ||
      (guard === 'host-address' && (host.kind === 'address' || host.name === 'localhost'));
    return denial(
      guard,
      guardMessage(attempt, guard),
      canOpen ? allowRemedy(attempt, this.#naming) : undefined,
    );
  }

  #resolvedTo(attempt: Attempt, guard: Guard | 'rule', entry?: Entry): Decision {
    const remedy = entry === undefined ? undefined : remedyForRule(attempt, entry.rule, this.#naming);
    const decision = denial(guard, resolvedMessage(attempt, guard), remedy);
    // The guest gets to see the text, and what its names lead to is nothing it should know.
    return entry === undefined
      ? decision
      : { ...decision, rule: { ...entry.rule, text: 'deny (by address)' } };
  }
}

const denial = (reason: Reason, message: string, remedy: string | undefined): Decision => ({
  effect: 'deny',
  reason,
  message,
  ...withRemedy(remedy),
  dependsOnRequest: false,
  opaque: false,
  bypass: false,
});

const withRemedy = (remedy: string | undefined): { remedy?: string } =>
  remedy === undefined ? {} : { remedy };

/** Whether an entry names an address rather than covering it among everything else. */
function names({ pattern }: Entry): boolean {
  if (pattern.kind === 'address') return true;
  return pattern.kind === 'range' && pattern.range.bits >= shortestNaming[pattern.range.family];
}

/** This host is named by its very address, or by the range that is always the host; a network around it does not name it. */
const namesHost = ({ pattern }: Entry): boolean =>
  pattern.kind === 'address' || (pattern.kind === 'range' && isLoopback(pattern.range));

/**
 * A rule that names a host and a port means whatever is spoken there; on the web's own ports it means the web, so that an allowed site is no
 * tunnel for anything else.
 */
const isOpaque = (entry: Entry): boolean =>
  entry.request === undefined &&
  entry.port !== undefined &&
  entry.port !== 80 &&
  entry.port !== 443 &&
  entry.pattern.kind !== 'everything';

/** All of it, in the order of which the first decides. */
function orderedEntries({ rules, own }: PolicySources): { decide: Entry[]; bypass: Entry[] } {
  const compiled = rules.map((rule) => ({ rule, ...entriesOf(rule) }));
  const those = (chosen: (rule: PolicySources['rules'][number]) => boolean): Entry[] =>
    compiled.flatMap(({ rule, decide }) => (chosen(rule) ? decide : []));
  const proxy = own?.kind === 'proxy-config' ? proxyConfigEntries(own.config) : undefined;
  const ofOwn =
    proxy?.decide ?? (own?.kind === 'network-policy' ? networkPolicyEntries(own.policy) : undefined);
  const answered = (rule: PolicySources['rules'][number]) =>
    rule.decision === 'allow' && rule.createdVia === 'approval';
  const asking = those((rule) => rule.decision === 'ask');
  return {
    bypass: [...compiled.flatMap(({ bypass }) => bypass), ...(proxy?.bypass ?? [])],
    decide: [
      ...those((rule) => rule.decision === 'deny'),
      // An answer that was to be kept silences the question.
      ...those(answered),
      ...asking.filter((entry) => !isCatchAll(entry)),
      ...those((rule) => rule.decision === 'allow' && rule.sandboxId !== undefined && !answered(rule)),
      ...(ofOwn ??
        those((rule) => rule.decision === 'allow' && rule.sandboxId === undefined && !answered(rule))),
      // Whoever asks about everything means everything that nothing else decides.
      ...asking.filter(isCatchAll),
    ],
  };
}

const isCatchAll = ({ pattern, port, request }: Entry): boolean =>
  pattern.kind === 'everything' && port === undefined && request === undefined;

function defaultOf(own: PolicySources['own']): 'allow' | 'deny' {
  switch (own?.kind) {
    case 'proxy-config':
      return own.config.policy;
    case 'network-policy':
      return own.policy.defaultAction;
    default:
      return 'deny';
  }
}

function portsOf(entries: readonly Entry[]): number[] {
  const ports = entries.flatMap(({ effect, port, protocols }) =>
    effect === 'deny' || port === undefined || port === 80 || port === 443 || !protocols.includes('tcp')
      ? []
      : port,
  );
  return [...new Set(ports)].slice(0, portsMax);
}

/** Interfaces give link-local addresses with their zone. */
function canonicalAddress(text: string): string {
  const address = parseAddress(text.replace(/%.*$/, ''));
  if (address === undefined) throw new Failure('invalid', `hostAddresses: ${quoted(text)} is no address`);
  return address.text;
}

function hostOrNone(name: string): Host | undefined {
  try {
    return parseHost(name);
  } catch {
    return undefined;
  }
}
