// Waits of tests end when what they wait for is there; on a slow and shared machine the limit of one second that `vi.waitFor` has by itself is too short.
import { vi } from 'vitest';

const patienceMs = 60_000;
const { waitFor } = vi;

vi.waitFor = (check, options) =>
  waitFor(check, { timeout: patienceMs, ...(typeof options === 'number' ? { timeout: options } : options) });
