// Buckets as volumes, on every runtime of this machine: s3fs under the name of ossfs, which is a fork of it with the same command line, before a bucket on loopback. In
// the place of ossfs2 stands a program that checks what it is told and shows a folder.
import { execFile } from 'node:child_process';
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { call, create, list, remove, run } from '../client.ts';
import { expectNothingLeft, leftovers, startDaemon, type TestDaemon } from '../daemon.ts';
import { dockerImage } from '../images.ts';
import { makeAuthority, makeCertificate } from '../network/pki.ts';
import { runtimes } from '../runtimes.ts';
import { type BucketServer, bucketServer } from '../s3-server.ts';

const accessKeyId = 'LTAItestAccessKeyId';
const accessKeySecret = 'SecretOfTheBucketThatNobodySees';

let programs: string;
let daemon: TestDaemon;
let server: BucketServer;

const env = () => ({ PATH: `${programs}:${process.env.PATH}` });
const program = (name: string, script: string) =>
  writeFileSync(join(programs, name), `#!/bin/sh\n${script}\n`, { mode: 0o755 });

beforeAll(async () => {
  programs = mkdtempSync(join(tmpdir(), 'glovebox-programs-'));
  program('ossfs', 'exec s3fs "$@"');
  daemon = await startDaemon({ env: env() });
});

beforeEach(async () => {
  server = await bucketServer({ bucket: 'data', accessKeyId });
  const object = (text: string) => ({ body: Buffer.from(text), headers: {}, at: new Date() });
  server.objects.set('hello.txt', object('hello\n'));
  server.objects.set('sub/dir/deep.txt', object('deep\n'));
  return () => server[Symbol.asyncDispose]();
});

afterEach(async () => {
  for (const { id } of await list(daemon)) await remove(daemon, id);
});

afterAll(async () => {
  expect(await daemon.stop()).toBe(0);
  await expectNothingLeft(daemon.home);
  rmSync(programs, { recursive: true });
});

const restartAfterKill = async (more: Record<string, string> = {}) => {
  await daemon.kill();
  daemon = await startDaemon({ home: daemon.home, env: { ...env(), ...more } });
};

