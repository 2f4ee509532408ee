// Policies in the form of `docker sandbox network proxy`: lists of hosts and ranges, of which the most specific entry wins, and a default.
import { z } from 'zod';
import type { ProxyConfigChange } from '../contract/network.ts';
import { Failure } from '../lib/failure.ts';
import { parseRange, type Range } from './addresses.ts';
import type { Effect, Entry } from './entries.ts';
import { type Document, parseDocument } from './json.ts';
import { atEntry, parseEntry, type Resource } from './patterns.ts';
import type { ProxyConfig } from './policy.ts';

type Network = ProxyConfig['network'];
type HostList = 'allowedDomains' | 'blockedDomains' | 'bypassDomains';
type RangeList = 'allowCIDR' | 'blockCIDR' | 'bypassCIDR';

const hostLists = ['allowedDomains', 'blockedDomains', 'bypassDomains'] as const;
const rangeLists = ['allowCIDR', 'blockCIDR', 'bypassCIDR'] as const;

const entriesMax = 4_096;

/** Everything but private networks and this host. */
export const defaultProxyConfig: ProxyConfig = {
  policy: 'allow',
  network: {
    allowedDomains: [],
    blockedDomains: [],
    bypassDomains: [],
    allowCIDR: [],
    blockCIDR: [
      ...['10.0.0.0/8', '127.0.0.0/8', '169.254.0.0/16', '172.16.0.0/12', '192.168.0.0/16'],
      ...['::1/128', 'fc00::/7', 'fe80::/10'],
    ],
    bypassCIDR: [],
  },
};

const entries = z.array(z.string().min(1).max(512)).max(entriesMax, `at most ${entriesMax} entries`);

/** As it lies on disk. A list that is missing is as it is by default: without `blockCIDR`, private ranges stay blocked. */
const ProxyConfigFile = z.strictObject({
  policy: z.enum(['allow', 'deny']),
  network: z
    .strictObject({
      allowedDomains: entries.default([]),
      blockedDomains: entries.default([]),
      bypassDomains: entries.default([]),
      allowCIDR: entries.default([]),
      blockCIDR: entries.default(defaultProxyConfig.network.blockCIDR),
      bypassCIDR: entries.default([]),
    })
    .default(defaultProxyConfig.network),
});

/** Throws Failure('invalid') with file, line and column for what is no JSON, unknown, unparsable, or both allowed and blocked. */
export function parseProxyConfig(text: string, fileName: string): ProxyConfig {
  const { value, document } = parseDocument(ProxyConfigFile, text, fileName);
  try {
    checkProxyConfig(value);
  } catch (thrown) {
    throw placed(thrown, document);
  }
  return value;
}

/** Throws Failure('invalid') with the list and the index. */
export function checkProxyConfig({ network }: ProxyConfig): void {
  const [allowed, blocked] = spelledAll(hostLists, network, spellHost);
  refuseBoth('blockedDomains', blocked as string[], 'allowedDomains', allowed as string[]);
  const [allow, block] = spelledAll(rangeLists, network, spellRange);
  refuseBoth('blockCIDR', block as string[], 'allowCIDR', allow as string[]);
}

/** The configuration with the change made. To allow something takes it off the block and bypass lists; to block it, off the others. */
export function changeProxyConfig(config: ProxyConfig, change: ProxyConfigChange): ProxyConfig {
  const { network } = config;
  const [allowedDomains, blockedDomains, bypassDomains] = changedLists(
    [network.allowedDomains, network.blockedDomains, network.bypassDomains],
    { allowHosts: change.allowHosts, blockHosts: change.blockHosts, bypassHosts: change.bypassHosts },
    spellHost,
  );
  const [allowCIDR, blockCIDR, bypassCIDR] = changedLists(
    [network.allowCIDR, network.blockCIDR, network.bypassCIDR],
    { allowCidrs: change.allowCidrs, blockCidrs: change.blockCidrs, bypassCidrs: change.bypassCidrs },
    spellRange,
  );
  const changed = { allowedDomains, blockedDomains, bypassDomains, allowCIDR, blockCIDR, bypassCIDR };
  for (const [list, entries] of Object.entries(changed))
    if (entries.length > entriesMax)
      throw new Failure('exhausted', `${list} would have more than ${entriesMax} entries`);
  return { policy: change.policy ?? config.policy, network: changed };
}

