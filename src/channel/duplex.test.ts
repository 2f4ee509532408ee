import { once } from 'node:events';
import { createServer, request } from 'node:http';
import type { Duplex } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { expect, test } from 'vitest';
import type { Stream } from './channel.ts';
import { streamDuplex } from './duplex.ts';
import { Collected, World } from './faults.ts';

async function pair(): Promise<{
  world: World;
  near: Duplex;
  far: Duplex;
  stream: Stream;
  farStream: Stream;
}> {
  const world = new World();
  world.dial();
  await world.connected();
  let farStream: Stream | undefined;
  let far: Duplex | undefined;
  world.agent.onStream = (it) => {
    farStream = it;
    far = streamDuplex(it, { lane: 1 });
  };
  const stream = world.daemon.open();
  const near = streamDuplex(stream, { lane: 1 });
  await world.settled();
  return { world, near, far: far as Duplex, stream, farStream: farStream as Stream };
}

async function text(duplex: Duplex): Promise<string> {
  let all = '';
  for await (const chunk of duplex) all += chunk;
  return all;
}

test('bytes, half-close and end pass both ways, and the stream is gone afterwards', async () => {
  const { near, far, world } = await pair();
  near.end('question');
  expect(await text(far)).toBe('question');
  far.write('ans');
  far.end('wer');
  expect(await text(near)).toBe('answer');
  await world.settled();
  expect([near.destroyed, far.destroyed]).toEqual([true, true]);
});

test('a reader that does not read stops the writer', async () => {
  const { near, far, world } = await pair();
  let written = 0;
  const chunk = Buffer.alloc(10_000, 7);
  const writing = (async () => {
    for (let n = 0; n < 500; n++) {
      if (!near.write(chunk)) await once(near, 'drain');
      written += chunk.length;
    }
    near.end();
  })();
  await world.settled();
  expect(written).toBeLessThan(600_000);
  let read = 0;
  for await (const piece of far) read += piece.length;
  await writing;
  expect([written, read]).toEqual([5_000_000, 5_000_000]);
});

test('destroy resets the other end, with the reason', async () => {
  const { near, far } = await pair();
  far.on('error', () => {});
  near.on('error', () => {});
  const failed = once(far, 'error');
  near.destroy(new Error('the client went away'));
  const [error] = await failed;
  expect(error).toMatchObject({ code: 'lost', message: 'the connection was reset: the client went away' });
});

test('a write that waits fails when the stream is reset', async () => {
  const { near, farStream, world } = await pair();
  const failed = once(near, 'error');
  const waiting = pipeline(async function* () {
    for (;;) yield Buffer.alloc(50_000);
  }, near);
  await world.settled();
  farStream.reset({ code: 'gone', message: 'gone' });
  await expect(waiting).rejects.toMatchObject({ code: 'lost' });
  await failed;
});

test('other lanes go to their own handler, or nowhere', async () => {
  const world = new World();
  world.dial();
  await world.connected();
  world.agent.onStream = (it) => {
    for (let n = 0; n < 10; n++) it.write(0, Buffer.from('m'));
    it.write(1, Buffer.from('data'));
    it.end();
  };
  const stream = world.daemon.open();
  let other = 0;
  const near = streamDuplex(stream, {
    lane: 1,
    onOtherLane: (_lane, bytes) => {
      other += bytes.length;
      stream.consumed(bytes.length);
    },
  });
  expect(await text(near)).toBe('data');
  expect(other).toBe(10);
});

test('HTTP goes through', async () => {
  const server = createServer((incoming, answer) => {
    incoming.resume();
    incoming.on('end', () => answer.end(`hello from ${incoming.url}`));
  });
  const { near, far } = await pair();
  server.emit('connection', far);
  const asked = request({ path: '/here', method: 'POST', createConnection: () => near });
  asked.end('body'.repeat(10_000));
  const [answer] = await once(asked, 'response');
  expect(await text(answer)).toBe('hello from /here');
  near.destroy();
  far.destroy();
});

test('a stream that is read as plain collects what a duplex writes', async () => {
  const { near, farStream, world } = await pair();
  const got = new Collected(farStream);
  near.end('plain');
  await world.settled();
  expect([got.text(1), got.ended]).toEqual(['plain', 1]);
});
