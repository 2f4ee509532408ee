// A sandbox with something on its disk: a snapshot of it, a sandbox made of that, and a fork, beside the plain copy or commit, and a sandbox of an image.
import { execFile } from 'node:child_process';
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { SandboxService } from '../src/sandbox/sandbox.ts';
import type { Snapshots } from '../src/snapshot/snapshots.ts';
import { engine } from './engine.ts';
import { type Figure, figure, inTurns, timed } from './measure.ts';
import { createRequest, firstOutput } from './start.ts';

const run = promisify(execFile);
const signal = () => AbortSignal.timeout(300_000);
const askEveryMs = 2;

export async function snapshotFigures(
  { service, snapshots }: { service: SandboxService; snapshots: Snapshots },
  options: { folder: string; runtime: string; image: string; mebibytes: number; runs: number },
): Promise<Figure[]> {
  const { folder, runtime, image, mebibytes, runs } = options;
  const source = await service.create({ ...createRequest, runtime, image }, signal());
  const filled = await service.executions(source.id).start({
    shell: `mkdir -p /srv && dd if=/dev/urandom of=/srv/data bs=1048576 count=${mebibytes} 2>/dev/null`,
    stdin: 'none',
  });
  if ((await filled.exit).code !== 0) throw new Error('the disk could not be filled');

  const captured = async (): Promise<string> => {
    const { id } = snapshots.create(source.id);
    for (;;) {
      const { state, message } = snapshots.get(id);
      if (state === 'Ready') return id;
      if (state !== 'Creating') throw new Error(`${runtime}: ${message}`);
      await new Promise((resolve) => setTimeout(resolve, askEveryMs));
    }
  };
  const capture = async (): Promise<number> => {
    let id = '';
    const took = await timed(async () => {
      id = await captured();
    });
    await snapshots.remove(id);
    return took;
  };
  const first = async (request: { image: string; snapshotId?: string }): Promise<number> => {
    let id = '';
    const took = await timed(async () => {
      id = (await service.create({ ...createRequest, runtime, ...request }, signal())).id;
      await firstOutput(service, id);
    });
    await service.remove(id, signal());
    return took;
  };
  const fork = async (): Promise<number> => {
    let id = '';
    const took = await timed(async () => {
      id = (await snapshots.fork(source.id, { count: 1, metadata: {} }, signal()))[0]?.id as string;
      await firstOutput(service, id);
    });
    await service.remove(id, signal());
    return took;
  };

  const plain = runtime === 'docker' ? () => commit(source.id) : await plainCopy(folder, mebibytes);
  const size = `${mebibytes} MiB on its disk`;
  const taken = await inTurns(runs, { ours: capture, plain });
  const snapshotId = await captured();
  const { image: snapshotImage } = snapshots.get(snapshotId);
  const made = await inTurns(runs, {
    ours: () => first({ image: snapshotImage, snapshotId }),
    plain: () => first({ image }),
  });
  const forks = await inTurns(runs, { ours: fork });
  await snapshots.remove(snapshotId);
  await service.remove(source.id, signal());
  return [
    figure(`${runtime}: snapshot, ${size}`, 'ms', taken.ours, {
      floor: {
        name: runtime === 'docker' ? 'Engine API commit' : 'cp -a --reflink=auto',
        values: taken.plain,
      },
    }),
    figure(`${runtime}: restore → first output, ${size}`, 'ms', made.ours, {
      floor: { name: 'of an image', values: made.plain },
    }),
    figure(`${runtime}: fork → first output, ${size}`, 'ms', forks.ours),
  ];
}

async function plainCopy(folder: string, mebibytes: number): Promise<() => Promise<number>> {
  const from = join(folder, 'from');
  const to = join(folder, 'to');
  await mkdir(from);
  await run('dd', ['if=/dev/urandom', `of=${join(from, 'data')}`, 'bs=1048576', `count=${mebibytes}`]);
  return async () => {
    const took = await timed(() => run('cp', ['-a', '--reflink=auto', '-T', '--', from, to]));
    await rm(to, { recursive: true });
    return took;
  };
}

async function commit(id: string): Promise<number> {
  let made = '';
  const took = await timed(async () => {
    made = JSON.parse((await engine('POST', `/commit?container=glovebox-${id}`)).body).Id;
  });
  await engine('DELETE', `/images/${made}`);
  return took;
}
