// What a project may have of a host, held against what it has. Pure: whoever asks does so in the moment in which it is taken.
import type { Limits, ProjectOfSandbox, SandboxInfo } from '../contract/sandbox.ts';
import type { Quotas, Usage } from '../contract/tenant.ts';
import { Failure } from '../lib/failure.ts';

const over: ReadonlySet<SandboxInfo['state']> = new Set(['Stopped', 'Terminated', 'Failed']);

/** `starting`: stopped ones that are about to run. */
export function usageOf(sandboxes: readonly SandboxInfo[], starting: ReadonlyMap<string, unknown>): Usage {
  const running = sandboxes.filter(({ id, state }) => !over.has(state) || starting.has(id));
  return {
    sandboxes: sandboxes.length,
    cpu: sum(running.map(({ limits }) => limits.cpu ?? 0)),
    memoryBytes: sum(running.map(({ limits }) => limits.memoryBytes ?? 0)),
    ports: sum(sandboxes.map(({ published }) => published.length)),
  };
}

/** What is wanted on top. */
export interface Wanted {
  sandboxes?: number;
  /** Of what is to run. */
  limits?: Limits;
  ports?: number;
}

/** Failure('exhausted') that says of what, how much there is and how to mend it; Failure('invalid') where a quota needs a limit that nobody has given. */
export function refuseBeyond(
  project: ProjectOfSandbox,
  { quotas, usage, wanted }: { quotas: Quotas; usage: Usage; wanted: Wanted },
): void {
  const { sandboxes = 0, limits, ports = 0 } = wanted;
  const refuse = (what: string, used: string, more: string, most: string, hint: string) => {
    throw new Failure(
      'exhausted',
      `project ${project.name}: ${more} more of ${what} is beyond its quota; it has ${used} of ${most}`,
      { hint: `${hint}, or ask the administrator for more.` },
    );
  };
  const { sandboxes: sandboxesMax, cpu: cpuMax, memoryBytes: memoryMax, ports: portsMax = 0 } = quotas;
  if (sandboxesMax !== undefined && sandboxes > 0 && usage.sandboxes + sandboxes > sandboxesMax)
    refuse('sandboxes', `${usage.sandboxes}`, `${sandboxes}`, `${sandboxesMax}`, 'Remove some');
  if (ports > 0 && usage.ports + ports > portsMax)
    refuse('published ports', `${usage.ports}`, `${ports}`, `${portsMax}`, 'Take some off');
  if (limits === undefined) return;
  if (cpuMax !== undefined) {
    const cpu = required(limits.cpu, project, 'cpu', '"500m"');
    // Sums of fractions are a little more or less than they ought to be.
    if (usage.cpu + cpu > cpuMax + 1e-9)
      refuse('cpu', `${rounded(usage.cpu)}`, `${cpu}`, `${cpuMax}`, 'Stop some sandboxes, or ask for less');
  }
  if (memoryMax !== undefined) {
    const memory = required(limits.memoryBytes, project, 'memory', '"512Mi"');
    if (usage.memoryBytes + memory > memoryMax)
      refuse(
        'memory',
        `${usage.memoryBytes}`,
        `${memory}`,
        `${memoryMax} bytes`,
        'Stop some sandboxes, or ask for less',
      );
  }
}

function required(
  limit: number | undefined,
  project: ProjectOfSandbox,
  name: string,
  example: string,
): number {
  if (limit !== undefined) return limit;
  throw new Failure(
    'invalid',
    `resourceLimits.${name}: is missing; project ${project.name} has a quota of it, so each sandbox has to say how much it wants`,
    { hint: `Give it, such as ${example}.` },
  );
}

const sum = (numbers: readonly number[]): number => numbers.reduce((all, it) => all + it, 0);
const rounded = (cpu: number): number => Math.round(cpu * 1000) / 1000;
