// What goes on inside a sandbox that runs: commands, streams, files, against the same without walls.
import { execFile, spawn } from 'node:child_process';
import { createReadStream, createWriteStream } from 'node:fs';
import { rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { finished, pipeline } from 'node:stream/promises';
import { promisify } from 'node:util';
import type { Guest } from '../src/guest/guest.ts';
import { engine } from './engine.ts';
import { type Figure, figure, inTurns, timed } from './measure.ts';

const run = promisify(execFile);
const gibibyte = 1024 ** 3;
const mebibytesPerSecond = (bytes: number, ms: number): number => bytes / 1024 ** 2 / (ms / 1000);

let counter = 0;
const nextId = (): string => `bench${counter++}`;

/** Resolves when it has ended. */
export async function execTrue(guest: Guest): Promise<void> {
  const process = await guest.exec({
    execId: nextId(),
    argv: ['/bin/true'],
    env: {},
    cwd: '/',
    stdin: 'none',
  });
  for await (const _ of process.output);
  await process.exit;
}

async function rate(count: number, inFlight: number, one: () => Promise<void>): Promise<number> {
  let left = count;
  const took = await timed(() =>
    Promise.all(
      Array.from({ length: inFlight }, async () => {
        while (left-- > 0) await one();
      }),
    ),
  );
  return count / (took / 1000);
}

async function spawnFloor(bun: string, count: number): Promise<Record<'1' | '8' | '64', number>> {
  const { stdout } = await run(bun, [join(import.meta.dirname, 'spawn-floor.js'), String(count)]);
  return JSON.parse(stdout);
}

/** One `docker exec` of /bin/true through the Engine API, to the end of its output. */
async function dockerExec(container: string): Promise<void> {
  const wanted = { Cmd: ['/bin/true'], AttachStdout: true, AttachStderr: true };
  const made = await engine('POST', `/containers/${container}/exec`, wanted);
  await engine('POST', `/exec/${JSON.parse(made.body).Id}/start`, { Detach: false });
}

export async function execFigures(
  guest: Guest,
  options: { bun: string; rounds: number; count: number; container?: { guest: Guest; name: string } },
): Promise<Figure[]> {
  const ours: Record<string, number[]> = { 1: [], 8: [], 64: [] };
  const floor: Record<string, number[]> = { 1: [], 8: [], 64: [] };
  await rate(200, 8, () => execTrue(guest));
  for (let round = 0; round < options.rounds; round++) {
    const plain = await spawnFloor(options.bun, options.count);
    for (const inFlight of [1, 8, 64] as const) {
      ours[inFlight]?.push(await rate(options.count, inFlight, () => execTrue(guest)));
      floor[inFlight]?.push(plain[inFlight]);
    }
  }
  const name = "agent runtime's own spawn";
  const milliseconds = (rates: number[] | undefined) => (rates ?? []).map((it) => 1000 / it);
  const figures = [
    figure('exec true, one in flight', 'ms', milliseconds(ours[1]), {
      floor: { name, values: milliseconds(floor[1]) },
      target: { text: '≤ 1.5 ×', holds: (it) => it.ratio <= 1.5 },
    }),
    figure('exec true, 8 in flight', '/s', ours[8] ?? [], { floor: { name, values: floor[8] ?? [] } }),
    figure('exec true, 64 in flight', '/s', ours[64] ?? [], {
      floor: { name, values: floor[64] ?? [] },
      target: { text: '≥ 0.7 ×', holds: (it) => it.ratio >= 0.7 },
    }),
  ];
  const { container } = options;
  if (container !== undefined) {
    // In blocks: what the engine still cleans up after one of its own would count against the next of ours.
    await rate(200, 8, () => execTrue(container.guest));
    const turns: Record<'ours' | 'engine', number[]> = { ours: [], engine: [] };
    for (let block = 0; block < 3; block++) {
      for (let i = 0; i < 50; i++) turns.ours.push(await timed(() => execTrue(container.guest)));
      for (let i = 0; i < 8; i++) turns.engine.push(await timed(() => dockerExec(container.name)));
    }
    figures.push(
      figure('docker: exec true, one in flight', 'ms', turns.ours, {
        floor: { name: 'docker exec by the Engine API', values: turns.engine },
        target: { text: '≤ 1/20', holds: (it) => it.ratio <= 1 / 20 },
      }),
    );
  }
  return figures;
}

async function streamFramed(guest: Guest): Promise<number> {
  let bytes = 0;
  const took = await timed(async () => {
    const process = await guest.exec({
      execId: nextId(),
      argv: ['head', '-c', String(gibibyte), '/dev/zero'],
      env: {},
      stdin: 'none',
    });
    for await (const piece of process.output) if (piece.type === 'output') bytes += piece.bytes.length;
  });
  if (bytes !== gibibyte) throw new Error(`framed: ${bytes} bytes arrived`);
  return mebibytesPerSecond(bytes, took);
}

async function streamDirect(guest: Guest): Promise<number> {
  let bytes = 0;
  const took = await timed(async () => {
    const argv = ['head', '-c', String(gibibyte), '/dev/zero'];
    const process = await guest.exec({ execId: nextId(), argv, env: {}, stdin: 'none', direct: true });
    bytes = await readAll(process.direct as AsyncIterable<Uint8Array>);
    for await (const _ of process.output);
  });
  if (bytes !== gibibyte) throw new Error(`handed off: ${bytes} bytes arrived`);
  return mebibytesPerSecond(bytes, took);
}

async function streamPipe(): Promise<number> {
  let bytes = 0;
  const took = await timed(async () => {
    const child = spawn('head', ['-c', String(gibibyte), '/dev/zero'], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    child.stdout.on('data', (chunk) => {
      bytes += chunk.length;
    });
    await finished(child.stdout);
  });
  return mebibytesPerSecond(bytes, took);
}

async function readAll(bytes: AsyncIterable<Uint8Array>): Promise<number> {
  let size = 0;
  for await (const chunk of bytes) size += chunk.length;
  return size;
}

export async function streamFigures(guest: Guest, options: { runs: number }): Promise<Figure[]> {
  const execBefore = await inTurns(300, { it: () => timed(() => execTrue(guest)) });
  const turns = await inTurns(options.runs, {
    framed: () => streamFramed(guest),
    pipe: () => streamPipe(),
    handedOff: () => streamDirect(guest),
  });
  const execAfter = await inTurns(300, { it: () => timed(() => execTrue(guest)) });
  return [
    figure('stdout of 1 GiB, framed', 'MiB/s', turns.framed, {
      floor: { name: 'child pipe read by Node.js', values: turns.pipe },
      target: { text: '≥ 500 MiB/s', holds: (it) => it.median >= 500 },
    }),
    figure('stdout of 1 GiB, handed off', 'MiB/s', turns.handedOff, {
      floor: { name: 'child pipe read by Node.js', values: turns.pipe },
    }),
    figure('exec true after that output', 'ms', execAfter.it, {
      floor: { name: 'before it', values: execBefore.it },
      target: { text: 'unchanged (≤ 1.1 ×)', holds: (it) => it.ratio <= 1.1 },
    }),
  ];
}

export async function fileFigures(
  guest: Guest,
  options: { runs: number; folder: string },
): Promise<Figure[]> {
  const size = 512 * 1024 ** 2;
  const local = join(options.folder, 'payload');
  await writeFile(local, Buffer.alloc(size, 7));
  const copy = join(options.folder, 'copy');
  const turns = await inTurns(options.runs, {
    up: async () =>
      mebibytesPerSecond(
        size,
        await timed(() => guest.write('/tmp/up', createReadStream(local, { highWaterMark: 1024 * 1024 }))),
      ),
    down: async () =>
      mebibytesPerSecond(
        size,
        await timed(async () => {
          const { bytes } = await guest.read('/tmp/up');
          await pipeline(bytes, createWriteStream(copy));
        }),
      ),
    copy: async () => {
      await rm(copy, { force: true });
      return mebibytesPerSecond(size, await timed(() => run('cp', [local, copy])));
    },
  });
  if ((await stat(copy)).size !== size) throw new Error('the copy is short');
  const floor = { name: 'cp', values: turns.copy };
  return [
    figure('upload of 512 MiB', 'MiB/s', turns.up, { floor }),
    figure('download of 512 MiB', 'MiB/s', turns.down, { floor }),
  ];
}

/** A command whose output nobody reads: what the daemon grows by while it is stuck. */
export async function stalledReaderFigure(guest: Guest): Promise<Figure> {
  global.gc?.();
  const before = process.memoryUsage().rss;
  const stalled = await guest.exec({
    execId: nextId(),
    argv: ['head', '-c', String(gibibyte), '/dev/zero'],
    env: {},
    stdin: 'none',
  });
  // Other commands go on meanwhile; their number stands for the time that passes.
  await rate(500, 4, () => execTrue(guest));
  global.gc?.();
  const grown = Math.max(0, process.memoryUsage().rss - before) / 1024 ** 2;
  stalled.signal('SIGKILL', { tree: true });
  for await (const _ of stalled.output);
  return figure('growth of the daemon with a stalled reader of 1 GiB', 'MiB', [grown], {
    target: { text: '≤ 16 MiB', holds: (it) => it.median <= 16 },
  });
}
