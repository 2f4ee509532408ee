// One request of a guest over HTTP/1.1 and its answer: admitted, sent on over a connection of the pool or a new one, answered as it comes. Both bodies
// stream; whoever is slow holds the other end, not our memory.
import type { AdmittedRequest } from './admission.ts';
import type { Connection } from './connection.ts';
import type { GuestRequest, Refused } from './gate.ts';
import { Gathered } from './gathered.ts';
import type { HttpRoute } from './http.ts';
import type { AnswerReader, Http1Upstream } from './http1/client.ts';
import type { Http1Guest, RequestReader } from './http1/guest.ts';
import { type Header, Malformed, type RequestHead, type ResponseHead } from './http1/head.ts';
import { headerLines } from './http1/write.ts';
import { Join } from './join.ts';
import type { Holder } from './memory.ts';
import { authorityText } from './place.ts';
import {
  bodyTooLong,
  bodyUnusable,
  errorRefusal,
  malformedRefusal,
  requestRefusal,
  upstreamRefusal,
} from './refusal.ts';
import { createFinder, scrubText } from './scrub.ts';
import { decoderFor, ScrubbedAnswer, type ScrubbedSink } from './scrubbed-answer.ts';
import type { Destination, UpstreamError } from './upstream.ts';
import { acceptsWebSocket, webSocketKey } from './websocket.ts';

/** Asking for these twice is asking for them once (RFC 9110 §9.2.2). */
const idempotent: ReadonlySet<string> = new Set(['GET', 'HEAD', 'OPTIONS', 'DELETE', 'PROPFIND']);

export class Exchange implements RequestReader, AnswerReader, ScrubbedSink, Holder {
  readonly #connection: Connection;
  readonly #route: HttpRoute;
  readonly #guest: Http1Guest;
  readonly #head: RequestHead;
  #to: Destination | undefined;
  #place = '';
  #webSocketKey: string | undefined;
  #admitted: AdmittedRequest | undefined;
  #upstream: Http1Upstream | undefined;
  #pooled = false;
  #generation = 0;
  #answered = false;
  #status: number | undefined;
  #collected: Gathered | undefined;
  #heldBytes = 0;
  #isForbidden: ((bytes: Buffer) => boolean) | undefined;
  #scrubbed: ScrubbedAnswer | undefined;
  #join: Join | undefined;
  #over = false;

  constructor(connection: Connection, route: HttpRoute, guest: Http1Guest, head: RequestHead) {
    this.#connection = connection;
    this.#route = route;
    this.#guest = guest;
    this.#head = head;
  }

