// Calls about images. The work is in images.ts.

import { PassThrough, type Readable } from 'node:stream';
import { createGunzip } from 'node:zlib';
import { Failure } from '../lib/failure.ts';
import { RenamedArchive } from './archive.ts';
import { labelsOf } from './create.ts';
import { type Exchange, flag, isSet, jsonOf, pick, relay, sendJson } from './exchange.ts';
import type { DockerGate } from './gate.ts';
import { parseFilters } from './images.ts';
import { refused, route } from './routes.ts';

route('GET', '/images/json', async function (it) {
  sendJson(it.response, 200, await this.images.shownList(it.version, parseFilters(it.query.get('filters'))));
});

route('GET', '/images/get', async function (it) {
  await save(
    this,
    it,
    it.query.getAll('names').flatMap((each) => each.split(',')),
  );
});

route('GET', '/images/{image}/get', async function (it) {
  await save(this, it, [it.params[0] ?? '']);
});

async function save(gate: DockerGate, it: Exchange, names: string[]): Promise<void> {
  if (names.length === 0 || names.length > 64) throw new Failure('invalid', 'name from 1 to 64 images');
  const references = await Promise.all(names.map((each) => gate.images.referenceOf(it.version, each)));
  const query = references.map((each) => `names=${encodeURIComponent(each)}`).join('&');
  const reply = await gate.upstream.stream(
    it.version,
    { method: 'GET', path: `/images/get?${query}` },
    it.signal,
  );
  await relay(
    it,
    reply,
    new RenamedArchive((reference) => (reference === '' ? undefined : gate.names.shownImage(reference))),
  );
}

route('GET', '/images/search', async () => {
  throw new Failure('permission', 'a sandbox’s engine asks no registry');
});

route('POST', '/images/load', async function (it) {
  const lines = await this.images.load(it.version, await unpacked(it.request), it.signal);
  it.response.writeHead(200, { 'Content-Type': 'application/json' });
  it.response.end(lines.map((line) => `${JSON.stringify({ stream: `${line}\n` })}\r\n`).join(''));
});

/** Clients send what they have; of the usual kinds of compression, the one that Node knows is undone. */
async function unpacked(source: Readable): Promise<Readable> {
  const whole = new PassThrough();
  source.pipe(whole);
  source.on('error', (error) => whole.destroy(error));
  const first = await new Promise<Buffer>((resolve, reject) => {
    const look = () => {
      const piece = whole.read() as Buffer | null;
      if (piece === null && !whole.readableEnded) return;
      whole.off('readable', look);
      resolve(piece ?? Buffer.alloc(0));
    };
    whole
      .on('readable', look)
      .once('end', () => resolve(Buffer.alloc(0)))
      .once('error', reject);
  });
  if (first.length > 0) whole.unshift(first);
  if (first[0] !== 0x1f || first[1] !== 0x8b) return whole;
  const gunzip = createGunzip();
  whole.on('error', (error) => gunzip.destroy(error));
  return whole.pipe(gunzip);
}

route('POST', '/images/create', async function (it) {
  if (it.query.get('fromSrc') !== '-' || it.query.get('fromImage'))
    throw new Failure(
      'permission',
      'a sandbox’s engine pulls nothing: it would go past the sandbox’s policy',
      {
        hint: 'Bring the image in: docker save IMAGE | docker --host … load.',
      },
    );
  const repo = it.query.get('repo') ?? '';
  const name = repo === '' ? undefined : `${repo}${it.query.get('tag') ? `:${it.query.get('tag')}` : ''}`;
  const changes = it.query.getAll('changes');
  const id = await this.images.import(it.version, it.request, { name, changes }, it.signal);
  it.response.writeHead(200, { 'Content-Type': 'application/json' });
  it.response.end(`${JSON.stringify({ status: id })}\r\n`);
});

route('POST', '/images/prune', async function (it) {
  const users = await this.containers(it.version);
  const inUse = (id: string) => users.some((each) => each.ImageID === id);
  sendJson(
    it.response,
    200,
    await this.images.prune(it.version, parseFilters(it.query.get('filters')), inUse),
  );
});

route('GET', '/images/{image}/json', async function (it) {
  sendJson(it.response, 200, await this.images.inspect(it.version, it.params[0] ?? ''));
});

route('GET', '/images/{image}/history', async function (it) {
  sendJson(it.response, 200, await this.images.history(it.version, it.params[0] ?? ''));
});

route('POST', '/images/{image}/tag', async function (it) {
  const tag = it.query.get('tag');
  await this.images.tag(
    it.version,
    it.params[0] ?? '',
    `${it.query.get('repo') ?? ''}${tag ? `:${tag}` : ''}`,
  );
  it.response.writeHead(201, { 'Content-Length': 0 }).end();
});

refused(
  'POST',
  '/images/{image}/push',
  'a sandbox’s engine pushes nothing: it would go past the sandbox’s policy',
  'Take the image out with docker save.',
);

route('DELETE', '/images/{image}', async function (it) {
  const users = await this.containers(it.version);
  const options = {
    force: isSet(it.query.get('force')),
    inUse: (id: string) => users.some((each) => each.ImageID === id),
  };
  sendJson(it.response, 200, await this.images.remove(it.version, it.params[0] ?? '', options));
});

route('POST', '/commit', async function (it) {
  const id = await this.containerId(it.version, it.query.get('container') ?? '');
  const config = (await jsonOf(it)) as Record<string, unknown>;
  const repo = it.query.get('repo') ?? '';
  const name = repo === '' ? undefined : `${repo}${it.query.get('tag') ? `:${it.query.get('tag')}` : ''}`;
  const fields = ['Cmd', 'Entrypoint', 'Env', 'ExposedPorts', 'StopSignal', 'User', 'Volumes', 'WorkingDir'];
  const kept = Object.fromEntries(
    fields.flatMap((key) => (config?.[key] == null ? [] : [[key, config[key]]])),
  );
  const Labels = labelsOf(config?.Labels);
  const query = pick(it.query, { pause: flag, comment: /^[^\0]{0,1024}$/, author: /^[^\0]{0,256}$/ });
  const changes = it.query.getAll('changes');
  const made = await this.images.commit(it.version, {
    container: id,
    json: { ...kept, Labels },
    query,
    changes,
    name,
  });
  sendJson(it.response, 201, { Id: made });
});