const ossfs = (change: object = {}) => ({
  ...{ bucket: 'data', endpoint: server.endpoint, version: '1.0', accessKeyId, accessKeySecret },
  options: ['use_path_request_style'],
  ...change,
});
const imageOf = (runtime: string) => (runtime === 'docker' ? dockerImage('busybox') : 'host');
const requestOf = (runtime: string, volumes: object[]) => ({
  ...{ image: { uri: imageOf(runtime) }, volumes, entrypoint: ['tail', '-f', '/dev/null'] },
  ...{ resourceLimits: {}, extensions: { 'glovebox.runtime': runtime } },
});
/** Where buckets are mounted on this host, and what shows them. */
const shown = () => leftovers(daemon.home).filter((it) => /\/buckets\/|\/elsewhere\//.test(it));
const mounts = () => shown().filter((it) => it.startsWith('mount'));

describe.each(runtimes)('%s', (runtime) => {
  test('a bucket is read and written by its guest, over the end of the daemon, and kept from everybody else', async () => {
    const id = await create(daemon, {
      ...requestOf(runtime, [
        { name: 'all', mountPath: '/data', ossfs: ossfs() },
        { name: 'look', mountPath: '/look', readOnly: true, ossfs: ossfs() },
        { name: 'part', mountPath: '/part', subPath: 'sub/dir/', ossfs: ossfs() },
      ]),
      glovebox: { keep: true },
    });
    expect(await run(daemon, id, 'cat /data/hello.txt /look/hello.txt /part/deep.txt')).toMatchObject({
      stdout: 'hello\nhello\ndeep\n',
    });
    await run(
      daemon,
      id,
      'echo from inside > /data/new.txt && mkdir /part/more && cp /data/new.txt /part/more/',
    );
    expect(server.objects.get('new.txt')?.body.toString()).toBe('from inside\n');
    expect(server.objects.get('sub/dir/more/new.txt')?.body.toString()).toBe('from inside\n');
    expect(await run(daemon, id, 'echo x > /look/x; test -e /data/x')).toMatchObject({ exitCode: 1 });
    expect([...server.objects.keys()]).not.toContain('x');

    const helpers = shown();
    expect(mounts()).toHaveLength(3);
    await expectNoSecrets(id);
    await restartAfterKill();
    expect(shown()).toEqual(helpers);
    await vi.waitFor(async () =>
      expect(await run(daemon, id, 'cat /data/new.txt')).toMatchObject({ stdout: 'from inside\n' }),
    );

    await call(daemon, 'POST', `/v1/sandboxes/${id}/stop`);
    expect(shown()).toEqual([]);
    await restartAfterKill();
    server.objects.set('later.txt', { body: Buffer.from('later\n'), headers: {}, at: new Date() });
    expect((await call(daemon, 'POST', `/v1/sandboxes/${id}/start`)).status).toBeLessThan(300);
    expect(await run(daemon, id, 'cat /data/new.txt /part/more/new.txt /look/later.txt')).toMatchObject({
      stdout: 'from inside\nfrom inside\nlater\n',
    });
    expect(await call(daemon, 'DELETE', `/v1/sandboxes/${id}`)).toMatchObject({ status: 204 });
    expect(shown()).toEqual([]);
    expect(readFileSync(join(daemon.home, 'network/bucket-keys'), 'utf8')).not.toContain(id);
    expect(server.objects.get('new.txt')?.body.toString()).toBe('from inside\n');
  });

  test('with wrong keys there is no sandbox, nothing is left, and the words of the program are told', async () => {
    const volumes = [
      { name: 'good', mountPath: '/good', ossfs: ossfs() },
      { name: 'bad', mountPath: '/bad', ossfs: ossfs({ accessKeyId: 'SomebodyElse' }) },
    ];
    const { status, body } = await call(daemon, 'POST', '/v1/sandboxes', requestOf(runtime, volumes));
    expect({ status, body }).toMatchObject({ status: 500, body: { code: 'VOLUME::OSSFS_MOUNT_FAILED' } });
    expect(body.message).toMatch(/volumes\.bad: .*data.*invalid credentials/);
    expect(body.message).not.toMatch(/SomebodyElse|SecretOf|\[INF\]/);
    expect(server.refused).toBeGreaterThan(0);
    expect(shown()).toEqual([]);
    expect(readdirSync(join(daemon.home, 'buckets'))).toEqual([]);
  });

  test('a bucket over HTTPS is taken from the authorities that the daemon trusts, and from no others', async () => {
    const authority = makeAuthority();
    const tls = makeCertificate({ names: ['127.0.0.1'], issuer: authority });
    await using secure = await bucketServer({ bucket: 'data', accessKeyId, tls });
    secure.objects.set('hello.txt', { body: Buffer.from('hello\n'), headers: {}, at: new Date() });
    const volumes = [{ name: 'v', mountPath: '/v', ossfs: ossfs({ endpoint: secure.endpoint }) }];
    const request = { ...requestOf(runtime, volumes), glovebox: { keep: true } };
    const stranger = await call(daemon, 'POST', '/v1/sandboxes', request);
    expect(stranger).toMatchObject({ status: 500, body: { code: 'VOLUME::OSSFS_MOUNT_FAILED' } });
    expect(stranger.body.message).toMatch(/volumes\.v: .*unable to connect/);
    expect(stranger.headers.get('Glovebox-Hint')).toContain('CURL_CA_BUNDLE');
    expect(shown()).toEqual([]);

    const bundle = join(programs, 'authority.pem');
    writeFileSync(bundle, authority.cert);
    await restartAfterKill({ CURL_CA_BUNDLE: bundle });
    const id = await create(daemon, request);
    expect(await run(daemon, id, 'cat /v/hello.txt; echo inside > /v/new')).toMatchObject({
      stdout: 'hello\n',
    });
    expect(secure.objects.get('new')?.body.toString()).toBe('inside\n');
    await call(daemon, 'POST', `/v1/sandboxes/${id}/stop`);
    await restartAfterKill();
    const again = await call(daemon, 'POST', `/v1/sandboxes/${id}/start`);
    expect([again.status, again.body.code]).toEqual([500, 'VOLUME::OSSFS_MOUNT_FAILED']);
    await remove(daemon, id);
  });

  test('a bucket whose program has ended is told, and is there again after a stop and a start', async () => {
    const id = await create(daemon, {
      ...requestOf(runtime, [
        { name: 'dies', mountPath: '/dies', ossfs: ossfs() },
        { name: 'lives', mountPath: '/lives', ossfs: ossfs() },
      ]),
      glovebox: { keep: true },
    });
    const told = async () => [
      (await call(daemon, 'GET', `/v1/sandboxes/${id}/diagnostics/events?scope=runtime`)).body.content,
      (await call(daemon, 'GET', `/v1/sandboxes/${id}/why`)).body.explanation,
    ];
    expect((await told()).join()).not.toContain('volumes.');
    const [dying] = leftovers(daemon.home).filter((it) => /process.*\/buckets\/[^/]+\/0 /.test(it));
    process.kill(Number(/process (\d+)/.exec(dying as string)?.[1]), 'SIGKILL');
    await vi.waitFor(async () => expect((await told())[0]).toMatch(/volumes\.dies has ended/));
    expect((await told())[1]).toMatch(/buckets are gone: volumes\.dies\. /);
    expect(await run(daemon, id, 'cat /lives/hello.txt; cat /dies/hello.txt')).toMatchObject({
      ...{ stdout: 'hello\n', stderr: expect.stringMatching(/not connected/), exitCode: 1 },
    });
    await restartAfterKill();
    await vi.waitFor(async () => expect((await told())[0]).toMatch(/volumes\.dies has ended/));
    await call(daemon, 'POST', `/v1/sandboxes/${id}/stop`);
    expect((await told()).join()).not.toContain('volumes.');
    expect((await call(daemon, 'POST', `/v1/sandboxes/${id}/start`)).status).toBeLessThan(300);
    expect((await told()).join()).not.toContain('volumes.');
    expect(await run(daemon, id, 'cat /lives/hello.txt /dies/hello.txt')).toMatchObject({
      stdout: 'hello\nhello\n',
    });
  });

  test('ossfs2 is told by a file of its own, and looked for at each request', async () => {
    const folder = mkdtempSync(join(programs, 'folder-'));
    chmodSync(folder, 0o755);
    writeFileSync(join(folder, 'there.txt'), 'there\n');
    const volumes = [
      {
        ...{ name: 'two', mountPath: '/data', subPath: 'a b/c' },
        ossfs: ossfs({ version: undefined, options: ['attr_timeout=5'], endpoint: 'oss.example.com' }),
      },
    ];
    rmSync(join(programs, 'ossfs2'), { force: true });
    const missing = await call(daemon, 'POST', '/v1/sandboxes', requestOf(runtime, volumes));
    expect(missing).toMatchObject({ status: 501, body: { code: 'VOLUME::UNSUPPORTED_BACKEND' } });
    expect(missing.body.message).toMatch(/volumes\.two: .*ossfs2.*PATH/);
    expect(missing.headers.get('Glovebox-Hint')).toMatch(/Install ossfs2/);

    const told = join(folder, '..', `told-${runtime}`);
    program(
      'ossfs2',
      `[ "$1 $3 $(stat -c %a "$4")" = "mount -c 600" ] || exit 64\ncp "$4" '${told}'\nmount --bind '${folder}' "$2"`,
    );
    const id = await create(daemon, requestOf(runtime, volumes));
    expect(readFileSync(told, 'utf8').split('\n')).toEqual(
      expect.arrayContaining([
        ...['--oss_endpoint=https://oss.example.com', '--oss_bucket=data', '--oss_bucket_prefix=a b/c/'],
        ...[`--oss_access_key_id=${accessKeyId}`, `--oss_access_key_secret=${accessKeySecret}`],
        ...['--attr_timeout=5', '--ro=false', '--allow_other=true'],
      ]),
    );
    rmSync(told);
    expect(await run(daemon, id, 'cat /data/there.txt')).toMatchObject({ stdout: 'there\n' });
    await expectNoSecrets(id);
    await call(daemon, 'DELETE', `/v1/sandboxes/${id}`);
    expect(shown()).toEqual([]);
    expect(readdirSync(folder)).toEqual(['there.txt']);

    program('ossfs2', `echo "no route to the bucket of ${accessKeySecret}" >&2; exit 3`);
    const failed = await call(daemon, 'POST', '/v1/sandboxes', requestOf(runtime, volumes));
    expect(failed.body.message).toMatch(/no route to the bucket of …; exit code 3/);
    program('ossfs2', 'exit 0');
    const idle = await call(daemon, 'POST', '/v1/sandboxes', requestOf(runtime, volumes));
    expect(idle.body.message).toMatch(/nothing is mounted/);
    expect(shown()).toEqual([]);
  });
});

test.skipIf(runtimes.length === 0)(
  'a bucket that does not answer any more holds up neither the next daemon nor the end of its sandbox',
  async () => {
    const volumes = [{ name: 'v', mountPath: '/v', ossfs: ossfs() }];
    const id = await create(daemon, requestOf(runtimes[0] as string, volumes));
    server.silent = true;
    await run(daemon, id, 'cat /v/hello.txt > /dev/null 2>&1 & echo x > /v/new & sleep 1');
    await restartAfterKill();
    await remove(daemon, id);
    expect(shown()).toEqual([]);
  },
);

test.skipIf(runtimes.length === 0)(
  'what a daemon was mounting when it was killed, the next one takes away, wherever it mounts its own',
  async () => {
    server.silent = true;
    const runtime = runtimes[0] as string;
    const volumes = [{ name: 'v', mountPath: '/v', ossfs: ossfs() }];
    const creating = call(daemon, 'POST', '/v1/sandboxes', requestOf(runtime, volumes)).catch(
      () => undefined,
    );
    await vi.waitFor(() => expect(mounts()).toHaveLength(1));
    const root = join(programs, 'elsewhere');
    await restartAfterKill({ GLOVEBOX_STORAGE_OSSFS_MOUNT_ROOT: root });
    await creating;
    await vi.waitFor(() => expect(shown()).toEqual([]));
    expect(readdirSync(join(daemon.home, 'buckets'))).toEqual([]);

    server.silent = false;
    const id = await create(daemon, requestOf(runtime, volumes));
    expect(mounts()).toEqual([expect.stringContaining(` ${root}/glovebox-`)]);
    await remove(daemon, id);
    expect(shown()).toEqual([]);
  },
);

test.each([
  ['a bucket with an option in its name', { bucket: 'data -o allow_root' }],
  ['a bucket that is a path', { bucket: '../etc' }],
  ['a bucket that begins like an option', { bucket: '-data' }],
  ['an endpoint with more options', { endpoint: 'oss.example.com,passwd_file=/etc/shadow' }],
  ['an endpoint with a user', { endpoint: 'https://user:word@oss.example.com' }],
  ['an endpoint of another kind', { endpoint: 'file:///etc/passwd' }],
  ['an endpoint with a line of its own', { endpoint: 'oss.example.com\n--log_dir=/etc' }],
  ['a key with a line of its own', { accessKeySecret: 'secret\n--log_dir=/etc' }],
  ['a key with a colon', { accessKeyId: 'data:other' }],
  ['no key', { accessKeySecret: '' }],
  ['an option with a dash', { options: ['-o', 'allow_other'] }],
  ['an option with another behind a comma', { options: ['retries=3,passwd_file=/etc/shadow'] }],
  ['an option with a line of its own', { options: ['retries=3\nro'] }],
  [
    'an option that writes where it wants',
    { options: ['use_cache=/etc/cron.d'] },
    'VOLUME::INVALID_OSSFS_OPTION',
  ],
  ['an option that loads a library', { options: ['credlib=/tmp/x.so'] }, 'VOLUME::INVALID_OSSFS_OPTION'],
  [
    'an option that takes the keys of the host',
    { options: ['ram_role=admin'] },
    'VOLUME::INVALID_OSSFS_OPTION',
  ],
  [
    'an option that runs programs',
    { version: '2.0', options: ['credential_process=id'] },
    'VOLUME::INVALID_OSSFS_OPTION',
  ],
  ['a number that is none', { options: ['retries=many'] }, 'VOLUME::INVALID_OSSFS_OPTION'],
  ['a version that there is not', { version: '3.0' }],
  ['a field that there is not', { url: 'x' }],
])('%s is refused', async (_, change, code = 'SANDBOX::INVALID_PARAMETER') => {
  const volumes = [{ name: 'v', mountPath: '/v', ossfs: ossfs(change) }];
  const answer = await call(daemon, 'POST', '/v1/sandboxes', requestOf(runtimes[0] as string, volumes));
  expect(answer).toMatchObject({ status: 400, body: { code } });
  expect(answer.body.message).toContain('volumes');
  expect(answer.body.message).not.toContain(accessKeySecret);
});

/** Neither on the disk, nor in what processes were told, nor in what the API shows. */
async function expectNoSecrets(id: string): Promise<void> {
  for (const path of [
    '',
    '/diagnostics/inspect',
    '/diagnostics/summary',
    '/diagnostics/logs',
    '/diagnostics/events',
  ]) {
    const { status, body } = await call(daemon, 'GET', `/v1/sandboxes/${id}${path}`);
    expect([path, status, JSON.stringify(body).includes(accessKeySecret)]).toEqual([path, 200, false]);
  }
  // Not into the buckets themselves, which this process would have to answer for.
  const args = ['-rlF', '--exclude-dir=buckets', '--exclude-dir=bubblewrap', accessKeySecret, daemon.home];
  const found = await promisify(execFile)('grep', args).catch(({ stdout }) => ({ stdout }));
  expect(found.stdout).toBe('');
  expect(readdirSync(join(daemon.home, 'buckets', id)).filter((it) => /\D/.test(it))).toEqual([]);
  const told = readdirSync('/proc')
    .filter((it) => /^\d+$/.test(it) && Number(it) !== process.pid)
    .flatMap((it) => [`/proc/${it}/cmdline`, `/proc/${it}/environ`]);
  expect(told.filter((it) => contentOf(it).includes(accessKeySecret))).toEqual([]);
}

function contentOf(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}
