// Tells when machines end, for all of them through one stream of the engine's events. The stream may break and come back at any time: after
// each connection the containers are listed once more, so no end is missed. An engine that is gone says nothing about its machines.
import { setTimeout as delay } from 'node:timers/promises';
import type { MachineExit } from '../runtime.ts';
import type { Engine } from './engine.ts';

interface Watched {
  promise: Promise<MachineExit>;
  resolve: (exit: MachineExit) => void;
  /** Milliseconds since 1970, by the engine's clock. */
  outOfMemoryAt?: number;
  /** When this run of the container began, by the engine's clock; what the engine tells of earlier ones is not about it. */
  startedAt: number;
  /** What of ours brings its end about. */
  ours?: 'removed' | 'stopped';
}

/** What of `GET /containers/{id}/json` we use. */
export interface ContainerInspect {
  Id: string;
  State: {
    Status: string;
    Pid: number;
    ExitCode: number;
    OOMKilled: boolean;
    /** Of its last run; changes with each. */
    StartedAt: string;
    FinishedAt: string;
    Error: string;
  };
  /** `sha256:…` */
  Image: string;
  Config: { Labels: Record<string, string> | null; Env?: string[] | null; NetworkDisabled?: boolean };
  HostConfig: { Mounts?: { Source: string; Target: string; ReadOnly?: boolean }[] | null };
}

/** What of `GET /containers/json` we use. */
export interface ContainerSummary {
  Id: string;
  ImageID: string;
  State: string;
  Labels: Record<string, string>;
}

/** What of an event we use. */
interface ContainerEvent {
  Action?: string;
  Actor?: { ID?: string; Attributes?: Record<string, string> };
  timeNano?: number;
}

/** An end within this time after the kernel killed something for lack of memory is counted as caused by it. */
const outOfMemoryWindowMs = 5_000;
const reconnectMs = { least: 100, most: 5_000 };
const killedExitCode = 128 + 9;

export class Exits {
  readonly #engine: Engine;
  readonly #homeLabel: string;
  readonly #watched = new Map<string, Watched>();
  readonly #closing = new AbortController();
  #following = false;

  constructor(engine: Engine, homeLabel: string) {
    this.#engine = engine;
    this.#homeLabel = homeLabel;
  }

  /** The end of a container that runs; the same promise for the same run of it. `startedAt` is what the engine says, where it ran before. */
  of(containerId: string, startedAt = ''): Promise<MachineExit> {
    const known = this.#watched.get(containerId);
    if (known !== undefined) return known.promise;
    const { promise, resolve } = Promise.withResolvers<MachineExit>();
    const since = Date.parse(startedAt);
    this.#watched.set(containerId, { promise, resolve, startedAt: Number.isNaN(since) ? 0 : since });
    if (!this.#following) void this.#follow();
    else void this.#look([containerId]).catch(() => {});
    return promise;
  }

  /** We are about to remove it, so its end is our own doing. */
  removing(containerId: string): void {
    const watched = this.#watched.get(containerId);
    if (watched !== undefined) watched.ours = 'removed';
  }

  /** We are about to stop it. */
  stopping(containerId: string): void {
    const watched = this.#watched.get(containerId);
    if (watched !== undefined) watched.ours ??= 'stopped';
  }

  /** Looks whether it has ended, without waiting for the engine to tell. */
  look(containerId: string): Promise<void> {
    return this.#look([containerId]);
  }

  /** It is gone from the engine. */
  gone(containerId: string): void {
    this.#settle(containerId, { reason: 'lost', message: 'its container is gone', at: new Date() });
  }

  close(): void {
    this.#closing.abort();
  }

  async #follow(): Promise<void> {
    this.#following = true;
    const closing = this.#closing.signal;
    let waitMs = reconnectMs.least;
    while (!closing.aborted) {
      try {
        // The engine's own clock tells from when to repeat events, so that none falls between the list and the stream.
        const { atSeconds } = await this.#engine.ping(closing);
        const filters = { type: ['container'], label: [this.#homeLabel], event: ['die', 'oom', 'destroy'] };
        const query = { since: String(atSeconds - 1), filters: JSON.stringify(filters) };
        const events = this.#engine.lines(
          'GET',
          '/events',
          { doing: 'follow the events of the Docker engine', query },
          {
            endless: true,
            onOpen: () => {
              waitMs = reconnectMs.least;
              // Should this fail, the engine is going down, and the stream with it.
              void this.#look([...this.#watched.keys()]).catch(() => {});
            },
          },
          closing,
        );
        for await (const event of events) await this.#take(event as ContainerEvent);
      } catch {
        // The engine is down or going down; its machines may well go on, and are looked at when it is back.
      }
      await delay(waitMs, undefined, { signal: closing, ref: false }).catch(() => {});
      waitMs = Math.min(waitMs * 2, reconnectMs.most);
    }
  }

  async #take({ Action: action, Actor: actor, timeNano }: ContainerEvent): Promise<void> {
    const id = actor?.ID ?? '';
    const watched = this.#watched.get(id);
    if (watched === undefined) return;
    const at = timeNano === undefined ? Date.now() : timeNano / 1e6;
    if (at < watched.startedAt) return;
    if (action === 'oom') watched.outOfMemoryAt = at;
    else if (action === 'destroy') this.gone(id);
    else if (action === 'die') {
      const exitCode = Number(actor?.Attributes?.exitCode ?? Number.NaN);
      const recent = at - (watched.outOfMemoryAt ?? Number.NEGATIVE_INFINITY) < outOfMemoryWindowMs;
      // The engine may tell of the death before it tells why.
      const known =
        recent || exitCode !== killedExitCode ? undefined : await this.#inspect(id).catch(() => undefined);
      this.#settle(id, exitOf(exitCode, recent || known?.State.OOMKilled === true, new Date(at)));
    }
  }

