// What makes a guest's programs use the way out and trust it: files that it finds in its run folder, variables for its commands, and a place in the
// trust store of its image. None of it is a wall: a guest may ignore or break all of it and gets no further for that.
import { X509Certificate } from 'node:crypto';
import type { Readable } from 'node:stream';
import { guestFolder, proxyPort } from '../contract/guest-wire.ts';
import type { Guest } from '../guest/guest.ts';
import { Failure } from '../lib/failure.ts';
import { subjectHash } from './certificates/certificate.ts';
import { javaTrustStore } from './certificates/keystore.ts';
import { blocksOf } from './certificates/roots.ts';

const folder = `${guestFolder}/run`;
/** The sandbox's authority alone, for programs that add it to roots of their own. */
const authorityFile = 'ca.crt';
/** All roots and the authority, for programs that take a file in place of their own. */
const bundleFile = 'ca-bundle.crt';
const javaFile = 'ca.jks';
const aptFile = 'apt.conf';

/**
 * The files of a sandbox, name → content, for `/.glovebox/run`. Users of all kinds have to be able to read them there. `roots` are what servers that
 * are not looked into are verified by; what all sandboxes share of them is made here, once, so that a sandbox costs copies only.
 */
export function prepareTrustFiles(
  roots: readonly string[],
): (authorityPem: string) => Record<string, Uint8Array> {
  const joined = Buffer.from(roots.map((root) => `${root.trim()}\n`).join(''));
  const javaStore = javaTrustStore(roots);
  const apt = Buffer.from(`Acquire::https::CAInfo "${folder}/${bundleFile}";\n`);
  return (authorityPem) => {
    const authority = Buffer.from(authorityPem);
    return {
      [authorityFile]: authority,
      [bundleFile]: Buffer.concat([joined, authority]),
      [javaFile]: javaStore(authorityPem),
      [aptFile]: apt,
    };
  };
}

/** The variables for every command. The same in all sandboxes. */
export function trustEnvironment(): Record<string, string> {
  const proxy = `http://127.0.0.1:${proxyPort}`;
  // Without brackets: with them, httpx fails at its start, and some programs take them for a pattern that everything matches.
  const direct = 'localhost,127.0.0.1,::1';
  const authority = `${folder}/${authorityFile}`;
  const bundle = `${folder}/${bundleFile}`;
  const java = [
    `-Djavax.net.ssl.trustStore=${folder}/${javaFile}`,
    // Java goes past them for loopback by itself.
    ...['http', 'https'].flatMap((scheme) => [
      `-D${scheme}.proxyHost=127.0.0.1`,
      `-D${scheme}.proxyPort=${proxyPort}`,
    ]),
  ];
  return {
    // Both spellings: curl reads http_proxy in small letters only, others the large ones only. Not ALL_PROXY with SOCKS: httpx, and with it the clients
    // of most model providers, fails at its start when it finds it and lacks a package. What heeds no proxy is caught on its way anyway.
    HTTP_PROXY: proxy,
    http_proxy: proxy,
    HTTPS_PROXY: proxy,
    https_proxy: proxy,
    NO_PROXY: direct,
    no_proxy: direct,
    NODE_USE_ENV_PROXY: '1',
    // OpenSSL, and what is built upon it (Python, Ruby, PHP, .NET); Go; rustls and uv.
    SSL_CERT_FILE: bundle,
    NIX_SSL_CERT_FILE: bundle,
    CURL_CA_BUNDLE: bundle,
    GIT_SSL_CAINFO: bundle,
    REQUESTS_CA_BUNDLE: bundle,
    PIP_CERT: bundle,
    // In front of what an npmrc of the image may name.
    npm_config_cafile: bundle,
    CARGO_HTTP_CAINFO: bundle,
    AWS_CA_BUNDLE: bundle,
    CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE: bundle,
    GRPC_DEFAULT_SSL_ROOTS_FILE_PATH: bundle,
    BUNDLE_SSL_CA_CERT: bundle,
    HEX_CACERTS_PATH: bundle,
    // These add to roots of the program's own. Yarn and Bun go by the first, too.
    NODE_EXTRA_CA_CERTS: authority,
    DENO_CERT: authority,
    JAVA_TOOL_OPTIONS: java.join(' '),
    APT_CONFIG: `${folder}/${aptFile}`,
  };
}

