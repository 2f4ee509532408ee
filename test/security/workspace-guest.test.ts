// A guest whose root is hostile, with folders of the host in its hands: it gets at nothing beside them, on this host nothing follows where it leads, and what
// is brought back is no more than files. Real walls, the daemon as root.
import { execFile, execFileSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  copyFileSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { type Sandbox, SandboxClient } from '../../sdk/src/index.ts';
import { expectNothingLeft, startDaemon, type TestDaemon, until } from '../daemon.ts';
import { dockerImage } from '../images.ts';
import { runtimes } from '../runtimes.ts';

const binary = join(import.meta.dirname, '../../bin/glovebox');
const owner = 4242;
const imageOf: Record<string, () => string> = {
  bubblewrap: () => 'host',
  docker: () => dockerImage('debian'),
};

/** Opens what lies behind a mount by its handle, as programs that broke out of containers did. */
const byHandle = `
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]
at = os.open(sys.argv[1], os.O_RDONLY)
handle = Handle(bytes=128); mount = ctypes.c_int()
if libc.name_to_handle_at(-100, sys.argv[1].encode(), ctypes.byref(handle), ctypes.byref(mount), 0) != 0:
    handle = Handle(bytes=8, type=1); handle.data[0] = 2
fd = libc.open_by_handle_at(at, ctypes.byref(handle), os.O_RDONLY)
print("opened" if fd >= 0 else os.strerror(ctypes.get_errno()))
`;

// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what it looks for
const playing = /[\u001b\u0007\u009b]/;

const isRoot = process.getuid?.() === 0;

describe.skipIf(!isRoot).each(runtimes)('%s', (runtime) => {
  let daemon: TestDaemon;
  let client: SandboxClient;
  let top: string;
  let project: string;
  let victim: string;

  beforeAll(async () => {
    daemon = await startDaemon({ runtime });
    client = new SandboxClient({ home: daemon.home });
  });
  afterAll(async () => {
    expect(await daemon.stop()).toBe(0);
    await expectNothingLeft(daemon.home);
  });

  beforeEach(() => {
    top = realpathSync(mkdtempSync(join(tmpdir(), 'hostile-guest-')));
    chmodSync(top, 0o755);
    [project, victim] = [join(top, 'project'), join(top, 'victim')];
    for (const folder of [project, victim]) {
      mkdirSync(folder);
      chownSync(folder, owner, owner);
    }
    writeFileSync(join(victim, 'f'), 'the host’s');
    chownSync(join(victim, 'f'), owner, owner);
    writeFileSync(join(top, 'beside'), 'the host’s');
  });
  afterEach(async () => {
    for (const { id } of await client.list()) await client.handle(id).kill();
    rmSync(top, { recursive: true, force: true });
  });

  const make = (mode: 'mount' | 'overlay', name?: string): Promise<Sandbox> =>
    client.create({
      ...{ runtime, image: imageOf[runtime]?.() ?? '', workspaces: [{ path: project, mode }], timeout: null },
      ...(name === undefined ? {} : { name }),
    });
  const sh = (sandbox: Sandbox, line: string) => sandbox.run(line, { cwd: project, user: '0' });
  const intact = () => {
    expect(readdirSync(victim)).toEqual(['f']);
    expect(readFileSync(join(victim, 'f'), 'utf8')).toBe('the host’s');
    expect(lstatSync(join(victim, 'f')).mode & 0o7777).toBe(0o644);
    expect(lstatSync(victim).uid).toBe(owner);
    expect(readFileSync(join(top, 'beside'), 'utf8')).toBe('the host’s');
  };

  test('the guest’s root gets from a mounted folder to nothing else of the host', async () => {
    // Only what the tries below could have made: an engine beside this test mounts what it likes.
    const mounts = () =>
      readFileSync('/proc/self/mountinfo', 'utf8')
        .split('\n')
        .filter((line) => line.includes(top) || line.includes('/mnt'));
    writeFileSync(join(project, 'others'), 'root’s alone', { mode: 0o600 });
    symlinkSync(join(top, 'beside'), join(project, 'out'));
    const sandbox = await make('mount');
    const before = mounts();
    const tries = [
      'cat out ../beside others',
      `ln -s ${victim}/f made; cat made; echo x >made`,
      `exec 9<.; cat /proc/self/fd/9/../beside /proc/self/fd/9/../victim/f; cat /proc/self/cwd/../beside`,
      `ln others hard && cat hard; mv others moved && cat moved; cp others copy && cat copy`,
      'chmod 644 others && cat others; chown 0 others && cat others; setfattr -n user.x -v 1 others',
      'mount --bind / /mnt; mount -o remount,rw,suid,dev . ; umount -l . && cat beside',
      'unshare -rm sh -c "umount -l .; cat beside; mount --bind . /mnt"',
      `for pid in /proc/[0-9]*; do cat $pid/root/${top}/beside $pid/cwd/../beside; done`,
      `python3 -c '${byHandle}' . | grep opened`,
    ];
    for (const line of tries) expect((await sh(sandbox, line)).stdout, line).toBe('');
    expect((await sh(sandbox, `python3 -c '${byHandle}' .`)).stdout).toMatch(/not permitted|denied/);
    expect(readFileSync(join(project, 'others'), 'utf8')).toBe('root’s alone');
    expect(mounts()).toEqual(before);
    intact();
  });

  test('devices and setuid programs in a mounted folder do nothing inside, and no device can be made', async () => {
    copyFileSync('/usr/bin/id', join(project, 'id'));
    chmodSync(join(project, 'id'), 0o4755);
    execFileSync('mknod', ['-m', '666', join(project, 'zero'), 'c', '1', '5']);
    execFileSync('mknod', ['-m', '666', join(project, 'disk'), 'b', '7', '0']);
    const sandbox = await make('mount');
    const as = (line: string, user: string) => sandbox.run(line, { cwd: project, user });
    expect((await sh(sandbox, 'head -c1 zero | wc -c; head -c1 disk | wc -c')).stdout).toBe('0\n0\n');
    // Where there is one user alone, it is that one.
    const user = '1000';
    expect((await as('./id -u; id -u', user)).stdout).toBe('1000\n1000\n');
    const made = await sh(
      sandbox,
      'mknod c c 1 5; mknod b b 7 0; mknod /tmp/c c 1 5; ls -d c b /tmp/c 2>/dev/null',
    );
    expect(made.stdout).toBe('');
    expect(readdirSync(project).sort()).toEqual(['disk', 'id', 'zero']);
  });

  test('what is applied has no special bits, belongs to the folder’s owner, and is no link out, device or pipe', async () => {
    const sandbox = await make('overlay', 'bits');
    await sandbox.run(
      [
        'cp /bin/true plain; chmod 7755 plain; mkdir folder; chmod 7777 folder; echo 1 >folder/file; chmod 4777 folder/file',
        'mkfifo pipe; ln -s /etc/shadow absolute; ln -s ../victim/f up; ln -s folder/../../victim/f sly; ln -s folder/file good',
        'mkdir -p .git/hooks x/.GIT; echo run >.git/hooks/pre-commit; echo run >x/.GIT/config; ln -s .git/hooks hooks',
      ].join('; '),
      { cwd: project },
    );
    const result = await sandbox.workspaces.apply();
    expect(result.applied.sort()).toEqual(['folder/file', 'good', 'plain']);
    expect(result.refused.map((it) => it.path).sort()).toEqual(
      ['.git', 'absolute', 'hooks', 'pipe', 'sly', 'up', 'x/.GIT'].sort(),
    );
    const found = execFileSync('find', [project, '-mindepth', '1', '-printf', '%P %m %U %y\n'], {
      encoding: 'utf8',
    });
    expect(found.trim().split('\n').sort()).toEqual([
      `folder 777 ${owner} d`,
      `folder/file 777 ${owner} f`,
      `good 777 ${owner} l`,
      `plain 755 ${owner} f`,
    ]);
    intact();
  });

  test('a guest that swaps folders for links while its changes are applied leads nobody astray', async () => {
    const sandbox = await make('overlay');
    await sandbox.start(
      `while :; do mkdir d; echo guest >d/f; chmod 4777 d/f; mv d old; ln -s ${victim} d; rm -rf old; rm d; done`,
      { cwd: project },
    );
    const seen = new Set<string>();
    for (let round = 0; round < 6; round += 1) {
      await sandbox.workspaces.apply({ conflicts: 'theirs' }).catch(() => {});
      for (const { path } of await sandbox.workspaces.changes()) seen.add(path);
      await sandbox.workspaces.checkpoint().catch(() => {});
    }
    await sandbox.workspaces.discard().catch(() => {});
    expect([...seen].some((path) => path.startsWith('d') || path.startsWith('old'))).toBe(true);
    intact();
  });

  test('nor does one that has the same folder mounted and swaps what the changes of another go to', async () => {
    mkdirSync(join(project, 'd'));
    writeFileSync(join(project, 'd/f'), '1');
    for (const path of ['d', 'd/f']) chownSync(join(project, path), owner, owner);
    const overlaid = await make('overlay');
    await overlaid.run('echo 2 >d/f; mkdir -p d/new/deep; echo 3 >d/new/deep/f; chmod 4777 d/f', {
      cwd: project,
    });
    const attacker = await make('mount');
    await attacker.start(
      `while :; do mv d away; ln -s ${victim} d; rm d; mv away d; rm -rf d/new; ln -s ${victim} d/new; rm d/new; done`,
      { cwd: project },
    );
    let applied = 0;
    for (let round = 0; round < 10; round += 1) {
      const result = await overlaid.workspaces.apply({ conflicts: 'theirs' }).catch(() => undefined);
      applied += result?.applied.length ?? 0;
      await overlaid.workspaces.discard({ paths: ['d/f'] }).catch(() => {});
      await overlaid
        .run('echo 2 >d/f; mkdir -p d/new/deep; echo 3 >d/new/deep/f', { cwd: project })
        .catch(() => {});
    }
    expect(applied).toBeGreaterThan(0);
    intact();
  });

  test('names and contents that play with a terminal are told without playing', async () => {
    const sandbox = await make('overlay', 'names');
    await sandbox.run(
      `printf x >"$(printf 'a\\033]0;owned\\007\\nb')"; printf x >"$(printf '\\377\\376')"; printf '\\033[2J\\033]52;c;b3du\\007\\n' >content; ln -s "$(printf '/\\033[31m')" link`,
      { cwd: project },
    );
    const env = { ...process.env, GLOVEBOX_HOME: daemon.home, TERM: 'xterm', NO_COLOR: '1' };
    const run = promisify(execFile);
    for (const words of ['diff names', 'diff names --stat', 'diff names --name-only', 'diff names --json'])
      expect((await run('script', ['-qec', `${binary} ${words}`, '/dev/null'], { env })).stdout).not.toMatch(
        playing,
      );
    const result = await sandbox.workspaces.apply();
    expect(result.applied).toHaveLength(3);
    expect(readdirSync(project)).toContain('a\u001b]0;owned\u0007\nb');
    const plain = await run(binary, ['apply', 'names', '--dry-run'], { env }).catch((it) => it);
    expect(`${plain.stdout}${plain.stderr}`).not.toMatch(playing);
  });

  test('a clone’s git that speaks to the terminal, or hands out what is broken, changes nothing on the host', async () => {
    for (const args of [
      ['init', '-q', '-b', 'trunk'],
      ['commit', '-q', '--allow-empty', '-m', 'one'],
    ])
      execFileSync('git', ['-c', 'safe.directory=*', '-c', 'user.name=t', '-c', 'user.email=t@t', ...args], {
        ...{ cwd: project, uid: owner, gid: owner, env: { PATH: process.env.PATH ?? '', HOME: top } },
      });
    const sandbox = await client.create({
      ...{ runtime, image: imageOf[runtime]?.() ?? '', name: 'liar', keep: true },
      env: { PATH: '/opt/first:/usr/bin:/bin' },
      workspaces: [{ path: project, mode: 'clone' }],
    });
    const heads = () => readFileSync(join(project, '.git/refs/heads/trunk'), 'utf8');
    const before = heads();
    // What stands first in PATH is what answers; it says what servers say beside the pack, and a reference that would be one of the host's own.
    const said = '\\033]0;owned\\007\\033[2J';
    await sandbox.run(
      `mkdir /opt/first; printf '#!/bin/sh\\nprintf "${said}\\\\n" >&2\\nprintf "0032ERR ${said}  and more, and more, and more..\\\\n"\\n' >/opt/first/git-upload-pack; chmod 755 /opt/first/git-upload-pack`,
      { user: '0' },
    );
    const env = { ...process.env, GLOVEBOX_HOME: daemon.home };
    const fetched = await promisify(execFile)(binary, ['fetch', 'liar'], { env }).catch((it) => it);
    expect(`${fetched.stdout}${fetched.stderr}`).not.toMatch(playing);
    expect(fetched.stderr).toContain('owned');
    expect(heads()).toBe(before);
    expect(statSync(join(project, '.git/config')).uid).toBe(owner);
    await sandbox.kill();
    await until(
      'the remote',
      () => readFileSync(join(project, '.git/config'), 'utf8'),
      (it) => !it.includes('sandbox-liar'),
    );
  });
});
