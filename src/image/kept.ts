// The images of our store as templates: what runtime.ts asks of a runtime's store, in its words.
import type { KeptImage, RuntimeImages } from '../runtime/runtime.ts';
import { hostImage, imageName } from './name.ts';
import type { ImageStore } from './store.ts';

export class KeptImages implements RuntimeImages {
  readonly #store: ImageStore;

  constructor(store: ImageStore) {
    this.#store = store;
  }

  async list(signal: AbortSignal): Promise<KeptImage[]> {
    signal.throwIfAborted();
    const images = (await this.#store.list()).filter((it) => it.name !== hostImage);
    const kept = await Promise.allSettled(images.map((it) => this.#store.keptImage(it.name)));
    // One that was removed meanwhile is no more to be listed.
    return kept.flatMap((it) => (it.status === 'fulfilled' ? [it.value] : []));
  }

  async has(name: string, signal: AbortSignal): Promise<boolean> {
    signal.throwIfAborted();
    return isName(name) && this.#store.has(name);
  }

  async remove(name: string, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    await this.#store.remove(name);
  }

  async load(name: string, source: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<KeptImage> {
    const made = await this.#store.import(source, { name, forThisHost: true }, signal);
    return this.#store.keptImage(made.name);
  }

  export(name: string, signal: AbortSignal): AsyncIterable<Uint8Array> {
    return this.#store.export(name, signal);
  }
}

/** References of other runtimes are no names of ours, and there is nothing of such a name. */
function isName(text: string): boolean {
  try {
    imageName(text);
    return true;
  } catch {
    return false;
  }
}
