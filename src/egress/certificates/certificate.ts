// Builds and signs X.509 version 3 certificates of P-256 keys: an authority's own, and those of servers below it. RFC 5280 as strict verifiers read it
// (Python 3.13 and newer, Go, Java, GnuTLS): key identifiers always there, criticality as prescribed, a serial that is positive and short enough.
import { createHash, createPrivateKey, createPublicKey, type KeyObject, sign } from 'node:crypto';
import { isIPv4, isIPv6 } from 'node:net';
import { bits, explicit, implicit, integer, octets, oid, sequence, set, text, time, yes } from './der.ts';

const organization = 'Glovebox';

const ecdsaWithSha256 = sequence(oid('1.2.840.10045.4.3.2'));

const authorityExtensions = [
  extension('2.5.29.19', sequence(yes, integer(0)), 'critical'), // basicConstraints: CA, and none below it
  extension('2.5.29.15', bits(Buffer.from([0b0000_0110]), 1), 'critical'), // keyUsage: keyCertSign, cRLSign
];

const serverExtensions = [
  extension('2.5.29.19', sequence(), 'critical'), // basicConstraints: no CA
  extension('2.5.29.15', bits(Buffer.from([0b1000_0000]), 7), 'critical'), // keyUsage: digitalSignature
  extension('2.5.29.37', sequence(oid('1.3.6.1.5.5.7.3.1'))), // extKeyUsage: serverAuth
];

/** Longer ones are no valid common names. */
export const commonNameMax = 64;

/** A key together with what certificates say of its public half; computed once, for it costs more than a signature. */
export interface CertificateKey {
  readonly privateKey: KeyObject;
  /** SubjectPublicKeyInfo, DER. */
  readonly publicKey: Buffer;
  readonly identifier: Buffer;
}

export interface Signer {
  key: CertificateKey;
  /** The common name in the authority's subject. */
  name: string;
}

export interface Validity {
  notBefore: Date;
  notAfter: Date;
}

/** The P-256 key with this secret number, which has to be below the curve's order and not zero. */
export function p256Key(scalar: Uint8Array): CertificateKey {
  const key = sequence(integer(1), octets(scalar), explicit(0, oid('1.2.840.10045.3.1.7')));
  return certificateKey(createPrivateKey({ key, format: 'der', type: 'sec1' }));
}

export function certificateKey(privateKey: KeyObject): CertificateKey {
  const publicKey = createPublicKey(privateKey).export({ type: 'spki', format: 'der' });
  // RFC 7093, method 1: of the key's bits alone, which are the last 65 bytes of a P-256 key's structure.
  const identifier = createHash('sha256').update(publicKey.subarray(-65)).digest().subarray(0, 20);
  return { privateKey, publicKey, identifier };
}

/** An authority that signs servers' certificates only, by its own key. PEM. */
export function authorityCertificate(authority: Signer, serial: Buffer, validity: Validity): string {
  return signed(authority, {
    serial,
    validity,
    subject: nameOf(authority.name),
    key: authority.key,
    extensions: authorityExtensions,
  });
}

/** A server's certificate for one DNS name or address. PEM. */
export function serverCertificate(
  authority: Signer,
  server: { host: string; key: CertificateKey; serial: Buffer; validity: Validity },
): string {
  return signed(authority, {
    serial: server.serial,
    validity: server.validity,
    // Clients look at the alternative names alone; the subject is for people.
    subject: nameOf(server.host.length <= commonNameMax ? server.host : undefined),
    key: server.key,
    extensions: [...serverExtensions, extension('2.5.29.17', sequence(alternativeName(server.host)))],
  });
}

interface Fields {
  serial: Buffer;
  validity: Validity;
  subject: Buffer;
  key: CertificateKey;
  extensions: Buffer[];
}

function signed(authority: Signer, fields: Fields): string {
  const body = sequence(
    explicit(0, integer(2)), // version 3
    integer(...fields.serial),
    ecdsaWithSha256,
    nameOf(authority.name),
    sequence(time(fields.validity.notBefore), time(fields.validity.notAfter)),
    fields.subject,
    fields.key.publicKey,
    explicit(
      3,
      sequence(
        ...fields.extensions,
        extension('2.5.29.14', octets(fields.key.identifier)),
        extension('2.5.29.35', sequence(implicit(0, authority.key.identifier))),
      ),
    ),
  );
  const signature = sign('sha256', body, { key: authority.key.privateKey, dsaEncoding: 'der' });
  return pem(sequence(body, ecdsaWithSha256, bits(signature)));
}

export function pem(certificate: Uint8Array): string {
  const lines =
    Buffer.from(certificate)
      .toString('base64')
      .match(/.{1,64}/g) ?? [];
  return `-----BEGIN CERTIFICATE-----\n${lines.join('\n')}\n-----END CERTIFICATE-----\n`;
}

/**
 * The name of the file, without its `.0`, under which OpenSSL looks for an authority of ours in a folder of certificates: SHA-1 over its subject in
 * small letters, of which the first four bytes count, in little-endian order.
 */
export function subjectHash(authorityName: string): string {
  const subject = Buffer.concat(attributesOf(authorityName.toLowerCase(), organization.toLowerCase()));
  const hash = createHash('sha1').update(subject).digest().readUInt32LE(0);
  return hash.toString(16).padStart(8, '0');
}

function nameOf(commonName: string | undefined): Buffer {
  return sequence(...attributesOf(commonName, organization));
}

function attributesOf(commonName: string | undefined, organizationName: string): Buffer[] {
  const attribute = (type: string, value: string) => set(sequence(oid(type), text(value)));
  return [
    attribute('2.5.4.10', organizationName),
    ...(commonName === undefined ? [] : [attribute('2.5.4.3', commonName)]),
  ];
}

function extension(id: string, value: Buffer, critical?: 'critical'): Buffer {
  return sequence(oid(id), ...(critical === undefined ? [] : [yes]), octets(value));
}

function alternativeName(host: string): Buffer {
  if (isIPv4(host)) return implicit(7, Buffer.from(host.split('.').map(Number)));
  if (isIPv6(host)) return implicit(7, ipv6Bytes(host));
  return implicit(2, Buffer.from(host, 'latin1'));
}

/** The 16 bytes of a valid IPv6 address in any of its spellings, without a zone. */
function ipv6Bytes(address: string): Buffer {
  const groups = (part: string): string[] => (part === '' ? [] : part.split(':'));
  const hex = address.replace(/(\d+)\.(\d+)\.(\d+)\.(\d+)$/, (_, ...quad: string[]) => {
    const [a, b, c, d] = quad.slice(0, 4).map(Number) as [number, number, number, number];
    return `${(a * 256 + b).toString(16)}:${(c * 256 + d).toString(16)}`;
  });
  const [before, after] = hex.split('::') as [string, string?];
  const head = groups(before);
  const tail = groups(after ?? '');
  const zeros = new Array<string>(8 - head.length - tail.length).fill('0');
  const bytes = Buffer.alloc(16);
  for (const [at, group] of [...head, ...zeros, ...tail].entries())
    bytes.writeUInt16BE(Number.parseInt(group, 16), at * 2);
  return bytes;
}
