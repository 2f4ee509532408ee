// What the command line's exit codes mean, in one table: for the errors of the SDK, for --help, and for those who write scripts.
import { CommandNotFoundError, type ErrorCode, SandboxError } from '../../sdk/src/errors.ts';
import { Failure } from '../lib/failure.ts';

export const exitCodes = {
  ok: 0,
  failed: 1,
  usage: 2,
  unavailable: 69,
  daemonRuns: 75,
  permission: 77,
  config: 78,
  timeout: 124,
  execFailed: 125,
  notExecutable: 126,
  commandNotFound: 127,
  hungUp: 129,
  interrupted: 130,
  brokenPipe: 141,
  terminated: 143,
} as const;

/** For --help, in its order. */
export const exitCodeMeanings: [number, string][] = [
  [exitCodes.ok, 'done; exec and run: the command said 0, or you detached from it'],
  [exitCodes.failed, 'something failed: the message says what'],
  [exitCodes.usage, 'wrong use: a wrong option, argument or value'],
  [exitCodes.unavailable, 'the daemon, or something it needs, is not there'],
  [exitCodes.daemonRuns, 'serve: another daemon uses this home'],
  [exitCodes.permission, 'not allowed: the API key is missing or wrong, or a file may not be used'],
  [exitCodes.config, 'the configuration is wrong'],
  [exitCodes.timeout, 'it took too long'],
  [exitCodes.execFailed, 'exec: glovebox itself failed, not the command'],
  [exitCodes.notExecutable, 'exec: the command is not executable'],
  [exitCodes.commandNotFound, 'exec: the command was not found'],
  [exitCodes.hungUp, 'our terminal is gone; the session goes on'],
  [exitCodes.interrupted, 'interrupted with Ctrl-C'],
  [exitCodes.brokenPipe, 'whoever read our output stopped reading'],
  [exitCodes.terminated, 'we were told to end; the session goes on'],
];

const ofErrorCode: Partial<Record<ErrorCode, number>> = {
  invalid: exitCodes.usage,
  unauthenticated: exitCodes.permission,
  permission: exitCodes.permission,
  unavailable: exitCodes.unavailable,
  timeout: exitCodes.timeout,
  aborted: exitCodes.interrupted,
};

/** An error of the command line's own: what is wrong, the next step, and the exit code. */
export class CliError extends Error {
  readonly exitCode: number;
  readonly hint: string | undefined;

  constructor(message: string, options: { exitCode?: number; hint?: string; cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'CliError';
    this.exitCode = options.exitCode ?? exitCodes.failed;
    this.hint = options.hint;
  }
}

export function usageError(message: string, hint?: string): CliError {
  return new CliError(message, { exitCode: exitCodes.usage, ...(hint === undefined ? {} : { hint }) });
}

export function exitCodeOf(error: unknown): number {
  if (error instanceof CliError) return error.exitCode;
  if (error instanceof CommandNotFoundError) return error.exitCode;
  if (error instanceof SandboxError) return ofErrorCode[error.code] ?? exitCodes.failed;
  if (error instanceof Failure) return ofErrorCode[error.code as ErrorCode] ?? exitCodes.failed;
  const { code } = error as NodeJS.ErrnoException;
  return code === 'EACCES' || code === 'EPERM' ? exitCodes.permission : exitCodes.failed;
}

/** In exec every exit code may be the command's own, so trouble of ours has one that shells use for that. */
export function exitCodeOfExec(error: unknown): number {
  if (error instanceof CommandNotFoundError) return error.exitCode;
  const code = exitCodeOf(error);
  return code === exitCodes.usage && error instanceof CliError ? code : exitCodes.execFailed;
}
