// SandD's daemons as workers: who may connect, which connection counts for an id, and what is known of each.
//
//   connected ──register within 10 s──▶ online ──connection over, or silent──▶ offline ──registers again──▶ online
//
// The newest connection that registers has the id; whatever becomes of an older one changes nothing. They have no keys, so an id is worth no more than who may connect.
import { rm } from 'node:fs/promises';
import type { IncomingMessage } from 'node:http';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { type WebSocket, WebSocketServer } from 'ws';
import type { Clock } from '../../channel/clock.ts';
import type { WorkerInfo } from '../../contract/worker.ts';
import { Failure } from '../../lib/failure.ts';
import type { Log } from '../../lib/log.ts';
import { callerOf, Throttle } from '../throttle.ts';
import { SanddConnection } from './connection.ts';
import { SanddGuest } from './guest.ts';
import { SanddPlace, type SanddPlaceOptions } from './place.ts';
import { isTokenOf, readTokenHashes, tokenOf } from './token.ts';
import { frameBytesMax, type Registration, sanddProtocol } from './wire.ts';

const daemonsMax = 10_000;
/** Connections that have not registered. */
const strangersMax = 256;
const registerWithinMs = 10_000;
const reapEveryMs = 5_000;
const silentAfterMs = 30_000;
/** An hour after it was last seen, a daemon is forgotten: most have ids that were made up at their start. */
const forgottenAfterMs = 3_600_000;
/** Connections that take the id of another which is still there: so many in a minute are two daemons with one id. */
const takeOversMax = 3;
const takeOversWithinMs = 60_000;
/** Beyond this the kernel asks whether the other machine is still there, which a daemon busy with a command does not say by itself. */
const keepAliveAfterMs = 15_000;

export type SanddAccess = { mode: 'insecure' } | { mode: 'token'; tokenFile: string };

export interface SanddDaemonsOptions {
  access: SanddAccess;
  /** Has a folder for each daemon. */
  folder: string;
  store: SanddPlaceOptions['store'];
  clock: Clock;
  now: () => Date;
  log: Log;
  /** Ids that belong to workers with keys. */
  isTaken: (id: string) => boolean;
  onOnline?: (id: string) => void;
}

interface Entry {
  registration: Registration;
  address: string;
  place: SanddPlace;
  connection: SanddConnection | undefined;
  guest: SanddGuest | undefined;
  filesProven: boolean;
  epoch: number;
  connectedAt: Date | undefined;
  connectedAtMs: number;
  lastSeenAt: Date;
  lastSeenAtMs: number;
  takeOversAt: number[];
  /** Looks of the reaper that found it silent, one after the other. */
  silentLooks: number;
}

