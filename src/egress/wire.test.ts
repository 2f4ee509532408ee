import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';
import { expect, onTestFinished, test } from 'vitest';
import { Deadlines } from './deadlines.ts';
import { Http1Upstream } from './http1/client.ts';
import { Pool } from './pool.ts';
import { Wire } from './wire.ts';

const unexpected = (error: unknown) => {
  throw error;
};

/** Both ends of a connection on loopback. */
async function pair(): Promise<[Socket, Socket]> {
  const server = createServer({ allowHalfOpen: true }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const accepted = once(server, 'connection');
  const near = connect({ port: (server.address() as { port: number }).port, allowHalfOpen: true });
  const [far] = (await accepted) as [Socket];
  onTestFinished(() => {
    server.close();
    for (const socket of [near, far]) socket.destroy();
  });
  return [near, far];
}

function told(wire: Wire): string[] {
  const heard: string[] = [];
  wire.take({
    data: (bytes) => heard.push(bytes.toString()),
    end: () => heard.push('end'),
    drained: () => {},
    gone: () => heard.push('gone'),
  });
  return heard;
}

test('a socket that has closed before it became a wire is a closed one', async () => {
  const [near] = await pair();
  near.destroy();
  await once(near, 'close');
  const wire = new Wire(near, unexpected);
  expect([wire.closed, told(wire)]).toEqual([true, ['gone']]);
});

test('an end that came before is told to who takes the wire', async () => {
  const [near, far] = await pair();
  near.resume();
  far.end();
  await once(near, 'end');
  const wire = new Wire(near, unexpected);
  expect([wire.ended, wire.closed, told(wire)]).toEqual([true, false, ['end']]);
});

test.each([
  'closed',
  'ended',
])('a connection that has %s before it could wait is not given out', async (how) => {
  const [near, far] = await pair();
  near.resume();
  far.end();
  await once(near, 'end');
  if (how === 'closed') near.destroy();
  const pool = new Pool(new Deadlines(1_000), { idleMs: 1_000 });
  pool.put(
    'http://a.test',
    new Http1Upstream(new Wire(near, unexpected), { address: '192.0.2.1', judged: true }),
    0,
  );
  expect(pool.take('http://a.test', '')).toBeUndefined();
});

test('a reader that throws loses its wire, and nothing else happens', async () => {
  const [near, far] = await pair();
  const troubles: unknown[] = [];
  const wire = new Wire(near, (error) => void troubles.push(error));
  let gone = 0;
  wire.take({
    data: () => {
      throw new Error('a defect');
    },
    end: () => {},
    drained: () => {},
    gone: () => {
      gone++;
      throw new Error('and another');
    },
  });
  const closed = once(far, 'end');
  far.on('error', () => {}).resume();
  far.write('x');
  await closed;
  expect(troubles.map(String)).toEqual(['Error: a defect', 'Error: and another']);
  expect(gone).toBe(1);
  expect(wire.closed).toBe(true);
});
