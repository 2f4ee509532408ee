// One stream of a guest and the stream that carries it on: admitted, sent, answered as it comes. Both bodies stream; whoever is slow holds the other end,
// and what that leaves in memory is counted. A reset goes through with its code.
import { type ClientHttp2Stream, constants, type ServerHttp2Stream } from 'node:http2';
import { bodyBytesMax } from '../../vault/vault.ts';
import type { Admission, Admitted, Refused } from '../gate.ts';
import { Gathered } from '../gathered.ts';
import { Malformed } from '../http1/head.ts';
import type { HeldMemory, Holder } from '../memory.ts';
import { authorityText } from '../place.ts';
import { bodyTooLong, bodyUnusable, malformedRefusal, requestRefusal, upstreamRefusal } from '../refusal.ts';
import { createFinder, scrubText } from '../scrub.ts';
import { decoderFor, ScrubbedAnswer, type ScrubbedSink } from '../scrubbed-answer.ts';
import type { Destination } from '../upstream.ts';
import { answerHeaders, type Http2Head, objectOf, readHead, trailersOf } from './head.ts';

const { NGHTTP2_NO_ERROR, NGHTTP2_CANCEL, NGHTTP2_REFUSED_STREAM, NGHTTP2_INTERNAL_ERROR } = constants;
const endsStream = constants.NGHTTP2_FLAG_END_STREAM;

/** What a stream may receive before it is read: towards us from the world, and from the guest. */
export const worldWindowBytes = 512 * 1024;
export const guestWindowBytes = 64 * 1024;

const interimAnswersMax = 16;

/** Headers as they are: the date is the world's to give. */
const plainAnswer = { endStream: false, sendDate: false };

/** What an exchange asks of the connection that it is on. */
export interface ExchangeHost {
  readonly destination: Destination;
  readonly address: string | undefined;
  readonly memory: HeldMemory;
  admit(head: Http2Head, signal: AbortSignal): Admission | Promise<Admission>;
  malformed(error: Malformed): void;
  /** Undefined when the world's side takes no more requests: the guest may safely ask again on another connection. */
  send(headers: string[], endStream: boolean): ClientHttp2Stream | undefined;
  /** Whether the world's side is gone as a whole. */
  readonly worldGone: boolean;
  /** Once, last. `reset`: the guest gave it up. */
  over(exchange: Exchange, reset: boolean): void;
}

export class Exchange implements Holder, ScrubbedSink {
  readonly #host: ExchangeHost;
  readonly #guest: ServerHttp2Stream;
  readonly #raw: readonly string[];
  /** The request has no body. */
  readonly #bare: boolean;
  readonly #gone = new AbortController();
  #head: Http2Head | undefined;
  #admitted: Admitted | undefined;
  #world: ClientHttp2Stream | undefined;
  #finds: ((bytes: Buffer) => boolean) | undefined;
  #scrubbed: ScrubbedAnswer | undefined;
  #requestTrailers: [string, string][] = [];
  #answerTrailers: [string, string][] = [];
  #interimAnswers = 0;
  #bytesOut = 0;
  #bytesIn = 0;
  #status: number | undefined;
  #error: string | undefined;
  /** Of the answer's body: announced, if it was, and still to come. */
  #missing: number | undefined;
  /** The whole answer has been handed to the guest's stream. */
  #complete = false;
  /** We have ended the guest's stream ourselves, for better or worse. */
  #settled = false;
  #guestStalled = false;
  #worldStalled = false;
  #heldBytes = 0;

