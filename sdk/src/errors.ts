// Every error that this package throws: one base class with a code, and a class for each kind that a caller may want to catch by itself.
import type { RunResult } from './run.ts';

/**
 * What kind of trouble it is. `unknown` means that nobody can tell whether the thing was done; everything else but `lost`, `timeout` and
 * `command-failed` means that it was not.
 */
export type ErrorCode =
  | 'invalid'
  | 'unauthenticated'
  | 'permission'
  | 'not-found'
  | 'conflict'
  | 'unsupported'
  | 'unavailable'
  | 'exhausted'
  | 'full'
  | 'timeout'
  | 'aborted'
  | 'lost'
  | 'unknown'
  | 'protocol'
  | 'io'
  | 'internal'
  | 'command-failed'
  | 'command-not-found'
  | 'not-executable';

export interface ErrorDetails {
  /** The next step for a person, as a sentence. */
  hint?: string | undefined;
  /** The server's name of this request, to be found in its log. */
  requestId?: string | undefined;
  sandboxId?: string | undefined;
  /** The code in the server's answer, e.g. `SANDBOX::NOT_FOUND`: for reading, not for switching on. */
  serverCode?: string | undefined;
  /** The HTTP status of the server's answer. */
  status?: number | undefined;
  cause?: unknown;
}

/** The base of all errors of this package. `message` says what was being done and what went wrong, in one line. */
export class SandboxError extends Error {
  readonly code: ErrorCode;
  readonly hint: string | undefined;
  readonly requestId: string | undefined;
  readonly sandboxId: string | undefined;
  readonly serverCode: string | undefined;
  readonly status: number | undefined;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = new.target.name;
    this.code = code;
    this.hint = details.hint;
    this.requestId = details.requestId;
    this.sandboxId = details.sandboxId;
    this.serverCode = details.serverCode;
    this.status = details.status;
  }

  /** Whether the same call may succeed later, and repeating it cannot do the thing twice. */
  get retryable(): boolean {
    return this.code === 'unavailable' || this.code === 'exhausted';
  }
}

/** No API key, or a wrong one. */
export class AuthenticationError extends SandboxError {}
/** The key is good, but this is not allowed. */
export class PermissionError extends SandboxError {}
/** The input is wrong; the message says where. */
export class ValidationError extends SandboxError {}
/** No such sandbox, image, process or file. */
export class NotFoundError extends SandboxError {}
/** Right request, wrong moment, e.g. a name that is taken or a paused sandbox. */
export class ConflictError extends SandboxError {}
/** This runtime, server or platform cannot do it. */
export class UnsupportedError extends SandboxError {}
/** The server, or something it needs, is down. Nothing was done. */
export class UnavailableError extends SandboxError {}
/** A limit is reached, or the disk is full. */
export class QuotaError extends SandboxError {}
export class TimeoutError extends SandboxError {}
/** The caller's AbortSignal fired; `cause` is its reason. */
export class AbortError extends SandboxError {}
/** The sandbox was there and is gone. */
export class SandboxLostError extends SandboxError {}
/** It may or may not have been done: the connection dropped between the request and its answer. */
export class UnknownOutcomeError extends SandboxError {}
/** The server's answer does not keep to the contract. */
export class ProtocolError extends SandboxError {}
/** A file operation failed; `path` is inside the sandbox. */
export class FileError extends SandboxError {
  readonly path: string;
  constructor(code: ErrorCode, message: string, path: string, details?: ErrorDetails) {
    super(code, message, details);
    this.path = path;
  }
}
/** The command could not be started. `exitCode` is what a shell would say: 127 when it was not found, 126 when it is not executable. */
export class CommandNotFoundError extends SandboxError {
  readonly exitCode: 126 | 127;
  constructor(exitCode: 126 | 127, message: string, details?: ErrorDetails) {
    super(exitCode === 127 ? 'command-not-found' : 'not-executable', message, details);
    this.exitCode = exitCode;
  }
}

const endings: Partial<Record<RunResult['reason'], string>> = {
  timeout: 'timed out',
  oom: 'ran out of memory',
  'output-limit': 'wrote more than it was to',
};

/** The command ended with another exit code than 0, and the caller had asked to be told so by an error. */
export class CommandError extends SandboxError {
  readonly result: RunResult;
  constructor(command: string, result: RunResult, details?: ErrorDetails) {
    const last = result.stderr.trimEnd().split('\n').at(-1) ?? '';
    const how = endings[result.reason] ?? `exit code ${result.exitCode ?? 'unknown'}`;
    super('command-failed', `${command}: ${how}${last === '' ? '' : `: ${last.slice(0, 500)}`}`, details);
    this.result = result;
  }
}

const classOf: Record<ErrorCode, typeof SandboxError> = {
  invalid: ValidationError,
  unauthenticated: AuthenticationError,
  permission: PermissionError,
  'not-found': NotFoundError,
  conflict: ConflictError,
  unsupported: UnsupportedError,
  unavailable: UnavailableError,
  exhausted: QuotaError,
  full: QuotaError,
  timeout: TimeoutError,
  aborted: AbortError,
  lost: SandboxLostError,
  unknown: UnknownOutcomeError,
  protocol: ProtocolError,
  io: SandboxError,
  internal: SandboxError,
  'command-failed': SandboxError,
  'command-not-found': SandboxError,
  'not-executable': SandboxError,
};

/** The error of the class that belongs to a code. */
export function errorOf(code: ErrorCode, message: string, details?: ErrorDetails): SandboxError {
  return new classOf[code](code, message, details);
}

/** HTTP statuses that say more than their hundred. */
const codeOfStatus: Record<number, ErrorCode> = {
  401: 'unauthenticated',
  403: 'permission',
  404: 'not-found',
  405: 'unsupported',
  408: 'timeout',
  409: 'conflict',
  410: 'lost',
  413: 'exhausted',
  429: 'exhausted',
  499: 'aborted',
  501: 'unsupported',
  502: 'unavailable',
  503: 'unavailable',
  504: 'timeout',
  507: 'full',
};

export function codeOfHttpStatus(status: number): ErrorCode {
  return codeOfStatus[status] ?? (status >= 400 && status < 500 ? 'invalid' : 'internal');
}

/** The AbortError of a signal that has fired; a TimeoutError when it is one of AbortSignal.timeout(). */
export function abortErrorOf(signal: AbortSignal, doing: string): SandboxError {
  const reason: unknown = signal.reason;
  const timedOut = reason instanceof Error && reason.name === 'TimeoutError';
  return errorOf(timedOut ? 'timeout' : 'aborted', `${doing}: ${timedOut ? 'timed out' : 'aborted'}`, {
    cause: reason,
  });
}

/** Thrown here rather than later: a call with a signal that has fired does nothing at all. */
export function throwIfAborted(signal: AbortSignal | undefined, doing: string): void {
  if (signal?.aborted) throw abortErrorOf(signal, doing);
}
