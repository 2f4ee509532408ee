// Create → first output through the HTTP API over one kept connection: from pools of started and of frozen sandboxes, with a creation that fits no pool beside them. In the same run,
// what the second half of that takes by itself (a command in a sandbox that has run many, and the shell alone, without a sandbox), and what the whole takes where nothing else is done:
// two calls, a synced line of a log for each, and the shell.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { Agent, request } from 'node:http';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { ensureAgentBundle } from '../src/agent/bundle.ts';
import { loadConfig, reloadConfig } from '../src/daemon/config.ts';
import { keyOf } from '../src/daemon/home.ts';
import { type Daemon, startDaemon } from '../src/daemon/main.ts';
import { type Figure, figure, inTurns, timed } from './measure.ts';

/** A limit for each, so that a request says by it which pool it fits. */
const memory = { started: '256Mi', frozen: '257Mi', miss: '258Mi' } as const;
/** What a hit has made the pool do is over, so that it is not measured. */
const settleMs = 500;
/** A program that makes many sandboxes has run for a while, and so has the daemon. */
const commandsBefore = 300;

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

const wish = (limit: string) => ({
  ...{ image: { uri: 'host' }, resourceLimits: { memory: limit }, timeout: 3_600 },
});

const create = async (client: Client, limit: string): Promise<string> =>
  JSON.parse(await client.call('POST', '/v1/sandboxes', wish(limit))).id;

/** Resolves with the first output; `over` with the end of the command. */
async function command(client: Client, id: string): Promise<{ over: Promise<string> }> {
  const { promise: said, resolve, reject } = Promise.withResolvers<void>();
  const path = `/v1/sandboxes/${id}/proxy/44772/command`;
  const over = client.call('POST', path, { command: 'echo out' }, (text) => {
    if (text.includes('"stdout"')) resolve();
  });
  over.then(() => reject(new Error('the command said nothing')), reject);
  await said;
  return { over };
}

async function firstOutput(client: Client, limit: string): Promise<number> {
  let id = '';
  let running: Awaited<ReturnType<typeof command>> | undefined;
  const took = await timed(async () => {
    id = await create(client, limit);
    running = await command(client, id);
  });
  await running?.over;
  await client.call('DELETE', `/v1/sandboxes/${id}`);
  return took;
}

async function nextOutput(client: Client, id: string): Promise<number> {
  let running: Awaited<ReturnType<typeof command>> | undefined;
  const took = await timed(async () => {
    running = await command(client, id);
  });
  await running?.over;
  return took;
}

/** A server of the agent's runtime that does no more than it must. */
class Floor implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #client: Client;

  private constructor(child: ChildProcess, port: string) {
    this.#child = child;
    this.#client = new Client(`http://127.0.0.1:${port}`, 'unused');
  }

  static async start(bun: string, logFile: string): Promise<Floor> {
    const script = join(import.meta.dirname, 'call-floor.js');
    const child = spawn(bun, [script, logFile], { stdio: ['ignore', 'pipe', 'inherit'] });
    for await (const port of createInterface({ input: child.stdout })) return new Floor(child, port);
    throw new Error('the server of the floor has ended');
  }

  async shell(): Promise<number> {
    return Number(await this.#client.call('POST', '/shell'));
  }

  async calls(): Promise<number> {
    let over: Promise<string> | undefined;
    const took = await timed(async () => {
      await this.#client.call('POST', '/create', wish(memory.miss));
      await new Promise<void>((resolve, reject) => {
        over = this.#client.call('POST', '/command', { command: 'echo out' }, () => resolve());
        over.catch(reject);
      });
    });
    await over;
    return took;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#client.close();
    const closed = once(this.#child, 'close');
    this.#child.kill();
    await closed;
  }
}

export async function poolFigures(options: { home: string; runs: number }): Promise<Figure[]> {
  const sources = { home: options.home, env: {}, overrides: { 'server.port': 0, 'log.level': 'ERROR' } };
  const config = await loadConfig(sources);
  const daemon: Daemon = await startDaemon(config, (running) => reloadConfig(sources, running));
  const client = new Client(daemon.url, config.server.apiKey ?? (await keyOf(config.paths.apiKeyFile)));
  try {
    await using floor = await Floor.start(
      join(await ensureAgentBundle(), 'bun'),
      join(options.home, 'floor.log'),
    );
    const used = await create(client, memory.miss);
    for (let before = 0; before < commandsBefore; before++) await nextOutput(client, used);
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
      again: async () => {
        await settled();
        return await nextOutput(client, used);
      },
      shell: async () => {
        await settled();
        return await floor.shell();
      },
      calls: async () => {
        await settled();
        return await floor.calls();
      },
    });
    const target = { text: '≤ 5 ms', holds: (it: { median: number }) => it.median <= 5 };
    const miss = { name: 'a miss', values: values.miss };
    const calls = { name: 'two calls that do nothing else', values: values.calls };
    const shell = { name: 'the shell alone, without a sandbox', values: values.shell };
    const figures = [
      ...states.map((state) =>
        figure(`pool of ${state} ones: hit, create → first output`, 'ms', values[state], {
          ...{ target, floor: miss },
        }),
      ),
      ...states.map((state) =>
        figure(`pool of ${state} ones: the same hit`, 'ms', values[state], { floor: calls }),
      ),
      figure('a command in a sandbox that has run many → first output', 'ms', values.again, { floor: shell }),
    ];
    for (const state of states) await client.call('DELETE', `/v1/pools/${state}`);
    await client.call('DELETE', `/v1/sandboxes/${used}`);
    return figures;
  } finally {
    client.close();
    await daemon.stop();
  }
}
