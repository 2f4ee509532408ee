// One request and its answer: the body read within its bounds, the answer written whole or line by line, and whether the caller is still there.
import type { IncomingMessage, ServerResponse } from 'node:http';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { bellRequestBytesMax, type ExecEvent } from '../contract/bell.ts';
import { BellError } from './bell.ts';
import { Refusal, type Reply } from './replies.ts';

export interface ExchangeLimits {
  /** For the whole body, from the end of the head on. */
  bodyMs: number;
  /** Until a whole answer has been taken. */
  sendMs: number;
  /** What is read of a body after its request has been refused, so that a caller who writes first and reads then sees the answer. */
  lingerMs: number;
  lingerBytesMax: number;
}

/** No answer may be taken for a page, kept, or guessed at. */
export const alwaysHeaders = {
  'Content-Type': 'application/json',
  'Cache-Control': 'no-store',
  'X-Content-Type-Options': 'nosniff',
} as const;

const callerGone = 'the caller has gone';

export class Exchange {
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  readonly #limits: ExchangeLimits;
  readonly #expectsContinue: boolean;
  readonly #controller = new AbortController();
  #drained: Promise<void> | undefined;
  #exitSent = false;
  #spoiled: Refusal | undefined;
  #onSpoiled: (refusal: Refusal) => void = () => undefined;
  #answered = false;

  constructor(
    request: IncomingMessage,
    response: ServerResponse,
    options: { limits: ExchangeLimits; expectsContinue: boolean },
  ) {
    this.request = request;
    this.response = response;
    this.#limits = options.limits;
    this.#expectsContinue = options.expectsContinue;
    // An answer that cannot be written any more shows at the socket.
    request.on('error', () => undefined);
    response.on('error', () => undefined);
  }

  /** Aborted when nobody waits for the answer any more. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  abort(why = callerGone): void {
    this.#controller.abort(new BellError('failed', why));
  }

  /** What comes of the body cannot be understood. */
  spoil(refusal: Refusal): void {
    this.#spoiled = refusal;
    this.#onSpoiled(refusal);
  }

  /** Throws BellError when it is too large, too slow or incomplete. */
  async readBody(): Promise<Buffer> {
    const { request, response, signal } = this;
    if (Number(request.headers['content-length'] ?? 0) > bellRequestBytesMax) throw tooLarge();
    if (this.#expectsContinue) response.writeContinue();
    const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
    const chunks: Buffer[] = [];
    let bytes = 0;
    const take = (chunk: Buffer) => {
      bytes += chunk.length;
      if (bytes > bellRequestBytesMax) reject(tooLarge());
      else chunks.push(chunk);
    };
    this.#onSpoiled = reject;
    if (this.#spoiled !== undefined) reject(this.#spoiled);
    const gone = () => reject(new BellError('failed', callerGone));
    const seconds = this.#limits.bodyMs / 1_000;
    const late = setTimeout(
      () =>
        reject(
          new Refusal('bad_request', `the body did not arrive within ${seconds} seconds`, { status: 408 }),
        ),
      this.#limits.bodyMs,
    );
    request.on('data', take).once('end', () => resolve(Buffer.concat(chunks)));
    signal.addEventListener('abort', gone, { once: true });
    if (signal.aborted) gone();
    try {
      return await promise;
    } finally {
      clearTimeout(late);
      request.off('data', take);
      signal.removeEventListener('abort', gone);
    }
  }

  /** At most once, and only when no line has been sent. Never rejects. */
  async send(reply: Reply, { close }: { close: boolean }): Promise<void> {
    const { request, response } = this;
    // What came in one piece with its head is complete only now.
    if (!request.complete) await nextTurn();
    if (response.destroyed || response.headersSent) return;
    const unread = !request.complete;
    response.writeHead(reply.status, {
      ...alwaysHeaders,
      'Content-Length': Buffer.byteLength(reply.body),
      ...reply.headers,
      ...(close || unread ? { Connection: 'close' } : {}),
    });
    if (request.method !== 'HEAD') response.write(reply.body);
    if (unread) await this.#linger();
    this.#end();
  }

  /** Resolves when more may be sent, or nobody is there to take it. */
  async emit(event: ExecEvent | { type: 'error'; error: string; code: string }): Promise<void> {
    // Nothing follows the exit.
    if (this.#exitSent) return;
    this.#exitSent = event.type === 'exit';
    const { response } = this;
    if (this.#answered || this.signal.aborted || response.destroyed) return;
    if (!response.headersSent)
      response.writeHead(200, { ...alwaysHeaders, 'Content-Type': 'application/x-ndjson' });
    if (!response.write(`${JSON.stringify(event)}\n`)) await this.#drain();
  }

  /** After the last line. */
  endLines(): void {
    this.#end();
  }

  /**
   * The caller has ended its side of the connection: it may have gone, or wait for the answer all the same. Writing tells, as the other side's kernel
   * refuses what nobody is there to take. What is written means nothing to one that waits.
   */
  probe(): void {
    const { request, response } = this;
    if (this.#answered) return;
    if (response.headersSent) response.write('\n');
    else if (request.httpVersion === '1.0') request.socket.destroy();
    else response.writeProcessing();
  }

  #end(): void {
    this.#answered = true;
    const { request, response, signal } = this;
    const late = setTimeout(() => request.socket.destroy(), this.#limits.sendMs);
    const over = () => clearTimeout(late);
    response.once('close', over);
    // One whose turn on its connection never came is not closed.
    signal.addEventListener('abort', over, { once: true });
    if (response.destroyed) over();
    response.end();
  }

  #drain(): Promise<void> {
    this.#drained ??= new Promise<void>((resolve) => {
      const { response, signal } = this;
      const done = () => {
        this.#drained = undefined;
        response.off('drain', done);
        signal.removeEventListener('abort', done);
        resolve();
      };
      response.once('drain', done);
      signal.addEventListener('abort', done, { once: true });
    });
    return this.#drained;
  }

  async #linger(): Promise<void> {
    const { request, signal } = this;
    const { promise, resolve } = Promise.withResolvers<void>();
    const late = setTimeout(resolve, this.#limits.lingerMs);
    const done = () => resolve();
    let bytes = 0;
    request.on('data', (chunk: Buffer) => {
      bytes += chunk.length;
      if (bytes > this.#limits.lingerBytesMax) resolve();
    });
    request.once('end', done);
    this.#onSpoiled = done;
    signal.addEventListener('abort', done, { once: true });
    if (signal.aborted || this.#spoiled !== undefined) done();
    await promise;
    clearTimeout(late);
    signal.removeEventListener('abort', done);
  }
}

const tooLarge = () =>
  new BellError('too_large', `the body is larger than ${bellRequestBytesMax} bytes, which is the most`);
