// execd's files: names, modes, uploads that break off, ranges, lines.
import { once } from 'node:events';
import { Agent, type ClientRequest, get } from 'node:http';
import { connect } from 'node:net';
import { expect, test, vi } from 'vitest';
import { Failure } from '../../lib/failure.ts';
import { startTestApi, type TestApi, testKey } from '../fake.fixture.ts';

const guestOf = (api: TestApi) =>
  api.service.guests.get('s') as NonNullable<ReturnType<typeof api.service.add>>;
const query = (path: string) => `path=${encodeURIComponent(path)}`;

test('files are described under the names that were asked for', async () => {
  await using api = await startTestApi();
  guestOf(api).put('/srv/a', 'abc');
  guestOf(api).put('/root/b', '');
  const { json } = await api.execd('GET', `/files/info?${query('$PLACE/a')}&${query('~/b')}`);
  expect(Object.keys(json)).toEqual(['$PLACE/a', '~/b']);
  expect(json['$PLACE/a']).toEqual({
    path: '/srv/a',
    type: 'file',
    size: 3,
    modified_at: '2001-09-09T01:46:40.000Z',
    created_at: '2001-09-09T01:46:40.000Z',
    owner: 'root',
    group: 'root',
    mode: 644,
  });
  expect((await api.execd('GET', '/files/info')).json).toEqual({});
  const missing = await api.execd('GET', `/files/info?${query('/srv/a')}&${query('/no')}`);
  expect([missing.status, missing.json.code]).toEqual([404, 'FILE_NOT_FOUND']);
});

test.each([
  ['%2Fna%C3%AFve', '/naïve'],
  ['/plus%2Band+space', '/plus+and space'],
  ['/bad%FFbyte%C3', '/bad\udcffbyte\udcc3'],
  ['/raw%zz', '/raw%zz'],
  ['rel', '/rel'],
])('the path %s is %j', async (encoded, path) => {
  await using api = await startTestApi();
  guestOf(api).put(path, 'x');
  expect((await api.execd('GET', `/files/info?path=${encoded}`)).status).toBe(200);
  expect((await api.execd('GET', `/files/download?path=${encoded}`)).text).toBe('x');
});

test.each([
  ['~', '/root'],
  ['~/a', '/root/a'],
  ['~web/a', '/srv/www/a'],
  ['a/b', '/a/b'],
  // biome-ignore lint/suspicious/noTemplateCurlyInString: this is what a client writes
  ['${PLACE}x', '/srvx'],
  ['~nobody/a', 400],
  ['$MISSING/a', 400],
  ['a\0b', 400],
])('the path %s is %s', async (path, expected) => {
  await using api = await startTestApi();
  guestOf(api).put(
    '/etc/passwd',
    'root:x:0:0::/root:/bin/sh\nweb:x:33:33::/srv/www:/bin/sh\nme:x:7:7::/home/me:\n',
  );
  if (typeof expected === 'string') guestOf(api).put(expected, '');
  const answer = await api.execd('GET', `/files/info?${query(path)}`);
  expect(typeof expected === 'number' ? answer.status : answer.json?.[path]?.path).toBe(expected);
});

test('without HOME, ~ is the home of the user that the agent runs as', async () => {
  await using api = await startTestApi();
  const executions = api.service.executions.bind(api.service);
  api.service.executions = (id) => ({ ...executions(id), environment: () => ({}) });
  guestOf(api).put('/proc/self', '');
  guestOf(api).put('/here', '1');
  expect((await api.execd('GET', '/files/download?path=~/here')).text).toBe('1');
  guestOf(api).put('/etc/passwd', 'root:x:0:0::/top:/bin/sh');
  guestOf(api).put('/top/here', '2');
  expect((await api.execd('GET', '/files/download?path=~/here')).text).toBe('2');
});

test('modes are octal digits that look decimal, both ways', async () => {
  await using api = await startTestApi();
  const guest = guestOf(api);
  guest.put('/a', '');
  expect(
    (await api.execd('POST', '/files/permissions', { '/a': { mode: 4755, owner: 'me', group: 'us' } }))
      .status,
  ).toBe(200);
  expect(guest.files.get('/a')).toMatchObject({ mode: 0o4755, owner: 'me', group: 'us' });
  expect(
    (await api.execd('POST', '/directories', { '/d': { mode: 755, owner: null }, '/e': {} })).status,
  ).toBe(200);
  expect([guest.files.get('/d')?.mode, guest.files.get('/e')?.kind]).toEqual([0o755, 'directory']);
  for (const mode of [888, 10_000, -1, 7.5, '755'])
    expect((await api.execd('POST', '/files/permissions', { '/a': { mode } })).status).toBe(400);
});

