// The second version of Docker Sandboxes' API on the real daemon, in every runtime: curl for what is a request, bare sockets for what becomes a stream.
import { execFileSync } from 'node:child_process';
import {
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { call } from '../client.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { imageFor, runtimes } from '../runtimes.ts';
import { curlAt, run } from './sandboxd.fixture.ts';

interface Attached {
  socket: Socket;
  /** The head of the answer, once it is there. */
  head: string;
  /** What has come behind it. */
  bytes: () => Buffer;
  /** Resolves when the server has closed. */
  ended: Promise<void>;
  execId: string;
}

describe.each(runtimes)('sandboxd in %s', (runtime) => {
  let daemon: TestDaemon;
  let folder: string;
  let image: string;
  const opened = new Set<Socket>();
  const socketPath = () => join(daemon.home, 'sandboxes/sandboxd.sock');
  const curl = (method: string, path: string, body?: unknown, options?: string[]) =>
    curlAt(socketPath(), method, path, body, options);
  const create = async (name: string, more: object = {}) => {
    const answer = await curl('POST', '/sandbox', { agent: 'shell', name, template: image, ...more });
    expect(answer).toMatchObject({ status: 201, body: { name, status: 'running' } });
  };
  /** What a shell line in `main` prints. */
  const shell = async (line: string, more: object = {}) => {
    const { status, body } = await curl('POST', '/sandbox/main/exec', { cmd: ['sh', '-c', line], ...more });
    expect({ status, body }).toMatchObject({ status: 200 });
    return body as { exit_code: number; stdout: string; stderr: string };
  };

  /** A request as it is written, for what no client would send. Resolves with the answer, whole. */
  const bare = (text: string | Buffer) =>
    new Promise<string>((resolve, reject) => {
      const socket = connect({ path: socketPath(), allowHalfOpen: true });
      const chunks: Buffer[] = [];
      socket.on('data', (chunk) => chunks.push(chunk)).on('error', reject);
      socket.on('end', () => {
        socket.end();
        resolve(Buffer.concat(chunks).toString('utf8'));
      });
      socket.write(text);
    });

  const requestTo = (path: string, body: string | Buffer, lines: string[] = []) =>
    [
      ...[`POST ${path} HTTP/1.1`, 'Host: sandboxd', 'Connection: Upgrade', 'Upgrade: tcp'],
      ...['Content-Type: application/json', ...lines, '', ''],
    ].join('\r\n') + body;

  /** Attaches to a command; `more` goes right behind the request, in the same piece. */
  const attach = async (command: object, more = '', name = 'main'): Promise<Attached> => {
    const body = JSON.stringify(command);
    const socket = connect({ path: socketPath(), allowHalfOpen: true });
    opened.add(socket);
    socket.on('error', () => undefined);
    const chunks: Buffer[] = [];
    const received = () => Buffer.concat(chunks);
    const head = Promise.withResolvers<string>();
    const ended = Promise.withResolvers<void>();
    socket.on('data', (chunk) => {
      chunks.push(chunk);
      const first = chunks.length > 8 ? undefined : /^(.*?)\r\n\r\n/s.exec(received().toString('latin1'));
      if (first?.[1] !== undefined) head.resolve(first[1]);
    });
    socket.on('end', () => ended.resolve()).on('close', () => ended.resolve());
    void ended.promise.then(() => head.reject(new Error(`closed: ${received()}`)));
    const lines = [`Content-Length: ${Buffer.byteLength(body)}`];
    socket.write(requestTo(`/sandbox/${name}/exec/attach`, body + more, lines));
    const shown = await head.promise;
    return {
      ...{ socket, head: shown, ended: ended.promise },
      bytes: () => received().subarray(shown.length + 4),
      execId: /^sandboxes-exec-id: (\S+)$/im.exec(shown)?.[1] ?? '',
    };
  };

  const statusOf = async (execId: string, name = 'main') =>
    (await curl('GET', `/sandbox/${name}/exec/${execId}`)).body as {
      exit_code: number | null;
      running: boolean;
    };

  const listening = async (port: number) =>
    await until(
      `a server in the guest at ${port}`,
      () => shell(`grep -c ':${port.toString(16).toUpperCase().padStart(4, '0')} .* 0A ' /proc/net/tcp`),
      ({ stdout }) => Number(stdout) > 0,
    );

  beforeAll(async () => {
    folder = realpathSync(mkdtempSync('/var/tmp/glovebox-sandboxd-v2-'));
    daemon = await startDaemon({ home: makeHome(), runtime });
    image = await imageFor(runtime, daemon, 'debian');
    mkdirSync(join(folder, 'work'));
    mkdirSync(join(folder, 'library'));
    writeFileSync(join(folder, 'library/file'), 'of the host\n');
    await create('main', {
      workspace: join(folder, 'work'),
      additional_workspaces: [{ dir: join(folder, 'library'), read_only: true }],
      environment: { GREETING: 'hello' },
      cpus: 1,
      memory: '512m',
    });
    await create('other');
  });

  afterAll(async () => {
    for (const socket of opened) socket.destroy();
    for (const { name } of (await curl('GET', '/sandbox')).body as { name: string }[])
      expect((await curl('DELETE', `/sandbox/${name}?force=true`)).status).toBe(204);
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(daemon.home);
    rmSync(folder, { recursive: true, force: true });
  });

  describe('sandboxes', () => {
    test('are shown with what they were made of, under a prefix of the version too', async () => {
      const health = await curl('GET', '/daemon/health');
      expect(health).toMatchObject({ status: 200, body: { status: 'ok', api_version: expect.any(String) } });
      expect((await curl('GET', '/daemon/info')).body).toMatchObject({ api_socket: socketPath() });
      const shown = {
        ...{ name: 'main', status: 'running', agent: 'shell', workspace: join(folder, 'work') },
        additional_workspaces: [{ dir: join(folder, 'library'), read_only: true }],
        ports: [],
      };
      const { body } = await curl('GET', '/v2/sandbox/main');
      expect(body).toMatchObject(shown);
      const { id } = body as { id: string };
      expect((await curl('GET', `/sandbox/${id}`)).body).toMatchObject(shown);
      const listed = (await curl('GET', '/sandbox')).body as { name: string }[];
      expect(listed.map((it) => it.name).sort()).toEqual(['main', 'other']);
    });

    test('see their folders, and write to those that are theirs to write', async () => {
      const line = `echo $GREETING >file; cat ${folder}/library/file; touch ${folder}/library/more`;
      const { stdout, exit_code } = await shell(line);
      expect({ stdout, failed: exit_code !== 0 }).toEqual({ stdout: 'of the host\n', failed: true });
      expect(readFileSync(join(folder, 'work/file'), 'utf8')).toBe('hello\n');
    });

    test('are stopped, started and removed; what is in them stays until then', async () => {
      await create('brief');
      const exec = (line: string) => curl('POST', '/sandbox/brief/exec', { cmd: ['sh', '-c', line] });
      await exec('echo kept >/var/tmp/kept');
      expect(await curl('POST', '/sandbox/brief/stop')).toMatchObject({
        ...{ status: 200, body: { status: 'stopped' } },
      });
      for (const [method, path, body] of [
        ['POST', 'exec', { cmd: ['id'] }],
        ['GET', 'files?path=/etc/passwd', undefined],
      ] as const)
        expect(await curl(method, `/sandbox/brief/${path}`, body)).toMatchObject({
          ...{ status: 409, body: { message: expect.any(String) } },
        });
      expect(await curl('POST', '/sandbox/brief/start')).toMatchObject({
        ...{ status: 200, body: { status: 'running' } },
      });
      expect((await exec('cat /var/tmp/kept')).body).toMatchObject({ stdout: 'kept\n' });
      expect((await curl('DELETE', '/sandbox/brief')).status).toBe(204);
      expect(await curl('DELETE', '/sandbox/brief')).toMatchObject({
        ...{ status: 404, body: { message: 'there is no sandbox "brief"' } },
      });
    });
  });

  describe('a command', () => {
    test('answers with its output and its end', async () => {
      expect(await shell('echo out; echo err >&2; exit 3')).toEqual({
        ...{ exit_code: 3, stdout: 'out\n', stderr: 'err\n' },
      });
      const where = { working_dir: '/usr', user: 'nobody', env: { WHO: 'me' } };
      expect(await shell('pwd; id -un; echo $WHO$GREETING', where)).toMatchObject({
        stdout: '/usr\nnobody\nmehello\n',
      });
      // Nobody types: its input is at its end.
      expect(await shell('cat; echo $?')).toMatchObject({ stdout: '0\n' });
    });

    test('that cannot start ends as in a shell', async () => {
      const missing = await curl('POST', '/sandbox/main/exec', { cmd: ['no-such-command'] });
      expect(missing).toMatchObject({
        ...{
          status: 200,
          body: { exit_code: 127, stdout: '', stderr: expect.stringMatching(/no-such-command/) },
        },
      });
      const barred = await curl('POST', '/sandbox/main/exec', { cmd: ['/etc/passwd'] });
      expect(barred).toMatchObject({ status: 200, body: { exit_code: 126 } });
      for (const wrong of [{ working_dir: '/no/such/folder' }, { user: 'no-such-user' }])
        expect(await curl('POST', '/sandbox/main/exec', { cmd: ['id'], ...wrong })).toMatchObject({
          ...{ status: 400, body: { message: expect.stringMatching(/no.such/) } },
        });
    });

    test('that writes without end is ended, and its caller told', async () => {
      const endless = { cmd: ['sh', '-c', 'exec yes endless-writer'] };
      expect(await curl('POST', '/sandbox/main/exec', endless)).toMatchObject({
        ...{ status: 429, body: { message: expect.stringContaining('16777216') } },
      });
      await until(
        'the writer to end',
        () => shell('grep -l "^yes.endless" /proc/[0-9]*/cmdline | wc -l'),
        ({ stdout }) => stdout.trim() === '0',
      );
    });

    test('is joined without a terminal: framed output, input from the first byte on', async () => {
      const joined = await attach({ cmd: ['sh', '-c', 'cat; echo err >&2; exit 5'] }, 'one ');
      expect(joined.head).toMatch(/^HTTP\/1\.1 101 /);
      expect(joined.head).toMatch(/^content-type: application\/vnd\.docker\.raw-stream$/im);
      expect(await statusOf(joined.execId)).toEqual({ exit_code: null, running: true });
      joined.socket.end('two\n');
      await joined.ended;
      const lanes = framesOf(joined.bytes());
      expect([lanes[1].toString(), lanes[2].toString()]).toEqual(['one two\n', 'err\n']);
      expect(await statusOf(joined.execId)).toEqual({ exit_code: 5, running: false });
    });

    test('is joined with a terminal, whose size can be changed', async () => {
      const joined = await attach({ cmd: ['sh', '-c', 'read line; stty size; exit 6'], tty: true });
      expect(joined.head).toMatch(/^HTTP\/1\.1 101 /);
      const resize = (body: unknown) => curl('POST', `/sandbox/main/exec/${joined.execId}/resize`, body);
      for (const wrong of [
        { cols: 0, rows: 40 },
        { cols: 100 },
        { cols: 65_536, rows: 1 },
        { cols: '9', rows: 9 },
      ])
        expect(await resize(wrong)).toMatchObject({ status: 400, body: { message: expect.any(String) } });
      expect((await resize({ cols: 100, rows: 40 })).status).toBe(204);
      joined.socket.write('go\r');
      await joined.ended;
      expect(joined.bytes().toString()).toBe('go\r\n40 100\r\n');
      expect(await statusOf(joined.execId)).toEqual({ exit_code: 6, running: false });
      expect(await resize({ cols: 100, rows: 40 })).toMatchObject({
        ...{ status: 409, body: { message: expect.stringContaining('has ended') } },
      });
    });

    test('whose client goes goes on, its input at an end', async () => {
      const reader = await attach({ cmd: ['sh', '-c', 'echo here; cat >/dev/null; exit 7'] });
      await until('output', reader.bytes, (it) => it.length > 0);
      reader.socket.destroy();
      await until(
        'its end',
        () => statusOf(reader.execId),
        (it) => it.exit_code === 7,
      );

      const sleeper = await attach({ cmd: ['sh', '-c', 'echo here; exec sleep 600'] });
      await until('output', sleeper.bytes, (it) => it.length > 0);
      sleeper.socket.destroy();
      // One whose client has not read what was there.
      const unread = await attach({ cmd: ['sh', '-c', 'yes | head -c 4000000; cat >/dev/null; exit 8'] });
      unread.socket.pause();
      unread.socket.destroy();
      await until(
        'its end',
        () => statusOf(unread.execId),
        (it) => it.exit_code === 8,
      );
      expect(await statusOf(sleeper.execId)).toEqual({ exit_code: null, running: true });
      await shell('pkill -f "sleep 600"');
      await until(
        'its end',
        () => statusOf(sleeper.execId),
        (it) => !it.running,
      );
    });

    test('loses nothing of much output to a slow client', async () => {
      const bytes = 24 * 1024 * 1024;
      const joined = await attach({ cmd: ['head', '-c', String(bytes), '/dev/zero'] });
      joined.socket.pause();
      // Something else is answered meanwhile, and the command waits.
      await shell('true');
      expect((await statusOf(joined.execId)).running).toBe(true);
      joined.socket.resume();
      await joined.ended;
      expect(framesOf(joined.bytes())[1].length).toBe(bytes);
    });

    test('is known to its own sandbox alone', async () => {
      const joined = await attach({ cmd: ['cat'] });
      const { execId } = joined;
      const size = { cols: 80, rows: 24 };
      for (const [method, path, body, status] of [
        ['GET', `other/exec/${execId}`, undefined, 404],
        ['POST', `other/exec/${execId}/resize`, size, 404],
        ['GET', 'main/exec/ffffffffffffffffffffffffffffffff', undefined, 404],
        ['GET', 'main/exec/..%2f..%2fother', undefined, 404],
        ['GET', 'main/exec/%00', undefined, 404],
        ['GET', 'main/exec/%ff', undefined, 400],
        ['POST', 'main/exec/none/resize', size, 404],
        ['POST', `main/exec/${execId}/resize`, size, 409],
      ] as const)
        expect(await curl(method, `/sandbox/${path}`, body), path).toMatchObject({
          ...{ status, body: { message: expect.any(String) } },
        });
      joined.socket.end();
      await joined.ended;
      expect(await statusOf(execId)).toEqual({ exit_code: 0, running: false });
    });

    test('that is asked for wrongly is refused before anything runs', async () => {
      const cases: [object, number, RegExp][] = [
        [{}, 400, /cmd/],
        [{ cmd: [] }, 400, /cmd/],
        [{ cmd: 'id' }, 400, /cmd/],
        [{ cmd: ['id'], workdir: '/' }, 400, /workdir/],
        [{ cmd: ['id'], privileged: true }, 403, /privileged/],
        [{ cmd: ['id'], env: { 'A=B': 'c' } }, 400, /env/],
        [{ cmd: Array.from({ length: 4097 }, () => 'x') }, 400, /cmd/],
        [{ cmd: ['id\0'] }, 400, /./],
      ];
      for (const [command, status, message] of cases)
        for (const path of ['/sandbox/main/exec', '/sandbox/main/exec/attach']) {
          const upgrade = path.endsWith('attach') ? ['-H', 'Connection: Upgrade', '-H', 'Upgrade: tcp'] : [];
          expect(
            await curl('POST', path, command, upgrade),
            JSON.stringify(command).slice(0, 100),
          ).toMatchObject({
            ...{ status, body: { message: expect.stringMatching(message) } },
          });
        }
      const attachTo = (name: string, command: object, upgrade = true) =>
        curl(
          'POST',
          `/sandbox/${name}/exec/attach`,
          command,
          upgrade ? ['-H', 'Upgrade: tcp', '-H', 'Connection: Upgrade'] : [],
        );
      expect(await attachTo('main', { cmd: ['id'] }, false)).toMatchObject({ status: 400 });
      expect(await attachTo('nobody', { cmd: ['id'] })).toMatchObject({ status: 404 });
      expect(await attachTo('main', { cmd: ['no-such-command'] })).toMatchObject({
        ...{ status: 400, body: { message: expect.stringContaining('no-such-command') } },
      });
    });

    test('cannot be asked for with a body that has no bound', async () => {
      const path = '/sandbox/main/exec/attach';
      expect(await bare(requestTo(path, '', ['Transfer-Encoding: chunked']))).toMatch(/^HTTP\/1\.1 400 /);
      expect(await bare(requestTo(path, '', ['Content-Length: 1048577']))).toMatch(
        /^HTTP\/1\.1 400 .*1048576/s,
      );
      expect(await bare(requestTo(path, '', ['Content-Length: -1']))).toMatch(/^HTTP\/1\.1 400 /);
      expect(await bare(requestTo(path, '{"cmd"', ['Content-Length: 6']))).toMatch(/^HTTP\/1\.1 400 .*JSON/s);
      const large = join(folder, 'large.json');
      writeFileSync(large, JSON.stringify({ cmd: ['true', 'x'.repeat(1024 * 1024)] }));
      const options = ['--data-binary', `@${large}`];
      expect(await curl('POST', '/sandbox/main/exec', undefined, options)).toMatchObject({ status: 400 });
      // A client that goes in the middle of its request leaves nothing behind but a closed connection.
      const socket = connect(socketPath());
      await new Promise<void>((resolve) => {
        socket.write(requestTo(path, '{"cmd"', ['Content-Length: 100']), () => resolve());
      });
      socket.destroy();
      expect(await curl('GET', '/daemon/health')).toMatchObject({ status: 200 });
    });
  });

  describe('ports', () => {
    test('are published, listed and taken off by what was listed', async () => {
      const server = await attach({ cmd: ['python3', '-m', 'http.server', '8123', '--bind', '127.0.0.1'] });
      await listening(8123);
      const published = await curl('POST', '/sandbox/main/ports', [{ sandbox_port: 8123 }]);
      expect(published).toMatchObject({ status: 201 });
      const listed = (await curl('GET', '/sandbox/main/ports')).body as {
        host_ip: string;
        host_port: number;
        protocol: string;
        sandbox_port: number;
      }[];
      expect(listed).toEqual(published.body);
      expect((await curl('GET', '/sandbox/main')).body).toMatchObject({ ports: listed });
      expect(listed.map((it) => it.host_ip)).toContain('127.0.0.1');
      expect(listed.every((it) => it.host_port > 0 && it.sandbox_port === 8123)).toBe(true);
      const url = `http://127.0.0.1:${listed[0]?.host_port}/`;
      const fetched = await run('curl', ['-s', '-m', '10', '-o', '/dev/null', '-w', '%{http_code}', url]);
      expect(fetched.stdout).toBe('200');
      expect(await curl('POST', '/sandbox/main/ports/unpublish', listed)).toMatchObject({
        ...{ status: 200, body: { message: `unpublished ${listed.length} port key(s)` } },
      });
      expect((await curl('GET', '/sandbox/main/ports')).body).toEqual([]);
      expect((await run('curl', ['-s', '-m', '10', url])).code).toBe(7);
      expect((await curl('POST', '/sandbox/main/ports/unpublish', listed)).status).toBe(404);
      await shell('pkill -f http.server');
      await server.ended;
    });

    test('are kept while the sandbox is stopped, and one that is taken is refused', async () => {
      const taken = createServer();
      await new Promise<void>((resolve) => taken.listen(0, '127.0.0.1', resolve));
      const { port } = taken.address() as { port: number };
      try {
        const body = [
          { sandbox_port: 81, protocol: 'tcp4' },
          { sandbox_port: 82, host_ip: '127.0.0.1', host_port: port },
        ];
        expect(await curl('POST', '/sandbox/other/ports', body)).toMatchObject({
          ...{ status: 409, body: { message: expect.stringContaining(String(port)) } },
        });
        // All of them, or none.
        expect((await curl('GET', '/sandbox/other/ports')).body).toEqual([]);
      } finally {
        await new Promise((resolve) => taken.close(resolve));
      }
      const kept = [{ sandbox_port: 82, host_ip: '127.0.0.1', host_port: port, protocol: 'tcp' }];
      expect(await curl('POST', '/sandbox/other/ports', kept)).toMatchObject({ status: 201 });
      const shown = [{ ...kept[0], protocol: 'tcp4' }];
      await curl('POST', '/sandbox/other/stop');
      expect((await curl('GET', '/sandbox/other/ports')).body).toEqual(shown);
      await curl('POST', '/sandbox/other/start');
      expect((await curl('GET', '/sandbox/other/ports')).body).toEqual(shown);
      expect(await curl('POST', '/sandbox/other/ports/unpublish', shown)).toMatchObject({ status: 200 });
    });

    test('that are asked for wrongly are refused', async () => {
      for (const body of [
        { sandbox_port: 80 },
        [],
        [{ sandbox_port: 0 }],
        [{ sandbox_port: 65_536 }],
        [{ sandbox_port: 80, protocol: 'udp' }],
        [{ sandbox_port: 80, host_ip: 'nonsense' }],
        [{ sandbox_port: 80, host_ip: '203.0.113.9' }],
        [{ sandbox_port: 80, host_ip: '::1', protocol: 'tcp4' }],
        [{ sandbox_port: 80, surprise: 1 }],
        Array.from({ length: 65 }, () => ({ sandbox_port: 80 })),
      ])
        expect(await curl('POST', '/sandbox/main/ports', body), JSON.stringify(body)).toMatchObject({
          ...{ status: 400, body: { message: expect.any(String) } },
        });
      expect((await curl('GET', '/sandbox/main/ports')).body).toEqual([]);
      expect((await curl('POST', '/sandbox/main/ports/unpublish', [{ sandbox_port: 80 }])).status).toBe(404);
      expect((await curl('POST', '/sandbox/nobody/ports', [{ sandbox_port: 80 }])).status).toBe(404);
    });
  });

  describe('files', () => {
    const put = (path: string, tar: string) =>
      curl('PUT', `/sandbox/main/files?path=${path}`, undefined, ['-T', tar]);
    const get = (path: string, to: string) =>
      run('curl', [
        '-s',
        '--unix-socket',
        socketPath(),
        '-o',
        to,
        '-w',
        '%{http_code}',
        `http://sandboxd/sandbox/main/files?path=${path}`,
      ]);

    test('go in and come out as archives', async () => {
      const tree = join(folder, 'tree');
      mkdirSync(join(tree, 'below'), { recursive: true });
      writeFileSync(join(tree, 'below/file'), 'content\n', { mode: 0o640 });
      symlinkSync('file', join(tree, 'below/link'));
      const tar = join(folder, 'tree.tar');
      execFileSync('tar', ['-C', tree, '-cf', tar, '.']);
      expect((await put('/var/tmp/in', tar)).status).toBe(204);
      expect(
        await shell('cd /var/tmp/in/below; stat -c %a file; cat link; rm file; echo new >more'),
      ).toMatchObject({
        stdout: '640\ncontent\n',
      });
      const out = join(folder, 'out.tar');
      expect((await get('/var/tmp/in', out)).stdout).toBe('200');
      const names = execFileSync('tar', ['-tf', out], { encoding: 'utf8' }).trim().split('\n').sort();
      expect(names).toEqual(['in/', 'in/below/', 'in/below/link', 'in/below/more']);
      expect(execFileSync('tar', ['-xOf', out, 'in/below/more'], { encoding: 'utf8' })).toBe('new\n');
      expect((await get('/var/tmp/in/below/more', out)).stdout).toBe('200');
      expect(execFileSync('tar', ['-tf', out], { encoding: 'utf8' })).toBe('more\n');
    });

    test('stay below the folder that was named, whatever the archive says', async () => {
      const tar = join(folder, 'hostile.tar');
      writeFileSync(join(folder, 'x'), 'hostile\n');
      symlinkSync('/var/tmp', join(folder, 'way-out'));
      for (const transform of ['s,^x$,../../escaped,', 's,^x$,/var/tmp/escaped,', 's,^x$,way-out/escaped,']) {
        execFileSync('tar', [
          '-P',
          '-C',
          folder,
          '--transform',
          `flags=r;${transform}`,
          '-cf',
          tar,
          'way-out',
          'x',
        ]);
        const { status } = await put('/var/tmp/walled/deep', tar);
        expect([204, 400], transform).toContain(status);
        const found = await shell(
          'ls -d /var/tmp/escaped /var/tmp/walled/escaped /escaped 2>/dev/null; true',
        );
        expect(found.stdout, transform).toBe('');
      }
      expect(
        execFileSync('sh', ['-c', 'ls -d /var/tmp/escaped 2>/dev/null; true'], { encoding: 'utf8' }),
      ).toBe('');
    });

    test('of a wrong path or an unfinished archive are refused', async () => {
      await shell('ln -s /nowhere /var/tmp/dangling');
      for (const [query, status] of [
        ['', 400],
        ['?path=', 400],
        ['?path=relative/file', 400],
        ['?path=/etc/passwd%00', 400],
        ['?path=/no/such/file', 404],
        ['?path=/var/tmp/dangling', 404],
        [`?path=/${'x'.repeat(8192)}`, 400],
      ] as const)
        expect(await curl('GET', `/sandbox/main/files${query}`), query.slice(0, 80)).toMatchObject({
          ...{ status, body: { message: expect.any(String) } },
        });
      const tar = join(folder, 'cut.tar');
      writeFileSync(join(folder, 'big'), Buffer.alloc(100_000, 'x'));
      execFileSync('tar', ['-C', folder, '-cf', tar, 'big']);
      writeFileSync(tar, readFileSync(tar).subarray(0, 50_000));
      expect(await put('/var/tmp/cut', tar)).toMatchObject({ status: 400 });
      writeFileSync(tar, 'this is no archive, but a text that is longer than a block '.repeat(20));
      expect(await put('/var/tmp/cut', tar)).toMatchObject({ status: 400 });
      expect(await put('relative', tar)).toMatchObject({ status: 400 });
      expect(await put('/etc/passwd', tar)).toMatchObject({ status: 409 });
    });

    test('survive clients that go in the middle', async () => {
      const upload = connect(socketPath());
      const head = [
        'PUT /sandbox/main/files?path=/var/tmp/half HTTP/1.1',
        'Host: x',
        'Content-Length: 1000000',
        '',
        '',
      ];
      await new Promise<void>((resolve) => {
        upload.write(Buffer.concat([Buffer.from(head.join('\r\n')), Buffer.alloc(2048)]), () => resolve());
      });
      upload.destroy();
      await shell('head -c 50000000 /dev/zero >/var/tmp/large');
      const download = connect(socketPath());
      download.write('GET /sandbox/main/files?path=/var/tmp/large HTTP/1.1\r\nHost: x\r\n\r\n');
      await new Promise<void>((resolve) => download.once('data', () => resolve()));
      download.destroy();
      const out = join(folder, 'large.tar');
      expect((await get('/var/tmp/large', out)).stdout).toBe('200');
      expect(execFileSync('sh', ['-c', `tar -xOf ${out} | wc -c`], { encoding: 'utf8' }).trim()).toBe(
        '50000000',
      );
      await shell('rm /var/tmp/large');
    });
  });

  test('rules are shown with whose they are, and hosts are judged by them', async () => {
    const add = (rule: object) => call(daemon, 'POST', '/v1/policy/rules', rule);
    expect((await add({ decision: 'allow', resources: ['everywhere.test'] })).status).toBe(201);
    expect((await add({ decision: 'deny', resources: ['*.bad.test'], sandbox: 'main' })).status).toBe(201);
    const rules = async (query: string) =>
      (await curl('GET', `/policy/network/rules${query}`)).body as { scope: string; resources: string[] }[];
    const of = (list: { resources: string[] }[]) => list.flatMap((it) => it.resources);
    const ofMain = await rules('?type=all&sandbox=main');
    expect(ofMain).toContainEqual(
      expect.objectContaining({
        ...{ scope: 'sandbox:main', applies_to: 'main', decision: 'deny', resources: ['*.bad.test'] },
        ...{ resource_type: 'net:domain', actions: expect.arrayContaining(['net:connect:tcp']) },
      }),
    );
    expect(of(ofMain)).toContain('everywhere.test');
    const ofOther = await rules('?sandbox=other');
    expect(of(ofOther)).toContain('everywhere.test');
    expect(of(ofOther)).not.toContain('*.bad.test');
    expect((await curl('GET', '/policy/network/rules?sandbox=nobody')).status).toBe(404);
    const check = async (target: string, sandbox?: string) =>
      (await curl('POST', '/policy/network/check', { target, ...(sandbox && { sandbox_id: sandbox }) })).body;
    expect(await check('everywhere.test', 'main')).toMatchObject({ allowed: true, context: 'sandbox:main' });
    expect(await check('everywhere.test')).toMatchObject({ allowed: true, context: 'global' });
    expect(await check('a.bad.test', 'main')).toMatchObject({ allowed: false, deny_kind: 'explicit' });
    expect(await check('elsewhere.test', 'other')).toMatchObject({ allowed: false, deny_kind: 'implicit' });
    for (const wrong of [
      {},
      { target: '' },
      { target: 'a b' },
      { target: 'x', type: 'filesystem' },
      { target: `${'x'.repeat(3000)}.test` },
    ])
      expect(
        await curl('POST', '/policy/network/check', wrong),
        JSON.stringify(wrong).slice(0, 80),
      ).toMatchObject({
        ...{ status: 400, body: { message: expect.any(String) } },
      });
  });

  test('a sandbox is saved, and the next one begins where it was', async () => {
    await create('saved');
    await curl('POST', '/sandbox/saved/exec', { cmd: ['sh', '-c', 'echo kept >/opt/kept'] });
    await curl('POST', '/sandbox/saved/stop');
    const tag = `sandboxd-v2-${runtime}:1`;
    expect(await curl('POST', '/sandbox/saved/save', { tag })).toMatchObject({ status: 200, body: { tag } });
    try {
      await create('next', { template: tag });
      expect(await curl('POST', '/sandbox/next/exec', { cmd: ['cat', '/opt/kept'] })).toMatchObject({
        body: { stdout: 'kept\n' },
      });
      for (const wrong of [{}, { tag: '' }, { tag: '../../escape' }, { tag: 'A B' }, { tag: 'x', more: 1 }])
        expect(await curl('POST', '/sandbox/saved/save', wrong), JSON.stringify(wrong)).toMatchObject({
          ...{ status: 400, body: { message: expect.any(String) } },
        });
      expect((await curl('POST', '/sandbox/nobody/save', { tag })).status).toBe(404);
    } finally {
      for (const name of ['saved', 'next']) await curl('DELETE', `/sandbox/${name}`);
      await call(daemon, 'DELETE', `/v1/templates/${encodeURIComponent(tag)}`);
    }
  });

  test.each([
    [{}, 400, /agent/],
    [{ agent: 'no-such-agent', name: 'wrong' }, 404, /no-such-agent/],
    [{ agent: 'shell', name: 'wrong', kits: ['x'] }, 400, /kits/],
    [{ agent: 'shell', name: '../wrong' }, 400, /name/],
    [{ agent: 'shell', name: 'wrong', workspace: 'relative' }, 400, /workspace/],
    [{ agent: 'shell', name: 'wrong', workspace: '/no/such/folder' }, 400, /no\/such\/folder/],
    [{ agent: 'shell', name: 'wrong', workspace: '/etc' }, 400, /etc/],
    [{ agent: 'shell', name: 'wrong', memory: 'much' }, 400, /memory/],
    [{ agent: 'shell', name: 'wrong', environment: { 'A=B': '1' } }, 400, /environment/],
    [{ agent: 'shell', name: 'main' }, 409, /main/],
  ])('a sandbox asked for as %j is refused', async (body, status, message) => {
    const answer = await curl('POST', '/sandbox', { template: image, ...body });
    expect(answer).toMatchObject({ status, body: { message: expect.stringMatching(message) } });
    expect((await curl('GET', '/sandbox/wrong')).status).toBe(404);
  });
});

/** The bytes of each stream, 1 being stdout and 2 stderr; fails when the last frame is not whole. */
function framesOf(bytes: Buffer): { 1: Buffer; 2: Buffer } {
  const lanes: { 1: Buffer[]; 2: Buffer[] } = { 1: [], 2: [] };
  for (let at = 0; at < bytes.length; ) {
    const [lane, length] = [bytes[at], bytes.readUInt32BE(at + 4)];
    const piece = bytes.subarray(at + 8, at + 8 + length);
    expect(piece.length).toBe(length);
    lanes[lane as 1 | 2].push(piece);
    at += 8 + length;
  }
  return { 1: Buffer.concat(lanes[1]), 2: Buffer.concat(lanes[2]) };
}
