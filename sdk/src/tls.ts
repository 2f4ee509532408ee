// How a server with TLS is known and how a client shows who it is there, and what is wrong when the two do not come together.
import type { ErrorCode } from './errors.ts';

/** PEM, all of it. */
export interface TlsSettings {
  /** Instead of the authorities of the platform. */
  ca?: string | undefined;
  /** What the client shows, and its key. */
  cert?: string | undefined;
  key?: string | undefined;
  /** The server shows one of exactly these, whatever names it holds. Goes before `ca`. */
  pinned?: readonly string[] | undefined;
}

/** Code of the error for a certificate that is none of those pinned. */
export const notPinned = 'GLOVEBOX_CERT_NOT_PINNED';

const unknownIssuer = new Set([
  'UNABLE_TO_VERIFY_LEAF_SIGNATURE',
  'UNABLE_TO_GET_ISSUER_CERT',
  'UNABLE_TO_GET_ISSUER_CERT_LOCALLY',
  'SELF_SIGNED_CERT_IN_CHAIN',
  'DEPTH_ZERO_SELF_SIGNED_CERT',
  'CERT_UNTRUSTED',
  'CERT_SIGNATURE_FAILURE',
  'INVALID_CA',
  'INVALID_PURPOSE',
]);

/** The server’s answer to the certificate that a client showed, or did not show (RFC 8446 §6.2). */
const refusedByServer =
  /^ERR_SSL_.*ALERT_(BAD_CERTIFICATE|UNSUPPORTED_CERTIFICATE|CERTIFICATE_(REQUIRED|REVOKED|EXPIRED|UNKNOWN)|UNKNOWN_CA|ACCESS_DENIED|HANDSHAKE_FAILURE)$/;

/** What went wrong while writing is told in the words of OpenSSL alone: `ERR_SSL_…` as for reading. */
export function tlsCodeIn(message: string): string | undefined {
  const reason = /:SSL routines:[^:]*:([^:]+):/.exec(message)?.[1];
  return (
    reason &&
    `ERR_SSL_${reason
      .trim()
      .toUpperCase()
      .replace(/[^A-Z0-9]+/g, '_')}`
  );
}

export interface TlsTrouble {
  code: ErrorCode;
  what: string;
  hint: string;
}

/** Of a handshake that failed; undefined for every other error. The request was not sent, or not read. */
export function tlsTrouble(system: string, url: URL, tls: TlsSettings | undefined): TlsTrouble | undefined {
  const at = url.origin;
  if (system === notPinned || (tls?.pinned !== undefined && unknownIssuer.has(system)))
    return {
      code: 'unauthenticated',
      what: `${at} does not show the certificate that the daemon of this home has left there`,
      hint: 'Something else listens there, or daemon.json is of an earlier daemon: restart the daemon.',
    };
  if (unknownIssuer.has(system))
    return {
      code: 'unauthenticated',
      what: `the certificate of ${at} is of no authority that is trusted here (${system})`,
      hint: 'Set GLOVEBOX_CA_FILE to the certificate of its authority (PEM), or pass `ca`.',
    };
  if (system === 'ERR_TLS_CERT_ALTNAME_INVALID')
    return {
      code: 'unauthenticated',
      what: `the certificate of ${at} is not for ${url.hostname}`,
      hint: 'Use a name in the address that the certificate holds, or have one issued for this one.',
    };
  if (system === 'CERT_HAS_EXPIRED' || system === 'CERT_NOT_YET_VALID')
    return {
      code: 'unauthenticated',
      what: `the certificate of ${at} is ${system === 'CERT_HAS_EXPIRED' ? 'no longer' : 'not yet'} valid`,
      hint: 'Have the server’s certificate renewed, or look at the clocks of both machines.',
    };
  if (refusedByServer.test(system))
    return {
      code: 'unauthenticated',
      what:
        tls?.cert === undefined
          ? `${at} asks for the certificate of its clients`
          : `${at} does not accept the certificate of this client (${system})`,
      hint: 'Set GLOVEBOX_CLIENT_CERT_FILE and GLOVEBOX_CLIENT_KEY_FILE to one that its authority has issued, or pass `cert` and `key`.',
    };
  if (system === 'ERR_SSL_WRONG_VERSION_NUMBER' || system === 'ERR_SSL_PACKET_LENGTH_TOO_LONG')
    return {
      code: 'protocol',
      what: `${at} does not speak TLS`,
      hint: 'Write http:// in the address, or give the server a certificate.',
    };
  if (/^ERR_SSL_.*(PROTOCOL_VERSION|UNSUPPORTED_PROTOCOL)$/.test(system))
    return {
      code: 'protocol',
      what: `${at} speaks no version of TLS that this client does`,
      hint: 'The server has the oldest that it speaks in server.tls.min_version.',
    };
  return undefined;
}
