// SHA-256 of what is written and read. Hashing is loaded when it is first wanted, for it costs memory.
import type { Hash } from 'node:crypto';
import { read } from 'node:fs';
import { promisify } from 'node:util';
import { shown } from './paths.ts';
import { Refusal } from './refusal.ts';

const readAsync = promisify(read);
const pieceBytes = 256 * 1024;

export async function newHash(): Promise<Hash> {
  const { createHash } = await import('node:crypto');
  return createHash('sha256');
}

/** In hexadecimal, of a whole file as it is now. */
export async function digestIn(fd: number): Promise<string> {
  const hash = await newHash();
  const buffer = Buffer.allocUnsafe(pieceBytes);
  for (let at = 0; ; ) {
    const { bytesRead } = await readAsync(fd, buffer, 0, buffer.length, at);
    if (bytesRead === 0) return hash.digest('hex');
    hash.update(buffer.subarray(0, bytesRead));
    at += bytesRead;
  }
}

/** Throws Refusal('invalid') for what is no digest. */
export function checkDigest(digest: string | undefined): void {
  if (digest !== undefined && !/^[0-9a-f]{64}$/.test(digest))
    throw new Refusal('invalid', 'a SHA-256 has 64 hexadecimal digits in lower case');
}

export function digestRefusal(path: Buffer, wanted: string, has: string): Refusal {
  return new Refusal(
    'digest-mismatch',
    `write ${shown(path)}: the SHA-256 of what came is ${has} instead of ${wanted}; nothing was changed`,
  );
}
