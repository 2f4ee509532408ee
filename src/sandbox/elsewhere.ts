// Machines that dial in, as far as the service of the sandboxes knows them: their own systems can be used like a sandbox's inside, and sandboxes can be put on them.
import type { SandboxInfo } from '../contract/sandbox.ts';
import type { WorkerWish } from '../contract/worker.ts';
import type { Guest } from '../guest/guest.ts';
import { Failure } from '../lib/failure.ts';
import type { Executions } from './sandbox.ts';

/** A worker's own system. */
export interface Place {
  readonly info: SandboxInfo;
  /** Failure('unavailable') while the worker is not connected. */
  guest(): Guest;
  readonly executions: Executions;
}

export interface Elsewhere {
  /** Failure('not-found') for the place of a worker that there is not; undefined for what is no place's name. */
  place(id: string): Place | undefined;
  /** The name of the runtime on the worker that fits best. Failure('unavailable') when none is there now, Failure('not-found') when none is known. */
  choose(wish: WorkerWish, runtime: string | undefined): string;
}

/** A daemon without workers. */
export const nowhereElse: Elsewhere = {
  place: () => undefined,
  choose() {
    throw new Failure('unsupported', 'this daemon has no workers');
  },
};
