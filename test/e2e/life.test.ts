// A sandbox from its creation to its end through the HTTP doors, on each runtime: what a user relies on, and what they get wrong.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { type Answer, call, create, list, remove, run } from '../client.ts';
import { expectNothingLeft, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { imageFor, runtimes } from '../runtimes.ts';

const execd = (id: string) => `/v1/sandboxes/${id}/proxy/44772`;
const stateOf = async (daemon: TestDaemon, id: string) => {
  const { body } = await call(daemon, 'GET', `/v1/sandboxes/${id}`);
  return body.status as { state: string; reason: string; message: string };
};

describe.each(runtimes)('%s', (runtime) => {
  let daemon: TestDaemon;
  let uri: string;
  beforeAll(async () => {
    daemon = await startDaemon({ runtime });
    uri = await imageFor(runtime, daemon, 'busybox');
  });
  afterAll(async () => {
    for (const { id } of await list(daemon)) await remove(daemon, id);
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(daemon.home);
  });

  test('an image with no libc and no shell runs commands and file operations', async () => {
    const scratch = await imageFor(runtime, daemon, 'scratch');
    const id = await create(daemon, { image: { uri: scratch } });
    const started = await call(daemon, 'POST', `${execd(id)}/processes`, {
      argv: ['/busybox', 'echo', 'from one static binary'],
      background: true,
    });
    expect(started.status).toBe(201);
    const process = `${execd(id)}/processes/${started.body.id}`;
    await until(
      'process',
      async () => (await call(daemon, 'GET', process)).body,
      (it) => it.running === false,
    );
    expect((await call(daemon, 'GET', `${process}/logs`)).body.text).toBe('from one static binary\n');
    expect((await call(daemon, 'POST', `${execd(id)}/directories`, { '/data': { mode: 755 } })).status).toBe(
      200,
    );
    expect(
      (await call(daemon, 'GET', `${execd(id)}/files/info?path=/busybox&path=/data`)).body,
    ).toMatchObject({
      '/busybox': { type: 'file' },
      '/data': { type: 'directory', mode: 755 },
    });
    // A shell line needs a shell; the image has none, and the answer says so.
    const line = await run(daemon, id, 'echo hi');
    expect(line.exitCode).toBe(127);
    expect(line.stderr).toMatch(/neither bash nor sh/);
    await remove(daemon, id);
  });

  test('the main process ends the sandbox, and the reason is kept', async () => {
    const well = await create(daemon, { image: { uri }, entrypoint: ['sh', '-c', 'sleep 0.2; exit 0'] });
    const badly = await create(daemon, { image: { uri }, entrypoint: ['sh', '-c', 'sleep 0.2; exit 3'] });
    await until(
      'end',
      () => stateOf(daemon, well),
      (it) => it.state === 'Terminated',
    );
    const failed = await until(
      'end',
      () => stateOf(daemon, badly),
      (it) => it.state === 'Failed',
    );
    expect(failed.message).toMatch(/exit code 3/);
    expect((await call(daemon, 'POST', `${execd(badly)}/command`, { command: 'true' })).status).toBe(409);
    await Promise.all([remove(daemon, well), remove(daemon, badly)]);
  });

  test('a main process that cannot start fails the creation and leaves nothing', async () => {
    const before = (await list(daemon)).length;
    const { status, body } = await call(daemon, 'POST', '/v1/sandboxes', {
      image: { uri },
      entrypoint: ['no-such-program'],
      resourceLimits: {},
    });
    expect(status).toBeGreaterThanOrEqual(400);
    expect(body.message).toMatch(/no-such-program/);
    expect((await list(daemon)).length).toBe(before);
  });

  test('pause freezes, resume goes on where it was, and a paused sandbox can be removed', async () => {
    const id = await create(daemon, { image: { uri } });
    await call(daemon, 'POST', `${execd(id)}/command`, {
      command: 'while :; do echo tick >> /tmp/ticks; sleep 0.05; done',
      background: true,
    });
    expect((await call(daemon, 'POST', `/v1/sandboxes/${id}/pause`)).status).toBe(202);
    expect((await stateOf(daemon, id)).state).toBe('Paused');
    expect((await call(daemon, 'POST', `/v1/sandboxes/${id}/pause`)).status).toBe(409);
    expect((await call(daemon, 'POST', `${execd(id)}/command`, { command: 'true' })).status).toBe(409);
    expect((await call(daemon, 'POST', `/v1/sandboxes/${id}/resume`)).status).toBe(202);
    const ticks = async () => Number((await run(daemon, id, 'wc -l < /tmp/ticks')).stdout);
    const then = await ticks();
    await until('ticks', ticks, (now) => now > then);
    expect((await call(daemon, 'POST', `/v1/sandboxes/${id}/resume`)).status).toBe(409);
    await call(daemon, 'POST', `/v1/sandboxes/${id}/pause`);
    await remove(daemon, id);
  });

  test('a memory bomb is held inside and told', async () => {
    const id = await create(daemon, { image: { uri }, resourceLimits: { memory: '128Mi' } });
    const bomb = await run(daemon, id, 'a=x; while :; do a=$a$a; done').catch(() => undefined);
    if (bomb !== undefined) expect(bomb.exitCode).not.toBe(0);
    const { state, reason } = await until(
      'outcome',
      () => stateOf(daemon, id),
      (it) => it.state === 'Running' || it.state === 'Failed',
    );
    if (state === 'Failed') expect(reason).toBe('out-of-memory');
    await remove(daemon, id);
  });

  test('what users get wrong has a clear answer', async () => {
    const id = await create(daemon, { image: { uri } });
    expect(await run(daemon, id, 'no-such-command')).toMatchObject({ exitCode: 127 });
    expect(await run(daemon, id, 'touch /tmp/plain; /tmp/plain')).toMatchObject({ exitCode: 126 });
    const missing = await call(daemon, 'POST', `${execd(id)}/processes`, { argv: ['no-such-command'] });
    expect(missing.body.message).toMatch(/no-such-command/);

    const megabyte = Array.from({ length: 16 }, () => 'y'.repeat(65_536));
    const counted = await call(daemon, 'POST', `${execd(id)}/processes`, {
      argv: ['sh', '-c', 'echo $# > /tmp/count', 'sh', ...megabyte],
      background: true,
    });
    expect(counted.status).toBe(201);
    await until(
      'count',
      () => run(daemon, id, 'cat /tmp/count 2>/dev/null'),
      (it) => it.stdout === '16\n',
    );

    const name = (await run(daemon, id, "printf 'a\\377b\\n'; touch \"/tmp/$(printf 'n\\377m')\"; echo done"))
      .stdout;
    expect(name).toBe('a\ufffdb\ndone\n');
    const found = await call(daemon, 'GET', `${execd(id)}/files/search?path=/tmp&pattern=n*`);
    expect(found.status).toBe(200);

    const unknown = await call(daemon, 'POST', '/v1/sandboxes', {
      image: { uri: 'no/such-image:9' },
      entrypoint: ['true'],
      resourceLimits: {},
    });
    expect(unknown.status).toBeGreaterThanOrEqual(400);
    expect(unknown.body.message).toMatch(/no\/such-image/);
    const quantity = await call(daemon, 'POST', '/v1/sandboxes', {
      image: { uri },
      entrypoint: ['true'],
      resourceLimits: { memory: 'lots' },
    });
    expect(quantity.status).toBe(400);
    expect(quantity.body.message).toMatch(/memory/);

    await remove(daemon, id);
    const gone = await call(daemon, 'GET', `/v1/sandboxes/${id}`);
    expect(gone.status).toBe(404);
    expect(gone.body.message).toMatch(/removed on request/);
    expect((await call(daemon, 'DELETE', `/v1/sandboxes/${id}`)).status).toBe(404);
    expect((await call({ ...daemon, apiKey: 'wrong' }, 'GET', '/v1/sandboxes')).body.code).toBe(
      'INVALID_API_KEY',
    );
  });

  test('a running command survives the daemon, and its output is whole', async () => {
    const id = await create(daemon, { image: { uri } });
    const line = 'i=0; while [ $i -lt 100 ]; do echo line $i; i=$((i+1)); sleep 0.02; done';
    const started = await call(daemon, 'POST', `${execd(id)}/processes`, { shell: line, background: true });
    await daemon.kill();
    daemon = await startDaemon({ runtime, home: daemon.home });
    const process = `${execd(id)}/processes/${started.body.id}`;
    await until(
      'process',
      async () => (await call(daemon, 'GET', process)).body,
      (it) => it.running === false,
    );
    const logs = (await call(daemon, 'GET', `${process}/logs`)).body.text;
    expect(logs).toBe(Array.from({ length: 100 }, (_, i) => `line ${i}\n`).join(''));
    await remove(daemon, id);
  });

  test('what was answered before a kill holds after it: renewals, labels, pauses', async () => {
    const id = await create(daemon, { image: { uri }, timeout: 3_600 });
    const path = `/v1/sandboxes/${id}`;
    const begun = Date.now();
    /** What was asked for last, and what was answered last. */
    const said = { renewal: [0, 0], label: [0, 0], state: ['Running', 'Running'] };
    /** Asks again and again, until the daemon is gone. */
    const asking = async (ask: (count: number) => Promise<Answer>) => {
      for (let count = 1; ; count++) {
        const answer = await ask(count).catch(() => undefined);
        if (answer === undefined) return;
        expect(answer.status, JSON.stringify(answer.body)).toBeLessThan(300);
      }
    };
    const expiresAt = (count: number) => new Date(begun + 7_200_000 + count * 1_000).toISOString();
    for (const round of [1, 2, 3]) {
      const all = [
        asking(async (count) => {
          said.renewal[0] = round * 100_000 + count;
          const asked = { expiresAt: expiresAt(said.renewal[0]) };
          const answer = await call(daemon, 'POST', `${path}/renew-expiration`, asked);
          said.renewal[1] = round * 100_000 + count;
          return answer;
        }),
        asking(async (count) => {
          said.label[0] = round * 100_000 + count;
          const answer = await call(daemon, 'PATCH', `${path}/metadata`, { count: String(said.label[0]) });
          said.label[1] = round * 100_000 + count;
          return answer;
        }),
        asking(async () => {
          const [verb, state] = said.state[1] === 'Running' ? ['pause', 'Paused'] : ['resume', 'Running'];
          said.state[0] = state as string;
          const answer = await call(daemon, 'POST', `${path}/${verb}`);
          said.state[1] = state as string;
          return answer;
        }),
      ];
      const killed = Promise.all(all);
      await vi.waitFor(() => expect(said.label[1]).toBeGreaterThan(round * 100_000 + 7 * round));
      await daemon.kill();
      await killed;
      daemon = await startDaemon({ runtime, home: daemon.home });
      const { body } = await until(
        'its state',
        () => call(daemon, 'GET', path),
        (it) => said.state.includes((it.body.status as { state: string }).state),
      );
      const { count } = body.metadata as Record<string, string>;
      expect(said.renewal.map((it) => expiresAt(it))).toContain(body.expiresAt);
      expect(said.label.map(String)).toContain(count);
      const { state } = await stateOf(daemon, id);
      said.state = [state, state];
    }
    if (said.state[0] === 'Paused') expect((await call(daemon, 'POST', `${path}/resume`)).status).toBe(202);
    expect((await run(daemon, id, 'echo awake')).stdout).toBe('awake\n');
    await remove(daemon, id);
  });

  test('a sandbox ends when its time is up', async () => {
    const id = await create(daemon, { image: { uri }, timeout: 60 });
    // Far enough off to be in the future still when a slow daemon hears of it.
    const soon = new Date(Date.now() + 4_000).toISOString();
    expect(
      (await call(daemon, 'POST', `/v1/sandboxes/${id}/renew-expiration`, { expiresAt: soon })).status,
    ).toBe(200);
    const gone = await until(
      'expiry',
      () => call(daemon, 'GET', `/v1/sandboxes/${id}`),
      (it) => it.status === 404,
    );
    expect(gone.body.message).toMatch(/expired/);
  });
});

/** Runs the daemon's command to its end. */
async function serve(
  env: Record<string, string>,
  ...args: string[]
): Promise<{ code: number; stderr: string }> {
  const child = spawn(join(import.meta.dirname, '../../bin/glovebox'), ['serve', ...args], {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let stderr = '';
  child.stderr.on('data', (text) => {
    stderr += text;
  });
  const [code] = await once(child, 'exit');
  return { code, stderr };
}

test('two daemons with two homes run side by side; a taken port and a taken home are refused', async () => {
  const first = await startDaemon();
  const second = await startDaemon();
  expect(first.url).not.toBe(second.url);
  const port = new URL(first.url).port;
  const takenPort = await serve({ GLOVEBOX_HOME: `${second.home}-third` }, '--port', port);
  expect(takenPort.code).toBe(69);
  expect(takenPort.stderr).toMatch(new RegExp(port));
  const takenHome = await serve({ GLOVEBOX_HOME: first.home }, '--port', '0');
  expect(takenHome.code).toBe(75);
  expect(takenHome.stderr).toMatch(/another glovebox daemon/);
  for (const daemon of [first, second]) {
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(daemon.home);
  }
  await expectNothingLeft(`${second.home}-third`);
});

test('what the daemon was started with stays out of the sandboxes', async () => {
  const secret = openSync('/etc/hostname', 'r');
  const daemon = await startDaemon({ inherit: secret });
  closeSync(secret);
  const id = await create(daemon);
  const { stdout } = await run(daemon, id, 'readlink /proc/1/fd/* /proc/self/fd/*');
  expect(stdout).toContain('/dev/null');
  expect(stdout).not.toContain('hostname');
  await remove(daemon, id);
  expect(await daemon.stop()).toBe(0);
  await expectNothingLeft(daemon.home);
});

test('an unknown key in the configuration is refused with its line and a suggestion', async () => {
  const daemon = await startDaemon();
  await daemon.stop();
  const { writeFile } = await import('node:fs/promises');
  await writeFile(join(daemon.home, 'config.toml'), '[server]\nhost = "127.0.0.1"\nprot = 9\n');
  const { code, stderr } = await serve({ GLOVEBOX_HOME: daemon.home });
  expect(code).toBe(78);
  expect(stderr).toMatch(/config\.toml:3.*prot.*port/s);
  await expectNothingLeft(daemon.home);
});

test('without a Docker engine the answer says what is missing, and bubblewrap goes on', async () => {
  const daemon = await startDaemon({ env: { DOCKER_HOST: 'unix:///nonexistent/docker.sock' } });
  const { status, body } = await call(daemon, 'POST', '/v1/sandboxes', {
    image: { uri: 'busybox' },
    entrypoint: ['true'],
    resourceLimits: {},
    extensions: { 'glovebox.runtime': 'docker' },
  });
  expect(status).toBeGreaterThanOrEqual(500);
  expect(body.message).toMatch(/docker/i);
  const id = await create(daemon);
  await remove(daemon, id);
  await daemon.stop();
  await expectNothingLeft(daemon.home);
});
