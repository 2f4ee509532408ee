// The machine of one SandD daemon as a place for commands and files: its commands and their output stay when its connections come and go.
import { join } from 'node:path';
import type { SandboxInfo } from '../../contract/sandbox.ts';
import { placeOf } from '../../contract/worker.ts';
import type { Guest } from '../../guest/guest.ts';
import { Failure } from '../../lib/failure.ts';
import type { Log } from '../../lib/log.ts';
import type { Place } from '../../sandbox/elsewhere.ts';
import { SandboxExecutions } from '../../sandbox/executions.ts';
import type { PlaceStore } from '../places.ts';

export interface SanddPlaceOptions {
  daemonId: string;
  /** Has its logs. */
  folder: string;
  store: PlaceStore;
  /** Of the connection that there is now. */
  guest: () => Guest | undefined;
  log: Log;
  now: () => Date;
}

export class SanddPlace implements Place {
  readonly info: SandboxInfo;
  readonly executions: SandboxExecutions;
  readonly #options: SanddPlaceOptions;

  constructor(options: SanddPlaceOptions) {
    this.#options = options;
    const { daemonId, folder, store, now, log } = options;
    const id = placeOf(daemonId);
    this.info = {
      ...{ id, runtime: `worker/${daemonId}/sandd`, state: 'Running', reason: 'running' },
      message: `the system of SandD daemon ${daemonId} itself`,
      ...{ lastTransitionAt: now(), createdAt: now(), image: 'host', entrypoint: [], keep: false },
      ...{ metadata: {}, extensions: {}, limits: {}, workspaces: [], published: [] },
    };
    this.executions = new SandboxExecutions({
      folder: join(folder, 'logs'),
      guest: () => this.guest(),
      defaults: () => ({ env: {}, entrypoint: [] }),
      beforeStart: async () => {},
      onRunning: () => {},
      save: (execution) => store.saveExecution(id, execution),
      forget: (execId) => store.forgetExecution(id, execId),
      now,
      onTrouble: (error) =>
        log.warn({ worker: daemonId, error: String(error) }, 'forgetting a command failed'),
    });
  }

  guest(): Guest {
    const guest = this.#options.guest();
    if (guest !== undefined) return guest;
    throw new Failure('unavailable', `SandD daemon ${this.#options.daemonId} is not connected`, {
      hint: 'It comes back by itself, every five seconds.',
    });
  }

  /** Commands of an earlier controller have ended in a way that nobody saw. */
  async adopt(signal: AbortSignal): Promise<void> {
    const { store } = this.#options;
    await this.executions.adopt(store.executions(this.info.id), this.guest(), signal);
  }

  /** Nothing of it is kept. */
  async remove(): Promise<void> {
    const { store } = this.#options;
    for (const { execId } of store.executions(this.info.id)) store.forgetExecution(this.info.id, execId);
    await this.executions.dispose();
  }
}
