// glovebox ssh proxy: what ssh starts as its ProxyCommand. An SSH server for one connection, on stdin and stdout, in front of one sandbox. There is no
// sshd in the sandbox, no port and no password: who can start this has the API key already.
import { setTimeout as delay } from 'node:timers/promises';
import type { Sandbox } from '../../../sdk/src/index.ts';
import { connect, homeFolder } from '../connect.ts';
import { usageError } from '../exit-codes.ts';
import { type Channel, type ChannelUser, Connection, OpenRefused, openFailure } from './connection.ts';
import { forward } from './forward.ts';
import { defaultUser, type GuestUser } from './guest-user.ts';
import { hostKeyIn } from './host-key.ts';
import { referenceOf } from './names.ts';
import { Session } from './session.ts';
import { Transport } from './transport.ts';
import type { WireReader } from './wire-data.ts';

/** How long a connection that is over may take to tell its commands so. */
const farewellMs = 6_000;
/** How long the client may take to read that the connection is ended here. */
const disconnectMs = 1_000;

export interface ProxyOptions {
  suffix?: string;
  /** The user wants sandboxes to ask the client's SSH agent, where the client offers it. */
  forwardAgent?: boolean;
}

export async function proxy(host: string, options: ProxyOptions): Promise<void> {
  await using undo = new AsyncDisposableStack();
  const reference = referenceOf(host, options.suffix);
  const hostKey = hostKeyIn(homeFolder());
  // Meanwhile the connection is made: most of what it takes is waiting for the other end.
  const entered = enter(reference, undo);
  let failure: unknown;
  entered.catch((error: unknown) => {
    failure = error;
  });
  let guest: GuestUser | undefined;
  const sessions = new Set<Session>();
  const opening = async (type: string, details: WireReader, channel: Channel): Promise<ChannelUser> => {
    if (guest === undefined) throw new OpenRefused(openFailure.prohibited, 'not before authentication');
    if (type === 'direct-tcpip') return await forward(guest.sandbox, details, channel);
    if (type === 'direct-streamlocal@openssh.com')
      throw new OpenRefused(openFailure.prohibited, 'sockets with names are not forwarded');
    if (type !== 'session') throw new OpenRefused(openFailure.unknownType, `no channels of type ${type}`);
    const session = new Session(channel, guest, {
      ...(options.forwardAgent ? { openAgent: () => connection.ask('auth-agent@openssh.com') } : {}),
    });
    sessions.add(session);
    return session;
  };
  const connection = new Connection((packet) => transport.send(packet), opening);
  const transport = new Transport({
    hostKey,
    onPacket: (packet) => connection.take(packet),
    admit: async (user) => {
      const sandbox = await entered;
      guest = { sandbox, user: userIn(user) };
    },
  });
  const signalled = Promise.withResolvers<void>();
  undo.use(
    untilSignalled(() => {
      const told = transport.disconnect('the connection was ended here');
      signalled.resolve(Promise.race([told, delay(disconnectMs)]));
    }),
  );
  try {
    // Also in the middle of a handshake, where the client may keep silent as long as it likes.
    await Promise.race([transport.open().then(() => transport.ended), signalled.promise]);
  } catch (error) {
    // A client that leaves in the middle of it, as those do that only look for a key, has nothing to be told.
    failure ??= new Error('the client has left', { cause: error });
  }
  connection.end();
  await Promise.race([
    Promise.all([...sessions].map((session) => session.finished())),
    delay(farewellMs, undefined, { ref: false }),
  ]);
  if (failure !== undefined) throw failure;
}

/** The sandbox, running, and held as long as this connection is there. */
async function enter(reference: string, undo: AsyncDisposableStack): Promise<Sandbox> {
  const client = await connect();
  const { id, state } = await client.find(reference);
  const sandbox = client.handle(id);
  undo.use(await sandbox.hold());
  if (state !== 'Running') await sandbox.wake();
  return sandbox;
}

function userIn(user: string): string | undefined {
  if (user === '' || user === defaultUser) return undefined;
  if (!/^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$/.test(user)) throw usageError('ssh: this is no name of a user');
  return user;
}

/** Ctrl-C is for the command at the other end, or for ssh, whose end we see. */
function untilSignalled(end: () => void): Disposable {
  const ignore = () => {};
  process.on('SIGINT', ignore);
  for (const name of ['SIGHUP', 'SIGTERM'] as const) process.on(name, end);
  return {
    [Symbol.dispose]() {
      process.off('SIGINT', ignore);
      for (const name of ['SIGHUP', 'SIGTERM'] as const) process.off(name, end);
    },
  };
}
