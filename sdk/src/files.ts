// Files of a sandbox, over execd's file routes (OpenSandbox's execd specification) and our archive route (src/contract/admin.ts).
// Paths are absolute inside the sandbox; `~` stands for the user's home folder. Failures are FileErrors with the path.
import type { Connection, RequestOptions } from './connection.ts';
import { FileError, ProtocolError, SandboxError, UnsupportedError } from './errors.ts';
import {
  downloadFile,
  newSha256,
  sha256Of,
  type TransferProgress,
  type UploadSource,
  uploadFile,
} from './transfers.ts';
import { expectFields, expectItems, type FileInfo, fileInfoOf, modeToWire } from './wire.ts';

export interface ReadOptions {
  /** The bytes from `start` on, up to and without `end`. Default: all of them. */
  range?: { start?: number; end?: number };
  /** Checks the content against the SHA-256 that the server names; FileError `io` when it is another. Not with `range`, nor as a `stream`. */
  sha256?: boolean;
  signal?: AbortSignal;
}

export interface WriteOptions {
  /** Permission bits, e.g. 0o755. Default: those of a new file, or of the one that is replaced. */
  mode?: number;
  /** Names or ids inside the sandbox. */
  owner?: string;
  group?: string;
  /** Hexadecimal, or `true` for that of bytes and texts: what arrives otherwise is refused (FileError `invalid`), and the old file stays. */
  sha256?: string | true;
  /** Goes on where it broke off when the connection drops: for bytes, texts, and with `upload()`. Asks for a Glovebox server. */
  resume?: boolean;
  onProgress?: (progress: TransferProgress) => void;
  signal?: AbortSignal;
}

export interface DownloadOptions {
  /** Checks the whole file against the SHA-256 that the server names; FileError `io` when it is another. */
  sha256?: boolean;
  /** Goes on where it broke off when the connection drops, if the file is still the same. Default: true. */
  resume?: boolean;
  onProgress?: (progress: TransferProgress) => void;
  signal?: AbortSignal;
}

export type FileContent = string | Uint8Array | ReadableStream<Uint8Array> | AsyncIterable<Uint8Array>;

interface Aborting {
  signal?: AbortSignal;
}

/** A `$` in a path is a `$`; to OpenSandbox's own clients it is the beginning of a variable's name. */
const literalPaths = { 'glovebox-paths': 'literal' };

export interface Formats {
  text: string;
  bytes: Uint8Array;
  json: unknown;
  stream: ReadableStream<Uint8Array>;
}

/** Of what is read and sent at once. */
const pieceBytes = 256 * 1024;

/** `sandbox.files` */
export class Files {
  readonly #connection: Connection;
  readonly #base: string;
  readonly #sandboxId: string;

  /** @internal */
  constructor(connection: Connection, base: string, sandboxId: string) {
    this.#connection = connection;
    this.#base = base;
    this.#sandboxId = sandboxId;
  }

