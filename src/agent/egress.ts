// The guest's end of the way out: listens where programs look for a proxy and for names, catches connections to every address, and hands each one to the
// daemon on a connection of its own. Decides nothing and looks into nothing.
// Part of what an idle agent consists of, so it uses nothing that costs memory before the first connection: no files, no foreign calls.
import type { AgentBoot, GuestRequest } from '../contract/guest.ts';
import { egressBulkId, proxyPort, socksPort } from '../contract/guest-wire.ts';
import { bulkHello } from './bulk-hello.ts';
import type { Call } from './call.ts';
import { NameAsker } from './name-asker.ts';
import { NameService } from './name-service.ts';
import { NameStream } from './name-stream.ts';
import { Names } from './names.ts';
import { type Accepted, connect, type Listener, listen } from './platform/bun-connection.ts';
import { listenDatagrams } from './platform/bun-datagrams.ts';
import type { Connection } from './platform/platform.ts';
import { ConnectionSink, pour } from './pump.ts';
import { errnoOf, Refusal } from './refusal.ts';
import type { Shrinking } from './shrinking.ts';

const namePort = 53;
const proxyPorts: readonly number[] = [proxyPort, socksPort];
const portsMax = 1_024;
/** Of the whole guest; further ones are broken off. */
const connectionsMax = 1_024;
const nameStreamsMax = 64;
const connectWithinMs = 10_000;
/** The daemon has not taken up those before: a moment later it has. */
const busyPauseMs = 10;

/** What is said of a connection, in the line before its bytes; `src/egress` reads it. */
type Intent =
  | { kind: 'proxy'; client: number }
  | { kind: 'caught'; client: number; address: string; port: number; name?: string }
  | { kind: 'names' };

type Wanted = Extract<GuestRequest, { op: 'egress' }>;

interface Served {
  /** Any address, or loopback alone. */
  wide: boolean;
  listeners: Listener[];
}

export class Egress {
  readonly #socketPath: string;
  readonly #hello: Uint8Array;
  readonly #names = new Names();
  readonly #nameService: NameService;
  readonly #served = new Map<number, Served>();
  #datagrams: Listener | undefined;
  #open = 0;
  #nameStreams = 0;
  readonly #shrinking: Shrinking;
  /** One configuration after the other. */
  #configuring: Promise<unknown> = Promise.resolve();

  constructor({
    boot,
    socketPath,
    shrinking,
  }: { boot: AgentBoot; socketPath: string; shrinking: Shrinking }) {
    this.#shrinking = shrinking;
    this.#socketPath = socketPath;
    this.#hello = bulkHello(boot.token, egressBulkId);
    const asker = new NameAsker(() => this.#dial({ kind: 'names' }));
    this.#nameService = new NameService({ names: this.#names, ask: (name) => asker.ask(name) });
  }

  /** Serves from now on what is wanted; answers when all of it listens. */
  configure(call: Call, wanted: Wanted): void {
    const configured = this.#configuring.then(() => this.#configure(wanted));
    this.#configuring = configured.then(
      () => this.#shrinkSoon(),
      () => {},
    );
    configured.then(
      (count) => {
        call.reply({ type: 'done', count });
        call.end();
      },
      (thrown) => call.fail(thrown, 'egress'),
    );
  }

  /** Resolves with the number of ports that somebody else has. */
  async #configure({ capture, ports }: Wanted): Promise<number> {
    if (ports.length > portsMax || !ports.every((it) => Number.isInteger(it) && it >= 1 && it <= 65_535))
      throw new Refusal('invalid', `ports: at most ${portsMax} numbers from 1 to 65535`);
    const caught = new Set(capture ? ports : []);
    // Names are asked for at any address, so that a program with a server of its own in mind gets its answer too.
    caught.add(namePort);
    for (const [port, { wide, listeners }] of this.#served) {
      if (caught.has(port) ? wide : !wide && proxyPorts.includes(port)) continue;
      for (const listener of listeners) listener.close();
      this.#served.delete(port);
    }
    let unavailable = 0;
    for (const port of new Set([...proxyPorts, ...caught])) {
      if (this.#served.has(port)) continue;
      const wide = caught.has(port);
      const listeners = wide ? this.#listenWide(port) : this.#listenOnLoopback(port);
      if (listeners.length > 0) this.#served.set(port, { wide, listeners });
      else unavailable++;
    }
    this.#datagrams ??= await this.#listenForDatagrams();
    return this.#datagrams === undefined ? unavailable + 1 : unavailable;
  }

