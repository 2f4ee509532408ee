// `npm run bench`: figures beside their floors, measured in the same run. A table for people, `--json` for programs, `--quick`
// for a first look, `--only sandbox`, `--only snapshot`, `--only workspace`, `--only egress`, `--only gateway` or `--only workers` for a part.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { ensureAgentBundle } from '../src/agent/bundle.ts';
import { loadConfig } from '../src/daemon/config.ts';
import { Meters } from '../src/daemon/meters.ts';
import { openPlatform } from '../src/daemon/platform.ts';
import { openLog } from '../src/lib/log.ts';
import { dockerImage } from '../test/images.ts';
import { egressFigures } from './egress/main.ts';
import { gatewayFigures, nginxPresent } from './gateway.ts';
import { execFigures, fileFigures, stalledReaderFigure, streamFigures } from './guest.ts';
import { type Figure, table } from './measure.ts';
import { memoryFigures } from './memory.ts';
import { poolFigures } from './pool.ts';
import { snapshotFigures } from './snapshots.ts';
import { createRequest, startFigures } from './start.ts';
import { workerFigures } from './workers/main.ts';
import { workspaceFigures } from './workspace.ts';

const { values: flags } = parseArgs({
  options: {
    json: { type: 'boolean', default: false },
    quick: { type: 'boolean', default: false },
    /** `sandbox`, `snapshot`, `pool`, `workspace`, `egress`, `gateway` or `workers`; all figures when absent. */
    only: { type: 'string' },
  },
});
type Part = 'sandbox' | 'snapshot' | 'pool' | 'workspace' | 'egress' | 'gateway' | 'workers';
const wanted = (part: Part) => flags.only === undefined || flags.only === part;
const times = (count: number): number => (flags.quick ? Math.max(2, Math.ceil(count / 5)) : count);
const say = (line: string): void => console.error(`bench: ${line}`);

async function sandboxFigures(home: string): Promise<Figure[]> {
  const config = await loadConfig({ home, env: {} });
  using meters = new Meters('bench');
  await using platform = await openPlatform({ current: config }, openLog({ level: 'error' }), meters);
  const service = platform.sandboxes;
  const signal = AbortSignal.timeout(3_600_000);
  const docker = (await service.runtimes(signal)).some((it) => it.name === 'docker' && it.check.usable);
  const image = docker ? dockerImage('debian') : undefined;
  if (!docker) say('no Docker engine answers: its figures are left out');

  say('starting sandboxes');
  const figures = await startFigures(service, { runs: times(30), dockerImage: image, dockerRuns: times(15) });
  say('idle memory');
  figures.push(...(await memoryFigures(service, 50)));

  const inside = await service.create({ ...createRequest, runtime: 'bubblewrap', image: 'host' }, signal);
  const container = image && (await service.create({ ...createRequest, runtime: 'docker', image }, signal));
  const guest = service.guest(inside.id);
  say('commands');
  figures.push(
    ...(await execFigures(guest, {
      bun: join(await ensureAgentBundle(), 'bun'),
      rounds: times(5),
      count: 1_000,
      ...(container
        ? { container: { guest: service.guest(container.id), name: `glovebox-${container.id}` } }
        : {}),
    })),
  );
  say('a reader that stalls');
  figures.push(await stalledReaderFigure(guest));
  say('streams');
  figures.push(...(await streamFigures(guest, { runs: times(7) })));
  say('files');
  figures.push(...(await fileFigures(guest, { runs: times(7), folder: home })));
  for (const info of [inside, container]) if (info) await service.remove(info.id, signal);
  return figures;
}

const home = await mkdtemp(join(tmpdir(), 'glovebox-bench-'));
try {
  const figures = wanted('sandbox') ? await sandboxFigures(home) : [];
  if (wanted('snapshot')) {
    say('snapshots');
    using meters = new Meters('bench');
    await using platform = await openPlatform(
      { current: await loadConfig({ home, env: {} }) },
      openLog({ level: 'error' }),
      meters,
    );
    const { sandboxes: service, snapshots } = platform;
    const runtimes = await service.runtimes(AbortSignal.timeout(60_000));
    const docker = runtimes.some((it) => it.name === 'docker' && it.check.usable);
    for (const [runtime, image] of [
      ['bubblewrap', 'host'],
      ...(docker ? [['docker', dockerImage('debian')] as const] : []),
    ] as const) {
      const folder = await mkdtemp(join(home, 'snapshots-'));
      const sizes = { folder, runtime, image, mebibytes: 256, runs: times(10) };
      figures.push(...(await snapshotFigures({ service, snapshots }, sizes)));
    }
  }
  if (wanted('workspace')) {
    say('workspaces of many files, and large ones');
    using meters = new Meters('bench');
    await using platform = await openPlatform(
      { current: await loadConfig({ home, env: {} }) },
      openLog({ level: 'error' }),
      meters,
    );
    const folder = await mkdtemp(join(tmpdir(), 'glovebox-bench-workspaces-'));
    try {
      const sizes = { folder, files: flags.quick ? 5_000 : 50_000, runs: times(5) };
      figures.push(...(await workspaceFigures(platform.sandboxes, sizes)));
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  }
  if (wanted('egress')) {
    say('the way out, beside squid and mitmproxy');
    figures.push(...(await egressFigures({ rounds: times(5), ms: flags.quick ? 1_500 : 4_000 })));
  }
  if (wanted('gateway')) {
    say('the gateway, beside nginx');
    if (nginxPresent())
      figures.push(...(await gatewayFigures({ rounds: times(5), ms: flags.quick ? 1_500 : 4_000 })));
    else say('there is no nginx: its figures are left out');
  }
  if (wanted('pool')) {
    say('pools');
    const folder = await mkdtemp(join(tmpdir(), 'glovebox-bench-pool-'));
    try {
      figures.push(...(await poolFigures({ home: folder, runs: times(30) })));
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  }
  if (wanted('workers')) {
    const folder = await mkdtemp(join(tmpdir(), 'glovebox-bench-workers-'));
    try {
      figures.push(...(await workerFigures({ folder, quick: flags.quick, say })));
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  }
  console.log(flags.json ? JSON.stringify({ node: process.version, figures }, undefined, 2) : table(figures));
} finally {
  await rm(home, { recursive: true, force: true });
}
