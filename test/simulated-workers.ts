// Hundreds or thousands of workers for one controller, in a few processes: what comes over the network is what as many machines would send.
import { type ChildProcess, fork } from 'node:child_process';
import { join } from 'node:path';
import type { SandboxClient } from '../sdk/src/index.ts';

export interface WorkerOrder {
  id: string;
  token: string;
  /** Commands may be run on it; else it is as `glovebox worker --no-direct` without runtimes. */
  direct: boolean;
}

export type ToSimulated =
  | { do: 'enrol'; server: string; folder: string; workers: WorkerOrder[] }
  | { do: 'dial' }
  | { do: 'stop' };

export interface SimulatedWorkersOptions {
  client: SandboxClient;
  /** The controller's address, `ws:`. */
  server: string;
  /** Exists; has the homes of the workers. */
  folder: string;
  count: number;
  /** So many of them take commands, and have the label `direct=yes`. */
  direct: number;
  processes: number;
}

const enrolmentsAtOnce = 16;

export class SimulatedWorkers implements AsyncDisposable {
  readonly ids: string[];
  readonly #children: ChildProcess[];

  private constructor(ids: string[], children: ChildProcess[]) {
    this.ids = ids;
    this.#children = children;
  }

  /** Enrols them all, each with a token and a key of its own, over the controller's routes. */
  static async enrol(options: SimulatedWorkersOptions): Promise<SimulatedWorkers> {
    const { client, server, folder, count, direct, processes } = options;
    const ids = Array.from({ length: count }, (_, index) => `simulated-${index}`);
    const orders: WorkerOrder[] = [];
    const waiting = [...ids.entries()];
    await Promise.all(
      Array.from({ length: enrolmentsAtOnce }, async () => {
        for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
          const [index, id] = next;
          const { token } = await client.workers.enrol({ workerId: id });
          orders.push({ id, token, direct: index < direct });
        }
      }),
    );
    const children = Array.from({ length: processes }, () =>
      fork(join(import.meta.dirname, 'simulated-worker-process.ts'), {
        stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
      }),
    );
    const it = new SimulatedWorkers(ids, children);
    try {
      await it.#tell((index) => ({
        ...{ do: 'enrol', server, folder },
        workers: orders.filter((_, at) => at % processes === index),
      }));
    } catch (error) {
      await it[Symbol.asyncDispose]();
      throw error;
    }
    return it;
  }

  /** All at once; resolves when they have begun. From now on they come back by themselves, however often they are cut off. */
  async dial(): Promise<void> {
    await this.#tell(() => ({ do: 'dial' }));
  }

  get pids(): number[] {
    return this.#children.map(({ pid }) => pid as number);
  }

  /** They say goodbye, and their processes end. Idempotent. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#tell(() => ({ do: 'stop' })).catch(() => undefined);
    await Promise.all(
      this.#children.map(async (child) => {
        if (child.exitCode !== null || child.signalCode !== null) return;
        const exited = new Promise((resolve) => child.once('exit', resolve));
        if (child.connected) child.disconnect();
        await exited;
      }),
    );
  }

  async #tell(message: (index: number) => ToSimulated): Promise<void> {
    await Promise.all(this.#children.map((child, index) => answered(child, message(index))));
  }
}

function answered(child: ChildProcess, message: ToSimulated): Promise<void> {
  return new Promise((resolve, reject) => {
    const over = (error?: Error) => {
      child.off('message', heard);
      child.off('exit', gone);
      if (error === undefined) resolve();
      else reject(error);
    };
    const gone = () => over(new Error(`simulated workers ended before they were done with ${message.do}`));
    const heard = (answer: { done?: string; failed?: string }) =>
      over(answer.failed === undefined ? undefined : new Error(`${message.do}: ${answer.failed}`));
    child.on('message', heard);
    child.on('exit', gone);
    if (!child.connected) return gone();
    child.send(message);
  });
}
