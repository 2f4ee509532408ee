// A runtime for tests of a sandbox's life: no machines, but an agent that dials in over the real socket and answers as the test says.
// Each operation can be made to fail or wait, and `machines` tells what is left.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Stream } from '../channel/channel.ts';
import { systemClock } from '../channel/clock.ts';
import { Dialer } from '../channel/dialer.ts';
import { encodeMessage, MessageReader } from '../channel/messages.ts';
import { dialSocket } from '../channel/node-socket.ts';
import { type AgentBoot, type GuestReply, type GuestRequest, laneOf } from '../contract/guest.ts';
import { Failure } from '../lib/failure.ts';
import type {
  Keeping,
  Machine,
  MachineExit,
  MachineExitReason,
  MachineSpec,
  Runtime,
  RuntimeCheck,
  Saving,
} from '../runtime/runtime.ts';
import { Buckets } from './buckets.ts';

export type Operation = 'create' | 'list' | 'remove' | 'pause' | 'resume' | 'start' | 'stop' | 'save';

/** One request of the daemon, and the ways to answer it. */
export interface FakeCall {
  request: GuestRequest;
  stream: Stream;
  reply(...replies: GuestReply[]): void;
  end(): void;
}

export type Answer = (call: FakeCall) => void;

/** What a well-behaved agent says; commands run until they are signalled. */
export function honest(): Answer {
  const running = new Map<string, FakeCall>();
  return (call) => {
    const { request } = call;
    switch (request.op) {
      case 'stat':
        call.reply({ type: 'error', code: 'not-found', message: 'there are no files' });
        return call.end();
      case 'ping':
        call.reply({ type: 'pong' });
        return call.end();
      case 'execs':
        call.reply({
          type: 'execs',
          execs: [...running.keys()].map((execId) => ({ execId, pid: 7, start: 0, end: 0, startedAt: 1 })),
        });
        return call.end();
      case 'exec':
      case 'attach':
        running.set(request.execId, call);
        return call.reply({ type: 'started', pid: 7, startedAt: 1, from: 0 });
      case 'signal': {
        const command = running.get(request.execId);
        command?.reply({ type: 'exit', end: 0, exit: { code: 143, signal: 'SIGTERM', reason: 'signaled' } });
        command?.end();
        running.delete(request.execId);
        call.reply({ type: 'done' });
        return call.end();
      }
      default:
        call.reply({ type: 'error', code: 'unsupported', message: 'a fake' });
        call.end();
    }
  };
}

export class FakeRuntime implements Runtime {
  readonly name = 'fake';
  /** What exists, whoever made it; outlives a Sandboxes object, as machines outlive a daemon. */
  readonly machines = new Map<string, FakeMachine>();
  readonly calls: Operation[] = [];
  /** Names of the images that were made of machines. */
  readonly saved: string[] = [];
  /** Awaited before an operation has its effect: may throw, or wait. */
  readonly before: Partial<Record<Operation, (signal: AbortSignal) => Promise<void>>> = {};
  /** Machines that are made from now on cannot be paused. */
  withoutPause = false;
  /** The agent of machines that are made from now on; none that dials in when undefined. */
  answer: (() => Answer) | undefined = honest;

  async check(): Promise<RuntimeCheck> {
    const capabilities = {
      pause: true,
      limits: {},
      users: 'single',
      isolation: 'none',
      imagePull: false,
      network: 'captured',
      keep: true,
      mounts: { owner: false, overlay: false, hidden: false },
    } as const;
    return { usable: true, capabilities, problems: [] };
  }

  async create(spec: MachineSpec, signal: AbortSignal): Promise<Machine> {
    await this.step('create', signal);
    const machine = new FakeMachine(spec, this);
    this.machines.set(spec.id, machine);
    return machine;
  }

  async start(spec: MachineSpec, signal: AbortSignal): Promise<Machine> {
    if (!this.machines.has(spec.id))
      throw new Failure('not-found', `start machine ${spec.id}: nothing was kept`);
    await this.step('start', signal);
    const machine = new FakeMachine(spec, this);
    this.machines.set(spec.id, machine);
    return machine;
  }

