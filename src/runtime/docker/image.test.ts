// Image names as a table, and pulls from a registry of our own on the loopback, which the engine trusts without TLS.

import { execFileSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { gzipSync } from 'node:zlib';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { rootfsTar } from '../../../test/images.ts';
import { Failure } from '../../lib/failure.ts';
import { Engine } from './engine.ts';
import { canonicalArch, ensureImage, parseReference } from './image.ts';

const present = process.env.GLOVEBOX_TEST_PRESENT?.split(',').includes('docker') ?? false;
const never = new AbortController().signal;
const arch = canonicalArch(process.arch);
const digest = `sha256:${'0123456789abcdef'.repeat(4)}`;

test.each([
  ['busybox', 'busybox', 'latest', 'docker.io'],
  ['python:3.11', 'python', '3.11', 'docker.io'],
  ['library/python', 'library/python', 'latest', 'docker.io'],
  ['localhost/x', 'localhost/x', 'latest', 'localhost'],
  ['registry.example:5000/a/b-c__d:v1.0', 'registry.example:5000/a/b-c__d', 'v1.0', 'registry.example:5000'],
  [`ghcr.io/a/b@${digest}`, 'ghcr.io/a/b', digest, 'ghcr.io'],
  [`a:1@${digest}`, 'a', digest, 'docker.io'],
])('%s is %s, %s, from %s', (text, name, tag, registry) => {
  expect(parseReference(text)).toEqual({ name, tag, registry });
});

test.each([
  '',
  ' ',
  'A',
  'a b',
  'a:',
  'a@b',
  '../a',
  'a/../b',
  'a?x=1',
  'a#b',
  'a\nb',
  '-a',
  'http://a/b',
  `a:${'x'.repeat(129)}`,
  'a'.repeat(600),
])('%j is not the name of an image', (text) => {
  expect(() => parseReference(text)).toThrow(Failure);
});

describe.runIf(present)('pulling', () => {
  const account = { username: 'ada', password: 'open sesame: é' };
  const layer = readFileSync(rootfsTar('scratch'));
  const sha256 = (bytes: Buffer) => `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
  const blobs = new Map<string, Buffer>();
  const blob = (content: Buffer, mediaType: string) => {
    blobs.set(sha256(content), content);
    return { mediaType, size: content.length, digest: sha256(content) };
  };
  const manifestType = 'application/vnd.docker.distribution.manifest.v2+json';
  const manifestFor = (architecture: string, diffId = sha256(layer), variable = 'FROM=registry') => {
    const config = {
      architecture,
      os: 'linux',
      config: { Env: [variable], Cmd: ['/busybox'] },
      rootfs: { type: 'layers', diff_ids: [diffId] },
    };
    return Buffer.from(
      JSON.stringify({
        schemaVersion: 2,
        mediaType: manifestType,
        config: blob(Buffer.from(JSON.stringify(config)), 'application/vnd.docker.container.image.v1+json'),
        layers: [blob(gzipSync(layer), 'application/vnd.docker.image.rootfs.diff.tar.gzip')],
      }),
    );
  };
  const manifests: Record<string, Buffer> = { good: manifestFor(arch), foreign: manifestFor('s390x') };
  // A manifest whose layer is not there.
  const broken = JSON.parse(String(manifestFor(arch, `sha256:${'0'.repeat(64)}`)));
  broken.layers[0].digest = `sha256:${'0'.repeat(64)}`;
  manifests.broken = Buffer.from(JSON.stringify(broken));

  let registry: Server;
  let host: string;
  let requests: string[];
  const engine = new Engine({ host: 'unix:///var/run/docker.sock', timeoutMs: 60_000 });

  beforeAll(async () => {
    registry = createServer((request, response) => {
      requests.push(request.url ?? '');
      const wanted = `Basic ${Buffer.from(`${account.username}:${account.password}`).toString('base64')}`;
      if (request.url?.includes('/hidden/') || request.url === '/v2/') {
        if (request.headers.authorization !== wanted) {
          response.writeHead(401, {
            'www-authenticate': 'Basic realm="test"',
            'content-type': 'application/json',
          });
          return response.end('{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}');
        }
      }
      const [, kind, name = ''] = /\/(manifests|blobs)\/([^/]+)$/.exec(request.url ?? '') ?? [];
      const tag = Object.keys(manifests).find(
        (it) => it === name || sha256(manifests[it] as Buffer) === name,
      );
      const content = kind === 'blobs' ? blobs.get(name) : tag === undefined ? undefined : manifests[tag];
      if (request.url === '/v2/') return response.writeHead(200).end('{}');
      if (content === undefined) {
        response.writeHead(404, { 'content-type': 'application/json' });
        return response.end(
          '{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown\\u001b[31m"}]}',
        );
      }
      response.writeHead(200, {
        'content-type': kind === 'blobs' ? 'application/octet-stream' : manifestType,
        'content-length': content.length,
        'docker-content-digest': sha256(content),
      });
      return response.end(request.method === 'HEAD' ? undefined : content);
    });
    await new Promise<void>((resolve) => registry.listen(0, '127.0.0.1', resolve));
    host = `127.0.0.1:${(registry.address() as AddressInfo).port}`;
  });
  beforeEach(() => {
    requests = [];
  });
  afterAll(() => {
    // What a tag has moved away from has its digest alone.
    const format = '{{.Repository}}{{if eq .Tag "<none>"}}@{{.Digest}}{{else}}:{{.Tag}}{{end}}';
    const ours = execFileSync('docker', ['image', 'ls', '--digests', '--format', format], {
      encoding: 'utf8',
    });
    const names = ours.split('\n').filter((it) => it.startsWith(host));
    if (names.length > 0) execFileSync('docker', ['rmi', '-f', ...names]);
    registry.close();
    engine.close();
  });
  const failureOf = (image: string, more: object = {}) =>
    ensureImage(engine, { image, ...more }, arch, never).catch((it) => it);
  const fresh = () => randomBytes(4).toString('hex');

  test('an absent image is pulled with the credentials of the request, tells its progress, and is not pulled again', async () => {
    const image = `${host}/hidden/${fresh()}:good`;
    const lines: string[] = [];
    const wanted = { image, imageCredentials: account, onProgress: (line: string) => void lines.push(line) };
    const found = await ensureImage(engine, wanted, arch, never);
    expect(found.defaults).toEqual({ env: { FROM: 'registry' }, entrypoint: ['/busybox'] });
    expect(lines[0]).toMatch(/Pulling from hidden/);
    expect(lines.at(-1)).toMatch(/Downloaded newer image|Image is up to date/);
    requests = [];
    expect(await ensureImage(engine, { image, platform: { os: 'linux', arch } }, arch, never)).toEqual(found);
    expect(requests).toEqual([]);
  });

  test('always asks the registry again and takes what it has now; never asks it for nothing', async () => {
    const image = `${host}/${fresh()}/moving:moving`;
    const wanted = { image, imageCredentials: account };
    const named = (pull: 'always' | 'never') => ensureImage(engine, { ...wanted, pull }, arch, never);
    expect(await failureOf(image, { pull: 'never' })).toMatchObject({
      code: 'not-found',
      message: expect.stringContaining('not to be pulled'),
      hint: expect.stringContaining('template load'),
    });
    expect(requests).toEqual([]);
    manifests.moving = manifestFor(arch);
    const first = await named('always');
    expect(await named('always')).toEqual(first);
    manifests.moving = manifestFor(arch, undefined, 'MOVED=on');
    expect(await named('never')).toEqual(first);
    const second = await named('always');
    expect(second.id).not.toBe(first.id);
    expect(second.defaults.env).toEqual({ MOVED: 'on' });
    delete manifests.moving;
    // What is there is not taken for what was asked for.
    expect(await failureOf(image, { ...wanted, pull: 'always' })).toMatchObject({ code: 'not-found' });
    expect(await named('never')).toEqual(second);
  });

  test.each([
    [
      'a wrong password',
      '/hidden/',
      'good',
      { imageCredentials: { username: 'ada', password: 'wrong' } },
      'permission',
      /user name and password/,
    ],
    ['no password', '/hidden/', 'good', {}, /permission|not-found/, /credentials|password/],
    ['an unknown tag', '/hidden/', 'none-such', { imageCredentials: account }, 'not-found', /name and tag/],
    [
      'a layer that is not there',
      '/hidden/',
      'broken',
      { imageCredentials: account },
      'not-found',
      /name and tag/,
    ],
    [
      'an image of another architecture',
      '/hidden/',
      'foreign',
      { imageCredentials: account },
      'unsupported',
      /architecture/,
    ],
  ])('fails clearly with %s', async (_what, folder, tag, more, code, hint) => {
    const failure = await failureOf(`${host}${folder}${fresh()}:${tag}`, more);
    expect(failure).toBeInstanceOf(Failure);
    expect(failure.code, failure.message).toMatch(code);
    expect(failure.hint).toMatch(hint);
    expect(failure.message).not.toMatch(/\p{Cc}/u);
    expect(JSON.stringify([failure.message, failure.hint, failure.details])).not.toContain(account.password);
  });

  test('fails clearly when the registry is not there', async () => {
    expect(await failureOf('127.0.0.1:1/none:1')).toMatchObject({
      code: 'unavailable',
      hint: expect.stringContaining('registry'),
    });
  });

  test('an abort ends a pull at once', async () => {
    const silent = createServer(() => {});
    await new Promise<void>((resolve) => silent.listen(0, '127.0.0.1', resolve));
    const abort = new AbortController();
    silent.once('request', () => abort.abort());
    const image = `127.0.0.1:${(silent.address() as AddressInfo).port}/never:1`;
    expect(await ensureImage(engine, { image }, arch, abort.signal).catch((it) => it)).toMatchObject({
      code: 'aborted',
    });
    silent.closeAllConnections();
    silent.close();
  });
});
