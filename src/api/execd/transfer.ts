// The content of files: uploads, downloads with ranges, and archives. All of it streams; no size is too big.
import type { IncomingHttpHeaders } from 'node:http';
import { posix } from 'node:path';
import { UploadMetadata } from '../../contract/execd.ts';
import type { OpenFile } from '../../guest/guest.ts';
import { Failure } from '../../lib/failure.ts';
import { type Answer, checked } from '../exchange.ts';
import type { ApiOptions, Handlers } from '../handlers.ts';
import { Refusal } from '../refusal.ts';
import { type EnterFiles, ownershipOf } from './files.ts';
import { boundaryOf, type Part, readParts } from './multipart.ts';
import { expandHome } from './paths.ts';

const metadataBytesMax = 64 * 1024;

type ContentHandlers = Handlers<'uploadFiles' | 'downloadFile'>;
type TransferHandlers = Handlers<
  'packArchive' | 'unpackArchive' | 'uploadState' | 'continueUpload' | 'dropUpload'
>;

export function contentHandlers(enter: EnterFiles): ContentHandlers {
  return {
    uploadFiles: async (call) => {
      const { guest, absolute } = enter(call);
      const { exchange } = call;
      const boundary = boundaryOf(exchange.request.headers['content-type']);
      let metadata: UploadMetadata | undefined;
      let files = 0;
      for await (const part of readParts(exchange.body(), boundary)) {
        if (part.name === 'metadata' && metadata === undefined) metadata = await metadataIn(part);
        else if (part.name === 'file' && metadata !== undefined) {
          const path = await absolute(metadata.path);
          const { sha256 } = metadata;
          const options = { ...ownershipOf(metadata), ...(sha256 ? { sha256 } : {}) };
          await guest.write(path, part.bytes, options, exchange.signal);
          metadata = undefined;
          files += 1;
        } else
          throw new Failure(
            'invalid',
            `multipart: part ${JSON.stringify(part.name.slice(0, 100))} is out of place: send pairs of metadata and file`,
          );
      }
      if (metadata !== undefined)
        throw new Failure('invalid', `multipart: no file part for ${metadata.path}`);
      if (files === 0) throw new Failure('invalid', 'multipart: there is no part at all');
      return { status: 200 };
    },

    downloadFile: async (call) => {
      const { guest, absolute } = enter(call);
      const { query, exchange } = call;
      const path = await absolute(query.path);
      const { range } = exchange.request.headers;
      const name = { 'Content-Disposition': dispositionOf(posix.basename(path)) };
      if (query.offset !== undefined || query.limit !== undefined) {
        if (range !== undefined)
          throw new Failure('invalid', 'offset and limit count lines, Range counts bytes: give one of them');
        const { bytes } = await guest.read(path, {}, exchange.signal);
        const lines = linesOf(bytes, query.offset ?? 1, query.limit ?? Number.POSITIVE_INFINITY);
        return { status: 200, type: 'text/plain; charset=utf-8', headers: name, bytes: lines };
      }
      const wants = conditionsOf(exchange.request.headers);
      const open = (part: { offset?: number; length?: number }) =>
        guest.read(path, { ...part, ...wants.reading }, exchange.signal);
      if (range === undefined) return whole(mustMatch(await open({}), wants), name);
      // What the range means depends on the size, and by the time the file is opened it may be another one.
      for (let tries = 0; ; tries++) {
        const { size } = await guest.stat(path, { follow: true }, exchange.signal);
        const { offset, length } = rangeOf(range, size);
        const file = mustMatch(await open({ offset, length }), wants);
        const another = wants.ifRange !== undefined && wants.ifRange !== tagOf(file);
        if (!another && file.entry.size >= offset + length) {
          const headers = {
            ...headersOf(file, name),
            'Content-Range': `bytes ${offset}-${offset + length - 1}/${file.entry.size}`,
          };
          return { status: 206, type: 'application/octet-stream', headers, bytes: file.bytes, length };
        }
        file.bytes.destroy();
        if (another) return whole(mustMatch(await open({}), wants), name);
        if (tries === sizeTries)
          throw new Failure('conflict', `${path}: it becomes shorter all the time`, {
            hint: 'Read all of it.',
          });
      }
    },
  };
}

