// Starts real workers for tests: processes of the command line, each in a home of its own.
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestDaemon } from './daemon.ts';

const binary = join(import.meta.dirname, '../bin/glovebox');

export interface TestWorker {
  home: string;
  pid: number;
  /** What it has said so far. */
  log(): string;
  /** Resolves with the exit code, or null after a signal. */
  readonly exited: Promise<number | null>;
  /** SIGTERM; commands and sandboxes go on. */
  stop(): Promise<number | null>;
  /** SIGKILL; resolves when the process is gone. */
  kill(): Promise<void>;
}

export interface TestWorkerOptions {
  home?: string;
  args?: string[];
  env?: Record<string, string>;
  /** What its command line is put behind: `nsenter …`, say. Must become it. */
  behind?: readonly string[];
}

/** `server`: a daemon, or the address that workers dial. */
export function startWorker(server: TestDaemon | string, options: TestWorkerOptions = {}): TestWorker {
  const home = options.home ?? mkdtempSync(join(tmpdir(), 'glovebox-worker-'));
  const url = typeof server === 'string' ? server : server.url.replace(/^http/, 'ws');
  const words = [binary, 'worker', '--server-url', url, '--home', home, ...(options.args ?? [])];
  const [program = '', ...args] = [...(options.behind ?? []), ...words];
  const child = spawn(program, args, {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...options.env },
  });
  const killAtExit = () => child.kill('SIGKILL');
  process.once('exit', killAtExit);
  let said = '';
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (text) => {
      said = (said + text).slice(-100_000);
    });
  const exited = new Promise<number | null>((resolve) =>
    child.once('exit', (code) => {
      process.off('exit', killAtExit);
      resolve(code);
    }),
  );
  return {
    ...{ home, pid: child.pid as number, exited, log: () => said },
    stop: () => signalled(child, exited, 'SIGTERM'),
    kill: async () => void (await signalled(child, exited, 'SIGKILL')),
  };
}

function signalled(child: ChildProcess, exited: Promise<number | null>, signal: NodeJS.Signals) {
  child.kill(signal);
  return exited;
}
