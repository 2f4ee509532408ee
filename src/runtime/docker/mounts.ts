// Mounts that the engine cannot make: with owners mapped, as an overlay, with hidden files. They are put into the running container from the host's side,
// before anything but the agent runs in it. The engine knows nothing of them; they end with the container's processes.
import { type ChildProcess, spawn } from 'node:child_process';
import { accessSync, constants } from 'node:fs';
import { release } from 'node:os';
import { normalize } from 'node:path';
import { text } from 'node:stream/consumers';
import { mountsCommand } from '../../agent/bundle.ts';
import { Failure } from '../../lib/failure.ts';
import { checkSpecial, type HelperPlan, helperFailure, kernelMounts, throughHelper } from '../mounts/plan.ts';
import type { Capabilities, ImageDefaults, MachineSpec } from '../runtime.ts';

const environment = { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C' };
/** Takes a tenth of a second; the engine's host may be busy, and ten thousand hidden files take a while. */
const mountsWithinMs = 60_000;

/** What mounts can be had of this engine. `local`: its containers are processes of this host, on the host's own kernel. */
export function mountsPossible(engine: { local: boolean }): Capabilities['mounts'] {
  const able = engine.local && process.getuid?.() === 0 && hasUnshare();
  return able ? kernelMounts(release()) : { owner: false, overlay: false, hidden: false };
}

export function checkMounts(spec: MachineSpec, can: Capabilities['mounts']): void {
  for (const mount of spec.mounts)
    checkSpecial(
      mount,
      can,
      'Run the daemon as root on the host of a Docker engine that uses runc, with Linux 5.19 or newer; or use bubblewrap.',
    );
}

/**
 * Makes those mounts of `spec` that the engine did not make. To be called after every start of its container, before the machine is handed out. On
 * failure or abort the container has none of them, or some; it is not to be used.
 */
export async function attachMounts(
  container: { id: string; pid: number },
  options: { spec: MachineSpec; defaults: ImageDefaults; agentFolder: string },
  signal: AbortSignal,
): Promise<void> {
  const { spec, defaults, agentFolder } = options;
  const mounts = throughHelper(spec.mounts);
  if (mounts.length === 0) return;
  signal.throwIfAborted();
  const doing = `make the mounts of ${spec.id}`;
  const plan: HelperPlan = {
    staging: agentFolder,
    user: spec.user ?? defaults.user ?? '',
    guest: { kind: 'container', ...container },
    mounts: mounts.map((it) => ({ ...it, target: normalize(it.guestPath) })),
  };
  const [program = '', ...args] = mountsCommand(agentFolder);
  const child = spawn(program, args, {
    ...{ env: environment, cwd: '/', stdio: ['pipe', 'ignore', 'pipe'] as const },
    ...{
      killSignal: 'SIGKILL' as const,
      signal: AbortSignal.any([signal, AbortSignal.timeout(mountsWithinMs)]),
    },
  });
  const ended = endOf(child, doing);
  ended.catch(() => {});
  // What it did not read is told by how it ended.
  child.stdin.on('error', () => {});
  child.stdin.end(JSON.stringify(plan));
  const said = (await text(child.stderr)).trim().slice(0, 1_000);
  const code = await ended;
  if (code === 0) return;
  throw helperFailure(said, doing) ?? new Failure('internal', `${doing}: ${said || `it ended with ${code}`}`);
}

/** Settles once it has really ended, also on abort. */
function endOf(child: ChildProcess, doing: string): Promise<number | null> {
  return new Promise((resolve, reject) => {
    let error: Error | undefined;
    child.once('error', (thrown) => {
      error = thrown;
      if (child.pid === undefined) reject(Failure.from(thrown, doing));
    });
    child.once('close', (code) => {
      if (error === undefined) resolve(code);
      else reject(Failure.from(error, doing));
    });
  });
}

function hasUnshare(): boolean {
  return environment.PATH.split(':').some((folder) => {
    try {
      accessSync(`${folder}/unshare`, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}
