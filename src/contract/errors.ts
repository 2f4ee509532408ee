// How a Failure looks on the wire: one table from its code to an HTTP status and to the word in the body's `code`.
// The body is always {code, message}; what else is known goes into headers, because OpenSandbox's schema allows no other property.
import { z } from 'zod';
import type { FailureCode } from '../lib/failure.ts';

export const ErrorBody = z.strictObject({ code: z.string(), message: z.string() });
export type ErrorBody = z.infer<typeof ErrorBody>;

/** Response headers of errors. `failure` is the FailureCode, or the guest's own finer word, e.g. `command-not-found` or `is-a-directory`. */
export const errorHeaders = { failure: 'Glovebox-Failure', hint: 'Glovebox-Hint' } as const;

/** What a request was about: the name space of its error codes. Errors of `egress` are plain text, as OpenSandbox has it, and show no code. */
export type Area =
  | 'sandbox'
  | 'pool'
  | 'image'
  | 'template'
  | 'agent'
  | 'workspace'
  | 'execd'
  | 'egress'
  | 'policy'
  | 'network'
  | 'secret'
  | 'bell'
  | 'audit'
  | 'worker'
  | 'project'
  | 'snapshot'
  | 'volume'
  | 'proxy'
  | 'request';

const table: Record<FailureCode, { status: number; word: string; execd: string }> = {
  invalid: { status: 400, word: 'INVALID_PARAMETER', execd: 'INVALID_REQUEST_BODY' },
  unauthenticated: { status: 401, word: 'UNAUTHENTICATED', execd: 'UNAUTHENTICATED' },
  'not-found': { status: 404, word: 'NOT_FOUND', execd: 'FILE_NOT_FOUND' },
  conflict: { status: 409, word: 'INVALID_STATE', execd: 'CONFLICT' },
  unsupported: { status: 501, word: 'NOT_SUPPORTED', execd: 'NOT_SUPPORTED' },
  unavailable: { status: 503, word: 'UNAVAILABLE', execd: 'UNAVAILABLE' },
  timeout: { status: 504, word: 'TIMEOUT', execd: 'TIMEOUT' },
  aborted: { status: 499, word: 'ABORTED', execd: 'ABORTED' },
  protocol: { status: 502, word: 'PROTOCOL_ERROR', execd: 'RUNTIME_ERROR' },
  lost: { status: 410, word: 'LOST', execd: 'RUNTIME_ERROR' },
  unknown: { status: 500, word: 'UNKNOWN_OUTCOME', execd: 'RUNTIME_ERROR' },
  exhausted: { status: 429, word: 'LIMIT_REACHED', execd: 'LIMIT_REACHED' },
  full: { status: 507, word: 'NO_SPACE', execd: 'NO_SPACE' },
  permission: { status: 403, word: 'FORBIDDEN', execd: 'FORBIDDEN' },
  io: { status: 500, word: 'IO_ERROR', execd: 'RUNTIME_ERROR' },
  internal: { status: 500, word: 'INTERNAL_ERROR', execd: 'RUNTIME_ERROR' },
};

export function httpStatusOf(code: FailureCode): number {
  return table[code].status;
}

/** E.g. `SANDBOX::NOT_FOUND`; for execd its own bare words, e.g. `FILE_NOT_FOUND`. */
export function wireCodeOf(code: FailureCode, area: Area): string {
  return area === 'execd' ? table[code].execd : `${area.toUpperCase()}::${table[code].word}`;
}

/**
 * Failures with a word of OpenSandbox's own (its server's constants), by `details.kind`. Those about one runtime are called after Docker there, and are what
 * clients know, so they have that name with every runtime here.
 */
const finer: Record<string, { wireCode: string; status?: number }> = {
  'host-path-not-allowed': { wireCode: 'VOLUME::HOST_PATH_NOT_ALLOWED', status: 400 },
  'volume-not-found': { wireCode: 'VOLUME::PVC_NOT_FOUND' },
  'volume-sub-path': { wireCode: 'VOLUME::INVALID_SUB_PATH' },
  'not-running': { wireCode: 'DOCKER::SANDBOX_NOT_RUNNING' },
  'not-paused': { wireCode: 'DOCKER::SANDBOX_NOT_PAUSED' },
  expiration: { wireCode: 'DOCKER::INVALID_EXPIRATION' },
  port: { wireCode: 'DOCKER::INVALID_PORT' },
  'image-pull': { wireCode: 'DOCKER::SANDBOX_IMAGE_PULL_FAILED' },
  'start-failed': { wireCode: 'DOCKER::SANDBOX_START_FAILED' },
  'volume-backend': { wireCode: 'VOLUME::UNSUPPORTED_BACKEND' },
  'bucket-option': { wireCode: 'VOLUME::INVALID_OSSFS_OPTION' },
  'bucket-mount': { wireCode: 'VOLUME::OSSFS_MOUNT_FAILED', status: 500 },
};

export function finerAnswerOf(details: Record<string, unknown> | undefined): {
  wireCode?: string;
  status?: number;
} {
  const kind = details?.kind;
  return typeof kind === 'string' && Object.hasOwn(finer, kind) ? (finer[kind] ?? {}) : {};
}
