// A large file to a worker's folder and back, over a link that is reset again and again: what arrives is the same, and little of it is sent twice.
import { createHash, randomFillSync } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdir, open } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import type { SandboxClient } from '../../sdk/src/index.ts';
import type { CuttingProxy, Direction } from '../../test/cutting-proxy.ts';
import { type Figure, figure } from '../measure.ts';

const mebibyte = 1024 ** 2;

export interface CutsOptions {
  client: SandboxClient;
  /** Its link goes through the proxy. */
  workerId: string;
  proxy: CuttingProxy;
  folder: string;
  bytes: number;
  cuts: number;
}

/** Failures: a file that did not arrive as it was sent, a cut that did not happen. */
export async function cutFigures(options: CutsOptions): Promise<Figure[]> {
  const { client, workerId, folder, bytes, cuts } = options;
  const names = { here: join(folder, 'here'), there: join(folder, 'there'), back: join(folder, 'back') };
  await mkdir(folder, { recursive: true });
  await fill(names.here, bytes);
  const digest = await sha256Of(names.here);
  const { files } = client.workers.handle(workerId);
  const size = `${shown(bytes)}, its link cut ${cuts} times`;
  const up = await overCuts(options, 'down', () => files.upload(names.here, names.there));
  await mustBe(names.there, digest);
  const down = await overCuts(options, 'up', () => files.download(names.there, names.back));
  await mustBe(names.back, digest);
  return [
    ...figuresOf(`a file of ${size}, to a worker`, up, bytes),
    ...figuresOf(`a file of ${size}, from a worker`, down, bytes),
  ];
}

interface Passage {
  sent: number;
  ms: number;
}

/** The cuts are spread evenly over the file. */
async function overCuts(
  { proxy, bytes, cuts }: CutsOptions,
  direction: Direction,
  transfer: () => Promise<unknown>,
): Promise<Passage> {
  const before = { bytes: proxy.bytes[direction], cuts: proxy.cuts };
  proxy.cutAfter(
    direction,
    Array.from({ length: cuts }, (_, index) => (bytes * (index + 0.5)) / cuts),
  );
  const started = performance.now();
  await transfer();
  const ms = performance.now() - started;
  const happened = proxy.cuts - before.cuts;
  if (happened !== cuts) throw new Error(`the link was cut ${happened} times instead of ${cuts}`);
  return { sent: proxy.bytes[direction] - before.bytes, ms };
}

function figuresOf(name: string, { sent, ms }: Passage, bytes: number): Figure[] {
  return [
    figure(`${name}: bytes on the link (the digest is right)`, 'MiB', [sent / mebibyte], {
      floor: { name: 'size of the file', values: [bytes / mebibyte] },
      target: { text: '≤ 1.05 ×', holds: (it) => it.ratio <= 1.05 },
    }),
    figure(`${name}: rate`, 'MiB/s', [bytes / mebibyte / (ms / 1000)]),
  ];
}

async function fill(path: string, bytes: number): Promise<void> {
  const file = await open(path, 'w');
  try {
    const piece = Buffer.alloc(4 * mebibyte);
    for (let left = bytes; left > 0; left -= piece.length)
      await file.write(randomFillSync(piece).subarray(0, left));
  } finally {
    await file.close();
  }
}

async function mustBe(path: string, digest: string): Promise<void> {
  if ((await sha256Of(path)) !== digest) throw new Error(`${path} is not what was sent`);
}

async function sha256Of(path: string): Promise<string> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(path, { highWaterMark: mebibyte }), hash);
  return hash.digest('hex');
}

const shown = (bytes: number): string =>
  bytes >= 1024 * mebibyte ? `${bytes / 1024 / mebibyte} GiB` : `${bytes / mebibyte} MiB`;
