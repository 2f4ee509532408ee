// OpenSandbox's own npm client, unmodified, against a real daemon on every runtime of this machine.
import {
  ConnectionConfig,
  Sandbox,
  SandboxApiException,
  SandboxManager,
  type ServerStreamEvent,
} from '@alibaba-group/opensandbox';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { expectNothingLeft, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { imageFor, runtimes } from '../runtimes.ts';
import { Specification } from './specification.ts';

/** A web server for the one language that every Debian has. */
const server = `use IO::Socket::INET;
my $socket = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 8080, Listen => 9, ReuseAddr => 1) or die;
while (my $client = $socket->accept) {
  while (<$client>) { last if /^\\r?$/ }
  print $client "HTTP/1.1 200 OK\\r\\nContent-Length: 18\\r\\nConnection: close\\r\\n\\r\\nserved from inside";
  close $client;
}
`;

const specification = new Specification();

describe.each(runtimes)('%s', (runtime) => {
  let unwatch: () => void;
  let daemon: TestDaemon;
  let connectionConfig: ConnectionConfig;
  let manager: SandboxManager;
  let image: string;
  let sandbox: Sandbox;

  beforeAll(async () => {
    unwatch = specification.watch();
    daemon = await startDaemon({ runtime });
    image = await imageFor(runtime, daemon, 'debian');
    connectionConfig = new ConnectionConfig({ domain: daemon.url, apiKey: daemon.apiKey });
    manager = SandboxManager.create({ connectionConfig });
    sandbox = await Sandbox.create({
      connectionConfig,
      image,
      env: { GREETING: 'hello' },
      metadata: { suite: 'compat', 'acme.io/team': 'gloves' },
      resource: { memory: '256Mi' },
    });
  });

  afterAll(async () => {
    const { items } = await manager.listSandboxInfos({ pageSize: 200 });
    await Promise.all(items.map(({ id }) => manager.killSandbox(id)));
    await sandbox.close();
    await manager.close();
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(daemon.home);
    unwatch();
    expect(await specification.seen()).toEqual([]);
  });

  test('it is healthy, running, and what was asked for', async () => {
    expect(await sandbox.isHealthy()).toBe(true);
    const info = await sandbox.getInfo();
    expect(info).toMatchObject({
      id: sandbox.id,
      image: { uri: image },
      entrypoint: ['tail', '-f', '/dev/null'],
      metadata: { suite: 'compat', 'acme.io/team': 'gloves' },
      status: { state: 'Running' },
    });
    const left = (info.expiresAt?.getTime() ?? 0) - info.createdAt.getTime();
    expect(left).toBe(600_000);
    const metrics = await sandbox.getMetrics();
    expect(metrics.cpuCount).toBeGreaterThan(0);
    expect(metrics.cpuUsedPercentage).toBeGreaterThanOrEqual(0);
    expect(metrics.cpuUsedPercentage).toBeLessThanOrEqual(100);
    expect(metrics.memoryUsedMiB).toBeLessThanOrEqual(metrics.memoryTotalMiB);
    expect(Math.abs(metrics.timestamp - Date.now())).toBeLessThan(120_000);
  });

  test('output is streamed by lines while the command runs', async () => {
    const events: ServerStreamEvent[] = [];
    const seen = Promise.withResolvers<void>();
    const running = sandbox.commands.run(
      'echo "$GREETING $ADDED"; while [ ! -e /tmp/go ]; do sleep 0.02; done; echo; echo oops >&2; printf end',
      { envs: { ADDED: 'there' }, workingDirectory: '/tmp' },
      {
        onEvent: (event) => void events.push(event as ServerStreamEvent),
        onStdout: ({ text }) => {
          if (text === 'hello there') seen.resolve();
        },
      },
    );
    await seen.promise;
    await sandbox.files.writeFiles([{ path: '/tmp/go', data: '' }]);
    const result = await running;
    expect(result.logs.stdout.map((it) => it.text)).toEqual(['hello there', '\n', 'end']);
    expect(result.logs.stderr.map((it) => it.text)).toEqual(['oops']);
    expect([result.exitCode, result.error]).toEqual([0, undefined]);
    expect(events.filter((it) => it.type === 'init')).toHaveLength(1);
    expect(result.complete?.executionTimeMs).toBeGreaterThan(0);
  });

  test.each([
    ['exit 7', 7],
    ['no-such-command', 127],
    ['/etc/passwd', 126],
    ['kill -TERM $$', 143],
  ])('%s ends with %i', async (command, exitCode) => {
    const result = await sandbox.commands.run(command);
    expect([result.exitCode, result.error?.name, result.complete]).toEqual([
      exitCode,
      'CommandExecError',
      undefined,
    ]);
  });

  test('a command that takes too long is ended', async () => {
    const result = await sandbox.commands.run('echo before; sleep 60', { timeoutSeconds: 3 });
    expect(result.logs.stdout.map((it) => it.text)).toEqual(['before']);
    expect(result.exitCode).not.toBe(0);
    expect(result.error?.traceback).toEqual(['timed out']);
  });

  test('who runs it and where are obeyed or refused', async () => {
    const result = await sandbox.commands.run('id -u; pwd', { workingDirectory: '/tmp', uid: 0, gid: 0 });
    expect(result.logs.stdout.map((it) => it.text)).toEqual(['0', '/tmp']);
    await expect(sandbox.commands.run('pwd', { workingDirectory: '/no/such' })).rejects.toMatchObject({
      statusCode: 400,
    });
  });

  test('a background command is watched by its status and logs', async () => {
    const {
      id = '',
      exitCode,
      complete,
    } = await sandbox.commands.run('echo one; echo two >&2; exit 3', {
      background: true,
    });
    expect([exitCode, complete === undefined]).toEqual([undefined, false]);
    const status = await until(
      'the background command',
      () => sandbox.commands.getCommandStatus(id),
      (it) => it.running === false,
    );
    expect(status).toMatchObject({ id, exitCode: 3, content: 'echo one; echo two >&2; exit 3' });
    expect(status.finishedAt?.getTime()).toBeGreaterThanOrEqual(status.startedAt?.getTime() ?? Number.NaN);
    const logs = await sandbox.commands.getBackgroundCommandLogs(id);
    expect(logs.content.split('\n').sort()).toEqual(['', 'one', 'two']);
    expect(await sandbox.commands.getBackgroundCommandLogs(id, logs.cursor)).toEqual({
      content: '',
      cursor: logs.cursor,
    });
  });

  test('an interrupt ends a command and all it has started; twice it is refused', async () => {
    const { id = '' } = await sandbox.commands.run('sleep 61 & sleep 62; wait', { background: true });
    await sandbox.commands.interrupt(id);
    const status = await until(
      'the interrupted command',
      () => sandbox.commands.getCommandStatus(id),
      (it) => it.running === false,
    );
    expect(status.exitCode).not.toBe(0);
    await until(
      'its children',
      async () => (await sandbox.commands.run('ps | grep "sleep 6[12]"')).logs.stdout,
      (lines) => lines.length === 0,
    );
    await expect(sandbox.commands.interrupt(id)).rejects.toBeInstanceOf(SandboxApiException);
    await expect(sandbox.commands.interrupt('nope')).rejects.toBeInstanceOf(SandboxApiException);
    await expect(sandbox.commands.getCommandStatus('nope')).rejects.toMatchObject({ statusCode: 404 });
  });

  test('a session keeps its shell from run to run, also over an exit and a time limit', async () => {
    const { commands } = sandbox;
    const id = await commands.createSession({ workingDirectory: '/tmp/a new folder' });
    const run = async (lines: string, options?: Parameters<typeof commands.runInSession>[2]) => {
      const { logs, error, exitCode, complete, id: told } = await commands.runInSession(id, lines, options);
      expect(told).toBe(id);
      expect(complete === undefined).toBe(error !== undefined);
      return [...logs.stdout.map((it) => it.text), exitCode];
    };
    expect(await run('value=kept; double() { echo $(($1 * 2)); }; export PASSED=on; pwd')).toEqual([
      '/tmp/a new folder',
      0,
    ]);
    expect(await run('echo $value; double 4; sh -c "echo \\$PASSED"; echo oops >&2; exit 7')).toEqual([
      ...['kept', '8', 'on', 'oops'],
      7,
    ]);
    expect(await run('echo $value; double 2', { workingDirectory: '/usr' })).toEqual(['kept', '4', 0]);
    const [folder, status] = await run('pwd; no-such-command');
    expect([folder, status]).toEqual(['/usr', expect.stringContaining('no-such-command')]);
    expect((await run('sleep 61', { timeoutSeconds: 1 })).at(-1)).toBeGreaterThan(0);
    const counted = await Promise.all(Array.from({ length: 5 }, () => run('((count += 1))')));
    expect(counted).toEqual(Array(5).fill([0]));
    expect(await run('echo $count')).toEqual(['5', 0]);
    await commands.deleteSession(id);
    await expect(commands.runInSession(id, 'echo')).rejects.toMatchObject({ statusCode: 404 });
    await expect(commands.deleteSession(id)).rejects.toMatchObject({ statusCode: 404 });
    const interrupted = await commands.createSession();
    await commands.interrupt(interrupted);
    await expect(commands.deleteSession(interrupted)).rejects.toMatchObject({ statusCode: 404 });
  });

  test('files are written in every form, and read whole, in parts and by lines', async () => {
    const bytes = Uint8Array.from({ length: 256 }, (_, n) => n);
    const big = Buffer.alloc(5_000_000, 'glovebox');
    async function* pieces() {
      for (let at = 0; at < big.length; at += 100_000) yield big.subarray(at, at + 100_000);
    }
    await sandbox.files.writeFiles([
      { path: '/tmp/f/text', data: 'eins\nzwei\nтри\n', mode: 600 },
      { path: '/tmp/f/bytes', data: bytes },
      { path: '/tmp/f/blob', data: new Blob(['blob']) },
      { path: '/tmp/f/stream', data: pieces() },
      { path: '/tmp/f/empty' },
      { path: '~/at-home', data: 'home' },
    ]);
    const { files } = sandbox;
    expect(await files.readFile('/tmp/f/text')).toBe('eins\nzwei\nтри\n');
    expect(await files.readFile('/tmp/f/text', { offset: 2, limit: 1 })).toBe('zwei');
    expect(await files.readFile('/tmp/f/text', { range: 'bytes=0-3' })).toBe('eins');
    expect(Buffer.from(await files.readBytes('/tmp/f/bytes'))).toEqual(Buffer.from(bytes));
    expect(await files.readFile('/tmp/f/blob')).toBe('blob');
    expect(await files.readFile('/tmp/f/empty')).toBe('');
    const chunks: Uint8Array[] = [];
    for await (const chunk of files.readBytesStream('/tmp/f/stream')) chunks.push(chunk);
    expect(Buffer.concat(chunks).equals(big)).toBe(true);
    expect(await files.readFile('~/at-home')).toBe('home');
    const info = await files.getFileInfo(['/tmp/f/text', '~/at-home']);
    expect(Object.keys(info)).toEqual(['/tmp/f/text', '~/at-home']);
    expect(info['/tmp/f/text']).toMatchObject({
      type: 'file',
      size: 17,
      mode: 600,
      owner: 'root',
      group: 'root',
    });
    expect(Math.abs((info['/tmp/f/text']?.modifiedAt?.getTime() ?? 0) - Date.now())).toBeLessThan(120_000);
    await expect(files.readFile('/tmp/f/none')).rejects.toMatchObject({ statusCode: 404 });
    await expect(files.getFileInfo(['/tmp/f/none'])).rejects.toMatchObject({ statusCode: 404 });
    await expect(files.readFile('/tmp/f/text', { range: 'bytes=99-' })).rejects.toMatchObject({
      statusCode: 416,
    });
  });

  test('files are searched, changed, moved and deleted', async () => {
    const { files } = sandbox;
    await files.createDirectories([{ path: '/tmp/d/deep', mode: 750 }]);
    await files.writeFiles([
      { path: '/tmp/d/a.txt', data: 'x-x' },
      { path: '/tmp/d/deep/b.txt', data: 'y' },
      { path: '/tmp/d/c.md', data: 'z' },
    ]);
    const pathsOf = (list: { path: string }[]) => list.map((it) => it.path).sort();
    expect(pathsOf(await files.search({ path: '/tmp/d', pattern: '*.txt' }))).toEqual([
      '/tmp/d/a.txt',
      '/tmp/d/deep/b.txt',
    ]);
    expect(pathsOf(await files.listDirectory({ path: '/tmp/d' }))).toEqual([
      '/tmp/d/a.txt',
      '/tmp/d/c.md',
      '/tmp/d/deep',
    ]);
    expect(await files.listDirectory({ path: '/tmp/d', depth: 2 })).toHaveLength(4);
    expect((await files.getFileInfo(['/tmp/d/deep']))['/tmp/d/deep']).toMatchObject({
      type: 'directory',
      mode: 750,
    });
    await files.replaceContents([{ path: '/tmp/d/a.txt', oldContent: 'x', newContent: 'w' }]);
    expect(await files.readFile('/tmp/d/a.txt')).toBe('w-w');
    expect(
      await files.replaceContentsDetailed([{ path: '/tmp/d/a.txt', oldContent: 'w', newContent: 'v' }]),
    ).toEqual([{ path: '/tmp/d/a.txt', replacedCount: 2 }]);
    await files.setPermissions([{ path: '/tmp/d/a.txt', mode: 700, owner: 'root', group: 'root' }]);
    expect((await files.getFileInfo(['/tmp/d/a.txt']))['/tmp/d/a.txt']).toMatchObject({ mode: 700 });
    await files.moveFiles([{ src: '/tmp/d/a.txt', dest: '/tmp/d/new/a.txt' }]);
    await expect(files.moveFiles([{ src: '/tmp/d/c.md', dest: '/tmp/d/new/a.txt' }])).rejects.toMatchObject({
      statusCode: 409,
    });
    await files.deleteFiles(['/tmp/d/c.md', '/tmp/d/never-was']);
    await expect(files.deleteFiles(['/tmp/d/deep'])).rejects.toBeInstanceOf(SandboxApiException);
    expect(pathsOf(await files.listDirectory({ path: '/tmp/d' }))).toEqual(['/tmp/d/deep', '/tmp/d/new']);
    await files.deleteDirectories(['/tmp/d']);
    await expect(files.listDirectory({ path: '/tmp/d' })).rejects.toMatchObject({ statusCode: 404 });
  });

  test('a server inside is reached through its endpoint, with the headers that belong to it', async () => {
    await sandbox.files.writeFiles([{ path: '/tmp/serve.pl', data: server }]);
    await sandbox.commands.run('perl /tmp/serve.pl', { background: true });
    const { endpoint, headers = {} } = await sandbox.getEndpoint(8080);
    expect(endpoint).not.toContain('://');
    const answer = await until(
      'the server inside',
      () => fetch(`http://${endpoint}/index.html`, { headers }),
      (it) => it.status !== 502,
    );
    expect([answer.status, await answer.text()]).toEqual([200, 'served from inside']);
    expect((await fetch(`http://${endpoint}/index.html`)).status).toBe(401);
    expect((await fetch(`${await sandbox.getEndpointUrl(8081)}/`, { headers })).status).toBe(502);
  });

  test('metadata is changed and found again', async () => {
    const patched = await sandbox.patchMetadata({ role: 'tested', suite: null });
    expect(patched.metadata).toEqual({ role: 'tested', 'acme.io/team': 'gloves' });
    const found = await manager.listSandboxInfos({ metadata: { role: 'tested' }, states: ['running'] });
    expect(found.items.map((it) => it.id)).toEqual([sandbox.id]);
    expect(found.pagination).toMatchObject({ page: 1, totalItems: 1, totalPages: 1, hasNextPage: false });
    expect((await manager.listSandboxInfos({ metadata: { suite: 'compat' } })).items).toEqual([]);
    expect((await manager.listSandboxInfos({ states: ['Paused'] })).items).toEqual([]);
  });

  test('its life is prolonged, but not into the past', async () => {
    await sandbox.renew(3600);
    const { expiresAt } = await sandbox.getInfo();
    expect((expiresAt?.getTime() ?? 0) - Date.now()).toBeGreaterThan(3_500_000);
    await expect(sandbox.renew(-10)).rejects.toMatchObject({ statusCode: 400 });
  });

  test('it is paused and resumed with its processes, and its endpoints stay', async () => {
    const { id = '' } = await sandbox.commands.run('echo begun; sleep 60', { background: true });
    const before = await sandbox.getEndpoint(44772);
    await sandbox.pause();
    expect((await sandbox.getInfo()).status.state).toBe('Paused');
    expect(await sandbox.isHealthy()).toBe(false);
    await expect(sandbox.pause()).rejects.toMatchObject({ statusCode: 409 });
    const resumed = await sandbox.resume();
    expect(await resumed.getEndpoint(44772)).toEqual(before);
    expect((await resumed.commands.getCommandStatus(id)).running).toBe(true);
    expect((await resumed.commands.run('echo again')).logs.stdout[0]?.text).toBe('again');
    await expect(manager.resumeSandbox(sandbox.id)).rejects.toMatchObject({ statusCode: 409 });
  });

  test('another client connects, and one without its own clean-up time is removed by hand', async () => {
    const byHand = await Sandbox.create({ connectionConfig, image, timeoutSeconds: null, resource: {} });
    expect((await byHand.getInfo()).expiresAt).toBeNull();
    const other = await Sandbox.connect({ connectionConfig, sandboxId: byHand.id });
    expect((await other.commands.run('echo both')).exitCode).toBe(0);
    await expect(byHand.renew(600)).rejects.toMatchObject({ statusCode: 409 });
    await other.kill();
    await expect(byHand.getInfo()).rejects.toMatchObject({ statusCode: 404 });
    await expect(byHand.kill()).rejects.toMatchObject({ statusCode: 404 });
    await expect(Sandbox.connect({ connectionConfig, sandboxId: byHand.id })).rejects.toMatchObject({
      statusCode: 404,
    });
  });

  test('what cannot be had is refused with a code and the request’s id', async () => {
    const refused = (options: object) => Sandbox.create({ connectionConfig, image, ...options });
    await expect(refused({ resource: { memory: 'lots' } })).rejects.toMatchObject({ statusCode: 400 });
    await expect(refused({ timeoutSeconds: 5 })).rejects.toMatchObject({ statusCode: 400 });
    await expect(refused({ image: 'glovebox-test/never-was:1' })).rejects.toMatchObject({
      // An engine that reaches no registry cannot tell whether the image is there.
      statusCode: runtime === 'docker' ? expect.toBeOneOf([404, 503]) : 404,
      error: { code: expect.stringMatching(/^[A-Z]+::[A-Z_]+$/) },
      requestId: expect.any(String),
    });
    const stranger = new ConnectionConfig({ domain: daemon.url, apiKey: 'wrong' });
    await expect(
      Sandbox.connect({ connectionConfig: stranger, sandboxId: sandbox.id }),
    ).rejects.toMatchObject({
      statusCode: 401,
      error: { code: 'INVALID_API_KEY' },
    });
    expect((await sandbox.isolation.capabilities()).available).toBe(false);
  });
});