export class SanddDaemons {
  readonly #options: SanddDaemonsOptions;
  readonly #entries = new Map<string, Entry>();
  readonly #connections = new Map<SanddConnection, { id?: string; address: string }>();
  readonly #failed: Throttle;
  readonly #sockets = new WebSocketServer({
    noServer: true,
    perMessageDeflate: false,
    maxPayload: frameBytesMax,
    handleProtocols: () => sanddProtocol,
  });
  #cancelReaper: () => void;
  #closed = false;

  constructor(options: SanddDaemonsOptions) {
    this.#options = options;
    const { clock, access, log } = options;
    this.#failed = new Throttle({ burst: 30, perSecond: 1, monotonicMs: () => clock.now() });
    this.#cancelReaper = clock.setTimer(reapEveryMs, () => this.#reap());
    if (access.mode === 'insecure')
      log.warn(
        {},
        'SandD daemons are let in without any token: whoever reaches this port can be any of them, and is sent the commands that are meant for it',
      );
  }

  /** Failure('unauthenticated') says nothing of what is wrong, Failure('exhausted') has `details.retryAfterMs`, Failure('unavailable') when the tokens cannot be read. */
  async authorize(request: IncomingMessage): Promise<void> {
    const { access, log } = this.#options;
    if (this.#closed) throw new Failure('unavailable', 'the controller stops');
    const address = request.socket.remoteAddress ?? '';
    const caller = callerOf(address);
    refuseFor(this.#failed.waitMs(caller), 'too many connections from this address were refused');
    const strangers = this.#connections.size - [...this.#connections.values()].filter((it) => it.id).length;
    if (strangers >= strangersMax) refuseFor(5_000, 'too many daemons connect at the same moment');
    if (access.mode === 'insecure') return;
    const hashes = await readTokenHashes(access.tokenFile).catch((error) => {
      log.error(
        { file: access.tokenFile, error: String(error) },
        'the tokens of SandD daemons cannot be read',
      );
      throw new Failure('unavailable', 'the tokens of SandD daemons cannot be read now');
    });
    if (isTokenOf(tokenOf(request), hashes)) return;
    this.#failed.take(caller);
    log.warn({ address }, 'a SandD daemon was not let in');
    throw new Failure('unauthenticated', 'this is no token of a SandD daemon', {
      hint: 'Give the daemon --server-url wss://HOST:PORT/ws?token=TOKEN.',
    });
  }

  /** Answers the handshake of who was authorized, and takes the connection over. */
  accept(request: IncomingMessage, socket: Duplex, head: Buffer): void {
    const address = request.socket.remoteAddress ?? '';
    (socket as Partial<Socket>).setKeepAlive?.(true, keepAliveAfterMs);
    this.#sockets.handleUpgrade(request, socket, head, (it) => this.#take(it, address));
  }

  #take(socket: WebSocket, address: string): void {
    const { clock, log } = this.#options;
    if (this.#closed) return socket.close(1012, 'the controller stops');
    const about: { id?: string; address: string } = { address };
    const connection: SanddConnection = new SanddConnection({
      ...{ socket, clock },
      onRegister: (registration) => this.#register(connection, about, registration),
      onOddity: (what) => log.warn({ worker: about.id, address, what }, 'a SandD daemon behaves oddly'),
    });
    this.#connections.set(connection, about);
    const cancel = clock.setTimer(registerWithinMs, () => {
      if (!connection.registered)
        connection.close(`no registration within ${registerWithinMs / 1000} seconds`);
    });
    void connection.ended.then((why) => {
      cancel();
      this.#connections.delete(connection);
      this.#ended(connection, about, why);
    });
  }

  #register(
    connection: SanddConnection,
    about: { id?: string; address: string },
    registration: Registration,
  ): void {
    const { log, clock, now } = this.#options;
    const { daemon_id: id } = registration;
    const known = this.#entries.get(id);
    const refusal = this.#refusal(connection, about, id, known);
    if (refusal !== undefined) {
      log.warn({ worker: id, address: about.address, why: refusal }, 'a SandD daemon was not registered');
      connection.say({ type: 'register_ack', success: false, message: refusal });
      return connection.close(refusal);
    }
    about.id = id;
    connection.registered = true;
    const entry = known ?? this.#enter(id, registration, about.address);
    const older = entry.connection;
    const again = older === connection;
    Object.assign(entry, { registration, address: about.address });
    if (!again) {
      const guest = new SanddGuest({
        ...{ daemonId: id, connection, clock },
        onFilesProven: () => {
          entry.filesProven = true;
        },
      });
      Object.assign(entry, { connection, guest, connectedAt: now(), connectedAtMs: clock.now() });
      Object.assign(entry, { epoch: entry.epoch + 1, silentLooks: 0, filesProven: false });
      if (older !== undefined) {
        log.warn(
          { worker: id, address: about.address },
          'another connection has taken over as this SandD daemon',
        );
        older.close(`another connection has registered as ${id}`);
      }
    }
    connection.say({ type: 'register_ack', success: true, message: `registered as ${id}` });
    if (again) return;
    log.info({ worker: id, address: about.address }, 'a SandD daemon has registered');
    void entry.place
      .adopt(AbortSignal.timeout(60_000))
      .catch((error) => log.warn({ worker: id, error: String(error) }, 'old commands cannot be looked at'));
    this.#options.onOnline?.(id);
  }

  /** Why it may not, in words for the daemon's log. */
  #refusal(
    connection: SanddConnection,
    about: { id?: string },
    id: string,
    known: Entry | undefined,
  ): string | undefined {
    if (about.id !== undefined && about.id !== id) return `this connection has registered as ${about.id}`;
    if (this.#options.isTaken(id))
      return `${id} is a worker with a key of its own; choose another --daemon-id`;
    if (known === undefined)
      return this.#entries.size < daemonsMax || this.#makeRoom()
        ? undefined
        : `there are ${daemonsMax} daemons, which is the most`;
    if (known.connection === undefined || known.connection === connection) return undefined;
    const nowMs = this.#options.clock.now();
    known.takeOversAt = known.takeOversAt.filter((it) => it > nowMs - takeOversWithinMs);
    if (known.takeOversAt.length >= takeOversMax)
      return `daemons replace each other as ${id}; another one is connected. Give each an id of its own`;
    known.takeOversAt.push(nowMs);
    return undefined;
  }

  #enter(id: string, registration: Registration, address: string): Entry {
    const { folder, store, log, now, clock } = this.#options;
    const entry: Entry = {
      ...{ registration, address, connection: undefined, guest: undefined, filesProven: false },
      ...{ epoch: 0, connectedAt: undefined, connectedAtMs: 0, takeOversAt: [], silentLooks: 0 },
      ...{ lastSeenAt: now(), lastSeenAtMs: clock.now() },
      place: new SanddPlace({
        ...{ daemonId: id, folder: join(folder, id), store, log, now },
        guest: () => entry.guest,
      }),
    };
    this.#entries.set(id, entry);
    return entry;
  }

  #makeRoom(): boolean {
    const [oldest] = [...this.#entries]
      .filter(([, it]) => it.connection === undefined)
      .sort(([, a], [, b]) => a.lastSeenAtMs - b.lastSeenAtMs);
    if (oldest === undefined) return false;
    this.#forget(oldest[0]);
    return true;
  }

  #ended(connection: SanddConnection, { id, address }: { id?: string; address: string }, why: string): void {
    const { log, now, clock } = this.#options;
    log.info({ worker: id, address, why }, 'a connection of a SandD daemon has ended');
    const entry = id === undefined ? undefined : this.#entries.get(id);
    if (entry?.connection !== connection) return;
    Object.assign(entry, { connection: undefined, guest: undefined, connectedAt: undefined });
    Object.assign(entry, { lastSeenAt: now(), lastSeenAtMs: clock.now() });
  }

  #reap(): void {
    const { clock } = this.#options;
    const nowMs = clock.now();
    for (const [id, entry] of [...this.#entries]) {
      const { connection } = entry;
      if (connection === undefined) {
        if (nowMs - entry.lastSeenAtMs > forgottenAfterMs) this.#forget(id);
      } else if (connection.busy || nowMs - connection.heardAt <= silentAfterMs) entry.silentLooks = 0;
      else {
        // The first look may come before what has been waiting to be read, where this process was the one that stood still.
        entry.silentLooks += 1;
        if (entry.silentLooks > 1)
          connection.drop(`the daemon has said nothing for ${silentAfterMs / 1000} seconds`);
      }
    }
    this.#cancelReaper = clock.setTimer(reapEveryMs, () => this.#reap());
  }

  #forget(id: string): void {
    const { folder, log } = this.#options;
    const entry = this.#entries.get(id);
    this.#entries.delete(id);
    entry?.place
      .remove()
      .then(() => rm(join(folder, id), { recursive: true, force: true }))
      .catch((error) =>
        log.warn({ worker: id, error: String(error) }, 'not all of a SandD daemon is forgotten'),
      );
  }

  // ---- what is known

  has(id: string): boolean {
    return this.#entries.has(id);
  }

  infos(): WorkerInfo[] {
    return [...this.#entries.keys()].map((id) => this.info(id));
  }

  /** Failure('not-found'). */
  info(id: string): WorkerInfo {
    const { registration, address, connection, epoch, connectedAt, filesProven, ...entry } = this.#entry(id);
    const { hostname, platform, arch, version, labels } = registration.metadata;
    return {
      ...{ id, labels, state: connection === undefined ? 'offline' : 'online', protocol: 'sandd' },
      capabilities: ['exec', 'pty', ...(filesProven ? (['files'] as const) : [])],
      ...{ runtimes: [], hostname, platform, arch, version, address, epoch },
      ...(connectedAt === undefined ? {} : { connectedAt: connectedAt.toISOString() }),
      lastSeenAt: (connection === undefined ? entry.lastSeenAt : this.#options.now()).toISOString(),
      ...{ schedulable: false, sandboxes: 0 },
    };
  }

  /** Failure('not-found'). */
  place(id: string): SanddPlace {
    return this.#entry(id).place;
  }

  /** Of those that are connected: what their platforms are, in few words, and for how long. */
  online(): { platform: string; connectedMs: number }[] {
    const nowMs = this.#options.clock.now();
    return [...this.#entries.values()]
      .filter((it) => it.connection !== undefined)
      .map(({ registration, connectedAtMs }) => {
        const { platform } = registration.metadata;
        return {
          platform: /^[a-z0-9]{1,16}$/.test(platform) ? platform : 'other',
          connectedMs: nowMs - connectedAtMs,
        };
      });
  }

  /** Its connection is closed; nothing keeps the daemon from coming back. Failure('not-found'). */
  remove(id: string, why = 'removed from this controller'): void {
    const { connection } = this.#entry(id);
    this.#forget(id);
    connection?.close(why);
  }

  close(): void {
    this.#closed = true;
    this.#cancelReaper();
    for (const connection of [...this.#connections.keys()]) connection.close('the controller stops');
  }

  #entry(id: string): Entry {
    const entry = this.#entries.get(id);
    if (entry !== undefined) return entry;
    throw new Failure('not-found', `there is no SandD daemon ${JSON.stringify(id.slice(0, 100))}`);
  }
}

function refuseFor(retryAfterMs: number, why: string): void {
  if (retryAfterMs > 0) throw new Failure('exhausted', why, { details: { retryAfterMs } });
}
