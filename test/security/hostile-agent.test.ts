// A real daemon, real sandboxes, and in place of their agents programs that break the rules of the channel. The agents are stopped while no
// daemon runs; the next daemon is dialled by ours, with the token of the sandbox. It must live, serve the others, and keep its memory.
import { readdirSync, readFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { channelProtocol, frameType, headerBytes, writeHeader } from '../../src/channel/frame.ts';
import { encodeJson } from '../../src/channel/handshake.ts';
import { encodeMessage } from '../../src/channel/messages.ts';
import { laneOf } from '../../src/contract/guest.ts';
import { type Answer, dialIn, honest } from '../../src/sandbox/fake-runtime.fixture.ts';
import { call, create, list, run } from '../client.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { imageFor, runtimes } from '../runtimes.ts';

/** What the daemon may grow by while it is attacked, its buffers and windows included. */
const growthBytesMax = 192 * 1024 * 1024;

const entry = {
  ...{ path: `/${'x'.repeat(16_000)}`, kind: 'file', size: 1, mode: 0o644, owner: 'o', group: 'g' },
  ...{ uid: 0, gid: 0, modifiedAt: 0, createdAt: 0 },
};

/** Answers the daemon's own questions as it should, and whatever callers ask with `attack`. */
const attacking = (attack: Answer): Answer => {
  const well = honest();
  return (it) => (it.request.op === 'execs' ? well(it) : attack(it));
};

/** The same bytes again and again, as fast as credit comes. */
const flood =
  (lane: number, bytes: Uint8Array, ...first: unknown[]): Answer =>
  ({ stream }) => {
    for (const reply of first) stream.write(laneOf.message, encodeMessage(reply));
    const more = () => {
      for (let n = 0; n < 1_000 && stream.write(lane, bytes); n += 1);
    };
    stream.onDrain = more;
    more();
  };

const deepJson = Buffer.alloc(4 + 4 * 1024 * 1024, '[');
deepJson.writeUInt32BE(deepJson.length - 4);
const started = { type: 'started', pid: 1, startedAt: 1, from: 0 };
const attacks: Record<string, Answer> = {
  'no answer': () => {},
  'an end without an answer': ({ end }) => end(),
  'replies of the wrong kind': flood(laneOf.message, encodeMessage({ type: 'pong' })),
  'replies that break the schema': flood(laneOf.message, encodeMessage({ type: 'exit', exit: 7 })),
  'JSON that is none': flood(laneOf.message, Buffer.from([0, 0, 0, 2, 0x7b, 0x7b])),
  'a message longer than any may be': flood(laneOf.message, Buffer.alloc(1024, 0xff)),
  'the longest message, of nothing but brackets,': flood(laneOf.message, deepJson),
  'names without end': flood(laneOf.message, encodeMessage({ type: 'entries', entries: [entry, entry] })),
  'output without end': flood(laneOf.data, Buffer.alloc(65_536), started),
  'output byte by byte': flood(laneOf.data, Buffer.alloc(1), started),
  'gaps without end': flood(laneOf.message, encodeMessage({ type: 'gap', from: 0, to: 2 ** 50 }), started),
  'exits without end': flood(
    laneOf.message,
    encodeMessage({ type: 'exit', end: 0, exit: { code: 0, signal: null, reason: 'exited' } }),
    started,
  ),
};

/** Raw bytes behind a sound hello. */
const frame = (type: number, stream: number, payload: Uint8Array, offset = 0): Uint8Array => {
  const bytes = new Uint8Array(headerBytes + payload.length);
  writeHeader(bytes, 0, { type, flags: 0, lane: 0, stream, length: payload.length, offset });
  bytes.set(payload, headerBytes);
  return bytes;
};
const rawAttacks: Record<string, Uint8Array> = {
  'bytes that are no frames': Buffer.alloc(65_536, 0xee),
  'data on a stream that never was': frame(frameType.data, 99, Buffer.alloc(10)),
  'more than its credit': Buffer.concat([
    frame(frameType.open, 2, Buffer.alloc(0)),
    ...Array.from({ length: 8 }, (_, n) => frame(frameType.data, 2, Buffer.alloc(65_536), n * 65_536)),
  ]),
  'more streams than there may be': Buffer.concat(
    Array.from({ length: 3_000 }, (_, n) => frame(frameType.open, 2 * n + 2, Buffer.alloc(0))),
  ),
  'pings without end': Buffer.concat(
    Array.from({ length: 2_000 }, () => frame(frameType.ping, 0, Buffer.alloc(0))),
  ),
  'credit for what was never sent': frame(frameType.credit, 1, Buffer.alloc(16, 0x7f)),
};

/** Dials again and again, says hello as the agent would, and then only this. */
function dialRaw(socketPath: string, token: string, bytes: Uint8Array): { stop(): void } {
  let over = false;
  const hello = frame(
    frameType.hello,
    0,
    encodeJson({
      ...{
        v: [channelProtocol.min, channelProtocol.max],
        token,
        instance: 'raw',
        fresh: crypto.randomUUID(),
      },
      ...{ caps: [], seen: 0, streams: [] },
    }),
  );
  const dial = (): void => {
    if (over) return;
    const socket = connect(socketPath);
    const spray = () => {
      while (!over && socket.writable && socket.write(bytes));
    };
    socket.on('error', () => undefined);
    socket.on('drain', spray);
    socket.once('data', spray);
    socket.once('close', () => setTimeout(dial, 20).unref());
    socket.write(hello);
  };
  dial();
  return {
    stop: () => {
      over = true;
    },
  };
}

/** Everything below a process, which is left out itself. */
function descendants(pid: number): number[] {
  try {
    const children = readdirSync(`/proc/${pid}/task`).flatMap((task) =>
      readFileSync(`/proc/${pid}/task/${task}/children`, 'utf8').split(' ').filter(Boolean).map(Number),
    );
    return children.flatMap((child) => [child, ...descendants(child)]);
  } catch {
    return [];
  }
}

function residentBytes(pid: number): number {
  return 1024 * Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]);
}

