// Our end of an HTTP/1.1 connection of a guest: requests read strictly, one after the other; answers in the same order. Knows nothing of policies.
import type { Deadlines, Expiring } from '../deadlines.ts';
import type { Refused } from '../gate.ts';
import type { Wire, WireReader } from '../wire.ts';
import { type BodyReader, type BodySink, bodyReader } from './body.ts';
import {
  checkFirstLine,
  endOfHead,
  type Framing,
  type Header,
  Malformed,
  parseRequestHead,
  type RequestHead,
} from './head.ts';
import { Output } from './output.ts';
import { headerLines } from './write.ts';

/** Of requests that have come before the one in front of them was answered. */
const aheadBytesMax = 64 * 1024;

/** Silence that is put up with when the guest has said all. */
const endedIdleMs = 60_000;

/** Whoever deals with one request. */
export interface RequestReader {
  /** Once, first. Answers the request, now or later, or takes the wire (`release`). */
  begin(): void;
  /** After `readBody` only. */
  requestBody(bytes: Buffer): void;
  /** All that one read brought has been told. */
  requestPaused(): void;
  requestEnded(): void;
  guestDrained(): void;
  /** The guest says no more. It may still wait for its answer. */
  guestEnded(): void;
  /** The guest is gone, or has broken off its request. */
  guestGone(): void;
  /** Nothing has moved for too long. */
  silent(): void;
}

/** Whoever deals with all requests of a connection. */
export interface RequestServer {
  request(head: RequestHead, guest: Http1Guest): RequestReader;
  /** What came is no request; it will be answered, unless `guest.handOver` is called. */
  malformed(error: Malformed, guest: Http1Guest): void;
  /** How that is answered; a default when absent. */
  refusalOf?(error: Malformed): Refused;
  /** The connection is over. */
  over(): void;
}

export interface GuestLimits {
  headMs: number;
  /** Without a request, and without a byte in the middle of one. */
  idleMs: number;
  /** So much of a body that nobody wants is read, so that its sender gets to the answer and to its next request; else the connection ends behind the answer. */
  droppedBytesMax?: number;
}

export class Http1Guest implements WireReader, BodySink, Expiring {
  readonly wire: Wire;
  readonly output: Output;
  deadline: number;
  /** Of the current request, as they crossed this connection. */
  bytesOut = 0;
  bytesIn = 0;
  readonly #server: RequestServer;
  readonly #deadlines: Deadlines;
  readonly #limits: GuestLimits;
  /** While a request is under way, in the place of `idleMs`. */
  silentMs: number | undefined;
  #rest: Buffer | undefined;
  #seen = 0;
  #head: RequestHead | undefined;
  #reader: RequestReader | undefined;
  #body: BodyReader | undefined;
  #headBytes: Buffer | undefined;
  #bodyOpen = false;
  #chunked = false;
  #keep = true;
  #answered = false;
  #continued = false;
  #advancing = false;
  #over = false;

  constructor(wire: Wire, server: RequestServer, deadlines: Deadlines, limits: GuestLimits) {
    this.wire = wire;
    this.output = new Output(wire);
    this.#server = server;
    this.#deadlines = deadlines;
    this.#limits = limits;
    this.deadline = deadlines.now() + limits.headMs;
    deadlines.watch(this);
    wire.take(this);
  }

  /** Whether the current request has come wholly. */
  get bodyDone(): boolean {
    return this.#body === undefined || this.#body.done;
  }

  /** From now on the body of the current request is read, and given to its reader. What has come of it already comes before this returns. */
  readBody(): void {
    this.#bodyOpen = true;
    const rest = this.#rest;
    this.#rest = undefined;
    this.#readBody(rest ?? nothing);
    if (!this.bodyDone) this.wire.go();
  }

  /** Says to go on with the body, to who waits for that. */
  continue(): void {
    this.#continued = true;
    this.output.text('HTTP/1.1 100 Continue\r\n\r\n');
    this.output.flush();
  }

