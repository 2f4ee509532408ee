// The verbs of the command line as the screen uses them: in programs of their own, so that they do here exactly what they do elsewhere. In front,
// with the terminal; or behind the screen, where only what they say in the end is heard.
import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { exitCodes } from '../exit-codes.ts';

const binary = join(import.meta.dirname, '../../../bin/glovebox');
const heardBytesMax = 64 * 1024;
const patienceMs = 5_000;

export interface Heard {
  code: number;
  stdout: string;
  /** What it said, without the name of the program, on one line. */
  said: string;
}

export class Verbs implements Disposable {
  readonly #behind = new Set<ChildProcess>();
  #front: { child: ChildProcess; over: Promise<unknown> } | undefined;

  /** Whether one has the terminal. */
  get inFront(): boolean {
    return this.#front !== undefined;
  }

  /** Resolves when the one that has the terminal has given it back, or does not. */
  async frontEnded(): Promise<void> {
    if (this.#front) await Promise.race([this.#front.over, delay(patienceMs, undefined, { ref: false })]);
  }

  /** Resolves with its exit code. */
  async front(args: readonly string[]): Promise<number> {
    const child = spawn(binary, args, { stdio: 'inherit' });
    const over = ended(child);
    this.#front = { child, over: over.catch(() => {}) };
    try {
      return await over;
    } finally {
      this.#front = undefined;
    }
  }

  /** To the one that has the terminal. */
  signal(name: NodeJS.Signals): void {
    this.#front?.child.kill(name);
  }

  async behind(args: readonly string[]): Promise<Heard> {
    const child = spawn(binary, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    this.#behind.add(child);
    const heard = { stdout: '', stderr: '' };
    for (const name of ['stdout', 'stderr'] as const) {
      child[name].setEncoding('utf8').on('data', (text: string) => {
        heard[name] = (heard[name] + text).slice(-heardBytesMax);
      });
    }
    try {
      const code = await ended(child);
      return { code, stdout: heard.stdout.trim(), said: onOneLine(heard.stderr) };
    } finally {
      this.#behind.delete(child);
    }
  }

  /** What still runs behind the screen is told to end; what it asked the server for may happen. */
  [Symbol.dispose](): void {
    for (const child of this.#behind) child.kill('SIGTERM');
  }
}

function ended(child: ChildProcess): Promise<number> {
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => resolve(code ?? exitCodes.failed));
  });
}

export function onOneLine(said: string): string {
  return said
    .split('\n')
    .map((line) => line.replace(/^(glovebox: |hint: )/, '').trim())
    .filter((line) => line !== '')
    .join(' · ');
}
