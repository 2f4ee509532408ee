// A command at the bare connection of a client, as Docker does it: with a terminal the bytes as they are, without one in frames that say which stream they are of.
import type { Socket } from 'node:net';
import type { Execution } from '../../sandbox/sandbox.ts';
import type { SandboxdCall } from './server.ts';

const lanes = { stdout: 1, stderr: 2 } as const;

/** Resolves when the command or the client has gone. A client that goes leaves the command running, with its input at an end; a terminal has no end of input. */
export async function attachCommand(
  { bare, response, signal }: SandboxdCall,
  execution: Execution,
  { tty }: { tty: boolean },
): Promise<void> {
  const { socket, head } = bare as { socket: Socket; head: Buffer };
  response.detachSocket(socket);
  socket.write(
    `HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nSandboxes-Exec-Id: ${execution.info.id}\r\n\r\n`,
  );
  const input = takeInput(socket, head, execution);
  try {
    for await (const piece of execution.read(0, { follow: true }, signal)) {
      if (piece.type === 'gap') continue;
      const bytes = Buffer.from(piece.bytes);
      const written = tty
        ? socket.write(bytes)
        : socket.write(Buffer.concat([frameHead(piece.lane, bytes.length), bytes]));
      if (!written) await drained(socket, signal);
    }
    await execution.exit;
  } catch {
    // The client has gone.
  }
  socket.end();
  socket.destroySoon();
  await input;
}

async function takeInput(socket: Socket, head: Buffer, execution: Execution): Promise<void> {
  try {
    if (head.length > 0) await execution.write(head);
    for await (const piece of socket as AsyncIterable<Buffer>) await execution.write(piece);
  } catch {
    // The client has gone, and had not read everything.
  }
  execution.end();
}

function frameHead(lane: keyof typeof lanes, length: number): Buffer {
  const head = Buffer.alloc(8);
  head[0] = lanes[lane];
  head.writeUInt32BE(length, 4);
  return head;
}

function drained(socket: Socket, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const goOn = () => {
      socket.off('drain', goOn).off('close', goOn);
      signal.removeEventListener('abort', goOn);
      resolve();
    };
    socket.on('drain', goOn).on('close', goOn);
    signal.addEventListener('abort', goOn);
  });
}
