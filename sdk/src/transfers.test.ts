// Files that go on where a dropped connection has cut them, against a server that cuts on purpose.
import { createHash, randomBytes } from 'node:crypto';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { ScriptedServer, sandbox, sandboxId } from '../../test/scripted-server.ts';
import { FileError, type Files, SandboxClient, type SandboxError } from './index.ts';

const sha256 = (bytes: Uint8Array, encoding: 'hex' | 'base64' = 'hex') =>
  createHash('sha256').update(bytes).digest(encoding);

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'transfers-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

/** One file, and uploads to it; each request is cut after so many bytes as the test says. */
class CuttingServer implements AsyncDisposable {
  content: Buffer = Buffer.alloc(0);
  tag = '"1"';
  held: Buffer | undefined;
  done = false;
  readonly seen: string[] = [];
  readonly queries: URLSearchParams[] = [];
  /** Bytes that a request may bring or take; undefined: all. */
  cuts: (number | undefined)[] = [];
  onCut: () => void = () => {};
  readonly #http = createServer((request, response) => void this.#serve(request, response));

  async start(): Promise<Files> {
    await new Promise<void>((resolve) => this.#http.listen(0, '127.0.0.1', resolve));
    const { port } = this.#http.address() as AddressInfo;
    const client = new SandboxClient({ url: `http://127.0.0.1:${port}`, apiKey: 'k' });
    return (await client.connect(sandboxId)).files;
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url ?? '', 'http://x');
    const answer = (status: number, body: unknown, headers: Record<string, string> = {}) => {
      response.writeHead(status, { 'content-type': 'application/json', ...headers });
      response.end(JSON.stringify(body));
    };
    if (url.pathname.endsWith('/files/download')) return this.#download(request, response);
    if (!url.pathname.includes('/uploads/')) return answer(200, sandbox());
    this.seen.push(`${request.method} ${url.searchParams.get('offset') ?? ''}`.trim());
    this.queries.push(url.searchParams);
    if (request.method === 'DELETE') {
      this.held = undefined;
      response.writeHead(204).end();
      return;
    }
    if (request.method === 'GET') {
      if (this.done) return answer(200, { offset: this.content.length, complete: true });
      if (this.held === undefined)
        return answer(404, { code: 'X', message: 'none' }, { 'glovebox-failure': 'not-found' });
      return answer(200, { offset: this.held.length, complete: false });
    }
    const cut = this.cuts.shift();
    const before = this.held ?? Buffer.alloc(0);
    if (Number(url.searchParams.get('offset')) !== before.length)
      return answer(409, { code: 'X', message: 'another offset' }, { 'glovebox-failure': 'conflict' });
    let came = 0;
    for await (const chunk of request) {
      const part = cut === undefined ? chunk : chunk.subarray(0, Math.max(0, cut - came));
      came += chunk.length;
      this.held = Buffer.concat([this.held ?? before, part]);
      if (cut !== undefined && came >= cut) {
        this.onCut();
        request.socket.destroy();
        return;
      }
    }
    this.held ??= before;
    const wanted = url.searchParams.get('sha256');
    if (wanted !== null && wanted !== sha256(this.held))
      return answer(400, { code: 'X', message: 'digest' }, { 'glovebox-failure': 'digest-mismatch' });
    this.content = this.held;
    this.done = true;
    // What is cut behind the last byte is cut before the answer.
    if (cut !== undefined) return void request.socket.destroy();
    answer(200, { offset: this.held.length, complete: true });
  }

