// Create → first output through the HTTP API over one kept connection: from pools of started and of frozen sandboxes, with a creation that fits no pool beside them.
import { Agent, request } from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';
import { loadConfig, reloadConfig } from '../src/daemon/config.ts';
import { keyOf } from '../src/daemon/home.ts';
import { type Daemon, startDaemon } from '../src/daemon/main.ts';
import { type Figure, figure, inTurns, timed } from './measure.ts';

/** A limit for each, so that a request says by it which pool it fits. */
const memory = { started: '256Mi', frozen: '257Mi', miss: '258Mi' } as const;
/** What a hit has made the pool do is over, so that it is not measured. */
const settleMs = 500;

class Client {
  readonly #agent = new Agent({ keepAlive: true, maxSockets: 1 });
  readonly #url: string;
  readonly #key: string;

  constructor(url: string, key: string) {
    this.#url = url;
    this.#key = key;
  }

  /** The answer; `onBytes` hears of it as it comes. */
  call(method: string, path: string, body?: unknown, onBytes?: (text: string) => void): Promise<string> {
    return new Promise((resolve, reject) => {
      const headers = { 'OPEN-SANDBOX-API-KEY': this.#key, 'Content-Type': 'application/json' };
      const call = request(this.#url + path, { method, headers, agent: this.#agent }, (response) => {
        let text = '';
        response.setEncoding('utf8');
        response.on('data', (piece: string) => {
          text += piece;
          onBytes?.(text);
        });
        response.on('error', reject);
        response.on('end', () =>
          (response.statusCode ?? 500) < 300
            ? resolve(text)
            : reject(new Error(`${method} ${path}: ${text}`)),
        );
      });
      call.on('error', reject);
      call.end(body === undefined ? undefined : JSON.stringify(body));
    });
  }

  close(): void {
    this.#agent.destroy();
  }
}

async function firstOutput(client: Client, limit: string): Promise<number> {
  let over: Promise<string> | undefined;
  let id = '';
  const took = await timed(async () => {
    const create = { image: { uri: 'host' }, resourceLimits: { memory: limit }, timeout: 600 };
    id = JSON.parse(await client.call('POST', '/v1/sandboxes', create)).id;
    await new Promise<void>((resolve, reject) => {
      const path = `/v1/sandboxes/${id}/proxy/44772/command`;
      over = client.call('POST', path, { command: 'echo out' }, (text) => {
        if (text.includes('"stdout"')) resolve();
      });
      over.then(() => reject(new Error('the command said nothing')), reject);
    });
  });
  await over;
  await client.call('DELETE', `/v1/sandboxes/${id}`);
  return took;
}

export async function poolFigures(options: { home: string; runs: number }): Promise<Figure[]> {
  const sources = { home: options.home, env: {}, overrides: { 'server.port': 0, 'log.level': 'ERROR' } };
  const config = await loadConfig(sources);
  const daemon: Daemon = await startDaemon(config, (running) => reloadConfig(sources, running));
  const client = new Client(daemon.url, config.server.apiKey ?? (await keyOf(config.paths.apiKeyFile)));
  try {
    const states = ['started', 'frozen'] as const;
    for (const state of states)
      await client.call('POST', '/v1/pools', {
        ...{ name: state, template: { image: { uri: 'host' }, resourceLimits: { memory: memory[state] } } },
        ...{ capacitySpec: { bufferMin: 2, bufferMax: 2, poolMin: 0, poolMax: 10 }, glovebox: { state } },
      });
    const settled = async () => {
      for (const state of states)
        for (;;) {
          const { status } = JSON.parse(await client.call('GET', `/v1/pools/${state}`));
          if (status.available === 2 && status.starting === 0) break;
          await delay(50);
        }
      await delay(settleMs);
    };
    const turn = (limit: string) => async () => {
      await settled();
      return await firstOutput(client, limit);
    };
    const values = await inTurns(options.runs, {
      started: turn(memory.started),
      frozen: turn(memory.frozen),
      miss: turn(memory.miss),
    });
    const target = { text: '≤ 5 ms', holds: (it: { median: number }) => it.median <= 5 };
    const floor = { name: 'a miss', values: values.miss };
    const figures = states.map((state) =>
      figure(`pool of ${state} ones: hit, create → first output`, 'ms', values[state], { target, floor }),
    );
    for (const state of states) await client.call('DELETE', `/v1/pools/${state}`);
    return figures;
  } finally {
    client.close();
    await daemon.stop();
  }
}
