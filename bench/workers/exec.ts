// The way of a command to a worker and back, beside that of the same command on this machine: the same agent, the same runtime, in turns.
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { placeOf } from '../../src/contract/worker.ts';
import { loadConfig } from '../../src/daemon/config.ts';
import { Meters } from '../../src/daemon/meters.ts';
import { openPlatform } from '../../src/daemon/platform.ts';
import { EmbeddedListener } from '../../src/embed/listener.ts';
import type { Guest } from '../../src/guest/guest.ts';
import { openLog } from '../../src/lib/log.ts';
import { WorkerPlace } from '../../src/worker/places.ts';
import { until } from '../../test/daemon.ts';
import { endHostMachines, hostRuntimeIn } from '../../test/host-machines.ts';
import { startWorker } from '../../test/worker.ts';
import { execTrue } from '../guest.ts';
import { type Figure, figure, timed } from '../measure.ts';
import { createRequest } from '../start.ts';

const workerId = 'bench-worker';
const log = openLog({ level: 'error' });
/** Of each, before those that count. */
const warmUp = 200;
const signal = () => AbortSignal.timeout(120_000);

export interface ExecOptions {
  /** Empty. */
  folder: string;
  runs: number;
}

/** The controller is in this process, as the local channel is; the worker is a process of its own, and its agents are others. */
export async function workerExecFigures({ folder, runs }: ExecOptions): Promise<Figure[]> {
  await using undo = new AsyncDisposableStack();
  const home = join(folder, 'controller');
  const workerHome = join(folder, 'worker');
  mkdirSync(home);
  const meters = undo.use(new Meters('bench'));
  const platform = undo.use(
    await openPlatform({ current: await loadConfig({ home, env: {} }) }, log, meters),
  );
  const { workers, sandboxes } = platform;
  const listener = new EmbeddedListener({ workers, host: '127.0.0.1', port: 0, onTrouble: console.error });
  const port = await listener.listen();
  undo.defer(() => listener.close());
  const near = await localPlace(folder, undo);
  // Its agent outlives it, and would outlive us.
  undo.defer(() => endHostMachines(workerHome));
  const { token } = workers.addEnrolment({ workerId, labels: {}, replace: false, expiresInSeconds: 600 });
  const worker = startWorker(`ws://127.0.0.1:${port}`, {
    ...{ home: workerHome, args: ['--id', workerId], env: { GLOVEBOX_WORKER_TOKEN: token } },
  });
  undo.defer(async () => void (await worker.stop()));
  const far = () => workers.place(placeOf(workerId))?.guest();
  await until('the worker', () => reached(far), Boolean);

  const host = await roundTrips({ near: near.guest(), far: far() as Guest }, runs);
  const box = { ...createRequest, runtime: 'bubblewrap', image: 'host' };
  const boxes = {
    near: await sandboxes.create(box, signal()),
    far: await sandboxes.create({ ...box, worker: workerId }, signal()),
  };
  const walled = await roundTrips(
    { near: sandboxes.guest(boxes.near.id), far: sandboxes.guest(boxes.far.id) },
    runs,
  );
  for (const { id } of Object.values(boxes)) await sandboxes.remove(id, signal());
  return [...figuresOf('the machine itself (host)', host), ...figuresOf('a sandbox (bubblewrap)', walled)];
}

function reached(look: () => unknown): boolean {
  try {
    return look() !== undefined;
  } catch {
    return false;
  }
}

/** What a worker's own system is to its controller, but with the runtime in this process. */
async function localPlace(folder: string, undo: AsyncDisposableStack): Promise<WorkerPlace> {
  const home = join(folder, 'near');
  mkdirSync(home);
  const runtime = await hostRuntimeIn(home);
  undo.defer(async () => {
    for (const machine of await runtime.list()) await machine.remove(signal());
  });
  const place = new WorkerPlace({
    ...{ workerId: 'near', runtime, folder: join(home, 'place'), log, now: () => new Date() },
    store: { executions: () => [], saveExecution() {}, forgetExecution() {} },
    allowedCommands: () => undefined,
  });
  await place.open();
  undo.defer(() => place.leave());
  return place;
}

interface Ends<T> {
  near: T;
  far: T;
}

/** Milliseconds, in turns. */
async function roundTrips(guests: Ends<Guest>, runs: number): Promise<Ends<number[]>> {
  const values: Ends<number[]> = { near: [], far: [] };
  for (let run = -warmUp; run < runs; run++)
    for (const end of ['near', 'far'] as const) {
      const took = await timed(() => execTrue(guests[end]));
      if (run >= 0) values[end].push(took);
    }
  return values;
}

function figuresOf(where: string, { near, far }: Ends<number[]>): Figure[] {
  const name = (what: string) => `exec true on a worker, ${where}: ${what}`;
  const floor = 'the same over the local channel';
  return [
    figure(name('p50'), 'ms', far, {
      floor: { name: floor, values: near },
      target: { text: '≤ 1.5 ×', holds: (it) => it.ratio <= 1.5 },
    }),
    figure(name('p99'), 'ms', [percentile(far, 0.99)], {
      floor: { name: floor, values: [percentile(near, 0.99)] },
      target: { text: '≤ 1.5 ×', holds: (it) => it.ratio <= 1.5 },
    }),
  ];
}

const percentile = (values: number[], share: number): number =>
  [...values].sort((a, b) => a - b)[Math.ceil(values.length * share) - 1] as number;
