// SFTP version 3 (draft-ietf-secsh-filexfer-02) as OpenSSH speaks it: its numbers, its attributes, and how errors of ours are said in it.
import { type FileInfo, SandboxError } from '../../../../sdk/src/index.ts';
import type { WireReader, WireWriter } from '../wire-data.ts';

export const version = 3;

export const request = {
  ...{
    init: 1,
    open: 3,
    close: 4,
    read: 5,
    write: 6,
    lstat: 7,
    fstat: 8,
    setstat: 9,
    fsetstat: 10,
    opendir: 11,
  },
  ...{
    readdir: 12,
    remove: 13,
    mkdir: 14,
    rmdir: 15,
    realpath: 16,
    stat: 17,
    rename: 18,
    readlink: 19,
    symlink: 20,
  },
  extended: 200,
} as const;

export const reply = {
  version: 2,
  status: 101,
  handle: 102,
  data: 103,
  name: 104,
  attributes: 105,
  extended: 201,
};

export const status = {
  ...{ ok: 0, endOfFile: 1, noSuchFile: 2, permissionDenied: 3, failure: 4, badMessage: 5, unsupported: 8 },
} as const;

export const openFlag = { read: 1, write: 2, append: 4, create: 8, truncate: 16, exclusive: 32 } as const;

/** Ends a request with this status. */
export class Refused extends Error {
  readonly status: number;
  constructor(code: number, message: string) {
    super(message);
    this.status = code;
  }
}

const statusOfCode: Partial<Record<SandboxError['code'], number>> = {
  'not-found': status.noSuchFile,
  permission: status.permissionDenied,
  unsupported: status.unsupported,
};

export function refusalOf(error: unknown): Refused {
  if (error instanceof Refused) return error;
  if (error instanceof RangeError) return new Refused(status.badMessage, error.message);
  const code = error instanceof SandboxError ? statusOfCode[error.code] : undefined;
  return new Refused(code ?? status.failure, error instanceof Error ? error.message : String(error));
}

/** What a client says about a file; what is absent is not to be changed. */
export interface Attributes {
  size?: number;
  uid?: number;
  gid?: number;
  /** Permission bits alone. */
  mode?: number;
  accessedAt?: number;
  modifiedAt?: number;
}

const has = { size: 1, owner: 2, mode: 4, times: 8 } as const;

export function readAttributes(reader: WireReader): Attributes {
  const flags = reader.uint32();
  const found: Attributes = {};
  if (flags & has.size) found.size = reader.uint64();
  if (flags & has.owner) {
    found.uid = reader.uint32();
    found.gid = reader.uint32();
  }
  if (flags & has.mode) found.mode = reader.uint32() & 0o7777;
  if (flags & has.times) {
    found.accessedAt = reader.uint32();
    found.modifiedAt = reader.uint32();
  }
  // Extended ones, if any, are known to nobody.
  return found;
}

/** With the numbers of its owner and group. */
export interface Entry extends FileInfo {
  uid: number;
  gid: number;
}

const kindBits = { file: 0o100000, directory: 0o040000, symlink: 0o120000, other: 0o010000 } as const;

export function writeAttributes(writer: WireWriter, entry: Entry): WireWriter {
  const seconds = Math.min(0xffff_ffff, Math.max(0, Math.floor(entry.modifiedAt.getTime() / 1000)));
  return writer
    .uint32(has.size | has.owner | has.mode | has.times)
    .uint64(entry.size)
    .uint32(entry.uid)
    .uint32(entry.gid)
    .uint32(kindBits[entry.type] | entry.mode)
    .uint32(seconds)
    .uint32(seconds);
}

/** As `ls -l` shows it; clients print it as it is. */
export function longName(entry: Entry, name: string): string {
  const kind = { file: '-', directory: 'd', symlink: 'l', other: 'p' }[entry.type];
  const bits = [6, 3, 0]
    .map((shift) => {
      const three = (entry.mode >> shift) & 7;
      return `${three & 4 ? 'r' : '-'}${three & 2 ? 'w' : '-'}${three & 1 ? 'x' : '-'}`;
    })
    .join('');
  const [, day = '', month = '', year = ''] = entry.modifiedAt.toUTCString().split(' ');
  const recent = Math.abs(Date.now() - entry.modifiedAt.getTime()) < 180 * 86_400_000;
  const when = recent ? entry.modifiedAt.toISOString().slice(11, 16) : ` ${year}`;
  const owner = `${entry.owner.padEnd(8)} ${entry.group.padEnd(8)}`;
  return `${kind}${bits}    1 ${owner} ${String(entry.size).padStart(12)} ${month} ${day} ${when} ${name}`;
}
