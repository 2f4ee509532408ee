// What the work of a moment has left behind is given back once the agent has been quiet for a second; compiled code goes with it. One for the whole agent, so that
// what has been got ready for an owner is not thrown away by a part that does not know of it.
const afterMs = 1_000;

export class Shrinking {
  #timer: ReturnType<typeof setTimeout> | undefined;

  /** `quiet`: looked at when the time has come. */
  soon(quiet: () => boolean = () => true): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      if (!quiet()) return;
      Bun.gc(true);
      Bun.shrink();
    }, afterMs);
    this.#timer.unref?.();
  }

  notNow(): void {
    clearTimeout(this.#timer);
  }
}
