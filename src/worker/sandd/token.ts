// Who may be a SandD daemon: whoever shows a token of which a file has the SHA-256. The daemon itself can send no header, so it has the token in its address.
import { createHash, timingSafeEqual } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import type { IncomingMessage } from 'node:http';
import { Failure } from '../../lib/failure.ts';

const fileBytesMax = 64 * 1024;
/** Longer is no token and is not hashed. */
const tokenCharactersMax = 512;

/** One hash a line, as `sha256sum` writes it; `#` begins a comment. Failure('invalid') says which line is none. */
export async function readTokenHashes(file: string): Promise<Buffer[]> {
  const text = await readFile(file, 'utf8').catch((error) => {
    throw Failure.from(error, `read the tokens of SandD daemons`);
  });
  if (text.length > fileBytesMax)
    throw new Failure('invalid', `${file} has ${text.length} characters; the most is ${fileBytesMax}`);
  const hashes = text.split('\n').flatMap((line, at) => {
    if (/^\s*(#|$)/.test(line)) return [];
    const hash = /^\s*([0-9a-fA-F]{64})(\s|$)/.exec(line)?.[1];
    if (hash !== undefined) return [Buffer.from(hash, 'hex')];
    throw new Failure('invalid', `${file}:${at + 1}: no SHA-256 in hexadecimal digits`, {
      hint: 'Make a line with: printf %s "$TOKEN" | sha256sum',
    });
  });
  if (hashes.length > 0) return hashes;
  throw new Failure('invalid', `${file} has no token`, {
    hint: 'Make a line with: printf %s "$TOKEN" | sha256sum',
  });
}

/** Of `Authorization: Bearer …`, or of `?token=`. */
export function tokenOf(request: IncomingMessage): string | undefined {
  const { authorization } = request.headers;
  if (authorization !== undefined) return /^Bearer +(\S+)$/i.exec(authorization)?.[1];
  return new URLSearchParams((request.url ?? '').split('?', 2)[1] ?? '').get('token') ?? undefined;
}

export function isTokenOf(token: string | undefined, hashes: readonly Buffer[]): boolean {
  if (token === undefined || token.length > tokenCharactersMax) return false;
  const hash = createHash('sha256').update(token).digest();
  // All are compared, so that it takes as long wherever the right one stands.
  return hashes.filter((it) => timingSafeEqual(it, hash)).length > 0;
}
