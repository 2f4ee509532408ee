// glovebox pool: sandboxes that are made before anybody asks for one.
import type { PoolInfo } from '../../../sdk/src/index.ts';
import { connect } from '../connect.ts';
import { cleanLine, print, printJson, say, table } from '../output.ts';
import { wholeNumberOf } from '../values.ts';

export interface CreateOptions {
  ready: string;
  most: string;
  frozen?: boolean;
  runtime?: string;
  cpu?: string;
  memory?: string;
  pids?: string;
  disk?: string;
  memoryMax?: string;
  json?: boolean;
}

export async function create(name: string, image: string, options: CreateOptions): Promise<void> {
  const { frozen, runtime, cpu, memory, pids, disk, memoryMax, json } = options;
  const ready = wholeNumberOf('--ready', options.ready, 0);
  const most = wholeNumberOf('--most', options.most, 0);
  const made = await (await connect()).pools.create(name, {
    template: {
      image: { uri: image },
      resourceLimits: {
        ...(cpu === undefined ? {} : { cpu }),
        ...(memory === undefined ? {} : { memory }),
        ...(pids === undefined ? {} : { pids }),
        ...(disk === undefined ? {} : { disk }),
      },
      ...(runtime === undefined ? {} : { runtime }),
    },
    capacity: { bufferMin: ready, bufferMax: ready, poolMin: 0, poolMax: most },
    ...(frozen ? { state: 'frozen' } : {}),
    ...(memoryMax === undefined ? {} : { memoryMax }),
  });
  await (json ? printJson(made) : print(cleanLine(made.name)));
}

export async function ls({ json }: { json?: boolean }): Promise<void> {
  const pools = await (await connect()).pools.list();
  if (json) return await printJson(pools);
  if (pools.length === 0) return say('There are no pools; see `glovebox pool create --help`.');
  await print(
    table(
      ['NAME', 'IMAGE', 'RUNTIME', 'READY', 'IN USE', 'HITS', 'MISSES', 'STATUS'],
      pools.map((pool) => [
        pool.name,
        cleanLine(pool.template.image.uri),
        pool.runtime,
        `${pool.available}/${pool.capacity.bufferMax}${pool.state === 'frozen' ? ' frozen' : ''}`,
        `${pool.allocated}/${pool.capacity.poolMax}`,
        String(pool.hits),
        String(pool.misses),
        statusText(pool),
      ]),
    ),
  );
}

function statusText({ reason, message }: PoolInfo): string {
  const text = message === undefined ? reason : `${reason}: ${cleanLine(message)}`;
  return text.length > 80 ? `${text.slice(0, 79)}…` : text;
}

export async function show(names: string[]): Promise<void> {
  const { pools } = await connect();
  await printJson(await Promise.all(names.map((name) => pools.get(name))));
}

export async function rm(names: string[]): Promise<void> {
  const { pools } = await connect();
  for (const name of names) {
    await pools.remove(name);
    await print(cleanLine(name));
  }
}
