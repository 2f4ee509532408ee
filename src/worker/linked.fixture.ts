// For tests: both ends of a link in one process, over carriers in memory or a real WebSocket, which can be cut, kept apart and replaced.
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { WebSocketServer } from 'ws';
import { Acceptor } from '../channel/acceptor.ts';
import type { Carrier } from '../channel/channel.ts';
import { systemClock } from '../channel/clock.ts';
import { Dialer, localBackOff } from '../channel/dialer.ts';
import { memoryPair } from '../channel/memory.ts';
import { dialWebSocket, WsCarrier, webSocketProtocol, webSocketServerOptions } from '../channel/websocket.ts';
import type { Log } from '../lib/log.ts';
import { ChannelLink } from './channel-link.ts';
import { controllerLimits, workerLimits } from './rpc.ts';

const clock = systemClock({ keepsProcessAlive: false });
export const workerId = 'w1';

/** The controller's end, at which workers dial in. */
export class ControllerEnd {
  readonly link: ChannelLink;
  readonly errors: unknown[] = [];
  /** While false, nobody gets in. */
  open = true;
  readonly #acceptor: Acceptor;
  readonly #carriers = new Set<Carrier>();
  #server: Server | undefined;

  constructor(options: { graceMs?: number } = {}) {
    this.link = new ChannelLink({ workerId, clock, onListenerError: (error) => this.errors.push(error) });
    this.#acceptor = new Acceptor({
      ...{ token: workerId, clock, limits: controllerLimits },
      graceMs: options.graceMs ?? 60_000,
      takeOver: () => undefined,
      onChannel: (channel) => this.link.begin(channel),
      onHandlerError: (error) => this.errors.push(error),
    });
  }

  accept(carrier: Carrier): void {
    if (!this.open) return carrier.close();
    this.#carriers.add(carrier);
    this.#acceptor.accept(carrier);
  }

  /** The address of a WebSocket at which workers of any process get in. */
  async listen(): Promise<string> {
    const sockets = new WebSocketServer({
      ...webSocketServerOptions,
      noServer: true,
      handleProtocols: () => webSocketProtocol,
    });
    const server = createServer();
    this.#server = server;
    server.on('upgrade', (request, socket, head) => {
      if (!this.open) return void socket.destroy();
      sockets.handleUpgrade(request, socket, head, (it) => this.accept(new WsCarrier(it)));
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    return `ws://127.0.0.1:${(server.address() as AddressInfo).port}/ws`;
  }

  /** Breaks the connection; the worker dials again. */
  cut(): void {
    for (const carrier of this.#carriers) carrier.close();
    this.#carriers.clear();
  }

  /** As a controller that is stopped: the worker looks for the next one. */
  leave(): void {
    this.#acceptor.suspend({ code: 'restart', message: 'the controller stops' });
    this.link.finish({ code: 'restart', message: 'the controller stops' });
    this.#server?.close();
    this.cut();
  }

  /** The worker is none of ours any more. */
  revoke(): void {
    const reason = { code: 'revoked', message: `worker ${workerId} was removed` };
    this.#acceptor.close(reason);
    this.link.finish(reason);
  }
}

/** A worker's end, which dials until it is left. `reach` is an address, or what is in this process. */
export class WorkerEnd {
  readonly link: ChannelLink;
  readonly errors: unknown[] = [];
  readonly #dialer: Dialer;

  constructor(reach: string | (() => ControllerEnd)) {
    this.link = new ChannelLink({ workerId, clock, onListenerError: (error) => this.errors.push(error) });
    this.#dialer = new Dialer({
      ...{ token: workerId, clock, backOff: localBackOff, limits: workerLimits },
      connect: async (signal) => {
        if (typeof reach === 'string') return dialWebSocket({ url: reach }, signal);
        const [here, there] = memoryPair();
        reach().accept(there);
        return here;
      },
      onChannel: (channel) => this.link.begin(channel),
      onHandlerError: (error) => this.errors.push(error),
    });
  }

  leave(): void {
    this.#dialer.stop({ code: 'stopped', message: 'the worker stops' });
    this.link.finish({ code: 'stopped', message: 'the worker stops' });
  }
}

export const noLog: Log = new Proxy({} as Log, { get: () => () => {} });
