import { createHash, randomBytes } from 'node:crypto';
import { createServer, type Socket } from 'node:net';
import { expect, onTestFinished, test, vi } from 'vitest';
import { dialAddresses } from './sockets.ts';
import { type BulkReader, LargeBuffers } from './tunnel-bytes.ts';

/** Long enough for a busy machine. */
const until = (check: () => void) => vi.waitFor(check, { timeout: 30_000, interval: 10 });

/** A connection to a server that does `onConnection`, read in bulk. */
async function bulkTo(
  onConnection: (socket: Socket) => void,
): Promise<{ socket: Socket; bulk: BulkReader; server: Socket }> {
  const accepted = Promise.withResolvers<Socket>();
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => {});
    accepted.resolve(socket);
    onConnection(socket);
  });
  await new Promise<void>((ready) => server.listen(0, '127.0.0.1', ready));
  const { port } = server.address() as { port: number };
  const { socket, bulk } = await dialAddresses(
    { addresses: ['127.0.0.1'], port, place: 'world', halfOpen: true, bulk: true },
    new AbortController().signal,
  );
  const other = await accepted.promise;
  onTestFinished(() => {
    socket.destroy();
    other.destroy();
    server.close();
  });
  return { socket, bulk: bulk as BulkReader, server: other };
}

test('every byte arrives in order, in small reads first and large ones then, and the other way is still open', async () => {
  const down = randomBytes(3 * 1024 * 1024 + 17);
  const heard = Promise.withResolvers<string>();
  const { socket, bulk } = await bulkTo((server) => {
    server.end(down);
    server.on('data', (bytes) => heard.resolve(bytes.toString()));
  });
  const hash = createHash('sha256');
  const reads: number[] = [];
  const ended = new Promise((end) => socket.once('end', end));
  bulk.start(socket, new LargeBuffers(), (bytes) => {
    hash.update(bytes);
    reads.push(bytes.length);
    return true;
  });
  await ended;
  expect(hash.digest('hex')).toBe(createHash('sha256').update(down).digest('hex'));
  expect(reads[0]).toBeLessThanOrEqual(16 * 1024);
  expect(Math.max(...reads)).toBeGreaterThan(16 * 1024);
  expect(Math.max(...reads)).toBeLessThanOrEqual(256 * 1024);
  socket.write('still open');
  expect(await heard.promise).toBe('still open');
});

test('of one sandbox, only so many read into large buffers at once', async () => {
  const large = new LargeBuffers(1);
  const down = randomBytes(2 * 1024 * 1024);
  const largestRead = async (end: boolean): Promise<{ most: number; socket: Socket }> => {
    const { socket, bulk } = await bulkTo((server) => (end ? server.end(down) : server.write(down)));
    let most = 0;
    let sum = 0;
    bulk.start(socket, large, (bytes) => {
      most = Math.max(most, bytes.length);
      sum += bytes.length;
      return true;
    });
    await until(() => expect(sum).toBe(down.length));
    return { most, socket };
  };
  const first = await largestRead(false);
  expect(first.most).toBeGreaterThan(16 * 1024);
  expect((await largestRead(true)).most).toBeLessThanOrEqual(16 * 1024);
  const closed = new Promise((resolve) => first.socket.once('close', resolve));
  first.socket.destroy();
  await closed;
  expect((await largestRead(true)).most).toBeGreaterThan(16 * 1024);
});

test('nothing is read before it starts, nor after bytes that were not taken, until it goes on', async () => {
  const { socket, bulk, server } = await bulkTo((socket) => {
    const more = () => {
      while (!socket.destroyed && socket.write(Buffer.alloc(64 * 1024)));
      socket.once('drain', more);
    };
    more();
  });
  expect(socket.bytesRead).toBe(0);
  const take = vi.fn(() => false);
  bulk.start(socket, new LargeBuffers(), take);
  await until(() => expect(take).toHaveBeenCalledTimes(1));
  // The sender is stuck: what the kernel holds stays as it is.
  await until(() => expect(server.writableNeedDrain).toBe(true));
  expect(take).toHaveBeenCalledTimes(1);
  const before = socket.bytesRead;
  take.mockReturnValue(true);
  socket.resume();
  await until(() => expect(socket.bytesRead).toBeGreaterThan(before + 1024 * 1024));
});
