// Certificates for tests, good ones and bad ones: a small writer of DER, so that no test needs the openssl command.
import { createPrivateKey, generateKeyPairSync, type KeyObject, randomBytes, sign } from 'node:crypto';
import { isIPv4 } from 'node:net';

export interface Identity {
  /** PEM. */
  cert: string;
  key: string;
}

export interface CertificateWishes {
  /** Names and IPv4 addresses that it is for; the first is also its subject. */
  names: string[];
  /** Who signs it; itself when absent. */
  issuer?: Identity & { name: string };
  /** A number of its own when absent; for a list of those revoked. */
  serial?: Buffer;
  authority?: boolean;
  notBefore?: Date;
  notAfter?: Date;
}

const dayMs = 86_400_000;

export function makeCertificate(wishes: CertificateWishes): Identity & { name: string } {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const name = wishes.names[0] as string;
  const issuerKey: KeyObject = wishes.issuer === undefined ? privateKey : createPrivateKey(wishes.issuer.key);
  const body = der(
    0x30,
    der(0xa0, der(0x02, Buffer.from([2]))),
    der(0x02, wishes.serial ?? newSerial()),
    ecdsaWithSha256,
    subject(wishes.issuer?.name ?? name),
    der(
      0x30,
      time(wishes.notBefore ?? new Date(Date.now() - dayMs)),
      time(wishes.notAfter ?? new Date(Date.now() + dayMs)),
    ),
    subject(name),
    publicKey.export({ type: 'spki', format: 'der' }),
    der(0xa3, der(0x30, ...extensions(wishes))),
  );
  return {
    name,
    cert: signedPem('CERTIFICATE', body, issuerKey),
    key: privateKey.export({ type: 'pkcs8', format: 'pem' }) as string,
  };
}

/** A list of an authority's certificates that count no more, by their serial numbers. */
export function makeRevocationList(
  issuer: Identity & { name: string },
  serials: readonly Buffer[],
  nextUpdate = new Date(Date.now() + dayMs),
): string {
  const since = time(new Date(Date.now() - dayMs));
  const revoked = serials.map((serial) => der(0x30, der(0x02, serial), since));
  const body = der(
    0x30,
    der(0x02, Buffer.from([1])),
    ecdsaWithSha256,
    subject(issuer.name),
    since,
    time(nextUpdate),
    ...(revoked.length === 0 ? [] : [der(0x30, ...revoked)]),
  );
  return signedPem('X509 CRL', body, createPrivateKey(issuer.key));
}

function signedPem(label: string, body: Buffer, key: KeyObject): string {
  const signature = der(0x03, Buffer.from([0]), sign('sha256', body, key));
  const lines =
    der(0x30, body, ecdsaWithSha256, signature)
      .toString('base64')
      .match(/.{1,64}/g) ?? [];
  return `-----BEGIN ${label}-----\n${lines.join('\n')}\n-----END ${label}-----\n`;
}

export const newSerial = () => Buffer.concat([Buffer.from([1]), randomBytes(15)]);

export const makeAuthority = (name = 'Test authority') => makeCertificate({ names: [name], authority: true });

function extensions({ names, authority = false }: CertificateWishes): Buffer[] {
  const basic = der(0x30, oid('551d13'), critical, octets(der(0x30, ...(authority ? [critical] : []))));
  if (authority) return [basic];
  const alternatives = names.map((name) =>
    isIPv4(name) ? der(0x87, Buffer.from(name.split('.').map(Number))) : der(0x82, Buffer.from(name)),
  );
  return [basic, der(0x30, oid('551d11'), octets(der(0x30, ...alternatives)))];
}

/** TRUE, which is what an extension marks itself critical with. */
const critical = Buffer.from([0x01, 0x01, 0xff]);
const oid = (hex: string) => der(0x06, Buffer.from(hex, 'hex'));
const ecdsaWithSha256 = der(0x30, oid('2a8648ce3d040302'));
const octets = (content: Buffer) => der(0x04, content);
const subject = (name: string) =>
  der(0x30, der(0x31, der(0x30, oid('550403'), der(0x0c, Buffer.from(name)))));
const time = (at: Date) => der(0x18, Buffer.from(`${at.toISOString().replace(/[-:T]|\.\d+/g, '')}`));

function der(tag: number, ...parts: Buffer[]): Buffer {
  const content = Buffer.concat(parts);
  const length =
    content.length < 0x80
      ? [content.length]
      : content.length < 0x100
        ? [0x81, content.length]
        : [0x82, content.length >> 8, content.length & 0xff];
  return Buffer.concat([Buffer.from([tag, ...length]), content]);
}
