// A host with settings of its own in a temporary home, and calls of guests to it.
import { chmodSync, mkdirSync, mkdtempSync, realpathSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import type { ExecEvent, ExecResult } from '../contract/bell.ts';
import { createExec } from './actions/exec.ts';
import type { Caller } from './bell.ts';
import { readBellSettings } from './settings.ts';

export class Host {
  readonly home = realpathSync(mkdtempSync(join(tmpdir(), 'bell-')));
  /** Guests may write here. */
  readonly workspace = join(this.home, 'workspace');
  readonly mark = `test${process.pid}-`;

  constructor() {
    mkdirSync(this.workspace);
  }

  path(name: string): string {
    return join(this.home, name);
  }

  /** Gives its path. */
  file(name: string, content: string, mode = 0o644): string {
    const path = this.path(name);
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, content);
    chmodSync(path, mode);
    return path;
  }

  script(name: string, body: string): string {
    return this.file(name, `#!/bin/sh\n${body}\n`, 0o755);
  }

  settings(toml: string, more: Partial<Parameters<typeof readBellSettings>[0]> = {}) {
    this.file('bell.toml', toml);
    const from = { home: this.home, alone: false, env: { HOME: this.home }, cwd: '/', places: [] };
    return readBellSettings({ ...from, ...more });
  }

  /** What `POST /` does with an exec that is allowed, and what the settings were. */
  exec(toml: string) {
    const settings = this.settings(toml);
    const action = createExec({
      settings,
      isInWorkspace: (path) => path.startsWith(`${this.workspace}/`),
      env: { HOME: this.home, USER: 'owner', LD_PRELOAD: '', SECRET_OF_DAEMON: 'x' },
      mark: this.mark,
    });
    const call = async (
      args: Record<string, unknown>,
      options: { signal?: AbortSignal; emit?: (event: ExecEvent) => Promise<void>; caller?: Caller } = {},
    ): Promise<ExecResult> => {
      const caller = options.caller ?? { kind: 'sandbox', id: 'one' };
      const input = action.parse(args);
      action.check?.(input, caller);
      const { signal = AbortSignal.timeout(30_000), emit } = options;
      return (await action.run(input, { caller, signal, ...(emit && { emit }) })) as ExecResult;
    };
    return Object.assign(call, { settings, action });
  }

  [Symbol.dispose](): void {
    rmSync(this.home, { recursive: true, force: true });
  }
}
