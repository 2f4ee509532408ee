// Synchronised folders in real sandboxes: edits on both sides, conflicts, a daemon that is killed in the middle, stops. Nothing is lost, nothing is left.
import {
  chownSync,
  existsSync,
  lstatSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { type Sandbox, SandboxClient } from '../../sdk/src/index.ts';
import { call } from '../client.ts';
import { expectNothingLeft, makeHome, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { imageFor, runtimes } from '../runtimes.ts';

const root = process.getuid?.() === 0;

describe.each(runtimes)('a synchronised folder in %s', (runtime) => {
  test('both sides come to the other; conflicts, a killed daemon, a stop and a removal lose nothing', async () => {
    const host = mkdtempSync(join(tmpdir(), 'glovebox-synced-'));
    const home = makeHome();
    onTestFinished(() => rmSync(host, { recursive: true, force: true }));
    const at = (name: string) => join(host, name);
    const text = (name: string) => (existsSync(at(name)) ? readFileSync(at(name), 'utf8') : undefined);
    const came = (name: string, content: string) =>
      until(
        name,
        () => text(name),
        (it) => it === content,
      );
    for (const name of ['a', 'both']) writeFileSync(at(name), 'host\n');
    writeFileSync(at('.env'), 'SECRET\n');
    if (root) for (const name of ['.', 'a', 'both']) chownSync(at(name), 4711, 4712);

    let daemon: TestDaemon = await startDaemon({ home, runtime });
    onTestFinished(() => daemon.kill());
    const image = runtime === 'docker' ? await imageFor(runtime, daemon, 'busybox') : 'host';
    const create = async () =>
      await new SandboxClient({ home }).create({
        ...{ image, runtime, keep: true, timeout: null, workspaces: [{ path: host, mode: 'sync' }] },
      });
    let sandbox: Sandbox = await create();
    const { id } = sandbox;
    const sh = async (line: string) => (await sandbox.run(line, { cwd: host, check: true })).stdout;
    const status = async () => {
      const { body } = await call(daemon, 'GET', `/v1/sandboxes/${id}/workspaces/sync`);
      return (body.items as { state: string; conflicts: { path: string; kept: string }[] }[])[0];
    };
    const again = async () => {
      daemon = await startDaemon({ home, runtime });
      sandbox = await new SandboxClient({ home }).connect(id);
    };

    // What the host has is there before the first command, but for what is hidden; what the guest makes comes back as the folder's owner's.
    expect(await sh('ls -A; cat a')).toBe('a\nboth\nhost\n');
    await sh('mkdir d; echo guest >d/new; chmod +x d/new');
    await came('d/new', 'guest\n');
    expect(lstatSync(at('d/new')).mode & 0o111).not.toBe(0);
    if (root) expect(lstatSync(at('d/new'))).toMatchObject({ uid: 4711, gid: 4712 });
    writeFileSync(at('from-host'), 'x\n');
    await until(
      'from-host',
      () => sh('cat from-host 2>/dev/null || true'),
      (it) => it === 'x\n',
    );

    // Killed while files come in; both sides go on meanwhile, and one file is changed by both.
    await sh(`(until ls both.sandbox-conflict-*; do echo by the guest >both; sleep 0.1; done) >/dev/null 2>&1 &
      i=0; while [ $i -lt 300 ]; do echo $i >many-$i; i=$((i+1)); done`);
    const many = () => readdirSync(host).filter((it) => it.startsWith('many-')).length;
    await until('some came', many, (it) => it > 0);
    await daemon.kill();
    writeFileSync(at('both'), 'by the host\n');
    rmSync(at('from-host'));
    await again();
    await until('all came', many, (it) => it === 300);
    const deleted = () => sh('ls');
    await until('deleted in the guest', deleted, (it) => !it.includes('from-host'));
    const told = await until('the conflict is told', status, (it) => (it?.conflicts.length ?? 0) > 0);
    const kept = told?.conflicts[0]?.kept ?? '';
    expect(told?.conflicts[0]).toMatchObject({ path: 'both' });
    await came(kept, 'by the guest\n');
    await until(
      'the host’s stands',
      () => sh('cat both || true'),
      (it) => it === 'by the host\n',
    );
    expect(text('both')).toBe('by the host\n');

    // Whatever ends it, the last word of the guest is on the host by then; and what the host does meanwhile is in the guest when it goes on.
    await sh('echo 1 >before-leaving');
    await daemon.stop();
    expect(text('before-leaving')).toBe('1\n');
    await again();
    await sh('echo 2 >before-stop');
    await sandbox.stop();
    expect(text('before-stop')).toBe('2\n');
    rmSync(at('before-leaving'));
    writeFileSync(at('while-stopped'), '3\n');
    await sandbox.wake();
    expect(await sh('cat while-stopped; ls before-leaving || true')).toBe('3\n');
    await sh('echo 4 >before-removal');
    await sandbox.kill();
    expect(text('before-removal')).toBe('4\n');
    expect(text('.env')).toBe('SECRET\n');
    expect(readdirSync(host).filter((it) => it.startsWith('.glovebox-'))).toEqual([]);
    await daemon.stop();
    await expectNothingLeft(home);
  });
});
