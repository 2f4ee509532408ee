// The network namespace of a container, seen and prepared from the host's side: that it is the container's own with nothing but loopback in it, and
// that every address of the world is on that loopback, so that the agent can answer there. An image has no `ip`, and its guest no right to use one.
import { spawn } from 'node:child_process';
import { accessSync, constants } from 'node:fs';
import { type FileHandle, open, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { Failure } from '../../lib/failure.ts';

const environment = { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C' };
/** Takes some milliseconds; the engine's host may be busy. */
const routesWithinMs = 10_000;

/** Whether this process may prepare networks, and has what that takes. */
export function canCapture(): boolean {
  return process.getuid?.() === 0 && ['nsenter', 'ip'].every(hasProgram);
}

/**
 * Looks at the container's network from the host, by its first process. Resolves with whether it is seen to be the container's own and to have nothing
 * but loopback; with `capture`, only after every address leads there. Rejects when the routes cannot be made.
 */
export async function wallOff(
  container: { id: string; pid: number },
  options: { capture: boolean },
): Promise<boolean> {
  const folder = `/proc/${container.pid}`;
  let network: FileHandle | undefined;
  try {
    // Opened first: what is learnt about the process afterwards is true of this namespace, whoever gets the number later.
    if (options.capture) network = await open(`${folder}/ns/net`, 'r');
    const [cgroup, devices, inet6] = await Promise.all([
      readFile(`${folder}/cgroup`, 'utf8'),
      readFile(`${folder}/net/dev`, 'utf8'),
      // Absent on a host without IPv6.
      readFile(`${folder}/net/if_inet6`, 'utf8').catch(() => ''),
    ]);
    const names = [...devices.matchAll(/^\s*([^\s:]+):/gm)].map((it) => it[1]);
    // The number may mean another process where we do not see the engine's processes, hence the look at the cgroup.
    const own = cgroup.includes(container.id) && names.length === 1 && names[0] === 'lo';
    if (!own || network === undefined) return own;
    // A host may have nothing but loopback itself; its routes are not ours to change.
    if ((await network.stat()).ino === (await stat('/proc/self/ns/net')).ino) return false;
    await addRoutes(network, { ipv6: inet6 !== '' });
    return true;
  } catch (thrown) {
    if (thrown instanceof Failure) throw thrown;
    return false;
  } finally {
    await network?.close();
  }
}

async function addRoutes(network: FileHandle, { ipv6 }: { ipv6: boolean }): Promise<void> {
  const doing = 'make every address of the sandbox its own';
  const child = spawn('nsenter', ['--net=/proc/self/fd/3', 'ip', '-batch', '-'], {
    env: environment,
    stdio: ['pipe', 'ignore', 'pipe', network.fd],
    timeout: routesWithinMs,
  });
  const ended = new Promise<number | null>((resolve, reject) => {
    child.once('error', (error) => reject(Failure.from(error, doing)));
    child.once('close', resolve);
  });
  child.stdin?.on('error', () => {});
  child.stdin?.end(`route add local 0.0.0.0/0 dev lo\n${ipv6 ? 'route add local ::/0 dev lo\n' : ''}`);
  const [code, complaints] = await Promise.all([ended, text(child.stderr as NodeJS.ReadableStream)]);
  if (code !== 0) throw new Failure('unavailable', `${doing}: ${complaints.trim().slice(0, 500)}`);
}

function hasProgram(name: string): boolean {
  return environment.PATH.split(':').some((folder) => {
    try {
      accessSync(join(folder, name), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}
