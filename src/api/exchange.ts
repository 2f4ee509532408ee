// One HTTP request and its answer, on Node's own streams: bodies pass through with back-pressure and are never held but for bounded JSON.
import { randomUUID } from 'node:crypto';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { z } from 'zod';
import {
  type Area,
  type ErrorBody,
  errorHeaders,
  finerAnswerOf,
  httpStatusOf,
  wireCodeOf,
} from '../contract/errors.ts';
import { Failure } from '../lib/failure.ts';
import { YoungGarbage } from '../lib/young-garbage.ts';
import { errorPage } from './error-page.ts';
import { Refusal } from './refusal.ts';

/** A command line and its environment may reach the guest protocol's 4 MiB; as JSON it may take twice that. */
const jsonBytesMax = 8 * 1024 * 1024;
/** Of a body that is of no use any more: so much is read and dropped, so that its sender gets to the answer and can use the connection again. */
const droppedBytesMax = 64 * 1024 * 1024;

/** What a handler answers. `taken` means that it has written the answer by itself. */
export type Answer =
  | { status: number; headers?: Record<string, string> }
  | { status: number; headers?: Record<string, string>; json: unknown }
  | {
      status: number;
      headers?: Record<string, string>;
      type: string;
      bytes: AsyncIterable<Uint8Array>;
      /** Sent as Content-Length; chunked when absent. More is cut off; less cuts the connection, so that nobody takes a part for the whole. */
      length?: number;
    }
  | 'taken';

export class Exchange {
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  readonly requestId: string;
  /** As in the request line, not decoded. */
  readonly path: string;
  readonly search: string;
  /** The exchange is over, whether answered or given up by its client, or the daemon stops and has waited long enough. */
  readonly signal: AbortSignal;
  /** Runs until somebody ends it: `abort` comes at once when the daemon stops. */
  endless = false;
  #isLast = false;
  readonly #gone = new AbortController();
  readonly #garbage = new YoungGarbage();

  constructor(request: IncomingMessage, response: ServerResponse) {
    this.request = request;
    this.response = response;
    this.signal = this.#gone.signal;
    const asked = request.headers['x-request-id'];
    this.requestId = typeof asked === 'string' && /^[\x21-\x7e]{1,128}$/.test(asked) ? asked : randomUUID();
    response.setHeader('X-Request-ID', this.requestId);
    const url = request.url ?? '/';
    const question = url.indexOf('?');
    this.path = question < 0 ? url : url.slice(0, question);
    this.search = question < 0 ? '' : url.slice(question + 1);
    // Also after a whole answer: what was opened for it and not read to its end (a HEAD) is given back.
    response.once('close', () => {
      const over = () => this.abort(new Failure('aborted', 'the client has gone'));
      // After a whole answer a turn later: pipeline() would take it for a failure and cut a connection that may be used again.
      if (response.writableFinished) setImmediate(over);
      else over();
    });
  }

  /** The connection ends behind its answer. */
  beLast(): void {
    if (this.#isLast) return;
    this.#isLast = true;
    const { request, response } = this;
    if (!response.headersSent) response.setHeader('Connection', 'close');
    response.once('finish', () => request.socket.destroySoon());
  }

  abort(reason: Failure): void {
    this.#gone.abort(reason);
  }

  /** The request's body. Leaving it half-read does not cut the connection, so that an answer can still be given. */
  body(): AsyncIterable<Uint8Array> {
    return {
      [Symbol.asyncIterator]: () => this.#passing(this.request.iterator({ destroyOnReturn: false })),
    };
  }

  async *#passing(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    for await (const chunk of chunks) {
      this.#garbage.passed(chunk.length);
      yield chunk;
    }
  }

  async readJson<S extends z.ZodType>(
    schema: S,
    {
      optional = false,
      bytesMax = jsonBytesMax,
    }: { optional?: boolean | undefined; bytesMax?: number | undefined },
  ): Promise<z.output<S>> {
    const encoding = this.request.headers['content-encoding'];
    if (encoding !== undefined && encoding !== 'identity')
      throw new Refusal('invalid', `the body is encoded as ${encoding}; send it as it is`, { status: 415 });
    const chunks: Uint8Array[] = [];
    let bytes = 0;
    for await (const chunk of this.body()) {
      bytes += chunk.length;
      if (bytes > bytesMax)
        throw new Refusal('invalid', `the body is longer than ${bytesMax} bytes`, { status: 413 });
      chunks.push(chunk);
    }
    let value: unknown = {};
    if (bytes > 0 || !optional)
      try {
        value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(Buffer.concat(chunks)));
      } catch (error) {
        throw new Failure('invalid', `the body is no JSON: ${(error as Error).message}`);
      }
    return checked(schema, value, 'the body');
  }

  async send(answer: Answer): Promise<void> {
    if (answer === 'taken') return;
    const { response } = this;
    if ('json' in answer) {
      const body = Buffer.from(JSON.stringify(answer.json));
      response.writeHead(answer.status, {
        'Content-Type': 'application/json',
        'Content-Length': body.length,
        ...answer.headers,
      });
      response.end(body);
      return;
    }
    if (!('bytes' in answer)) {
      // OpenSandbox's client cannot read an empty body that comes in chunks.
      const length = answer.status === 204 ? {} : { 'Content-Length': 0 };
      response.writeHead(answer.status, { ...length, ...answer.headers });
      response.end();
      return;
    }
    const { length } = answer;
    const source = length === undefined ? answer.bytes : exactly(answer.bytes, length);
    const bytes = source instanceof Readable ? source : Readable.from(source, { objectMode: false });
    response.writeHead(answer.status, {
      'Content-Type': answer.type,
      ...(length === undefined ? {} : { 'Content-Length': length }),
      ...answer.headers,
    });
    if (this.request.method === 'HEAD') {
      bytes.destroy();
      response.end();
      return;
    }
    bytes.on('data', (chunk: Uint8Array) => this.#garbage.passed(chunk.length));
    await pipeline(bytes, response, { signal: this.signal });
  }

  /** Answers with a failure, or cuts the connection when the answer has begun already. */
  fail(failure: Failure, area: Area, { asPage = false }: { asPage?: boolean } = {}): void {
    const { response } = this;
    // Node does so itself with a body that nobody has begun to read.
    response.once('finish', () => this.dropRest());
    if (response.headersSent) {
      response.destroy();
      return;
    }
    for (const name of response.getHeaderNames())
      if (name !== 'x-request-id' && name !== 'connection') response.removeHeader(name);
    const { status, headers, type, text } = failureAnswer(failure, area, { asPage });
    const body = Buffer.from(text);
    response.writeHead(status, { 'Content-Type': type, 'Content-Length': body.length, ...headers });
    response.end(body);
  }

  /** Reads what is left of a body, up to a bound: its sender gets to the answer then, and can use the connection again. */
  dropRest(): void {
    const { request } = this;
    if (request.complete || request.destroyed) return;
    let left = droppedBytesMax;
    // Whoever began to read it may have been left in the middle.
    request.removeAllListeners('readable');
    request.on('data', ({ length }: Buffer) => {
      left -= length;
      if (left < 0) request.destroy();
    });
    request.resume();
  }
}

