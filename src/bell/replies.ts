// What a caller is told, in a form in which clients of different make find what they look for.
import { type BellErrorCode, bellErrors } from '../contract/bell.ts';
import { BellError } from './bell.ts';

export interface Reply {
  status: number;
  headers: Record<string, string>;
  body: string;
}

const replyCharactersMax = 32 * 1024 * 1024;

/** Of `exec`'s result: what clients look for beside `result`. */
function execFields(action: string, result: unknown): Record<string, unknown> {
  if (action !== 'exec' || typeof result !== 'object' || result === null) return {};
  const { exit_code, stdout, stderr } = result as Record<string, unknown>;
  return { exit_code, returncode: exit_code, stdout, stderr };
}

/** Throws BellError('failed') when what the action gave is no JSON, or too much of it. */
export function success(action: string, result: unknown): Reply {
  const reply = { ok: true, status: 'ok', action, result: result ?? null, ...execFields(action, result) };
  return { status: 200, headers: {}, body: asJson(reply, action) };
}

/** `action`: undefined when the request has not been understood. */
export function failure(error: BellError, action: string | undefined): Reply {
  const { code, message, result, retryAfterSeconds } = error;
  const plain = { ok: false, status: 'error', error: message, code, ...(action && { action }) };
  const refusal = error instanceof Refusal ? error : undefined;
  return {
    status: refusal?.status ?? bellErrors[code],
    headers: {
      ...refusal?.headers,
      ...(retryAfterSeconds !== undefined && {
        'Retry-After': String(Math.max(1, Math.ceil(retryAfterSeconds))),
      }),
    },
    body: result === undefined ? asJson(plain, 'the bell') : withResult(plain, action ?? '', result),
  };
}

/** Without it, where it cannot be shown: the error itself matters more. */
function withResult(plain: object, action: string, result: unknown): string {
  try {
    return asJson({ ...plain, result, ...execFields(action, result) }, action);
  } catch {
    return asJson(plain, action);
  }
}

function asJson(value: unknown, action: string): string {
  let text: string;
  try {
    text = JSON.stringify(value);
  } catch (cause) {
    throw new BellError('failed', `what ${action} gave cannot be written as JSON`, { cause });
  }
  if (text.length > replyCharactersMax)
    throw new BellError('failed', `what ${action} gave is more than ${replyCharactersMax} characters`);
  return `${text}\n`;
}

/** A refusal of HTTP itself, for which the table of codes is too coarse. */
export class Refusal extends BellError {
  readonly status: number;
  readonly headers: Record<string, string>;

  constructor(
    code: BellErrorCode,
    message: string,
    options: { status?: number; headers?: Record<string, string>; retryAfterSeconds?: number } = {},
  ) {
    super(code, message, options);
    this.status = options.status ?? bellErrors[code];
    this.headers = options.headers ?? {};
  }
}
