// Opens a web page in the owner's browser, and, for programs that log in that way, lets the browser's answer come back to a port of the sandbox.
// The browser has the owner's sessions and stands in the owner's network, so only pages of the public internet are opened.
import { lookup as lookUp } from 'node:dns/promises';
import { hostname, networkInterfaces } from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';
import { plain } from '../../journal/escape.ts';
import { classOf, parseAddress } from '../../policy/addresses.ts';
import { only, text } from '../arguments.ts';
import { type Action, BellError } from '../bell.ts';
import type { Programs } from '../programs.ts';

const urlBytesMax = 8 * 1024;
const shownMax = 600;
/** A browser may stay in the foreground; what has not failed by then has opened the page. */
const settlingMs = 3_000;
const lookUpMs = 3_000;
const forwardingMsDefault = 10 * 60_000;
/** At once, for all callers. */
const forwardsMax = 16;

export interface OpenUrl {
  href: string;
  /** Lower case, without brackets and without a dot at its end. */
  host: string;
  callbackPort: number | undefined;
}

export interface OpenUrlOptions {
  programs: Programs;
  /**
   * Connections to `port` of the host's loopback reach the same port of the sandbox's, until what it gives is disposed of. Rejects where the port is taken.
   */
  forward(sandboxId: string, port: number, signal: AbortSignal): Promise<AsyncDisposable>;
  /** Aborted when the daemon stops. */
  stopped: AbortSignal;
  /** How long answers come back after the page was opened. */
  forwardingMs?: number;
  /** The addresses of a name; by the host's resolver unless a test says otherwise. */
  lookup?: (name: string) => Promise<string[]>;
}

export function createOpenUrl(options: OpenUrlOptions): Action<OpenUrl> {
  const { programs, stopped, lookup = addressesOf } = options;
  const forwards = new Forwards(options);
  return {
    name: 'open_url',
    summary: "Opens a page in the owner's browser",
    decision: 'ask',

    parse(args) {
      only('open_url', args, ['url', 'callback_port']);
      return { ...parsedUrl(text('open_url', args, 'url')), callbackPort: parsedPort(args.callback_port) };
    },

    describe({ href, callbackPort }) {
      const answers =
        callbackPort === undefined ? '' : ` (answers at port ${callbackPort} go to the sandbox)`;
      return `${plain(href, shownMax)}${answers}`;
    },

    check({ host, callbackPort }, caller) {
      if (!isPublic(host))
        throw new BellError(
          'not_allowed',
          `open_url opens pages of the public internet only, not of ${plain(host, 100)}`,
        );
      if (callbackPort !== undefined && caller.kind !== 'sandbox')
        throw new BellError('not_allowed', 'open_url: a callback_port is for sandboxes of this host only');
      return undefined;
    },

    async unavailable() {
      if (!programs.hasDisplay) return 'the host has no desktop to open pages on';
      const found = await Promise.all(openersOf(programs.platform).map(({ name }) => programs.find(name)));
      return found.every((it) => it === undefined) ? 'the host has no program that opens pages' : undefined;
    },

    async run({ href, host, callbackPort }, { caller, signal }) {
      if (!programs.hasDisplay)
        throw new BellError('unavailable', 'the host has no desktop to open pages on');
      await refusePrivate(host, lookup);
      await using undo = new AsyncDisposableStack();
      if (callbackPort !== undefined && caller.kind === 'sandbox')
        undo.use(await forwards.add(caller.id, callbackPort, AbortSignal.any([signal, stopped])));
      const by = await openWith(programs, href);
      undo.move();
      return { opened: true, by, ...(callbackPort === undefined ? {} : { callback_port: callbackPort }) };
    },
  };
}

function parsedUrl(url: string): { href: string; host: string } {
  const wrong = (why: string) => new BellError('bad_request', `open_url: url ${why}`);
  if (Buffer.byteLength(url) > urlBytesMax) throw wrong(`is longer than ${urlBytesMax} bytes`);
  // The parser would leave some of them out.
  if (/\p{Cc}/u.test(url)) throw wrong('has control characters in it');
  const parsed = URL.parse(url);
  if (parsed === null) throw wrong('is no URL; example: https://example.com/');
  if (parsed.protocol !== 'https:' && parsed.protocol !== 'http:')
    throw wrong('has to begin with https:// or http://');
  if (parsed.username !== '' || parsed.password !== '') throw wrong('has a user name or a password in it');
  if (Buffer.byteLength(parsed.href) > urlBytesMax) throw wrong(`is longer than ${urlBytesMax} bytes`);
  return { href: parsed.href, host: parsed.hostname.replace(/^\[|\]$/g, '').replace(/\.$/, '') };
}