/** What a client is told of a failure, in the form that it can read. */
export function failureAnswer(
  failure: Failure,
  area: Area,
  { asPage }: { asPage: boolean },
): { status: number; headers: Record<string, string>; type: string; text: string } {
  const about = (failure instanceof Refusal ? failure.area : undefined) ?? area;
  const { status, code, headers } = errorAnswer(failure, about);
  const { message, hint } = failure;
  if (asPage) {
    const alone = { ...headers, 'Content-Security-Policy': "default-src 'none'; style-src 'unsafe-inline'" };
    const text = errorPage({ status, code, message, hint });
    return { status, headers: alone, type: 'text/html; charset=utf-8', text };
  }
  if (about === 'egress') return { status, headers, type: 'text/plain; charset=utf-8', text: message };
  const text = JSON.stringify({ code, message } satisfies ErrorBody);
  return { status, headers, type: 'application/json', text };
}

async function* exactly(bytes: AsyncIterable<Uint8Array>, length: number): AsyncIterable<Uint8Array> {
  let left = length;
  for await (const chunk of bytes) {
    yield chunk.subarray(0, left);
    left -= Math.min(left, chunk.length);
    if (left === 0) return;
  }
  if (left > 0) throw new Failure('io', `${left} of ${length} bytes did not come`);
}

function errorAnswer(failure: Failure, area: Area) {
  const own = failure instanceof Refusal ? failure : undefined;
  const finer = finerAnswerOf(failure.details);
  const headers: Record<string, string> = {
    ...own?.headers,
    [errorHeaders.failure]: headerText(guestWord(failure) ?? failure.code),
  };
  if (failure.hint) headers[errorHeaders.hint] = headerText(failure.hint);
  const wait = failure.details?.retryAfterMs;
  if (typeof wait === 'number' && wait > 0) headers['Retry-After'] ??= String(Math.ceil(wait / 1000));
  return {
    status: own?.status ?? finer.status ?? httpStatusOf(failure.code),
    code: own?.wireCode ?? finer.wireCode ?? wireCodeOf(failure.code, area),
    headers,
  };
}

/** The guest's own code, which is finer than ours. */
function guestWord(failure: Failure): string | undefined {
  const guest: unknown = failure.details?.guest;
  if (typeof guest === 'string') return guest;
  const code: unknown =
    guest !== null && typeof guest === 'object' && 'code' in guest ? guest.code : undefined;
  return typeof code === 'string' ? code : undefined;
}

/** What a header may hold, and no more of it than a person reads. */
function headerText(text: string): string {
  return text
    .replace(/[‘’]/g, "'")
    .replace(/[“”]/g, '"')
    .replace(/[^\x20-\x7e]+/g, ' ')
    .slice(0, 500);
}

/** The value as the schema sees it, or Failure('invalid') that says which field is wrong, and what there is instead of one that there is not. */
export function checked<S extends z.ZodType>(schema: S, value: unknown, what: string): z.output<S> {
  let fields: string[] = [];
  const result = schema.safeParse(value, {
    error: ({ code, inst }) => {
      if (code === 'unrecognized_keys' && inst instanceof z.ZodObject) fields = Object.keys(inst.shape);
      return undefined;
    },
  });
  if (result.success) return result.data;
  const problems = result.error.issues.slice(0, 5).map((issue) => {
    const where = issue.path.map(String).join('.');
    return where === '' ? `${what}: ${issue.message}` : `${where}: ${issue.message}`;
  });
  const unknown = result.error.issues.some((it) => it.code === 'unrecognized_keys') && fields.length > 0;
  throw new Failure('invalid', problems.join('; '), {
    hint: unknown
      ? `Leave it out, or correct its name; there are ${fields.sort().join(', ')}.`
      : 'Correct it; /openapi.json tells what every field takes.',
  });
}
