// The one error class of the project: a code that programs can switch on, what we were doing, and the next step.

/** What kind of trouble it is. The API maps a code to an HTTP status and the CLI to an exit code, each in one table. */
export type FailureCode =
  | 'invalid' // the caller's input is wrong; the message says what, where and how to mend it
  | 'unauthenticated'
  | 'not-found'
  | 'conflict' // right request, wrong moment: the state does not allow it
  | 'unsupported' // this back end or build cannot do it, and says so rather than pretend
  | 'unavailable' // something we need is missing or down; trying later may help
  | 'timeout'
  | 'aborted'
  | 'protocol' // the other end broke the rules of the wire
  | 'lost' // the thing was there and is gone
  | 'unknown' // it may or may not have happened; nobody can tell
  | 'exhausted' // a limit of ours is reached
  | 'full' // no space left
  | 'permission'
  | 'io'
  | 'internal';

export interface FailureOptions {
  cause?: unknown;
  /** The next step for a person, as an imperative sentence. */
  hint?: string;
  /** Fields for the log and for the API's answer; never secrets. */
  details?: Record<string, unknown>;
}

/** An error with a code. `message` says what we were doing and what went wrong, in one line. */
export class Failure extends Error {
  readonly code: FailureCode;
  readonly hint: string | undefined;
  readonly details: Record<string, unknown> | undefined;

  constructor(code: FailureCode, message: string, options: FailureOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'Failure';
    this.code = code;
    this.hint = options.hint;
    this.details = options.details;
  }

  /** Any thrown value as a Failure; one that already is passes unchanged. */
  static from(thrown: unknown, doing: string): Failure {
    if (thrown instanceof Failure) return thrown;
    const cause = thrown instanceof Error ? thrown : new Error(String(thrown));
    return new Failure(codeOfSystemError(cause), `${doing}: ${cause.message}`, { cause });
  }
}

function codeOfSystemError(error: Error): FailureCode {
  if (error.name === 'AbortError') return 'aborted';
  if (error.name === 'TimeoutError') return 'timeout';
  switch ((error as NodeJS.ErrnoException).code) {
    case 'ENOENT':
      return 'not-found';
    case 'EACCES':
    case 'EPERM':
      return 'permission';
    case 'ENOSPC':
    case 'EDQUOT':
      return 'full';
    case 'ECONNREFUSED':
    case 'ECONNRESET':
    case 'EPIPE':
      return 'unavailable';
    default:
      return 'internal';
  }
}
