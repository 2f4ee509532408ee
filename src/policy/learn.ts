// From what a run has used to the least rules that allow it, with the proof: the log is decided anew by these rules alone, denying all else.
import type { LearnedPolicy, LogEntry, NewRule, Rule } from '../contract/network.ts';
import { classOf, parseAddress } from './addresses.ts';
import { compilePolicy } from './compile.ts';
import { parseHost, targetText } from './names.ts';
import { parsePathPattern, readingsOf } from './paths.ts';
import type { Attempt, Host, Policy } from './policy.ts';
import { methodsKnown, protocolsOf } from './rules.ts';
import { isPublicSuffix } from './suffixes.ts';

export interface LearnOptions {
  /** Rules as narrow as methods and paths, where only requests were seen. */
  paths?: boolean;
  /** `*.parent` for `siblingsMin` names or more with the same parent. */
  wildcards?: boolean;
  /** Addresses of this host's own interfaces. */
  hostAddresses?: readonly string[];
}

export const siblingsMin = 4;
/** Of more paths than this at one place, only what they begin with is kept. */
const pathsMax = 8;
const resourcesMax = 1_024;

/** What a policy alone refuses; a request may also be refused for what it carries. */
const reasonsOfPolicies: ReadonlySet<string> = new Set([
  ...['rule', 'default', 'request-needed'],
  ...['metadata', 'host-address', 'private-address', 'unusable-address'],
]);

/** An entry of the log as it was decided. */
interface Seen {
  attempt: Attempt;
  allowed: boolean;
  /** Only its name was asked for. */
  lookup: boolean;
  address: string | undefined;
}

/** Everything at one host and port. */
interface Place {
  host: Host;
  port: number;
  protocol: Attempt['protocol'];
  allowed: Seen[];
  denied: Seen[];
}

export function learn(
  entries: readonly LogEntry[],
  sandboxId: string,
  options: LearnOptions = {},
): LearnedPolicy {
  const own = new Set(options.hostAddresses ?? []);
  const seen = entries.filter((entry) => entry.sandbox === sandboxId).flatMap((entry) => seenOf(entry) ?? []);
  const places = placesOf(seen);
  const whole = places.filter((place) => !isByRequest(place, options));
  const rules = [
    ...(['tcp', 'udp'] as const).flatMap((protocol) => {
      const plain = whole.filter((place) => place.protocol === protocol);
      const targets = options.wildcards ? merged(plain, seen) : plain.map(targetOf);
      const addresses = places.filter((place) => place.protocol === protocol);
      return hostRules(
        [...targets, ...addresses.flatMap((place) => addressesOf(place, own))],
        protocol,
        sandboxId,
      );
    }),
    ...places
      .filter((place) => isByRequest(place, options))
      .flatMap((place) => requestRules(place, sandboxId)),
  ];
  const policy = policyOf(rules, options.hostAddresses ?? []);
  return {
    sandbox: sandboxId,
    rules,
    replayed: seen.length,
    differing: seen.filter((it) => allowedBy(policy, it) !== it.allowed).length,
  };
}

function seenOf(entry: LogEntry): Seen | undefined {
  const allowed = entry.decision === 'allow';
  if (!allowed && !reasonsOfPolicies.has(entry.reason)) return undefined;
  const lookup = entry.protocol === 'dns';
  const { method, path, address } = entry;
  let host: Host;
  try {
    host = parseHost(entry.host);
  } catch {
    // What is no host was refused, whatever the policy.
    return undefined;
  }
  const attempt: Attempt = { host, port: entry.port, protocol: entry.protocol === 'udp' ? 'udp' : 'tcp' };
  if (method !== undefined && path !== undefined)
    attempt.request = { method, path: path.replace(/\?.*$/s, '') };
  return { attempt, allowed, lookup, address };
}

/** Those that something was allowed at. */
function placesOf(seen: readonly Seen[]): Place[] {
  const places = new Map<string, Place>();
  for (const it of seen) {
    if (it.lookup) continue;
    const { host, port, protocol } = it.attempt;
    const key = `${protocol} ${targetText(host, port)}`;
    const place = places.get(key) ?? { host, port, protocol, allowed: [], denied: [] };
    places.set(key, place);
    (it.allowed ? place.allowed : place.denied).push(it);
  }
  return [...places.values()]
    .filter((place) => place.allowed.length > 0)
    .sort((a, b) => (targetOf(a) < targetOf(b) ? -1 : 1));
}

/** Whether its rules speak of requests: because that is wanted, or because others there were denied. */
function isByRequest({ allowed, denied }: Place, { paths = false }: LearnOptions): boolean {
  if (allowed.some((it) => it.attempt.request === undefined)) return false;
  return paths || denied.some((it) => it.attempt.request !== undefined);
}

const targetOf = ({ host, port }: Place): string => targetText(host, port);

/** Addresses that a name led to and that are open only where a rule names them. */
function addressesOf({ host, port, allowed }: Place, own: ReadonlySet<string>): string[] {
  if (host.kind === 'address' || host.name === 'localhost') return [];
  const addresses = allowed.flatMap((it) => parseAddress(it.address ?? '') ?? []);
  const guarded = addresses.filter((address) => classOf(address, own) !== 'public');
  return guarded.map(({ text, family }) => targetText({ kind: 'address', address: text, family }, port));
}

