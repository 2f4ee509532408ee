// The door over its real socket: which connections it hands to whom, and that nothing stays open behind it.
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { channelProtocol, frameType, headerBytes, writeHeader } from '../channel/frame.ts';
import { encodeJson } from '../channel/handshake.ts';
import { type AgentDoor, openDoor } from './door.ts';

const token = 'the token';
let folder: string;
let door: AgentDoor;
const dialled: Socket[] = [];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'glovebox-door-'));
});
afterEach(async () => {
  for (const socket of dialled.splice(0)) socket.destroy();
  await door.close();
  rmSync(folder, { recursive: true });
});

async function open(onEgress?: (socket: Socket) => void): Promise<string[]> {
  const refused: string[] = [];
  door = await openDoor({
    ...{ runFolder: folder, token, onRefused: (reason) => refused.push(reason.code) },
    ...(onEgress && { onEgress }),
  });
  return refused;
}

/** Dials in and says a bulk hello with bytes behind it, in one piece. */
async function dial(bulk: string, behind: string, as = token): Promise<Socket> {
  const payload = encodeJson({ v: [channelProtocol.min, channelProtocol.max], token: as, bulk });
  const head = new Uint8Array(headerBytes);
  const length = payload.length;
  writeHeader(head, 0, { type: frameType.hello, flags: 0, lane: 0, stream: 0, length, offset: 0 });
  const socket = connect({ path: join(folder, 'agent.sock'), allowHalfOpen: true });
  socket.on('error', () => {});
  dialled.push(socket);
  await once(socket, 'connect');
  socket.write(Buffer.concat([head, payload, Buffer.from(behind)]));
  return socket;
}

/** Ended or broken off by the other side. */
function ended(socket: Socket): Promise<void> {
  return new Promise((resolve) => {
    socket
      .once('end', () => resolve())
      .once('close', () => resolve())
      .resume();
  });
}

test('a connection to the world is handed over paused, whole, and its two directions end apart', async () => {
  const came = Promise.withResolvers<Socket>();
  await open(came.resolve);
  const guest = await dial('egress', '{"kind":"proxy"}\nfirst ');
  const ours = await came.promise;
  expect(ours.isPaused()).toBe(true);
  guest.end('and last');
  let text = '';
  for await (const piece of ours) text += piece;
  expect(text).toBe('{"kind":"proxy"}\nfirst and last');
  expect(ours.writable).toBe(true);
  ours.end('the answer, after the question has ended');
  let answer = '';
  for await (const piece of guest) answer += piece;
  expect(answer).toBe('the answer, after the question has ended');
});

test('who does not know the token gets no way out, nor does anybody where there is none', async () => {
  const came: Socket[] = [];
  const refused = await open((socket) => came.push(socket));
  await ended(await dial('egress', 'x', 'a guess'));
  expect([came.length, refused]).toEqual([0, ['unauthenticated']]);
  await door.close();
  await open();
  await ended(await dial('egress', 'x'));
});

test('500 connections in one moment are all taken', async () => {
  let count = 0;
  const all = Promise.withResolvers<void>();
  await open((socket) => {
    socket.resume();
    if (++count === 500) all.resolve();
  });
  await Promise.all(Array.from({ length: 500 }, () => dial('egress', '{}\n')));
  await all.promise;
});

test('the end of the door ends what it has handed over', async () => {
  const came = Promise.withResolvers<Socket>();
  await open(came.resolve);
  const guest = await dial('egress', 'x');
  const ours = await came.promise;
  const over = ended(guest);
  await door.leave();
  expect(ours.destroyed).toBe(true);
  await over;
});
