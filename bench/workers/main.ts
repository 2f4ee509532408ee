// The figures of machines that dial in: commands on one, files over a link that breaks, and thousands of them at once.
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { SandboxClient } from '../../sdk/src/index.ts';
import { CuttingProxy } from '../../test/cutting-proxy.ts';
import { startDaemon, until } from '../../test/daemon.ts';
import { endHostMachines } from '../../test/host-machines.ts';
import { startWorker } from '../../test/worker.ts';
import type { Figure } from '../measure.ts';
import { crowdFigures } from './crowd.ts';
import { cutFigures } from './cuts.ts';
import { workerExecFigures } from './exec.ts';

export interface WorkerFigureOptions {
  /** Empty. */
  folder: string;
  quick: boolean;
  say: (line: string) => void;
}

export async function workerFigures({ folder, quick, say }: WorkerFigureOptions): Promise<Figure[]> {
  const part = (name: string) => {
    const path = join(folder, name);
    mkdirSync(path);
    return path;
  };
  say('commands on a worker, beside those on this machine');
  const figures = await workerExecFigures({ folder: part('exec'), runs: quick ? 200 : 2_000 });
  say('a file over a link that is cut');
  const bytes = (quick ? 128 : 2_048) * 1024 ** 2;
  figures.push(...(await fileFigures(part('cuts'), { bytes, cuts: 10 })));
  const crowd = quick ? { workers: 500, direct: 100 } : { workers: 5_000, direct: 1_000 };
  figures.push(
    ...(await crowdFigures({
      ...{ folder: part('crowd'), ...crowd, idleMs: quick ? 10_000 : 60_000, broadcasts: quick ? 2 : 5, say },
    })),
  );
  return figures;
}

/** A daemon, and a worker whose link goes through a proxy. */
async function fileFigures(folder: string, options: { bytes: number; cuts: number }): Promise<Figure[]> {
  await using undo = new AsyncDisposableStack();
  const daemon = await startDaemon({ home: join(folder, 'daemon'), runtime: 'memory' });
  undo.defer(async () => void (await daemon.stop()));
  const proxy = await CuttingProxy.open(Number(new URL(daemon.url).port));
  undo.defer(() => proxy.close());
  const client = new SandboxClient({ url: daemon.url, apiKey: daemon.apiKey });
  const workerId = 'bench-worker';
  const { token } = await client.workers.enrol({ workerId });
  const home = join(folder, 'worker');
  undo.defer(() => endHostMachines(home));
  const worker = startWorker(`ws://127.0.0.1:${proxy.port}`, {
    ...{ home, args: ['--id', workerId, '--runtime', 'host'], env: { GLOVEBOX_WORKER_TOKEN: token } },
  });
  undo.defer(() => worker.kill());
  const system = client.workers.handle(workerId);
  const answers = () => system.files.exists('/').catch(() => false);
  await until("the worker's own system", answers, Boolean);
  return await cutFigures({ ...{ client, workerId, proxy, folder: join(folder, 'files') }, ...options });
}