/** Names with the same parent as one pattern, unless it would cover what was denied. */
function merged(places: readonly Place[], seen: readonly Seen[]): string[] {
  const families = Map.groupBy(places, ({ host, port }) => {
    const parent = host.kind === 'name' ? parentOf(host.name) : '';
    return isPublicSuffix(parent) ? '' : `${parent}:${port}`;
  });
  // A name that was not even looked up is denied at every port.
  const denied = new Set(
    seen.flatMap(({ allowed, lookup, attempt: { host, port } }) =>
      allowed || host.kind !== 'name' ? [] : `${parentOf(host.name)}${lookup ? '' : `:${port}`}`,
    ),
  );
  const isFamily = (family: string, members: readonly Place[]) =>
    family !== '' &&
    members.length >= siblingsMin &&
    !denied.has(family) &&
    !denied.has(family.slice(0, family.indexOf(':')));
  return [...families].flatMap(([family, members]) =>
    isFamily(family, members) ? `*.${family}` : members.map(targetOf),
  );
}

/** Empty for a name of one label. */
const parentOf = (name: string): string => name.split('.').slice(1).join('.');

function hostRules(targets: readonly string[], protocol: Attempt['protocol'], sandbox: string): NewRule[] {
  const resources = [...new Set(targets)].sort();
  const rules: NewRule[] = [];
  for (let from = 0; from < resources.length; from += resourcesMax)
    rules.push({
      name: 'learned',
      decision: 'allow',
      resources: resources.slice(from, from + resourcesMax),
      sandbox,
      ...(protocol === 'udp' ? { protocols: ['udp'] } : {}),
    });
  return rules;
}

/**
 * One rule for each set of methods and path. A method that no rule can name gets none: `ANY` would open the path to all others, and the replay tells of
 * what is missing.
 */
function requestRules(place: Place, sandbox: string): NewRule[] {
  const requests = place.allowed
    .map(({ attempt }) => attempt.request as NonNullable<Attempt['request']>)
    .filter(({ method }) => methodsKnown.has(method));
  const narrow = new Set(requests.map(({ path }) => patternOf(path)));
  // Where something was denied, what the paths have in common may cover it.
  const isWide = narrow.size > pathsMax && place.denied.length === 0;
  const common = commonOf([...narrow]);
  const methods = new Map<string | undefined, Set<string>>();
  for (const { method, path } of requests) {
    const pattern = isWide ? common : patternOf(path);
    methods.set(pattern, (methods.get(pattern) ?? new Set()).add(method));
  }
  return [...methods].map(
    ([path, used]): NewRule => ({
      name: 'learned',
      decision: 'allow',
      resources: [targetOf(place)],
      sandbox,
      methods: [...used].sort(),
      ...(path === undefined ? {} : { path }),
    }),
  );
}

/** The narrowest pattern for a path: itself, or `**` from the segment on that rules cannot spell. None where no pattern matches. */
function patternOf(path: string): string | undefined {
  if (readingsOf(path) === undefined) return undefined;
  if (path === '' || path === '/') return '/';
  if (!path.includes('*') && canSpell(path)) return path;
  const segments = path.split('/').slice(1);
  const unspellable = segments.findIndex((segment) => segment.includes('*') || !canSpell(`/${segment}`));
  const spelled = `/${[...segments.slice(0, Math.max(unspellable, 0)), '**'].join('/')}`;
  return canSpell(spelled) ? spelled : '/**';
}

function canSpell(path: string): boolean {
  try {
    return parsePathPattern(path)[0] !== '';
  } catch {
    return false;
  }
}

/** The segments that all begin with, and everything below. */
function commonOf(patterns: readonly (string | undefined)[]): string | undefined {
  const [first = [], ...others] = patterns.map((pattern) => pattern?.split('/').slice(1) ?? []);
  if (patterns.includes(undefined)) return undefined;
  let length = 0;
  while (
    length < first.length &&
    first[length] !== '**' &&
    // At least one segment is left for the wildcard.
    [first, ...others].every((segments) => segments.length > length + 1 && segments[length] === first[length])
  )
    length++;
  return `/${[...first.slice(0, length), '**'].join('/')}`;
}

function policyOf(rules: readonly NewRule[], hostAddresses: readonly string[]): Policy {
  return compilePolicy({
    hostAddresses,
    rules: rules.map(
      (rule, index): Rule => ({
        ...rule,
        id: `learned-${index + 1}`,
        protocols: protocolsOf(rule),
        createdVia: 'learned',
        createdAt: new Date(0).toISOString(),
      }),
    ),
  });
}

function allowedBy(policy: Policy, { attempt, lookup, address }: Seen): boolean {
  if (lookup) return attempt.host.kind === 'name' && policy.mayResolve(attempt.host.name);
  const decision = policy.decide(attempt);
  if (decision.effect !== 'allow') return false;
  return address === undefined || policy.addresses(attempt, decision, [address]).dial.length > 0;
}
