// Loaded into the daemon's process with `--import`, and by nothing else: how late its event loop is and what its memory is, told to whoever connects to the socket that
// GLOVEBOX_BENCH_PROBE names. A connection asks with one word: `reset` begins anew, `read` tells.
import { createServer } from 'node:net';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

export interface ProbeReading {
  /** Milliseconds beyond what was due. */
  lag: { p50: number; p99: number; max: number };
  /** After collecting garbage. */
  heapBytes: number;
  rssBytes: number;
  /** Since the process began. */
  cpuMs: number;
}

const resolution = 10;
const path = process.env.GLOVEBOX_BENCH_PROBE;
if (path !== undefined) {
  delete process.env.GLOVEBOX_BENCH_PROBE;
  delete process.env.NODE_OPTIONS;
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  const delay = monitorEventLoopDelay({ resolution });
  delay.enable();
  const lateMs = (nanoseconds: number) => Math.max(0, nanoseconds / 1e6 - resolution);
  createServer((socket) => {
    socket.on('error', () => undefined);
    socket.once('data', (word) => {
      if (word.toString() === 'reset') {
        delay.reset();
        return void socket.end();
      }
      // First, for collecting is no lag of the daemon's.
      const lag = {
        ...{ p50: lateMs(delay.percentile(50)), p99: lateMs(delay.percentile(99)), max: lateMs(delay.max) },
      };
      const { user, system } = process.cpuUsage();
      collect();
      const { heapUsed, external, rss } = process.memoryUsage();
      const reading: ProbeReading = {
        ...{ lag, heapBytes: heapUsed + external, rssBytes: rss, cpuMs: (user + system) / 1000 },
      };
      socket.end(JSON.stringify(reading));
    });
  })
    .listen(path)
    .unref();
}
