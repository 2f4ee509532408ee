// One thing at a time, in the order asked for, with a bound on how many wait.
import { Failure } from '../../lib/failure.ts';

export class Turns {
  readonly #waitingMax: number;
  readonly #waiting: (() => void)[] = [];
  #taken = false;

  constructor(waitingMax: number) {
    this.#waitingMax = waitingMax;
  }

  /**
   * Resolves when it is the caller's turn, with what ends it, to be called once. Failure('exhausted') when too many wait, the signal's reason as a Failure when it
   * aborts first.
   */
  async take(doing: string, signal?: AbortSignal): Promise<() => void> {
    if (signal?.aborted) throw Failure.from(signal.reason, doing);
    if (this.#taken) await this.#wait(doing, signal);
    this.#taken = true;
    return () => {
      const next = this.#waiting.shift();
      // The turn goes from hand to hand: nobody who comes meanwhile gets in between.
      if (next === undefined) this.#taken = false;
      else next();
    };
  }

  #wait(doing: string, signal: AbortSignal | undefined): Promise<void> {
    if (this.#waiting.length >= this.#waitingMax)
      throw new Failure('exhausted', `${doing}: ${this.#waitingMax} others wait for the same daemon already`);
    return new Promise((resolve, reject) => {
      const turn = () => {
        signal?.removeEventListener('abort', leave);
        resolve();
      };
      const leave = () => {
        const at = this.#waiting.indexOf(turn);
        // Not there: the turn has just come.
        if (at < 0) return;
        this.#waiting.splice(at, 1);
        reject(Failure.from(signal?.reason, doing));
      };
      this.#waiting.push(turn);
      signal?.addEventListener('abort', leave, { once: true });
    });
  }
}