  /** Settles those of the given containers that have ended or are gone. */
  async #look(ids: string[]): Promise<void> {
    const present = await containersLabelled(this.#engine, this.#homeLabel, this.#closing.signal);
    const states = new Map(present.map((it) => [it.Id, it.State]));
    for (const id of ids) {
      const state = states.get(id);
      if (state === undefined) this.gone(id);
      else if (!isAlive(state)) {
        const container = await this.#inspect(id);
        if (container !== undefined && hasEnded(container)) this.#settle(id, exitOfStopped(container));
      }
    }
  }

  #inspect(id: string): Promise<ContainerInspect | undefined> {
    return inspectContainer(this.#engine, id, this.#closing.signal);
  }

  #settle(id: string, exit: MachineExit): void {
    const watched = this.#watched.get(id);
    if (watched === undefined) return;
    this.#watched.delete(id);
    const { ours } = watched;
    watched.resolve(ours === undefined ? exit : { ...exit, reason: ours, message: ours });
  }
}

/** Containers of any state that bear a label, given as `name=value`; without one, all. */
export function containersLabelled(
  engine: Engine,
  label: string | undefined,
  signal?: AbortSignal,
): Promise<ContainerSummary[]> {
  const query = { all: '1', filters: JSON.stringify(label === undefined ? {} : { label: [label] }) };
  return engine.call('GET', '/containers/json', { doing: 'list containers', query }, signal);
}

export const isAlive = (state: string) => ['running', 'paused', 'restarting'].includes(state);

export function inspectContainer(
  engine: Engine,
  id: string,
  signal?: AbortSignal,
): Promise<ContainerInspect | undefined> {
  return engine.call(
    'GET',
    `/containers/${id}/json`,
    { doing: 'look at a container', accept: [404] },
    signal,
  );
}

export function hasEnded({ State: state }: ContainerInspect): boolean {
  return !isAlive(state.Status);
}

/** The end of a container that no longer runs, or never did. */
export function exitOfStopped({ State: state }: ContainerInspect): MachineExit {
  const finished = new Date(state.FinishedAt);
  if (state.Status === 'created' || !(finished.getTime() > 0)) {
    return { reason: 'lost', message: 'it never came to run', at: new Date() };
  }
  return exitOf(state.ExitCode, state.OOMKilled && state.ExitCode === killedExitCode, finished);
}

function exitOf(exitCode: number, outOfMemory: boolean, at: Date): MachineExit {
  const code = Number.isInteger(exitCode) ? { exitCode } : {};
  if (outOfMemory) {
    return {
      reason: 'out-of-memory',
      ...code,
      message: 'killed by the kernel: the memory limit was reached',
      at,
    };
  }
  const how =
    exitCode > 128 && exitCode < 193
      ? `was killed by signal ${exitCode - 128}`
      : `exited with code ${exitCode}`;
  return { reason: 'exited', ...code, message: `its first process ${how}`, at };
}
