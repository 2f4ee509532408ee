// One encrypted file of named records. Each record is sealed with AES-256-GCM under a nonce of its own, and bound to its id, name and scope, so
// that records cannot be exchanged; a sealed list of all of them shows when one has been taken away. Written whole or not at all.
// Whoever may both read the key and write the file can of course put an older file in its place: that is not defended against.
import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto';
import { open, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { z } from 'zod';
import { Failure } from '../lib/failure.ts';
import type { KeyKeeper, KeyPlace } from './key.ts';

export interface SealedRecord {
  id: string;
  name: string;
  sandboxId?: string | undefined;
  content: unknown;
}

const version = 1;
const nonceBytes = 12;
const tagBytes = 16;
/** 1024 records of the largest value, twice over for base64 and JSON. */
const fileBytesMax = 256 * 1024 * 1024;

const Sealed = z.object({ nonce: z.string(), sealed: z.string() });
const FileShape = z.object({
  format: z.literal('glovebox-vault'),
  version: z.int(),
  key: z.enum(['file', 'system']),
  manifest: Sealed,
  records: z.array(Sealed.extend({ id: z.string(), name: z.string(), sandboxId: z.string().optional() })),
});
type Sealed = z.infer<typeof Sealed>;

const spoilt = (path: string, what: string, hint: string): Failure =>
  new Failure('unavailable', `open the secrets ${path}: ${what}`, { hint });
const restore = 'Put back a copy from a backup, or move the file away and set the secrets again.';

export interface SealingKey {
  place: KeyPlace;
  bytes: Buffer;
}

export interface SealedFile {
  records: SealedRecord[];
  key: SealingKey;
}

/** Reads and opens everything, or fails and changes nothing. Undefined when there is no file. */
export async function readSealedFile(path: string, keys: KeyKeeper): Promise<SealedFile | undefined> {
  const text = await readBounded(path);
  if (text === undefined) return undefined;
  const file = parse(path, text);
  const key = await keys.existing(file.key);
  const opened = (sealed: Sealed, bound: readonly unknown[], failure: string): unknown => {
    const content = unseal(sealed, bound, key);
    if (content === undefined) throw spoilt(path, failure, restore);
    return JSON.parse(content);
  };
  const manifest = opened(
    file.manifest,
    ['manifest'],
    'its key is another one, or the file is damaged',
  ) as string[];
  const ids = file.records.map((record) => record.id);
  if (JSON.stringify(manifest) !== JSON.stringify(ids))
    throw spoilt(path, 'records are missing, or in another order', restore);
  const records = file.records.map((record) => ({
    id: record.id,
    name: record.name,
    sandboxId: record.sandboxId,
    content: opened(record, boundTo(record), `the record ${JSON.stringify(record.name)} is damaged`),
  }));
  return { records, key: { place: file.key, bytes: key } };
}

/** Readers see the old file or the new one, never a part; only this user may read it. */
export async function writeSealedFile(
  path: string,
  records: readonly SealedRecord[],
  key: SealingKey,
): Promise<void> {
  const text = JSON.stringify({
    format: 'glovebox-vault',
    version,
    key: key.place,
    manifest: seal(JSON.stringify(records.map((record) => record.id)), ['manifest'], key.bytes),
    records: records.map(({ id, name, sandboxId, content }) => ({
      id,
      name,
      ...(sandboxId === undefined ? {} : { sandboxId }),
      ...seal(JSON.stringify(content), boundTo({ id, name, sandboxId }), key.bytes),
    })),
  });
  if (text.length > fileBytesMax)
    throw new Failure(
      'exhausted',
      `the secrets would take ${text.length} bytes; the most is ${fileBytesMax}`,
    );
  await writeWhole(path, text);
}

export async function writeWhole(path: string, content: string | Buffer): Promise<void> {
  const beside = `${path}.${process.pid}.new`;
  try {
    await rm(beside, { force: true });
    const file = await open(beside, 'wx', 0o600);
    try {
      await file.writeFile(content);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(beside, path);
    const folder = await open(dirname(path), 'r');
    await folder.sync().finally(() => folder.close());
  } catch (error) {
    await rm(beside, { force: true });
    throw Failure.from(error, `write ${path}`);
  }
}

const boundTo = (record: { id: string; name: string; sandboxId?: string | undefined }): unknown[] => [
  'record',
  record.id,
  record.name,
  record.sandboxId ?? null,
];

const additionalData = (bound: readonly unknown[]): Buffer =>
  Buffer.from(JSON.stringify(['glovebox-vault', version, ...bound]));

function seal(content: string, bound: readonly unknown[], key: Buffer): Sealed {
  const nonce = randomBytes(nonceBytes);
  const cipher = createCipheriv('aes-256-gcm', key, nonce, { authTagLength: tagBytes });
  cipher.setAAD(additionalData(bound));
  const sealed = Buffer.concat([cipher.update(content, 'utf8'), cipher.final(), cipher.getAuthTag()]);
  return { nonce: nonce.toString('base64'), sealed: sealed.toString('base64') };
}

/** Undefined when it is not what was sealed with this key for this place. */
function unseal(box: Sealed, bound: readonly unknown[], key: Buffer): string | undefined {
  const nonce = Buffer.from(box.nonce, 'base64');
  const sealed = Buffer.from(box.sealed, 'base64');
  if (nonce.length !== nonceBytes || sealed.length < tagBytes) return undefined;
  const decipher = createDecipheriv('aes-256-gcm', key, nonce, { authTagLength: tagBytes });
  decipher.setAAD(additionalData(bound));
  decipher.setAuthTag(sealed.subarray(-tagBytes));
  try {
    return Buffer.concat([decipher.update(sealed.subarray(0, -tagBytes)), decipher.final()]).toString('utf8');
  } catch {
    return undefined;
  }
}

async function readBounded(path: string): Promise<string | undefined> {
  try {
    const file = await open(path, 'r');
    try {
      const { size } = await file.stat();
      if (size > fileBytesMax)
        throw spoilt(path, `it has ${size} bytes, more than any that we write`, restore);
      return await file.readFile('utf8');
    } finally {
      await file.close();
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw Failure.from(error, `open the secrets ${path}`);
  }
}

function parse(path: string, text: string): z.infer<typeof FileShape> {
  const json = ((): unknown => {
    try {
      return JSON.parse(text);
    } catch {
      return undefined;
    }
  })();
  const newer = z.object({ format: z.literal('glovebox-vault'), version: z.int().gt(version) });
  if (newer.safeParse(json).success)
    throw spoilt(path, 'the file was written by a newer glovebox', 'Upgrade glovebox.');
  const parsed = FileShape.safeParse(json);
  if (!parsed.success) throw spoilt(path, 'the file is damaged', restore);
  return parsed.data;
}