const home = makeHome();
let daemon: TestDaemon;
let bystander: string;
/** Sandbox ids by the name of the attack. */
const victims = new Map<string, string>();
const stops: (() => void)[] = [];

const usable = runtimes.includes('bubblewrap');

beforeAll(async () => {
  if (!usable) return;
  daemon = await startDaemon({ runtime: 'bubblewrap', home });
  const uri = await imageFor('bubblewrap', daemon, 'busybox');
  bystander = await create(daemon, { image: { uri } });
  for (const name of [...Object.keys(attacks), ...Object.keys(rawAttacks)])
    victims.set(name, await create(daemon, { image: { uri } }));
  await daemon.kill();
  const database = new DatabaseSync(join(home, 'glovebox.db'), { readOnly: true });
  for (const [name, id] of victims) {
    const row = database.prepare('SELECT record FROM sandbox WHERE id = ?').get(id) as { record: string };
    const { agentToken } = JSON.parse(row.record) as { agentToken: string };
    const machine = JSON.parse(readFileSync(join(home, 'state', id, 'machine.json'), 'utf8'));
    for (const pid of descendants(machine.monitor.pid)) process.kill(pid, 'SIGSTOP');
    const socketPath = join(home, 'run', id, 'agent.sock');
    const attack = attacks[name];
    if (attack !== undefined) {
      const dialer = dialIn(socketPath, agentToken, attacking(attack));
      stops.push(() => dialer.stop({ code: 'over', message: 'over' }));
    } else stops.push(dialRaw(socketPath, agentToken, rawAttacks[name] as Uint8Array).stop);
  }
  database.close();
  daemon = await startDaemon({ runtime: 'bubblewrap', home });
});

afterAll(async () => {
  for (const stop of stops) stop();
  if (!usable) return;
  for (const { id } of await list(daemon)) await call(daemon, 'DELETE', `/v1/sandboxes/${id}`);
  expect(await daemon.stop()).toBe(0);
  await expectNothingLeft(home);
});

/** All that a caller may want of a sandbox, at once, for a while; whatever the answers are. */
async function askEverything(id: string): Promise<void> {
  const ask = async (method: string, path: string, body?: unknown): Promise<void> => {
    try {
      const reply = await fetch(`${daemon.url}/v1/sandboxes/${id}/proxy/44772${path}`, {
        method,
        headers: { 'OPEN-SANDBOX-API-KEY': daemon.apiKey, 'Content-Type': 'application/json' },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
        signal: AbortSignal.timeout(3_000),
      });
      // What comes is taken, and not kept.
      for await (const _ of reply.body ?? []);
    } catch {
      // The patience of this caller, or an answer that was cut: both are right.
    }
  };
  await Promise.all([
    ask('POST', '/command', { command: 'anything' }),
    ask('POST', '/command', { command: 'anything', background: true }),
    ask('GET', '/directories/list?path=/x&depth=1'),
    ask('GET', '/files/search?path=/x&pattern=*'),
    ask('GET', '/files/download?path=/x'),
    ask('HEAD', '/files/download?path=/x'),
    ask('GET', '/files/info?path=/x'),
    ask('GET', '/metrics'),
    ask('GET', '/ping'),
  ]);
}

test.skipIf(!usable).for([...Object.keys(attacks), ...Object.keys(rawAttacks)])(
  'an agent that sends %s harms nobody else',
  async (name) => {
    const before = residentBytes(daemon.pid);
    const attacked = askEverything(victims.get(name) as string);
    expect((await run(daemon, bystander, 'echo $((40 + 2))')).stdout).toBe('42\n');
    await attacked;
    expect((await run(daemon, bystander, 'echo still here')).stdout).toBe('still here\n');
    expect(residentBytes(daemon.pid) - before).toBeLessThan(growthBytesMax);
  },
);

test.skipIf(!usable)(
  'a sandbox whose agent breaks the rules of the wire has failed, and can be removed',
  async () => {
    for (const name of Object.keys(rawAttacks)) {
      const id = victims.get(name) as string;
      await until(
        name,
        async () => (await list(daemon)).find((it) => it.id === id)?.state,
        (state) => state === 'Failed',
      );
    }
    for (const id of victims.values())
      expect((await call(daemon, 'DELETE', `/v1/sandboxes/${id}`)).status).toBe(204);
    expect((await list(daemon)).map((it) => it.id)).toEqual([bystander]);
  },
);
