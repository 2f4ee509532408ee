// glovebox exec: a command in a sandbox as if it ran here. A stopped sandbox is started for it.
import type { SandboxError } from '../../../sdk/src/index.ts';
import { connect } from '../connect.ts';
import { defaultDetachKeys, parseDetachKeys } from '../detach-keys.ts';
import { type EnvironmentFlags, environmentOf } from '../environment.ts';
import { exitCodeOfExec, exitCodes, usageError } from '../exit-codes.ts';
import { print, printJson, sayError } from '../output.ts';
import { attached, sizeOfTerminal } from '../session.ts';
import { durationOf } from '../values.ts';
import { wakeUp } from '../waking.ts';

export interface ExecOptions extends EnvironmentFlags {
  interactive?: boolean;
  tty?: boolean;
  detach?: boolean;
  detachKeys?: string;
  privileged?: boolean;
  record?: string;
  user?: string;
  workdir?: string;
  timeout?: string;
  json?: boolean;
}

/** Resolves with the exit code; problems are shown here, because in exec they have codes of their own. */
export async function exec(reference: string, command: string[], options: ExecOptions): Promise<number> {
  try {
    return await run(reference, command, options);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EPIPE') return exitCodes.brokenPipe;
    const { message, hint } = error as SandboxError;
    sayError(message, hint);
    return exitCodeOfExec(error);
  }
}

async function run(reference: string, command: string[], options: ExecOptions): Promise<number> {
  const { interactive = false, tty = false, detach = false } = options;
  if (command.length === 0) throw usageError('exec: no command', 'Write e.g. `glovebox exec web ls -l`.');
  if (options.privileged) {
    throw usageError(
      'exec: --privileged cannot be had: what a sandbox may do is decided by its walls, for all in it',
      'Use `-u root` for what its root may do.',
    );
  }
  if (detach && (interactive || tty)) throw usageError('exec: -d goes with neither -i nor -t');
  if (options.json && !detach) throw usageError('exec: --json goes with -d only');
  if (tty && interactive && !process.stdin.isTTY) {
    throw usageError('exec: -t needs a terminal, and our input is none', 'Leave out -t.');
  }
  const detachKeys = parseDetachKeys(options.detachKeys ?? defaultDetachKeys);
  const env = environmentOf(options, process.env);
  const timeout = options.timeout === undefined ? undefined : durationOf('--timeout', options.timeout);
  const client = await connect();
  const info = await client.find(reference);
  const sandbox = client.handle(info.id);
  await wakeUp(client, info);
  const start = {
    ...(tty && process.env.TERM && env.TERM === undefined
      ? { env: { ...env, TERM: process.env.TERM } }
      : { env }),
    ...(options.user === undefined ? {} : { user: options.user }),
    ...(options.workdir === undefined ? {} : { cwd: options.workdir }),
    ...(timeout === undefined ? {} : { timeout }),
  };
  if (detach) {
    const { id, pid } = await sandbox.start(command, { ...start, background: true });
    await (options.json ? printJson({ id, pid, sandbox: sandbox.id }) : print(id));
    return exitCodes.ok;
  }
  // A terminal can be left and come back to, so what it shows is kept.
  // With -t alone nothing is typed into it and nothing ends its input, as with `docker exec`: a shell waits until it is interrupted.
  const kept = tty ? { tty: sizeOfTerminal(), background: true } : {};
  return await attached(() => sandbox.start(command, { ...start, ...kept, stdin: interactive }), {
    ...{ input: interactive, tty, detachKeys, outlives: false },
    comeBack: (it) => `come back with \`glovebox attach ${reference} ${it.id}\``,
    ...(options.record === undefined ? {} : { record: options.record, recordTitle: command.join(' ') }),
  });
}
