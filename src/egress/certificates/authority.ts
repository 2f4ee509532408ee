// The installation's authority: one secret in a file, from which each sandbox's own key follows, so that a sandbox's authority is the same after a restart
// and nothing of it has to be kept. A certificate made for one sandbox has neither the name nor the key that another one trusts.
import { createHash, generateKeyPairSync, hkdfSync, randomBytes } from 'node:crypto';
import {
  closeSync,
  constants,
  fstatSync,
  fsyncSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { isIP } from 'node:net';
import { dirname } from 'node:path';
import { createSecureContext, type SecureContext } from 'node:tls';
import { Failure } from '../../lib/failure.ts';
import {
  authorityCertificate,
  type CertificateKey,
  certificateKey,
  commonNameMax,
  p256Key,
  serverCertificate,
} from './certificate.ts';
import type { CertificateAuthority, SandboxAuthority } from './certificates.ts';

const dayMs = 86_400_000;

/** Wide and fixed: the same at each start, and good for guests whose clock is off by years. */
const authorityValidity = {
  notBefore: new Date('2020-01-01T00:00:00Z'),
  notAfter: new Date('2049-12-31T23:59:59Z'),
};

/** Valid for 90 days, of which a month has passed already, for guests whose clock is late; made anew when a month is left. */
const leafPastDays = 30;
const leafFutureDays = 60;
const leafRenewDays = 30;

/** Names for which one sandbox has a context at hand. A context takes about 25 KiB. */
const contextsMax = 256;

/** Opens the installation's secret, which is made when there is no file yet. Throws Failure when the file is not as it has to be. */
export function openCertificateAuthority(options: {
  keyFile: string;
  now: () => Date;
}): CertificateAuthority {
  const secret = readSecret(options.keyFile) ?? makeSecret(options.keyFile);
  // One key for all servers' certificates: it is known to this process alone, and making one costs more than a certificate.
  const leafKey = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey;
  const leaf = {
    key: certificateKey(leafKey),
    pem: leafKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
  };
  return { forSandbox: (sandboxId) => new OneSandbox(secret, sandboxId, leaf, options.now) };
}

interface Signer {
  name: string;
  key: CertificateKey;
}

class OneSandbox implements SandboxAuthority {
  readonly #makeSigner: () => Signer;
  /** Made when something is signed: a sandbox that opens no connection needs neither. */
  #signer: Signer | undefined;
  #certificate: string | undefined;
  readonly #leaf: { key: CertificateKey; pem: string };
  readonly #now: () => Date;
  /** The least recently used first. */
  readonly #contexts = new Map<string, { context: SecureContext; renewAt: number }>();
  /** A session of one sandbox can be resumed in no other, for its ticket is sealed with these. */
  readonly #ticketKeys = randomBytes(48);

  constructor(
    secret: Buffer,
    sandboxId: string,
    leaf: { key: CertificateKey; pem: string },
    now: () => Date,
  ) {
    this.#makeSigner = () => ({ name: authorityName(sandboxId), key: sandboxKey(secret, sandboxId) });
    this.#leaf = leaf;
    this.#now = now;
  }

  get certificate(): string {
    this.#certificate ??= this.#ownCertificate();
    return this.#certificate;
  }

  #ownCertificate(): string {
    const signer = this.#signs();
    const serial = createHash('sha256').update(signer.key.publicKey).digest().subarray(0, 16);
    return authorityCertificate(signer, serial, authorityValidity);
  }

  #signs(): Signer {
    this.#signer ??= this.#makeSigner();
    return this.#signer;
  }

  contextFor(host: string): SecureContext {
    const name = host.toLowerCase();
    const now = this.#now().getTime();
    const known = this.#contexts.get(name);
    this.#contexts.delete(name);
    if (known !== undefined && now < known.renewAt) {
      this.#contexts.set(name, known);
      return known.context;
    }
    const fresh = { context: this.#contextFor(name, now), renewAt: now + leafRenewDays * dayMs };
    this.#contexts.set(name, fresh);
    if (this.#contexts.size > contextsMax)
      this.#contexts.delete(this.#contexts.keys().next().value as string);
    return fresh.context;
  }

  #contextFor(host: string, now: number): SecureContext {
    if (!isServerName(host))
      throw new Failure('invalid', 'make a certificate: this is neither a host name nor an address');
    const certificate = serverCertificate(this.#signs(), {
      host,
      key: this.#leaf.key,
      serial: serialNumber(),
      validity: {
        notBefore: new Date(now - leafPastDays * dayMs),
        notAfter: new Date(now + leafFutureDays * dayMs),
      },
    });
    return createSecureContext({
      key: this.#leaf.pem,
      cert: certificate,
      minVersion: 'TLSv1.2',
      // The way to the guest does not leave this host: the group that costs least comes first, which saves a tenth of a handshake.
      ecdhCurve: 'X25519:P-256:P-384:X25519MLKEM768',
      honorCipherOrder: true,
      // No client is asked for a certificate; an empty list saves loading all of Node's own.
      ca: [],
      ticketKeys: this.#ticketKeys,
      // A session made under one name is not resumed under another. At most 32 bytes.
      sessionIdContext: createHash('sha256').update(host).digest('base64url').slice(0, 32),
    });
  }
}

