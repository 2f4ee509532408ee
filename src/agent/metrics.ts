// What the guest uses and has, from its own cgroup where that can be read, else from the machine.
import { readFileSync } from 'node:fs';
import type { GuestReply } from '../contract/guest.ts';

const root = '/sys/fs/cgroup';

export function metrics(): GuestReply & { type: 'metrics' } {
  const machine = memoryOfMachine();
  const limit = number(`${root}/memory.max`) ?? number(`${root}/memory/memory.limit_in_bytes`);
  const total = Math.min(limit ?? Number.POSITIVE_INFINITY, machine.total);
  const used = memoryUsed() ?? machine.used;
  return {
    type: 'metrics',
    cpuCount: cpuQuota() ?? navigator.hardwareConcurrency,
    cpuUsageUsec: cpuUsed(),
    memoryTotalBytes: total,
    memoryUsedBytes: Math.min(used, total),
    at: Date.now(),
  };
}

// Page cache that can be dropped is not what anybody means by used.
function memoryUsed(): number | undefined {
  const v2 = number(`${root}/memory.current`);
  const used = v2 ?? number(`${root}/memory/memory.usage_in_bytes`);
  if (used === undefined) return undefined;
  const stat = read(v2 === undefined ? `${root}/memory/memory.stat` : `${root}/memory.stat`) ?? '';
  const inactive = /^(?:total_)?inactive_file (\d+)$/m.exec(stat)?.[1];
  return Math.max(0, used - Number(inactive ?? 0));
}

function cpuQuota(): number | undefined {
  const [quota, period] = (read(`${root}/cpu.max`) ?? '').split(' ').map(Number);
  if (quota !== undefined && period !== undefined && quota > 0 && period > 0) return quota / period;
  const quotaV1 = number(`${root}/cpu/cpu.cfs_quota_us`);
  const periodV1 = number(`${root}/cpu/cpu.cfs_period_us`);
  return quotaV1 !== undefined && periodV1 !== undefined && quotaV1 > 0 && periodV1 > 0
    ? quotaV1 / periodV1
    : undefined;
}

function cpuUsed(): number {
  const v2 = /^usage_usec (\d+)$/m.exec(read(`${root}/cpu.stat`) ?? '')?.[1];
  if (v2 !== undefined) return Number(v2);
  const v1 = number(`${root}/cpuacct/cpuacct.usage`);
  if (v1 !== undefined) return Math.round(v1 / 1000);
  // user, nice, system, idle, iowait, irq, softirq: in hundredths of a second, of which idle and iowait are no use.
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0] = (read('/proc/stat') ?? '')
    .slice(5, 200)
    .split(/\s+/)
    .map((it) => Number(it) || 0);
  return (user + nice + system + irq + softirq) * 10_000;
}

function memoryOfMachine(): { total: number; used: number } {
  const text = read('/proc/meminfo') ?? '';
  const of = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, 'm').exec(text)?.[1] ?? 0) * 1024;
  const total = of('MemTotal');
  return { total, used: total - of('MemAvailable') };
}

function number(path: string): number | undefined {
  const text = read(path)?.trim();
  return text !== undefined && /^-?\d+$/.test(text) ? Number(text) : undefined;
}

function read(path: string): string | undefined {
  try {
    return readFileSync(path, 'latin1');
  } catch {
    return undefined;
  }
}
