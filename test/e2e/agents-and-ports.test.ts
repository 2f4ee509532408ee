// Agents and published ports through the daemon's door, in real walls: what is prepared is there, and ports live as long as their sandbox, over a daemon
// that was killed and over stop and start.
import { execFile } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { call, create, list, remove, run } from '../client.ts';
import { expectNothingLeft, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { freePort } from '../ports.ts';
import { runtimes } from '../runtimes.ts';

const server = `import http.server
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"from inside")
http.server.HTTPServer(("127.0.0.1", 7000), Answer).serve_forever()`;
const none = ['tail', '-f', '/dev/null'];

describe.skipIf(!runtimes.includes('bubblewrap'))('bubblewrap', () => {
  let daemon: TestDaemon;
  beforeAll(async () => {
    daemon = await startDaemon({ runtime: 'bubblewrap' });
  });
  afterAll(async () => {
    for (const { id } of await list(daemon)) await remove(daemon, id);
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(daemon.home);
  });

  const ports = async (id: string) =>
    (await call(daemon, 'GET', `/v1/sandboxes/${id}/ports`)).body.items as { hostPort: number }[];
  const serve = async (id: string) => {
    const answer = await call(daemon, 'POST', `/v1/sandboxes/${id}/proxy/44772/processes`, {
      ...{ argv: ['python3', '-c', server], background: true },
    });
    expect(answer.status).toBe(201);
  };
  const answers = (port: number, expected: boolean) =>
    until(
      `port ${port}`,
      () =>
        fetch(`http://127.0.0.1:${port}/`).then(
          (it) => it.text(),
          () => 'no answer',
        ),
      (it) => (it === 'from inside') === expected,
    );

  test('ports are there after kill -9 of the daemon, gone while it is stopped, there when it is started again', async () => {
    const asked = await freePort();
    const id = await create(daemon, {
      glovebox: { keep: true, ports: [{ hostPort: asked, sandboxPort: 7000 }, { sandboxPort: 7000 }] },
    });
    await serve(id);
    const [first, chosen] = await ports(id);
    expect(first?.hostPort).toBe(asked);
    await answers(asked, true);
    await answers(chosen?.hostPort as number, true);

    await daemon.kill();
    daemon = await startDaemon({ home: daemon.home, runtime: 'bubblewrap' });
    await answers(asked, true);
    await until(
      'the other port',
      async () => (await ports(id))[1]?.hostPort,
      (it) => (it ?? 0) > 0,
    );

    expect((await call(daemon, 'POST', `/v1/sandboxes/${id}/stop`)).status).toBe(200);
    await answers(asked, false);
    expect((await ports(id)).map((it) => it.hostPort)).toEqual([asked, 0]);
    expect((await call(daemon, 'POST', `/v1/sandboxes/${id}/start`)).status).toBe(200);
    await serve(id);
    await answers(asked, true);

    const other = await create(daemon);
    const taken = await call(daemon, 'POST', `/v1/sandboxes/${other}/ports`, [
      { hostPort: asked, sandboxPort: 1 },
    ]);
    expect(taken).toMatchObject({
      status: 409,
      body: { message: expect.stringContaining(`port 127.0.0.1:${asked} of the host is taken`) },
    });
    const off = await call(daemon, 'POST', `/v1/sandboxes/${id}/ports/unpublish`, [{ sandboxPort: 7000 }]);
    expect(off.body).toEqual({ unpublished: 2 });
    await answers(asked, false);
    await remove(daemon, other);
    await remove(daemon, id);
  });

  test('an agent’s files, variables and commands are there, and it is told where it is', async () => {
    const id = await create(daemon, {
      image: undefined,
      entrypoint: none,
      metadata: { 'glovebox.name': 'box' },
      glovebox: {
        agent: {
          name: 'mine',
          command: ['sh'],
          env: { MINE: 'yes' },
          setup: [{ run: 'echo made > /etc/made' }],
          files: [{ path: '~/.minerc.json', content: '{"at": "{{workspace}}"}', mode: '0600' }],
          instructions: '~/.mine/NOTES.md',
        },
      },
    });
    const { body } = await call(daemon, 'GET', `/v1/sandboxes/${id}`);
    expect(body.glovebox).toMatchObject({ agent: 'mine', keep: true, autoStopAfterSeconds: 30 });
    const line =
      'echo $IS_SANDBOX $SANDBOX_NAME $MINE; cat /etc/made ~/.minerc.json; stat -c %a ~/.minerc.json';
    expect((await run(daemon, id, line)).stdout.split('\n').slice(0, 4)).toEqual([
      ...['1 box yes', 'made', '{"at": "/"}600'],
      '',
    ]);
    expect((await run(daemon, id, 'cat ~/.mine/NOTES.md')).stdout).toContain(
      'a Glovebox sandbox called `box`',
    );
    await remove(daemon, id);
  });

  test('an agent that is not in the image fails the creation with what to do, and nothing stays', async () => {
    const before = await list(daemon);
    const { status, body, headers } = await call(daemon, 'POST', '/v1/sandboxes', {
      image: { uri: 'host' },
      entrypoint: none,
      resourceLimits: {},
      glovebox: { agent: { name: 'absent', command: ['no-such-agent'] } },
    });
    expect({ status, message: body.message }).toEqual({
      status: 404,
      message: expect.stringContaining('agent binary "no-such-agent" not found in sandbox'),
    });
    expect(decodeURIComponent(headers.get('Glovebox-Hint') ?? '')).toContain('glovebox/absent');
    expect(await list(daemon)).toEqual(before);
  });

  test('a login of this machine is used where it is, and not copied', async () => {
    const home = mkdtempSync(join(tmpdir(), 'glovebox-host-'));
    const file = join(home, '.claude/.credentials.json');
    const token = `sk-ant-oat01-canary-${process.pid}`;
    mkdirSync(join(home, '.claude'));
    writeFileSync(file, JSON.stringify({ claudeAiOauth: { accessToken: token } }));
    const env = { PATH: process.env.PATH, HOME: home, GLOVEBOX_HOME: daemon.home };
    const glovebox = (...args: string[]) =>
      promisify(execFile)(join(import.meta.dirname, '../../bin/glovebox'), args, { env });
    const dry = await glovebox('secret', 'import', '--all', '--dry-run');
    expect(dry.stdout).toBe(`Would import anthropic-oauth from ${file} (scope: global)\n`);
    await glovebox('secret', 'import', 'anthropic-oauth');
    const { stdout } = await glovebox('secret', 'ls', '--json');
    expect(JSON.parse(stdout)).toMatchObject([{ name: 'anthropic-oauth', sourceType: 'file', masked: file }]);
    expect((await call(daemon, 'GET', '/v1/agents/claude')).body.available).toEqual(['anthropic-oauth']);
    const kept = readdirSync(daemon.home, { recursive: true, withFileTypes: true })
      .filter((it) => it.isFile())
      .filter((it) => readFileSync(join(it.parentPath, it.name)).includes(token));
    expect(kept).toEqual([]);
    rmSync(home, { recursive: true });
  });

  test('agents are listed and looked up, and an unknown one is told with those there are', async () => {
    const { body } = await call(daemon, 'GET', '/v1/agents');
    expect((body.items as { name: string }[]).map((it) => it.name)).toContain('claude');
    expect((await call(daemon, 'GET', '/v1/agents/shell')).body).toMatchObject({ source: 'built-in' });
    expect((await call(daemon, 'GET', '/v1/agents/nobody')).status).toBe(404);
  });
});