  /** The content of a file: as `text` (UTF-8, the default), `bytes`, `json`, or a `stream` of bytes for what does not fit into memory. */
  async read(path: string, options?: ReadOptions & { as?: 'text' }): Promise<string>;
  async read<F extends keyof Formats>(path: string, options: ReadOptions & { as: F }): Promise<Formats[F]>;
  async read(
    path: string,
    options: ReadOptions & { as?: keyof Formats } = {},
  ): Promise<Formats[keyof Formats]> {
    const { range, as = 'text' } = options;
    const asked = this.#asking(`read ${path}`, path, options);
    if (options.sha256 && (range || as === 'stream'))
      throw new FileError('invalid', `${asked.doing}: only a whole file can be checked`, path);
    // An empty range cannot be written in HTTP.
    if (range?.end !== undefined && range.end <= (range.start ?? 0)) return emptyAs(as);
    const last = range?.end === undefined ? '' : range.end - 1;
    const response = await this.#connection.request('GET', `${this.#base}/files/download`, {
      ...asked,
      query: { path },
      headers: {
        ...literalPaths,
        ...(range ? { range: `bytes=${range.start ?? 0}-${last}` } : {}),
        ...(options.sha256 ? { 'want-repr-digest': 'sha-256=1' } : {}),
      },
    });
    if (as === 'stream') return this.#content(response.body, asked);
    const bytes = new Uint8Array(await this.#connection.reading(response.arrayBuffer(), asked));
    if (options.sha256) {
      const said = /sha-256=:([A-Za-z0-9+/=]+):/.exec(response.headers.get('repr-digest') ?? '')?.[1];
      const wanted =
        said && [...atob(said)].map((it) => it.charCodeAt(0).toString(16).padStart(2, '0')).join('');
      checkDigest(wanted, await sha256Of(bytes), asked);
    }
    if (as === 'bytes') return bytes;
    const text = new TextDecoder().decode(bytes);
    return as === 'json' ? JSON.parse(text) : text;
  }

  /** Makes or replaces a file, and its parent folders. The file is replaced as a whole, at the end: on failure the old one stays. */
  async write(path: string, content: FileContent, options: WriteOptions = {}): Promise<void> {
    const { mode, owner, group } = options;
    const held = typeof content === 'string' ? new TextEncoder().encode(content) : content;
    if (options.sha256 === true && !(held instanceof Uint8Array))
      throw new FileError(
        'invalid',
        `write ${path}: the SHA-256 of a stream is not known before it is sent`,
        path,
        {
          hint: 'Pass the digest, or use upload() for a file.',
        },
      );
    const sha256 = options.sha256 === true ? await sha256Of(held as Uint8Array) : options.sha256;
    if (options.resume) {
      if (!(held instanceof Uint8Array))
        throw new FileError(
          'invalid',
          `write ${path}: a stream cannot be sent again from where it broke off`,
          path,
          {
            hint: 'Use upload() for a file, or leave out `resume`.',
          },
        );
      const from = async function* (offset: number) {
        for (let at = offset; at < held.length; at += pieceBytes) yield held.subarray(at, at + pieceBytes);
      };
      return await this.#send(path, { size: held.length, from }, { ...options, sha256 });
    }
    const metadata = {
      path,
      owner,
      group,
      sha256,
      ...(mode === undefined ? {} : { mode: modeToWire(mode) }),
    };
    const boundary = `glovebox-${crypto.randomUUID()}`;
    const part = (name: string, type: string) =>
      `--${boundary}\r\ncontent-disposition: form-data; name="${name}"; filename="${name}"\r\ncontent-type: ${type}\r\n\r\n`;
    const encoder = new TextEncoder();
    const before = encoder.encode(
      `${part('metadata', 'application/json')}${JSON.stringify(metadata)}\r\n${part('file', 'application/octet-stream')}`,
    );
    const after = encoder.encode(`\r\n--${boundary}--\r\n`);
    const { onProgress } = options;
    const total = held instanceof Uint8Array ? held.length : undefined;
    const body =
      held instanceof Uint8Array
        ? joined(before, held, after)
        : streamOf(
            (async function* () {
              yield before;
              yield* telling(chunksOf(held), total, onProgress);
              yield after;
            })(),
          );
    await this.#connection.send('POST', `${this.#base}/files/upload`, {
      ...this.#asking(`write ${path}`, path, options),
      body,
      headers: { ...literalPaths, 'content-type': `multipart/form-data; boundary=${boundary}` },
    });
    if (total !== undefined) onProgress?.({ bytes: total, total });
  }

  async #send(
    path: string,
    source: UploadSource,
    options: Omit<WriteOptions, 'sha256'> & { sha256?: string | undefined },
  ): Promise<void> {
    const { mode, owner, group, sha256, onProgress } = options;
    await uploadFile(this.#connection, this.#base, {
      ...{ path, source, onProgress, asked: this.#asking(`write ${path}`, path, options) },
      query: { owner, group, sha256, mode: mode?.toString(8).padStart(4, '0') },
    });
  }

  /** The entries of a folder, sorted by name; with `depth` those of its folders, too. Symlinks are not followed. */
  async list(path: string, options: Aborting & { depth?: number } = {}): Promise<FileInfo[]> {
    const asked = this.#asking(`list ${path}`, path, options);
    const query = { path, depth: options.depth };
    const answer = await this.#connection.json('GET', `${this.#base}/directories/list`, { ...asked, query });
    return expectItems(answer, {}, asked.doing).map((item) => fileInfoOf(item, asked.doing));
  }

  /** Throws FileError with code `not-found`. A symlink is not followed. */
  async stat(path: string, options: Aborting = {}): Promise<FileInfo> {
    const asked = this.#asking(`stat ${path}`, path, options);
    const answer = await this.#connection.json('GET', `${this.#base}/files/info`, {
      ...asked,
      query: { path },
    });
    const info = expectFields<Record<string, unknown>>(answer, {}, asked.doing)[path];
    if (info === undefined)
      throw new ProtocolError('protocol', `${asked.doing}: the answer says nothing about it`);
    return fileInfoOf(info, asked.doing);
  }

  async exists(path: string, options: Aborting = {}): Promise<boolean> {
    return await this.stat(path, options).then(
      () => true,
      (error: unknown) => {
        if (error instanceof SandboxError && error.code === 'not-found') return false;
        throw error;
      },
    );
  }

  /** Makes a folder and its parents. One that exists is no error. */
  async mkdir(path: string, options: WriteOptions = {}): Promise<void> {
    const { mode, owner, group } = options;
    await this.#connection.send('POST', `${this.#base}/directories`, {
      ...this.#asking(`make the folder ${path}`, path, options),
      json: { [path]: { owner, group, ...(mode === undefined ? {} : { mode: modeToWire(mode) }) } },
    });
  }

  /** Makes the parent of `to`. Throws FileError with code `conflict` when `to` exists. */
  async move(from: string, to: string, options: Aborting = {}): Promise<void> {
    await this.#connection.send('POST', `${this.#base}/files/mv`, {
      ...this.#asking(`move ${from} to ${to}`, from, options),
      json: [{ src: from, dest: to }],
    });
  }

  /** Removes a file, or with `recursive` a folder and all below. What is missing is no error. */
  async remove(path: string, options: Aborting & { recursive?: boolean } = {}): Promise<void> {
    await this.#connection.send('DELETE', `${this.#base}/${options.recursive ? 'directories' : 'files'}`, {
      ...this.#asking(`remove ${path}`, path, options),
      query: { path },
    });
  }

  /** Changes permission bits, owner or group. */
  async chmod(path: string, change: WriteOptions): Promise<void> {
    const { mode, owner, group } = change;
    await this.#connection.send('POST', `${this.#base}/files/permissions`, {
      ...this.#asking(`change the mode of ${path}`, path, change),
      json: { [path]: { owner, group, ...(mode === undefined ? {} : { mode: modeToWire(mode) }) } },
    });
  }

  /** Files below a folder whose base name matches a glob, e.g. `*.ts`. */
  async find(path: string, pattern: string, options: Aborting = {}): Promise<FileInfo[]> {
    const asked = this.#asking(`search ${path}`, path, options);
    const query = { path, pattern };
    const answer = await this.#connection.json('GET', `${this.#base}/files/search`, { ...asked, query });
    return expectItems(answer, {}, asked.doing).map((item) => fileInfoOf(item, asked.doing));
  }

  /** Replaces every occurrence of a text in a file. Resolves with their number. */
  async replace(path: string, before: string, after: string, options: Aborting = {}): Promise<number> {
    const asked = this.#asking(`replace in ${path}`, path, options);
    const answer = await this.#connection.json('POST', `${this.#base}/files/replace`, {
      ...{ ...asked, query: { verbose: 'true' }, json: { [path]: { old: before, new: after } } },
    });
    const result = expectFields<Record<string, unknown>>(answer, {}, asked.doing)[path];
    return expectFields<{ replacedCount: number }>(result, { replacedCount: 'number' }, asked.doing)
      .replacedCount;
  }

  /** Copies a file of this machine into the sandbox, with its mode (Node.js, Bun, Deno). For a folder see `unpack()`. */
  async upload(localPath: string, path: string, options: WriteOptions = {}): Promise<void> {
    const { createReadStream } = await import('node:fs');
    const { stat } = await import('node:fs/promises');
    const found = await stat(localPath);
    if (!found.isFile()) throw folderError(localPath);
    const all = { mode: found.mode & 0o777, ...options };
    const from = (start: number) => createReadStream(localPath, { start, highWaterMark: pieceBytes });
    let { sha256 } = all;
    if (sha256 === true) {
      const hash = await newSha256();
      for await (const bytes of from(0)) hash.update(bytes);
      sha256 = hash.digest('hex');
    }
    if (options.resume) await this.#send(path, { size: found.size, from }, { ...all, sha256 });
    else await this.write(path, from(0), { ...all, ...(sha256 === undefined ? {} : { sha256 }) });
  }

  /** Copies a file of the sandbox to this machine (Node.js, Bun, Deno): whole, or not at all. For a folder see `pack()`. */
  async download(path: string, localPath: string, options: DownloadOptions = {}): Promise<void> {
    const { open, rename, rm } = await import('node:fs/promises');
    const { sha256: digest = false, resume = true, onProgress } = options;
    const asked = this.#asking(`read ${path}`, path, options);
    const partial = `${localPath}.${crypto.randomUUID()}.part`;
    const file = await open(partial, 'wx+');
    try {
      let at = 0;
      const sink = {
        write: async (bytes: Uint8Array) => {
          for (let from = 0; from < bytes.length; ) {
            const { bytesWritten } = await file.write(bytes, from, bytes.length - from, at);
            from += bytesWritten;
            at += bytesWritten;
          }
        },
        restart: async () => {
          at = 0;
          await file.truncate(0);
        },
      };
      const said = await downloadFile(this.#connection, this.#base, {
        path,
        sink,
        digest,
        resume,
        asked,
        onProgress,
      });
      if (digest) {
        const hash = await newSha256();
        for await (const bytes of file.createReadStream({
          start: 0,
          autoClose: false,
          highWaterMark: pieceBytes,
        }))
          hash.update(bytes as Uint8Array);
        checkDigest(said, hash.digest('base64'), asked);
      }
      await file.close();
      await rename(partial, localPath);
    } catch (error) {
      await file.close();
      await rm(partial, { force: true });
      throw error;
    }
  }

  /** A file or folder as a tar stream. The names in it begin with the last part of the path. */
  async pack(path: string, options: Aborting = {}): Promise<ReadableStream<Uint8Array>> {
    const asked = this.#asking(`pack ${path}`, path, options);
    const response = await this.#connection.request('GET', `${this.#base}/archive`, {
      ...asked,
      query: { path },
    });
    return this.#content(response.body, asked);
  }

  /** Unpacks a tar stream below a folder, which is made if it is missing. */
  async unpack(path: string, tar: Exclude<FileContent, string>, options: Aborting = {}): Promise<void> {
    await this.#connection.send('PUT', `${this.#base}/archive`, {
      ...{ ...this.#asking(`unpack into ${path}`, path, options), query: { path } },
      body: tar instanceof Uint8Array ? tar : streamOf(chunksOf(tar)),
      headers: { 'content-type': 'application/x-tar' },
    });
  }

  /** The content of an answer as it comes. Whoever reads it is told in our words when it breaks off. */
  #content(body: ReadableStream<Uint8Array> | null, asked: RequestOptions): ReadableStream<Uint8Array> {
    if (body === null) return emptyStream();
    const reader = body.getReader();
    return new ReadableStream(
      {
        pull: async (controller) => {
          const { done, value } = await this.#connection.reading(reader.read(), asked);
          if (done) controller.close();
          else controller.enqueue(value);
        },
        cancel: (reason) => reader.cancel(reason),
      },
      { highWaterMark: 0 },
    );
  }

  #asking(doing: string, path: string, options: Aborting): RequestOptions {
    return {
      ...{ doing, path, sandboxId: this.#sandboxId, inside: true, signal: options.signal },
      headers: literalPaths,
    };
  }
}

