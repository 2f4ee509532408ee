// Content of files through execd's routes at the sizes that users have, on every runtime of this machine: large ones, many small ones, parts, and uploads that break off.
import { createHash, randomBytes, randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { type ClientRequest, type IncomingMessage, request } from 'node:http';
import { buffer, text } from 'node:stream/consumers';
import { pipeline } from 'node:stream/promises';
import { packTar, unpackTar } from 'modern-tar';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { call, create, remove, run } from '../client.ts';
import { expectNothingLeft, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { imageFor, runtimes } from '../runtimes.ts';

const mebibyte = 1024 ** 2;
const large = 1024 * mebibyte;
const growthMax = 32 * mebibyte;

const boundary = 'between-the-parts';
const partsBefore = (path: string): string =>
  [
    `--${boundary}\r\nContent-Disposition: form-data; name="metadata"; filename="metadata"\r\n`,
    `Content-Type: application/json\r\n\r\n${JSON.stringify({ path })}\r\n`,
    `--${boundary}\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n\r\n`,
  ].join('');
const partsAfter = `\r\n--${boundary}--\r\n`;

/** Bytes of which no mebibyte is like another. */
function* content(bytes: number): Generator<Buffer> {
  const pattern = randomBytes(mebibyte);
  for (let left = bytes, n = 0; left > 0; left -= mebibyte, n++) {
    const piece = Buffer.from(pattern);
    piece.writeUInt32BE(n);
    yield piece.subarray(0, left);
  }
}

function ownMemory(pid: number): number {
  return Number(/^RssAnon:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) * 1024;
}

describe.each(runtimes)('%s', (runtime) => {
  let daemon: TestDaemon;
  let id: string;
  let base: string;

  beforeAll(async () => {
    daemon = await startDaemon({ runtime });
    id = await create(daemon, { image: { uri: await imageFor(runtime, daemon, 'busybox') } });
    base = `/v1/sandboxes/${id}/proxy/44772`;
  });

  afterAll(async () => {
    await remove(daemon, id);
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(daemon.home);
  });

  const open = (method: string, path: string, headers: Record<string, string> = {}): ClientRequest =>
    request(`${daemon.url}${base}${path}`, {
      method,
      headers: { 'OPEN-SANDBOX-API-KEY': daemon.apiKey, ...headers },
    });

  const uploading = (): ClientRequest =>
    open('POST', '/files/upload', { 'Content-Type': `multipart/form-data; boundary=${boundary}` });

  const sent = async (sending: ClientRequest): Promise<{ status: number | undefined; body: string }> => {
    const [reply] = (await once(sending, 'response')) as [IncomingMessage];
    return { status: reply.statusCode, body: await text(reply) };
  };

  /** The SHA-256 of what went up. */
  async function upload(path: string, bytes: number, look: () => void): Promise<string> {
    const sha256 = createHash('sha256');
    const sending = uploading();
    const answer = sent(sending);
    await pipeline(async function* () {
      yield Buffer.from(partsBefore(path));
      for (const piece of content(bytes)) {
        sha256.update(piece);
        look();
        yield piece;
      }
      yield Buffer.from(partsAfter);
    }, sending);
    expect(await answer).toEqual({ status: 200, body: '' });
    return sha256.digest('hex');
  }

  /** The SHA-256 of what came down. */
  async function download(path: string, look: () => void): Promise<string> {
    const sha256 = createHash('sha256');
    const asking = open('GET', `/files/download?path=${path}`).end();
    const [reply] = (await once(asking, 'response')) as [IncomingMessage];
    expect(reply.statusCode).toBe(200);
    let seen = 0;
    for await (const piece of reply as AsyncIterable<Buffer>) {
      sha256.update(piece);
      if (Math.floor(seen / mebibyte) !== Math.floor((seen + piece.length) / mebibyte)) look();
      seen += piece.length;
    }
    return sha256.digest('hex');
  }

  test('1 GiB goes up and down, and the daemon grows by no more than 32 MiB', async () => {
    // What any transfer makes it load and keep.
    await upload('/tmp/large', 64 * mebibyte, () => {});
    await download('/tmp/large', () => {});
    const before = ownMemory(daemon.pid);
    let most = before;
    const look = () => {
      most = Math.max(most, ownMemory(daemon.pid));
    };
    const sha256 = await upload('/tmp/large', large, look);
    expect(await download('/tmp/large', look)).toBe(sha256);
    expect(most - before).toBeLessThanOrEqual(growthMax);
    expect((await call(daemon, 'DELETE', `${base}/files?path=/tmp/large`)).status).toBe(200);
  });

  test('10,000 small files go up and down as one archive', async () => {
    const small = (n: number) => `${n}\n`.repeat(n % 100);
    const name = (n: number) => `many/${n % 100}/${n}`;
    const count = 10_000;
    const entries = Array.from({ length: count }, (_, n) => ({
      header: { name: name(n), size: small(n).length },
      body: small(n),
    }));
    const sending = open('PUT', '/archive?path=/srv/up', { 'Content-Type': 'application/x-tar' });
    expect(await sent(sending.end(await packTar(entries)))).toEqual({ status: 204, body: '' });
    expect(await run(daemon, id, 'find /srv/up -type f | wc -l')).toMatchObject({ stdout: `${count}\n` });

    const asking = open('GET', '/archive?path=/srv/up/many').end();
    const [reply] = (await once(asking, 'response')) as [IncomingMessage];
    expect(reply.statusCode).toBe(200);
    const came = await unpackTar(await buffer(reply));
    const files = came
      .filter(({ header }) => header.type === 'file')
      .map(({ header, data }) => [header.name, Buffer.from(data ?? []).toString()] as const);
    expect(files.length).toBe(count);
    expect(Object.fromEntries(files)).toEqual(
      Object.fromEntries(entries.map(({ header, body }) => [header.name, body])),
    );
  });

  test('parts of a file are read while it stays what it was, and those beyond its end are refused', async () => {
    await run(daemon, id, 'printf 0123456789 >/srv/parts');
    const part = (headers: Record<string, string>) =>
      call(daemon, 'GET', `${base}/files/download?path=/srv/parts`, undefined, headers);
    const whole = await part({});
    expect(whole.headers.get('accept-ranges')).toBe('bytes');
    const tag = whole.headers.get('etag') ?? 'none';
    const shown = async (headers: Record<string, string>) => {
      const { status, body, headers: said } = await part(headers);
      return [status, body.text ?? body.code, said.get('content-range')];
    };
    expect(await shown({ Range: 'bytes=2-4' })).toEqual([206, '234', 'bytes 2-4/10']);
    expect(await shown({ Range: 'bytes=-4' })).toEqual([206, '6789', 'bytes 6-9/10']);
    expect(await shown({ Range: 'bytes=8-', 'If-Range': tag })).toEqual([206, '89', 'bytes 8-9/10']);
    expect(await shown({ Range: 'bytes=10-' })).toEqual([416, expect.any(String), 'bytes */10']);
    await run(daemon, id, 'printf abcdefghijkl >/srv/parts');
    expect(await shown({ Range: 'bytes=8-', 'If-Range': tag })).toEqual([200, 'abcdefghijkl', null]);
    expect(await shown({ 'If-Match': tag })).toEqual([412, expect.any(String), null]);
  });

  const besides = async () => (await run(daemon, id, 'ls -A /srv/cut; cat /srv/cut/*')).stdout;

  test('an upload that is cut leaves the old file and nothing beside it', async () => {
    await run(daemon, id, 'mkdir /srv/cut && echo old >/srv/cut/file');
    const sending = uploading();
    sending.on('error', () => {});
    sending.write(partsBefore('/srv/cut/file'));
    sending.write(Buffer.alloc(mebibyte, 'new'));
    await until(
      'the upload to have begun',
      async () => (await run(daemon, id, 'ls -A /srv/cut | wc -l')).stdout,
      (files) => files === '2\n',
    );
    sending.destroy();
    await until('the upload to be gone', besides, (seen) => seen === 'file\nold\n');
  });

  test('an upload whose daemon is killed leaves the old file; one with an id goes on with the next daemon', async () => {
    const plain = uploading();
    plain.on('error', () => {});
    plain.write(partsBefore('/srv/cut/file'));
    plain.write(Buffer.alloc(mebibyte, 'new'));
    const path = `/uploads/${randomUUID()}?path=/srv/cut/resumed`;
    const bytes = randomBytes(2 * mebibyte);
    const resumable = open('PATCH', `${path}&offset=0`, { 'Content-Type': 'application/octet-stream' });
    resumable.on('error', () => {});
    resumable.write(bytes.subarray(0, mebibyte));
    const held = () => call(daemon, 'GET', `${base}${path}`);
    await until(
      'both to have begun',
      async () => [(await run(daemon, id, 'ls -A /srv/cut | wc -l')).stdout, (await held()).body.offset],
      ([files, offset]) => files === '3\n' && offset === mebibyte,
    );
    await daemon.kill();
    daemon = await startDaemon({ runtime, home: daemon.home });
    // Which waits for the way into the sandbox.
    await until(
      'the plain one to be gone',
      async () => (await run(daemon, id, 'ls -A /srv/cut; cat /srv/cut/file')).stdout.split('\n').slice(-3),
      (seen) => seen.join() === 'file,old,',
    );
    const { body } = await held();
    expect(body).toMatchObject({ offset: mebibyte });
    const rest = open('PATCH', `${path}&offset=${mebibyte}&complete=true`, {
      'Content-Type': 'application/octet-stream',
    });
    expect((await sent(rest.end(bytes.subarray(mebibyte)))).status).toBe(200);
    expect(await download('/srv/cut/resumed', () => {})).toBe(
      createHash('sha256').update(bytes).digest('hex'),
    );
    expect(await run(daemon, id, 'ls -A /srv/cut')).toMatchObject({ stdout: 'file\nresumed\n' });
  });
});
