// Writes a stream of events: each its JSON and an empty line. Waits for slow readers, and sends a ping every three seconds to quick ones.
import { once } from 'node:events';
import type { CommandEvent } from '../../contract/execd.ts';
import type { Exchange } from '../exchange.ts';

const pingEveryMs = 3_000;

export type Event = Omit<CommandEvent, 'timestamp'>;

export class EventStream implements Disposable {
  readonly #exchange: Exchange;
  readonly #now: () => Date;
  readonly #pings: NodeJS.Timeout;

  /** The headers go out with the first event: until then, a failure is an ordinary HTTP error. */
  constructor(exchange: Exchange, now: () => Date) {
    this.#exchange = exchange;
    this.#now = now;
    this.#pings = setInterval(() => {
      const { response } = exchange;
      if (response.headersSent && !response.writableNeedDrain)
        response.write(this.#text({ type: 'ping', text: 'pong' }));
    }, pingEveryMs);
    this.#pings.unref();
  }

  /** Resolves when more may be sent; rejects when the client has gone. */
  async send(events: Event[]): Promise<void> {
    if (events.length === 0) return;
    await writeTo(this.#exchange, events.map((event) => this.#text(event)).join(''));
  }

  /** The same for many lines of one kind, without an object for each. */
  async sendLines(type: 'stdout' | 'stderr', lines: string[]): Promise<void> {
    if (lines.length === 0) return;
    const begin = `{"type":"${type}","text":`;
    const end = `,"timestamp":${this.#now().getTime()}}\n\n`;
    let text = '';
    for (const line of lines) text += begin + JSON.stringify(line) + end;
    await writeTo(this.#exchange, text);
  }

  [Symbol.dispose](): void {
    clearInterval(this.#pings);
  }

  #text({ type, ...rest }: Event): string {
    return `${JSON.stringify({ type, ...rest, timestamp: this.#now().getTime() })}\n\n`;
  }
}

/** Sends the headers of an event stream when they have not gone out, and a piece of it. */
export async function writeTo(exchange: Exchange, text: string): Promise<void> {
  const { response, signal } = exchange;
  signal.throwIfAborted();
  if (!response.headersSent)
    response.writeHead(200, {
      'Content-Type': 'text/event-stream',
      'Cache-Control': 'no-cache',
      'X-Accel-Buffering': 'no',
    });
  if (!response.write(text)) await once(response, 'drain', { signal });
}
