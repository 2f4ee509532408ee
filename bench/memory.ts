// Memory of idle sandboxes: the proportional set size of their agents, which counts what they share once among them.
import { readdirSync, readFileSync } from 'node:fs';
import type { SandboxService } from '../src/sandbox/sandbox.ts';
import { type Figure, figure } from './measure.ts';
import { createRequest } from './start.ts';

function pssOfAgents(): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((pid) => {
      try {
        if (!readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('/.glovebox/agent/agent.js')) return [];
        const text = readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8');
        // bwrap and setpriv name the agent in their arguments too; the agent itself is the one that maps its runtime.
        if (!readFileSync(`/proc/${pid}/maps`, 'utf8').includes('/bun')) return [];
        return [Number(/^Pss:\s+(\d+) kB/m.exec(text)?.[1]) / 1024];
      } catch {
        return [];
      }
    });
}

export async function memoryFigures(service: SandboxService, count: number): Promise<Figure[]> {
  const signal = AbortSignal.timeout(300_000);
  const request = { ...createRequest, runtime: 'bubblewrap', image: 'host' };
  const infos = await Promise.all(Array.from({ length: count }, () => service.create(request, signal)));
  const idle = pssOfAgents();
  const daemon = process.memoryUsage().rss / 1024 ** 2;
  for (const { id } of infos) {
    const { exit } = await service.executions(id).start({ argv: ['/bin/true'], stdin: 'none' });
    await exit;
  }
  const used = pssOfAgents();
  await Promise.all(infos.map(({ id }) => service.remove(id, signal)));
  if (idle.length < count) throw new Error(`only ${idle.length} of ${count} agents were found`);
  return [
    figure(`PSS of an idle agent, ${count} of them`, 'MiB', idle, {
      target: { text: '≤ 3 MiB', holds: (it) => it.median <= 3 },
    }),
    figure(`PSS of an agent after its first command, ${count} of them`, 'MiB', used),
    figure(`RSS of the daemon's process with ${count} sandboxes`, 'MiB', [daemon]),
  ];
}
