// Names to addresses, asked once for each connection, so that what was judged is what is dialled. Fixed names come first, then this machine's
// hosts file, then name servers that are fixed at the start. Names are absolute: search domains are never used, and a name of one label is
// known from the hosts files or not at all. Nothing here goes through the thread pool of `dns.lookup`, which a few slow names would fill.
import { Resolver as Cares } from 'node:dns/promises';
import { readFile, stat } from 'node:fs/promises';
import { isIP } from 'node:net';
import { Failure } from '../lib/failure.ts';
import { UpstreamError } from './upstream.ts';

export interface ResolverOptions {
  /** Names with fixed addresses. */
  hosts: Record<string, string[]>;
  /** `address` or `address:port`; the system's at the start when empty. */
  nameServers: string[];
  /** Read anew when it changes. */
  hostsFile?: string;
  /** Milliseconds for one try at one name server. */
  tryMs?: number;
  now?: () => number;
}

export interface Resolver {
  /**
   * The addresses of a canonical name, at most `addressesMax`, IPv4 and IPv6 in turns. `who` asks: a caller with many slow names waits for itself
   * only. Rejects with UpstreamError `dns`, or with the reason of the signal.
   */
  resolve(name: string, who: string, signal: AbortSignal): Promise<string[]>;
  /** Ends all questions. */
  close(): void;
}

export const addressesMax = 32;

/** Questions of one caller at the same time, and those waiting behind them. */
const askingMax = 16;
const waitingMax = 512;

const tries = 2;
/** For all tries at all servers together. */
const answerMsMax = 12_000;
/** Once one family has answered, the other gets this long: some networks swallow questions for AAAA. */
const otherFamilyMs = 300;

const keepMsMin = 1_000;
const keepMsMax = 60_000;
const keepAbsentMs = 5_000;
const cachedMax = 4_096;

const hostsFileBytesMax = 1024 * 1024;
const hostsFileCheckMs = 1_000;

type Answer = { until: number } & ({ addresses: string[] } | { error: string });

export function createResolver(options: ResolverOptions): Resolver {
  const now = options.now ?? Date.now;
  const fixed = fixedHosts(options.hosts);
  const fileHosts = new HostsFile(options.hostsFile ?? '/etc/hosts', now);
  const cares = new Cares({ timeout: options.tryMs ?? 3_000, tries });
  try {
    cares.setServers(options.nameServers.length > 0 ? options.nameServers : cares.getServers());
  } catch (error) {
    throw new Failure('invalid', `name servers ${options.nameServers.join(', ')}: not addresses`, {
      cause: error,
      hint: 'Write each as an address or as address:port, e.g. 192.0.2.53 or [2001:db8::53]:53.',
    });
  }
  const cache = new Map<string, Answer>();
  const asked = new Map<string, Promise<Answer>>();
  const turns = new Turns();

  const ask = async (name: string): Promise<Answer> => {
    const answer = await question(cares, name, now);
    cache.delete(name);
    cache.set(name, answer);
    if (cache.size > cachedMax) cache.delete(cache.keys().next().value as string);
    return answer;
  };

  return {
    async resolve(name, who, signal) {
      if (name === 'localhost' || name.endsWith('.localhost')) return ['127.0.0.1', '::1'];
      const known = fixed.get(name) ?? (await fileHosts.get(name));
      if (known !== undefined) return known;
      if (!name.includes('.')) throw new UpstreamError('dns', `${name}: no such name`);
      const kept = cache.get(name);
      if (kept !== undefined && kept.until > now()) return addressesOf(name, kept);

      const leave = await turns.take(who, signal);
      let answer = asked.get(name);
      if (answer === undefined) {
        answer = ask(name).finally(() => asked.delete(name));
        asked.set(name, answer);
      }
      // The question goes on when its asker leaves, and so does the turn: leaving early must not be a way to ask more.
      void answer.then(leave);
      return addressesOf(name, await unlessAborted(answer, signal));
    },
    close: () => cares.cancel(),
  };
}

function addressesOf(name: string, answer: Answer): string[] {
  if ('error' in answer) throw new UpstreamError('dns', `${name}: ${answer.error}`);
  return answer.addresses;
}

/** Asks for both families at once. Never rejects. */
async function question(cares: Cares, name: string, now: () => number): Promise<Answer> {
  const families = [cares.resolve4(name, { ttl: true }), cares.resolve6(name, { ttl: true })];
  const outcomes: ({ address: string; ttl: number }[] | Error | undefined)[] = [undefined, undefined];
  await new Promise<void>((done) => {
    let open = families.length;
    const deadline = setTimeout(done, answerMsMax);
    let grace: NodeJS.Timeout | undefined;
    const end = () => {
      clearTimeout(deadline);
      clearTimeout(grace);
      done();
    };
    families.forEach((family, at) => {
      family.then(
        (records) => {
          outcomes[at] = records;
          open -= 1;
          if (open === 0) end();
          else if (records.length > 0) grace = setTimeout(end, otherFamilyMs);
        },
        (error: Error) => {
          outcomes[at] = error;
          open -= 1;
          if (open === 0) end();
        },
      );
    });
  });

  const [four, six] = outcomes.map((outcome) => (Array.isArray(outcome) ? outcome : []));
  const records: { address: string; ttl: number }[] = [];
  for (let at = 0; records.length < addressesMax; at += 1) {
    const next = [four?.[at], six?.[at]].filter((record) => record !== undefined);
    if (next.length === 0) break;
    records.push(...next);
  }
  const certain = outcomes.every((outcome) => Array.isArray(outcome) || isAbsence(outcome));
  if (records.length > 0) {
    const ttlMs = Math.min(...records.map(({ ttl }) => ttl)) * 1_000;
    const keepMs = Math.min(Math.max(ttlMs, keepMsMin), certain ? keepMsMax : keepAbsentMs);
    return {
      addresses: records.slice(0, addressesMax).map(({ address }) => address),
      until: now() + keepMs,
    };
  }
  if (certain) return { error: 'no such name', until: now() + keepAbsentMs };
  return { error: 'the name servers gave no usable answer', until: now() + keepMsMin };
}