function parsedPort(port: unknown): number | undefined {
  if (port === undefined) return undefined;
  if (typeof port === 'number' && Number.isInteger(port) && port >= 1_024 && port <= 65_535) return port;
  throw new BellError('bad_request', 'open_url: callback_port is no port from 1024 to 65535');
}

/** Ends of names that lead into the owner's own network, or nowhere. */
const ownNetwork = /(^|\.)(localhost|local|localdomain|internal|lan|home|home\.arpa|corp|private|intranet)$/;

/** By what it is called. A name without a dot is of the owner's network, too. */
function isPublic(host: string): boolean {
  const address = parseAddress(host);
  if (address !== undefined) return isPublicAddress(host);
  return host.includes('.') && !ownNetwork.test(host) && host !== hostname().toLowerCase();
}

function isPublicAddress(address: string): boolean {
  const parsed = parseAddress(address);
  const own = Object.values(networkInterfaces()).flatMap((all) => (all ?? []).map((it) => it.address));
  return parsed !== undefined && classOf(parsed, new Set(own)) === 'public';
}

/** By where it leads. The browser asks anew, so this is no proof; it is what keeps names out that were made for it. */
async function refusePrivate(host: string, lookup: (name: string) => Promise<string[]>): Promise<void> {
  // Where names are looked up by a web proxy only, the browser finds out.
  const addresses = await Promise.race([
    lookup(host).catch(() => []),
    delay(lookUpMs, [] as string[], { ref: false }),
  ]);
  if (addresses.every(isPublicAddress)) return;
  throw new BellError('not_allowed', `open_url: ${plain(host, 100)} leads into a private network`);
}

async function addressesOf(name: string): Promise<string[]> {
  return (await lookUp(name, { all: true })).map(({ address }) => address.replace(/%.*$/, ''));
}

const openersOf = (platform: NodeJS.Platform): { name: string; args: string[] }[] =>
  platform === 'darwin'
    ? [{ name: 'open', args: [] }]
    : [
        { name: 'xdg-open', args: [] },
        { name: 'gio', args: ['open'] },
      ];

/** Resolves with what has opened it. The browser stays, also when the daemon stops. */
async function openWith(programs: Programs, href: string): Promise<string> {
  let tried = false;
  for (const { name, args } of openersOf(programs.platform)) {
    const program = await programs.find(name);
    if (program === undefined) continue;
    tried = true;
    const { ended } = programs.start(program, [...args, href]);
    const code = await Promise.race([ended, delay(settlingMs, undefined, { ref: false })]);
    if (code === undefined || code === 0) return name;
  }
  throw tried
    ? new BellError('failed', 'no program of the host could open the page')
    : new BellError('unavailable', 'the host has no program that opens pages');
}

/** Ports of the host that lead into sandboxes for a while. */
class Forwards {
  readonly #forward: OpenUrlOptions['forward'];
  readonly #forwardingMs: number;
  readonly #under = new Map<string, { timer: NodeJS.Timeout; end(): Promise<void> }>();

  constructor(options: OpenUrlOptions) {
    this.#forward = options.forward;
    this.#forwardingMs = options.forwardingMs ?? forwardingMsDefault;
    options.stopped.addEventListener('abort', () => {
      for (const { end } of this.#under.values()) void end();
    });
  }

  /** What it gives ends what this call has begun. The same port again begins its time anew. */
  async add(sandboxId: string, port: number, signal: AbortSignal): Promise<AsyncDisposable> {
    const key = `${sandboxId} ${port}`;
    const under = this.#under.get(key);
    if (under !== undefined) {
      under.timer.refresh();
      return { [Symbol.asyncDispose]: async () => {} };
    }
    if (this.#under.size >= forwardsMax)
      throw new BellError(
        'too_many_requests',
        'too many callback ports are open; try again in some minutes',
        {
          retryAfterSeconds: 60,
        },
      );
    let forwarded: AsyncDisposable;
    try {
      forwarded = await this.#forward(sandboxId, port, signal);
    } catch (cause) {
      throw new BellError('unavailable', `open_url: port ${port} of the host is not free for the answer`, {
        cause,
      });
    }
    const end = async () => {
      clearTimeout(timer);
      this.#under.delete(key);
      await forwarded[Symbol.asyncDispose]();
    };
    const timer = setTimeout(() => void end(), this.#forwardingMs).unref();
    this.#under.set(key, { timer, end });
    if (signal.aborted) await end();
    return { [Symbol.asyncDispose]: end };
  }
}
