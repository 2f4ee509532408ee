// The certificate that the API is served with: read and checked as a whole, read again when its files change, never exchanged for one that is broken.
// Connections that stand keep what they began with. On its port plain HTTP gets one answer, which says that this is TLS.
import { constants, createPrivateKey, type KeyObject, X509Certificate } from 'node:crypto';
import { open, stat } from 'node:fs/promises';
import type { IncomingMessage, ServerOptions } from 'node:http';
import { createServer, type Server } from 'node:https';
import type { Socket } from 'node:net';
import { createSecureContext, type SecureContextOptions, type TLSSocket } from 'node:tls';
import { Bucket } from '../journal/budget.ts';
import { plain } from '../journal/escape.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';

export interface TlsFiles {
  /** PEM: the server's own certificate first, then those between it and an authority. */
  certFile: string;
  /** PEM, without a passphrase. */
  keyFile: string;
  /** PEM: authorities of clients' certificates. */
  clientCaFile?: string;
  /** PEM: certificates of clients that count no more; a list of each authority. */
  clientCrlFile?: string;
  /** `request`: one without a certificate comes in, one with a wrong one does not. */
  clientAuth: 'none' | 'request' | 'require';
  minVersion: 'TLSv1.2' | 'TLSv1.3';
}

export interface TlsOptions {
  log: Log;
  now: () => Date;
  /** How often the files are looked at. */
  lookEveryMs?: number;
  /** Told before new connections get another certificate, and waited for. */
  onRenewed?: (certificates: TlsCertificates) => Promise<void>;
}

/** PEM of the server's own certificate. */
export interface TlsCertificates {
  current: string;
  previous?: string;
}

const fileBytesMax = 1024 * 1024;
/** Of one that is asked for its first byte, and for the rest of the handshake. */
const handshakeMs = 30_000;
const handshakeRecord = 0x16;
const warnBeforeMs = 7 * 86_400_000;
/** Of handshakes that failed; who connects often enough must not fill the log. */
const refusalRate = { perSecond: 0.2, burst: 50 };

interface Loaded {
  context: SecureContextOptions;
  leaf: X509Certificate;
}

/** Disposing stops looking at the files. */
export class ServerTls implements Disposable {
  readonly #files: TlsFiles;
  readonly #options: TlsOptions;
  readonly #refusals: Bucket;
  #loaded: Loaded;
  #seen: string;
  /** Connections without a finished handshake, by their other end. */
  readonly #beginning = new Map<string, Socket>();
  readonly #servers: Server[] = [];
  #timer: NodeJS.Timeout | undefined;
  #work: Promise<void> = Promise.resolve();

  private constructor(files: TlsFiles, options: TlsOptions, loaded: Loaded, seen: string) {
    this.#files = files;
    this.#options = options;
    this.#loaded = loaded;
    this.#seen = seen;
    this.#refusals = new Bucket(refusalRate, options.now().getTime());
    this.#lookLater();
  }

  /** Failure('invalid') or Failure('permission') with the file and what to do, when they cannot be served with. */
  static async open(files: TlsFiles, options: TlsOptions): Promise<ServerTls> {
    const seen = await signatureOf(files);
    const loaded = await load(files, options.now());
    tellOf(loaded.leaf, options, 'serving with TLS');
    return new ServerTls(files, options, loaded, seen);
  }