export function transferHandlers({ service }: ApiOptions): TransferHandlers {
  return {
    uploadState: async ({ sandboxId, params, query, exchange }) => {
      const guest = service.guest(sandboxId);
      const environment = service.executions(sandboxId).environment();
      const path = await expandHome(query.path, { guest, environment }, exchange.signal);
      return { status: 200, json: await guest.uploadState(path, params.uploadId ?? '', exchange.signal) };
    },

    continueUpload: async ({ sandboxId, params, query, exchange }) => {
      const guest = service.guest(sandboxId);
      const environment = service.executions(sandboxId).environment();
      const path = await expandHome(query.path, { guest, environment }, exchange.signal);
      const { offset, complete, sha256, mode, owner, group } = query;
      const options = {
        ...{ id: params.uploadId ?? '', offset, complete },
        ...(sha256 === undefined ? {} : { sha256 }),
        ...(mode === undefined ? {} : { mode: Number.parseInt(mode, 8) }),
        ...(owner === undefined ? {} : { owner }),
        ...(group === undefined ? {} : { group }),
      };
      return { status: 200, json: await guest.upload(path, exchange.body(), options, exchange.signal) };
    },

    dropUpload: async ({ sandboxId, params, query, exchange }) => {
      const guest = service.guest(sandboxId);
      const environment = service.executions(sandboxId).environment();
      const path = await expandHome(query.path, { guest, environment }, exchange.signal);
      await guest.dropUpload(path, params.uploadId ?? '', exchange.signal);
      return { status: 204 };
    },

    packArchive: async ({ sandboxId, query, exchange }) => {
      const guest = service.guest(sandboxId);
      const environment = service.executions(sandboxId).environment();
      const path = await expandHome(query.path, { guest, environment }, exchange.signal);
      return { status: 200, type: 'application/x-tar', bytes: await guest.pack(path, exchange.signal) };
    },

    unpackArchive: async ({ sandboxId, query, exchange }) => {
      const guest = service.guest(sandboxId);
      const environment = service.executions(sandboxId).environment();
      const path = await expandHome(query.path, { guest, environment }, exchange.signal);
      await guest.unpack(path, exchange.body(), {}, exchange.signal);
      return { status: 204 };
    },
  };
}

async function metadataIn(part: Part): Promise<UploadMetadata> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of part.bytes) {
    bytes += chunk.length;
    if (bytes > metadataBytesMax)
      throw new Failure('invalid', `multipart: metadata is longer than ${metadataBytesMax} bytes`);
    chunks.push(chunk);
  }
  let value: unknown;
  try {
    value = JSON.parse(Buffer.concat(chunks).toString());
  } catch (error) {
    throw new Failure('invalid', `multipart: metadata is no JSON: ${(error as Error).message}`);
  }
  return checked(UploadMetadata, value, 'metadata');
}

const sizeTries = 3;

interface Conditions {
  /** Entity tags, RFC 9110 §13.1. */
  ifRange: string | undefined;
  ifMatch: string[] | undefined;
  reading: { digest?: true; steady?: true };
}

/** Whoever compares wants one file and no mixture of two, so the bytes then fail when it is changed while they are read. */
function conditionsOf(headers: IncomingHttpHeaders): Conditions {
  const ifRange = headers['if-range'];
  const ifMatch = headers['if-match'];
  const digest = /(^|,)\s*sha-256\s*(=\s*[1-9]|=\s*10|,|$)/.test(String(headers['want-repr-digest'] ?? ''));
  return {
    ifRange: typeof ifRange === 'string' ? ifRange.trim() : undefined,
    ifMatch:
      ifMatch === undefined || ifMatch.trim() === '*' ? undefined : ifMatch.split(',').map((it) => it.trim()),
    reading: {
      ...(digest && { digest: true as const }),
      ...((digest || ifRange !== undefined || ifMatch !== undefined) && { steady: true as const }),
    },
  };
}

