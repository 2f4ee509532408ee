// glovebox serve: the daemon itself, in this process. The one command that does not go through the SDK.
import { readFileSync } from 'node:fs';
import { Failure } from '../../lib/failure.ts';
import { CliError, exitCodes, usageError } from '../exit-codes.ts';
import { print } from '../output.ts';
import { wholeNumberOf } from '../values.ts';

export interface ServeOptions {
  host?: string;
  port?: string;
  config?: string;
}

/** Resolves when the daemon has been told to stop, and has stopped. */
export async function serve(options: ServeOptions): Promise<void> {
  const port = options.port === undefined ? undefined : portOf(options.port);
  const { loadConfig, reloadConfig } = await import('../../daemon/config.ts');
  const sources = {
    env: process.env,
    ...(options.config === undefined ? {} : { configPath: options.config }),
    overrides: { 'server.host': options.host, 'server.port': port },
  };
  const config = await loadConfig(sources).catch((error: unknown) => {
    throw failedToStart(error, {
      ...{ invalid: exitCodes.config, 'not-found': exitCodes.config, internal: exitCodes.config },
    });
  });
  const { closeInheritedDescriptors } = await import('../../daemon/descriptors.ts');
  closeInheritedDescriptors();
  // A terminal that closes sends the same signal: who started us there wants us to end with it.
  const hangUpReloads = process.stdin.isTTY !== true;
  let reload: (() => Promise<void>) | undefined;
  if (hangUpReloads) process.on('SIGHUP', () => void reload?.());
  const stopping = stopSignal({ hangUp: !hangUpReloads });
  const { startDaemon } = await import('../../daemon/main.ts');
  const daemon = await startDaemon(config, (running) => reloadConfig(sources, running)).catch(
    (error: unknown) => {
      throw error instanceof Failure && error.code === 'conflict'
        ? anotherRuns(error, config.paths.addressFile)
        : failedToStart(error, { invalid: exitCodes.config });
    },
  );
  reload = daemon.reload;
  await print(`glovebox listens on ${daemon.url}`);
  await stopping;
  await daemon.stop();
}

export function portOf(text: string): number {
  const port = wholeNumberOf('--port', text, 0);
  if (port <= 65_535) return port;
  throw usageError(`--port: ${port} is no port`, 'There are 1 to 65535, and 0 for a free one.');
}

/** The daemon that has this home has left its address there, unless it is just starting. */
function anotherRuns(error: Failure, addressFile: string): CliError {
  let hint = error.hint ?? '';
  try {
    const { pid, url } = JSON.parse(readFileSync(addressFile, 'utf8')) as { pid: number; url: string };
    hint = `Use that daemon at ${url}, stop it with \`kill ${pid}\` (sandboxes go on), or choose another GLOVEBOX_HOME.`;
  } catch {
    // What the failure itself says has to do.
  }
  return new CliError(error.message, { exitCode: exitCodes.daemonRuns, hint, cause: error });
}

/** Of failures that have another exit code here than elsewhere. */
export function failedToStart(error: unknown, codes: Partial<Record<Failure['code'], number>>): unknown {
  if (!(error instanceof Failure)) return error;
  const exitCode = codes[error.code];
  if (exitCode === undefined) return error;
  return new CliError(error.message, { exitCode, cause: error, ...(error.hint ? { hint: error.hint } : {}) });
}

/** Resolves at the first signal that asks for the end; a second one does not wait for it. */
export function stopSignal({ hangUp = true } = {}): Promise<void> {
  return new Promise((resolve) => {
    let asked = false;
    for (const name of ['SIGTERM', 'SIGINT', ...(hangUp ? (['SIGHUP'] as const) : [])] as const) {
      process.on(name, () => {
        if (asked && name === 'SIGINT') process.exit(exitCodes.interrupted);
        asked = true;
        resolve();
      });
    }
  });
}
