// Addresses that stand for names: handed out when a name is asked for, turned back into the name when the connection comes.
// A name keeps its address while it is among the last 65,536 used; a number is used again only after all others.

/** 198.18.0.0/15 is set aside for tests of networks, so no program means it in earnest. */
const firstV4 = (198 << 24) | (18 << 16);
const numbersMax = 2 ** 17 - 2;
const namesMax = 2 ** 16;
/** A prefix for private use; the number follows as the IPv4 address does. */
const prefixV6 = [0xfd00, 0x676c, 0x6f76, 0, 0, 0];

export interface SyntheticAddress {
  v4: Uint8Array;
  v6: Uint8Array;
}

export class Names {
  /** In the order of their last use. */
  readonly #numbers = new Map<string, number>();
  readonly #names = new Map<number, string>();
  #last = 0;

  addressOf(name: string): SyntheticAddress {
    const number = this.#numbers.get(name) ?? this.#free();
    this.#use(name, number);
    const v4 = bytesOf((firstV4 + number) >>> 0);
    const v6 = new Uint8Array(16);
    for (const [index, group] of prefixV6.entries()) v6.set([group >>> 8, group & 0xff], index * 2);
    v6.set(v4, 12);
    return { v4, v6 };
  }

  /** The name that an address stands for, as a socket tells it. Undefined for all others. */
  nameAt(address: string): string | undefined {
    const number = address.includes(':') ? numberInV6(address) : numberInV4(address);
    const name = number === undefined ? undefined : this.#names.get(number);
    if (name !== undefined) this.#use(name, number as number);
    return name;
  }

  #use(name: string, number: number): void {
    this.#numbers.delete(name);
    this.#numbers.set(name, number);
    this.#names.set(number, name);
  }

  #free(): number {
    if (this.#numbers.size >= namesMax) {
      const [oldest, number] = this.#numbers.entries().next().value as [string, number];
      this.#numbers.delete(oldest);
      this.#names.delete(number);
    }
    // At most every second number is taken.
    do this.#last = (this.#last % numbersMax) + 1;
    while (this.#names.has(this.#last));
    return this.#last;
  }
}

function bytesOf(address: number): Uint8Array {
  return Uint8Array.of(address >>> 24, (address >>> 16) & 0xff, (address >>> 8) & 0xff, address & 0xff);
}

function numberInV4(address: string): number | undefined {
  const parts = address.split('.').map(Number);
  if (parts.length !== 4 || parts.some((it) => !Number.isInteger(it) || it < 0 || it > 255)) return undefined;
  const [a = 0, b = 0, c = 0, d = 0] = parts;
  const number = (((a << 24) | (b << 16) | (c << 8) | d) - firstV4) >>> 0;
  return number >= 1 && number <= numbersMax ? number : undefined;
}

function numberInV6(address: string): number | undefined {
  const groups = groupsOf(address);
  if (groups === undefined || prefixV6.some((group, index) => groups[index] !== group)) return undefined;
  const [high = 0, low = 0] = groups.slice(6);
  const number = (((high << 16) | low) - firstV4) >>> 0;
  return number >= 1 && number <= numbersMax ? number : undefined;
}

/** The eight groups of an IPv6 address in the form that the kernel and resolvers print. */
function groupsOf(address: string): number[] | undefined {
  const [head = '', tail] = address.toLowerCase().split('::');
  const first = head === '' ? [] : head.split(':');
  const last = tail === undefined || tail === '' ? [] : tail.split(':');
  const missing = 8 - first.length - last.length;
  if (tail === undefined ? missing !== 0 : missing < 1) return undefined;
  const groups = [...first, ...Array<string>(tail === undefined ? 0 : missing).fill('0'), ...last];
  if (!groups.every((it) => /^[0-9a-f]{1,4}$/.test(it))) return undefined;
  return groups.map((it) => Number.parseInt(it, 16));
}
