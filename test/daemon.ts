// Starts real daemons for tests, each in a home of its own, and counts what a home has left on the host.
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdtempSync, readdirSync, readFileSync, realpathSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';

const binary = join(import.meta.dirname, '../bin/glovebox');
const readyDeadlineMs = 120_000;

export interface TestDaemon {
  url: string;
  apiKey: string;
  home: string;
  pid: number;
  /** SIGTERM; resolves with the exit code. Sandboxes go on. */
  stop(): Promise<number | null>;
  /** SIGKILL; resolves when the process is gone. */
  kill(): Promise<void>;
}

export interface TestDaemonOptions {
  /** An earlier home, to start again in it. */
  home?: string;
  env?: Record<string, string>;
  args?: string[];
  /** A file descriptor that the daemon is started with, as number 3. */
  inherit?: number;
}

export function makeHome(): string {
  return mkdtempSync(join(tmpdir(), 'glovebox-test-'));
}

export async function startDaemon(
  options: TestDaemonOptions & { runtime?: string } = {},
): Promise<TestDaemon> {
  const home = options.home ?? makeHome();
  const child = spawn(binary, ['serve', '--port', '0', ...(options.args ?? [])], {
    stdio: ['ignore', 'pipe', 'pipe', ...(options.inherit === undefined ? [] : [options.inherit])],
    env: {
      ...process.env,
      GLOVEBOX_HOME: home,
      ...(options.runtime ? { GLOVEBOX_RUNTIME_TYPE: options.runtime } : {}),
      ...options.env,
    },
  });
  // A test that fails on its way leaves no daemon behind.
  const killAtExit = () => child.kill('SIGKILL');
  process.once('exit', killAtExit);
  child.once('exit', () => process.off('exit', killAtExit));
  const url = await readyUrl(child);
  return {
    url,
    apiKey: readFileSync(join(home, 'api-key'), 'utf8').trim(),
    home,
    pid: child.pid as number,
    stop: () => end(child, 'SIGTERM'),
    kill: async () => void (await end(child, 'SIGKILL')),
  };
}

function readyUrl(child: ChildProcess): Promise<string> {
  return new Promise((resolve, reject) => {
    let errors = '';
    child.stderr?.on('data', (text) => {
      errors = (errors + text).slice(-4000);
    });
    createInterface({ input: child.stdout as NodeJS.ReadableStream }).on('line', (line) => {
      const address = /https?:\/\/\S+/.exec(line)?.[0];
      if (address !== undefined) resolve(address);
    });
    child.on('exit', (code) =>
      reject(new Error(`the daemon exited with ${code} before it was ready: ${errors}`)),
    );
    AbortSignal.timeout(readyDeadlineMs).addEventListener('abort', () =>
      reject(new Error(`the daemon was not ready: ${errors}`)),
    );
  });
}

async function end(child: ChildProcess, signal: 'SIGTERM' | 'SIGKILL'): Promise<number | null> {
  if (child.exitCode !== null || child.signalCode !== null) return child.exitCode;
  const exited = new Promise<number | null>((resolve) => child.on('exit', resolve));
  child.kill(signal);
  return exited;
}

/** Ends the daemon that a command line has started in a home, and resolves when its process is gone: until then it writes there. */
export async function endDaemonOf(home: string): Promise<void> {
  const file = join(home, 'daemon.json');
  const { pid } = JSON.parse(readFileSync(file, 'utf8')) as { pid: number };
  process.kill(pid, 'SIGTERM');
  await until(
    'the daemon',
    () => [existsSync(file), read(`/proc/${pid}/environ`).includes(home)],
    (there) => !there.includes(true),
  );
}

/** Everything on the host that carries the mark of a home: processes, mounts, cgroups, containers, sockets and folders of sandboxes. */
export function leftovers(home: string): string[] {
  const homeId = createHash('sha256').update(realpathSync(home)).digest('hex').slice(0, 12);
  const marks = [home, homeId];
  const marked = (text: string) => marks.some((mark) => text.includes(mark));
  const found: string[] = [];
  for (const pid of readdirSync('/proc').filter(
    (name) => /^\d+$/.test(name) && Number(name) !== process.pid,
  )) {
    const text = [read(`/proc/${pid}/cmdline`), read(`/proc/${pid}/cgroup`)].join(' ');
    if (marked(text)) found.push(`process ${pid}: ${text.replaceAll('\0', ' ').slice(0, 200)}`);
  }
  found.push(
    ...read('/proc/self/mountinfo')
      .split('\n')
      .filter(marked)
      .map((line) => `mount ${line}`),
  );
  found.push(...cgroupsOf(homeId));
  try {
    const containers = execFileSync('docker', ['ps', '-a', '--format', '{{.ID}} {{.Names}} {{.Labels}}'], {
      encoding: 'utf8',
    });
    found.push(
      ...containers
        .split('\n')
        .filter(marked)
        .map((line) => `container ${line}`),
    );
  } catch {
    // No engine here, so no containers.
  }
  for (const folder of ['run', 'machines', 'logs']) {
    const path = join(home, folder);
    if (existsSync(path)) found.push(...readdirSync(path).map((name) => `folder ${join(path, name)}`));
  }
  return found;
}

function cgroupsOf(homeId: string): string[] {
  const root = '/sys/fs/cgroup';
  const hierarchies = existsSync(root) ? [root, ...readdirSync(root).map((name) => join(root, name))] : [];
  return hierarchies
    .map((path) => join(path, 'glovebox', homeId))
    .filter((path) => existsSync(path))
    .flatMap((path) =>
      readdirSync(path, { withFileTypes: true })
        .filter((it) => it.isDirectory())
        .map((it) => `cgroup ${join(path, it.name)}`),
    );
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

/** Waits until a condition holds; fails with what it last saw. */
export async function until<T>(
  what: string,
  look: () => T | Promise<T>,
  holds: (seen: T) => boolean,
  deadlineMs = 60_000,
): Promise<T> {
  const deadline = performance.now() + deadlineMs;
  for (;;) {
    const seen = await look();
    if (holds(seen)) return seen;
    if (performance.now() > deadline)
      throw new Error(`${what}: still ${JSON.stringify(seen)} after ${deadlineMs} ms`);
    await delay(25);
  }
}

/** Ends the test with a home that has nothing left on the host, and removes it. */
export async function expectNothingLeft(home: string): Promise<void> {
  await until(
    'leftovers',
    () => leftovers(home),
    (left) => left.length === 0,
  );
  rmSync(home, { recursive: true, force: true });
}
