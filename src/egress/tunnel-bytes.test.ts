import { createHash, randomBytes } from 'node:crypto';
import { connect, createServer, type Socket } from 'node:net';
import { expect, onTestFinished, test, vi } from 'vitest';
import { dialAddresses } from './sockets.ts';
import { pump } from './tunnel-bytes.ts';

const { signal } = new AbortController();

async function serve(onConnection: (socket: Socket) => void): Promise<number> {
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => {});
    onTestFinished(() => {
      socket.destroy();
    });
    onConnection(socket);
  });
  onTestFinished(() => {
    server.close();
  });
  await new Promise<void>((ready) => server.listen(0, '127.0.0.1', ready));
  return (server.address() as { port: number }).port;
}

/** A client that is joined with `port` through a tunnel, and what passed in it. */
async function tunnelTo(
  port: number,
  bulk: boolean,
): Promise<{ client: Socket; passed: { in: number; out: number } }> {
  const passed = { in: 0, out: 0 };
  const middle = await serve(async (guest) => {
    const world = await dialAddresses(
      { addresses: ['127.0.0.1'], port, place: 'world', halfOpen: true, bulk },
      signal,
    );
    onTestFinished(() => {
      world.socket.destroy();
    });
    pump(guest, world.socket, { onBytes: (bytes) => (passed.out += bytes) });
    pump(world.socket, guest, { onBytes: (bytes) => (passed.in += bytes), bulk: world.bulk });
  });
  const client = connect({ port: middle, host: '127.0.0.1', allowHalfOpen: true });
  onTestFinished(() => {
    client.destroy();
  });
  return { client, passed };
}

const ways = [
  ['into one buffer', true],
  ["with 'data' events", false],
] as const;

test.for(ways)('%s: every byte arrives in order, both ways, and each end by itself', async ([, bulk]) => {
  const down = randomBytes(3 * 1024 * 1024 + 17);
  const up = randomBytes(1024 * 1024 + 5);
  const digest = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex');
  const received = Promise.withResolvers<Buffer>();
  const port = await serve((socket) => {
    const chunks: Buffer[] = [];
    socket.on('data', (bytes) => chunks.push(bytes));
    // The answer begins only when the question has ended: half of the tunnel is closed then.
    socket.on('end', () => {
      received.resolve(Buffer.concat(chunks));
      socket.end(down);
    });
  });
  const { client, passed } = await tunnelTo(port, bulk);
  client.end(up);
  expect(digest(await received.promise)).toBe(digest(up));
  const chunks: Buffer[] = [];
  // Small pauses of the reader let the middle meet a full socket.
  for await (const bytes of client) {
    chunks.push(bytes as Buffer);
    await new Promise(setImmediate);
  }
  expect(digest(Buffer.concat(chunks))).toBe(digest(down));
  expect(passed).toEqual({ in: down.length, out: up.length });
});

test.for(ways)('%s: a reader that has stopped stops the sender', async ([, bulk]) => {
  const block = Buffer.alloc(64 * 1024);
  const stuck = vi.fn();
  const port = await serve((socket) => {
    const more = () => {
      while (socket.write(block));
      stuck();
      socket.once('drain', more);
    };
    more();
  });
  const { client, passed } = await tunnelTo(port, bulk);
  client.pause();
  // It holds still: the counts are the same over many turns.
  let last = -1;
  let still = 0;
  await vi.waitFor(
    () => {
      still = passed.in > 0 && passed.in === last ? still + 1 : 0;
      last = passed.in;
      expect(still).toBeGreaterThan(10);
    },
    { timeout: 20_000, interval: 20 },
  );
  expect(stuck).toHaveBeenCalled();
  // What the kernel buffers on loopback, and no more than one read on top.
  expect(passed.in).toBeLessThan(32 * 1024 * 1024);
  const before = passed.in;
  client.resume();
  await vi.waitFor(() => expect(passed.in).toBeGreaterThan(before + 4 * block.length));
});
