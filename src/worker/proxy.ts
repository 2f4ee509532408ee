// Which proxy a connection goes through, by the variables that everybody knows: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY, each also in small letters, which win.
import { BlockList, isIP } from 'node:net';
import { Failure } from '../lib/failure.ts';

type Environment = Readonly<Record<string, string | undefined>>;

/** Undefined: connect directly. Failure('invalid') for a variable that is no address of an HTTP proxy. */
export function proxyFor(url: URL, env: Environment): URL | undefined {
  const secure = url.protocol === 'wss:' || url.protocol === 'https:';
  const port = url.port === '' ? (secure ? 443 : 80) : Number(url.port);
  if (isExempt(bare(url.hostname), port, variable(env, 'NO_PROXY')?.value ?? '')) return undefined;
  const found = variable(env, secure ? 'HTTPS_PROXY' : 'HTTP_PROXY') ?? variable(env, 'ALL_PROXY');
  if (found === undefined) return undefined;
  const text = found.value.includes('://') ? found.value : `http://${found.value}`;
  const proxy = URL.canParse(text) ? new URL(text) : undefined;
  if (proxy === undefined || !['http:', 'https:'].includes(proxy.protocol) || proxy.hostname === '') {
    // It may hold a password.
    throw new Failure('invalid', `${found.name} is no address of an HTTP proxy`, {
      hint: 'Write it as http://HOST:PORT or http://USER:PASSWORD@HOST:PORT; SOCKS is not spoken here.',
    });
  }
  return proxy;
}

/** For messages: without user and password. */
export function shownProxy(proxy: URL): string {
  return `${proxy.protocol}//${proxy.host}`;
}

function variable(env: Environment, name: string): { name: string; value: string } | undefined {
  for (const it of [name.toLowerCase(), name]) {
    const value = env[it]?.trim();
    if (value !== undefined && value !== '') return { name: it, value };
  }
  return undefined;
}

/** Entries: `*`, a host and what is below it (`example.com`, `.example.com`, `*.example.com`), an address, a network, each with `:PORT` or without. */
function isExempt(host: string, port: number, entries: string): boolean {
  return entries
    .split(/[\s,]+/)
    .filter((it) => it !== '')
    .some((entry) => matches(entry.toLowerCase(), host.toLowerCase(), port));
}

function matches(entry: string, host: string, port: number): boolean {
  if (entry === '*') return true;
  const [, name = '', portText] =
    isIP(entry) === 6 ? ['', entry] : (/^(\[[^\]]*\]|[^:]*)(?::(\d+))?$/.exec(entry) ?? ['', entry]);
  if (portText !== undefined && Number(portText) !== port) return false;
  const wanted = bare(name);
  const [base = '', bits] = wanted.split('/');
  const family = isIP(base);
  if (family !== 0) return isIP(host) === family && inNetwork(host, base, bits);
  const suffix = wanted.replace(/^\*?\./, '');
  return suffix !== '' && (host === suffix || host.endsWith(`.${suffix}`));
}

function inNetwork(address: string, base: string, bits: string | undefined): boolean {
  const kind = isIP(base) === 6 ? 'ipv6' : 'ipv4';
  const longest = kind === 'ipv6' ? 128 : 32;
  const length = bits === undefined ? longest : Number(bits);
  if (!Number.isInteger(length) || length < 0 || length > longest) return false;
  const network = new BlockList();
  network.addSubnet(base, length, kind);
  return network.check(address, kind);
}

const bare = (host: string) => host.replace(/^\[|\]$/g, '');
