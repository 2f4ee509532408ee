// Notices the end of processes that are not our children: those of machines that an earlier daemon started.
// The kernel tells only parents, and Node.js has no pidfd, so all of them share one look a second.
import { isAlive, type ProcessIdentity } from './identity.ts';

const everyMs = 1_000;

export class ProcessWatch {
  readonly #waiting = new Map<ProcessIdentity, () => void>();
  #timer: NodeJS.Timeout | undefined;

  /** Resolves once the process has ended. Keeps no program from exiting. */
  ended(identity: ProcessIdentity): Promise<void> {
    return new Promise((resolve) => {
      this.#waiting.set(identity, resolve);
      this.#timer ??= setInterval(() => this.look(), everyMs).unref();
    });
  }

  /** Looks at once, for someone who knows that something has ended. */
  look(): void {
    for (const [identity, resolve] of this.#waiting) {
      if (isAlive(identity)) continue;
      this.#waiting.delete(identity);
      resolve();
    }
    if (this.#waiting.size > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }
}