/** Hosts by how specific they are, then ranges by their length, then what stands for everything; of equals, the block first. */
export function proxyConfigEntries({ network }: ProxyConfig): { bypass: Entry[]; decide: Entry[] } {
  const hosts = (list: HostList, effect: Effect): Entry[] =>
    network[list].map((_, index) => {
      const { pattern, port, text } = hostAt(network, list, index);
      return entry(list, index, effect, text, pattern, port);
    });
  const ranges = (list: RangeList, effect: Effect): Entry[] =>
    network[list].map((_, index) => {
      const range = rangeAt(network, list, index);
      return entry(list, index, effect, range.text, { kind: 'range', range }, undefined);
    });
  const decide = [
    ...hosts('blockedDomains', 'deny'),
    ...ranges('blockCIDR', 'deny'),
    ...hosts('allowedDomains', 'allow'),
    ...ranges('allowCIDR', 'allow'),
  ].sort((a, b) => specificity(b) - specificity(a));
  return { bypass: [...hosts('bypassDomains', 'allow'), ...ranges('bypassCIDR', 'allow')], decide };
}

function entry(
  list: HostList | RangeList,
  index: number,
  effect: Effect,
  text: string,
  pattern: Entry['pattern'],
  port: number | undefined,
): Entry {
  return {
    effect,
    pattern,
    port,
    // Nothing but TCP is let out in this form; a block covers everything.
    protocols: effect === 'deny' ? ['tcp', 'udp'] : ['tcp'],
    request: undefined,
    rule: { id: `${list}[${index}]`, text: `${list}: ${text}`, source: 'proxy-config' },
  };
}

/** Larger is more specific. The classes are far apart; inside one, the longer pattern wins, and then the one with a port. */
function specificity({ pattern, port }: Entry): number {
  const withPort = port === undefined ? 0 : 1;
  switch (pattern.kind) {
    case 'name':
    case 'address':
      return 3_000_000 + withPort;
    case 'below':
      return 2_000_000 + pattern.suffix.length * 2 + withPort;
    case 'range':
      return 1_000_000 + pattern.range.bits;
    default:
      return withPort;
  }
}

const hostAt = (network: Network, list: HostList, index: number): Resource =>
  parseEntry(list, index, network[list][index] as string, 'proxy-config');

const rangeAt = (network: Network, list: RangeList, index: number): Range =>
  rangeOf(network[list][index] as string, list, index);

function rangeOf(text: string, list: string, index: number): Range {
  // A single address is the range of itself.
  const range = parseRange(text.includes('/') ? text : `${text}/${text.includes(':') ? 128 : 32}`);
  if (range === undefined) throw atEntry(list, index, text, 'is no range of addresses like 10.0.0.0/8');
  return range;
}

/** The one spelling of an entry, by which entries are compared. */
type Spell = (text: string, list: string, index: number) => string;
const spellHost: Spell = (text, list, index) => parseEntry(list, index, text, 'proxy-config').text;
const spellRange: Spell = (text, list, index) => rangeOf(text, list, index).text;

const spelledAll = <List extends string>(
  lists: readonly List[],
  network: Record<List, readonly string[]>,
  spell: Spell,
): string[][] => lists.map((list) => network[list].map((text, index) => spell(text, list, index)));

function refuseBoth(listA: string, a: readonly string[], listB: string, b: readonly string[]): void {
  const index = a.findIndex((text) => b.includes(text));
  if (index !== -1) throw atEntry(listA, index, a[index] as string, `contradicts the same entry in ${listB}`);
}

/** Lists of what is allowed, blocked and bypassed, in this order, with those of the change put in. */
function changedLists(
  [allowed, blocked, bypassed]: readonly [readonly string[], readonly string[], readonly string[]],
  change: Record<string, readonly string[]>,
  spell: Spell,
): [string[], string[], string[]] {
  const [listA, listB] = Object.keys(change) as [string, string, string];
  const [allow, block, bypass] = spelledAll(Object.keys(change), change, spell) as [
    string[],
    string[],
    string[],
  ];
  refuseBoth(listB, block, listA, allow);
  return [
    edited(allowed, allow, block, spell),
    edited(blocked, block, allow, spell),
    edited(bypassed, bypass, [...allow, ...block], spell),
  ];
}

/** Without what is removed and with what is added, each once. */
function edited(
  list: readonly string[],
  added: readonly string[],
  removed: readonly string[],
  spell: Spell,
): string[] {
  const gone = new Set(removed);
  const kept = list.map((text, index) => spell(text, 'entry', index)).filter((text) => !gone.has(text));
  return [...new Set([...kept, ...added])];
}

/** The same complaint, with the line and column of the file. */
function placed(thrown: unknown, document: Document): Failure {
  const { message, details } = Failure.from(thrown, 'a list');
  const { list, index } = details as { list: string; index: number };
  return document.failure(['network', list, index], message);
}
