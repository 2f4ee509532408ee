// A backup holds what belongs into one, whole, also while its files grow; and a restore makes a home of it or leaves everything as it was, whatever the archive holds.
import { existsSync, writeFileSync } from 'node:fs';
import {
  appendFile,
  chmod,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rm,
  stat,
  symlink,
  writeFile,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { afterEach, beforeEach, expect, test } from 'vitest';
import {
  device,
  file,
  folder,
  hardLink,
  longName,
  pieces,
  type RawEntry,
  sha256,
  symlink as symlinkEntry,
  tar,
} from '../image/tar.fixture.ts';
import { AuditLog } from '../journal/audit.ts';
import { verifyAudit } from '../journal/audit-verify.ts';
import { Failure } from '../lib/failure.ts';
import { refuseUnfinishedRestore } from './contents.ts';
import { type RestoreTarget, restoreBackup } from './restore.ts';
import { type BackupSource, writeBackup } from './write.ts';

let top: string;
let home: string;
let target: string;
beforeEach(async () => {
  top = await mkdtemp(join(tmpdir(), 'backup-'));
  home = join(top, 'home');
  target = join(top, 'target');
});
afterEach(() => rm(top, { recursive: true, force: true }));

const put = async (path: string, text: string, mode = 0o644) => {
  await mkdir(dirname(join(home, path)), { recursive: true });
  await writeFile(join(home, path), text);
  await chmod(join(home, path), mode);
};

/** All files below, with their content; those that are executable with a star. */
async function tree(root: string): Promise<Record<string, string>> {
  const found: Record<string, string> = {};
  for (const entry of await readdir(root, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name);
    const { mode } = await stat(path);
    if (!entry.isDirectory())
      found[`${path.slice(root.length + 1)}${(mode & 0o100) === 0 ? '' : '*'}`] = await readFile(
        path,
        'utf8',
      );
    expect([0o600, 0o700], path).toContain(mode & 0o777);
  }
  return found;
}

const machine = 'a'.repeat(64);
const about = { glovebox: '1.2.3', createdAt: '2026-01-02T03:04:05.000Z', host: 'box', machine };

async function archiveOf(more: Partial<BackupSource> = {}): Promise<Buffer> {
  const taken: Uint8Array[] = [];
  await writeBackup(
    {
      ...{ home, withKeys: false, about: { ...about, home } },
      copyDatabase: (to) => writeFileSync(to, 'the database'),
      ...more,
    },
    async (archive) => {
      for await (const piece of archive) taken.push(piece);
    },
  );
  return Buffer.concat(taken);
}

const restored: { elsewhere?: string | undefined }[] = [];
beforeEach(() => restored.splice(0));
function restore(archive: Buffer, more: Partial<RestoreTarget> = {}) {
  return restoreBackup(pieces(archive), {
    ...{ home: target, force: false, machine, now: () => new Date('2026-02-02T00:00:00.000Z') },
    lock: () => ({ [Symbol.dispose]: () => {} }),
    takeUpDatabase(path, elsewhere) {
      restored.push({ elsewhere });
      expect(existsSync(path)).toBe(true);
      return { sandboxes: 2 };
    },
    ...more,
  });
}

const kept = {
  'config.toml': '[runtime]\n',
  'proxy-config.json': '{}',
  'controller-id': 'c',
  'bell.toml': '',
  'agents/mine.toml': 'x',
  'bell/actions/build*': '#!/bin/sh\n',
  'templates/built.json': '{}',
  'network/secrets': 'sealed',
};
const ofSandboxes = { 'network/sandboxes/1/proxy-config.json': '{}' };
const keys = { 'api-key': 'k', 'owner-key': 'o', 'network/secrets.key': 's', 'network/authority.key': 'a' };
const notKept = [
  ...[
    'daemon.json',
    'daemon.lock',
    'daemon.log',
    'glovebox.db',
    'glovebox.db-wal',
    'run/1/ca.crt',
    'state/1/disk',
  ],
  ...[
    'buckets/1/0/object',
    'volumes/1/data/file',
    'images/names/x.json',
    'workspaces/1/0/file',
    'logs/1/out',
    'sandboxes/etc/hosts',
    'bell/lock',
  ],
  ...['before-restore-x/api-key', '.restore-abc/config.toml', 'api-key.12.new', 'templates/context-1/f'],
];

async function fill(): Promise<void> {
  for (const [path, text] of Object.entries({ ...kept, ...ofSandboxes, ...keys }))
    await put(path.replace('*', ''), text, path.endsWith('*') ? 0o755 : 0o644);
  for (const path of notKept) await put(path, 'not kept');
}

const plain = (it: Record<string, string>) => ({ ...it, 'glovebox.db': 'the database' });

test.each<[string, (archive: Buffer) => Buffer]>([
  ['plain', (it) => it],
  ['gzip', (it) => gzipSync(it)],
  ['zstd', (it) => zstdCompressSync(it)],
])('what belongs into a backup is there again, closed to others, and nothing else (%s)', async (_, packed) => {
  await fill();
  const report = await restore(packed(await archiveOf()));
  expect(await tree(target)).toEqual(plain(kept));
  expect((await stat(target)).mode & 0o777).toBe(0o700);
  expect(report).toMatchObject({
    home: target,
    sandboxes: 2,
    here: false,
    backup: { host: 'box', keys: false },
  });
  expect(report.warnings).toEqual([
    expect.stringContaining('the secrets are encrypted and their key is not here'),
  ]);
  expect(restored).toEqual([{ elsewhere: expect.stringContaining('it stayed on box') }]);
});

test('keys are in it when that was asked for, those of the configuration, too', async () => {
  await fill();
  await put('tls/privkey.pem', 'p');
  await restore(await archiveOf({ moreKeys: ['tls/privkey.pem'] }));
  expect(Object.keys(await tree(target))).not.toContain('tls/privkey.pem');
  await rm(target, { recursive: true });
  const report = await restore(await archiveOf({ moreKeys: ['tls/privkey.pem'], withKeys: true }));
  expect(await tree(target)).toEqual(plain({ ...kept, ...keys, 'tls/privkey.pem': 'p' }));
  expect(report).toMatchObject({ warnings: [], backup: { keys: true } });
});

test('a key in a keyring is in no backup, which is told where it is needed; a database elsewhere is no plain file', async () => {
  await put('network/secrets', JSON.stringify({ key: 'system' }));
  await put('data/other.db', 'torn');
  const archive = await archiveOf({ withKeys: true, leave: ['data/other.db'] });
  expect((await restore(archive)).warnings).toEqual([expect.stringContaining('in the keyring that')]);
  expect(Object.keys(await tree(target)).sort()).toEqual(['glovebox.db', 'network/secrets']);
  expect((await restore(archive, { home, force: true })).warnings).toEqual([]);
});

test('a link to a file stands for its content; what is no file is left out, and links to folders are told', async () => {
  await writeFile(join(top, 'elsewhere.toml'), 'linked');
  await mkdir(join(top, 'agents'));
  await mkdir(home);
  await symlink(join(top, 'elsewhere.toml'), join(home, 'config.toml'));
  await symlink(join(top, 'agents'), join(home, 'agents'));
  await symlink(join(top, 'nowhere'), join(home, 'dangling'));
  const summary = await writeBackup(
    { home, withKeys: false, about: { ...about, home }, copyDatabase: (to) => writeFileSync(to, '') },
    async (archive) => {
      for await (const _ of archive);
    },
  );
  // The database, and what tells of the backup itself.
  expect(summary).toMatchObject({ files: 3, leftOut: ['agents'] });
});

test('of logs that are being written whole lines are taken, and the chain of the audit log holds in the copy', async () => {
  const audit = await AuditLog.open({
    folder: join(home, 'audit'),
    now: () => new Date(),
    limits: { fileBytesMax: 4_096 },
  });
  const begin = () =>
    audit.begin({ by: 'key', address: 'a', operation: 'o', method: 'POST', requestId: 'r' });
  await put('network/log/network-00000001.jsonl', '{"a":1}\n{"b":2}\n{"c":');
  await put('bell/log/bell-00000001.jsonl', `{"long":"${'x'.repeat(300_000)}`);
  let over = false;
  let lines = 0;
  const writing = (async () => {
    while (!over) {
      (await begin()).end({ status: 200 });
      lines += 1;
    }
  })();
  for (let round = 0; round < 5; round += 1) {
    await expect.poll(() => lines).toBeGreaterThan(round * 20);
    await appendFile(join(home, 'network/log/network-00000001.jsonl'), 'x');
    const report = await restore(await archiveOf(), { home: join(target, String(round)) });
    expect(report.warnings).toEqual([]);
    expect(await verifyAudit(join(report.home, 'audit'))).toMatchObject({ ok: true });
    expect(await tree(report.home)).toMatchObject({
      'network/log/network-00000001.jsonl': '{"a":1}\n{"b":2}\n',
      'bell/log/bell-00000001.jsonl': '',
    });
  }
  over = true;
  await writing;
  await audit.close();
});

test('an audit log that had been changed comes along as it is, and that is told', async () => {
  const audit = await AuditLog.open({ folder: join(home, 'audit'), now: () => new Date() });
  await audit.begin({ by: 'key', address: 'a', operation: 'o', method: 'POST', requestId: 'r' });
  await audit.close();
  const path = join(home, 'audit/audit-00000001.jsonl');
  await writeFile(path, (await readFile(path, 'utf8')).replace('"by":"key"', '"by":"owner"'));
  const { warnings } = await restore(await archiveOf());
  expect(warnings).toEqual([expect.stringMatching(/audit log.*not as it was written.*line 2.*was changed/)]);
});

let scratch: string[];
beforeEach(async () => {
  scratch = (await readdir(tmpdir())).filter((it) => it.startsWith('glovebox-backup-'));
});

test('an error of who takes the archive, and of a database that cannot be copied, ends it', async () => {
  await fill();
  await put('network/log/network-00000001.jsonl', `${'x'.repeat(20_000_000)}\n`);
  const source = {
    home,
    withKeys: false,
    about: { ...about, home },
    copyDatabase: (to: string) => writeFileSync(to, ''),
  };
  await expect(
    writeBackup(source, async (archive) => {
      for await (const _ of archive) throw new Error('no room');
    }),
  ).rejects.toThrow('no room');
  const copyDatabase = () => {
    throw new Failure('unavailable', 'damaged');
  };
  await expect(archiveOf({ copyDatabase })).rejects.toMatchObject({ code: 'unavailable' });
  expect((await readdir(tmpdir())).filter((it) => it.startsWith('glovebox-backup-'))).toEqual(scratch);
});
test('a home that holds something is left alone, and with force moved aside, all but what belongs to sandboxes', async () => {
  await fill();
  const archive = await archiveOf();
  await mkdir(join(target, 'state/1'), { recursive: true });
  for (const [path, text] of [
    ['state/1/disk', 'disk'],
    ['config.toml', 'old'],
    ['glovebox.db', 'old'],
    ['glovebox.db-wal', 'old'],
    ['api-key', 'old key'],
  ] as const)
    await writeFile(join(target, path), text, { mode: 0o600 });
  const before = await readdir(target, { recursive: true });
  await expect(restore(archive)).rejects.toMatchObject({
    code: 'conflict',
    hint: expect.stringContaining('--force'),
  });
  const held = () => {
    throw new Failure('conflict', 'a daemon runs');
  };
  await expect(restore(archive, { force: true, lock: held })).rejects.toThrow('a daemon runs');
  expect(await readdir(target, { recursive: true })).toEqual(before);
  const { aside = '' } = await restore(archive, { force: true });
  expect(await tree(aside)).toEqual({
    ...{ 'config.toml': 'old', 'glovebox.db': 'old', 'glovebox.db-wal': 'old', 'api-key': 'old key' },
  });
  await rm(aside, { recursive: true });
  for (const path of ['state', 'state/1']) await chmod(join(target, path), 0o700);
  // A key that the backup does not hold goes on.
  expect(await tree(target)).toEqual(plain({ ...kept, 'state/1/disk': 'disk', 'api-key': 'old key' }));
});

test('in the same home on the same machine sandboxes are looked for', async () => {
  await fill();
  const archive = await archiveOf();
  expect(await restore(archive, { home, force: true })).toMatchObject({ here: true });
  expect(Object.keys(await tree(join(home, 'network')))).toContain('sandboxes/1/proxy-config.json');
  const later = { now: () => new Date('2026-03-03T00:00:00.000Z') };
  expect(await restore(archive, { home, force: true, machine: 'b'.repeat(64), ...later })).toMatchObject({
    here: false,
  });
  expect(restored).toEqual([{ elsewhere: undefined }, { elsewhere: expect.any(String) }]);
});

test('what cannot be moved leaves the home as it was', async () => {
  await fill();
  const archive = await archiveOf();
  // The name that the second restore of this moment wants is taken.
  await restore(archive, { home, force: true });
  await writeFile(join(home, 'config.toml'), 'mine');
  await expect(restore(archive, { home, force: true })).rejects.toThrow(/move the backup into/);
  expect(await readFile(join(home, 'config.toml'), 'utf8')).toBe('mine');
  expect((await readdir(home)).filter((it) => /^\.restore|unfinished/.test(it))).toEqual([]);
  refuseUnfinishedRestore(home);
});

test('no daemon starts where a restore was interrupted, until it has been done again', async () => {
  await fill();
  const archive = await archiveOf();
  await mkdir(join(home, 'restore-unfinished'));
  await rm(join(home, 'api-key'));
  await writeFile(join(home, 'restore-unfinished/api-key'), 'kept', { mode: 0o600 });
  expect(() => refuseUnfinishedRestore(home)).toThrow(/was not finished/);
  await expect(restore(archive, { home })).rejects.toMatchObject({ code: 'conflict' });
  await restore(archive, { home, force: true });
  refuseUnfinishedRestore(home);
  expect(await readFile(join(home, 'api-key'), 'utf8')).toBe('kept');
});

const first = file(
  'glovebox-backup.json',
  JSON.stringify({ format: 'glovebox-backup', version: 1, ...about, home: '/h', keys: false }),
);
const database = file('glovebox.db', 'the database');
const list = (...entries: RawEntry[]) =>
  file(
    'glovebox-manifest.json',
    JSON.stringify({
      files: [first, database, ...entries].map(({ name, body = '' }) => ({
        ...{ path: String(name), size: Buffer.byteLength(body), sha256: sha256(body) },
      })),
    }),
  );
/** An archive whose list is right for everything in it. */
const listed = (...entries: RawEntry[]) => tar([first, database, ...entries, list(...entries)]);
const newer = file(
  'glovebox-backup.json',
  JSON.stringify({ format: 'glovebox-backup', version: 2, more: true }),
);

const hostile: [string, Buffer, RegExp][] = [
  ['nothing', Buffer.alloc(0), /no backup.*empty/],
  ['no archive', Buffer.from('text'.repeat(1_000)), /no backup.*not a tar archive/],
  ['another archive', tar([file('etc/passwd', 'x')]), /no backup/],
  ['a damaged beginning', tar([file('glovebox-backup.json', '{"format":'), database, list()]), /no backup/],
  ['a newer program’s', tar([newer, database, list()]), /newer glovebox/],
  ['an absolute path', listed(file('/etc/passwd', 'x')), /plain relative/],
  ['a way out', listed(file('../outside', 'x')), /plain relative/],
  ['a way out further in', listed(file('agents/../../outside', 'x')), /plain relative/],
  ['a dot', listed(file('agents/./x', 'x')), /plain relative/],
  ['an empty name', listed(file('agents//x', 'x')), /plain relative/],
  ['a name that is too long', listed(longName('a'.repeat(300)), file('a', 'x')), /plain relative/],
  ['a path that is too long', listed(longName(`${'a/'.repeat(600)}a`), file('a', 'x')), /more than 1024/],
  ['a path that is too deep', listed(file(`${'a/'.repeat(20)}x`, 'x')), /deeper than 16/],
  ['a name that is no UTF-8', listed({ name: Buffer.from([0x61, 0xff]), body: 'x' }), /UTF-8/],
  ['a symbolic link', listed(symlinkEntry('agents', '/etc')), /it is a symlink/],
  ['a hard link', listed(hardLink('agents/x', 'glovebox.db')), /it is a link/],
  ['a device', listed(device('null')), /it is a device/],
  ['a folder', listed(folder('agents')), /it is a directory/],
  ['a file twice', listed(file('bell.toml', '1'), file('bell.toml', '2')), /there twice/],
  ['a second database', listed(database), /there twice/],
  ['a file below a file', listed(file('agents', '1'), file('agents/x', '2')), /below a file/],
  ['a file in place of a folder', listed(file('agents/x', '1'), file('agents', '2')), /there twice/],
  ['a sandbox’s disk', listed(file('state/1/disk', 'x')), /no backup holds such a file/],
  ['a daemon’s address', listed(file('daemon.json', '{"pid":1}')), /no backup holds such a file/],
  ['a log of the database', listed(file('glovebox.db-wal', 'x')), /no backup holds such a file/],
  ['a changed file', tar([first, file('glovebox.db', 'another one!'), list()]), /"glovebox.db" is another/],
  [
    'a missing file',
    tar([first, database, list(file('bell.toml', 'x'))]),
    /"bell.toml" is in its list and missing/,
  ],
  [
    'an additional file',
    tar([first, database, file('bell.toml', 'x'), list()]),
    /"bell.toml" is there and not in its list/,
  ],
  [
    'a changed beginning',
    tar([{ ...first, body: String(first.body).replace('"box"', '"fox"') }, database, list()]),
    /"glovebox-backup.json" is another/,
  ],
  ['no list', tar([first, database]), /list of files is missing/],
  [
    'an unreadable list',
    tar([first, database, file('glovebox-manifest.json', '{')]),
    /list of files.*unreadable/,
  ],
  ['something behind the list', tar([first, database, list(), file('bell.toml', 'x')]), /behind the list/],
  [
    'no database',
    tar([
      first,
      file(
        'glovebox-manifest.json',
        JSON.stringify({
          files: [
            {
              path: 'glovebox-backup.json',
              size: Buffer.byteLength(String(first.body)),
              sha256: sha256(String(first.body)),
            },
          ],
        }),
      ),
    ]),
    /no database/,
  ],
  [
    'a beginning that is too long',
    tar([file('glovebox-backup.json', ' '.repeat(70_000)), database]),
    /the most is 65536/,
  ],
];
test.each(hostile)('an archive with %s is refused, and nothing is left of it', async (_, archive, why) => {
  const failure = await restore(archive).then(
    () => undefined,
    (error: unknown) => error,
  );
  expect(failure).toMatchObject({
    code: expect.stringMatching(/^(invalid|unsupported)$/),
    message: expect.stringMatching(why),
  });
  expect(await readdir(top)).toEqual([]);
});

test('more than it may hold is not unpacked', async () => {
  const archive = gzipSync(listed(file('bell.toml', Buffer.alloc(1_000_000))));
  await expect(restore(archive, { bytesMax: 500_000 })).rejects.toThrow(/holds more than 500000 bytes/);
  expect(await readdir(top)).toEqual([]);
});

test('cut anywhere, or with any byte changed, a backup is refused', async () => {
  const whole = listed(file('bell.toml', 'x'));
  expect(await restore(whole)).toMatchObject({ files: 3 });
  await rm(target, { recursive: true });
  for (let size = 0; size < whole.length - 1_024; size += 97) {
    await expect(restore(whole.subarray(0, size)), `${size}`).rejects.toMatchObject({ code: 'invalid' });
    expect(await readdir(top)).toEqual([]);
  }
  // Bytes that mean nothing in tar, such as padding, may be others.
  const meaningful = (at: number) => at < 512 + String(first.body).length;
  for (let at = 0; at < 1_024; at += 13) {
    const changed = Buffer.from(whole);
    changed[at] = (changed[at] as number) ^ 0x15;
    const outcome = await restore(changed).then(
      () => 'restored',
      (error: Failure) => error.code,
    );
    if (meaningful(at)) expect(outcome, `${at}`).toMatch(/invalid|unsupported/);
    await rm(target, { recursive: true, force: true });
  }
});
