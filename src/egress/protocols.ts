// What servers have chosen lately (ALPN), so that a guest's next connection need not wait for ours. A memory, not a truth: whoever finds it wrong
// forgets it.

export type HttpProtocol = 'h2' | 'http/1.1';

const rememberedMax = 1_024;

export class Protocols {
  readonly #known = new Map<string, HttpProtocol>();

  get(place: string): HttpProtocol | undefined {
    return this.#known.get(place);
  }

  remember(place: string, protocol: HttpProtocol): void {
    this.#known.delete(place);
    this.#known.set(place, protocol);
    if (this.#known.size > rememberedMax) this.#known.delete(this.#known.keys().next().value as string);
  }

  forget(place: string): void {
    this.#known.delete(place);
  }

  clear(): void {
    this.#known.clear();
  }
}
