// The command line as a person has it: `glovebox` in a folder, with a home of the test's own.
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { join } from 'node:path';

const bin = join(import.meta.dirname, '../bin');

export interface Ended {
  code: number | null;
  stdout: string;
  stderr: string;
}

/** Of a person who has `glovebox` in PATH, and no server but this home's. */
export function environmentOf(home: string, more: Record<string, string> = {}): NodeJS.ProcessEnv {
  const { GLOVEBOX_URL: _, OPEN_SANDBOX_DOMAIN: __, ...env } = process.env;
  return { ...env, GLOVEBOX_HOME: home, PATH: `${bin}:${process.env.PATH}`, TERM: 'xterm', ...more };
}

/** `glovebox ARGS` with an end of its input. */
export function commandLine(environment: NodeJS.ProcessEnv, cwd: () => string) {
  return (...args: string[]): Promise<Ended> =>
    ended(spawn(join(bin, 'glovebox'), args, { env: environment, cwd: cwd() }));
}

/** A line of a shell. */
export function shellLine(environment: NodeJS.ProcessEnv, cwd: () => string) {
  return (line: string): Promise<Ended> =>
    ended(spawn('bash', ['-c', line], { env: environment, cwd: cwd() }));
}

function ended(child: ChildProcessWithoutNullStreams): Promise<Ended> {
  const told = { stdout: '', stderr: '' };
  for (const lane of ['stdout', 'stderr'] as const)
    child[lane].setEncoding('utf8').on('data', (text: string) => {
      told[lane] += text;
    });
  child.stdin.on('error', () => {}).end();
  return new Promise((resolve) => child.on('close', (code) => resolve({ code, ...told })));
}
