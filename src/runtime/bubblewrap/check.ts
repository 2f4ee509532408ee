// Says whether bubblewrap's walls can be had on this host, and what of them is weak.
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { Failure } from '../../lib/failure.ts';
import type { Capabilities, RuntimeCheck } from '../runtime.ts';
import { hostEnvironment } from './launcher.ts';

export interface HostCheck {
  bwrap: string;
  /** As they are known; the probe may teach better. */
  capabilities: () => Capabilities;
  /** Starts a machine for real and removes it. Rejects with why it cannot be. */
  probe: () => Promise<void>;
}

/** The first version with every option that we use. */
const versionMin = [0, 6] as const;

export async function checkHost(host: HostCheck, signal: AbortSignal): Promise<RuntimeCheck> {
  const problems: RuntimeCheck['problems'] = [];
  const fatal = (message: string, hint: string) => problems.push({ message, hint, fatal: true });
  const version = await bwrapVersion(host.bwrap, signal);
  if (process.platform !== 'linux') fatal('bubblewrap is for Linux only', 'Use the docker runtime.');
  else if (version === undefined)
    fatal('bubblewrap is not installed', 'Install it, e.g. `apt-get install bubblewrap`.');
  else if (isOlder(version))
    fatal(`bubblewrap ${version} is too old`, `Install version ${versionMin.join('.')} or newer.`);
  else
    await host.probe().catch((thrown) => {
      if (signal.aborted) throw thrown;
      const failure = Failure.from(thrown, 'start a machine');
      fatal(failure.message, failure.hint ?? 'Start a sandbox with the docker runtime instead.');
    });
  const capabilities = host.capabilities();
  problems.push(...weaknesses(capabilities));
  return {
    usable: !problems.some((it) => it.fatal),
    ...(version !== undefined && { version }),
    capabilities,
    problems,
  };
}

function weaknesses({ limits, pause, users, network }: Capabilities): RuntimeCheck['problems'] {
  const missing = (['memoryBytes', 'cpu', 'pids'] as const).filter((it) => limits[it] === undefined);
  const found: [message: string, hint: string][] = [];
  if (missing.length > 0)
    found.push([
      `no limit can be held on ${missing.join(', ')}`,
      'Run the daemon as root, or as a systemd service with `Delegate=yes`.',
    ]);
  if (!pause) found.push(['sandboxes cannot be paused: no freezer', 'The same gives the daemon a freezer.']);
  if (users === 'single')
    found.push([
      'sandboxes have one user only, their root',
      'Run the daemon as root if sandboxes need several users; their root is never the root of the host.',
    ]);
  if (network !== 'captured')
    found.push([
      'connections of programs that ignore proxy settings cannot be captured, so they fail',
      'Install iproute2, whose `ip` makes the routes.',
    ]);
  return found.map(([message, hint]) => ({ message, hint, fatal: false }));
}

async function bwrapVersion(bwrap: string, signal: AbortSignal): Promise<string | undefined> {
  try {
    const { stdout } = await promisify(execFile)(bwrap, ['--version'], { env: hostEnvironment, signal });
    return /\d+(\.\d+)+/.exec(stdout)?.[0];
  } catch (thrown) {
    if (signal.aborted) throw Failure.from(thrown, 'check bubblewrap');
    return undefined;
  }
}

function isOlder(version: string): boolean {
  const [major = 0, minor = 0] = version.split('.').map(Number);
  return major < versionMin[0] || (major === versionMin[0] && minor < versionMin[1]);
}
