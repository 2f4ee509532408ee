// A clone in a real sandbox: committed inside, fetched on the host with git alone and with `glovebox fetch`, gone with the sandbox but for what was fetched.
import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { SandboxClient } from '../../sdk/src/index.ts';
import { expectNothingLeft, startDaemon } from '../daemon.ts';
import { runtimes } from '../runtimes.ts';

const binary = join(import.meta.dirname, '../../bin/glovebox');

test.skipIf(!runtimes.includes('bubblewrap'))(
  'what is committed in a clone comes back, and the clone does not',
  async () => {
    const repository = mkdtempSync(join(tmpdir(), 'glovebox-project-'));
    const daemon = await startDaemon({ runtime: 'bubblewrap' });
    const env = { ...process.env, GLOVEBOX_HOME: daemon.home };
    const git = async (...args: string[]) =>
      (await promisify(execFile)('git', ['-C', repository, ...args], { env })).stdout.trim();
    try {
      await git('init', '-q', '-b', 'trunk');
      await git('config', 'user.name', 'Ada');
      await git('config', 'user.email', 'ada@example.com');
      writeFileSync(join(repository, 'a.txt'), 'one\n');
      await git('add', '.');
      await git('commit', '-q', '-m', 'one');
      const client = new SandboxClient({ home: daemon.home });
      const sandbox = await client.create({
        ...{ image: 'host', runtime: 'bubblewrap', name: 'web', keep: true },
        workspaces: [{ path: repository, mode: 'clone' }],
      });
      const { stdout } = await sandbox.run(
        'git status --porcelain && echo two >a.txt && git commit -qam two && git log -1 --format=%an:%s',
        { cwd: repository, check: true },
      );
      expect(stdout).toBe('Ada:two\n');
      expect(await git('status', '--porcelain')).toBe('');
      await git('fetch', '-q', 'sandbox-web');
      expect(await git('log', '-1', '--format=%s', 'sandbox-web/trunk')).toBe('two');
      // The other way: a branch of its own arrives, and the one that the guest has checked out is not pulled from under it.
      await git('push', '-q', 'sandbox-web', 'trunk:from-host');
      const arrived = await sandbox.run('git log -1 --format=%s from-host', { cwd: repository, check: true });
      expect(arrived.stdout).toBe('one\n');
      await expect(git('push', '-q', '-f', 'sandbox-web', 'trunk:trunk')).rejects.toThrow(
        /refusing to update checked out branch/,
      );
      await git('push', '-q', 'sandbox-web', '--delete', 'from-host');
      await sandbox.run('git switch -qc more && git commit -q --allow-empty -m three', {
        cwd: repository,
        check: true,
      });
      await sandbox.stop();
      const fetched = await promisify(execFile)(binary, ['fetch', 'web'], { env });
      expect(fetched.stdout).toMatch(
        /^sandbox-web\/more +[0-9a-f]+ {2}three\nsandbox-web\/trunk +[0-9a-f]+ {2}two\n$/,
      );
      await sandbox.kill();
      expect(await git('remote')).toBe('');
      expect(await git('for-each-ref', '--format=%(refname)', 'refs/sandboxes')).toBe(
        'refs/sandboxes/web/more\nrefs/sandboxes/web/trunk',
      );
    } finally {
      await daemon.stop();
      rmSync(repository, { recursive: true, force: true });
    }
    await expectNothingLeft(daemon.home);
  },
);
