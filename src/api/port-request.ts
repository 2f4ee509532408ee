// One request at the gateway to a port of a guest, and its answer, between two connections that stay: nothing of Node's HTTP is on the way. Both bodies stream;
// whoever is slow holds the other end, not our memory.
import { randomUUID } from 'node:crypto';
import type { AnswerReader } from '../egress/http1/client.ts';
import type { Http1Guest, RequestReader } from '../egress/http1/guest.ts';
import type { RequestHead, ResponseHead } from '../egress/http1/head.ts';
import type { Span } from '../lib/trace.ts';
import { failureAnswer } from './exchange.ts';
import { type Entry, wantsPage } from './gateway.ts';
import type { GatewayClients } from './gateway-clients.ts';
import type { PortPlace } from './port-dial.ts';
import { answeredHeaders, askingHead } from './port-heads.ts';
import { connected, giveBack, type PortUpstream, waiting } from './port-pool.ts';
import { Refusal } from './refusal.ts';

/** What may be asked of a server once more when a connection that waited for a request turns out to have ended. */
const repeatable: ReadonlySet<string> = new Set(['GET', 'HEAD', 'OPTIONS']);

/** Of one client, as every request of its connection shows it. */
export interface ClientAddress {
  from: string;
  encrypted: boolean;
}

export class PortRequest implements RequestReader, AnswerReader {
  readonly requestId: string;
  readonly #clients: GatewayClients;
  readonly #client: Http1Guest;
  readonly #address: ClientAddress;
  readonly #head: RequestHead;
  readonly #entry: Entry;
  readonly #search: string;
  readonly #startedAt = performance.now();
  #span: Span | undefined;
  #place: PortPlace | undefined;
  #held: Disposable | undefined;
  #upstream: PortUpstream | undefined;
  #relocate: ((location: string) => string) | undefined;
  #pooled = false;
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
    const { sandboxId, port } = this.#entry;
    const { limits, service } = this.#clients;
    this.#client.silentMs = limits.proxyFirstByteMs;
    this.#client.touch();
    this.#span = this.#clients.begun(this, this.#head, sandboxId);
    try {
      this.#clients.refuseBeyond();
      this.#place = { guest: this.#clients.guest(sandboxId), port, limits };
      service.touch(sandboxId);
      // Whoever is connected to a port of it is attached.
      this.#held = service.hold(sandboxId);
    } catch (error) {
      return this.#refuse(error);
    }
    this.#ask();
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
    this.#upstream?.output.payload(bytes, this.#head.framing.kind === 'chunked');
  }

  requestPaused(): void {
    if (this.#upstream?.output.flush() === false && !this.#client.bodyDone) this.#client.wire.hold();
  }

  requestEnded(): void {
    if (this.#head.framing.kind === 'chunked') this.#upstream?.output.text('0\r\n\r\n');
  }

  guestDrained(): void {
    this.#upstream?.wire.go();
  }

  /** Programs that have gone say so in no other way. */
  guestEnded(): void {
    this.cut();
  }

  guestGone(): void {
    this.#giveUp();
  }

  silent(): void {
    const { proxyFirstByteMs } = this.#clients.limits;
    this.#refuse(
      new Refusal('timeout', `port ${this.#entry.port}: no answer within ${proxyFirstByteMs} ms`, {
        status: 504,
      }),
    );
  }

  // What the application does.

  informed(): void {}

  answer(head: ResponseHead): void {
    const { minor } = this.#head;
    this.#answered = true;
    this.#status = head.status;
    // An answer may take as long as it likes: events come when they come.
    this.#client.silentMs = Number.POSITIVE_INFINITY;
    if (this.#clients.closing) this.#client.last();
    let lines = '';
    const headers = answeredHeaders(head.headers, head.spelt, this.#relocate);
    for (let at = 0; at < headers.length; at += 2) lines += `${headers[at]}: ${headers[at + 1]}\r\n`;
    lines += `X-Request-ID: ${this.requestId}\r\n`;
    if (minor === 1 && headerIn(head, 'date') === undefined) lines += `Date: ${new Date().toUTCString()}\r\n`;
    this.#client.answer({ status: head.status, reason: head.reason, lines }, head.framing, head.declared);
  }

  answerBody(bytes: Buffer): void {
    this.#client.payload(bytes);
  }

  answerPaused(): void {
    if (!this.#client.flush()) this.#upstream?.wire.hold();
  }

  answered(): void {
    if (this.#over) return;
    const upstream = this.#upstream as PortUpstream;
    this.#end();
    // A server may answer before it has read all: what is not sent by now never will be.
    if (this.#client.bodyDone) giveBack(this.#place as PortPlace, upstream);
    else upstream.close();
    this.#client.finish();
  }

  switched(): void {
    this.#upstream?.close();
    this.#refuse(
      new Refusal('protocol', `port ${this.#entry.port}: it switched to a protocol that was not asked for`, {
        status: 502,
      }),
    );
  }

  upstreamDrained(): void {
    this.#client.touch();
    this.#client.wire.go();
  }

  answerFailed({ broken, message }: { broken: boolean; message: string }): void {
    if (this.#over) return;
    const { method, framing } = this.#head;
    const isStale = this.#pooled && !this.#answered && !broken;
    this.#pooled = false;
    if (isStale && framing.kind === 'none' && repeatable.has(method)) return this.#connect();
    this.#refuse(new Refusal('protocol', `port ${this.#entry.port}: ${message}`, { status: 502 }));
  }

  // The way from one to the other.

  #ask(): void {
    const upstream = waiting(this.#place as PortPlace);
    if (upstream === undefined) return this.#connect();
    this.#pooled = true;
    this.#send(upstream);
  }

  #connect(): void {
    const place = this.#place as PortPlace;
    connected(place).then(
      (upstream) => {
        if (this.#over) giveBack(place, upstream);
        else this.#send(upstream);
      },
      (error) => this.#refuse(error),
    );
  }

  #send(upstream: PortUpstream): void {
    const { method, headers, spelt, host, framing, expectsContinue } = this.#head;
    const { port, fullPath, path } = this.#entry;
    const address = this.#entry.addressFor(fullPath.slice(0, fullPath.length - path.length));
    this.#upstream = upstream;
    this.#relocate = address.relocate;
    upstream.begin(method, this);
    upstream.output.text(
      askingHead({
        ...address,
        ...{ port, method, headers, spelt },
        target: `${path}${this.#search}`,
        framing: framing as Exclude<typeof framing, { kind: 'close' }>,
        requestId: this.requestId,
        client: this.#address.from,
        encrypted: this.#address.encrypted,
        clientHost: host,
      }),
    );
    if (framing.kind !== 'none') {
      if (expectsContinue) this.#client.continue();
      this.#client.readBody();
    }
    if (upstream.wire.closed) this.answerFailed({ broken: false, message: 'the connection was reset' });
    else upstream.output.flush();
  }

  /** With an answer of our own, as long as none has begun. */
  #refuse(thrown: unknown): void {
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
    this.#upstream?.close();
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