  get certificates(): TlsCertificates {
    return { current: this.#loaded.leaf.toString() };
  }

  /** When what is served with ends to be valid. */
  get notAfter(): Date {
    return this.#loaded.leaf.validToDate;
  }

  /** Its `connection` listeners are ours. */
  createServer(options: ServerOptions): Server {
    const { clientAuth } = this.#files;
    const server = createServer({
      ...{ ...options, ...this.#loaded.context, handshakeTimeout: handshakeMs },
      ...{ requestCert: clientAuth !== 'none', rejectUnauthorized: clientAuth === 'require' },
    });
    const handshake = server.listeners('connection') as ((this: Server, socket: Socket) => void)[];
    server.removeAllListeners('connection');
    server.on('connection', (socket: Socket) => {
      const peer = peerOf(socket);
      this.#beginning.set(peer, socket);
      socket.once('close', () => this.#beginning.delete(peer));
      whenTls(socket, () => {
        for (const listener of handshake) listener.call(server, socket);
      });
    });
    server.prependListener('secureConnection', (socket) => this.#beginning.delete(peerOf(socket)));
    server.on('tlsClientError', (error: NodeJS.ErrnoException, socket) => this.#refused(error, socket));
    if (clientAuth === 'request')
      server.prependListener('secureConnection', (socket) => {
        if (socket.authorized || socket.getPeerX509Certificate() === undefined) return;
        this.#refused(new Error('the certificate does not hold'), socket);
        socket.destroy();
      });
    this.#servers.push(server);
    return server;
  }

  /** Cuts connections that have not come to their first request, which would keep a server from being closed. */
  endHandshakes(): void {
    for (const socket of this.#beginning.values()) socket.destroy();
  }

  /** Reads the files now. Resolves, never rejects, when new connections get what they hold, or it is logged why they do not. */
  reload(): Promise<void> {
    return this.#inTurn(async () => {
      this.#seen = '';
      await this.#look();
    });
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#look = async () => {};
  }

  #inTurn(work: () => Promise<void>): Promise<void> {
    this.#work = this.#work.then(work);
    return this.#work;
  }

  #lookLater(): void {
    this.#timer = setTimeout(() => {
      void this.#inTurn(() => this.#look()).then(() => {
        if (this.#timer !== undefined) this.#lookLater();
      });
    }, this.#options.lookEveryMs ?? 10_000).unref();
  }