  #listenWide(port: number): Listener[] {
    const both = this.#listen('::', port);
    // Without IPv6 on this host, or where a program of the guest has the port there.
    return both.length > 0 ? both : this.#listen('0.0.0.0', port);
  }

  #listenOnLoopback(port: number): Listener[] {
    const main = this.#listen('127.0.0.1', port);
    return main.length === 0 ? main : [...main, ...this.#listen('::1', port)];
  }

  #listen(hostname: string, port: number): Listener[] {
    try {
      return [listen({ hostname, port }, (connection) => this.#accept(connection, port))];
    } catch {
      return [];
    }
  }

  async #listenForDatagrams(): Promise<Listener | undefined> {
    const answer = (bytes: Uint8Array) => this.#nameService.answer(bytes, 'datagram');
    for (const hostname of ['::', '0.0.0.0']) {
      try {
        return await listenDatagrams({ hostname, port: namePort }, answer);
      } catch {
        // The next one, or nobody.
      }
    }
    return undefined;
  }

  #accept(connection: Accepted, port: number): void {
    const { localAddress: address, remotePort: client } = connection;
    if (port === namePort) {
      this.#serveNames(connection);
    } else if (!isLoopback(address)) {
      const name = this.#names.nameAt(address);
      void this.#join(connection, {
        ...{ kind: 'caught', client, address, port },
        ...(name !== undefined && { name }),
      });
    } else if (proxyPorts.includes(port)) {
      void this.#join(connection, { kind: 'proxy', client });
    } else {
      // Whoever asks for the guest itself asks for a server there, and there can be none beside us.
      connection.reset();
    }
  }

  /** Joins a connection of the guest with one to the daemon, each direction ending on its own, until both are gone. */
  async #join(guest: Accepted, intent: Intent): Promise<void> {
    if (this.#open >= connectionsMax) return guest.reset();
    this.#open++;
    const ended = { guest: false, daemon: false };
    const closed = { guest: Promise.withResolvers<void>(), daemon: Promise.withResolvers<void>() };
    const toGuest = new ConnectionSink(guest);
    let daemon: Connection | undefined;
    let gone = false;
    guest.pause();
    guest.onEnd = () => {
      ended.guest = true;
      daemon?.end();
    };
    guest.onClose = (cause) => {
      gone = true;
      toGuest.gone();
      // An end that comes after ours closes at once. What was said before it still goes to the daemon.
      if (cause === undefined && (ended.guest || ended.daemon)) daemon?.end();
      else daemon?.close();
      closed.guest.resolve();
    };
    try {
      daemon = await this.#dial(intent);
      const toDaemon = new ConnectionSink(daemon);
      daemon.onEnd = () => {
        ended.daemon = true;
        guest.end();
      };
      daemon.onClose = (cause) => {
        toDaemon.gone();
        // A connection that broke must not pass for one that ended, nor what nobody takes any more for sent.
        if (cause !== undefined || !(ended.guest || ended.daemon)) guest.reset();
        else {
          guest.end();
          guest.onData = () => guest.reset();
          guest.resume();
        }
        closed.daemon.resolve();
      };
      if (gone) daemon.close();
      else {
        guest.resume();
        pour(guest, toDaemon);
        pour(daemon, toGuest);
      }
      await closed.daemon.promise;
    } catch {
      // The daemon is away, and nothing goes out without it.
      guest.reset();
    }
    await closed.guest.promise;
    this.#open--;
    if (this.#open === 0) this.#shrinkSoon();
  }

  #shrinkSoon(): void {
    this.#shrinking.soon(() => this.#open === 0);
  }

  async #dial(intent: Intent): Promise<Connection> {
    const signal = AbortSignal.timeout(connectWithinMs);
    for (;;) {
      try {
        const connection = await connect({ unix: this.#socketPath }, signal);
        connection.send(Buffer.concat([this.#hello, Buffer.from(`${JSON.stringify(intent)}\n`)]));
        return connection;
      } catch (thrown) {
        if (errnoOf(thrown) !== 'EAGAIN' || signal.aborted) throw thrown;
      }
      await new Promise((resolve) => setTimeout(resolve, busyPauseMs));
    }
  }

  #serveNames(connection: Accepted): void {
    if (this.#nameStreams >= nameStreamsMax) return connection.reset();
    this.#nameStreams++;
    new NameStream(connection, {
      answer: (message) => this.#nameService.answer(message, 'stream'),
      onClosed: () => {
        this.#nameStreams--;
      },
    });
  }
}

function isLoopback(address: string): boolean {
  return address === '::1' || address.startsWith('127.');
}