function mustMatch(file: OpenFile, { ifMatch }: Conditions): OpenFile {
  if (ifMatch === undefined || ifMatch.includes(tagOf(file) ?? '')) return file;
  file.bytes.destroy();
  throw new Refusal('conflict', `${file.entry.path}: it is not the file any more that it was`, {
    status: 412,
  });
}

const tagOf = ({ version }: OpenFile) => (version === undefined ? undefined : `"${version}"`);

function headersOf(file: OpenFile, more: Record<string, string>): Record<string, string> {
  const tag = tagOf(file);
  return {
    ...more,
    'Accept-Ranges': 'bytes',
    ...(tag === undefined ? {} : { ETag: tag }),
    // RFC 9530; of all of the file, whatever range is read.
    ...(file.sha256 === undefined
      ? {}
      : { 'Repr-Digest': `sha-256=:${Buffer.from(file.sha256, 'hex').toString('base64')}:` }),
  };
}

/** Files of /proc say that they are empty and are not, so a size of 0 is not believed. */
function whole(file: OpenFile, more: Record<string, string>): Answer {
  const headers = headersOf(file, more);
  const answer = { status: 200, type: 'application/octet-stream', headers, bytes: file.bytes };
  return file.entry.size === 0 ? answer : { ...answer, length: file.entry.size };
}

/** One range of RFC 9110; several are not served. */
function rangeOf(header: string, size: number): { offset: number; length: number } {
  const match = /^bytes=(?:(\d{1,15})-(\d{1,15})?|-(\d{1,15}))$/.exec(header.replaceAll(' ', ''));
  const [, first, last, suffix] = match ?? [];
  const offset = suffix === undefined ? Number(first ?? Number.NaN) : Math.max(0, size - Number(suffix));
  const end = last === undefined ? size : Math.min(size, Number(last) + 1);
  // Also false for NaN.
  if (offset < end) return { offset, length: end - offset };
  throw new Refusal('invalid', `Range ${JSON.stringify(header.slice(0, 100))}: the file has ${size} bytes`, {
    status: 416,
    headers: { 'Content-Range': `bytes */${size}` },
  });
}

/** The lines from the `first` one on (counted from 1), without the line end of the last one. */
async function* linesOf(
  bytes: AsyncIterable<Uint8Array>,
  first: number,
  count: number,
): AsyncIterable<Uint8Array> {
  let line = 1;
  // A line end is given only once something follows it.
  let owesLineEnd = false;
  for await (const chunk of bytes) {
    let from = 0;
    while (from < chunk.length) {
      const newline = chunk.indexOf(10, from);
      const end = newline < 0 ? chunk.length : newline;
      if (line >= first) {
        if (owesLineEnd) yield Buffer.from('\n');
        owesLineEnd = false;
        if (end > from) yield chunk.subarray(from, end);
      }
      if (newline < 0) break;
      line += 1;
      if (line - first >= count) return;
      owesLineEnd = line > first;
      from = newline + 1;
    }
  }
}

/** RFC 6266, with RFC 5987 for names that are not plain ASCII. */
function dispositionOf(name: string): string {
  const plain = name.replace(/[^\x20-\x7e]|["\\%]/g, '_');
  if (plain === name) return `attachment; filename="${name}"`;
  const encoded = [...name].map(encodeCharacter).join('');
  return `attachment; filename="${plain}"; filename*=UTF-8''${encoded}`;
}

/** Bytes that are no UTF-8 stand as U+DC80…U+DCFF in names. */
function encodeCharacter(character: string): string {
  const code = character.charCodeAt(0);
  if (character.length === 1 && code >= 0xd800 && code < 0xe000)
    return `%${(code & 0xff).toString(16).toUpperCase().padStart(2, '0')}`;
  return encodeURIComponent(character).replace(
    /['()*]/g,
    (it) => `%${it.charCodeAt(0).toString(16).toUpperCase()}`,
  );
}
