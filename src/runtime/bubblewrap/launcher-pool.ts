// Keeps a few chains waiting, so that a machine's start skips their half of the work. A chain that waits costs two sleeping shells.
import { readFileSync } from 'node:fs';
import { Launcher, type LauncherOptions } from './launcher.ts';

/** Creates usually come one by one; more at once start their chains when they come. */
const waitingMax = 2;
const restMs = 20;

interface Waiting {
  launcher: Launcher;
  hostMounts: string;
}

export class LauncherPool {
  readonly #options: LauncherOptions;
  #waiting: Waiting[] = [];
  #refilling: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(options: LauncherOptions) {
    this.#options = options;
  }

  /** `hostPaths`: the machine will show folders of the host, so what is mounted there must be what is mounted now. */
  take(options: { hostPaths: boolean }): Launcher {
    const hostMounts = options.hostPaths ? mountinfo() : undefined;
    while (this.#waiting.length > 0) {
      const next = this.#waiting.shift() as Waiting;
      if (next.launcher.alive && (hostMounts === undefined || hostMounts === next.hostMounts))
        return next.launcher;
      next.launcher.close();
    }
    return new Launcher(this.#options);
  }

  /** Makes up for what was taken, a moment later: a machine that has just been made is busy with its first command. */
  refill(): void {
    if (this.#closed || this.#refilling !== undefined) return;
    this.#refilling = setTimeout(() => this.#fill(), restMs).unref();
  }

  #fill(): void {
    this.#refilling = undefined;
    while (this.#waiting.length < waitingMax)
      this.#waiting.push({ hostMounts: mountinfo(), launcher: new Launcher(this.#options) });
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#refilling);
    for (const { launcher } of this.#waiting.splice(0)) launcher.close();
  }
}

const mountinfo = () => readFileSync('/proc/self/mountinfo', 'utf8');
