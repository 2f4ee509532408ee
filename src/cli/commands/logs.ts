// glovebox logs: what a command wrote, its stdout to our stdout and its stderr to our stderr.
import { SandboxError } from '../../../sdk/src/index.ts';
import { connect } from '../connect.ts';
import { CliError, exitCodes } from '../exit-codes.ts';
import { clean, sayError, writeAll } from '../output.ts';
import { wholeNumberOf } from '../values.ts';

const mainProcess = 'main';

export async function logs(
  reference: string,
  processId: string | undefined,
  options: { follow?: boolean; from?: string },
): Promise<void> {
  const from =
    options.from === undefined
      ? 'start'
      : options.from === 'end'
        ? 'end'
        : wholeNumberOf('--from', options.from, 0);
  const sandbox = await (await connect()).connect(reference);
  const id = processId ?? mainProcess;
  const process = await sandbox.attach(id, { from }).catch(async (error: unknown) => {
    if (!(error instanceof SandboxError) || error.code !== 'not-found') throw error;
    const ids = (await sandbox.processes()).map((it) => it.id);
    throw new CliError(
      processId === undefined
        ? `${reference} has no main process`
        : `${reference} has no process '${processId}'`,
      {
        ...{ exitCode: exitCodes.failed, cause: error },
        hint:
          ids.length > 0
            ? clean(`Name one of: ${ids.slice(-5).join(' ')}${ids.length > 5 ? ', … (see glovebox ps)' : ''}`)
            : 'No command has run in it yet.',
      },
    );
  });
  const { end, running } = await process.info();
  const upTo = options.follow || !running ? Number.POSITIVE_INFINITY : end;
  if (process.offset >= upTo) return process.detach();
  for await (const event of process) {
    if (event.type === 'exit') return;
    if (event.type === 'gap') sayError(`${event.to - event.from} bytes are no longer held`, undefined);
    else await writeAll(event.type === 'stdout' ? 1 : 2, event.bytes);
    if (process.offset >= upTo) return process.detach();
  }
}
