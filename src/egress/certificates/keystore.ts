// Writes a trust store as Java reads it: JKS, which every JDK since the first opens by itself, whatever type it prefers.
import { createHash } from 'node:crypto';

/** The password of Java's own trust stores. It guards against accidents only: nothing in them is secret. */
const password = 'changeit';

/** The digest at the end is one over password, these words and everything before it. */
const whitener = 'Mighty Aphrodite';

const magic = 0xfeedfeed;
const version = 2;
const trustedCertificate = 2;

/**
 * A store of `common` and one more. The common part is written and digested once, for it is long and the same for all.
 * Certificates are PEM, one each.
 */
export function javaTrustStore(common: readonly string[]): (own: string) => Buffer {
  const start = Buffer.concat([
    ...[magic, version, common.length + 1].map(uint32),
    ...common.map((certificate, index) => entry(`root-${index}`, certificate)),
  ]);
  const digested = createHash('sha1').update(passwordBytes()).update(whitener).update(start);
  return (own) => {
    const last = entry('glovebox', own);
    return Buffer.concat([start, last, digested.copy().update(last).digest()]);
  };
}

function entry(alias: string, certificate: string): Buffer {
  const der = Buffer.from(certificate.replaceAll(/-----.*-----|\s/g, ''), 'base64');
  // Between alias and type stands when it was added: never, so that the same certificates make the same store.
  return Buffer.concat([
    uint32(trustedCertificate),
    shortText(alias),
    Buffer.alloc(8),
    shortText('X.509'),
    uint32(der.length),
    der,
  ]);
}

function passwordBytes(): Buffer {
  return Buffer.from(password, 'utf16le').swap16();
}

function shortText(value: string): Buffer {
  const length = Buffer.alloc(2);
  length.writeUInt16BE(value.length);
  return Buffer.concat([length, Buffer.from(value, 'latin1')]);
}

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}