/** Passes chunks on and tells of them. */
async function* telling(
  chunks: AsyncIterable<Uint8Array>,
  total: number | undefined,
  onProgress: WriteOptions['onProgress'],
): AsyncGenerator<Uint8Array, void, void> {
  let bytes = 0;
  for await (const chunk of chunks) {
    yield chunk;
    bytes += chunk.length;
    onProgress?.({ bytes, total });
  }
}

function checkDigest(said: string | undefined, found: string, asked: RequestOptions): void {
  const { doing, path = '', sandboxId } = asked;
  if (said === undefined)
    throw new UnsupportedError('unsupported', `${doing}: the server names no SHA-256`, { sandboxId });
  if (said !== found)
    throw new FileError(
      'io',
      `${doing}: what arrived is not what the server has (its SHA-256 differs)`,
      path,
      {
        sandboxId,
        hint: 'Try again.',
      },
    );
}

function folderError(localPath: string): SandboxError {
  return new UnsupportedError('unsupported', `${localPath} is not a file`, {
    hint: 'Pass a tar stream of a folder to files.unpack(), or use `glovebox cp`.',
  });
}

function emptyAs(as: keyof Formats): Formats[keyof Formats] {
  if (as === 'stream') return emptyStream();
  return as === 'bytes' ? new Uint8Array() : '';
}

function emptyStream(): ReadableStream<Uint8Array> {
  return new ReadableStream({ start: (controller) => controller.close() });
}

function joined(...parts: Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** Not every platform lets a ReadableStream be iterated. */
export async function* chunksOf(
  source: ReadableStream<Uint8Array> | AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array, void, void> {
  if (!(source instanceof ReadableStream)) {
    yield* source;
    return;
  }
  const reader = source.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    await reader.cancel();
  }
}

export function streamOf(chunks: AsyncGenerator<Uint8Array, void, void>): ReadableStream<Uint8Array> {
  return new ReadableStream({
    async pull(controller) {
      const { done, value } = await chunks.next();
      if (done) controller.close();
      else controller.enqueue(value);
    },
    async cancel() {
      await chunks.return();
    },
  });
}