  /** Times and places of files rather than events: renewals swap links, of the file or of a folder above it, which no watcher of a file sees. */
  #look = async (): Promise<void> => {
    const { log, now, onRenewed } = this.#options;
    const seen = await signatureOf(this.#files);
    if (seen === this.#seen) return;
    this.#seen = seen;
    try {
      const loaded = await load(this.#files, now());
      const before = this.#loaded.leaf.toString();
      const current = loaded.leaf.toString();
      if (current !== before) await onRenewed?.({ current, previous: before });
      for (const server of this.#servers) server.setSecureContext(loaded.context);
      this.#loaded = loaded;
      tellOf(loaded.leaf, this.#options, 'new connections get the certificate that was read again');
    } catch (thrown) {
      const { message, hint } = Failure.from(thrown, 'read the certificate again');
      log.error(
        { error: message, hint, certificateUntil: this.notAfter.toISOString() },
        'the changed certificate is not used; the one before goes on',
      );
    }
  };

  #refused(error: NodeJS.ErrnoException, socket: TLSSocket): void {
    const why = socket.authorizationError ?? error.code ?? error.message;
    // Gone by itself, as scanners and health checks do.
    if (String(why) === 'ECONNRESET') return;
    if (!this.#refusals.take(this.#options.now().getTime())) return;
    // One that has failed no longer tells, but the connection below still does.
    const below = (socket as { _parent?: Socket })._parent;
    const from = socket.remoteAddress ?? below?.remoteAddress ?? 'unknown';
    this.#options.log.warn({ from, error: plain(String(why), 128) }, 'a TLS connection was refused');
  }
}

/** The subject of the certificate that the client has shown, `CN=…, O=…`; undefined without one. */
export function subjectOf({ socket }: IncomingMessage): string | undefined {
  const tls = socket as Partial<TLSSocket>;
  if (tls.authorized !== true) return undefined;
  const subject = tls.getPeerX509Certificate?.()?.subject;
  return subject === undefined ? undefined : plain(subject.split('\n').join(', '), 256);
}

const peerOf = ({ remoteAddress, remotePort }: Socket) => `${remoteAddress} ${remotePort}`;

/** Calls when the connection begins as TLS does; anything else gets one answer and its end. */
function whenTls(socket: Socket, handshake: () => void): void {
  const tooLate = () => socket.destroy();
  const broken = () => socket.destroy();
  socket.setTimeout(handshakeMs, tooLate);
  socket.on('error', broken);
  socket.once('data', (first: Buffer) => {
    socket.setTimeout(0);
    socket.off('timeout', tooLate);
    socket.pause();
    if (first[0] === handshakeRecord) {
      socket.off('error', broken);
      socket.unshift(first);
      handshake();
      return;
    }
    // Nothing more of it is of interest, but unread bytes would make the end of the connection a reset, which takes the answer with it.
    socket.on('data', () => {});
    socket.resume();
    socket.setTimeout(handshakeMs, tooLate);
    if (/^[A-Z]/.test(first.toString('latin1', 0, 1))) socket.end(notPlain);
    else socket.destroy();
  });
}

const notPlain = (() => {
  const hint = 'Write https:// instead of http:// in the address.';
  const message = `this port speaks TLS, and the request came without it. ${hint}`;
  const body = JSON.stringify({ code: 'REQUEST::INVALID_PARAMETER', message });
  return [
    'HTTP/1.1 400 Bad Request',
    'Content-Type: application/json',
    `Content-Length: ${body.length}`,
    'Connection: close',
    'Glovebox-Failure: invalid',
    `Glovebox-Hint: ${hint}`,
    '',
    body,
  ].join('\r\n');
})();

function tellOf(leaf: X509Certificate, { log, now }: TlsOptions, what: string): void {
  const fields = { subject: plain(leaf.subject, 256), until: leaf.validToDate.toISOString() };
  if (leaf.validToDate.getTime() - now().getTime() < warnBeforeMs)
    log.warn(fields, `${what}, which ends to be valid within a week`);
  else log.info(fields, what);
}

/** Another one when a file was changed or exchanged, or a link on the way to it. */
async function signatureOf(files: TlsFiles): Promise<string> {
  const paths = [files.certFile, files.keyFile, files.clientCaFile, files.clientCrlFile];
  const parts = paths.map(async (path) => {
    if (path === undefined) return '';
    const found = await stat(path, { bigint: true }).catch((error: NodeJS.ErrnoException) => error.code);
    if (typeof found !== 'object') return `${found}`;
    const { dev, ino, size, mtimeNs, ctimeNs, mode } = found;
    return [dev, ino, size, mtimeNs, ctimeNs, mode].join(' ');
  });
  return (await Promise.all(parts)).join('\n');
}

async function load(files: TlsFiles, now: Date): Promise<Loaded> {
  const { certFile, keyFile, clientCaFile, clientCrlFile, clientAuth, minVersion } = files;
  const cert = await readPem(certFile);
  const chain = certificatesIn(cert, certFile);
  const leaf = chain[0] as X509Certificate;
  const key = keyIn(await readPem(keyFile, { secret: true }), keyFile);
  if (!leaf.checkPrivateKey(key)) {
    const other = chain.findIndex((it) => it.checkPrivateKey(key));
    throw new Failure('invalid', `the key ${keyFile} does not belong to the certificate ${certFile}`, {
      hint:
        other < 0
          ? 'Give the two files that were issued together.'
          : `It belongs to certificate ${other + 1} of that file; the server’s own has to be the first.`,
    });
  }
  checkTime(leaf, certFile, now);
  for (const [at, issuer] of chain.slice(1).entries())
    if (!(chain[at] as X509Certificate).checkIssued(issuer))
      throw new Failure(
        'invalid',
        `${certFile}: certificate ${at + 2} is not the issuer of certificate ${at + 1}`,
        { hint: 'Order them: the server’s own first, each followed by its issuer.' },
      );
  const context: SecureContextOptions = {
    cert,
    key: key.export({ type: 'pkcs8', format: 'pem' }),
    minVersion,
  };
  if (clientAuth !== 'none' && clientCaFile !== undefined) {
    const ca = await readPem(clientCaFile);
    const authorities = certificatesIn(ca, clientCaFile);
    if (authorities.every((it) => it.validToDate < now))
      checkTime(authorities[0] as X509Certificate, clientCaFile, now);
    context.ca = authorities.map(String);
    // A session that goes on is not verified again, and would outlive the end or the revocation of its certificate.
    context.secureOptions = constants.SSL_OP_NO_TICKET;
  }
  build(
    context,
    `use the certificate ${certFile}`,
    'Have a new one issued: a key of at least 2048 bits (RSA) or 256 bits (EC), signed with SHA-256.',
  );
  if (clientAuth !== 'none' && clientCrlFile !== undefined) {
    const lists = await readPem(clientCrlFile);
    if (!lists.includes('-----BEGIN X509 CRL-----'))
      throw new Failure('invalid', `${clientCrlFile} holds no revocation list in PEM`, {
        hint: `A binary one becomes PEM with: openssl crl -inform DER -in ${clientCrlFile} -out crl.pem`,
      });
    context.crl = lists.match(/-----BEGIN X509 CRL-----[^-]+-----END X509 CRL-----/g) ?? [lists];
    build(context, `use the revocation list ${clientCrlFile}`, 'Have the authority make it again, in PEM.');
  }
  return { context, leaf };
}

/** What OpenSSL makes of it, which knows more than we look for. */
function build(context: SecureContextOptions, doing: string, hint: string): void {
  try {
    createSecureContext(context);
  } catch (cause) {
    throw new Failure('invalid', `${doing}: ${(cause as Error).message}`, { cause, hint });
  }
}

async function readPem(path: string, { secret = false } = {}): Promise<string> {
  const doing = `read ${path} for server.tls`;
  try {
    await using file = await open(path, 'r');
    const found = await file.stat();
    if (!found.isFile()) throw new Failure('invalid', `${doing}: that is no file`);
    if (found.size > fileBytesMax)
      throw new Failure('invalid', `${doing}: it has ${found.size} bytes; the most is ${fileBytesMax}`);
    if (secret) checkPrivate(path, found);
    return await file.readFile('latin1');
  } catch (thrown) {
    const { code } = thrown as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ENOTDIR')
      throw new Failure('invalid', `${doing}: there is no such file`, {
        cause: thrown,
        hint: 'Check the path in [server.tls] of the configuration.',
      });
    if (code === 'EACCES')
      throw new Failure('permission', `${doing}: the daemon’s user may not`, {
        cause: thrown,
        hint: `Give it to that user: chown ${process.getuid?.()} ${path}, and let it pass through the folders above.`,
      });
    throw Failure.from(thrown, doing);
  }
}

/** A key of root’s may be read by a group, which is how systems give them to servers. */
function checkPrivate(path: string, { mode, uid }: { mode: number; uid: number }): void {
  const open = (mode & 0o027) | (uid === 0 ? 0 : mode & 0o040);
  if (open === 0) return;
  throw new Failure(
    'permission',
    `other users may use the key ${path} (mode ${(mode & 0o777).toString(8).padStart(4, '0')})`,
    { hint: `Close it to them: chmod 600 ${path}. If strangers could read it, have a new one issued.` },
  );
}

function certificatesIn(pem: string, path: string): X509Certificate[] {
  const blocks = pem.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? [];
  if (blocks.length === 0)
    throw new Failure('invalid', `${path} holds no certificate in PEM`, {
      hint: pem.includes('PRIVATE KEY-----')
        ? 'It holds a key: perhaps the two files are exchanged.'
        : `A binary one becomes PEM with: openssl x509 -inform DER -in ${path} -out cert.pem`,
    });
  return blocks.map((block, at) => {
    try {
      return new X509Certificate(block);
    } catch (cause) {
      throw new Failure('invalid', `${path}: certificate ${at + 1} cannot be read`, {
        cause,
        hint: `Look at it with: openssl x509 -in ${path} -noout -text`,
      });
    }
  });
}

function keyIn(pem: string, path: string): KeyObject {
  if (/-----BEGIN ENCRYPTED PRIVATE KEY-----|^Proc-Type: 4,ENCRYPTED/m.test(pem))
    throw new Failure('invalid', `the key ${path} has a passphrase, which a daemon cannot be asked for`, {
      hint: `Take it off: openssl pkey -in ${path} -out key.pem, and close that file to others.`,
    });
  try {
    return createPrivateKey(pem);
  } catch (cause) {
    throw new Failure('invalid', `${path} holds no private key in PEM`, {
      cause,
      hint: pem.includes('-----BEGIN CERTIFICATE-----')
        ? 'It holds a certificate: perhaps the two files are exchanged.'
        : `Look at it with: openssl pkey -in ${path} -noout`,
    });
  }
}

function checkTime({ validFromDate, validToDate }: X509Certificate, path: string, now: Date): void {
  if (validToDate < now)
    throw new Failure(
      'invalid',
      `the certificate ${path} ended to be valid at ${validToDate.toISOString()}`,
      {
        hint: 'Have it renewed.',
      },
    );
  if (validFromDate > now)
    throw new Failure(
      'invalid',
      `the certificate ${path} is not valid before ${validFromDate.toISOString()}`,
      {
        hint: `Look at the clock of this machine, which says ${now.toISOString()}.`,
      },
    );
}
