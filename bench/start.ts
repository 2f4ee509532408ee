// Create → first output of a command, against the plain tools that make the same walls.
import { spawn } from 'node:child_process';
import type { SandboxService } from '../src/sandbox/sandbox.ts';
import { engine } from './engine.ts';
import { type Figure, figure, inTurns, timed } from './measure.ts';

/** A sandbox without wishes, on the runtime and image that the caller adds. */
export const createRequest = {
  entrypoint: [],
  env: {},
  metadata: {},
  extensions: {},
  limits: {},
  mounts: [],
};
const signal = () => AbortSignal.timeout(120_000);

/** Resolves at the first byte of output. */
export async function firstOutput(service: SandboxService, id: string): Promise<void> {
  const execution = await service.executions(id).start({ argv: ['/bin/sh', '-c', 'echo hi'], stdin: 'none' });
  for await (const piece of execution.read(0, { follow: true })) if (piece.type === 'output') return;
  throw new Error('the command said nothing');
}

/** Adds up what creating and the first output take; the removal is not counted. */
async function coldStart(service: SandboxService, runtime: string, image: string): Promise<number> {
  let id = '';
  const took = await timed(async () => {
    id = (await service.create({ ...createRequest, runtime, image }, signal())).id;
    await firstOutput(service, id);
  });
  await service.remove(id, signal());
  return took;
}

function plainBwrap(): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn(
      'setpriv',
      [
        '--reuid',
        '65534',
        '--regid',
        '65534',
        '--clear-groups',
        'bwrap',
        '--unshare-all',
        '--ro-bind',
        '/usr',
        '/usr',
        '--symlink',
        'usr/bin',
        '/bin',
        '--symlink',
        'usr/lib',
        '/lib',
        '--symlink',
        'usr/lib64',
        '/lib64',
        '--proc',
        '/proc',
        '--dev',
        '/dev',
        '/bin/sh',
        '-c',
        'echo hi',
      ],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    );
    let heard = false;
    child.stdout.once('data', () => {
      heard = true;
    });
    child.on('error', reject);
    child.on('exit', () => (heard ? resolve() : reject(new Error('plain bwrap said nothing'))));
  });
}

/** The same image, created and started by the engine with nothing of ours but the missing network. */
async function plainEngine(image: string): Promise<number> {
  let id = '';
  const took = await timed(async () => {
    const made = await engine('POST', '/containers/create', {
      Image: image,
      Entrypoint: ['/bin/sh', '-c', 'read line'],
      OpenStdin: true,
      HostConfig: { NetworkMode: 'none', Init: true },
    });
    id = JSON.parse(made.body).Id;
    const started = await engine('POST', `/containers/${id}/start`);
    if (started.status !== 204) throw new Error(`start: ${started.body}`);
  });
  await engine('DELETE', `/containers/${id}?force=1`);
  return took;
}

export async function startFigures(
  service: SandboxService,
  options: { runs: number; dockerImage: string | undefined; dockerRuns: number },
): Promise<Figure[]> {
  const bubblewrap = await inTurns(options.runs, {
    ours: () => coldStart(service, 'bubblewrap', 'host'),
    plain: () => timed(plainBwrap),
  });
  const { id } = await service.create({ ...createRequest, runtime: 'bubblewrap', image: 'host' }, signal());
  const warm = await inTurns(options.runs, { ours: () => timed(() => firstOutput(service, id)) });
  await service.remove(id, signal());
  const figures = [
    figure('bubblewrap: create → first output, cold', 'ms', bubblewrap.ours, {
      floor: { name: 'plain bwrap, whole run', values: bubblewrap.plain },
      target: { text: '≤ 40 ms', holds: (it) => it.median <= 40 },
    }),
    figure('bubblewrap: first output of a running sandbox', 'ms', warm.ours),
  ];
  const { dockerImage } = options;
  if (dockerImage === undefined) return figures;
  const docker = await inTurns(options.dockerRuns, {
    ours: () => coldStart(service, 'docker', dockerImage),
    plain: () => plainEngine(dockerImage),
  });
  return [
    ...figures,
    figure('docker: create → first output, cold', 'ms', docker.ours, {
      floor: { name: 'Engine API create + start', values: docker.plain },
      target: { text: '≤ 1.2 ×', holds: (it) => it.ratio <= 1.2 },
    }),
  ];
}
