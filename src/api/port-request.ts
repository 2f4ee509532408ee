// One request at the gateway to a port of a guest, and its answer, between two connections that stay: nothing of Node's HTTP is on the way. Both bodies stream;
// whoever is slow holds the other end, not our memory.
import { randomUUID } from 'node:crypto';
import type { Http1Guest, RequestReader } from '../egress/http1/guest.ts';
import type { RequestHead, ResponseHead } from '../egress/http1/head.ts';
import type { Span } from '../lib/trace.ts';
import { failureAnswer } from './exchange.ts';
import { type Entry, wantsPage } from './gateway.ts';
import type { GatewayClients } from './gateway-clients.ts';
import { type PortAsker, PortAsking } from './port-asking.ts';

/** Of one client, as every request of its connection shows it. */
export interface ClientAddress {
  from: string;
  encrypted: boolean;
}

export class PortRequest implements RequestReader, PortAsker {
  readonly requestId: string;
  readonly #clients: GatewayClients;
  readonly #client: Http1Guest;
  readonly #address: ClientAddress;
  readonly #head: RequestHead;
  readonly #entry: Entry;
  readonly #search: string;
  readonly #startedAt = performance.now();
  #span: Span | undefined;
  #held: Disposable | undefined;
  #asking: PortAsking | undefined;
  #status: number | undefined;
  #answered = false;
  #over = false;

  constructor(
    clients: GatewayClients,
    client: Http1Guest,
    { head, entry, search, ...address }: { head: RequestHead; entry: Entry; search: string } & ClientAddress,
  ) {
    this.#clients = clients;
    this.#client = client;
    this.#head = head;
    this.#entry = entry;
    this.#search = search;
    this.#address = address;
    const asked = headerIn(head, 'x-request-id');
    this.requestId = asked !== undefined && /^[\x21-\x7e]{1,128}$/.test(asked) ? asked : randomUUID();
  }

  begin(): void {
    const { sandboxId, port, fullPath, path } = this.#entry;
    const { limits, service } = this.#clients;
    const { method, headers, spelt, host, framing } = this.#head;
    this.#client.silentMs = limits.proxyFirstByteMs;
    this.#client.touch();
    this.#span = this.#clients.begun(this, this.#head, sandboxId);
    try {
      this.#clients.refuseBeyond();
      const place = { guest: this.#clients.guest(sandboxId), port, limits };
      service.touch(sandboxId);
      // Whoever is connected to a port of it is attached.
      this.#held = service.hold(sandboxId);
      const asked = {
        ...this.#entry.addressFor(fullPath.slice(0, fullPath.length - path.length)),
        ...{ port, method, headers, spelt, framing },
        target: `${path}${this.#search}`,
        requestId: this.requestId,
        client: this.#address.from,
        encrypted: this.#address.encrypted,
        clientHost: host,
      };
      this.#asking = new PortAsking(place, asked, this);
    } catch (error) {
      return this.failed(error);
    }
    this.#asking.begin();
  }

  get underWay(): boolean {
    return !this.#over;
  }

  /** The daemon stops and has waited long enough. */
  cut(): void {
    this.#giveUp();
    this.#client.abort();
  }

  // What the client does.

  requestBody(bytes: Buffer): void {
    this.#asking?.body(bytes);
  }

  requestPaused(): void {
    if (this.#asking?.flush() === false && !this.#client.bodyDone) this.#client.wire.hold();
  }

  requestEnded(): void {
    this.#asking?.bodyEnded();
  }

  guestDrained(): void {
    this.#asking?.go();
  }

  /** Programs that have gone say so in no other way. */
  guestEnded(): void {
    this.cut();
  }

  guestGone(): void {
    this.#giveUp();
  }

  silent(): void {
    this.failed(this.#asking?.late);
  }

  // What the application does.

  reached(): void {
    if (this.#head.framing.kind === 'none') return;
    if (this.#head.expectsContinue) this.#client.continue();
    this.#client.readBody();
  }

  answer(head: ResponseHead, headers: string[]): void {
    const { minor } = this.#head;
    this.#answered = true;
    this.#status = head.status;
    // An answer may take as long as it likes: events come when they come.
    this.#client.silentMs = Number.POSITIVE_INFINITY;
    if (this.#clients.closing) this.#client.last();
    let lines = '';
    for (let at = 0; at < headers.length; at += 2) lines += `${headers[at]}: ${headers[at + 1]}\r\n`;
    lines += `X-Request-ID: ${this.requestId}\r\n`;
    if (minor === 1 && headerIn(head, 'date') === undefined) lines += `Date: ${new Date().toUTCString()}\r\n`;
    this.#client.answer({ status: head.status, reason: head.reason, lines }, head.framing, head.declared);
  }

  answerBody(bytes: Buffer): void {
    this.#client.payload(bytes);
  }

  answerPaused(): void {
    if (!this.#client.flush()) this.#asking?.hold();
  }

  answered(): void {
    this.#end();
    this.#client.finish();
  }

  drained(): void {
    this.#client.touch();
    this.#client.wire.go();
  }

  /** With an answer of our own, as long as none has begun. */
  failed(thrown: unknown): void {
    if (this.#over) return;
    if (this.#answered) return this.cut();
    const failure = this.#clients.shown(thrown, this.requestId);
    const asPage = wantsPage(this.#head.method, headerIn(this.#head, 'accept'));
    const { status, headers, type, text } = failureAnswer(failure, 'proxy', { asPage });
    this.#status = status;
    this.#giveUp();
    if (this.#clients.closing) this.#client.last();
    this.#client.refuse({
      kind: 'refused',
      status,
      headers: [['Content-Type', type], ...Object.entries(headers), ['X-Request-ID', this.requestId]],
      body: text,
      close: false,
    });
  }

  #giveUp(): void {
    if (this.#over) return;
    this.#end();
    this.#asking?.close();
  }

  #end(): void {
    this.#over = true;
    this.#client.silentMs = undefined;
    this.#held?.[Symbol.dispose]();
    this.#clients.ended(this, {
      method: this.#head.method,
      sandboxId: this.#entry.sandboxId,
      // When nothing was answered its client has gone.
      status: this.#status ?? 499,
      ms: performance.now() - this.#startedAt,
      from: this.#address.from,
      span: this.#span,
    });
  }
}

/** Of a header that is there once. */
export function headerIn({ headers }: Pick<RequestHead, 'headers'>, wanted: string): string | undefined {
  for (const [name, value] of headers) if (name === wanted) return value;
  return undefined;
}
