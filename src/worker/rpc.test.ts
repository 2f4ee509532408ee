// Requests over the link: messages and bytes on one stream, whole and in order, and what a hostile other end cannot do.
import { expect, test, vi } from 'vitest';
import type { Channel, EndReason } from '../channel/channel.ts';
import { Pattern, World } from '../channel/faults.ts';
import { encodeMessage } from '../channel/messages.ts';
import { ask, type Call, linkMessageBytesMax, takeCalls } from './rpc.ts';

/** Two ends of a channel; what one opens comes to the other's list. */
async function linked() {
  const calls: Call[] = [];
  const world = new World({
    onDaemon: (channel) => takeCalls(channel, (call) => calls.push(call)),
  });
  world.dial();
  await world.connected();
  return { world, calls, asking: world.agent as Channel };
}

test('a request and its replies, each as it was said', async () => {
  const { world, calls, asking } = await linked();
  const call = ask(asking, { op: 'greet', name: 'Ada' });
  const heard: unknown[] = [];
  call.onMessage = (message) => heard.push(message);
  await world.settled();
  expect(calls[0]?.request).toEqual({ op: 'greet', name: 'Ada' });
  calls[0]?.reply({ type: 'one' });
  calls[0]?.reply({ type: 'two', text: 'x'.repeat(300_000) });
  await world.settled();
  expect(heard).toEqual([{ type: 'one' }, { type: 'two', text: 'x'.repeat(300_000) }]);
});

test('what comes before anybody listens is kept', async () => {
  const { world, calls, asking } = await linked();
  const call = ask(asking, 'hello');
  call.reply('more');
  call.write(Buffer.from('bytes'));
  call.reply('and more');
  call.end();
  await world.settled();
  const there = calls[0] as Call;
  const heard: unknown[] = [];
  there.onMessage = (message) => heard.push(message);
  expect(heard).toEqual(['more', 'and more']);
  const bytes: string[] = [];
  there.onBytes = (it) => bytes.push(String(Buffer.from(it)));
  const ended = vi.fn();
  there.onEnd = ended;
  expect(bytes).toEqual(['bytes']);
  expect(ended).toHaveBeenCalledTimes(1);
});

test('bytes both ways at their readers’ pace, ended apart, beside messages', async () => {
  const { world, calls, asking } = await linked();
  const call = ask(asking, 'copy');
  const pattern = new Pattern(7);
  const size = 1_000_000;
  async function* source() {
    for (let at = 0; at < size; at += 100_000) yield pattern.bytes(at, 100_000);
  }
  const sending = call.writeAll(source()).then(() => call.end());
  await world.settled();
  const there = (calls[0] as Call).bytes();
  let seen = 0;
  there.on('data', (bytes: Uint8Array) => {
    expect(pattern.differsAt(seen, bytes)).toBe(-1);
    seen += bytes.length;
  });
  const ended = vi.fn();
  there.on('end', ended);
  await sending;
  await vi.waitFor(() => expect(ended).toHaveBeenCalled());
  expect(seen).toBe(size);
  const heard: unknown[] = [];
  call.onMessage = (message) => heard.push(message);
  calls[0]?.reply('still here');
  const back: Uint8Array[] = [];
  call.onBytes = (bytes) => {
    back.push(bytes);
    call.consumed(bytes.length);
  };
  const over = vi.fn();
  call.onEnd = over;
  there.end('the answer');
  await vi.waitFor(() => expect(over).toHaveBeenCalled());
  expect(heard).toEqual(['still here']);
  expect(String(Buffer.concat(back))).toBe('the answer');
});

test('who reads the input of a request gets it until it is said to be over, and a reader that stops holds nobody up', async () => {
  const { world, calls, asking } = await linked();
  const call = ask(asking, 'load');
  async function* source() {
    for (let at = 0; at < 40; at++) yield new Uint8Array(64 * 1024);
  }
  const sending = call.writeAll(source());
  await world.settled();
  const there = calls[0] as Call;
  const { source: input, stop } = there.input();
  there.onMessage = (message) => message === 'end' && stop();
  let taken = 0;
  for await (const bytes of input) {
    taken += bytes.length;
    if (taken > 500_000) break;
  }
  await sending;
  call.reply('end');
  call.end();
  await world.settled();
  expect(taken).toBeGreaterThan(500_000);
});

test('the reset of one end and the end of the channel reach the other, and whoever waits', async () => {
  const { world, calls, asking } = await linked();
  const [first, second] = [ask(asking, 1), ask(asking, 2)];
  await world.settled();
  first.reset({ code: 'aborted', message: 'no longer wanted' });
  await world.settled();
  expect(calls[0]?.signal.aborted).toBe(true);
  expect(calls[0]?.goneReason).toMatchObject({ code: 'aborted' });
  const reading = (async () => {
    for await (const _ of (calls[1] as Call).input().source);
  })().catch((thrown) => thrown);
  world.daemon.close({ code: 'closed', message: 'that is all' });
  expect(await reading).toMatchObject({ code: 'lost' });
  await world.settled();
  expect(second.signal.aborted).toBe(true);
});

const unsound: [string, (channel: Channel) => void][] = [
  ['bytes before a request', (channel) => channel.open().write(1, Buffer.from('x'))],
  ['an end before a request', (channel) => channel.open().end()],
  [
    'a request longer than 1 MiB',
    (channel) => channel.open().write(0, encodeMessage('x'.repeat(linkMessageBytesMax))),
  ],
  ['what is not JSON', (channel) => channel.open().write(0, Buffer.from([0, 0, 0, 1, 0x7b]))],
];
test.each(unsound)('%s costs the stream and nothing else', async (_, say) => {
  const { world, calls, asking } = await linked();
  const resets: EndReason[] = [];
  const { open } = asking;
  asking.open = () => {
    const stream = open.call(asking);
    stream.onReset = (reason) => resets.push(reason);
    return stream;
  };
  say(asking);
  await world.settled();
  expect(resets).toMatchObject([{ code: 'protocol' }]);
  expect(calls).toEqual([]);
  ask(asking, 'still here');
  await world.settled();
  expect(calls[0]?.request).toBe('still here');
});

test('a request that is too long is refused before it is sent', async () => {
  const { asking } = await linked();
  expect(() => ask(asking, 'x'.repeat(linkMessageBytesMax + 1))).toThrow(/the most is/);
});
