// Callers with the API key alone, who are not the daemon's own user: of the host they get the folders that the configuration names, through whatever door.
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  realpathSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { call, create, list, remove, run } from '../client.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon } from '../daemon.ts';
import { runtimes } from '../runtimes.ts';

describe.skipIf(!runtimes.includes('bubblewrap'))('a caller without the owner’s key', () => {
  let daemon: TestDaemon;
  let top: string;
  let allowed: string;
  let secret: string;

  beforeAll(async () => {
    top = realpathSync(mkdtempSync(join(tmpdir(), 'hostile-caller-')));
    [allowed, secret] = [join(top, 'allowed'), join(top, 'secret')];
    for (const folder of [allowed, secret, join(allowed, 'project')]) mkdirSync(folder);
    writeFileSync(join(secret, 'key'), 'the host’s');
    symlinkSync(secret, join(allowed, 'link'));
    symlinkSync('..', join(allowed, 'project/up'));
    const home = makeHome();
    writeFileSync(join(home, 'config.toml'), `[storage]\nallowed_host_paths = ["${allowed}"]\n`);
    daemon = await startDaemon({ home, runtime: 'bubblewrap' });
  });
  afterAll(async () => {
    for (const { id } of await list(daemon)) await remove(daemon, id);
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(daemon.home);
    rmSync(top, { recursive: true, force: true });
  });

  const attempt = async (glovebox: object, headers: Record<string, string> = {}) =>
    await call(
      daemon,
      'POST',
      '/v1/sandboxes',
      { image: { uri: 'host' }, entrypoint: ['tail', '-f', '/dev/null'], resourceLimits: {}, glovebox },
      headers,
    );

  test('has a folder below what is allowed', async () => {
    const id = await create(daemon, { glovebox: { workspaces: [{ path: join(allowed, 'project') }] } });
    expect(
      (await run(daemon, id, `cat ${secret}/key ${allowed}/link/key; ls -d ${allowed}/project`)).stdout,
    ).toBe(`${allowed}/project\n`);
  });

  test('has no other folder, in no mode and however it is written', async () => {
    const paths = [
      ...[secret, join(allowed, 'link'), join(allowed, 'project/up/../secret'), `${allowed}/../secret`],
      ...[
        `${allowed}/project/up/up`,
        `/proc/self/root${secret}`,
        `/proc/${daemon.pid}/cwd`,
        `${allowed}//../secret`,
      ],
      ...[
        top,
        `${allowed}x`,
        '/',
        '/etc',
        '/root',
        '/proc/1/root',
        '/var/run',
        daemon.home,
        join(daemon.home, 'run'),
      ],
      ...['relative', '', `${secret}\n`, `${secret}\0`, '~/x'],
    ];
    for (const path of paths)
      for (const mode of path === secret ? ['mount', 'overlay', 'clone', 'sync'] : ['mount']) {
        const { status } = await attempt({ workspaces: [{ path, mode }] });
        expect([400, 403, 422], `${mode} ${path}`).toContain(status);
      }
    for (const key of ['', 'a guess', daemon.apiKey])
      expect((await attempt({ workspaces: [{ path: secret }] }, { 'Glovebox-Owner': key })).status).toBe(403);
  });

  test('cannot say in the body that it is the owner, nor how the walls are made', async () => {
    const { status } = await attempt({ byOwner: true, workspaces: [{ path: secret }] });
    expect(status).toBe(400);
    for (const extra of [
      { mounts: [{ hostPath: secret, guestPath: secret, readOnly: true }] },
      { workspaces: [{ path: join(allowed, 'project'), owner: { uid: 0, gid: 0 } }] },
      { workspaces: [{ path: join(allowed, 'project'), hostPath: secret }] },
      { workspaces: [{ path: join(allowed, 'project'), mode: 'overlay', hide: ['../../secret'] }] },
      { workspaces: [{ path: join(allowed, 'project'), mode: 'overlay', upper: secret }] },
    ])
      expect((await attempt(extra)).status, JSON.stringify(extra)).toBe(400);
  });

  test('cannot have files of an agent or a set-up come from the host or land on it', async () => {
    const mark = join(top, 'written');
    const file = (path: string, more: object = {}) => ({ path, content: 'x', ...more });
    expect((await attempt({ files: [file('/tmp/x', { source: join(secret, 'key') })] })).status).toBe(400);
    const definition = { name: 'thief', command: ['true'], image: 'host', files: [file(mark)] };
    for (const glovebox of [
      { agent: { ...definition, setup: [{ run: `cat ${secret}/key >/tmp/got; touch ${mark}; true` }] } },
      { files: [file(mark), file(`/proc/self/root${mark}`), file(`/tmp/../${mark}`)] },
      { setup: [{ run: `mkdir -p ${top}; touch ${mark}; cat ${secret}/key >/tmp/got || true`, user: '0' }] },
    ]) {
      const { status, body } = await attempt(glovebox);
      if (status === 202) {
        const got = await run(daemon, body.id as string, 'cat /tmp/got 2>/dev/null; true');
        expect(got.stdout).toBe('');
      } else expect([400, 403, 404, 422, 500], JSON.stringify(body)).toContain(status);
      expect(existsSync(mark)).toBe(false);
    }
    for (const agent of ['../../etc/passwd', '/etc/passwd', `${secret}/key`, '.', 'a/b'])
      expect((await attempt({ agent })).status, agent).toBeGreaterThanOrEqual(400);
  });

  test('cannot have secrets read from files, variables or commands of the host, nor Dockerfiles built', async () => {
    for (const source of [
      { type: 'file', path: join(secret, 'key') },
      { type: 'env', variable: 'PATH' },
      { type: 'command', command: ['touch', join(top, 'ran')] },
    ])
      expect((await call(daemon, 'PUT', '/v1/secrets', { name: 'github', source })).status).toBe(403);
    expect(existsSync(join(top, 'ran'))).toBe(false);
    expect((await call(daemon, 'POST', '/v1/templates/build?name=x&file=Dockerfile', {})).status).toBe(403);
    for (const name of ['../x', '/etc/passwd', 'a/../../b', 'x\nFROM y']) {
      const path = `/v1/templates/load?name=${encodeURIComponent(name)}&runtime=bubblewrap`;
      expect((await call(daemon, 'POST', path, {})).status, name).toBeGreaterThanOrEqual(400);
    }
  });

  test('does not come to read the keys, which nobody but the daemon’s user can', () => {
    for (const name of ['api-key', 'owner-key'])
      expect(statSync(join(daemon.home, name)).mode & 0o7777, name).toBe(0o600);
    expect(statSync(daemon.home).mode & 0o7777).toBe(0o700);
  });
});