  informed(status: number, reason: string, headers: readonly Header[], spelt: readonly string[]): void {
    if (this.#head?.minor !== 1) return;
    this.output.text(`HTTP/1.1 ${status} ${reason}\r\n${headerLines(headers, spelt)}\r\n`);
  }

  /** The head of the answer. `framing` is that of what will be given to `payload`; `declared` is a Content-Length without a body. */
  answer(
    { status, reason, lines }: { status: number; reason: string; lines: string },
    framing: Framing,
    declared?: string,
  ): void {
    let text = `HTTP/1.1 ${status} ${reason}\r\n${lines}`;
    const minor = this.#head?.minor ?? 1;
    this.#chunked = false;
    const isLast = this.wire.ended && this.#rest === undefined;
    if (this.#head?.keepAlive === false || !(this.bodyDone || this.#droppable) || isLast) this.#keep = false;
    if (framing.kind === 'length') text += `Content-Length: ${framing.bytes}\r\n`;
    else if (framing.kind === 'none') {
      if (declared !== undefined) text += `Content-Length: ${declared}\r\n`;
    } else if (minor === 1) {
      this.#chunked = true;
      text += 'Transfer-Encoding: chunked\r\n';
    } else this.#keep = false;
    if (!this.#keep) text += 'Connection: close\r\n';
    else if (minor === 0) text += 'Connection: keep-alive\r\n';
    text += '\r\n';
    this.#answered = true;
    this.bytesIn += text.length;
    this.output.text(text);
  }

  /** 101; what follows is not HTTP. */
  switch(lines: string): void {
    const text = `HTTP/1.1 101 Switching Protocols\r\n${lines}\r\n`;
    this.bytesIn += text.length;
    this.output.text(text);
    this.output.flush();
  }

  payload(bytes: Buffer): void {
    this.bytesIn += bytes.length;
    this.output.payload(bytes, this.#chunked);
  }

  /** False when no more should come until `guestDrained`. */
  flush(): boolean {
    this.touch();
    return this.output.flush();
  }

  /** The answer is whole: the next request, or the end. */
  finish(): void {
    if (this.#chunked) this.output.text('0\r\n\r\n');
    this.output.flush();
    if (this.#keep && !this.bodyDone && !this.wire.closed) return this.#dropRest();
    const keep = this.#keep && this.bodyDone;
    this.#head = undefined;
    this.#reader = undefined;
    this.#body = undefined;
    this.#bodyOpen = false;
    if (!keep) return this.#leave();
    this.deadline = this.#deadlines.now() + this.#limits.idleMs;
    if (this.#rest === undefined) {
      if (this.wire.ended) this.#leave();
      else this.wire.go();
    } else this.#advance();
  }

  /** Whoever waits to be told to go on may never send its body. */
  get #droppable(): boolean {
    return (
      this.#limits.droppedBytesMax !== undefined && (this.#continued || this.#head?.expectsContinue === false)
    );
  }

  #dropRest(): void {
    const { droppedBytesMax = 0 } = this.#limits;
    let dropped = 0;
    this.silentMs = undefined;
    this.#chunked = false;
    this.#reader = {
      ...nobody,
      requestBody: ({ length }) => {
        dropped += length;
        if (dropped > droppedBytesMax) this.abort();
      },
      requestEnded: () => this.finish(),
      silent: () => this.abort(),
    };
    this.readBody();
  }

  /** Answers the current request, or what should have been one, by ourselves. */
  refuse({ status, headers, body, close }: Refused): void {
    if (close) this.#keep = false;
    const bytes = Buffer.from(body);
    this.answer(
      {
        status,
        reason: reasonOf(status),
        lines: headerLines(
          headers,
          headers.map(([name]) => name),
        ),
      },
      { kind: 'length', bytes: bytes.length },
    );
    if (this.#head?.method !== 'HEAD') this.payload(bytes);
    this.finish();
  }

  /** At once, for an answer cannot be whole any more. */
  abort(): void {
    this.#end();
    this.wire.close();
  }

  /**
   * As `release`, with the current request in front: for who can read it as well, from its first byte. Only from `malformed`, and from `begin` of a request.
   */
  handOver(): Wire {
    const rest = this.#rest;
    const head = this.#headBytes ?? nothing;
    this.#rest = rest === undefined ? head : Buffer.concat([head, rest]);
    return this.release();
  }

  /** No request after this one. */
  last(): void {
    this.#keep = false;
  }

  /** The wire for somebody else, with what has come on it and was not read. The server is told nothing any more. */
  release(): Wire {
    this.#over = true;
    this.#reader = undefined;
    this.#deadlines.forget(this);
    this.output.flush();
    this.wire.release(this.#rest);
    this.#rest = undefined;
    return this.wire;
  }

  touch(): void {
    const idleMs = this.silentMs ?? this.#limits.idleMs;
    // One that says no more may have gone altogether; that cannot be seen before we write to it.
    this.deadline = this.#deadlines.now() + (this.wire.ended ? Math.min(idleMs, endedIdleMs) : idleMs);
  }

  /** Something else has a limit of its own for a while. */
  patience(): void {
    this.deadline = Number.POSITIVE_INFINITY;
  }

  data(bytes: Buffer): void {
    if (this.#bodyOpen && !this.bodyDone) {
      this.touch();
      this.#readBody(bytes);
      return;
    }
    this.#rest = this.#rest === undefined ? bytes : Buffer.concat([this.#rest, bytes]);
    if (this.#reader === undefined) this.#advance();
    else if (this.#rest.length > aheadBytesMax) this.wire.hold();
  }

  end(): void {
    if (this.#reader === undefined) this.#leave();
    else if (this.bodyDone) this.#reader.guestEnded();
    else if (this.#bodyOpen) this.#breakOff();
  }

  drained(): void {
    this.touch();
    this.#reader?.guestDrained();
  }

  gone(): void {
    this.#breakOff();
  }

  expired(): void {
    if (this.#reader !== undefined) {
      this.touch();
      this.#reader.silent();
    } else if (this.#rest === undefined) this.#leave();
    else this.#refuseMalformed(new Malformed(408, 'The request did not come in time.'));
  }

  body(bytes: Buffer): void {
    this.bytesOut += bytes.length;
    this.#reader?.requestBody(bytes);
  }

  #readBody(bytes: Buffer): void {
    const body = this.#body as BodyReader;
    const reader = this.#reader;
    try {
      const at = body.read(bytes, 0, this);
      const rest = at < bytes.length ? bytes.subarray(at) : undefined;
      // The reader may have given up meanwhile. What is behind the body is the next request all the same.
      if (this.#reader !== reader || reader === undefined) {
        if (rest === undefined || this.#over) return;
        this.#rest = rest;
        return this.#advance();
      }
      if (rest !== undefined) this.#rest = rest;
      if (body.done) reader.requestEnded();
      else if (this.wire.ended) this.#breakOff();
      reader.requestPaused();
    } catch (error) {
      if (!(error instanceof Malformed)) throw error;
      this.#reader = undefined;
      reader?.guestGone();
      if (this.#answered) this.abort();
      else this.#refuseMalformed(error);
    }
  }

  #breakOff(): void {
    const reader = this.#reader;
    this.abort();
    reader?.guestGone();
  }

  /** Requests as long as each is answered at once; a loop, for thousands may come in one read. */
  #advance(): void {
    if (this.#advancing) return;
    this.#advancing = true;
    try {
      while (this.#reader === undefined && this.#rest !== undefined && !this.#over) {
        const rest = this.#rest;
        const end = endOfHead(rest, this.#seen);
        if (end < 0) {
          checkFirstLine(rest);
          if (this.wire.ended) return this.#leave();
          // The time for a head runs from its first byte.
          if (this.#seen === 0) this.deadline = this.#deadlines.now() + this.#limits.headMs;
          this.#seen = rest.length;
          this.wire.go();
          return;
        }
        this.#seen = 0;
        const head = parseRequestHead(rest.toString('latin1', 0, end));
        this.#headBytes = end < rest.length ? rest.subarray(0, end) : rest;
        this.#rest = end < rest.length ? rest.subarray(end) : undefined;
        this.#begin(head, end);
        this.#headBytes = undefined;
      }
    } catch (error) {
      if (!(error instanceof Malformed)) throw error;
      this.#server.malformed(error, this);
      if (!this.#over) this.#refuseMalformed(error);
    } finally {
      this.#advancing = false;
    }
  }

  #begin(head: RequestHead, headBytes: number): void {
    this.#head = head;
    this.#body = bodyReader(head.framing);
    this.bytesOut = headBytes;
    this.bytesIn = 0;
    this.touch();
    this.#answered = false;
    this.#continued = false;
    this.#reader = this.#server.request(head, this);
    this.#reader.begin();
  }

  #refuseMalformed(error: Malformed): void {
    this.#rest = undefined;
    this.#body = undefined;
    this.refuse(
      this.#server.refusalOf?.(error) ?? {
        kind: 'refused',
        status: error.status,
        headers: [
          ['Content-Type', 'text/plain; charset=utf-8'],
          ['X-Glovebox-Deny', 'malformed'],
        ],
        body: `${error.message}\n`,
        close: true,
      },
    );
  }

  #leave(): void {
    this.#end();
    this.wire.goodbye();
  }

  #end(): void {
    this.#reader = undefined;
    if (this.#over) return;
    this.#over = true;
    this.#deadlines.forget(this);
    this.#server.over();
  }
}

const nothing = Buffer.alloc(0);

/** Hears nothing of its request. */
export const nobody: RequestReader = {
  begin: () => {},
  requestBody: () => {},
  requestPaused: () => {},
  requestEnded: () => {},
  guestDrained: () => {},
  guestEnded: () => {},
  guestGone: () => {},
  silent: () => {},
};

const reasons: ReadonlyMap<number, string> = new Map([
  [400, 'Bad Request'],
  [403, 'Forbidden'],
  [405, 'Method Not Allowed'],
  [408, 'Request Timeout'],
  [413, 'Content Too Large'],
  [417, 'Expectation Failed'],
  [421, 'Misdirected Request'],
  [429, 'Too Many Requests'],
  [431, 'Request Header Fields Too Large'],
  [502, 'Bad Gateway'],
  [503, 'Service Unavailable'],
  [504, 'Gateway Timeout'],
]);

export const reasonOf = (status: number): string => reasons.get(status) ?? 'Refused';
