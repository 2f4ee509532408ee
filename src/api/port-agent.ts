// Connections to ports of guests, kept for a while after a request for the next one. Those of one guest are never used for another, nor for another port.
import { Agent, type ClientRequest, type IncomingMessage, type RequestOptions } from 'node:http';
import type { Duplex } from 'node:stream';
import type { Guest } from '../guest/guest.ts';
import { dial, type PortPlace } from './port-dial.ts';

/** Less than servers wait for a next request: what is about to be closed there should not be used here. */
const idleMs = 3_000;
/** Of one port. The agent inside has 64 connections for all of them. */
const idleMax = 16;

interface PortOptions extends RequestOptions {
  place: PortPlace;
}

const agents = new WeakMap<Guest, PortAgent>();

/** One for each guest; it goes with it. */
export function agentOf(guest: Guest): PortAgent {
  const agent = agents.get(guest) ?? new PortAgent();
  agents.set(guest, agent);
  return agent;
}

export class PortAgent extends Agent {
  readonly #idle = new WeakMap<Duplex, NodeJS.Timeout>();

  constructor() {
    super({ keepAlive: true, maxFreeSockets: idleMax, scheduling: 'lifo' });
  }

  /** What a request over this agent is made with. */
  optionsFor(options: RequestOptions, place: PortPlace): RequestOptions {
    return { ...options, agent: this, place } as PortOptions;
  }

  override getName(options?: RequestOptions): string {
    return String((options as PortOptions).place.port);
  }

  override createConnection(
    options: RequestOptions,
    done?: (error: Error | null, socket: Duplex) => void,
  ): undefined {
    dial((options as PortOptions).place).then(
      (socket) => {
        socket.once('close', () => clearTimeout(this.#idle.get(socket)));
        if (!('ref' in socket)) Object.assign(socket, { ref: () => socket });
        done?.(null, socket);
      },
      (error: Error) => done?.(error, undefined as never),
    );
  }

  // A stream of the channel is no socket of the system, and has no timer of its own.

  override keepSocketAlive(socket: Duplex): boolean {
    const { _httpMessage: request } = socket as { _httpMessage?: { res?: IncomingMessage } };
    const said = /^timeout=(\d+)/.exec(String(request?.res?.headers['keep-alive'] ?? ''))?.[1];
    const waitMs = Math.min(idleMs, said === undefined ? idleMs : (Number(said) - 1) * 1000);
    if (waitMs <= 0) return false;
    const timer = setTimeout(() => socket.destroy(), waitMs);
    timer.unref();
    this.#idle.set(socket, timer);
    return true;
  }

  override reuseSocket(socket: Duplex, request: ClientRequest): void {
    clearTimeout(this.#idle.get(socket));
    super.reuseSocket(socket, request);
  }
}
