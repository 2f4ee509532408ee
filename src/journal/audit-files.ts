// The audit log's files: numbered, each line chained to the one before by its hash, and a head beside them. Appends and mends; removes nothing.
import { createHash } from 'node:crypto';
import { constants, createReadStream } from 'node:fs';
import { type FileHandle, mkdir, open, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type AuditDamage, type AuditHead, auditHead, auditOrigin } from '../contract/audit.ts';

/** A line of ours is far shorter: every field of it is bounded. */
export const auditLineBytesMax = 64 * 1024;

const lineForm = /^(.*),"hash":"([0-9a-f]{64})"\}$/s;

const hashOf = (body: string) => createHash('sha256').update(body, 'latin1').digest('hex');

/** Lines are ASCII, so that one character is one byte and no two readings of them differ. */
const escapeOf = (character: string) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`;

/** The line, without its end, and the hash that the next one names. */
export function sealed(content: Record<string, unknown>): { line: string; hash: string } {
  const body = JSON.stringify(content).replace(/[^\x20-\x7e]/g, escapeOf);
  const hash = hashOf(body);
  return { line: `${body.slice(0, -1)},"hash":"${hash}"}`, hash };
}

/** What a line holds and the hash it names; `intact` says whether that is its own. Undefined for what is no line of ours. */
export function unsealed(
  line: string,
): { content: Record<string, unknown>; hash: string; intact: boolean } | undefined {
  const [, rest, hash] = lineForm.exec(line) ?? [];
  if (rest === undefined || hash === undefined) return undefined;
  try {
    const body = `${rest}}`;
    const content: unknown = JSON.parse(body);
    if (content === null || typeof content !== 'object') return undefined;
    return { content: content as Record<string, unknown>, hash, intact: hashOf(body) === hash };
  } catch {
    return undefined;
  }
}

/** A write resolves when its bytes are on the disk: one call instead of two, each of which another thread has to be woken for. */
const { O_WRONLY, O_APPEND, O_CREAT, O_DSYNC } = constants;
const appendingSynced = O_WRONLY | O_APPEND | O_CREAT | O_DSYNC;

const nameOf = (number: number) => `audit-${String(number).padStart(8, '0')}.jsonl`;

/** Names of the files in the folder, oldest first; none when it is not there. Failure of the system when it cannot be read. */
export async function auditFiles(folder: string): Promise<string[]> {
  const names = await readdir(folder).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return [];
    throw error;
  });
  return names.filter((it) => /^audit-\d{8}\.jsonl$/.test(it)).sort();
}

/** Lines in order, the last one also without an end; a line that is too long comes in pieces of no use to anybody. */
export async function* linesOf(path: string): AsyncGenerator<{ text: string; ended: boolean }> {
  let rest = '';
  for await (const piece of createReadStream(path, { encoding: 'latin1', highWaterMark: 256 * 1024 })) {
    const lines = (rest + piece).split('\n');
    rest = lines.pop() ?? '';
    for (const text of lines) yield { text, ended: true };
    if (rest.length > auditLineBytesMax) {
      yield { text: rest, ended: true };
      rest = '';
    }
  }
  if (rest !== '') yield { text: rest, ended: false };
}

async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r');
  await folder.sync().finally(() => folder.close());
}

const headFile = 'head.json';

/** Undefined when there is none, `unreadable` when what is there is no head. */
export async function readHead(folder: string): Promise<AuditHead | undefined | 'unreadable'> {
  try {
    return auditHead.parse(JSON.parse(await readFile(join(folder, headFile), 'utf8')));
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ENOENT' ? undefined : 'unreadable';
  }
}

/**
 * Readers see the old one or the new one, whole, also after a power cut. The first one of all is on the disk for good when this resolves: without any
 * the log would look as if somebody had removed it.
 */
export async function writeHead(
  folder: string,
  head: AuditHead,
  { first }: { first: boolean },
): Promise<void> {
  const beside = join(folder, `${headFile}.new`);
  try {
    await writeFile(beside, `${JSON.stringify(head)}\n`, { mode: 0o600, flush: true });
    await rename(beside, join(folder, headFile));
    if (first) await syncFolder(folder);
  } catch (error) {
    await rm(beside, { force: true }).catch(() => undefined);
    throw error;
  }
}

export interface Found {
  mendedBytes?: number;
  damage?: AuditDamage;
}

/** The newest file, open to be appended to. One call at a time. */
export class AuditAppender {
  readonly #folder: string;
  readonly #bytesMax: number;
  #number: number;
  #handle: FileHandle | undefined;
  #bytes: number;
  /** Where the chain ends. */
  head: AuditHead;
  readonly found: Found;
  /** False when nobody knows any more what the file ends in: it has to be opened anew. */
  usable = true;

  private constructor(
    options: { folder: string; bytesMax: number },
    at: { number: number; bytes: number; head: AuditHead; found: Found },
  ) {
    this.#folder = options.folder;
    this.#bytesMax = options.bytesMax;
    this.#number = at.number;
    this.#bytes = at.bytes;
    this.head = at.head;
    this.found = at.found;
  }

  /**
   * Looks where the log ends: behind `known`, or what head.json says. Cuts off a last line without an end, which only a crash leaves; whatever else is wrong stays as it is, and new lines
   * go into a new file behind it.
   */
  static async open(
    options: { folder: string; bytesMax: number },
    known: AuditHead | undefined,
  ): Promise<AuditAppender> {
    const { folder } = options;
    await mkdir(folder, { recursive: true, mode: 0o700 });
    const head = known ?? (await readHead(folder));
    const names = (await auditFiles(folder)).reverse();
    const number = Number(names[0]?.slice(6, 14) ?? 0);
    const found: Found = {};
    let bytes = options.bytesMax;
    let last: AuditHead | undefined;
    let knowsHead = head === undefined;
    for (const [index, name] of names.entries()) {
      const path = join(folder, name);
      const content = await readFile(path);
      const end = content.lastIndexOf(0x0a) + 1;
      if (index === 0) {
        if (end < content.length) {
          const handle = await open(path, 'r+');
          await handle.truncate(end).finally(() => handle.close());
          found.mendedBytes = content.length - end;
        }
        bytes = end;
      }
      const text = content.toString('latin1', 0, end);
      knowsHead ||= typeof head === 'object' && text.includes(`"hash":"${head.hash}"}\n`);
      last ??= lastLine(text, found);
      // A daemon that was killed may have left a file without a line.
      if (last !== undefined && (knowsHead || index > 1)) break;
    }
    last ??= { seq: 0, hash: auditOrigin };
    const damage = found.damage ?? damageOf(last, head, knowsHead);
    if (damage !== undefined) {
      found.damage = damage;
      bytes = options.bytesMax;
    }
    // What head.json tells of is never told again under the same number.
    if (typeof head === 'object' && head.seq > last.seq) last = { seq: head.seq, hash: last.hash };
    return new AuditAppender(options, { number, bytes, head: last, found });
  }

  /** Puts the lines on the disk, numbered and chained, all in one file; or throws and leaves the log as it was. */
  async append(contents: readonly Record<string, unknown>[]): Promise<void> {
    let { seq, hash } = this.head;
    const lines = contents.map((content) => {
      seq += 1;
      const next = sealed({ seq, ...content, prev: hash });
      hash = next.hash;
      return next.line;
    });
    const bytes = Buffer.from(lines.map((line) => `${line}\n`).join(''));
    const handle = await this.#file(bytes.length);
    try {
      for (let at = 0; at < bytes.length; ) at += (await handle.write(bytes, at)).bytesWritten;
    } catch (error) {
      this.usable = await handle.truncate(this.#bytes).then(
        () => true,
        () => false,
      );
      throw error;
    }
    this.#bytes += bytes.length;
    this.head = { seq, hash };
  }

  async close(): Promise<void> {
    const handle = this.#handle;
    this.#handle = undefined;
    await handle?.close().catch(() => undefined);
  }

  async #file(bytes: number): Promise<FileHandle> {
    if (this.#bytes > 0 && this.#bytes + bytes > this.#bytesMax) {
      await this.close();
      this.#number += 1;
      this.#bytes = 0;
    }
    if (this.#number === 0) this.#number = 1;
    if (this.#handle !== undefined) return this.#handle;
    const handle = await open(join(this.#folder, nameOf(this.#number)), appendingSynced, 0o600);
    this.#handle = handle;
    if (this.#bytes === 0) {
      // The new name, too, has to outlive a power cut.
      await syncFolder(this.#folder);
    }
    return handle;
  }
}

/** The last line that can be read; notes in `found` when it is not the last one there, or has been changed. */
function lastLine(text: string, found: Found): AuditHead | undefined {
  for (let end = text.length - 1; end > 0; ) {
    const start = text.lastIndexOf('\n', end - 1) + 1;
    const line = unsealed(text.slice(start, end));
    const seq = line?.content.seq;
    if (line !== undefined && typeof seq === 'number' && Number.isSafeInteger(seq) && seq > 0) {
      if (!line.intact) found.damage = 'unreadable';
      return { seq, hash: line.hash };
    }
    found.damage = 'unreadable';
    end = start - 1;
  }
  return undefined;
}

function damageOf(
  last: { seq: number },
  head: AuditHead | undefined | 'unreadable',
  knowsHead: boolean,
): AuditDamage | undefined {
  // The first line of all is written before the first head.
  if (head === undefined) return last.seq > 1 ? 'headless' : undefined;
  if (head === 'unreadable') return 'headless';
  if (last.seq < head.seq) return 'cut';
  return knowsHead ? undefined : 'rewritten';
}