test('files are moved, found, replaced in and deleted', async () => {
  await using api = await startTestApi();
  const guest = guestOf(api);
  guest.put('/w/a.txt', 'x y x');
  guest.put('/w/b.md', 'x');
  expect((await api.execd('POST', '/files/mv', [{ src: '/w/a.txt', dest: '/w/c.txt' }])).status).toBe(200);
  expect((await api.execd('POST', '/files/mv', [{ src: '/w/c.txt', dest: '/w/b.md' }])).status).toBe(409);
  expect((await api.execd('POST', '/files/mv', [{ src: '/w/no', dest: '/w/x' }])).status).toBe(404);
  expect((await api.execd('POST', '/files/mv', [{ src: '/w/c.txt' }])).status).toBe(400);
  const found = await api.execd('GET', `/files/search?${query('/w')}&pattern=*.txt`);
  expect(found.json.map((it: { path: string }) => it.path)).toEqual(['/w/c.txt']);
  expect((await api.execd('GET', `/files/search?${query('/w')}`)).json).toHaveLength(2);
  const silent = await api.execd('POST', '/files/replace', { '/w/b.md': { old: 'x', new: 'z' } });
  expect([silent.status, silent.text, silent.headers.get('content-length')]).toEqual([200, '', '0']);
  const counted = await api.execd('POST', '/files/replace?verbose=true', {
    '/w/c.txt': { old: 'x', new: '' },
  });
  expect(counted.json).toEqual({ '/w/c.txt': { replacedCount: 2 } });
  expect((await api.execd('POST', '/files/replace', { '/w/b.md': { old: '', new: 'z' } })).status).toBe(400);
  expect((await api.execd('DELETE', `/files?${query('/w/b.md')}&${query('/w/never')}`)).status).toBe(200);
  expect([...guest.files.keys()]).toEqual(['/w/c.txt']);
});

test('directories are listed and deleted; a link or a file is not a directory', async () => {
  await using api = await startTestApi();
  const guest = guestOf(api);
  guest.put('/d', '', 'directory');
  guest.put('/d/b', '');
  guest.put('/d/a', '');
  guest.put('/l', '', 'symlink');
  const listed = await api.execd('GET', `/directories/list?${query('/d')}`);
  expect(listed.json.map((it: { path: string }) => it.path)).toEqual(['/d/a', '/d/b']);
  expect((await api.execd('GET', `/directories/list?${query('/d')}&depth=0`)).json).toEqual([]);
  for (const path of ['/l', '/d/a'])
    expect((await api.execd('GET', `/directories/list?${query(path)}`)).status).toBe(400);
  expect((await api.execd('GET', `/directories/list?${query('/no')}`)).status).toBe(404);
  expect((await api.execd('GET', '/directories/list')).json.code).toBe('MISSING_QUERY');
  expect((await api.execd('DELETE', `/directories?${query('/d')}`)).status).toBe(200);
  expect([...guest.files.keys()]).toEqual(['/l']);
});

function form(...files: [object, string | Uint8Array][]): FormData {
  const data = new FormData();
  for (const [metadata, content] of files) {
    data.append('metadata', new Blob([JSON.stringify(metadata)], { type: 'application/json' }), 'metadata');
    data.append('file', new Blob([content as string]), 'file');
  }
  return data;
}

test('several files of any size are uploaded in one request', async () => {
  await using api = await startTestApi();
  const big = Buffer.alloc(3_000_000, 'glovebox ');
  const answer = await api.execd(
    'POST',
    '/files/upload',
    form(
      [{ path: '$PLACE/big', mode: 600, owner: 'me', group: 'us' }, big],
      [{ path: '/empty', mode: 0 }, ''],
    ),
  );
  expect([answer.status, answer.text]).toEqual([200, '']);
  const { files } = guestOf(api);
  expect(files.get('/srv/big')).toMatchObject({ mode: 0o600, owner: 'me', group: 'us' });
  expect(Buffer.compare(files.get('/srv/big')?.bytes as Uint8Array, big)).toBe(0);
  expect(files.get('/empty')).toMatchObject({ mode: 0o644, bytes: Buffer.alloc(0) });
});