  constructor(host: ExchangeHost, guest: ServerHttp2Stream, raw: readonly string[], flags: number) {
    this.#host = host;
    this.#guest = guest;
    this.#raw = raw;
    this.#bare = (flags & endsStream) !== 0;
    // What matters of an error is in `rstCode` when it closes.
    guest.on('error', () => {});
    guest.on('aborted', () => this.#guestGone());
    guest.once('close', () => this.#close());
  }

  begin(): void {
    try {
      this.#head = readHead(this.#raw);
    } catch (error) {
      if (!(error instanceof Malformed)) throw error;
      this.#host.malformed(error);
      this.#refuse(malformedRefusal(error.status, error.message));
      return;
    }
    this.#bytesOut = this.#head.bytes;
    const admission = this.#host.admit(this.#head, this.#gone.signal);
    if (!(admission instanceof Promise)) {
      this.#decided(admission);
      return;
    }
    // Until then, its body waits here.
    this.#guestStalled = !this.#bare;
    this.#count();
    void admission.then((settled) => {
      this.#guestStalled = false;
      this.#count();
      this.#decided(settled);
    });
  }

  /** A person is being asked, or the like: silence is no wonder. */
  get deciding(): boolean {
    return this.#admitted === undefined && !this.#settled;
  }

  /** Whether the policy as it is now lets this go on. */
  get stillAllowed(): boolean {
    return this.#admitted === undefined || this.#admitted.stillAllowed;
  }

  /** Ends both sides at once. */
  cut(error: string): void {
    this.#end(error, NGHTTP2_CANCEL);
  }

  shed(): void {
    this.#end('memory', constants.NGHTTP2_ENHANCE_YOUR_CALM);
  }

  #decided(admission: Admission): void {
    if (admission.kind === 'refused') {
      this.#refuse(admission);
      return;
    }
    this.#admitted = admission;
    const { address } = this.#host;
    if (address !== undefined) admission.entry.note({ address });
    if (this.#guest.closed) {
      admission.entry.end({ bytesOut: 0, bytesIn: 0, error: 'guest_closed' });
      return;
    }
    if (admission.forbidden.length > 0) this.#finds = createFinder(admission.forbidden);
    if (admission.body === undefined || this.#bare) this.#send(admission.headers, undefined);
    else this.#collect(admission.body);
  }

  // The guest's request.

  #send(headers: Admitted['headers'], whole: Buffer | undefined): void {
    const { method, contentLength, wantsTrailers } = this.#head as Http2Head;
    const list = [':method', method, ':scheme', 'https'];
    list.push(':authority', authorityText(this.#host.destination, 'https'));
    list.push(':path', (this.#admitted as Admitted).target);
    for (const [name, value] of headers) if (name !== 'content-length') list.push(name, value);
    const length = whole === undefined ? contentLength : String(whole.length);
    if (length !== undefined) list.push('content-length', length);
    if (wantsTrailers) list.push('te', 'trailers');
    const world = this.#host.send(list, this.#bare);
    if (world === undefined) {
      this.#end('reset', NGHTTP2_REFUSED_STREAM);
      return;
    }
    this.#world = world;
    world.on('error', () => {});
    world.on('headers', (_, __, raw: string[]) => this.#interim(raw));
    world.on('response', (_, flags, raw: string[]) => this.#answer(raw, flags));
    world.on('data', (bytes: Buffer) => this.#answerBody(bytes));
    world.on('trailers', (_, __, raw: string[]) => {
      this.#answerTrailers = trailersOf(raw);
    });
    // A reset ends the body, too; `close` tells it apart.
    world.on('end', () => world.rstCode === NGHTTP2_NO_ERROR && this.#answerEnded());
    world.on('wantTrailers', () => {
      if (!world.closed) world.sendTrailers(objectOf(this.#requestTrailers));
    });
    world.on('drain', () => {
      this.#guestStalled = false;
      this.#count();
      this.#guest.resume();
    });
    world.once('close', () => this.#worldClosed(world));
    if (whole !== undefined) world.end(whole);
    else if (!this.#bare) this.#upload(world);
  }

  #upload(world: ClientHttp2Stream): void {
    const guest = this.#guest;
    guest.on('trailers', (_, __, raw: string[]) => {
      this.#requestTrailers = trailersOf(raw);
      if (this.#finds?.(Buffer.from(this.#requestTrailers.join('\n'), 'latin1'))) this.#stolen();
    });
    guest.on('data', (bytes: Buffer) => {
      this.#bytesOut += bytes.length;
      if (this.#finds?.(bytes)) {
        this.#stolen();
        return;
      }
      if (!world.writable || world.write(bytes)) return;
      guest.pause();
      this.#guestStalled = true;
      this.#count();
    });
    guest.on('end', () => {
      if (guest.rstCode === NGHTTP2_NO_ERROR && !guest.aborted && world.writable) world.end();
    });
  }

  /** The body has to be seen whole first. */
  #collect(rewrite: NonNullable<Admitted['body']>): void {
    const guest = this.#guest;
    const { contentLength, expectsContinue } = this.#head as Http2Head;
    const tooLong = () => this.#refuse(bodyTooLong, 'body-too-large');
    if (Number(contentLength ?? 0) > bodyBytesMax) {
      tooLong();
      return;
    }
    if (expectsContinue) guest.additionalHeaders({ ':status': 100 });
    const gathered = new Gathered();
    guest.on('data', (bytes: Buffer) => {
      this.#bytesOut += bytes.length;
      if (this.#finds?.(bytes)) {
        this.#stolen();
        return;
      }
      if (!gathered.add(bytes)) {
        tooLong();
        return;
      }
      this.#heldBytes = gathered.heldBytes;
      this.#count();
    });
    guest.on('end', () => {
      if (guest.rstCode !== NGHTTP2_NO_ERROR || guest.aborted || this.#settled) return;
      try {
        const { body, headers } = rewrite(gathered.whole);
        // Counted until it is over, for the world may take its time.
        this.#heldBytes = body.length;
        this.#count();
        if (!this.#settled) this.#send(headers, body);
      } catch {
        this.#refuse(bodyUnusable, 'body-unusable');
      }
    });
  }

  /** A placeholder was on its way to where it does not belong. */
  #stolen(): void {
    const message = 'A placeholder of a secret was about to leave in the body of a request.';
    this.#admitted?.entry.note({ alarm: message });
    if (this.#guest.headersSent) this.#end('placeholder', NGHTTP2_CANCEL);
    else this.#refuse(requestRefusal(403, 'placeholder', message), 'placeholder');
  }

  // The world's answer.

  #interim(raw: readonly string[]): void {
    const status = Number(raw[raw.indexOf(':status') + 1]);
    this.#interimAnswers += 1;
    if (this.#interimAnswers > interimAnswersMax) {
      this.#fail('bad_answer', 'It sent too many interim answers.');
      return;
    }
    if (this.#guest.closed || this.#guest.headersSent || status === 101) return;
    if ((this.#admitted as Admitted).scrub.length > 0 && status !== 100) return;
    this.#guest.additionalHeaders({ ...objectOf(answerHeaders(raw)), ':status': status });
  }

  #answer(raw: readonly string[], flags: number): void {
    const guest = this.#guest;
    if (guest.closed || guest.headersSent) return;
    const { scrub, entry } = this.#admitted as Admitted;
    const status = Number(raw[raw.indexOf(':status') + 1]);
    let headers = answerHeaders(raw);
    const length = headers.find(([name]) => name === 'content-length')?.[1];
    if (length !== undefined) this.#missing = Number(length);
    const { method } = this.#head as Http2Head;
    const bodiless =
      (flags & endsStream) !== 0 || method === 'HEAD' || status === 204 || status === 205 || status === 304;
    if (scrub.length > 0) {
      if (!bodiless) {
        const encoding = headers
          .filter(([name]) => name === 'content-encoding')
          .map(([, value]) => value)
          .join(', ');
        const plain = encoding === '' || encoding.toLowerCase() === 'identity';
        const decoder = plain ? undefined : decoderFor(encoding);
        if (!plain && decoder === undefined) {
          this.#fail('bad_answer', 'Its answer is compressed in a way that is not known here.');
          return;
        }
        this.#scrubbed = new ScrubbedAnswer(scrub, decoder, this);
        if (decoder !== undefined)
          headers = headers.filter(([name]) => name !== 'content-encoding' && name !== 'content-length');
      }
      headers = headers.map(([name, value]) => [scrubText(name, scrub), scrubText(value, scrub)]);
    }
    this.#status = status;
    entry.note({ status });
    this.#bytesIn += headers.reduce((sum, [name, value]) => sum + name.length + value.length, 0);
    try {
      // With trailers to come, node:http2 never ends a body that is cut off as if it were whole.
      const options = { ...plainAnswer, endStream: bodiless, waitForTrailers: !bodiless };
      guest.respond([':status', String(status), ...headers.flat()], options);
    } catch {
      this.#end('bad_answer', NGHTTP2_INTERNAL_ERROR);
      return;
    }
    if (bodiless) {
      this.#completed();
      return;
    }
    guest.on('wantTrailers', () => {
      if (!guest.closed) guest.sendTrailers(objectOf(this.#scrubTrailers()));
    });
    guest.on('drain', () => {
      this.#scrubbed?.go();
      this.#worldGoesOn();
    });
  }

  #scrubTrailers(): [string, string][] {
    const { scrub } = this.#admitted as Admitted;
    if (scrub.length === 0) return this.#answerTrailers;
    return this.#answerTrailers.map(([name, value]) => [scrubText(name, scrub), scrubText(value, scrub)]);
  }

  #answerBody(bytes: Buffer): void {
    if (this.#settled || this.#complete) return;
    if (this.#missing !== undefined) this.#missing -= bytes.length;
    if (this.#scrubbed === undefined) {
      this.scrubbed(bytes);
      return;
    }
    if (!this.#scrubbed.write(bytes)) this.#worldWaits();
  }

  #answerEnded(): void {
    if (this.#settled || this.#complete) return;
    // A reset without an error looks like an end.
    if (this.#missing !== undefined && this.#missing > 0) this.#end('reset', NGHTTP2_INTERNAL_ERROR);
    else if (this.#scrubbed === undefined) this.scrubbedEnd();
    else this.#scrubbed.end();
  }

  scrubbed(bytes: Buffer): void {
    const guest = this.#guest;
    this.#bytesIn += bytes.length;
    if (guest.writable && !guest.write(bytes)) this.#worldWaits();
  }

  scrubbedPaused(): boolean {
    return !this.#guest.writableNeedDrain;
  }

  scrubbedEnd(): void {
    if (this.#guest.writable) this.#guest.end();
    this.#completed();
  }

  scrubbedFailed(message: string): void {
    this.#fail('bad_answer', message);
  }

  scrubberDrained(): void {
    if (!this.#guest.writableNeedDrain) this.#worldGoesOn();
  }

  #worldWaits(): void {
    if (this.#worldStalled) return;
    this.#worldStalled = true;
    this.#world?.pause();
    this.#count();
  }

  #worldGoesOn(): void {
    if (!this.#worldStalled) return;
    this.#worldStalled = false;
    this.#count();
    this.#world?.resume();
  }

  #completed(): void {
    this.#complete = true;
    // An answer may come before the request has ended (RFC 9113 §8.1): what still comes of that is for nobody.
    if (this.#world?.closed === true) this.#stopUpload();
  }

  #worldClosed(world: ClientHttp2Stream): void {
    if (this.#settled) return;
    if (this.#complete) {
      this.#stopUpload();
      return;
    }
    // The decoder still has something to say.
    if (this.#scrubbed !== undefined && world.rstCode === NGHTTP2_NO_ERROR && world.readableEnded) return;
    if (this.#host.worldGone && !this.#guest.headersSent) this.#fail('reset', 'It broke the connection off.');
    else this.#end('reset', world.rstCode === NGHTTP2_NO_ERROR ? NGHTTP2_INTERNAL_ERROR : world.rstCode);
  }

  #stopUpload(): void {
    const guest = this.#guest;
    if (this.#bare || guest.readableEnded || guest.closed) return;
    // Apart from the answer's end: clients on node:http2 that read both at once take the answer for cut off.
    const stop = () => setImmediate(() => close(guest, NGHTTP2_NO_ERROR));
    if (guest.writableFinished) stop();
    else guest.once('finish', stop);
  }

  // Ends.

  #fail(error: string, message: string): void {
    if (this.#guest.headersSent) this.#end(error, NGHTTP2_INTERNAL_ERROR);
    else this.#refuse(upstreamRefusal(this.#host.destination, 'https', { code: error, message }), error);
  }

  /** Nothing has been answered yet, so that can still be done properly. Other streams of the connection are none the worse for it. */
  #refuse(refusal: Refused, error?: string): void {
    const guest = this.#guest;
    if (this.#settled || guest.closed) return;
    this.#settle(error, NGHTTP2_CANCEL);
    this.#status = refusal.status;
    this.#complete = error === undefined;
    const body = Buffer.from(refusal.body);
    this.#bytesIn += body.length;
    guest.respond(
      [
        ...[':status', String(refusal.status), 'content-length', String(body.length)],
        ...refusal.headers.flatMap(([name, value]) => [name.toLowerCase(), value]),
      ],
      plainAnswer,
    );
    if (guest.writable) guest.end(body);
    this.#stopUpload();
  }

  #end(error: string, code: number): void {
    if (this.#settled) return;
    this.#settle(error, code);
    close(this.#guest, code);
  }

  #guestGone(): void {
    if (this.#settled) return;
    this.#settle('guest_closed', this.#guest.rstCode || NGHTTP2_CANCEL);
    this.#guest.resume();
  }

  #settle(error: string | undefined, code: number): void {
    this.#settled = true;
    this.#error = error;
    this.#gone.abort();
    this.#scrubbed?.close();
    if (this.#world !== undefined) close(this.#world, code);
    this.#guestStalled = false;
    this.#worldStalled = false;
    this.#heldBytes = 0;
    this.#count();
    this.#guest.removeAllListeners('data');
  }

  #close(): void {
    const whole = this.#complete && this.#guest.rstCode === NGHTTP2_NO_ERROR;
    const reset = this.#settled ? this.#error === 'guest_closed' : !whole;
    if (!this.#settled)
      this.#settle(whole ? undefined : 'guest_closed', this.#guest.rstCode || NGHTTP2_CANCEL);
    this.#admitted?.entry.end({
      bytesOut: this.#bytesOut,
      bytesIn: this.#bytesIn,
      ...(this.#status !== undefined && { status: this.#status }),
      ...(this.#error !== undefined && { error: this.#error }),
    });
    this.#host.over(this, reset);
  }

  #count(): void {
    const held =
      (this.#guestStalled ? guestWindowBytes : 0) +
      (this.#worldStalled ? worldWindowBytes : 0) +
      this.#heldBytes;
    this.#host.memory.set(this, held);
  }
}

/** A stream closes only when it has been read to its end, wanted or not. */
function close(stream: ServerHttp2Stream | ClientHttp2Stream, code: number): void {
  stream.removeAllListeners('data');
  if (!stream.closed) stream.close(code);
  stream.resume();
}
