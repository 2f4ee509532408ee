// The compiled form of every dialect: entries in an order, of which the first that matches decides, and an index that finds those that can.
import { type Address, addressOf, embedded, masked, parseAddress } from './addresses.ts';
import { matchesPath, type PathPattern, type Readings, readingsOf } from './paths.ts';
import { matchesGlob, type Pattern } from './patterns.ts';
import type { Attempt, Decision, Host } from './policy.ts';

export type Effect = Decision['effect'];
export type Protocol = Attempt['protocol'];

export interface Entry {
  effect: Effect;
  pattern: Pattern;
  /** Every port when absent. */
  port: number | undefined;
  protocols: readonly Protocol[];
  /** Holds for some requests only. */
  request: RequestPattern | undefined;
  rule: NonNullable<Decision['rule']>;
}

export interface RequestPattern {
  /** Every method when absent. */
  methods: ReadonlySet<string> | undefined;
  /** Every path when absent. */
  path: PathPattern | undefined;
}

/** Finds all entries about a host, in order, in time that depends on the host's labels and not on the number of rules with plain patterns. */
export class EntryIndex {
  readonly #order = new Map<Entry, number>();
  readonly #names = new Map<string, Entry[]>();
  readonly #belowOne = new Map<string, Entry[]>();
  readonly #belowAny = new Map<string, Entry[]>();
  readonly #globs: Entry[] = [];
  readonly #addresses = new Map<string, Entry[]>();
  readonly #ranges = new Map<string, Entry[]>();
  /** The prefix lengths that occur, for each family. */
  readonly #bits: Record<4 | 6, Set<number>> = { 4: new Set(), 6: new Set() };
  readonly #everything: Entry[] = [];

  constructor(entries: readonly Entry[]) {
    for (const entry of entries) {
      this.#order.set(entry, this.#order.size);
      this.#put(entry);
    }
  }

  about(host: Host): Entry[] {
    const found = [...this.#everything];
    if (host.kind === 'name') this.#findName(host.name, found);
    else this.#findAddress(parseAddress(host.address) as Address, found);
    return this.#sorted(found);
  }

  /** Of an address, entries that name it or its range. Denials count for the IPv4 addresses in it, too. */
  aboutAddress(address: Address): Entry[] {
    const found: Entry[] = [];
    this.#findAddress(address, found);
    return this.#sorted(found);
  }

  #sorted(found: Entry[]): Entry[] {
    return found.sort((a, b) => (this.#order.get(a) as number) - (this.#order.get(b) as number));
  }

  #put(entry: Entry): void {
    const { pattern } = entry;
    switch (pattern.kind) {
      case 'everything':
        this.#everything.push(entry);
        return;
      case 'name':
        return add(this.#names, pattern.name, entry);
      case 'below':
        return add(pattern.depth === 'one' ? this.#belowOne : this.#belowAny, pattern.suffix, entry);
      case 'glob':
        this.#globs.push(entry);
        return;
      case 'address':
        return add(this.#addresses, pattern.address.text, entry);
      case 'range': {
        const { family, bits, text } = pattern.range;
        this.#bits[family].add(bits);
        return add(this.#ranges, text, entry);
      }
    }
  }

  #findName(name: string, found: Entry[]): void {
    push(found, this.#names.get(name));
    let dot = name.indexOf('.');
    if (dot !== -1) push(found, this.#belowOne.get(name.slice(dot + 1)));
    for (; dot !== -1; dot = name.indexOf('.', dot + 1)) push(found, this.#belowAny.get(name.slice(dot + 1)));
    for (const entry of this.#globs)
      if (entry.pattern.kind === 'glob' && matchesGlob(entry.pattern, name)) found.push(entry);
  }

  #findAddress(address: Address, found: Entry[]): void {
    this.#findExact(address, found);
    for (const inner of embedded(address)) {
      const about: Entry[] = [];
      this.#findExact(inner, about);
      for (const entry of about) if (entry.effect === 'deny' && !found.includes(entry)) found.push(entry);
    }
  }

  #findExact({ family, text, bytes }: Address, found: Entry[]): void {
    push(found, this.#addresses.get(text));
    for (const bits of this.#bits[family])
      push(found, this.#ranges.get(`${addressOf(masked(bytes, bits)).text}/${bits}`));
  }
}

function add(map: Map<string, Entry[]>, key: string, entry: Entry): void {
  const list = map.get(key);
  if (list === undefined) map.set(key, [entry]);
  else list.push(entry);
}

function push(found: Entry[], more: readonly Entry[] | undefined): void {
  if (more !== undefined) for (const entry of more) found.push(entry);
}

export const holdsAt = (entry: Entry, port: number, protocol: Protocol): boolean =>
  (entry.port === undefined || entry.port === port) && entry.protocols.includes(protocol);

/** What a list of entries comes to for one place, and perhaps one request to it. */
export interface Verdict {
  effect: Effect;
  /** The entry that decided; absent where none did. */
  entry: Entry | undefined;
  /** Other requests may come out otherwise. */
  dependsOnRequest: boolean;
  /** It does, and no request is known yet. */
  open: boolean;
}

/** The first entry that holds, in a list of those that match the place. */
export function judge(
  entries: readonly Entry[],
  request: Attempt['request'],
  fallback: 'allow' | 'deny',
): Verdict {
  const outcomes = new Set<Effect>();
  let decided: Entry | undefined;
  let definite: Entry | undefined;
  let readings: { paths: Readings } | undefined;
  for (const entry of entries) {
    if (entry.request === undefined) {
      definite = entry;
      break;
    }
    outcomes.add(entry.effect);
    if (request === undefined || decided !== undefined) continue;
    readings ??= { paths: readingsOf(request.path) };
    if (holdsFor(entry.request, entry.effect, request.method, readings.paths)) decided = entry;
  }
  outcomes.add(definite?.effect ?? fallback);
  const dependsOnRequest = outcomes.size > 1;
  // Each request will be judged, so the connection may be made.
  if (request === undefined && dependsOnRequest)
    return { effect: 'allow', entry: undefined, dependsOnRequest, open: true };
  const entry = decided ?? definite;
  return { effect: entry?.effect ?? fallback, entry, dependsOnRequest, open: false };
}

function holdsFor(pattern: RequestPattern, effect: Effect, method: string, readings: Readings): boolean {
  if (pattern.methods !== undefined && !pattern.methods.has(method.toUpperCase())) return false;
  return (
    pattern.path === undefined || matchesPath(pattern.path, readings, effect === 'allow' ? 'every' : 'some')
  );
}