/** Where images keep all their roots in one file; several names may lead to the same one. */
const bundles = [
  '/etc/ssl/certs/ca-certificates.crt', // Debian, Ubuntu, Alpine, Arch
  '/etc/ssl/cert.pem', // Alpine
  '/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem', // Fedora, Red Hat
  '/etc/pki/tls/certs/ca-bundle.crt',
  '/etc/ssl/ca-bundle.pem', // SUSE
];

/** From where the image's own tools make those files anew, so that the authority stays in them. */
const anchorFolders = [
  '/usr/local/share/ca-certificates',
  '/etc/pki/ca-trust/source/anchors',
  '/etc/pki/trust/anchors',
  '/etc/ca-certificates/trust-source/anchors',
];

/** Where OpenSSL looks for a certificate by its subject. */
const hashedFolder = '/etc/ssl/certs';

const storeBytesMax = 4 * 1024 * 1024;

/**
 * Puts the authority into the image's own trust store, as far as there is one that can be written to, for programs that do not get the variables (run
 * by sudo, cron, another user). Can be repeated. Resolves with the files that were changed; rejects when the guest is lost or the signal fires.
 */
export async function installTrust(
  guest: Guest,
  authorityPem: string,
  signal: AbortSignal,
): Promise<{ installed: string[] }> {
  const certificate = new X509Certificate(authorityPem);
  // Signatures differ from one start of the daemon to the next; the key is what makes it this authority.
  const key = certificate.publicKey.export({ type: 'spki', format: 'der' });
  const commonName = /^CN=(.*)$/m.exec(certificate.subject)?.[1] ?? '';
  const kinds = await Promise.all(
    [...bundles, ...anchorFolders, hashedFolder].map(
      async (path) => [path, await whereAnswered(guest.stat(path, { follow: true }, signal))] as const,
    ),
  );
  const kindOf = new Map(kinds.map(([path, entry]) => [path, entry?.kind]));
  const places = [
    ...bundles.filter((path) => kindOf.get(path) === 'file').map((path) => ({ path, append: true })),
    ...anchorFolders
      .filter((path) => kindOf.get(path) === 'directory')
      .map((path) => ({ path: `${path}/glovebox.crt`, append: false })),
    ...(kindOf.get(hashedFolder) === 'directory'
      ? [{ path: `${hashedFolder}/${subjectHash(commonName)}.0`, append: false }]
      : []),
  ];
  const installed: string[] = [];
  // One after the other, for several names may lead to one file.
  for (const { path, append } of places) {
    const content = await whereAnswered(contentOf(guest, path, signal));
    if (content === 'unusable' || (append && content === undefined)) continue;
    if (content !== undefined && holds(content, key)) continue;
    const separator = append && content !== '' && !content?.endsWith('\n') ? '\n' : '';
    const source = once(Buffer.from(`${separator}${authorityPem}`));
    const written = await whereAnswered(
      guest.write(path, source, append ? { append } : { mode: 0o644 }, signal),
    );
    if (written !== undefined) installed.push(path);
  }
  return { installed };
}

/** Undefined where the guest itself says no: nothing there, read-only, no room. Other failures are about the guest as a whole. */
async function whereAnswered<T>(asked: Promise<T>): Promise<T | undefined> {
  try {
    return await asked;
  } catch (error) {
    if (error instanceof Failure && error.details?.guest !== undefined) return undefined;
    throw error;
  }
}

/** `unusable`: no regular file, or longer than a trust store is. The guest says what it is and may lie; what is kept of it is bounded. */
async function contentOf(guest: Guest, path: string, signal: AbortSignal): Promise<string | 'unusable'> {
  const { entry, bytes } = await guest.read(path, { length: storeBytesMax + 1 }, signal);
  if (entry.kind !== 'file' || entry.size > storeBytesMax) {
    bytes.destroy();
    return 'unusable';
  }
  return (await bounded(bytes)) ?? 'unusable';
}

async function bounded(bytes: Readable): Promise<string | undefined> {
  const pieces: Buffer[] = [];
  let size = 0;
  for await (const piece of bytes as AsyncIterable<Buffer>) {
    size += piece.length;
    if (size > storeBytesMax) return undefined;
    pieces.push(piece);
  }
  return Buffer.concat(pieces).toString('latin1');
}

function holds(content: string, key: Buffer): boolean {
  return blocksOf(content).some((block) =>
    Buffer.from(block.replaceAll(/-----.*-----|\s/g, ''), 'base64').includes(key),
  );
}

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}
