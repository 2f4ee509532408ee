// Users of a guest as its own /etc/passwd has them: hostile text, bounded.
import { Failure } from '../lib/failure.ts';
import type { Guest } from './guest.ts';

const passwdBytesMax = 1024 * 1024;

export interface GuestUser {
  name: string;
  uid: string;
  gid: string;
  /** Absolute, or `/` where the file says nothing usable. */
  home: string;
}

/** By name or number; the empty text is the agent's own user. Undefined when there is no such user. */
export async function userOf(
  user: string,
  guest: Guest,
  signal?: AbortSignal,
): Promise<GuestUser | undefined> {
  const own = user === '' ? (await guest.stat('/proc/self', { follow: true }, signal)).uid : undefined;
  const wanted = own === undefined ? user : String(own);
  for (const line of (await textOf('/etc/passwd', guest, signal)).split('\n')) {
    const [name = '', , uid = '', gid = '', , home = ''] = line.split(':');
    if (name !== wanted && uid !== wanted) continue;
    return { name, uid, gid, home: home.startsWith('/') ? home : '/' };
  }
  return own === undefined ? undefined : { name: wanted, uid: wanted, gid: wanted, home: '/' };
}

async function textOf(path: string, guest: Guest, signal?: AbortSignal): Promise<string> {
  try {
    const { bytes } = await guest.read(path, { length: passwdBytesMax }, signal);
    const chunks: Uint8Array[] = [];
    for await (const chunk of bytes) chunks.push(chunk);
    return Buffer.concat(chunks).toString();
  } catch (error) {
    if (error instanceof Failure && error.code === 'not-found') return '';
    throw error;
  }
}
