// Thousands of workers at one daemon: how long until all are there when they come at once, what each costs while nothing goes on, and a command on a thousand of them.
// The workers are simulated, in processes of their own, but dial, sign and greet as real ones do, and the agent that is asked is the real one; only what it starts is not.
import { mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { SandboxClient } from '../../sdk/src/index.ts';
import { startDaemon, until } from '../../test/daemon.ts';
import { SimulatedWorkers } from '../../test/simulated-workers.ts';
import { type Figure, figure } from '../measure.ts';
import type { ProbeReading } from './probe.ts';

const processes = 4;
/** Within which all is done that is done a little later: the records of the workers are saved then. */
const settleMs = 15_000;
/** Of the kernel's count of processor time. */
const tickMs = 10;
const registeredWithinMs = 300_000;
const kibibyte = 1024;
const mebibyte = 1024 ** 2;
/** Listener, folder, and both ends of the way between the link and the door; and the link. */
const descriptorsOfDirect = 5;

export interface CrowdOptions {
  /** Empty. */
  folder: string;
  workers: number;
  /** Of them, those that take commands. */
  direct: number;
  /** How long nothing goes on, to measure what that costs. */
  idleMs: number;
  broadcasts: number;
  say: (line: string) => void;
}

export async function crowdFigures(options: CrowdOptions): Promise<Figure[]> {
  const { folder, workers, direct, idleMs, broadcasts, say } = options;
  mustHaveDescriptors(workers + direct * (descriptorsOfDirect - 1));
  await using undo = new AsyncDisposableStack();
  const probe = join(folder, 'probe.sock');
  const daemon = await startDaemon({
    home: join(folder, 'daemon'),
    runtime: 'memory',
    env: {
      GLOVEBOX_BENCH_PROBE: probe,
      NODE_OPTIONS: `--import=${join(import.meta.dirname, 'probe.ts')}`,
    },
  });
  undo.defer(async () => void (await daemon.stop()));
  const client = new SandboxClient({ url: daemon.url, apiKey: daemon.apiKey });
  const homes = join(folder, 'workers');
  mkdirSync(homes);
  say(`enrolling ${workers} workers over the controller's routes`);
  const crowd = undo.use(
    await SimulatedWorkers.enrol({
      ...{
        client,
        server: daemon.url.replace(/^http/, 'ws'),
        folder: homes,
        count: workers,
        direct,
        processes,
      },
    }),
  );
  await delay(settleMs);
  const before = await read(probe);
  const quietCpu = await cpuOver(daemon.pid, idleMs / 3);

  say(`${workers} workers connect at once`);
  await ask(probe, 'reset');
  const cpuBefore = cpuMs(daemon.pid);
  const started = performance.now();
  await crowd.dial();
  await registered(client, workers);
  const registeredMs = performance.now() - started;
  const connecting = await read(probe);
  if (direct > 0) {
    say('the own systems of those that take commands');
    await usable(client, direct);
  }
  const usableMs = performance.now() - started;
  await delay(settleMs);
  const connectingCpuMs = cpuMs(daemon.pid) - cpuBefore;
  const after = await read(probe);
  const descriptors = readdirSync(`/proc/${daemon.pid}/fd`).length;

  say(`nothing goes on for ${idleMs / 1000} s`);
  await ask(probe, 'reset');
  const idleCpu = await cpuOver(daemon.pid, idleMs);
  const idle = await read(probe);

  say(`a command on ${direct} of them`);
  const took: number[] = [];
  for (let run = 0; run < broadcasts; run++) took.push(await broadcast(client, direct));

  const of = `${workers} workers (${direct} of them take commands)`;
  const each = (bytes: 'rssBytes' | 'heapBytes') => [(after[bytes] - before[bytes]) / workers / kibibyte];
  const cpu = Math.max(0, idleCpu - quietCpu);
  return [
    figure(`${of} connect at once: all registered`, 's', [registeredMs / 1000], {
      target: { text: '≤ 60 s', holds: (it) => it.median <= 60 },
    }),
    figure(`${of} connect at once: all that take commands can be used`, 's', [usableMs / 1000]),
    figure('processor of the controller for each that comes, its own system included', 'ms', [
      connectingCpuMs / workers,
    ]),
    figure('lag of the controller’s event loop meanwhile, p99', 'ms', [connecting.lag.p99]),
    figure('lag of the controller’s event loop meanwhile, most', 'ms', [connecting.lag.max]),
    figure(`RSS of the controller with ${of}`, 'MiB', [after.rssBytes / mebibyte], {
      floor: { name: 'before they came', values: [before.rssBytes / mebibyte] },
    }),
    figure('memory of the controller for each worker: RSS', 'KiB', each('rssBytes')),
    figure('memory of the controller for each worker: heap', 'KiB', each('heapBytes')),
    figure(`file descriptors of the controller with ${of}`, 'count', [descriptors]),
    figure(`processor of the controller for ${of} that do nothing, of one core`, '%', [cpu * 100]),
    figure('processor of the controller for each that does nothing, in a minute', 'ms', [
      (cpu * 60_000) / workers,
    ]),
    figure('lag of the controller’s event loop while they do nothing, p99', 'ms', [idle.lag.p99]),
    figure(
      `a broadcast of true to ${direct} workers (simulated, but for the process that would be started): all have answered`,
      'ms',
      took,
      {
        target: { text: 'all of them', holds: () => true },
      },
    ),
  ];
}

/** Looks seldom, lest looking is what is measured. */
async function registered(client: SandboxClient, workers: number): Promise<void> {
  for (const deadline = performance.now() + registeredWithinMs; ; await delay(200)) {
    const { online } = await client.workers.stats();
    if (online === workers) return;
    if (performance.now() > deadline)
      throw new Error(`${online} of ${workers} workers were there after ${registeredWithinMs / 1000} s`);
  }
}

async function usable(client: SandboxClient, direct: number): Promise<void> {
  await until(
    'the workers’ own systems',
    async () => {
      let answered = 0;
      for await (const { error } of client.workers.broadcast('true', { labels: { direct: 'yes' } }))
        if (error === undefined) answered += 1;
      return answered;
    },
    (answered) => answered === direct,
    300_000,
  );
}

/** Milliseconds until the last has answered. */
async function broadcast(client: SandboxClient, direct: number): Promise<number> {
  const started = performance.now();
  let good = 0;
  for await (const { exitCode, error } of client.workers.broadcast(['/bin/true'], {
    labels: { direct: 'yes' },
  })) {
    if (exitCode !== 0) throw new Error(`a worker did not run it: ${error?.message ?? exitCode}`);
    good += 1;
  }
  if (good !== direct) throw new Error(`${good} of ${direct} workers have answered`);
  return performance.now() - started;
}

/** Neither we nor the kernel may be the limit that is measured. */
function mustHaveDescriptors(wanted: number): void {
  const limit = Number(/^Max open files\s+\S+\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1]);
  if (limit < wanted + 500)
    throw new Error(
      `the controller needs ${wanted} file descriptors, and may have ${limit} here: raise the hard limit (ulimit -Hn ${wanted + 500}), or ask for fewer workers`,
    );
}

/** Of one core, over so many milliseconds. */
async function cpuOver(pid: number, ms: number): Promise<number> {
  const before = cpuMs(pid);
  const started = performance.now();
  await delay(ms);
  return (cpuMs(pid) - before) / (performance.now() - started);
}

/** Since the process began. */
function cpuMs(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ') ?? [];
  return (Number(fields[11]) + Number(fields[12])) * tickMs;
}

function ask(path: string, word: 'read' | 'reset'): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = '';
    const socket = connect(path);
    socket.on('error', reject);
    socket.on('data', (piece) => {
      text += piece;
    });
    socket.on('end', () => resolve(text));
    socket.write(word);
  });
}

const read = async (path: string): Promise<ProbeReading> => JSON.parse(await ask(path, 'read'));
