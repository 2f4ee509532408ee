// Which authorities are trusted on this host, for our own connections to the world and for guests: the system's, and those of files that the operator names.
import { X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { rootCertificates } from 'node:tls';
import { Failure } from '../../lib/failure.ts';

/** Where systems keep all their roots in one file: Debian and Alpine and Arch, Fedora, older Red Hat, SUSE, NixOS, others. */
const systemStores = [
  '/etc/ssl/certs/ca-certificates.crt',
  '/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem',
  '/etc/pki/tls/certs/ca-bundle.crt',
  '/etc/ssl/ca-bundle.pem',
  '/etc/ssl/certs/ca-bundle.crt',
  '/etc/ssl/cert.pem',
];

const fileBytesMax = 4 * 1024 * 1024;

/**
 * The system's roots, each once, else those that come with Node.js. Takes some milliseconds: ask once. Node's own `tls.getCACertificates('system')`
 * reads each certificate of a folder as well, thus most of them several times, and takes a tenth of a second for it.
 */
export function systemRoots(stores: readonly string[] = systemStores): string[] {
  for (const store of stores) {
    const roots = new Set(blocksOf(contentOf(store)).filter((block) => parse(block) !== undefined));
    if (roots.size > 0) return [...roots];
  }
  return [...rootCertificates];
}

function contentOf(path: string): string {
  try {
    return readFileSync(path, 'latin1');
  } catch {
    // Another system keeps it elsewhere.
    return '';
  }
}

/**
 * The certificates of PEM files that the operator names, for authorities that the system does not know. Rejects with Failure('invalid') for a file
 * that cannot be what was meant. What has expired is kept and warned of: it harms nothing, and the others of its file are needed.
 */
export async function readExtraAuthorities(
  paths: readonly string[],
  options: { now: () => Date; warn: (fields: { file: string; subject: string }, message: string) => void },
): Promise<string[]> {
  const found = new Set<string>();
  for (const path of paths) {
    for (const block of certificatesOf(path, await readBounded(path))) {
      found.add(block.pem);
      if (block.certificate.validToDate < options.now()) {
        const subject = block.certificate.subject.replaceAll('\n', ', ');
        options.warn({ file: path, subject }, 'an extra certificate authority has expired');
      }
    }
  }
  return [...found];
}

async function readBounded(path: string): Promise<string> {
  try {
    await using file = await open(path, 'r');
    const stats = await file.stat();
    if (!stats.isFile()) throw refusal(path, 'it is not a file', 'Name a file of certificates in PEM form');
    if (stats.size > fileBytesMax)
      throw refusal(path, `it is longer than ${fileBytesMax} bytes`, 'Name a file of certificates only');
    return await file.readFile('latin1');
  } catch (error) {
    if (error instanceof Failure) throw error;
    const why = (error as NodeJS.ErrnoException).code === 'ENOENT' ? 'there is no such file' : String(error);
    throw refusal(path, why, 'Name a file that the daemon can read', error);
  }
}

function certificatesOf(path: string, content: string): { pem: string; certificate: X509Certificate }[] {
  if (content.trim() === '') throw refusal(path, 'it is empty', 'Put the certificates into it, in PEM form');
  if (/-----BEGIN [A-Z ]*PRIVATE KEY-----/.test(content))
    throw refusal(
      path,
      'it holds a private key, which has no business here',
      'Put the certificates alone into a file of their own',
    );
  const blocks = blocksOf(content);
  if (blocks.length === 0)
    throw refusal(
      path,
      'it holds no certificate in PEM form',
      `If it is one in DER form, run 'openssl x509 -inform der -in ${path} -out ${path}.pem' and name that file`,
    );
  return blocks.map((pem, index) => {
    const certificate = parse(pem);
    const which = blocks.length === 1 ? 'its certificate' : `its certificate number ${index + 1}`;
    if (certificate === undefined)
      throw refusal(path, `${which} cannot be read`, 'Get the file anew from whoever runs the authority');
    // Version 1 certificates cannot say that they are authorities; as roots they still are.
    if (!certificate.ca && certificate.issuer !== certificate.subject)
      throw refusal(
        path,
        `${which} is a server's (${certificate.subject.replaceAll('\n', ', ')}), not an authority's`,
        'Name the certificate of the authority that has issued it',
      );
    return { pem, certificate };
  });
}

function refusal(path: string, why: string, hint: string, cause?: unknown): Failure {
  return new Failure('invalid', `read certificate authorities from ${path}: ${why}`, {
    hint,
    ...(cause === undefined ? {} : { cause }),
  });
}

/**
 * The certificates of a PEM file, one line end each. The file may be a hostile guest's: it takes time in proportion to its length, for base64 has no
 * dash, so that what follows a start without an end is not looked at again.
 */
export function blocksOf(content: string): string[] {
  const blocks = content.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? [];
  return blocks.map((block) => {
    const lines = block.split('\n').map((line) => line.trim());
    return `${lines.filter((line) => line !== '').join('\n')}\n`;
  });
}

function parse(pem: string): X509Certificate | undefined {
  try {
    return new X509Certificate(pem);
  } catch {
    return undefined;
  }
}
