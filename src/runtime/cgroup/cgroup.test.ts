// Control groups: the first generation on this host's own, the second on a folder that looks like one.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import { type Cgroup, Cgroups } from './cgroup.ts';
import { openCgroups } from './open.ts';
import { openV1 } from './v1.ts';
import { openV2, V2Dialect } from './v2.ts';

const soon = () => AbortSignal.timeout(30_000);
const mebibyte = 2 ** 20;

describe('the second generation, on a folder', () => {
  const base = mkdtempSync(join(tmpdir(), 'glovebox-cgroup-'));
  afterEach(() => rmSync(base, { recursive: true, force: true }));

  const write = (path: string, text: string) => {
    mkdirSync(join(base, path, '..'), { recursive: true });
    writeFileSync(join(base, path), text);
  };
  const read = (path: string) => readFileSync(join(base, path), 'utf8');

  test('limits are written, swap is off, and every group above hands the controllers down', () => {
    write('glovebox/home/a/memory.swap.max', 'max');
    const groups = new Cgroups(new V2Dialect(base, ['memory', 'pids', 'cpu']), 'home');
    expect(groups).toMatchObject({
      mode: 'cgroup-v2',
      freezes: true,
      holds: new Set(['memoryBytes', 'pids', 'cpu']),
    });
    groups.make('a', { memoryBytes: 64 * mebibyte, pids: 20, cpu: 1.5 });
    expect(read('glovebox/home/a/memory.max')).toBe(String(64 * mebibyte));
    expect(read('glovebox/home/a/memory.swap.max')).toBe('0');
    expect(read('glovebox/home/a/pids.max')).toBe('20');
    expect(read('glovebox/home/a/cpu.max')).toBe('150000 100000');
    for (const path of ['glovebox', 'glovebox/home'])
      expect(read(`${path}/cgroup.subtree_control`)).toBe('+memory +pids +cpu');
    expect(groups.ids()).toEqual(['a']);
  });

  test('a process is written into its group, which the guest sees as the whole tree', async () => {
    const group = new Cgroups(new V2Dialect(base, ['pids']), 'home').make('a', {});
    expect(await group.admit({ pid: 4242, uid: 1 })).toEqual([]);
    expect(read('glovebox/home/a/cgroup.procs')).toBe('4242');
    expect(group.views).toEqual([{ hostPath: join(base, 'glovebox/home/a'), guestPath: '/sys/fs/cgroup' }]);
  });

  test('freezing waits until the kernel says that it is done, and counts come from the event files', async () => {
    const group = new Cgroups(new V2Dialect(base, ['memory']), 'home').make('a', {});
    write('glovebox/home/a/cgroup.events', 'populated 1\nfrozen 0\n');
    const frozen = group.freeze(soon());
    write('glovebox/home/a/cgroup.events', 'populated 1\nfrozen 1\n');
    await frozen;
    expect(read('glovebox/home/a/cgroup.freeze')).toBe('1');
    write('glovebox/home/a/memory.events', 'low 0\noom 3\noom_kill 2\n');
    expect(group.oomKills).toBe(2);
    expect(group.memoryPeak).toBeUndefined();
    write('glovebox/home/a/memory.peak', '4096\n');
    expect(group.memoryPeak).toBe(4096);
    expect(group.frozen).toBe(true);
  });

  test('a freeze that is given up leaves the group running', async () => {
    const group = new Cgroups(new V2Dialect(base, []), 'home').make('a', {});
    await expect(group.freeze(AbortSignal.abort())).rejects.toMatchObject({ code: 'aborted' });
    expect(read('glovebox/home/a/cgroup.freeze')).toBe('0');
  });

  test('an ordinary user gets what was delegated to it, and nothing else', () => {
    const mounts = `30 25 0:26 / ${base} rw - cgroup2 cgroup2 rw`;
    write('cgroup.controllers', 'cpu memory pids io');
    write('cgroup.subtree_control', '');
    write('user/own/cgroup.controllers', 'memory pids\n');
    write('user/own/cgroup.subtree_control', '');
    expect(openV2(mounts, '0::/user/own\n', { root: false })?.roots).toEqual([
      join(base, 'user/own/glovebox'),
    ]);
    expect(openV2(mounts, '0::/user/own/glovebox-daemon\n', { root: false })?.holds).toEqual(
      new Set(['memoryBytes', 'pids']),
    );
    expect(openV2(mounts, '0::/user/other\n', { root: false })).toBeUndefined();
    expect(openV2(mounts, '0::/user/own\n', { root: true })?.roots).toEqual([join(base, 'glovebox')]);
    expect(openV2('', '0::/\n', { root: true })).toBeUndefined();
  });

  test('hierarchies of the first generation are told apart by their controllers', () => {
    for (const name of ['memory', 'cpu,cpuacct', 'pids']) mkdirSync(join(base, name), { recursive: true });
    const mounts = ['memory', 'cpu,cpuacct', 'pids']
      .map(
        (name, at) =>
          `3${at} 25 0:2${at} / ${join(base, name)} rw,nosuid shared:9 - cgroup cgroup rw,${name}`,
      )
      .join('\n');
    const dialect = openV1(mounts);
    expect(dialect).toMatchObject({
      mode: 'cgroup-v1',
      freezes: false,
      holds: new Set(['memoryBytes', 'pids', 'cpu']),
    });
    expect(dialect?.roots).toHaveLength(3);
    expect(openV1('1 1 0:1 / / rw - ext4 /dev/sda rw')).toBeUndefined();
  });
});