test.each([
  ['no path', form([{ mode: 644 }, 'x'])],
  ['a wrong field', form([{ path: '/x', perm: 644 }, 'x'])],
  ['nothing', new FormData()],
  [
    'a file without metadata',
    (() => {
      const data = new FormData();
      data.append('file', new Blob(['x']), 'f');
      return data;
    })(),
  ],
  [
    'metadata without a file',
    (() => {
      const data = new FormData();
      data.append('metadata', JSON.stringify({ path: '/x' }));
      return data;
    })(),
  ],
  [
    'metadata that is no JSON',
    (() => {
      const data = new FormData();
      data.append('metadata', '{');
      return data;
    })(),
  ],
])('an upload with %s is refused', async (_, body) => {
  await using api = await startTestApi();
  const answer = await api.execd('POST', '/files/upload', body);
  expect([answer.status, answer.json.code]).toEqual([400, 'INVALID_REQUEST_BODY']);
  expect(guestOf(api).files.size).toBe(0);
});

test('an upload that breaks off leaves the old file', async () => {
  await using api = await startTestApi();
  guestOf(api).put('/x', 'old');
  const ended = vi.fn();
  const guest = api.service.guest('s');
  api.service.guest = () => ({
    ...guest,
    write: (...args: Parameters<typeof guest.write>) =>
      guest.write(...args).catch((error) => {
        ended(error);
        throw error;
      }),
  });
  const socket = connect(api.server.port, '127.0.0.1');
  await once(socket, 'connect');
  socket.write(
    `POST /sandboxes/s/proxy/44772/files/upload HTTP/1.1\r\nHost: localhost\r\nOPEN-SANDBOX-API-KEY: ${testKey}\r\n` +
      'Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000\r\n\r\n' +
      '--b\r\nContent-Disposition: form-data; name="metadata"\r\n\r\n{"path":"/x"}\r\n' +
      '--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nnew content that never comes to its',
  );
  await vi.waitFor(() => expect(socket.bytesWritten).toBeGreaterThan(300));
  socket.destroy();
  await vi.waitFor(() => expect(ended).toHaveBeenCalled());
  expect(Buffer.from(guestOf(api).files.get('/x')?.bytes ?? []).toString()).toBe('old');
});

test('after an upload that was refused in the middle its connection can be used again', async () => {
  await using api = await startTestApi();
  const guest = api.service.guest('s');
  api.service.guest = () => ({
    ...guest,
    write: async (_path: string, source: AsyncIterable<Uint8Array>) => {
      await source[Symbol.asyncIterator]().next();
      throw new Failure('exhausted', 'no room is left');
    },
  });
  const socket = connect(api.server.port, '127.0.0.1');
  let heard = '';
  socket.on('data', (piece) => {
    heard += piece;
  });
  const head = (line: string, more: string) =>
    `${line} HTTP/1.1\r\nHost: localhost\r\nOPEN-SANDBOX-API-KEY: ${testKey}\r\n${more}\r\n`;
  const body =
    '--b\r\nContent-Disposition: form-data; name="metadata"\r\n\r\n{"path":"/x"}\r\n' +
    `--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n${'x'.repeat(4_000_000)}\r\n--b--\r\n`;
  const type = `Content-Type: multipart/form-data; boundary=b\r\nContent-Length: ${body.length}\r\n`;
  socket.write(head('POST /sandboxes/s/proxy/44772/files/upload', type) + body);
  await vi.waitFor(() => expect(heard).toContain('no room is left'));
  socket.write(head('GET /sandboxes/s/proxy/44772/ping', ''));
  await vi.waitFor(() => expect(heard.match(/HTTP\/1\.1 \d+/g)).toEqual(['HTTP/1.1 429', 'HTTP/1.1 200']));
  socket.destroy();
});

