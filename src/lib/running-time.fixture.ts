// Time that passes while the process of the tests runs. Limits are then not over because that process was stopped for a second, and found its timers
// due before it could read what had come meanwhile. For tests that have both ends, and our limits between them, in one process.
import { onTestFinished, vi } from 'vitest';

const stepMs = 10;
const { setInterval, clearInterval } = globalThis;

/** Until the test has finished, for our own timers; those within node, such as of HTTP/2 sessions, are as ever. */
export function useRunningTime(): void {
  if (vi.isFakeTimers()) return;
  vi.useFakeTimers({
    toFake: ['setTimeout', 'clearTimeout', 'setInterval', 'clearInterval', 'performance'],
  });
  // A step that comes late is one step all the same, and what is there to be read is read before the next.
  const steps = setInterval(() => vi.advanceTimersByTime(stepMs), stepMs);
  onTestFinished(() => {
    clearInterval(steps);
    vi.useRealTimers();
  });
}
