// Files that go on where a dropped connection has cut them: up, by our own upload routes (src/contract/routes.ts), down, by ranges of the same content
// (RFC 9110 §13.1.5). Tries are bounded: so many in a row that bring nothing.
import type { Connection, RequestOptions } from './connection.ts';
import { FileError, SandboxError, throwIfAborted } from './errors.ts';
import type { Reply } from './transport.ts';
import { expectFields } from './wire.ts';

/** How far a transfer is. `total` is absent when nobody knows. */
export interface TransferProgress {
  bytes: number;
  total?: number | undefined;
}

export interface UploadSource {
  size: number;
  /** The bytes from there on. Asked for again after each drop. */
  from(offset: number): AsyncIterable<Uint8Array>;
}

type Asking = Omit<RequestOptions, 'query' | 'body' | 'json'>;

const triesMax = 8;
const firstPauseMs = 100;
const longestPauseMs = 3_000;
/** What may be over after a while, and does not tell that the file itself is refused. */
const passing = new Set<string>(['unavailable', 'unknown', 'conflict']);

/** Waits longer each time; throws the last error when it was tried often enough, or when it is no error that passes. */
class Patience {
  #failures = 0;

  /** It went on. */
  reset(): void {
    this.#failures = 0;
  }

  async after(error: unknown, asked: Asking): Promise<void> {
    throwIfAborted(asked.signal, asked.doing);
    const passes = error instanceof SandboxError && passing.has(error.code);
    if (!passes || ++this.#failures >= triesMax) throw error;
    const ms = Math.min(longestPauseMs, firstPauseMs * 2 ** (this.#failures - 1));
    await new Promise<void>((resolve) => {
      const timer = setTimeout(done, ms);
      function done(): void {
        clearTimeout(timer);
        asked.signal?.removeEventListener('abort', done);
        resolve();
      }
      asked.signal?.addEventListener('abort', done, { once: true });
    });
    throwIfAborted(asked.signal, asked.doing);
  }
}

/** Resolves once the file is in place. What came before an error that does not pass is removed again, as far as the server can be reached. */
export async function uploadFile(
  connection: Connection,
  base: string,
  options: {
    path: string;
    source: UploadSource;
    /** For the file at its end: mode (octal digits), owner, group, sha256. */
    query: Record<string, string | undefined>;
    asked: Asking;
    onProgress?: ((progress: TransferProgress) => void) | undefined;
  },
): Promise<void> {
  const { path, source, asked, onProgress = () => {} } = options;
  const route = `${base}/uploads/${crypto.randomUUID()}`;
  const patience = new Patience();
  const stateOf = async (method: 'GET' | 'PATCH', more: Partial<RequestOptions>) =>
    expectFields<{ offset: number; complete: boolean }>(
      await connection.json(method, route, { ...asked, ...more }),
      { offset: 'number', complete: 'boolean' },
      asked.doing,
    );
  let offset = 0;
  let furthest = 0;
  try {
    for (;;) {
      try {
        const query = { ...options.query, path, offset, complete: 'true' };
        const body = counted(source.from(offset), (bytes) =>
          onProgress({ bytes: Math.min(source.size, offset + bytes), total: source.size }),
        );
        const headers = { ...asked.headers, 'content-type': 'application/octet-stream' };
        await stateOf('PATCH', { query, body, headers });
        return;
      } catch (error) {
        await patience.after(error, asked);
      }
      try {
        const state = await stateOf('GET', { query: { path } });
        if (state.complete) return;
        offset = state.offset;
      } catch (error) {
        // It never arrived, or has been swept, or is in place and forgotten: once more from the begin comes to the same.
        if (error instanceof SandboxError && error.code === 'not-found') offset = 0;
        else {
          await patience.after(error, asked);
          continue;
        }
      }
      if (offset > furthest) patience.reset();
      furthest = Math.max(furthest, offset);
    }
  } catch (error) {
    await connection
      .send('DELETE', route, { ...asked, query: { path }, signal: AbortSignal.timeout(5_000), cleanup: true })
      .catch(() => undefined);
    throw error;
  }
}

function counted(
  source: AsyncIterable<Uint8Array>,
  onBytes: (bytes: number) => void,
): ReadableStream<Uint8Array> {
  const chunks = source[Symbol.asyncIterator]();
  let bytes = 0;
  return new ReadableStream({
    async pull(controller) {
      const { done, value } = await chunks.next();
      if (done) return controller.close();
      controller.enqueue(value);
      bytes += value.length;
      onBytes(bytes);
    },
    async cancel() {
      await chunks.return?.();
    },
  });
}

/** Where the bytes of a download go. */
export interface DownloadSink {
  write(bytes: Uint8Array): Promise<void>;
  /** What came before is of another content. */
  restart(): Promise<void>;
}

/**
 * Resolves with the server's SHA-256 in base64 when it was asked for, once the sink has all of one content. Throws FileError `conflict` when the file is
 * another one each time.
 */
export async function downloadFile(
  connection: Connection,
  base: string,
  options: {
    path: string;
    sink: DownloadSink;
    digest: boolean;
    /** Whether to try again at all. */
    resume: boolean;
    asked: Asking;
    onProgress?: ((progress: TransferProgress) => void) | undefined;
  },
): Promise<string | undefined> {
  const { path, sink, asked, onProgress = () => {} } = options;
  const patience = new Patience();
  let tag: string | null = null;
  let offset = 0;
  let restarts = 0;
  const restart = async () => {
    if (++restarts > triesMax)
      throw new FileError('conflict', `${asked.doing}: it changes all the time`, path, {
        sandboxId: asked.sandboxId,
      });
    offset = 0;
    await sink.restart();
  };
  for (;;) {
    try {
      const resuming = offset > 0 && tag !== null;
      if (offset > 0 && !resuming) await restart();
      const reply = await connection.request('GET', `${base}/files/download`, {
        ...asked,
        query: { path },
        headers: {
          ...asked.headers,
          ...(options.digest ? { 'want-repr-digest': 'sha-256=1' } : {}),
          ...(resuming ? { range: `bytes=${offset}-`, 'if-range': tag as string } : {}),
        },
      });
      if (resuming && reply.status !== 206) await restart();
      tag = reply.headers.get('etag');
      const length = Number(reply.headers.get('content-length') ?? Number.NaN);
      const total = Number.isNaN(length) ? undefined : offset + length;
      for await (const bytes of contentOf(reply, connection, asked)) {
        await sink.write(bytes);
        offset += bytes.length;
        patience.reset();
        onProgress({ bytes: offset, total });
      }
      return /sha-256=:([A-Za-z0-9+/=]+):/.exec(reply.headers.get('repr-digest') ?? '')?.[1];
    } catch (error) {
      // Of a range behind the end: all of it was there, but for the end of the answer.
      if (!options.resume) throw error;
      if (error instanceof SandboxError && error.status === 416) await restart();
      else await patience.after(error, asked);
    }
  }
}

async function* contentOf(reply: Reply, connection: Connection, asked: Asking): AsyncGenerator<Uint8Array> {
  const reader = reply.body?.getReader();
  if (reader === undefined) return;
  try {
    for (;;) {
      const { done, value } = await connection.reading(reader.read(), asked);
      if (done) return;
      yield value;
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

/** Hashes as it goes (Node.js, Bun, Deno). */
export async function newSha256(): Promise<{
  update(bytes: Uint8Array): void;
  digest(encoding: 'hex' | 'base64'): string;
}> {
  const { createHash } = await import('node:crypto');
  const hash = createHash('sha256');
  return { update: (bytes) => void hash.update(bytes), digest: (encoding) => hash.digest(encoding) };
}

/** Hexadecimal. Everywhere. */
export async function sha256Of(bytes: Uint8Array): Promise<string> {
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes as Uint8Array<ArrayBuffer>));
  return [...digest].map((it) => it.toString(16).padStart(2, '0')).join('');
}