/** Whether it says that there is nothing, rather than that something went wrong. */
function isAbsence(outcome: unknown): boolean {
  const code = (outcome as NodeJS.ErrnoException | undefined)?.code;
  return code === 'ENOTFOUND' || code === 'ENODATA';
}

function fixedHosts(hosts: Record<string, string[]>): Map<string, string[]> {
  const fixed = new Map<string, string[]>();
  for (const [name, addresses] of Object.entries(hosts)) {
    const wrong = addresses.find((address) => isIP(address) === 0);
    if (wrong !== undefined || addresses.length === 0)
      throw new Failure('invalid', `hosts: ${name} needs addresses, not ${JSON.stringify(wrong ?? '')}`, {
        hint: 'Give each name a list of IPv4 or IPv6 addresses.',
      });
    fixed.set(canonical(name), addresses.slice(0, addressesMax));
  }
  return fixed;
}

const canonical = (name: string): string => name.toLowerCase().replace(/\.$/, '');

/** The names of a file like /etc/hosts. One that cannot be read has none. */
class HostsFile {
  readonly #path: string;
  readonly #now: () => number;
  #names = new Map<string, string[]>();
  #version = '';
  #checkAt = 0;

  constructor(path: string, now: () => number) {
    this.#path = path;
    this.#now = now;
  }

  async get(name: string): Promise<string[] | undefined> {
    if (this.#now() >= this.#checkAt) await this.#check();
    return this.#names.get(name);
  }

  async #check(): Promise<void> {
    try {
      const { mtimeMs, size, ino } = await stat(this.#path);
      const version = `${mtimeMs} ${size} ${ino}`;
      if (version !== this.#version) {
        this.#names = size > hostsFileBytesMax ? new Map() : parseHosts(await readFile(this.#path, 'latin1'));
        this.#version = version;
      }
    } catch {
      this.#names = new Map();
      this.#version = '';
    }
    this.#checkAt = this.#now() + hostsFileCheckMs;
  }
}

export function parseHosts(text: string): Map<string, string[]> {
  const names = new Map<string, string[]>();
  for (const line of text.split('\n')) {
    const [address, ...aliases] = line.replace(/#.*/, '').trim().split(/\s+/);
    // An address with a zone belongs to an interface, which no policy can judge.
    if (address === undefined || isIP(address) === 0 || address.includes('%')) continue;
    for (const alias of aliases) {
      const name = canonical(alias);
      const addresses = names.get(name) ?? [];
      if (addresses.length < addressesMax && !addresses.includes(address)) addresses.push(address);
      names.set(name, addresses);
    }
  }
  return names;
}

/** Gives each caller `askingMax` turns at a time, in the order asked. */
class Turns {
  readonly #callers = new Map<string, { busy: number; waiting: Set<() => void> }>();

  async take(who: string, signal: AbortSignal): Promise<() => void> {
    signal.throwIfAborted();
    let caller = this.#callers.get(who);
    if (caller === undefined) {
      caller = { busy: 0, waiting: new Set() };
      this.#callers.set(who, caller);
    }
    const { waiting } = caller;
    if (caller.busy < askingMax) caller.busy += 1;
    else if (waiting.size >= waitingMax)
      throw new UpstreamError('dns', `more than ${waitingMax} names wait to be looked up`);
    else
      await new Promise<void>((granted, refused) => {
        const aborted = () => {
          waiting.delete(mine);
          refused(signal.reason);
        };
        const mine = () => {
          signal.removeEventListener('abort', aborted);
          granted();
        };
        waiting.add(mine);
        signal.addEventListener('abort', aborted, { once: true });
      });
    return () => this.#leave(who);
  }

  #leave(who: string): void {
    const caller = this.#callers.get(who);
    if (caller === undefined) return;
    const [next] = caller.waiting;
    if (next !== undefined) {
      // The turn passes on; the number of busy ones stays.
      caller.waiting.delete(next);
      next();
      return;
    }
    caller.busy -= 1;
    if (caller.busy === 0) this.#callers.delete(who);
  }
}

function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const aborted = () => reject(signal.reason);
    if (signal.aborted) {
      aborted();
      return;
    }
    signal.addEventListener('abort', aborted, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', aborted));
  });
}
