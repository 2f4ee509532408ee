// What a sandbox uses, from its own cgroup: two looks a moment apart give the share of its processors.
import { setTimeout as delay } from 'node:timers/promises';
import type { Metrics } from '../../contract/execd.ts';
import type { GuestMetrics } from '../../guest/guest.ts';
import type { ApiOptions, Handlers } from '../handlers.ts';
import { writeTo } from './events.ts';

const lookMs = 100;
const watchMs = 1_000;
const mebibyte = 1024 * 1024;

export function metricsHandlers({ service }: ApiOptions): Handlers<'metrics' | 'watchMetrics'> {
  return {
    metrics: async ({ sandboxId, exchange: { signal } }) => {
      const guest = service.guest(sandboxId);
      const before = await guest.metrics(signal);
      await delay(lookMs, undefined, { signal });
      return { status: 200, json: metricsOf(before, await guest.metrics(signal)) };
    },

    watchMetrics: async ({ sandboxId, exchange }) => {
      const { signal } = exchange;
      let before = await service.guest(sandboxId).metrics(signal);
      let waitMs = lookMs;
      for (;;) {
        await delay(waitMs, undefined, { signal });
        const after = await service.guest(sandboxId).metrics(signal);
        await writeTo(exchange, `${JSON.stringify(metricsOf(before, after))}\n`);
        before = after;
        waitMs = watchMs;
      }
    },
  };
}

/** Of a hostile guest: whatever it says, the share is one of 0 to 100. */
function metricsOf(before: GuestMetrics, after: GuestMetrics): Metrics {
  const availableUsec = Math.max(1, after.at - before.at) * 1000 * Math.max(0.01, after.cpuCount);
  const share = ((after.cpuUsageUsec - before.cpuUsageUsec) / availableUsec) * 100;
  return {
    cpu_count: after.cpuCount,
    cpu_used_pct: Math.round(Math.min(100, Math.max(0, share)) * 100) / 100,
    mem_total_mib: after.memoryTotalBytes / mebibyte,
    mem_used_mib: after.memoryUsedBytes / mebibyte,
    timestamp: Math.round(after.at),
  };
}
