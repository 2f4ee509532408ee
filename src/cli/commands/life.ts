// glovebox stop, pause, resume, renew and rm: what can happen to sandboxes that exist.
import { type Sandbox, SandboxError } from '../../../sdk/src/index.ts';
import { connect } from '../connect.ts';
import { CliError, exitCodeOf, usageError } from '../exit-codes.ts';
import { print, printJson, sayError } from '../output.ts';
import { confirm } from '../terminal.ts';
import { durationOf } from '../values.ts';

/** Does it to each, side by side; prints the names of those it was done to, and fails if it was not done to all. */
async function each(references: readonly string[], act: (reference: string) => Promise<void>): Promise<void> {
  let worst: unknown;
  await Promise.all(
    [...new Set(references)].map(async (reference) => {
      try {
        await act(reference);
        await print(reference);
      } catch (error) {
        sayError((error as Error).message, (error as SandboxError).hint);
        worst = error;
      }
    }),
  );
  if (worst !== undefined) throw new CliError('', { exitCode: exitCodeOf(worst) });
}

export async function pause(references: string[]): Promise<void> {
  const client = await connect();
  await each(references, async (it) => await (await client.connect(it)).pause());
}

export async function resume(references: string[]): Promise<void> {
  const client = await connect();
  await each(references, async (it) => await (await client.connect(it)).resume());
}

export async function renew(reference: string, duration: string, options: { json?: boolean }): Promise<void> {
  const ms = durationOf('DURATION', duration);
  const sandbox = await (await connect()).connect(reference);
  const expiresAt = await sandbox.renew(ms);
  await (options.json ? printJson({ id: sandbox.id, expiresAt }) : print(expiresAt.toISOString()));
}

/**
 * Ends every command with SIGTERM, waits for them, then removes the sandbox: OpenSandbox knows no state from which one could be
 * started again, so nothing would be gained by keeping it.
 */
export async function stop(references: string[], options: { grace: string }): Promise<void> {
  const graceMs = durationOf('--grace', options.grace);
  const client = await connect();
  await each(references, async (it) => {
    const { id, state } = await client.find(it);
    const sandbox = client.handle(id);
    if (state === 'Running') await endProcesses(sandbox, graceMs);
    await sandbox.kill();
  });
}

async function endProcesses(sandbox: Sandbox, graceMs: number): Promise<void> {
  const signal = AbortSignal.timeout(graceMs + 5_000);
  try {
    const running = (await sandbox.processes({ signal })).filter((it) => it.running);
    await Promise.all(
      running.map(async ({ id }) => {
        const process = await sandbox.attach(id, { from: 'end', signal });
        await process.signal('SIGTERM', { tree: true, grace: graceMs, signal });
        await process.wait({ signal }).finally(() => process.detach());
      }),
    );
  } catch (error) {
    // One that has ended meanwhile, or the whole sandbox with its main process, or no end in time: it is removed next, whatever runs.
    if (!(error instanceof SandboxError)) throw error;
  }
}

export async function rm(references: string[], options: { force?: boolean; all?: boolean }): Promise<void> {
  if (options.all ? references.length > 0 : references.length === 0) {
    throw usageError('rm: name sandboxes, or give --all', 'See `glovebox ls`.');
  }
  const client = await connect();
  const ids = options.all ? (await client.list()).map((info) => info.id) : references;
  if (options.all && ids.length > 0 && !options.force)
    await confirm(
      `Remove ${ids.length === 1 ? 'the one sandbox' : `all ${ids.length} sandboxes`} and everything in ${ids.length === 1 ? 'it' : 'them'}?`,
      'nothing was removed',
    );
  await each(ids, async (it) => {
    const info = await client.find(it).catch((error: unknown) => {
      if (options.force && error instanceof SandboxError && error.code === 'not-found') return undefined;
      throw error;
    });
    if (info) await client.handle(info.id).kill();
  });
}
