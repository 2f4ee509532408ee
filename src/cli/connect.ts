// The way to the server: the one that the environment names, or this machine's daemon, which is started when none runs.
import { spawn } from 'node:child_process';
import { closeSync, mkdirSync, openSync, readFileSync, renameSync, statSync } from 'node:fs';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { SandboxClient, type SandboxError } from '../../sdk/src/index.ts';
import { CliError, exitCodes } from './exit-codes.ts';
import { clean, paint, say } from './output.ts';

const binary = join(import.meta.dirname, '../../bin/glovebox');
const startDeadlineMs = 60_000;
const healthDeadlineMs = 5_000;
const lookEveryMs = 20;
const logBytesMax = 10 * 1024 * 1024;

export function homeFolder(): string {
  return resolve(process.env.GLOVEBOX_HOME || join(homedir(), '.glovebox'));
}

/** Whether the environment names a server; then no daemon is ever started here. */
export function serverIsNamed(): boolean {
  return Boolean(process.env.GLOVEBOX_URL || process.env.OPEN_SANDBOX_DOMAIN);
}

/** Whether the server is this machine's daemon, so that folders and sockets of ours are its own, too. */
export function serverIsHere(): boolean {
  return !serverIsNamed();
}

/** A client of a server that answers. Throws with exit code 69 when there is none and none can be started. */
export async function connect(): Promise<SandboxClient> {
  if (serverIsNamed()) return new SandboxClient();
  const home = homeFolder();
  const client = new SandboxClient({ home });
  if (!(processLives(home) && (await answers(client)))) await startDaemon(home, client);
  return client;
}

/** A client of a server that runs already, or undefined: for what must not start one. */
export async function connectIfRunning(): Promise<SandboxClient | undefined> {
  const named = serverIsNamed();
  const client = named ? new SandboxClient() : new SandboxClient({ home: homeFolder() });
  return (named || processLives(homeFolder())) && (await answers(client)) ? client : undefined;
}

/** Whether the daemon that left its address here is still there. After a reboot its port may be someone else's. */
function processLives(home: string): boolean {
  return daemonProcess(home) !== undefined;
}

/** The process of the daemon that left its address here, if there is such a process. */
export function daemonProcess(home: string): number | undefined {
  try {
    const { pid } = JSON.parse(readFileSync(join(home, 'daemon.json'), 'utf8')) as { pid: number };
    return Number.isInteger(pid) && lives(pid) ? pid : undefined;
  } catch {
    return undefined;
  }
}

function lives(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

async function answers(client: SandboxClient): Promise<boolean> {
  try {
    await client.health({ signal: AbortSignal.timeout(healthDeadlineMs) });
    return true;
  } catch (error) {
    if ((error as SandboxError).code === 'unavailable' || (error as SandboxError).code === 'timeout')
      return false;
    throw error;
  }
}

/**
 * Several command lines may come here at once: each starts a daemon, the daemons' lock lets one of them live, and all wait for that one.
 */
async function startDaemon(home: string, client: SandboxClient): Promise<void> {
  const log = join(home, 'daemon.log');
  const daemon = spawnDaemon(home, log);
  if (process.stderr.isTTY) say(paint('dim', 'glovebox: starting the daemon', process.stderr));
  const deadline = performance.now() + startDeadlineMs;
  while (performance.now() < deadline) {
    if (processLives(home) && (await answers(client))) return;
    const code = daemon.exitCode();
    if (code !== undefined && code !== exitCodes.daemonRuns) {
      const { message, hint } = lastWordsOf(log);
      throw new CliError(`the daemon did not start: ${message || `it exited with ${code}`}`, {
        exitCode: code === exitCodes.config || code === exitCodes.permission ? code : exitCodes.unavailable,
        hint: hint ?? `Look into ${log}, or run \`glovebox serve\` to see it.`,
      });
    }
    await delay(lookEveryMs);
  }
  throw new CliError(`the daemon did not answer within ${startDeadlineMs / 1000} seconds`, {
    exitCode: exitCodes.unavailable,
    hint: `Look into ${log}.`,
  });
}

function spawnDaemon(home: string, log: string): { exitCode: () => number | undefined } {
  let fd: number;
  try {
    mkdirSync(home, { recursive: true, mode: 0o700 });
    if ((statSync(log, { throwIfNoEntry: false })?.size ?? 0) > logBytesMax) renameSync(log, `${log}.1`);
    fd = openSync(log, 'a', 0o600);
  } catch (cause) {
    throw new CliError(`cannot use the home folder ${home}: ${(cause as Error).message}`, {
      ...{ exitCode: exitCodes.permission, cause },
      hint: 'Set GLOVEBOX_HOME to a folder that you may write.',
    });
  }
  const child = spawn(binary, ['serve', '--port', '0'], {
    ...{ detached: true, cwd: '/', stdio: ['ignore', fd, fd] },
    env: { ...process.env, GLOVEBOX_HOME: home },
  });
  closeSync(fd);
  child.unref();
  let code: number | undefined;
  child.on('exit', (status) => {
    code = status ?? exitCodes.failed;
  });
  child.on('error', () => {
    code = exitCodes.failed;
  });
  return { exitCode: () => code };
}

/** What the daemon said last: its error with all its lines, if it could not start, and what it says to do. */
function lastWordsOf(log: string): { message: string; hint?: string } {
  const lines = readFileSync(log, 'utf8').trimEnd().split('\n').slice(-40);
  const from = lines.findLastIndex((line) => line.startsWith('glovebox: '));
  if (from < 0) return { message: clean(lines.at(-1) ?? '').slice(0, 1000) };
  const words = lines.slice(from);
  const hint = words.findLast((line) => line.startsWith('hint: '))?.slice('hint: '.length);
  const message = words.filter((line) => !line.startsWith('hint: ')).join('\n');
  return {
    message: clean(message.replace(/^glovebox: /, '')).slice(0, 4000),
    ...(hint === undefined ? {} : { hint: clean(hint).slice(0, 1000) }),
  };
}