  begin(): void {
    const request = this.#read();
    if (request === undefined) return;
    const admission = this.#route.gate.admit(request, this.#connection.signal);
    if (!(admission instanceof Promise)) return this.#admit(admission);
    // A person may be asked, or a source of a secret: each has its own limit.
    this.#guest.patience();
    void admission.then((settled) => this.#admit(settled));
  }

  get underWay(): boolean {
    return !this.#over || this.#join?.over === false;
  }

  /** Whether the policy as it is now lets this go on. */
  get holds(): boolean {
    return this.#admitted === undefined || this.#admitted.judgement.holds(this.#upstream);
  }

  /** Ends both sides at once. */
  cut(error: string): void {
    if (this.#join !== undefined) return this.#join.close('cut');
    this.#giveUp(error);
    this.#guest.abort();
  }

  // What the guest does.

  requestBody(bytes: Buffer): void {
    if (this.#isForbidden?.(bytes) === true) return this.#stolen();
    if (this.#collected !== undefined) return this.#collect(bytes, this.#collected);
    this.#upstream?.output.payload(bytes, this.#head.framing.kind === 'chunked');
  }

  requestPaused(): void {
    if (this.#upstream?.output.flush() === false && !this.#guest.bodyDone) this.#guest.wire.hold();
  }

  requestEnded(): void {
    if (this.#collected !== undefined) this.#rewrite(this.#collected.whole);
    else if (this.#head.framing.kind === 'chunked') this.#upstream?.output.text('0\r\n\r\n');
  }

  guestDrained(): void {
    if (this.#scrubbed !== undefined) this.#scrubbed.go();
    this.#upstream?.wire.go();
  }

  guestEnded(): void {
    if (this.#over) return;
    if (this.#admitted !== undefined) return this.#upstream?.askerEnded();
    // Nobody should be asked for one who has left, and who says no more has, more often than not.
    this.#over = true;
    this.#guest.abort();
  }

  guestGone(): void {
    this.#giveUp('guest_closed');
  }

  silent(): void {
    if (this.#answered) this.cut('timeout');
    else this.#refuse(this.#upstreamRefusal('timeout', 'It did not answer in time.'), 'timeout');
  }

  /** Too much of this sandbox waits in memory. */
  shed(): void {
    const message = 'Too many long bodies of this sandbox are under way at once.';
    if (this.#answered) this.cut('memory');
    else this.#refuse(requestRefusal(503, 'memory', message), 'memory');
  }

  // What the world does.

  informed(head: ResponseHead): void {
    const { scrub } = this.#admitted as AdmittedRequest;
    if (scrub.length === 0) this.#guest.informed(head.status, head.reason, head.headers, head.spelt);
  }

  answer(head: ResponseHead): void {
    const { scrub } = this.#admitted as AdmittedRequest;
    // Whoever wanted to switch may send what is no HTTP from now on.
    if (this.#head.upgrade !== undefined) this.#guest.last();
    let { headers, spelt, framing } = head;
    if (scrub.length > 0 && framing.kind !== 'none') {
      const encoding = headers
        .filter(([name]) => name === 'content-encoding')
        .map(([, value]) => value)
        .join(', ');
      const plain = encoding === '' || encoding.toLowerCase() === 'identity';
      const decoder = plain ? undefined : decoderFor(encoding);
      if (!plain && decoder === undefined)
        return this.#fail('bad_answer', 'Its answer is compressed in a way that is not known here.');
      this.#scrubbed = new ScrubbedAnswer(scrub, decoder, this);
      if (decoder !== undefined) {
        headers = headers.filter(([name]) => name !== 'content-encoding');
        spelt = spelt.filter((_, at) => head.headers[at]?.[0] !== 'content-encoding');
        framing = { kind: 'chunked' };
      }
    }
    const lines = scrubText(headerLines(headers, spelt), scrub);
    this.#answered = true;
    this.#status = head.status;
    this.#guest.answer(
      { status: head.status, reason: scrubText(head.reason, scrub), lines },
      framing,
      head.declared,
    );
  }

  answerBody(bytes: Buffer): void {
    if (this.#scrubbed === undefined) this.#guest.payload(bytes);
    else if (!this.#scrubbed.write(bytes)) this.#upstream?.wire.hold();
  }

  answerPaused(): void {
    if (!this.#guest.flush()) this.#upstream?.wire.hold();
  }

  answered(): void {
    if (this.#scrubbed === undefined) this.#finish();
    else this.#scrubbed.end();
  }

  switched(head: ResponseHead): void {
    const { entry, scrub } = this.#admitted as AdmittedRequest;
    const upstream = this.#upstream as Http1Upstream;
    if (this.#webSocketKey === undefined || !acceptsWebSocket(head, this.#webSocketKey))
      return this.#fail('bad_answer', 'It switched to another protocol without being asked properly.');
    this.#over = true;
    entry.note({ status: 101 });
    const guest = this.#guest;
    guest.switch(
      `${scrubText(headerLines(head.headers, head.spelt), scrub)}Connection: Upgrade\r\nUpgrade: websocket\r\n`,
    );
    const { deadlines, limits } = this.#connection.session;
    this.#join = new Join(guest.release(), upstream.wire, {
      deadlines,
      idleMs: limits.idleMs,
      scrub,
      onOver: ({ bytesOut, bytesIn, error }) => {
        this.#connection.over();
        entry.end({
          bytesOut: guest.bytesOut + bytesOut,
          bytesIn: guest.bytesIn + bytesIn,
          status: 101,
          ...(error !== undefined && { error }),
        });
      },
    });
  }

  upstreamDrained(): void {
    this.#guest.touch();
    this.#guest.wire.go();
  }

  answerFailed({ broken, message }: { broken: boolean; message: string }): void {
    if (this.#over) return;
    if (!broken && this.#pooled && !this.#answered && this.#isRepeatable) {
      this.#pooled = false;
      this.#connect(undefined);
    } else this.#fail(broken ? 'bad_answer' : 'reset', message);
  }

  scrubbed(bytes: Buffer): void {
    this.#guest.payload(bytes);
  }

  scrubbedPaused(): boolean {
    return this.#guest.flush();
  }

  scrubbedEnd(): void {
    this.#finish();
  }

  scrubbedFailed(message: string): void {
    this.#fail('bad_answer', message);
  }

  scrubberDrained(): void {
    this.#upstream?.wire.go();
  }

  // The way from one to the other.

  #read(): GuestRequest | undefined {
    const { scheme } = this.#route;
    try {
      const { to, authority, target } = this.#route.locate(this.#head);
      this.#to = to;
      this.#webSocketKey = webSocketKey(this.#head);
      const { method, headers } = this.#head;
      const protocol = this.#webSocketKey === undefined ? scheme : scheme === 'https' ? 'wss' : 'ws';
      const { client, kind } = this.#connection;
      return { destination: to, scheme, authority, method, target, headers, kind, protocol, client };
    } catch (error) {
      if (!(error instanceof Malformed)) throw error;
      this.#route.onMalformed(error);
      this.#over = true;
      this.#guest.refuse(malformedRefusal(error.status, error.message));
      return undefined;
    }
  }

  #admit(admission: Refused | AdmittedRequest): void {
    if (admission.kind === 'refused') {
      if (this.#over) return;
      this.#over = true;
      this.#guest.refuse(admission);
      return;
    }
    this.#admitted = admission;
    if (this.#over) return admission.entry.end({ bytesOut: 0, bytesIn: 0, error: 'guest_closed' });
    this.#guest.touch();
    if (admission.forbidden.length > 0) this.#isForbidden = createFinder(admission.forbidden);
    this.#place = `${this.#route.scheme}://${authorityText(this.#to as Destination, this.#route.scheme)}`;
    if (admission.body === undefined || this.#head.framing.kind === 'none')
      return this.#connect(admission.pool);
    this.#collected = new Gathered();
    if (this.#head.expectsContinue) this.#guest.continue();
    this.#guest.readBody();
  }

  #collect(bytes: Buffer, body: Gathered): void {
    if (body.add(bytes)) this.#hold(body.heldBytes);
    else this.#refuse(bodyTooLong, 'body-too-large');
  }

  /** What waits here of the request. Counted until it is over, for the world may take its time. */
  #hold(bytes: number): void {
    if (bytes === this.#heldBytes) return;
    this.#heldBytes = bytes;
    this.#connection.session.memory.set(this, bytes);
  }

  /** The body has been seen whole; a transform of the vault makes another one of it. */
  #rewrite(whole: Buffer): void {
    const admitted = this.#admitted as AdmittedRequest;
    try {
      const { body, headers } = (admitted.body as NonNullable<AdmittedRequest['body']>)(whole);
      this.#collected = undefined;
      this.#rewritten = { body, headers };
      this.#hold(body.length);
    } catch {
      this.#refuse(bodyUnusable, 'body-unusable');
      return;
    }
    if (!this.#over) this.#connect(admitted.pool);
  }

  #rewritten: { body: Buffer; headers: [string, string][] } | undefined;

  /** `share`: of the pool to look into first. */
  #connect(share: string | undefined): void {
    const { session, signal } = this.#connection;
    this.#generation = session.pool.generation;
    const upgrade = this.#webSocketKey !== undefined;
    const waiting = share === undefined || upgrade ? undefined : session.pool.take(this.#place, share);
    if (waiting !== undefined) {
      this.#pooled = true;
      return this.#send(waiting);
    }
    const admitted = this.#admitted as AdmittedRequest;
    this.#guest.patience();
    this.#route.dial(this.#to as Destination, admitted.judgement, signal, { upgrade }).then(
      (upstream) => {
        if (this.#over) return session.pool.put(this.#place, upstream, this.#generation);
        upstream.share = admitted.pool;
        this.#guest.touch();
        if (session.pool.generation === this.#generation || admitted.judgement.holds(upstream))
          return this.#send(upstream);
        // The policy has changed while this was dialled.
        upstream.close();
        this.cut('cut');
      },
      (error: UpstreamError) => {
        if (this.#over) return;
        this.#over = true;
        this.#hold(0);
        const refusal = errorRefusal(this.#to as Destination, this.#route.scheme, error);
        admitted.failed(error, refusal);
        this.#guest.refuse(refusal);
      },
    );
  }

  #send(upstream: Http1Upstream): void {
    const admitted = this.#admitted as AdmittedRequest;
    const { method, framing, headers: read, spelt } = this.#head;
    const { scheme } = this.#route;
    this.#upstream = upstream;
    admitted.entry.note({ address: upstream.address });
    const headers = this.#rewritten?.headers ?? admitted.headers;
    const authority = authorityText(this.#to as Destination, scheme);
    const { relay } = upstream;
    const target = relay === undefined ? admitted.target : absoluteTarget(authority, admitted.target);
    let text = `${method} ${target} HTTP/1.1\r\nHost: ${authority}\r\n`;
    if (relay?.authorization !== undefined) text += `Proxy-Authorization: ${relay.authorization}\r\n`;
    text += headerLines(
      this.#webSocketKey !== undefined && admitted.scrub.length > 0 ? withoutExtensions(headers) : headers,
      headers === read ? spelt : undefined,
    );
    if (this.#rewritten !== undefined) text += `Content-Length: ${this.#rewritten.body.length}\r\n`;
    else if (framing.kind === 'length') text += `Content-Length: ${framing.bytes}\r\n`;
    else if (framing.kind === 'chunked') text += 'Transfer-Encoding: chunked\r\n';
    if (this.#webSocketKey !== undefined) text += 'Connection: Upgrade\r\nUpgrade: websocket\r\n';
    upstream.begin(method, this);
    upstream.output.text(`${text}\r\n`);
    if (this.#rewritten !== undefined) upstream.output.payload(this.#rewritten.body, false);
    else if (framing.kind !== 'none') {
      if (this.#head.expectsContinue) this.#guest.continue();
      this.#guest.readBody();
    }
    if (upstream.wire.closed) this.answerFailed({ broken: false, message: 'The connection was reset.' });
    else {
      upstream.output.flush();
      if (this.#guest.wire.ended && this.#guest.bodyDone) upstream.askerEnded();
    }
  }

  #finish(): void {
    if (this.#over) return;
    this.#over = true;
    this.#hold(0);
    const { pool } = this.#connection.session;
    const upstream = this.#upstream as Http1Upstream;
    const { bytesOut, bytesIn } = this.#guest;
    (this.#admitted as AdmittedRequest).entry.end({ bytesOut, bytesIn, status: this.#status as number });
    if (!this.#guest.bodyDone) upstream.close();
    else if (upstream.rest()) pool.put(this.#place, upstream, this.#generation);
    this.#guest.finish();
  }

  get #isRepeatable(): boolean {
    return idempotent.has(this.#head.method) && this.#head.framing.kind === 'none';
  }

  /** A placeholder was on its way to where it does not belong. */
  #stolen(): void {
    const message = 'A placeholder of a secret was about to leave in the body of a request.';
    this.#admitted?.entry.note({ alarm: message });
    if (this.#answered) this.cut('placeholder');
    else this.#refuse(requestRefusal(403, 'placeholder', message), 'placeholder');
  }

  #upstreamRefusal(code: string, message: string): Refused {
    return upstreamRefusal(this.#to as Destination, this.#route.scheme, { code, message });
  }

  #fail(code: string, message: string): void {
    if (this.#over) return;
    if (this.#answered) this.cut(code);
    else this.#refuse(this.#upstreamRefusal(code, message), code);
  }

  /** Nothing has been answered yet, so that can still be done properly. */
  #refuse(refusal: Refused, error: string): void {
    if (this.#over) return;
    this.#giveUp(error, refusal.status);
    this.#guest.refuse(refusal);
  }

  #giveUp(error: string, status = this.#status): void {
    if (this.#over) return;
    this.#over = true;
    this.#hold(0);
    this.#scrubbed?.close();
    this.#upstream?.close();
    const { bytesOut, bytesIn } = this.#guest;
    this.#admitted?.entry.end({ bytesOut, bytesIn, error, ...(status !== undefined && { status }) });
  }
}

/** What is compressed by agreement between the two ends cannot be scrubbed. */
const withoutExtensions = (headers: readonly Header[]): Header[] =>
  headers.filter(([name]) => name !== 'sec-websocket-extensions');

/** For a proxy of the host's network. `OPTIONS *` is a URL without a path there (RFC 9112, section 3.2.4). */
const absoluteTarget = (authority: string, target: string): string =>
  `http://${authority}${target === '*' ? '' : target}`;
