// The key by which a home's sandboxes prove to ssh who they are: Ed25519, made once, in `<home>/ssh_host_ed25519_key`, for its user alone.
import {
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
  randomUUID,
} from 'node:crypto';
import { linkSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { CliError, exitCodes } from '../exit-codes.ts';
import { WireWriter } from './wire-data.ts';

export const hostKeyType = 'ssh-ed25519';

export interface HostKey {
  privateKey: KeyObject;
  /** The public key as SSH writes it (RFC 8709 §4). */
  publicBytes: Buffer;
}

/** Makes the key when there is none. Several that come at once get the same one. */
export function hostKeyIn(home: string): HostKey {
  const path = join(home, 'ssh_host_ed25519_key');
  const pem = readIfThere(path) ?? make(home, path);
  try {
    const privateKey = createPrivateKey(pem);
    if (privateKey.asymmetricKeyType !== 'ed25519')
      throw new Error(`it is of type ${privateKey.asymmetricKeyType}`);
    const { x = '' } = createPublicKey(privateKey).export({ format: 'jwk' });
    const publicBytes = new WireWriter().text(hostKeyType).bytes(Buffer.from(x, 'base64url')).done();
    return { privateKey, publicBytes };
  } catch (cause) {
    throw new CliError(`${path} is not the private key that it should be: ${(cause as Error).message}`, {
      ...{ exitCode: exitCodes.config, cause },
      hint: 'Remove the file; the next connection makes a new key.',
    });
  }
}

/** A line as in known_hosts. */
export function knownHostLine(host: string, { publicBytes }: HostKey): string {
  return `${host} ${hostKeyType} ${publicBytes.toString('base64')}`;
}

function readIfThere(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}

function make(home: string, path: string): string {
  mkdirSync(home, { recursive: true, mode: 0o700 });
  const { privateKey } = generateKeyPairSync('ed25519');
  const draft = `${path}.${randomUUID()}`;
  try {
    writeFileSync(draft, privateKey.export({ type: 'pkcs8', format: 'pem' }), { mode: 0o600, flag: 'wx' });
    // Unlike a rename this leaves the key of whoever was faster.
    linkSync(draft, path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
  } finally {
    rmSync(draft, { force: true });
  }
  return readFileSync(path, 'utf8');
}
