// A desktop for tests of actions: a folder with programs that write down what they were given, and a log that can be read.
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Log } from '../lib/log.ts';
import type { ActionCall, Caller } from './bell.ts';
import { Programs } from './programs.ts';

export interface DesktopOptions {
  /** By name: what they do, as sh, after they have written down their arguments. */
  programs: Record<string, string>;
  env?: Record<string, string>;
  platform?: NodeJS.Platform;
}

export interface TestDesktop extends Disposable {
  folder: string;
  programs: Programs;
  /** The arguments of each start of a program. */
  calls(name: string): string[][];
}

const usual = { DBUS_SESSION_BUS_ADDRESS: 'unix:path=/nonexistent', DISPLAY: ':1' };

export function testDesktop({ programs, env = usual, platform = 'linux' }: DesktopOptions): TestDesktop {
  const folder = mkdtempSync(join(tmpdir(), 'bell-desktop-'));
  for (const [name, script] of Object.entries(programs)) {
    const record = `{ for it in "$@"; do printf '%s\\0' "$it"; done; printf '\\001'; } >> ${folder}/${name}.calls`;
    writeFileSync(join(folder, name), `#!/bin/sh\n${record}\n${script}\n`);
    chmodSync(join(folder, name), 0o700);
  }
  return {
    folder,
    programs: new Programs({ env, platform, folders: [folder] }),
    calls(name) {
      const calls = textOf(join(folder, `${name}.calls`))
        .split('\u0001')
        .slice(0, -1);
      return calls.map((call) => call.split('\0').slice(0, -1));
    },
    [Symbol.dispose]: () => rmSync(folder, { recursive: true, force: true }),
  };
}

/** What a program has written; empty when it has not. */
export function textOf(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return '';
  }
}

export interface Logged {
  level: keyof Log;
  message: string;
  fields: Record<string, unknown>;
}

export function testLog(): Log & { lines: Logged[] } {
  const lines: Logged[] = [];
  const write = (level: keyof Log) => (fields: Record<string, unknown>, message: string) => {
    lines.push({ level, message, fields });
  };
  return {
    lines,
    debug: write('debug'),
    info: write('info'),
    warn: write('warn'),
    error: write('error'),
  };
}

export const web: Caller = { kind: 'sandbox', id: '0123456789abcdef', name: 'web' };

export const callOf = (
  caller: Caller = web,
  signal: AbortSignal = new AbortController().signal,
): ActionCall => ({ caller, signal });

/** Whether a process is there. */
export function lives(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
