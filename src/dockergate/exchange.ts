// One request to a gate: what it says, in parts that are checked, and how an answer goes back.

import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { Failure } from '../lib/failure.ts';
import { bareBody } from './server.ts';
import { defaultVersion, EngineRefusal, type Upstream } from './upstream.ts';

const bodyBytesMax = 1024 * 1024;

export interface Exchange {
  version: string;
  params: string[];
  query: URLSearchParams;
  request: IncomingMessage;
  response: ServerResponse;
  signal: AbortSignal;
  /** Set for requests that ask for the bare connection. */
  bare?: { socket: Socket; head: Buffer };
}

/** The engine no longer has it, or has begun to remove it. */
export function ignoreRefusal(error: unknown): void {
  if (!(error instanceof EngineRefusal && [304, 404, 409].includes(error.status))) throw error;
}

export const isAlive = (state: string) => !['created', 'exited', 'dead', 'removing'].includes(state);

export function sendError(response: ServerResponse, status: number, message: string): void {
  sendJson(response, status, { message });
}

export function sendJson(response: ServerResponse, status: number, value: unknown): void {
  const body = Buffer.from(`${JSON.stringify(value)}\n`);
  response.writeHead(status, { 'Content-Type': 'application/json', 'Content-Length': body.length });
  response.end(body);
}

/** Path and query as they are meant. Paths that could be read in two ways are refused; ours are written anew in any case. */
export function targetOf(request: IncomingMessage): {
  version: string;
  path: string;
  query: URLSearchParams;
} {
  const [rawPath = '', ...search] = (request.url ?? '').split('?');
  let path: string;
  try {
    path = decodeURIComponent(rawPath);
  } catch {
    path = '';
  }
  const parts = path.split('/').slice(1);
  if (!/^\/[A-Za-z0-9._:@/+-]+$/.test(path) || parts.some((it) => it === '' || it === '.' || it === '..'))
    throw new Failure('invalid', 'the path of the request is malformed');
  const version = /^\/v(1\.\d{1,3})(?=\/)/.exec(path)?.[1];
  if (version === undefined && /^\/v\d/.test(path))
    throw new Failure('invalid', 'the API has the versions 1.x');
  if (version !== undefined && Number(version.slice(2)) < 24)
    throw new Failure(
      'invalid',
      `client version ${version} is too old. Minimum supported API version is 1.24`,
    );
  return {
    version: version ?? defaultVersion,
    path: version === undefined ? path : path.slice(version.length + 2),
    query: new URLSearchParams(search.join('?')),
  };
}

export async function bodyOf(it: Exchange): Promise<Buffer> {
  const { request, bare } = it;
  const pieces: Buffer[] = [];
  let bytes = 0;
  if (bare !== undefined) return bareBody(request, bare);
  for await (const piece of request as AsyncIterable<Buffer>) {
    bytes += piece.length;
    if (bytes > bodyBytesMax) throw new Failure('invalid', `the body is over ${bodyBytesMax} bytes`);
    pieces.push(piece);
  }
  return Buffer.concat(pieces);
}

export async function jsonOf(it: Exchange): Promise<unknown> {
  const text = (await bodyOf(it)).toString('utf8');
  if (text.trim() === '') return {};
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new Failure('invalid', 'the body is not JSON', { cause });
  }
}

export type Filters = Record<string, string[]>;

/** Fields of the query that are passed on, when they look as they should. */
export function pick(
  query: URLSearchParams,
  fields: Record<string, RegExp>,
): Record<string, string | undefined> {
  return Object.fromEntries(
    Object.entries(fields).map(([field, pattern]) => {
      const value = query.get(field) ?? undefined;
      if (value !== undefined && value !== '' && !pattern.test(value))
        throw new Failure('invalid', `the query has a malformed ${field}`);
      return [field, value === '' ? undefined : value];
    }),
  );
}

export const flag = /^(?:0|1|true|false|True|False)$/;
export const isSet = (value: string | null) => value !== null && ['1', 'true', 'True'].includes(value);
export const moment = /^[0-9]{1,12}(?:\.[0-9]{1,9})?$|^[0-9TZ:.+-]{1,40}$|^[0-9smh.]{1,20}$/;
export const number = /^-?\d{1,9}$/;
export const keys = /^[A-Za-z0-9@^[\],\\_-]{1,64}$/;

/** Passes an answer on as it comes. */
export async function relay(it: Exchange, reply: IncomingMessage, transform?: Transform): Promise<void> {
  const { response } = it;
  const passed = ['content-type', 'x-docker-container-path-stat', 'docker-experimental', 'api-version'];
  for (const name of passed) {
    const value = reply.headers[name];
    if (typeof value === 'string') response.setHeader(name, value);
  }
  response.writeHead(reply.statusCode ?? 200);
  response.flushHeaders();
  const end = () => reply.destroy();
  it.signal.addEventListener('abort', end, { once: true });
  try {
    await (transform === undefined ? pipeline(reply, response) : pipeline(reply, transform, response));
  } catch {
    // Either end has gone; the other one is told by the end of its connection.
    reply.destroy();
    response.destroy();
  }
}
/** Joins the client's connection with one of the engine's, each direction with an end of its own. */
export async function join(
  it: Exchange,
  call: Parameters<Upstream['upgrade']>[1],
  upstream: Upstream,
): Promise<void> {
  const bare = it.bare as NonNullable<Exchange['bare']>;
  const { reply, socket: far, head } = await upstream.upgrade(it.version, call);
  const near = bare.socket;
  const type = reply.headers['content-type'] ?? 'application/vnd.docker.raw-stream';
  near.on('error', () => far.destroy());
  far.on('error', () => near.destroy());
  near.on('close', () => far.destroy());
  it.response.detachSocket(near);
  near.write(`HTTP/1.1 101 UPGRADED\r\nContent-Type: ${type}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n`);
  if (head.length > 0) near.write(head);
  if (bare.head.length > 0) far.write(bare.head);
  const ended = new Promise<void>((resolve) => near.once('close', () => resolve()));
  far.pipe(near);
  near.pipe(far);
  // The engine's end is the end: nobody reads what the client still says.
  far.on('end', () => near.end(() => near.destroySoon()));
  far.on('close', () => near.destroySoon());
  await ended;
}
