// What every runtime owes, kept by the Docker runtime on the real engine.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, realpathSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { describe } from 'vitest';
import { leftovers, makeHome } from '../../../test/daemon.ts';
import { dockerImage } from '../../../test/images.ts';
import { agentCommand, agentEnvironment, ensureAgentBundle } from '../../agent/bundle.ts';
import { runtimeConformance } from '../conformance.ts';
import { DockerRuntime } from './docker.ts';

const present = process.env.GLOVEBOX_TEST_PRESENT?.split(',').includes('docker') ?? false;
const home = makeHome();
const homeId = createHash('sha256').update(realpathSync(home)).digest('hex').slice(0, 12);
const opened: DockerRuntime[] = [];

/** Processes of the host whose control group is the container's. */
function processesIn(id: string): number[] {
  const container = execFileSync('docker', ['inspect', '-f', '{{.Id}}', `glovebox-${id}`], {
    encoding: 'utf8',
  }).trim();
  const pids = readdirSync('/proc').filter((name) => /^\d+$/.test(name));
  return pids.filter((pid) => cgroupOf(pid).includes(container)).map(Number);
}

function cgroupOf(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/cgroup`, 'utf8');
  } catch {
    // It ended while we looked.
    return '';
  }
}

if (present) {
  const agent = {
    folder: await ensureAgentBundle(),
    command: agentCommand(),
    environment: agentEnvironment(),
  };
  const open = (): DockerRuntime => {
    const runtime = new DockerRuntime({ homeId, agent });
    opened.push(runtime);
    return runtime;
  };
  const { capabilities } = await open().check(new AbortController().signal);
  runtimeConformance('docker', capabilities, () => {
    const folders = { run: join(home, 'run'), state: join(home, 'machines') };
    for (const folder of Object.values(folders)) mkdirSync(folder);
    return {
      capabilities,
      open,
      images: { shell: dockerImage('busybox'), scratch: dockerImage('scratch') },
      defaults: { env: { IMAGE_SAYS: 'hello' }, entrypoint: [] },
      folders,
      processes: processesIn,
      leftovers: () => leftovers(home),
      close() {
        for (const runtime of opened) runtime[Symbol.dispose]();
        rmSync(home, { recursive: true });
      },
    };
  });
} else describe.skip('docker: not usable here');
