// The audit log of a real daemon: what people, programs and strangers did is in it, kill -9 loses nothing, and who changes it is found out.
import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { AuditEntry } from '../../src/contract/audit.ts';
import { call, create, remove, run } from '../client.ts';
import { commandLine, environmentOf } from '../command-line.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { runtimes } from '../runtimes.ts';

describe.skipIf(!runtimes.includes('bubblewrap'))('the audit log', () => {
  const home = makeHome();
  const glovebox = commandLine(environmentOf(home), () => home);
  let daemon: TestDaemon;

  beforeAll(async () => {
    daemon = await startDaemon({ home, runtime: 'bubblewrap' });
  });
  afterAll(async () => {
    await daemon.stop();
    await expectNothingLeft(home);
  });

  const entries = async (...args: string[]): Promise<AuditEntry[]> => {
    const { code, stdout, stderr } = await glovebox('audit', 'log', '--json', ...args);
    expect([code, stderr]).toEqual([0, '']);
    return JSON.parse(stdout).entries;
  };
  const verify = async (...args: string[]) => {
    const { code, stdout, stderr } = await glovebox('audit', 'verify', '--json', ...args);
    return { code, stderr, ...JSON.parse(stdout) };
  };

  test('create, exec, remove and a wrong key each have their lines', async () => {
    const id = await create(daemon);
    expect(await run(daemon, id, 'echo hunter2')).toMatchObject({ stdout: 'hunter2\n' });
    expect(await glovebox('exec', id, 'true')).toMatchObject({ code: 0 });
    await remove(daemon, id);
    expect(
      (await call(daemon, 'GET', '/v1/sandboxes', undefined, { 'OPEN-SANDBOX-API-KEY': 'wrong' })).status,
    ).toBe(401);
    const all = await until(
      'the log',
      () => entries('--sandbox', id),
      (it) => it.every(({ status }) => status !== undefined),
    );
    const [made, ...more] = all;
    expect(made).toMatchObject({
      operation: 'createSandbox',
      by: 'key',
      address: '127.0.0.1',
      status: 202,
      made: id,
    });
    expect(more.map((it) => it.sandbox)).toEqual(more.map(() => id));
    const told = more.map(({ operation, by, status }) => [operation, by, status]);
    expect(told).toContainEqual(['runCommand', 'key', 200]);
    // The command line shows whose it is.
    expect(told).toContainEqual(['startProcess', 'owner', 201]);
    expect(told).toContainEqual(['attachProcess', 'owner', 101]);
    expect(told.at(-1)).toEqual(['deleteSandbox', 'key', 204]);
    expect((await entries()).at(-1)).toMatchObject({
      event: 'refused',
      operation: 'listSandboxes',
      by: 'nobody',
      status: 401,
    });
    expect(JSON.stringify(await entries())).not.toContain('hunter2');
    const lines = (await glovebox('audit', 'log', '--limit', '1')).stdout;
    expect(lines).toMatch(
      /^\S+Z #\d+ by=nobody listSandboxes refused 401 address=127\.0\.0\.1 request=\S+\n$/,
    );
  });

  test('kill -9 in the middle of a call: its line is there, without an end, and the log is sound', async () => {
    const id = await create(daemon);
    const cut = run(daemon, id, 'sleep 1000').catch(() => undefined);
    const begun = async () => (await entries('--sandbox', id)).find((it) => it.operation === 'runCommand');
    const { seq } = (await until('the line', begun, (it) => it !== undefined)) as AuditEntry;
    await daemon.kill();
    await cut;
    expect(await verify()).toMatchObject({ code: 0, ok: true });
    // Without a daemon the files say the same.
    expect((await entries('--sandbox', id)).find((it) => it.seq === seq)).not.toHaveProperty('status');
    daemon = await startDaemon({ home, runtime: 'bubblewrap' });
    await remove(daemon, id);
    expect((await entries()).filter((it) => it.event === 'opened')).toHaveLength(2);
    expect(await verify()).toMatchObject({ code: 0, ok: true });
  });

  test('calls of Docker Sandboxes’ API are in it, too', async () => {
    const socket = join(home, 'sandboxes/sandboxd.sock');
    const status = execFileSync(
      'curl',
      [
        '-s',
        '-o',
        '/dev/null',
        '-w',
        '%{http_code}',
        '-X',
        'DELETE',
        '--unix-socket',
        socket,
        'http://d/vm/none',
      ],
      { encoding: 'utf8' },
    );
    expect(status).toBe('404');
    const found = await until('the call', entries, (all) =>
      all.some((it) => it.operation === 'sandboxd' && it.status !== undefined),
    );
    expect(found.findLast((it) => it.operation === 'sandboxd')).toMatchObject({
      ...{
        by: 'owner',
        address: 'sandboxd.sock',
        method: 'DELETE',
        params: { path: '/vm/none' },
        status: 404,
      },
    });
  });

  test.skipIf(process.getuid?.() !== 0)(
    'a full disk refuses changes with a clear answer, reading goes on, and so does everything when there is room',
    async () => {
      const id = await create(daemon);
      await daemon.stop();
      const folder = join(home, 'audit');
      const kept = join(home, 'kept');
      renameSync(folder, kept);
      mkdirSync(folder);
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=256k', 'none', folder]);
      try {
        cpSync(kept, folder, { recursive: true });
        daemon = await startDaemon({ home, runtime: 'bubblewrap' });
        const filler = join(folder, 'filler');
        expect(() => writeFileSync(filler, Buffer.alloc(512 * 1024))).toThrow('ENOSPC');
        // The page that is being written has some room left.
        const change = () => call(daemon, 'PATCH', `/v1/sandboxes/${id}/metadata`, { a: 'b' });
        const refused = await until('a refusal', change, ({ status }) => status !== 200);
        expect(refused).toMatchObject({
          status: 507,
          body: {
            code: 'SANDBOX::NO_SPACE',
            message: 'nothing can be changed now, because the audit log cannot be written: the disk is full',
          },
        });
        expect((await call(daemon, 'GET', `/v1/sandboxes/${id}`)).status).toBe(200);
        expect(await verify()).toMatchObject({ code: 0, ok: true });
        // What makes room is done all the same, and recorded when there is some.
        await remove(daemon, id);
        const another = () => call(daemon, 'POST', '/v1/policy/init', { preset: 'deny-all' });
        expect((await another()).status).toBe(507);
        rmSync(filler);
        await until('the removal in the log', entries, (all) =>
          all.some((it) => it.operation === 'deleteSandbox' && it.sandbox === id && it.status === 204),
        );
        expect((await another()).status).toBe(200);
        await daemon.stop();
        expect(await verify()).toMatchObject({ code: 0, ok: true });
        cpSync(folder, kept, { recursive: true });
      } finally {
        await daemon.stop();
        execFileSync('umount', [folder]);
      }
      rmSync(folder, { recursive: true });
      renameSync(kept, folder);
      daemon = await startDaemon({ home, runtime: 'bubblewrap' });
    },
  );

  test('a changed log is found out, with the place, and so is a hash that is in it no more', async () => {
    const { head } = await verify();
    expect(await verify('--head', head.hash)).toMatchObject({ code: 0 });
    expect(await verify('--head', 'f'.repeat(64))).toMatchObject({ code: 1, ok: false });
    expect(await glovebox('audit', 'verify', '--head', 'x')).toMatchObject({ code: 2 });
    await daemon.stop();
    const file = join(home, 'audit/audit-00000001.jsonl');
    const text = readFileSync(file, 'utf8');
    writeFileSync(file, text.replace('"by":"nobody"', '"by":"owner"'));
    const report = await verify();
    expect(report).toMatchObject({
      code: 1,
      ok: false,
      problem: { what: expect.stringContaining('was changed') },
    });
    expect((await glovebox('audit', 'verify')).stderr).toContain(`${file}, line ${report.problem.line}: `);
    writeFileSync(file, text);
    expect(await verify()).toMatchObject({ code: 0, ok: true });
    daemon = await startDaemon({ home, runtime: 'bubblewrap' });
  });
});