test.each([
  [undefined, 200, '0123456789', undefined],
  ['bytes=0-3', 206, '0123', 'bytes 0-3/10'],
  ['bytes=4-', 206, '456789', 'bytes 4-9/10'],
  ['bytes=-3', 206, '789', 'bytes 7-9/10'],
  ['bytes=-30', 206, '0123456789', 'bytes 0-9/10'],
  ['bytes=8-99', 206, '89', 'bytes 8-9/10'],
  ['bytes=10-', 416, undefined, 'bytes */10'],
  ['bytes=5-4', 416, undefined, 'bytes */10'],
  ['bytes=-0', 416, undefined, 'bytes */10'],
  ['bytes=0-1,3-4', 416, undefined, 'bytes */10'],
  ['bytes=x', 416, undefined, 'bytes */10'],
  ['lines=1-2', 416, undefined, 'bytes */10'],
])('a download with Range %s', async (range, status, text, contentRange) => {
  await using api = await startTestApi();
  guestOf(api).put('/f', '0123456789');
  const answer = await api.execd('GET', '/files/download?path=/f', undefined, range ? { Range: range } : {});
  expect([answer.status, answer.headers.get('content-range') ?? undefined]).toEqual([status, contentRange]);
  if (text === undefined) expect(answer.json).toHaveProperty('code');
  else expect([answer.text, answer.headers.get('content-length')]).toEqual([text, String(text.length)]);
});

test.each([
  ['one\ntwo\nthree\n', 1, 2, 'one\ntwo'],
  ['one\ntwo\nthree\n', 2, undefined, 'two\nthree'],
  ['one\ntwo\nthree', 3, 5, 'three'],
  ['one\n\n\nfour', 2, 2, '\n'],
  ['one\ntwo\n', 9, 1, ''],
  ['', 1, 1, ''],
  ['x'.repeat(2_500), undefined, 1, 'x'.repeat(2_500)],
  [`${'y'.repeat(999)}\n${'z'.repeat(1_001)}\nend`, 2, 2, `${'z'.repeat(1_001)}\nend`],
])('lines of %j from %s, %s of them', async (content, offset, limit, expected) => {
  await using api = await startTestApi();
  guestOf(api).put('/f', content);
  const lines = [offset && `&offset=${offset}`, limit && `&limit=${limit}`].filter(Boolean).join('');
  const answer = await api.execd('GET', `/files/download?path=/f${lines}`);
  expect([answer.status, answer.text]).toEqual([200, expected]);
});

test('lines are counted from 1 and do not go with Range', async () => {
  await using api = await startTestApi();
  guestOf(api).put('/f', 'x');
  expect((await api.execd('GET', '/files/download?path=/f&offset=0')).status).toBe(400);
  expect(
    (await api.execd('GET', '/files/download?path=/f&limit=1', undefined, { Range: 'bytes=0-' })).status,
  ).toBe(400);
  expect((await api.execd('GET', '/files/download?path=/no')).status).toBe(404);
});

test('a connection goes on after a download', async () => {
  await using api = await startTestApi();
  guestOf(api).put('/f', 'x'.repeat(100_000));
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  const path = '/sandboxes/s/proxy/44772/files/download?path=/f';
  const headers = { 'OPEN-SANDBOX-API-KEY': testKey };
  const asked: ClientRequest[] = [];
  for (let times = 0; times < 3; times++) {
    const request = get({ host: '127.0.0.1', port: api.server.port, path, headers, agent });
    asked.push(request);
    const [response] = await once(request, 'response');
    let bytes = 0;
    for await (const chunk of response) bytes += chunk.length;
    expect(bytes).toBe(100_000);
  }
  agent.destroy();
  expect(asked.map((it) => it.reusedSocket)).toEqual([false, true, true]);
});

test.each([
  ['/a/plain.txt', 'attachment; filename="plain.txt"'],
  ['/a/na"ïve.txt', `attachment; filename="na__ve.txt"; filename*=UTF-8''na%22%C3%AFve.txt`],
  ['/a/🧤', `attachment; filename="__"; filename*=UTF-8''%F0%9F%A7%A4`],
  ['/a/\udcff', `attachment; filename="_"; filename*=UTF-8''%FF`],
])('the download of %j is named', async (path, disposition) => {
  await using api = await startTestApi();
  guestOf(api).put(path, 'x');
  const encoded = path.includes('\udcff') ? '/a/%FF' : encodeURIComponent(path);
  const answer = await api.execd('HEAD', `/files/download?path=${encoded}`);
  expect(answer.headers.get('content-disposition')).toBe(disposition);
});

test('a file that says it is empty and is not comes whole; one that shrinks cuts the connection', async () => {
  await using api = await startTestApi();
  const guest = guestOf(api).asGuest();
  guestOf(api).put('/proc/x', 'content');
  api.service.guest = () => ({
    ...guest,
    read: async (path, range) => {
      const opened = await guest.read(path, range);
      return { ...opened, entry: { ...opened.entry, size: path === '/proc/x' ? 0 : 1_000 } };
    },
  });
  expect((await api.execd('GET', '/files/download?path=/proc/x')).text).toBe('content');
  guestOf(api).put('/short', 'content');
  await expect(api.execd('GET', '/files/download?path=/short')).rejects.toThrow();
});

