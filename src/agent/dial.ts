// A port of the guest itself, joined to a stream: bytes both ways, each direction ending on its own.
import { laneOf } from '../contract/guest-wire.ts';
import type { Call } from './call.ts';
import type { Connection, Platform } from './platform/platform.ts';
import { ConnectionSink, pour } from './pump.ts';
import { Refusal } from './refusal.ts';

const connectionsMax = 256;
const hosts = ['127.0.0.1', '::1'];

export class Dials {
  readonly #platform: Platform;
  #open = 0;

  constructor(platform: Platform) {
    this.#platform = platform;
  }

  async dial(call: Call, request: { port: number }): Promise<void> {
    if (!Number.isInteger(request.port) || request.port < 1 || request.port > 65_535) {
      throw new Refusal('invalid', `port ${request.port}: 1 to 65535`);
    }
    if (this.#open >= connectionsMax)
      throw new Refusal('exhausted', `${connectionsMax} connections to ports are open`);
    this.#open++;
    try {
      await this.#join(call, await this.#connect(request.port));
    } finally {
      this.#open--;
    }
  }

  async #connect(port: number): Promise<Connection> {
    let why: unknown;
    for (const host of hosts) {
      try {
        return await this.#platform.connectTcp(host, port);
      } catch (thrown) {
        why ??= thrown;
      }
    }
    const refusal = Refusal.from(why, `connect to port ${port}`);
    throw refusal.code === 'io' ? new Refusal('refused', refusal.message, refusal.errno) : refusal;
  }

  async #join(call: Call, connection: Connection): Promise<void> {
    const closed = Promise.withResolvers<void>();
    let ended = false;
    const sink = new ConnectionSink(connection);
    connection.onClose = (cause) => {
      sink.gone();
      // A connection that broke must not pass for one that ended.
      if (ended || cause === undefined) call.end();
      else call.reset({ code: 'closed', message: cause.message });
      closed.resolve();
    };
    connection.onEnd = () => {
      ended = true;
      call.end();
    };
    call.onGone = () => connection.close();
    call.reply({ type: 'connected' });
    pour(connection, { send: (bytes) => call.send(laneOf.data, bytes), drained: () => call.drained() });
    if (call.over) connection.close();
    call.pourInto(sink, () => connection.end());
    await closed.promise;
  }
}
