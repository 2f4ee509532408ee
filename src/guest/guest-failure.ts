// The agent's refusals in the words of the daemon.
import type { GuestErrorCode, GuestReply } from '../contract/guest.ts';
import { Failure, type FailureCode } from '../lib/failure.ts';

const codes: Record<GuestErrorCode, FailureCode> = {
  'not-found': 'not-found',
  'command-not-found': 'invalid',
  'not-executable': 'invalid',
  exists: 'conflict',
  conflict: 'conflict',
  invalid: 'invalid',
  'not-a-directory': 'invalid',
  'is-a-directory': 'invalid',
  permission: 'permission',
  full: 'full',
  'too-large': 'invalid',
  exhausted: 'exhausted',
  refused: 'unavailable',
  unsupported: 'unsupported',
  timeout: 'timeout',
  'digest-mismatch': 'invalid',
  io: 'io',
  unknown: 'unknown',
  canceled: 'conflict',
};

/** What a shell would exit with when it cannot start a command. */
const exitCodes: Partial<Record<GuestErrorCode, number>> = {
  'command-not-found': 127,
  'not-executable': 126,
};

export function failureOf(error: Extract<GuestReply, { type: 'error' }>, doing: string): Failure {
  const exitCode = exitCodes[error.code];
  return new Failure(codes[error.code], `${doing}: ${error.message}`, {
    details: {
      guest: error.code,
      ...(error.errno === undefined ? {} : { errno: error.errno }),
      ...(exitCode === undefined ? {} : { exitCode }),
    },
  });
}
