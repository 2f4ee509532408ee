// What a store of snapshots has on its disk, as schemas: trees and records. Whatever is read back is parsed with them, for a disk may be damaged and
// somebody may have written to it.
import { createHash } from 'node:crypto';
import { z } from 'zod';
import { Failure } from '../../lib/failure.ts';
import { toBytes } from '../../lib/file-names.ts';

const Digest = z.string().regex(/^[0-9a-f]{64}$/);
/** Microseconds since 1970: what can be set on a file again, exactly. */
const time = z.int();
const id = z.int().min(0).max(0xffff_ffff);
const mode = z.int().min(0).max(0o7777);

/** One name of one folder. Bytes that are no UTF-8 are U+DC80…U+DCFF. */
const Name = z
  .string()
  .max(255)
  .refine((it) => it !== '' && it !== '.' && it !== '..' && !/[/\0]/.test(it) && isBytes(it));

const attributes = { uid: id, gid: id, mtime: time };

export const TreeEntry = z.discriminatedUnion('type', [
  z.strictObject({
    name: Name,
    type: z.literal('file'),
    mode,
    ...attributes,
    size: z.int().nonnegative(),
    digest: Digest,
  }),
  z.strictObject({ name: Name, type: z.literal('folder'), mode, ...attributes, digest: Digest }),
  z.strictObject({
    name: Name,
    type: z.literal('link'),
    ...attributes,
    target: z.string().min(1).max(4096).refine(isBytes),
  }),
]);
export type TreeEntry = z.infer<typeof TreeEntry>;
export type FileEntry = TreeEntry & { type: 'file' };

export const Tree = z.strictObject({
  version: z.literal(1),
  entries: z.array(TreeEntry).refine(inOrder, 'names must be sorted by their bytes, each once'),
});
export type Tree = z.infer<typeof Tree>;

export const SnapshotRecord = z.strictObject({
  version: z.literal(1),
  /** Two snapshots of the same are two. */
  nonce: z.string().regex(/^[0-9a-f]{32}$/),
  folder: z
    .string()
    .max(4096)
    .regex(/^\/[^\0]*$/),
  message: z.string().max(4096),
  createdAt: z.iso.datetime(),
  root: z.strictObject({ mode, ...attributes, digest: Digest }),
  files: z.int().nonnegative(),
  sizeBytes: z.int().nonnegative(),
  newBytes: z.int().nonnegative(),
});
export type SnapshotRecord = z.infer<typeof SnapshotRecord>;

export const digestOf = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

/** The one form in bytes that a tree or a record has, so that the same is always found under the same digest. */
export function canonical(value: Tree | SnapshotRecord): Buffer {
  return Buffer.from(JSON.stringify(value));
}

/** Throws Failure('io') that says what is damaged. */
export function parsed<S extends z.ZodType>(schema: S, bytes: Uint8Array, what: string): z.output<S> {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (cause) {
    throw damaged(`${what} is no JSON`, cause);
  }
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const [issue] = result.error.issues;
  throw damaged(`${what}: ${issue?.path.map(String).join('.')}: ${issue?.message}`, result.error);
}

export function damaged(message: string, cause?: unknown): Failure {
  return new Failure('io', `the store of snapshots is damaged: ${message}`, {
    cause,
    hint: 'Take the snapshot again while its folder is still there; what is damaged cannot be restored.',
  });
}

function isBytes(text: string): boolean {
  try {
    toBytes(text);
    return true;
  } catch {
    return false;
  }
}

function inOrder(entries: { name: string }[]): boolean {
  let before: Buffer | undefined;
  for (const { name } of entries) {
    if (!isBytes(name)) return false;
    const bytes = toBytes(name);
    if (before && Buffer.compare(before, bytes) >= 0) return false;
    before = bytes;
  }
  return true;
}
