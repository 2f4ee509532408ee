// What an interpreter is made of: a program of the guest, and our driver that makes it live from run to run.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

export interface Language {
  /** The beginning of the ids of its interpreters: by them they are found again after a restart of the daemon. */
  readonly prefix: string;
  readonly argv: readonly string[];
  /** Where its frames come; each run ends on all of them. */
  readonly lanes: readonly ('stdout' | 'stderr')[];
}

const driver = (file: string): string => readFileSync(join(import.meta.dirname, 'drivers', file), 'utf8');

/** stderr goes where stdout goes, in the order in which both were written. */
export const bashSession: Language = {
  prefix: 'session',
  argv: ['bash', '--noprofile', '--norc', '-c', driver('bash.sh')],
  lanes: ['stdout'],
};
