// Where the server is and what key it wants, when the caller does not say: environment variables first, then what a daemon of this
// machine wrote into its home. The only file of this package that reads the environment. In a browser there is nothing to read.
import { UnavailableError, ValidationError } from './errors.ts';
import type { TlsSettings } from './tls.ts';

export interface Where {
  /** Without a slash at the end and without `/v1`. */
  url: string;
  apiKey: string | undefined;
  /** What shows a daemon of this machine that the request comes from its own user. */
  ownerKey?: string | undefined;
  /** PEM: what that daemon shows, one of these. */
  certificates?: readonly string[] | undefined;
}

interface Platform {
  env?: Record<string, string | undefined>;
  versions?: { node?: string };
}

const platform = (globalThis as { process?: Platform }).process ?? {};

/** `$GLOVEBOX_HOME`, else `~/.glovebox`. */
async function defaultHome(): Promise<string> {
  const { homedir } = await import('node:os');
  return platform.env?.GLOVEBOX_HOME || `${homedir()}/.glovebox`;
}

function fromEnvironment(): Where | undefined {
  const env = platform.env ?? {};
  const apiKey = env.GLOVEBOX_API_KEY || env.OPEN_SANDBOX_API_KEY || undefined;
  if (env.GLOVEBOX_URL) return { url: env.GLOVEBOX_URL, apiKey };
  if (!env.OPEN_SANDBOX_DOMAIN) return undefined;
  const domain = env.OPEN_SANDBOX_DOMAIN;
  return {
    url: domain.includes('://') ? domain : `${env.OPEN_SANDBOX_PROTOCOL || 'http'}://${domain}`,
    apiKey,
  };
}

/** Reads `daemon.json` and `api-key`. Throws UnavailableError when no daemon has left them there. */
async function fromHome(home: string): Promise<Where> {
  const { readFile } = await import('node:fs/promises');
  try {
    const { url, certificates } = JSON.parse(await readFile(`${home}/daemon.json`, 'utf8')) as {
      url?: unknown;
      certificates?: unknown;
    };
    if (typeof url !== 'string') throw new Error('daemon.json has no url');
    const pinned = Array.isArray(certificates) ? certificates.map(String) : undefined;
    const apiKey =
      platform.env?.GLOVEBOX_API_KEY ||
      (await readFile(`${home}/api-key`, 'utf8').catch((error: NodeJS.ErrnoException) => {
        // A daemon without keys writes none; a key that is not for us is worth a word.
        if (error.code === 'ENOENT') return undefined;
        throw error;
      }));
    const ownerKey = await readFile(`${home}/owner-key`, 'utf8').catch(() => undefined);
    return { url, apiKey: apiKey?.trim(), ownerKey: ownerKey?.trim(), certificates: pinned };
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    throw new UnavailableError(
      'unavailable',
      code === 'ENOENT' ? `no daemon runs with the home ${home}` : `read ${home}: ${message}`,
      { hint: 'Start one with `glovebox serve`, or set GLOVEBOX_URL and GLOVEBOX_API_KEY.', cause },
    );
  }
}

/** `home` goes before the environment, the environment before the default home. */
export async function discover(home: string | undefined): Promise<Where> {
  const found = home === undefined ? fromEnvironment() : undefined;
  if (found) return found;
  if (platform.versions?.node === undefined) {
    throw new UnavailableError('unavailable', 'no server is named', { hint: 'Pass `url` and `apiKey`.' });
  }
  return await fromHome(home ?? (await defaultHome()));
}

/** PEM text, or the path of a file that holds it. */
async function pemOf(given: string | undefined, what: string): Promise<string | undefined> {
  if (given === undefined || given === '' || given.includes('-----BEGIN ')) return given || undefined;
  try {
    const { readFile } = await import('node:fs/promises');
    return await readFile(given, 'utf8');
  } catch (cause) {
    throw new ValidationError('invalid', `${what}: read ${given}: ${(cause as Error).message}`, {
      ...{ cause, hint: 'It is a file of PEM, or the text of one.' },
    });
  }
}

/** Undefined when there is nothing but what the platform does by itself. What is passed in goes before the environment. */
export async function tlsFor(
  given: { ca?: string | undefined; cert?: string | undefined; key?: string | undefined },
  pinned: readonly string[] | undefined,
): Promise<TlsSettings | undefined> {
  const env = platform.env ?? {};
  const [ca, cert, key] = await Promise.all([
    pemOf(given.ca ?? (pinned === undefined ? env.GLOVEBOX_CA_FILE : undefined), 'ca'),
    pemOf(given.cert ?? env.GLOVEBOX_CLIENT_CERT_FILE, 'cert'),
    pemOf(given.key ?? env.GLOVEBOX_CLIENT_KEY_FILE, 'key'),
  ]);
  if ((cert === undefined) !== (key === undefined))
    throw new ValidationError(
      'invalid',
      'a certificate of this client needs its key, and a key its certificate',
      {
        hint: 'Set both GLOVEBOX_CLIENT_CERT_FILE and GLOVEBOX_CLIENT_KEY_FILE, or pass both `cert` and `key`.',
      },
    );
  const known = ca === undefined ? pinned : undefined;
  return ca === undefined && cert === undefined && known === undefined
    ? undefined
    : { ca, cert, key, pinned: known };
}