test('archives go both ways', async () => {
  await using api = await startTestApi();
  const packed = await api.execd('GET', '/archive?path=~/$w');
  expect([packed.headers.get('content-type'), packed.text]).toEqual(['application/x-tar', 'tar of /root/$w']);
  expect((await api.execd('PUT', '/archive?path=/d', Buffer.from('a tar'))).status).toBe(204);
  expect(Buffer.from(guestOf(api).files.get('/d')?.bytes ?? []).toString()).toBe('a tar');
  expect((await api.execd('PUT', '/archive')).status).toBe(400);
});

test('an upload is continued at what is held, put in place at its end, or given up', async () => {
  await using api = await startTestApi();
  const guest = guestOf(api);
  guest.put('/root/f', 'old');
  const id = '01234567-89ab-cdef-0123-456789abcdef';
  const at = `/uploads/${id}?${query('~/f')}`;
  expect((await api.execd('GET', at)).status).toBe(404);
  const send = (more: string, body: string) => api.execd('PATCH', `${at}&${more}`, Buffer.from(body));
  expect((await send('offset=0', 'one ')).json).toEqual({ offset: 4, complete: false });
  expect((await api.execd('GET', at)).json).toEqual({ offset: 4, complete: false });
  expect((await send('offset=3', 'x')).status).toBe(409);
  expect(Buffer.from(guest.files.get('/root/f')?.bytes ?? []).toString()).toBe('old');
  const end = await send('offset=4&complete=true&mode=0750&owner=me', 'two');
  expect([end.status, end.json]).toEqual([200, { offset: 7, complete: true }]);
  expect(guest.files.get('/root/f')).toMatchObject({
    bytes: Buffer.from('one two'),
    mode: 0o750,
    owner: 'me',
  });
  await send('offset=0', 'x');
  expect([(await api.execd('DELETE', at)).status, (await api.execd('GET', at)).status]).toEqual([204, 404]);
  for (const wrong of [
    '',
    'offset=-1',
    'offset=0&mode=999',
    'offset=0&sha256=abc',
    'offset=0&complete=perhaps',
  ])
    expect([wrong, (await send(wrong, 'x')).status]).toEqual([wrong, 400]);
});

test('a tag tells one content from another, and a range of another one is all of it', async () => {
  await using api = await startTestApi();
  const guest = guestOf(api);
  guest.put('/f', '0123456789');
  const read = (headers: Record<string, string>) =>
    api.execd('GET', '/files/download?path=/f', undefined, headers);
  const first = await read({});
  const tag = first.headers.get('etag') ?? '';
  expect(tag).toMatch(/^"[0-9a-z-]+"$/);
  const range = { range: 'bytes=4-' };
  const same = await read({ ...range, 'if-range': tag });
  expect([same.status, same.text, same.headers.get('etag')]).toEqual([206, '456789', tag]);
  guest.put('/f', 'abcdefghij');
  const other = await read({ ...range, 'if-range': tag });
  expect([other.status, other.text, other.headers.get('content-range')]).toEqual([200, 'abcdefghij', null]);
  expect((await read({ 'if-match': tag })).status).toBe(412);
  expect((await read({ 'if-match': `"x", ${other.headers.get('etag')}` })).status).toBe(200);
  const beyond = await read({ range: 'bytes=10-', 'if-range': other.headers.get('etag') ?? '' });
  expect([beyond.status, beyond.headers.get('content-range')]).toEqual([416, 'bytes */10']);
});

test('the digest of a file comes when it is asked for', async () => {
  await using api = await startTestApi();
  guestOf(api).put('/f', 'abc');
  const read = (headers: Record<string, string>) =>
    api.execd('GET', '/files/download?path=/f', undefined, headers);
  const digest = 'sha-256=:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=:';
  expect((await read({})).headers.get('repr-digest')).toBeNull();
  expect((await read({ 'want-repr-digest': 'sha-256=1' })).headers.get('repr-digest')).toBe(digest);
  const part = await read({ 'want-repr-digest': 'sha-512=3, sha-256=10', range: 'bytes=1-1' });
  expect([part.text, part.headers.get('repr-digest')]).toEqual(['b', digest]);
  expect((await read({ 'want-repr-digest': 'sha-256=0' })).headers.get('repr-digest')).toBeNull();
});
