// A daemon killed in the middle of stopping or starting a container leaves one that the next daemon finds, can start and can remove.
import { execFileSync, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdirSync, readdirSync, realpathSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { makeHome } from '../../../test/daemon.ts';
import { dockerImage } from '../../../test/images.ts';
import { canCapture } from './capture.ts';

const present = process.env.GLOVEBOX_TEST_PRESENT?.split(',').includes('docker') ?? false;
const scenario = join(import.meta.dirname, '../../../test/docker-crash.ts');

describe.runIf(present)('docker: kill -9 of the daemon', () => {
  test('while it stops or starts a machine leaves one that the next daemon finds, starts and removes', {
    timeout: 180_000,
  }, () => {
    const home = realpathSync(makeHome());
    const homeId = randomBytes(6).toString('hex');
    for (const name of ['agent', 'run', 'machines', 'compiled']) mkdirSync(join(home, name));
    const containers = () =>
      execFileSync('docker', ['ps', '-aq', '--filter', `label=glovebox.home=${homeId}`], {
        encoding: 'utf8',
      });
    const crashAt = (moment: string) =>
      spawnSync(process.execPath, [scenario, home, homeId, dockerImage('busybox'), moment], {
        encoding: 'utf8',
        env: { ...process.env, NODE_COMPILE_CACHE: join(home, 'compiled') },
      });
    try {
      const calls = ['stop', 'start'].flatMap((it) => [`${it}:before`, `${it}:sent`, `${it}:answered`]);
      const moments = [...calls, ...(canCapture() ? ['nsenter:before'] : [])];
      for (const [index, moment] of moments.entries()) {
        const { signal, stdout, stderr } = crashAt(moment);
        expect({ signal, stdout }, `${moment}: ${stderr}`).toEqual({
          signal: 'SIGKILL',
          // What the one before left.
          stdout: index === 0 ? 'none\n' : 'stopped\n',
        });
      }
      expect(crashAt('none')).toMatchObject({ status: 0, stdout: 'stopped\n', stderr: '' });
      expect(containers()).toBe('');
      expect(readdirSync(join(home, 'machines'))).toEqual([]);
    } finally {
      const left = containers().split('\n').filter(Boolean);
      if (left.length > 0) execFileSync('docker', ['rm', '-f', ...left]);
      rmSync(home, { recursive: true });
    }
  });
});
