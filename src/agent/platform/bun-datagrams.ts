// Datagrams that ask and are answered, on Bun.
import type { Listener } from './bun-connection.ts';

/** Answers each datagram that comes with what `answer` makes of it, if anything. Rejects with an error with a `code` such as EADDRINUSE. */
export async function listenDatagrams(
  at: { hostname: string; port: number },
  answer: (bytes: Uint8Array) => Promise<Uint8Array | undefined>,
): Promise<Listener> {
  const socket = await Bun.udpSocket({
    ...at,
    binaryType: 'uint8array',
    socket: {
      data: (from, bytes, port, address) => {
        void answer(bytes).then((reply) => {
          if (reply === undefined) return;
          try {
            from.send(reply, port, address);
          } catch {
            // There is no way back to where it came from, as for some IPv6 addresses that a guest makes up. Whoever gets no answer asks again.
          }
        });
      },
      // One that could not be delivered: its sender has gone.
      error: () => {},
    },
  });
  return { close: () => socket.close() };
}