  #download(request: IncomingMessage, response: ServerResponse): void {
    const { range, 'if-range': ifRange } = request.headers;
    this.seen.push(`${range ?? 'all'} ${ifRange ?? ''}`.trim());
    const partial = range !== undefined && ifRange === this.tag;
    const offset = partial ? Number(/\d+/.exec(range)?.[0]) : 0;
    const bytes = this.content.subarray(offset);
    const cut = this.cuts.shift();
    response.writeHead(partial ? 206 : 200, {
      etag: this.tag,
      'content-length': bytes.length,
      'repr-digest': `sha-256=:${sha256(this.content, 'base64')}:`,
    });
    if (cut === undefined) {
      response.end(bytes);
      return;
    }
    response.write(bytes.subarray(0, cut), () =>
      // What was written is to arrive before the connection breaks.
      setTimeout(() => {
        this.onCut();
        response.socket?.destroy();
      }, 50),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#http.closeAllConnections();
    await new Promise((resolve) => this.#http.close(resolve));
  }
}

const bytes = randomBytes(1_500_000);

test('an upload goes on where each drop has cut it, with the digest of all', async () => {
  await using server = new CuttingServer();
  const files = await server.start();
  server.cuts = [0, 400_000, 1, 700_000];
  writeFileSync(join(folder, 'f'), bytes, { mode: 0o750 });
  const seen: number[] = [];
  await files.upload(join(folder, 'f'), '/f', {
    ...{ resume: true, sha256: true },
    onProgress: ({ bytes, total }) => seen.push(bytes / (total ?? 0)),
  });
  expect(server.content.equals(bytes)).toBe(true);
  expect(server.seen.filter((it) => it.startsWith('PATCH'))).toHaveLength(5);
  expect(server.queries[0]?.get('mode')).toBe('0750');
  expect(server.queries[0]?.get('sha256')).toBe(sha256(bytes));
  expect([Math.max(...seen), seen.every((it) => it <= 1)]).toEqual([1, true]);
});

test('bytes and texts go on, too; a stream cannot', async () => {
  await using server = new CuttingServer();
  const files = await server.start();
  server.cuts = [1_000];
  await files.write('/f', bytes, { resume: true, sha256: true });
  expect(server.content.equals(bytes)).toBe(true);
  const stream = new Blob(['x']).stream();
  await expect(files.write('/f', stream, { resume: true })).rejects.toThrow('cannot be sent again');
  await expect(files.write('/f', stream, { sha256: true })).rejects.toThrow('not known before');
});

test('an upload whose last answer was lost is done, and not sent again', async () => {
  await using server = new CuttingServer();
  const files = await server.start();
  server.cuts = [bytes.length + 1];
  await files.write('/f', bytes, { resume: true });
  expect(server.seen).toEqual(['PATCH 0', 'GET']);
});

test('an upload that nobody remembers begins again', async () => {
  await using server = new CuttingServer();
  const files = await server.start();
  server.cuts = [400_000];
  server.onCut = () => {
    server.held = undefined;
  };
  await files.write('/f', bytes, { resume: true });
  expect(server.content.equals(bytes)).toBe(true);
});

test('tries are bounded, and what came is given up', async () => {
  await using server = new CuttingServer();
  const files = await server.start();
  server.cuts = Array.from({ length: 50 }, () => 0);
  const error: SandboxError = await files.write('/f', bytes, { resume: true }).then(
    () => expect.unreachable(),
    (it) => it,
  );
  expect(['unavailable', 'unknown']).toContain(error.code);
  expect(server.seen.at(-1)).toBe('DELETE');
  expect(server.seen.length).toBeLessThan(30);
});

test('a refusal is final: a wrong digest is not tried again', async () => {
  await using server = new CuttingServer();
  const files = await server.start();
  const wrong = files.write('/f', bytes, { resume: true, sha256: 'a'.repeat(64) });
  await expect(wrong).rejects.toThrow(FileError);
  expect(server.seen).toEqual(['PATCH 0', 'DELETE']);
});

test('a download goes on where each drop has cut it, of the same content', async () => {
  await using server = new CuttingServer();
  const files = await server.start();
  server.content = bytes;
  server.cuts = [500_000, 0, 300_000];
  const target = join(folder, 'f');
  await files.download('/f', target, { sha256: true });
  expect(readFileSync(target).equals(bytes)).toBe(true);
  expect(server.seen[0]).toBe('all');
  expect(server.seen.slice(1).every((it) => /^bytes=\d+- "1"$/.test(it) || it === 'all')).toBe(true);
  expect(server.seen.length).toBe(4);
});

test('a file that has become another one meanwhile is read from its begin', async () => {
  await using server = new CuttingServer();
  const files = await server.start();
  server.content = bytes;
  server.cuts = [500_000];
  const other = randomBytes(800_000);
  server.onCut = () => {
    server.content = other;
    server.tag = '"2"';
  };
  await files.download('/f', join(folder, 'f'));
  expect(readFileSync(join(folder, 'f')).equals(other)).toBe(true);
});

test('one that is another each time is given up, and nothing is left', async () => {
  await using server = new CuttingServer();
  const files = await server.start();
  let version = 1;
  server.content = bytes;
  server.cuts = Array.from({ length: 50 }, () => 500_000);
  server.onCut = () => {
    server.tag = `"${++version}"`;
  };
  await expect(files.download('/f', join(folder, 'f'))).rejects.toThrow('changes all the time');
  expect(readdirSync(folder)).toEqual([]);
});

test('without resume the first drop is the end', async () => {
  await using server = new CuttingServer();
  const files = await server.start();
  server.content = bytes;
  server.cuts = [500_000];
  await expect(files.download('/f', join(folder, 'f'), { resume: false })).rejects.toThrow('dropped');
  expect([server.seen, readdirSync(folder)]).toEqual([['all'], []]);
});

test('what arrives otherwise than the server has it is noticed', async () => {
  await using server = await new ScriptedServer().listen();
  const lie = { 'repr-digest': `sha-256=:${sha256(Buffer.from('abc'), 'base64')}:` };
  let headers: Record<string, string> = lie;
  server.on('GET', /download$/, (_, response) => {
    response.writeHead(200, headers);
    response.end('abd');
  });
  const files = (await new SandboxClient({ url: server.url, apiKey: 'k' }).connect(sandboxId)).files;
  for (const work of [
    () => files.read('/f', { sha256: true }),
    () => files.read('/f', { sha256: true, as: 'bytes' }),
    () => files.download('/f', join(folder, 'f'), { sha256: true }),
  ]) {
    headers = lie;
    await expect(work()).rejects.toMatchObject({ code: 'io' });
    headers = {};
    await expect(work()).rejects.toMatchObject({ code: 'unsupported' });
  }
  expect(await files.read('/f')).toBe('abd');
  await expect(files.read('/f', { sha256: true, range: { start: 1 } })).rejects.toMatchObject({
    code: 'invalid',
  });
  expect(readdirSync(folder)).toEqual([]);
});