  async list(signal: AbortSignal): Promise<Machine[]> {
    const machines = [...this.machines.values()];
    await this.step('list', signal);
    return machines;
  }

  async step(operation: Operation, signal: AbortSignal): Promise<void> {
    this.calls.push(operation);
    await this.before[operation]?.(signal);
  }
}

export class FakeMachine implements Machine {
  readonly id: string;
  readonly image = { env: { PATH: '/bin' }, entrypoint: [] };
  paused = false;
  readonly network = 'captured';
  readonly exited: Promise<MachineExit>;
  readonly pausing?: {
    pause(signal: AbortSignal): Promise<void>;
    resume(signal: AbortSignal): Promise<void>;
  };
  readonly keeping: Keeping;
  readonly saving: Saving;
  readonly #runtime: FakeRuntime;
  readonly #exited = Promise.withResolvers<MachineExit>();
  readonly #dialer: Dialer | undefined;

  constructor(spec: MachineSpec, runtime: FakeRuntime) {
    this.id = spec.id;
    this.#runtime = runtime;
    this.exited = this.#exited.promise;
    if (!runtime.withoutPause)
      this.pausing = {
        pause: async (signal) => {
          await runtime.step('pause', signal);
          this.paused = true;
        },
        resume: async (signal) => {
          await runtime.step('resume', signal);
          this.paused = false;
        },
      };
    this.keeping = {
      stop: async (signal) => {
        await runtime.step('stop', signal);
        this.die('stopped');
      },
    };
    this.saving = {
      save: async (name, _defaults, signal) => {
        await runtime.step('save', signal);
        runtime.saved.push(name);
      },
    };
    const { token }: AgentBoot = JSON.parse(readFileSync(join(spec.runFolder, 'boot.json'), 'utf8'));
    const answer = runtime.answer?.();
    if (answer !== undefined) this.#dialer = dialIn(join(spec.runFolder, 'agent.sock'), token, answer);
  }

  /** As if everything inside had ended. */
  die(reason: MachineExitReason, exitCode?: number): void {
    this.#dialer?.stop({ code: 'gone', message: 'the machine ended' });
    this.#exited.resolve({
      reason,
      message: `it ${reason}`,
      at: new Date(),
      ...(exitCode === undefined ? {} : { exitCode }),
    });
  }

  async remove(signal: AbortSignal): Promise<void> {
    await this.#runtime.step('remove', signal);
    this.die('removed');
    this.#runtime.machines.delete(this.id);
  }
}

/** An agent at a door: proves itself with the token and hands each request to `answer`. */
export function dialIn(socketPath: string, token: string, answer: Answer): Dialer {
  return new Dialer({
    connect: (signal) => dialSocket({ path: socketPath }, signal),
    token,
    clock: systemClock({ keepsProcessAlive: false }),
    backOff: { firstMs: 5, capMs: 20 },
    onChannel: (channel) => {
      channel.onStream = (stream) => serve(stream, answer);
    },
  });
}

function serve(stream: Stream, answer: Answer): void {
  const reader = new MessageReader();
  let asked = false;
  stream.onData = (lane, bytes) => {
    stream.consumed(bytes.length);
    if (lane !== laneOf.message || asked) return;
    for (const request of reader.push(bytes)) {
      asked = true;
      answer({
        request: request as GuestRequest,
        stream,
        reply: (...replies) => {
          for (const reply of replies) stream.write(laneOf.message, encodeMessage(reply));
        },
        end: () => stream.end(),
      });
    }
  };
}

const nothing = () => undefined;

/** On a host without the programs that mount any. */
export const noBuckets = (): Buckets =>
  new Buckets({
    ...{ root: '/nonexistent', env: {} },
    log: { debug: nothing, info: nothing, warn: nothing, error: nothing },
    keyring: {
      save: async () => {},
      get: async () => undefined,
      forget: async () => {},
      all: async () => [],
    },
  });
