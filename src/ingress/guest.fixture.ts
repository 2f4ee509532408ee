// A guest in real bubblewrap, without a daemon: what comes to its ports is answered by a program inside that listens on the guest's own loopback.
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { leftovers, makeHome, until } from '../../test/daemon.ts';
import { agentCommand, agentEnvironment, ensureAgentBundle } from '../agent/bundle.ts';
import { guestProtocol } from '../contract/guest.ts';
import { homeIdOf } from '../daemon/platform.ts';
import type { Guest } from '../guest/guest.ts';
import { BubblewrapRuntime } from '../runtime/bubblewrap/bubblewrap.ts';
import { openDoor } from '../sandbox/door.ts';

/** Says back all that it heard, once it has heard the end, and how much that was. */
const echoServer = `
import socket, sys, threading
server = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=256)
print("listening", flush=True)
def serve(connection):
    with connection:
        pieces = []
        while True:
            piece = connection.recv(65536)
            if not piece: break
            pieces.append(piece)
        heard = b"".join(pieces)
        connection.sendall(b"%d:" % len(heard) + heard)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
`;

export interface TestGuest {
  guest: Guest;
  /** Starts the echo server on a port of the guest's loopback; resolves when it listens. */
  echo(port: number): Promise<void>;
  /** Removes it and fails when anything of it stays. */
  close(): Promise<void>;
}

export async function startGuest(): Promise<TestGuest> {
  const home = makeHome();
  const runFolder = join(home, 'run', 'ports');
  mkdirSync(runFolder, { recursive: true, mode: 0o755 });
  const boot = { protocol: guestProtocol, sandboxId: 'ports', token: 'a'.repeat(43) };
  writeFileSync(join(runFolder, 'boot.json'), JSON.stringify(boot), { mode: 0o644 });
  const runtime = new BubblewrapRuntime({
    homeId: homeIdOf(home),
    stateRoot: join(home, 'machines'),
    folder: join(home, 'bubblewrap'),
    images: { resolve: async () => ({ kind: 'host' }) },
    agent: {
      folder: await ensureAgentBundle(),
      command: agentCommand(),
      environment: agentEnvironment(),
    },
  });
  const signal = AbortSignal.timeout(60_000);
  const door = await openDoor({ runFolder, token: boot.token, onRefused: () => {} });
  const machine = await runtime.create(
    {
      ...{ id: 'ports', image: 'host', limits: {}, mounts: [], labels: {}, runFolder },
      stateFolder: join(home, 'machines', 'ports'),
    },
    signal,
  );
  const guest = await door.connected(signal);
  return {
    guest,
    async echo(port) {
      const server = await guest.exec({
        ...{ execId: `echo-${port}`, argv: ['python3', '-c', echoServer, String(port)], env: {} },
        stdin: 'none',
      });
      for await (const piece of server.output)
        if (piece.type === 'output' && Buffer.from(piece.bytes).toString().includes('listening')) return;
      throw new Error('the echo server ended');
    },
    async close() {
      await machine.remove(AbortSignal.timeout(60_000));
      await door.close();
      runtime[Symbol.dispose]();
      await until(
        'leftovers',
        () => leftovers(home).filter((it) => !it.startsWith('folder')),
        (left) => left.length === 0,
      );
      rmSync(home, { recursive: true, force: true });
    },
  };
}
