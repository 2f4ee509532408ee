// Isolated sessions, forks and buckets under the daemon of an ordinary user. Run by a test as a process of its own, as such a user:
//   node daemon-user.ts <folder> sessions|buckets
// Prints what it has seen as JSON, and fails if anything is left.
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { call, create, remove, run } from './client.ts';
import { expectNothingLeft, startDaemon } from './daemon.ts';
import { bucketServer } from './s3-server.ts';

const [, , folder, part] = process.argv as [string, string, string, 'sessions' | 'buckets'];
const [home, programs] = [join(folder, 'home'), join(folder, 'programs')];
for (const path of [home, programs]) mkdirSync(path, { mode: 0o700 });
writeFileSync(join(programs, 'ossfs'), '#!/bin/sh\nexec s3fs "$@"\n', { mode: 0o755 });
const start = () =>
  startDaemon({
    ...{ home, runtime: 'bubblewrap' },
    env: { PATH: `${programs}:${process.env.PATH}`, HOME: folder },
  });
let daemon = await start();
const seen = part === 'sessions' ? await sessions() : await buckets();
const exit = await daemon.stop();
await expectNothingLeft(home);
console.log(JSON.stringify({ ...seen, exit, uid: process.getuid?.() }));

async function sessions() {
  const plain = await create(daemon);
  const nested = await create(daemon, { extensions: { 'bootstrap.execd.isolation': 'enable' } });
  const isolated = async (id: string, path: string, body?: object) => {
    const method = body === undefined ? 'GET' : 'POST';
    const answer = await call(daemon, method, `/sandboxes/${id}/proxy/44772/v1/isolated${path}`, body);
    return { status: answer.status, body: answer.body };
  };
  /** What one says in a new session. */
  const said = async (id: string, request: object, code: string) => {
    const { status, body } = await isolated(id, '/session', request);
    if (status !== 201) return { status, body };
    const answer = await isolated(id, `/session/${body.session_id}/run`, { code });
    return [...String(answer.body.text).matchAll(/"type":"stdout","text":"(.*?)"/g)].map(([, it]) => it);
  };
  const workspace = { path: '/work', mode: 'rw' };
  await run(daemon, nested, 'mkdir -p /work; echo there >/work/file; echo hidden >/srv/hidden');
  const told = {
    plain: await isolated(plain, '/session', { workspace }),
    capabilities: (await isolated(nested, '/capabilities')).body,
    ran: await said(
      nested,
      { workspace },
      'id -u; cat /work/file; cat /srv/hidden 2>/dev/null; touch /usr/x 2>/dev/null || echo refused; echo >made',
    ),
    layered: await said(
      nested,
      { workspace: { path: '/work', mode: 'overlay' } },
      'echo changed >file; cat file',
    ),
    otherUser: await said(nested, { workspace, uid: 1234 }, 'id -u'),
    named: await said(nested, { workspace, uid: 77, uid_mode: 'userns' }, 'id -u'),
    after: await run(daemon, nested, 'cat /work/file; ls /work'),
  };
  const forked = await call(daemon, 'POST', `/v1/sandboxes/${nested}/fork`, {});
  const [fork] = forked.body.items as [{ id: string }];
  const inFork = await said(fork.id, { workspace }, 'ls; id -u');
  for (const id of [plain, nested, fork.id]) await remove(daemon, id);
  return { ...told, inFork };
}

async function buckets() {
  const keys = { accessKeyId: 'LTAItestAccessKeyId', accessKeySecret: 'SecretOfTheBucket' };
  await using server = await bucketServer({ bucket: 'data', accessKeyId: keys.accessKeyId });
  server.objects.set('hello.txt', { body: Buffer.from('hello\n'), headers: {}, at: new Date() });
  const ossfs = {
    ...{ bucket: 'data', endpoint: server.endpoint, version: '1.0', options: ['use_path_request_style'] },
    ...keys,
  };
  const { status, body, headers } = await call(daemon, 'POST', '/v1/sandboxes', {
    ...{ image: { uri: 'host' }, entrypoint: ['tail', '-f', '/dev/null'], resourceLimits: {} },
    ...{ volumes: [{ name: 'v', mountPath: '/v', ossfs }], glovebox: { keep: true } },
  });
  if (status !== 202) return { status, body, hint: headers.get('Glovebox-Hint') };
  const id = body.id as string;
  const first = await run(daemon, id, 'cat /v/hello.txt; echo inside >/v/new; ls /v');
  await daemon.kill();
  daemon = await start();
  const afterKill = await run(daemon, id, 'cat /v/new');
  await call(daemon, 'POST', `/v1/sandboxes/${id}/stop`);
  await call(daemon, 'POST', `/v1/sandboxes/${id}/start`);
  const afterStart = await run(daemon, id, 'cat /v/new');
  await remove(daemon, id);
  return { status, first, afterKill, afterStart, written: server.objects.get('new')?.body.toString() };
}
