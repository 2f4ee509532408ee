// TLS towards the world: 1.2 or later, the certificate verified for the very name, by roots that are loaded once. There is no way to turn this off.
import { X509Certificate } from 'node:crypto';
import type { Duplex } from 'node:stream';
import { connect, createSecureContext, type SecureContext, type TLSSocket } from 'node:tls';
import { Failure } from '../lib/failure.ts';
import type { Host } from '../policy/policy.ts';
import { abandoned, systemError } from './sockets.ts';
import { UpstreamError } from './upstream.ts';

/** One for all connections: a list of authorities given for each connection would be read anew each time. */
export function createVerifyingContext(roots: readonly string[], extra: readonly string[]): SecureContext {
  for (const pem of extra) {
    try {
      for (const one of certificatesOf(pem)) new X509Certificate(one);
    } catch (error) {
      throw new Failure('invalid', 'an extra certificate authority is not a certificate', {
        cause: error,
        hint: 'Give a file with one or more certificates in PEM form (-----BEGIN CERTIFICATE-----).',
      });
    }
  }
  return createSecureContext({ ca: [...roots, ...extra], minVersion: 'TLSv1.2' });
}

function certificatesOf(pem: string): string[] {
  const found = pem.match(
    /-----BEGIN (?:TRUSTED )?CERTIFICATE-----[^-]+-----END (?:TRUSTED )?CERTIFICATE-----/g,
  );
  if (found === null) throw new Error('no certificate in it');
  return found;
}

/**
 * Shakes hands over `socket`, which belongs to the result, or is destroyed. Rejects with UpstreamError: `upstream_tls` when the other end is not
 * who it should be or does not speak TLS as it should.
 */
export function shakeHands(
  socket: Duplex,
  options: {
    context: SecureContext;
    host: Host;
    place: string;
    alpn: readonly string[];
    /** Of an earlier connection to the very same place, for its name is not compared again. */
    session?: Buffer | undefined;
    /** Told of sessions that a later connection may resume. */
    onSession?: (session: Buffer) => void;
  },
  signal: AbortSignal,
): Promise<TLSSocket> {
  return new Promise((resolve, reject) => {
    const { host, place, session } = options;
    const name = host.kind === 'name' ? host.name : host.address;
    const fail = (error: UpstreamError) => {
      signal.removeEventListener('abort', aborted);
      tls?.destroy();
      socket.destroy();
      reject(error);
    };
    const aborted = () => fail(abandoned(signal, place));
    let tls: TLSSocket | undefined;
    if (signal.aborted) {
      aborted();
      return;
    }
    signal.addEventListener('abort', aborted, { once: true });
    try {
      tls = connect({
        socket,
        // With `socket`, the host is only what the certificate is compared with.
        host: name,
        ...(host.kind === 'name' && { servername: name }),
        secureContext: options.context,
        rejectUnauthorized: true,
        ...(options.alpn.length > 0 && { ALPNProtocols: [...options.alpn] }),
        ...(session !== undefined && { session }),
      });
    } catch (error) {
      fail(new UpstreamError('upstream_tls', `${place}: no TLS can be set up`, { cause: error }));
      return;
    }
    const connection = tls;
    // Stays for good: a late error of a connection that nobody has taken yet must find a listener.
    connection.on('error', (error) => fail(tlsError(error, place)));
    connection.once('close', () => fail(new UpstreamError('reset', `${place} broke the connection off`)));
    if (options.onSession !== undefined) connection.on('session', options.onSession);
    connection.once('secureConnect', () => {
      // Said twice, for it matters: `rejectUnauthorized` ends a connection that is not.
      if (!connection.authorized) {
        fail(tlsError(connection.authorizationError, place));
        return;
      }
      signal.removeEventListener('abort', aborted);
      resolve(connection);
    });
  });
}

const certificateTroubles: Record<string, string> = {
  CERT_HAS_EXPIRED: 'its certificate has expired',
  CERT_NOT_YET_VALID: 'its certificate is not valid yet',
  DEPTH_ZERO_SELF_SIGNED_CERT: 'its certificate is self-signed',
  SELF_SIGNED_CERT_IN_CHAIN: 'its certificate comes from an authority that is not trusted here',
  UNABLE_TO_GET_ISSUER_CERT: 'its certificate comes from an authority that is not trusted here',
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: 'its certificate comes from an authority that is not trusted here',
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: 'its certificate comes from an authority that is not trusted here',
  ERR_TLS_CERT_ALTNAME_INVALID: 'its certificate is for another name',
  CERT_REVOKED: 'its certificate has been revoked',
  INVALID_CA: 'its certificate was issued by a certificate that is no authority',
  INVALID_PURPOSE: 'its certificate is not meant for servers',
  CERT_SIGNATURE_FAILURE: 'the signature of its certificate is wrong',
  EE_KEY_TOO_SMALL: 'the key of its certificate is too weak',
  CA_MD_TOO_WEAK: 'its certificate is signed in a way that is too weak',
};

/** What went wrong, for the guest. */
function tlsError(thrown: unknown, place: string): UpstreamError {
  const error: NodeJS.ErrnoException = thrown instanceof Error ? thrown : new Error(String(thrown));
  const code = error.code ?? error.message;
  const options = { cause: error };
  const certificate = certificateTroubles[code];
  if (certificate !== undefined)
    return new UpstreamError('upstream_tls', `${place}: ${certificate}`, options);
  if (code === 'ECONNRESET' || code === 'EPIPE') return systemError({ ...error, code }, place);
  if (!code.startsWith('ERR_SSL') && error.code !== undefined && 'syscall' in error)
    return systemError(error, place);
  return new UpstreamError('upstream_tls', `${place}: ${protocolTrouble(code)}`, options);
}

function protocolTrouble(code: string): string {
  if (/UNSUPPORTED_PROTOCOL|PROTOCOL_VERSION|WRONG_SSL_VERSION/.test(code))
    return 'it speaks no version of TLS from 1.2 on';
  if (/WRONG_VERSION_NUMBER|PACKET_LENGTH|UNEXPECTED_MESSAGE|HTTP_REQUEST|RECORD_TOO|DATA_LENGTH/.test(code))
    return 'what it answers is not TLS';
  if (/DH_KEY_TOO_SMALL|BAD_ECPOINT|WRONG_SIGNATURE_TYPE|LEGACY_RENEGOTIATION/.test(code))
    return 'its TLS is too weak';
  if (/HANDSHAKE_FAILURE|NO_SHARED|NO_CIPHERS|INSUFFICIENT_SECURITY/.test(code))
    return 'no safe way of TLS is common to both ends';
  if (/CERTIFICATE_REQUIRED|BAD_CERTIFICATE/.test(code)) return 'it wants a certificate of the client';
  if (/UNRECOGNIZED_NAME/.test(code)) return 'it does not know this name';
  if (/NO_APPLICATION_PROTOCOL/.test(code)) return 'it speaks none of the protocols that the client offers';
  return 'the TLS handshake failed';
}
