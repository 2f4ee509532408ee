// Terminals as a person has them, in a tmux server of the test's own: typed to by keys, read by what is on the screen.
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { until } from './daemon.ts';

const shownMs = 120_000;

export interface Terminal {
  /** A line, with Enter. */
  type(line: string): void;
  /** In tmux's words: `C-p`, `Enter`, `q`. */
  press(...keys: string[]): void;
  resize(columns: number, rows: number): void;
  /** All that it shows and has shown, wrapped lines joined. */
  text(): string;
  /** Resolves with all that is shown once this is there. */
  shows(expected: string | RegExp, deadlineMs?: number): Promise<string>;
}

export class Tmux {
  readonly #socket: string;
  readonly #environment: NodeJS.ProcessEnv;

  /** `folder`: for its socket; `environment`: of every terminal. */
  constructor(folder: string, environment: NodeJS.ProcessEnv) {
    // Of this server alone: one that is about to end may still listen on the socket that it had.
    this.#socket = join(folder, `tmux-${randomBytes(4).toString('hex')}.sock`);
    this.#environment = { ...environment, PS1: '$ ', ENV: '', TMUX: '' };
  }

  /** A shell in a terminal of its own. */
  open(name: string, cwd: string, { columns = 180, rows = 50 } = {}): Terminal {
    const size = ['-x', String(columns), '-y', String(rows)];
    this.#tmux('-f', '/dev/null', 'new-session', '-d', '-s', name, ...size, '-c', cwd, 'sh');
    const text = () => this.#tmux('capture-pane', '-p', '-J', '-S', '-', '-t', name);
    return {
      type: (line) => {
        this.#tmux('send-keys', '-t', name, '-l', '--', line);
        this.#tmux('send-keys', '-t', name, 'Enter');
      },
      press: (...keys) => void this.#tmux('send-keys', '-t', name, ...keys),
      resize: (columns, rows) =>
        void this.#tmux('resize-window', '-t', name, '-x', String(columns), '-y', String(rows)),
      text,
      shows: (expected, deadlineMs = shownMs) =>
        until(
          `the terminal ${name} to show ${expected}`,
          text,
          (shown) => (typeof expected === 'string' ? shown.includes(expected) : expected.test(shown)),
          deadlineMs,
        ),
    };
  }

  #tmux(...args: string[]): string {
    return execFileSync('tmux', ['-S', this.#socket, ...args], {
      encoding: 'utf8',
      env: this.#environment,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
  }

  [Symbol.dispose](): void {
    try {
      this.#tmux('kill-server');
    } catch {
      // No terminal was opened, or all have ended, and the server with them.
    }
  }
}
