// What of a home goes into a backup, and how the archive tells of it. A backup holds what is known: configuration, records, rules, logs, sealed secrets. What sandboxes are made
// of (disks, images, workspaces) and what belongs to a running daemon stays where it is.
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { Failure } from '../lib/failure.ts';

/** In the archive, and in a home whose configuration says nothing else. */
export const databaseName = 'glovebox.db';
export const auditFolder = 'audit';

/** First and last entry of the archive. */
export const aboutName = 'glovebox-backup.json';
export const manifestName = 'glovebox-manifest.json';

export const aboutBytesMax = 64 * 1024;
export const manifestBytesMax = 32 * 1024 * 1024;
export const filesMax = 100_000;
export const pathBytesMax = 1_024;
export const depthMax = 16;

const version = 1;
const hash = z.string().regex(/^[0-9a-f]{64}$/);

export const About = z.object({
  format: z.literal('glovebox-backup'),
  version: z.literal(version),
  /** Of the program that wrote it. */
  glovebox: z.string().max(64),
  createdAt: z.iso.datetime(),
  host: z.string().max(255),
  /** Tells whether it was this machine. */
  machine: hash,
  home: z.string().max(4_096),
  /** Whether private keys are in it. */
  keys: z.boolean(),
});
export type About = z.infer<typeof About>;

const Newer = z.object({ format: z.literal('glovebox-backup'), version: z.int().gt(version) });

/** Sizes in bytes. */
export const Manifest = z.object({
  files: z.array(z.object({ path: z.string(), size: z.int().nonnegative(), sha256: hash })).max(filesMax),
});
export type Manifest = z.infer<typeof Manifest>;

export function parseAbout(text: string): About {
  const json = jsonOf(text);
  const about = About.safeParse(json);
  if (about.success) return about.data;
  if (Newer.safeParse(json).success)
    throw new Failure('unsupported', 'the backup was made by a newer glovebox', {
      hint: 'Upgrade glovebox.',
    });
  throw noBackup();
}

export function parseManifest(text: string): Manifest {
  const manifest = Manifest.safeParse(jsonOf(text));
  if (manifest.success) return manifest.data;
  throw new Failure('invalid', `the backup is damaged: its list of files, ${manifestName}, is unreadable`, {
    hint: 'Use another backup.',
  });
}

export const noBackup = () =>
  new Failure('invalid', 'this is no backup of glovebox', {
    hint: 'Name a file that `glovebox backup` has written.',
  });

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** At the top of a home. */
const ofDaemon = [
  'daemon.json',
  'daemon.lock',
  'daemon.lock-journal',
  'daemon.log',
  'daemon.log.1',
  'sandboxes',
];
const ofSandboxes = [
  // What lies in there while they are mounted is not even of this host.
  'buckets',
  'volumes',
  'run',
  'state',
  'logs',
  'workspaces',
  'workers',
  'host',
  'machines',
  'bubblewrap',
  'images',
];
const ofDatabase = ['', '-wal', '-shm', '-journal'].map((end) => databaseName + end);

/** Old content of a home that a restore has moved aside, one under construction, and one that is being put in its place. */
export const asidePrefix = 'before-restore-';
export const draftPrefix = '.restore-';
export const placingName = 'restore-unfinished';

const staysBehind = new Set([...ofDaemon, ...ofSandboxes, ...ofDatabase, placingName, 'lost+found']);
const passing = /(\.new|\.partial-\d+)$|^bell\/lock(-journal)?$|^templates\/(context|debian)-/;

/** Whether a file of the home belongs into a backup as it is; the database does not, but a copy of it. */
export function belongs(path: string): boolean {
  const top = path.split('/', 1)[0] as string;
  if (staysBehind.has(top) || top.startsWith(asidePrefix) || top.startsWith(draftPrefix)) return false;
  return !passing.test(path);
}

/** What a restore puts aside or into place, of what lies at the top of a home. */
export function isReplaced(top: string): boolean {
  return belongs(top) || ofDatabase.includes(top);
}

/** Whether nothing is lost when a home that holds only such names becomes another. */
export function isNothing(top: string): boolean {
  return top === 'lost+found' || top.startsWith('daemon.lock') || top.startsWith(draftPrefix);
}

/** Whoever has one of these may act as the daemon or its user, or read the secrets. */
export const keyFiles = [
  'api-key',
  'owner-key',
  'ingress-key',
  'network/authority.key',
  'network/secrets.key',
  'ssh_host_ed25519_key',
] as const;
/** The key of the sealed secrets, and what it opens. */
export const secretsKey = 'network/secrets.key';
export const secretsFile = 'network/secrets';

/** Where the key of a home's secrets is, as their file tells: in `network/secrets.key`, or in the keyring of the desktop. Undefined where there are no secrets. */
export async function placeOfSecretsKey(home: string): Promise<'file' | 'system' | undefined> {
  const text = await readFile(join(home, secretsFile), 'utf8').catch(() => undefined);
  if (text === undefined) return undefined;
  const file = z.object({ key: z.enum(['file', 'system']) }).safeParse(jsonOf(text));
  return file.success ? file.data.key : 'file';
}

/** Failure('unavailable') when a restore into the home was interrupted while it put things into their places. */
export function refuseUnfinishedRestore(home: string): void {
  if (existsSync(join(home, placingName)))
    throw new Failure(
      'unavailable',
      `a restore into ${home} was not finished, so part of what it holds is missing`,
      {
        hint: 'Run `glovebox restore FILE --force` again.',
      },
    );
}
