// A real home, backed up while its daemon works: damaged and restored in its place it has its sandboxes again, as they ran; restored elsewhere it tells where they stayed.
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { call, create, list, remove, run } from '../client.ts';
import { commandLine, environmentOf } from '../command-line.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { runtimes } from '../runtimes.ts';

describe.skipIf(!runtimes.includes('bubblewrap'))('a backup', () => {
  const home = makeHome();
  const elsewhere = mkdtempSync(join(tmpdir(), 'glovebox-backups-'));
  const database = join(home, 'glovebox.db');
  const glovebox = commandLine(environmentOf(home), () => elsewhere);
  let daemon: TestDaemon;

  const start = async () => {
    daemon = await startDaemon({ home, runtime: 'bubblewrap' });
  };
  beforeAll(start);
  afterAll(async () => {
    await daemon.stop();
    rmSync(elsewhere, { recursive: true, force: true });
    await expectNothingLeft(home);
  });

  const allow = async (host: string) => {
    const rule = { decision: 'allow', resources: [host] };
    expect((await call(daemon, 'POST', '/v1/policy/rules', rule)).status).toBe(201);
  };
  const rules = async () =>
    ((await call(daemon, 'GET', '/v1/policy/rules')).body.items as { resources: string[] }[]).flatMap(
      (it) => it.resources,
    );
  const running = (id: string) => run(daemon, id, 'ps -o args | grep -c "[s]leep 4321"');

  test('made under load, it brings back a damaged home with its sandboxes as they run', async () => {
    const kept = await create(daemon, { metadata: { 'glovebox.name': 'kept' } });
    expect(await glovebox('exec', '-d', kept, 'sleep', '4321')).toMatchObject({ code: 0 });
    await allow('before.example.com');
    const load = { over: false };
    const working = (async () => {
      while (!load.over) await remove(daemon, await create(daemon));
    })();
    const file = join(elsewhere, 'home.tar.zst');
    const made = await glovebox('backup', '--json', file).finally(() => {
      load.over = true;
    });
    await working;
    expect(made.code, made.stderr).toBe(0);
    expect(JSON.parse(made.stdout)).toMatchObject({ file, home, keys: false, leftOut: [], warnings: [] });
    expect(statSync(file).mode & 0o777).toBe(0o600);
    expect(readdirSync(elsewhere)).toEqual(['home.tar.zst']);

    const later = await create(daemon);
    await allow('after.example.com');
    expect(await glovebox('restore', file)).toMatchObject({
      ...{ code: 1, stdout: '', stderr: expect.stringContaining(`${home} is not empty`) },
    });
    expect(await glovebox('restore', '--force', file)).toMatchObject({
      ...{ code: 1, stderr: expect.stringContaining(`a daemon runs in ${home}`) },
    });
    await daemon.kill();
    // Half of each page that holds something, as a bad disk gives it back.
    const bytes = readFileSync(database);
    for (let at = 4_096; at < bytes.length; at += 4_096) bytes.fill(0x5a, at, at + 2_048);
    writeFileSync(database, bytes);
    rmSync(`${database}-wal`, { force: true });
    for (const line of [['ls'], ['backup', join(elsewhere, 'of-damage.tar')]]) {
      const { code, stderr } = await glovebox(...line);
      expect([line[0], code]).toEqual([line[0], 69]);
      expect(stderr).toMatch(/glovebox\.db: it is damaged: .*\n.*glovebox restore FILE --force/);
    }
    const told = await glovebox('doctor');
    expect(told).toMatchObject({
      code: 1,
      stdout: expect.stringMatching(/^FAIL {2}database: .*it is damaged/m),
    });
    expect(told.stdout).toContain('glovebox restore FILE --force');
    expect(readdirSync(elsewhere)).toEqual(['home.tar.zst']);

    const restored = await glovebox('restore', '--force', '--json', file);
    expect(restored.code, restored.stderr).toBe(0);
    const report = JSON.parse(restored.stdout);
    expect(report).toMatchObject({ home, here: true, warnings: [] });
    expect(readFileSync(join(report.aside, 'glovebox.db'))).toEqual(bytes);
    await start();
    // Of those that came and went while the backup was made some may be in it, and are lost.
    const alive = async () => (await list(daemon)).filter(({ state }) => state === 'Running');
    expect((await until('the sandbox', alive, (it) => it.length === 1)).map(({ id }) => id)).toEqual([kept]);
    expect(await running(kept)).toMatchObject({ stdout: '1\n' });
    expect(await rules()).toEqual(['before.example.com']);
    expect((await call(daemon, 'GET', `/v1/sandboxes/${later}`)).status).toBe(404);
    expect(await glovebox('audit', 'verify')).toMatchObject({ code: 0 });
    rmSync(report.aside, { recursive: true });
    for (const { id } of await list(daemon)) if (id !== kept) await remove(daemon, id);
  });

  test('of a home whose daemon was killed, it has all that was acknowledged; elsewhere it tells where the sandboxes stayed', async () => {
    const file = join(elsewhere, 'keys.tar');
    const copy = join(elsewhere, 'copy');
    await allow('last.example.com');
    const secret = { name: 'github', source: { type: 'value', value: 'hunter2' } };
    expect((await call(daemon, 'PUT', '/v1/secrets', secret)).status).toBe(200);
    await daemon.kill();
    expect(await glovebox('backup', '--with-keys', file)).toMatchObject({ code: 0, stdout: `${file}\n` });
    expect(readFileSync(file).includes('hunter2')).toBe(false);
    expect(await glovebox('restore', file, '--home', copy)).toMatchObject({ code: 0, stdout: `${copy}\n` });
    const open = readdirSync(copy, { recursive: true, withFileTypes: true }).filter((it) => {
      const { mode } = statSync(join(it.parentPath, it.name));
      return it.name !== 'daemon.lock' && (mode & 0o077) !== 0;
    });
    expect(open.map((it) => it.name)).toEqual([]);
    const other = await startDaemon({ home: copy, runtime: 'bubblewrap' });
    try {
      expect(other.apiKey).toBe(daemon.apiKey);
      expect(await list(other)).toEqual([]);
      const there = commandLine(environmentOf(copy), () => elsewhere);
      const why = await there('why', 'kept');
      expect(why).toMatchObject({ code: 0, stdout: expect.stringContaining(`in ${home}: the backup of`) });
      const { items } = (await call(other, 'GET', '/v1/policy/rules')).body as {
        items: { resources: string[] }[];
      };
      expect(items.flatMap((it) => it.resources)).toContain('last.example.com');
      const secrets = (await call(other, 'GET', '/v1/secrets')).body.items;
      expect(secrets).toMatchObject([{ name: 'github' }]);
      expect(await there('audit', 'verify')).toMatchObject({ code: 0 });
    } finally {
      await other.stop();
    }
    await start();
    const [kept] = await list(daemon);
    expect(await running(kept?.id as string)).toMatchObject({ stdout: '1\n' });
    await remove(daemon, kept?.id as string);
  });

  test('where it would do harm it is refused', async () => {
    const inside = await glovebox('backup', join(home, 'mine.tar'));
    expect(inside).toMatchObject({
      code: 2,
      stderr: expect.stringContaining('would lie in the home folder'),
    });
    expect(await glovebox('backup', elsewhere)).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('is not a file'),
    });
    expect(await glovebox('backup', '--json', '-')).toMatchObject({ code: 2, stdout: '' });
    expect(await glovebox('restore', join(elsewhere, 'none.tar'))).toMatchObject({
      ...{ code: 1, stderr: expect.stringContaining('cannot be read') },
    });
    const empty = join(elsewhere, 'empty');
    const nothing = commandLine(environmentOf(empty), () => elsewhere);
    expect(await nothing('backup', 'x.tar')).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('nothing to back up'),
    });
    const foreign = join(elsewhere, 'foreign.tar');
    writeFileSync(foreign, 'something');
    expect(await nothing('restore', foreign)).toMatchObject({
      code: 2,
      stderr: expect.stringContaining('no backup of glovebox'),
    });
    expect(readdirSync(elsewhere)).not.toContain('empty');
    const away = commandLine(environmentOf(home, { GLOVEBOX_URL: daemon.url }), () => elsewhere);
    expect(await away('backup', 'x.tar')).toMatchObject({
      code: 2,
      stderr: expect.stringContaining('names a server elsewhere'),
    });
  });
});