function authorityName(sandboxId: string): string {
  const name = `Glovebox sandbox ${sandboxId}`;
  // Characters that everybody compares in the same way.
  if (name.length <= commonNameMax && /^[\w.-]+$/.test(sandboxId)) return name;
  return `Glovebox sandbox ${createHash('sha256').update(sandboxId).digest('hex').slice(0, 40)}`;
}

/** The order of P-256's group. */
const p256Order = 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551n;

/** As FIPS 186-5, A.2.1, makes keys of random bits: more bits than needed, so that the remainder prefers no number. */
function sandboxKey(secret: Buffer, sandboxId: string): CertificateKey {
  const wide = Buffer.from(hkdfSync('sha256', secret, '', `glovebox sandbox authority\0${sandboxId}`, 48));
  const scalar = (BigInt(`0x${wide.toString('hex')}`) % (p256Order - 1n)) + 1n;
  return p256Key(Buffer.from(scalar.toString(16).padStart(64, '0'), 'hex'));
}

/** Positive, never zero, and as many bytes each time. */
function serialNumber(): Buffer {
  const serial = randomBytes(16);
  serial[0] = ((serial[0] as number) & 0x3f) | 0x40;
  return serial;
}

function isServerName(host: string): boolean {
  // A zone names an interface of this machine, which no certificate can speak of.
  if (isIP(host) !== 0) return !host.includes('%');
  return host.length <= 253 && /^[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*$/.test(host);
}

const secretBytes = 32;
const secretFileBytesMax = 1_024;

/** Undefined when there is no file. */
function readSecret(path: string): Buffer | undefined {
  const doing = `read the certificate authority's key ${path}`;
  const content = Buffer.alloc(secretFileBytesMax);
  let length: number;
  let mode: number;
  try {
    const file = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      mode = fstatSync(file).mode;
      length = readSync(file, content);
    } finally {
      closeSync(file);
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw Failure.from(error, doing);
  }
  if ((mode & 0o077) !== 0)
    throw new Failure('permission', `${doing}: other users may read or change it`, {
      hint: `Run 'chmod 600 ${path}' if nobody else has had it, else remove it: a new one is made, and running sandboxes have to be made anew`,
    });
  const parsed = /^glovebox-authority-1 ([0-9a-f]{64})\n$/.exec(content.toString('latin1', 0, length));
  if (parsed === null)
    throw new Failure('invalid', `${doing}: it does not hold such a key`, {
      hint: 'Restore it, or remove it: a new one is made, and running sandboxes have to be made anew',
    });
  return Buffer.from(parsed[1] as string, 'hex');
}

/** Readers see no file or a whole one, which survives a crash once a sandbox trusts what follows from it. */
function makeSecret(path: string): Buffer {
  const secret = randomBytes(secretBytes);
  const beside = `${path}.${process.pid}.new`;
  try {
    const file = openSync(beside, 'wx', 0o600);
    try {
      writeSync(file, `glovebox-authority-1 ${secret.toString('hex')}\n`);
      fsyncSync(file);
    } finally {
      closeSync(file);
    }
    renameSync(beside, path);
    const folder = openSync(dirname(path), 'r');
    try {
      fsyncSync(folder);
    } finally {
      closeSync(folder);
    }
    return secret;
  } catch (error) {
    rmSync(beside, { force: true });
    throw Failure.from(error, `make the certificate authority's key ${path}`);
  }
}