const own = openCgroups('cgroup-test');

describe.runIf(own !== undefined)('the groups of this host', () => {
  const groups = own as Cgroups;
  const children: ChildProcess[] = [];
  afterEach(async () => {
    for (const child of children.splice(0)) child.kill('SIGKILL');
    for (const id of groups.ids()) await groups.of(id).remove(soon());
  });

  /** A shell that joins a group, says so, and goes on with the script. */
  const join = async (group: Cgroup, script: string): Promise<ChildProcess> => {
    const child = spawn('sh', ['-c', `read -r steps; eval "$steps"; echo in; ${script}`], {
      stdio: ['pipe', 'pipe', 'ignore'],
    });
    children.push(child);
    const files = await group.admit({ pid: child.pid as number, uid: 0 });
    child.stdin?.write(`${files.map((file) => `echo 0 >${file}`).join(';') || ':'}\n`);
    await once(child.stdout as NodeJS.ReadableStream, 'data');
    return child;
  };

  test('whoever joins is inside, is killed with the group, and the group is gone', async () => {
    const group = groups.make('joined', { pids: 10 });
    const child = await join(group, 'sleep 1000 & wait');
    expect(group.pids()).toContain(child.pid);
    const exited = once(child, 'exit');
    await group.remove(soon());
    expect((await exited)[1]).toBe('SIGKILL');
    expect(groups.ids()).toEqual([]);
    await group.remove(soon());
  });

  test('a frozen group runs nothing, thaws, and can be removed frozen', async () => {
    const group = groups.make('frozen', {});
    const child = await join(group, 'while read -r line; do echo "$line"; done');
    await group.freeze(soon());
    expect(group.frozen).toBe(true);
    const answer = once(child.stdout as NodeJS.ReadableStream, 'data');
    child.stdin?.write('hello\n');
    expect(readFileSync(`/proc/${child.pid}/cgroup`, 'utf8')).toContain('cgroup-test/frozen');
    await group.thaw(soon());
    expect(String((await answer)[0])).toBe('hello\n');
    await group.freeze(soon());
    await group.remove(soon());
    expect(group.frozen).toBe(false);
  });

  test.runIf(groups?.holds.has('memoryBytes'))(
    'the kernel counts whom it kills for want of memory',
    async () => {
      const group = groups.make('bomb', { memoryBytes: 16 * mebibyte });
      const child = await join(group, 'exec tail /dev/zero');
      expect((await once(child, 'exit'))[1]).toBe('SIGKILL');
      expect(group.oomKills).toBeGreaterThan(0);
      expect(group.memoryPeak).toBeGreaterThan(8 * mebibyte);
    },
  );

  test('an impossible limit is a failure that leaves no group', () => {
    expect(() => groups.make('impossible', { pids: Number.NaN })).toThrow(/control groups of impossible/);
    expect(groups.ids()).toEqual([]);
    for (const view of groups.of('impossible').views) expect(existsSync(view.hostPath)).toBe(false);
  });
});
