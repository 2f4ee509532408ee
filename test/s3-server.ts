// A bucket on loopback, as much of S3 as s3fs uses: objects with their metadata, lists, copies, one key pair. Path-style, whole objects in memory.
import { createHash } from 'node:crypto';
import { createServer, type IncomingMessage, type RequestListener, type ServerResponse } from 'node:http';
import { createServer as createSecureServer } from 'node:https';
import type { AddressInfo } from 'node:net';

export interface BucketServer extends AsyncDisposable {
  endpoint: string;
  /** By key. */
  objects: Map<string, StoredObject>;
  /** How many requests have shown another key. */
  refused: number;
  /** While set, no request is answered. */
  silent: boolean;
}

export interface StoredObject {
  body: Buffer;
  /** `x-amz-meta-…` and content type. */
  headers: Record<string, string>;
  at: Date;
}

export async function bucketServer({
  bucket,
  accessKeyId,
  tls,
}: {
  bucket: string;
  accessKeyId: string;
  /** With it, it speaks HTTPS alone. */
  tls?: { cert: string; key: string };
}): Promise<BucketServer> {
  const objects = new Map<string, StoredObject>();
  const listener: RequestListener = (request, response) => {
    void answer(request, response).catch(() => response.destroy());
  };
  const server = tls === undefined ? createServer(listener) : createSecureServer(tls, listener);
  const answer = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const body = Buffer.concat(await request.toArray());
    if (open.silent) return;
    const url = new URL(request.url as string, 'http://localhost');
    const [, named, ...rest] = url.pathname.split('/').map(decodeURIComponent);
    const key = rest.join('/');
    const shown = /(?:Credential=|AWS )([^/:]+)[/:]/.exec(request.headers.authorization ?? '')?.[1];
    if (shown !== accessKeyId) {
      open.refused++;
      return fail(response, 403, 'InvalidAccessKeyId', 'The access key does not exist in our records.');
    }
    if (named !== bucket) return fail(response, 404, 'NoSuchBucket', 'The bucket does not exist.');
    if (key === '' && request.method === 'GET')
      return reply(response, 200, { 'content-type': 'application/xml' }, list(bucket, objects, url));
    const found = objects.get(key);
    switch (request.method) {
      case 'PUT': {
        const source = request.headers['x-amz-copy-source'];
        const copied =
          source === undefined
            ? undefined
            : objects.get(
                decodeURIComponent(String(source))
                  .replace(/^\//, '')
                  .slice(bucket.length + 1),
              );
        if (source !== undefined && copied === undefined) break;
        const headers = Object.fromEntries(
          Object.entries(request.headers).filter(
            ([name]) => name.startsWith('x-amz-meta-') || name === 'content-type',
          ),
        ) as Record<string, string>;
        objects.set(key, { body: copied?.body ?? body, headers, at: new Date() });
        const etag = etagOf(copied?.body ?? body);
        if (copied === undefined) return reply(response, 200, { etag });
        return reply(response, 200, {}, `<CopyObjectResult><ETag>${etag}</ETag></CopyObjectResult>`);
      }
      case 'DELETE':
        objects.delete(key);
        return reply(response, 204, {});
      case 'HEAD':
      case 'GET': {
        if (found === undefined) break;
        const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '');
        const from = Number(range?.[1] ?? 0);
        const part = found.body.subarray(from, range?.[2] ? Number(range[2]) + 1 : undefined);
        const headers = {
          ...found.headers,
          'last-modified': found.at.toUTCString(),
          etag: etagOf(found.body),
          'content-length': String(part.length),
        };
        response.writeHead(range === null ? 200 : 206, headers);
        response.end(request.method === 'HEAD' ? undefined : part);
        return;
      }
    }
    fail(response, 404, 'NoSuchKey', 'There is no such object.');
  };
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const open: BucketServer = {
    endpoint: `http${tls === undefined ? '' : 's'}://127.0.0.1:${(server.address() as AddressInfo).port}`,
    objects,
    refused: 0,
    silent: false,
    [Symbol.asyncDispose]: () =>
      new Promise<void>((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
  return open;
}

/** Of at most a thousand, which no test needs more of. */
function list(bucket: string, objects: Map<string, StoredObject>, { searchParams }: URL): string {
  const [prefix, delimiter] = [searchParams.get('prefix') ?? '', searchParams.get('delimiter') ?? ''];
  const below = [...objects].filter(([key]) => key.startsWith(prefix)).sort(([a], [b]) => (a < b ? -1 : 1));
  const folders = new Set<string>();
  const contents = below.flatMap(([key, { body, at }]) => {
    const end = delimiter === '' ? -1 : key.indexOf(delimiter, prefix.length);
    if (end !== -1) {
      folders.add(key.slice(0, end + 1));
      return [];
    }
    return `<Contents><Key>${escaped(key)}</Key><LastModified>${at.toISOString()}</LastModified><ETag>${etagOf(body)}</ETag><Size>${body.length}</Size></Contents>`;
  });
  const prefixes = [...folders].map(
    (it) => `<CommonPrefixes><Prefix>${escaped(it)}</Prefix></CommonPrefixes>`,
  );
  return `<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>${bucket}</Name><Prefix>${escaped(prefix)}</Prefix><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>${contents.join('')}${prefixes.join('')}</ListBucketResult>`;
}

const etagOf = (body: Buffer): string => `"${createHash('md5').update(body).digest('hex')}"`;

const escaped = (text: string): string =>
  text.replace(/[<>&"]/g, (character) => `&#${character.charCodeAt(0)};`);

function reply(response: ServerResponse, status: number, headers: Record<string, string>, body = ''): void {
  response.writeHead(status, { ...headers, 'content-length': Buffer.byteLength(body) });
  response.end(body);
}

function fail(response: ServerResponse, status: number, code: string, message: string): void {
  const body = `<?xml version="1.0"?><Error><Code>${code}</Code><Message>${message}</Message></Error>`;
  reply(response, status, { 'content-type': 'application/xml' }, response.req.method === 'HEAD' ? '' : body);
}
