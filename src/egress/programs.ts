// Which program of the guest has opened a connection: asked of the guest while the connection goes its way, a few at a time. When too many come at
// once, some stay nameless; nobody waits.
import type { EgressSandbox } from './egress.ts';

const searchesMax = 4;

type Program = { pid: number; command: string };

export class Programs {
  readonly #processOf: EgressSandbox['processOf'];
  #searches = 0;

  constructor(processOf: EgressSandbox['processOf']) {
    this.#processOf = processOf;
  }

  /** Never rejects, and settles after `withinMs` at the latest. Undefined when it is not looked for. */
  find(clientPort: number, withinMs: number): Promise<Program | undefined> | undefined {
    if (this.#processOf === undefined || this.#searches >= searchesMax || clientPort === 0) return undefined;
    this.#searches++;
    const search = Promise.try(this.#processOf, clientPort)
      .catch(() => undefined)
      .finally(() => this.#searches--);
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, withinMs, undefined);
      void search.then((found) => {
        clearTimeout(timer);
        resolve(found);
      });
    });
  }
}
