// Time as the channel sees it: monotonic, and handed in, so that tests can bend it.

export interface Clock {
  /** Milliseconds on a clock that never jumps. */
  now(): number;
  /** Calls `fire` once after `ms`; the returned function cancels. */
  setTimer(ms: number, fire: () => void): () => void;
}

/**
 * The clock of the process, on Node.js and on Bun. In the daemon a channel must not keep the process alive;
 * in an agent between two connections nothing else does.
 */
export function systemClock(options: { keepsProcessAlive: boolean }): Clock {
  return {
    now: () => performance.now(),
    setTimer(ms, fire) {
      const timer = setTimeout(fire, ms) as ReturnType<typeof setTimeout> & { unref?: () => void };
      if (!options.keepsProcessAlive) timer.unref?.();
      return () => clearTimeout(timer);
    },
  };
}
