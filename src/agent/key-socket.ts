// The socket of a forwarded SSH agent, in a sandbox: a program of its own, run as the user of an SSH session. It understands nothing of what it
// carries: which requests pass is decided outside, where a guest cannot reach. Ends with its stdin, or when nobody is heard there, and takes its socket along.
import { mkdtempSync, rmSync, writeSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { KeyFrameReader, keyConnectionsMax, keyFrames, keySilenceMs } from '../contract/key-socket.ts';

/** The first place of these that takes a folder, which is its owner's alone. */
function makeFolder(): string {
  const reasons: string[] = [];
  for (const place of ['/tmp', '/var/tmp', process.env.HOME ?? '/', '/dev/shm']) {
    try {
      return mkdtempSync(join(place, 'ssh-'));
    } catch (thrown) {
      reasons.push((thrown as Error).message);
    }
  }
  writeSync(2, `there is no place for its socket: ${reasons[0]}\n`);
  process.exit(1);
}

function say(connection: number, bytes: Uint8Array): Promise<void> {
  return new Promise((resolve) => process.stdout.write(keyFrames(connection, bytes), () => resolve()));
}

function serve(folder: string): void {
  const path = join(folder, 'agent.sock');
  const sockets = new Map<number, Socket>();
  let lastConnection = 0;
  const leave = (code: number): never => {
    rmSync(folder, { recursive: true, force: true });
    process.exit(code);
  };

  const server = createServer((socket) => {
    socket.on('error', () => {});
    if (sockets.size >= keyConnectionsMax) return void socket.destroy();
    lastConnection = (lastConnection % 0xffff_ffff) + 1;
    const connection = lastConnection;
    sockets.set(connection, socket);
    socket.on('data', async (bytes) => {
      socket.pause();
      await say(connection, bytes as Buffer);
      socket.resume();
    });
    socket.on('close', () => {
      sockets.delete(connection);
      void say(connection, Buffer.alloc(0));
    });
  });
  server.on('error', (error) => {
    writeSync(2, `${error.message}\n`);
    leave(1);
  });
  server.listen(path, () => void say(0, Buffer.from(path)));

  const silence = setTimeout(() => leave(0), keySilenceMs);
  const frames = new KeyFrameReader();
  process.stdin.on('data', (data) => {
    silence.refresh();
    for (const { connection, bytes } of frames.push(data as Buffer)) {
      const socket = sockets.get(connection);
      if (bytes.length > 0) socket?.write(bytes);
      else socket?.end(() => socket.destroy());
    }
  });
  for (const name of ['end', 'error'] as const) process.stdin.on(name, () => leave(0));
  process.stdout.on('error', () => leave(0));
  for (const name of ['SIGHUP', 'SIGINT', 'SIGTERM'] as const) process.on(name, () => leave(0));
}

serve(makeFolder());
