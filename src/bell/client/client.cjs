// The bell's client for any Node.js from 18 on and for Bun, in one file without dependencies: asks the host to notify, play, run a listed command...
// client.py is the same in Python; client.test.ts runs both through one table. Built-in modules are imported when it runs, and nothing else is at the
// top, so that the file may also be loaded as a module and as the middle of the stand-alone client.

const version = '0.1.0';
const defaultUrl = 'http://host.docker.internal:9999/';
const requestBytesMax = 1024 * 1024;
const answerBytesMax = 32 * 1024 * 1024;
const connectSecondsMax = 10;
/** A person may be asked first. */
const answerSecondsMax = 300;
const pingSecondsMax = 30;
const stdinWaitMs = 1000;
const configBytesMax = 64 * 1024;
const titleCharactersMax = 256;
const bodyCharactersMax = 4096;
const variablesMax = 64;
const variableBytesMax = 4096;
const hookBytesMax = 64 * 1024;

const help = `Asks the host of this sandbox to do something.

  sandbox-comm ping                                   is it there?
  sandbox-comm notify [--title TITLE] [--body BODY]   show a notification
  sandbox-comm play                                   play the host's sound
  sandbox-comm exec [--] COMMAND [ARGUMENT...]        run a command that the host lists
  sandbox-comm open-url URL [--callback-port PORT]    open a page in the host's browser
  sandbox-comm clipboard [TEXT]                       put a text, or what comes on stdin, on the host's clipboard
  sandbox-comm ACTION [JSON]                          an action of the host's owner

Options:
  --url URL            where the host listens (else SANDBOX_COMM_URL, a configuration file, ${defaultUrl})
  --token TOKEN        who asks, where the host wants to know (else SANDBOX_COMM_TOKEN, a configuration file)
  --timeout SECONDS    how long to wait for the answer
  --best-effort        whatever happens: at most one line on stderr, and exit code 0
  --json               print the host's answer as JSON (ping, exec and actions)
  --stdin              exec: what comes on stdin is the command's stdin, up to its end
  --env-prefix PREFIX  exec: names of variables made of a hook's fields begin with this
  --help, --version

notify and exec take the JSON of a coding agent's hook on stdin. Configuration: ~/.config/sandbox-comm/config.toml or
/etc/sandbox-comm/config.toml with host, port, token.

Exit codes: 0 done, 1 the host refused or failed, 2 wrong usage, 69 the host is not reached; exec: the command's own.
`;

/** What ends the program before its end: an exit code and why. */
class Ending extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

const usage = (message) => new Ending(2, `${message}; sandbox-comm --help tells more`);
const unreached = (message) => new Ending(69, message);

let bestEffort = false;
const notes = [];

/** For a person, on stderr: text of others without what could steer a terminal. */
function say(message) {
  const text = clean(message).trim();
  if (bestEffort) notes.push(text.replace(/\s+/g, ' '));
  else process.stderr.write(`sandbox-comm: ${text}\n`);
}

function clean(text) {
  const shown = text.replace(/[^\P{Cc}\n\t]|[\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu, '');
  const characters = [...shown];
  return characters.length > 8192 ? `${characters.slice(0, 8192).join('')}...` : shown;
}

async function leave(code) {
  if (bestEffort && notes.length > 0) await write(process.stderr, `sandbox-comm: ${notes.join('; ')}\n`);
  process.exit(bestEffort ? 0 : code);
}

const write = (stream, bytes) => new Promise((resolve) => stream.write(bytes, () => resolve()));

const isObject = (it) => typeof it === 'object' && it !== null && !Array.isArray(it);

function jsonObject(text) {
  try {
    const value = JSON.parse(text);
    return isObject(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

/** JSON that is safe to print, in one line. What is escaped here can only be within strings, but for the white space. */
const printable = (json) =>
  json
    .trim()
    .replace(/[\n\r\t]/g, ' ')
    .replace(
      /[\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g,
      (it) => `\\u${it.charCodeAt(0).toString(16).padStart(4, '0')}`,
    );

// The command line

const valued = ['url', 'token', 'timeout', 'title', 'body', 'callback-port', 'env-prefix'];
const flags = ['best-effort', 'json', 'stdin'];
const optionOf = {
  title: 'notify',
  body: 'notify',
  'callback-port': 'open_url',
  'env-prefix': 'exec',
  stdin: 'exec',
};

function parseCommandLine(argv) {
  const options = {};
  const words = [];
  for (let at = 0; at < argv.length; at += 1) {
    const word = argv[at];
    if (word === '--') {
      words.push(...argv.slice(at + 1));
      break;
    }
    if (word === '-h' || word === '--help') return { options, words: ['--help'] };
    if (word === '--version') return { options, words: ['--version'] };
    if (word === '--as') {
      if (at + 1 >= argv.length) throw usage('--as needs a name');
      return { options, words: [], shim: { name: argv[at + 1], args: argv.slice(at + 2) } };
    }
    if (word.startsWith('-') && word !== '-') {
      const cut = word.indexOf('=');
      const name = word.slice(2, cut < 0 ? undefined : cut);
      if (!word.startsWith('--') || ![...valued, ...flags].includes(name))
        throw usage(`there is no option ${word}`);
      if (flags.includes(name)) {
        if (cut >= 0) throw usage(`--${name} takes no value`);
        options[name] = true;
      } else if (cut >= 0) options[name] = word.slice(cut + 1);
      else {
        at += 1;
        if (at >= argv.length) throw usage(`--${name} needs a value`);
        options[name] = argv[at];
      }
      continue;
    }
    words.push(word);
    // What follows the command is its own.
    if (words[0] === 'exec' && words.length === 2) {
      words.push(...argv.slice(at + 1));
      break;
    }
  }
  return { options, words };
}

function numberOf(options, name, least, most) {
  const text = options[name];
  if (text === undefined) return undefined;
  if (!/^[0-9]{1,6}$/.test(text) || Number(text) < least || Number(text) > most)
    throw usage(`--${name} must be a number from ${least} to ${most}`);
  return Number(text);
}

// Where the host is

function parseUrl(text, name) {
  const match = /^http:\/\/(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?(\/[!-~]*)?$/i.exec(
    text.includes('://') ? text : `http://${text}`,
  );
  const port = Number(match?.[2] ?? 80);
  if (match === null || port < 1 || port > 65535)
    throw usage(`${name} must be an address such as ${defaultUrl}, not ${text}`);
  const authority = match[2] === undefined ? match[1] : `${match[1]}:${port}`;
  const path = match[3] ?? '/';
  return {
    host: match[1].replace(/^\[|\]$/g, ''),
    port,
    path,
    authority,
    href: `http://${authority}${path}`,
  };
}

/** host, port and token of the first configuration file that there is. What is wrong in it is said, and left out. */
async function readConfig() {
  const { readFile } = await import('node:fs/promises');
  const { env } = process;
  const home = env.XDG_CONFIG_HOME?.startsWith('/') ? env.XDG_CONFIG_HOME : env.HOME && `${env.HOME}/.config`;
  const files = [...(home ? [`${home}/sandbox-comm/config.toml`] : []), '/etc/sandbox-comm/config.toml'];
  for (const file of files) {
    let bytes;
    try {
      bytes = await readFile(file);
    } catch (error) {
      if (!['ENOENT', 'ENOTDIR'].includes(error.code)) say(`${file} cannot be read; going on without it`);
      continue;
    }
    if (bytes.length > configBytesMax) {
      say(`${file} is longer than ${configBytesMax} bytes; going on without it`);
      continue;
    }
    return configOf(bytes.toString(), file);
  }
  return {};
}

function configOf(text, file) {
  const config = {};
  for (const [index, line] of text.split('\n').entries()) {
    if (/^\s*\[{1,2}[\w."' -]+\]{1,2}\s*(#.*)?$/.test(line)) break;
    const match = /^\s*(host|port|token)\s*=\s*(.*?)\s*$/.exec(line);
    if (match === null) continue;
    const value = tomlValue(match[2]);
    if (match[1] === 'port' ? goodPort(value) : typeof value === 'string' && good[match[1]].test(value))
      config[match[1]] = value;
    else say(`${file}, line ${index + 1}: ${match[1]} must be ${wanted[match[1]]}; going on without it`);
  }
  return config;
}

const good = { host: /^(\[?[0-9A-Fa-f:.]+\]?|[A-Za-z0-9._-]+)$/, token: /^[!-~]+$/ };
const wanted = { host: 'a name in quotes', port: 'a number from 1 to 65535', token: 'a word in quotes' };
const goodPort = (value) => typeof value === 'number' && value >= 1 && value <= 65535;

/** Of TOML only what these keys need: strings in one line and whole numbers. */
function tomlValue(text) {
  const literal = /^'([^']*)'\s*(#.*)?$/.exec(text);
  if (literal !== null) return literal[1];
  const number = /^\+?([0-9][0-9_]{0,9})\s*(#.*)?$/.exec(text);
  if (number !== null) return Number(number[1].replace(/_/g, ''));
  const basic = /^("(?:[^"\\]|\\.)*")\s*(#.*)?$/.exec(text);
  if (basic === null) return undefined;
  try {
    return JSON.parse(basic[1]);
  } catch {
    return undefined;
  }
}

async function whereTo(options) {
  const { env } = process;
  const config = await readConfig();
  const token = options.token || env.SANDBOX_COMM_TOKEN || config.token;
  if (token !== undefined && !good.token.test(token))
    throw usage('the token must be one word of visible characters');
  let target;
  if (options.url !== undefined) target = parseUrl(options.url, '--url');
  else if (env.SANDBOX_COMM_URL) target = parseUrl(env.SANDBOX_COMM_URL, 'SANDBOX_COMM_URL');
  else {
    const host = config.host ?? 'host.docker.internal';
    const bracketed = host.includes(':') && !host.startsWith('[') ? `[${host}]` : host;
    target = parseUrl(`http://${bracketed}:${config.port ?? 9999}/`, 'host in the configuration file');
  }
  return { target, token, proxy: proxyFor(target) };
}

/** The HTTP proxy that the environment names for this target. */
function proxyFor({ host, port }) {
  const { env } = process;
  const text = env.http_proxy || env.HTTP_PROXY;
  if (!text || host === 'localhost' || host === '::1' || /^127\./.test(host)) return undefined;
  if (isDirect(host.toLowerCase(), port, env.no_proxy || env.NO_PROXY || '')) return undefined;
  const match =
    /^(?:http:\/\/)?(?:([^@/]*)@)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?\/?$/i.exec(text);
  if (match === null) {
    say('the proxy in http_proxy is not one for HTTP; going on without it');
    return undefined;
  }
  return {
    host: match[2].replace(/^\[|\]$/g, ''),
    port: Number(match[3] ?? 80),
    user: match[1] === undefined ? undefined : percentDecoded(match[1]),
  };
}

function percentDecoded(text) {
  return Buffer.from(
    text.replace(/[^\0-\u007f]|%([0-9A-Fa-f]{2})/g, (it, hex) =>
      hex === undefined ? Buffer.from(it).toString('latin1') : String.fromCharCode(Number.parseInt(hex, 16)),
    ),
    'latin1',
  );
}

function isDirect(host, port, list) {
  return list
    .toLowerCase()
    .split(/[\s,]+/)
    .some((entry) => {
      if (entry === '*') return true;
      const network = /^([0-9.]+)\/([0-9]{1,2})$/.exec(entry);
      if (network !== null) return inNetwork(host, network[1], Number(network[2]));
      const [, name, entryPort] = /^(.*?)(?::([0-9]+))?$/.exec(entry);
      if (entryPort !== undefined && Number(entryPort) !== port) return false;
      const suffix = name.replace(/^\*?\./, '');
      return suffix !== '' && (host === suffix || host.endsWith(`.${suffix}`));
    });
}

function inNetwork(host, network, bits) {
  const [a, b] = [host, network].map(ipv4);
  return (
    a !== undefined &&
    b !== undefined &&
    bits <= 32 &&
    Math.floor(a / 2 ** (32 - bits)) === Math.floor(b / 2 ** (32 - bits))
  );
}

function ipv4(text) {
  const parts = /^([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})$/.exec(text)?.slice(1).map(Number);
  return parts?.every((it) => it < 256) ? parts.reduce((sum, it) => sum * 256 + it, 0) : undefined;
}

// What comes on stdin

/**
 * What is there on stdin: up to its end, or, unless `toTheEnd`, to the first second without anything, since it may stay open for ever. A terminal is
 * never read.
 */
async function readStdin({ toTheEnd }) {
  const { isatty } = await import('node:tty');
  if (isatty(0)) return Buffer.alloc(0);
  return new Promise((resolve, reject) => {
    const pieces = [];
    let bytes = 0;
    const input = process.stdin;
    const done = () => {
      clearTimeout(timer);
      input.removeListener('data', more);
      input.pause();
      resolve(Buffer.concat(pieces));
    };
    const timer = toTheEnd ? undefined : setTimeout(done, stdinWaitMs);
    const more = (piece) => {
      timer?.refresh();
      pieces.push(piece);
      bytes += piece.length;
      if (bytes > requestBytesMax) reject(new Ending(2, `stdin has more than ${requestBytesMax} bytes`));
    };
    input.on('data', more).once('end', done).once('close', done).once('error', done);
  });
}

function utf8(bytes) {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    return undefined;
  }
}

async function stdinText() {
  const text = utf8(await readStdin({ toTheEnd: true }));
  if (text === undefined) throw new Ending(2, 'stdin has to be text in UTF-8');
  return text;
}

/** A hook's payload: undefined when there is none. `broken` is called for what is no JSON object. */
async function hookPayload(broken) {
  const bytes = await readStdin({ toTheEnd: false });
  const text = utf8(bytes)?.trim();
  if (text === '') return undefined;
  const fields = text === undefined ? undefined : jsonObject(text);
  if (fields === undefined) broken();
  return fields === undefined ? undefined : { text, fields };
}

const denied =
  /^(PATH|HOME|SHELL|IFS|ENV|BASH_ENV|PS4|PROMPT_COMMAND|JAVA_TOOL_OPTIONS|MAKEFLAGS|EDITOR|PAGER|VISUAL)$|^(LD_|DYLD_|GIT_|SSH_|PYTHON|NODE_|NPM_CONFIG_|PERL5|RUBY)|_PROXY$/;

/** A hook's fields as variables. An agent chooses their names: the host leaves out what steers programs, too. */
function environmentOf({ text, fields }, prefix) {
  const variables = new Map();
  const leftOut = [];
  for (const [key, value] of Object.entries(fields)) {
    if (value === null) continue;
    const upper = key.replace(/[a-z]/g, (it) => it.toUpperCase()).replace(/[^A-Z0-9_]/gu, '_');
    const name = `${prefix}${upper}`.replace(/^(?=[0-9]|$)/, '_');
    const words = typeof value === 'string' ? value : JSON.stringify(value);
    if (denied.test(name) || words.includes('\0') || variables.size >= variablesMax - 1) leftOut.push(name);
    else variables.set(name, firstBytes(words, variableBytesMax));
  }
  if (Buffer.byteLength(text) > hookBytesMax) leftOut.push('HOOK_JSON');
  else variables.set('HOOK_JSON', text);
  if (leftOut.length > 0) say(`left out of the environment: ${leftOut.join(', ')}`);
  return Object.fromEntries(variables);
}

/** A character that is cut through is left out. */
const firstBytes = (text, most) =>
  new TextDecoder('utf-8', { ignoreBOM: true }).decode(Buffer.from(text).subarray(0, most), { stream: true });

// What is asked of the host

async function requestOf({ options, words, shim }) {
  if (shim !== undefined) return requestOfShim(shim, options);
  if (words.length === 0) throw usage('say what the host is to do');
  const [verb, ...rest] = words;
  const action = verb.replace(/-/g, '_');
  for (const [option, only] of Object.entries(optionOf))
    if (options[option] !== undefined && action !== only)
      throw usage(`--${option} is for ${only.replace('_', '-')}`);
  const atMost = (count) => {
    if (rest.length > count) throw usage(`${verb} takes no ${rest[count]}`);
  };
  switch (action) {
    case 'ping':
    case 'play':
      atMost(0);
      return { action };
    case 'notify':
      atMost(0);
      return notifyRequest(options);
    case 'exec':
      if (rest.length === 0) throw usage('exec needs a command');
      return execRequest(rest, options);
    case 'open_url': {
      atMost(1);
      if (rest.length === 0) throw usage('open-url needs an address');
      const port = numberOf(options, 'callback-port', 1024, 65535);
      return { action, args: { url: rest[0], ...(port === undefined ? {} : { callback_port: port }) } };
    }
    case 'clipboard':
      atMost(1);
      return clipboardRequest(rest[0]);
    default: {
      atMost(1);
      if (!/^[a-z][a-z0-9_]{0,63}$/.test(action)) throw usage(`${verb} cannot be the name of an action`);
      const args = rest.length === 0 ? {} : jsonObject(rest[0]);
      if (args === undefined) throw usage(`what ${verb} is given must be a JSON object such as '{"a":1}'`);
      return { action, args, shows: true };
    }
  }
}

async function clipboardRequest(given) {
  if (given !== undefined) return { action: 'clipboard', args: { text: given } };
  const { isatty } = await import('node:tty');
  if (isatty(0)) throw usage('clipboard needs a text, or one on stdin');
  return { action: 'clipboard', args: { text: await stdinText() } };
}

async function notifyRequest(options) {
  const payload = await hookPayload(() => say('stdin is no JSON object; going on without it'));
  const fields = payload?.fields ?? {};
  const text = (...names) =>
    names.map((it) => fields[it]).find((it) => typeof it === 'string' && it.trim() !== '');
  const title = options.title ?? text('title') ?? (text('hook_event_name') ? 'Claude Code' : 'sandbox');
  const body =
    options.body ??
    text('message', 'last_assistant_message', 'reason', 'prompt', 'tool_name', 'hook_event_name') ??
    '';
  return {
    action: 'notify',
    args: { title: first(title, titleCharactersMax), body: first(body, bodyCharactersMax) },
  };
}

const first = (text, most) => [...text.slice(0, 2 * most)].slice(0, most).join('');

async function execRequest(command, options) {
  const request = { action: 'exec', args: { command } };
  if (options.stdin) {
    request.args.stdin = await stdinText();
    return request;
  }
  const prefix = options['env-prefix'] ?? '';
  if (!/^([A-Za-z_][A-Za-z0-9_]{0,63})?$/.test(prefix))
    throw usage('--env-prefix must be a name such as HOOK_');
  const payload = await hookPayload(() => {
    throw new Ending(2, 'stdin is no JSON object; with --stdin it goes to the command as it is');
  });
  if (payload !== undefined) request.args.env = environmentOf(payload, prefix.toUpperCase());
  return request;
}

// Programs that the client stands for on the PATH of a guest

async function requestOfShim({ name, args }, options) {
  if (name === 'notify-send') return notifySend(args);
  if (['paplay', 'aplay', 'afplay', 'mpg123'].includes(name)) return { action: 'play' };
  if (['xdg-open', 'open', 'sensible-browser', 'www-browser'].includes(name)) {
    const url = args.find((it) => /^https?:\/\//i.test(it));
    if (url === undefined) throw new Ending(1, `${name}: only http and https addresses can be opened`);
    return { action: 'open_url', args: { url } };
  }
  if (['wl-copy', 'xclip', 'xsel', 'pbcopy', 'wl-paste', 'pbpaste'].includes(name)) return copy(name, args);
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(name)) throw usage(`${name} cannot be the name of a command`);
  const stdin = options.stdin ? { stdin: await stdinText() } : {};
  return { action: 'exec', args: { command: [name, ...args], ...stdin } };
}

function notifySend(args) {
  const words = [];
  for (let at = 0; at < args.length; at += 1) {
    const word = args[at];
    if (word === '--') {
      words.push(...args.slice(at + 1));
      break;
    }
    if (
      /^(-[utaichrnA]|--(urgency|expire-time|app-name|icon|app-icon|category|hint|replace-id|action))$/.test(
        word,
      )
    )
      at += 1;
    else if (!word.startsWith('-') || word === '-') words.push(word);
  }
  if (words.length === 0) throw new Ending(1, 'notify-send: no summary specified');
  return {
    action: 'notify',
    args: {
      title: first(words[0], titleCharactersMax),
      body: first(words.slice(1).join(' '), bodyCharactersMax),
    },
  };
}

const reading = {
  xclip: /^-o/,
  xsel: /^(-[a-z]*o[a-z]*|--output)$/,
  'wl-paste': /^/,
  pbpaste: /^/,
};
const trimming = { 'wl-copy': /^(-n|--trim-newline)$/, xclip: /^-r/ };
const valuedOfCopy = { 'wl-copy': /^(-[ts]|--type|--seat)$/ };

/** A program for the clipboard: only its writing half. */
async function copy(name, args) {
  const words = [];
  for (let at = 0; at < args.length; at += 1) {
    if (valuedOfCopy[name]?.test(args[at])) at += 1;
    else if (!args[at].startsWith('-')) words.push(args[at]);
  }
  if (name.endsWith('paste') || args.some((it) => reading[name]?.test(it)))
    throw new Ending(1, `${name}: a sandbox cannot read the host's clipboard`);
  let text;
  if (name === 'wl-copy' && args.some((it) => /^(-c|--clear)$/.test(it))) text = '';
  else if (name === 'wl-copy' && words.length > 0) text = words.join(' ');
  else text = (await clipboardRequest()).args.text;
  if (args.some((it) => trimming[name]?.test(it))) text = text.replace(/\n$/, '');
  return { action: 'clipboard', args: { text } };
}

// The conversation

/** Sends the request, gives the answer's head; its body is read by whoever wants it. */
async function post({ target, token, proxy }, body, accept) {
  const { request } = await import('node:http');
  const headers = {
    Host: target.authority,
    'Content-Type': 'application/json',
    'Content-Length': body.length,
    Accept: accept,
    'User-Agent': `sandbox-comm/${version}`,
    ...(token === undefined ? {} : { Authorization: `Bearer ${token}` }),
    ...(proxy?.user === undefined ? {} : { 'Proxy-Authorization': `Basic ${proxy.user.toString('base64')}` }),
  };
  const { host, port } = proxy ?? target;
  const path = proxy === undefined ? target.path : target.href;
  return new Promise((resolve, reject) => {
    const sent = request({ host, port, method: 'POST', path, headers, agent: false });
    const timer = setTimeout(
      () => sent.destroy(Object.assign(new Error(), { code: 'ETIMEDOUT' })),
      connectSecondsMax * 1000,
    );
    sent.once('socket', (socket) => socket.once('connect', () => clearTimeout(timer)));
    sent.on('error', (error) => {
      clearTimeout(timer);
      reject(unreached(`${place({ target, proxy })}: ${reasonOf(error)}. ${advice(target)}`));
    });
    sent.once('response', resolve);
    sent.end(body);
  });
}

const place = ({ target, proxy }) =>
  proxy === undefined ? target.href : `${target.href} through the proxy ${proxy.host}:${proxy.port}`;

function reasonOf(error) {
  const code = String(error.code);
  if (code === 'ECONNREFUSED') return 'the connection was refused';
  if (['ENOTFOUND', 'EAI_AGAIN', 'EAI_NODATA'].includes(code)) return 'this name is not known here';
  if (code === 'ETIMEDOUT') return `no connection within ${connectSecondsMax} seconds`;
  if (['ECONNRESET', 'EPIPE', 'ECONNABORTED'].includes(code)) return 'the connection was lost';
  if (code.startsWith('HPE_')) return 'what answers there does not speak HTTP';
  return `no connection (${code})`;
}

function advice({ host, port }) {
  const name = `${host === 'host.docker.internal' ? 'localhost' : host}:${port}`;
  return `Does it run on the host (glovebox bell status), and may this sandbox reach it? There: glovebox policy allow network ${name} (Docker's sandboxes: sbx policy allow network ${name})`;
}

async function converse(request, options, to) {
  const { action } = request;
  const usual = { ping: pingSecondsMax, exec: undefined };
  const seconds =
    numberOf(options, 'timeout', 1, 86400) ?? (action in usual ? usual[action] : answerSecondsMax);
  const body = Buffer.from(JSON.stringify({ action, args: request.args }));
  if (body.length > requestBytesMax) throw new Ending(2, `this is more than ${requestBytesMax} bytes`);
  const deadline =
    seconds === undefined
      ? undefined
      : setTimeout(() => {
          say(`${to.target.href}: no answer within ${seconds} seconds`);
          leave(69);
        }, seconds * 1000);
  const streams = action === 'exec' && !options.json;
  const answer = await post(
    to,
    body,
    streams ? 'application/x-ndjson, application/json' : 'application/json',
  );
  let code;
  try {
    const streamed = String(answer.headers['content-type']).startsWith('application/x-ndjson');
    if (answer.statusCode === 200 && streamed) code = await relay(answer, request);
    else code = await conclude(answer.statusCode, await whole(answer), { request, options, to });
  } catch (error) {
    if (error instanceof Ending) throw error;
    throw unreached(`${to.target.href}: the connection was lost before the end of the answer`);
  }
  clearTimeout(deadline);
  return code;
}

async function whole(answer) {
  const pieces = [];
  let bytes = 0;
  for await (const piece of answer) {
    pieces.push(piece);
    bytes += piece.length;
    if (bytes > answerBytesMax) throw new Ending(1, `the answer has more than ${answerBytesMax} bytes`);
  }
  return Buffer.concat(pieces).toString();
}

/** The output of a command as it comes. Gives its exit code. */
async function relay(answer, request) {
  for await (const line of linesOf(answer)) {
    const event = jsonObject(line);
    const output = event?.type === 'stdout' || event?.type === 'stderr';
    if (event === undefined || (output && typeof event.data !== 'string'))
      throw new Ending(1, 'the answer is not to be understood');
    if (output) {
      const data = Buffer.from(event.data, event.encoding === 'base64' ? 'base64' : 'utf8');
      await write(process[event.type], data);
    } else if (event.type === 'exit') {
      if (event.timed_out === true) say('the host ended the command: its time was over');
      return exitCode(event.code, request);
    } else if (event.type === 'error') throw new Ending(1, String(event.error));
  }
  throw unreached('the connection was lost before the end of the command; how that went is not known');
}

async function* linesOf(answer) {
  let pieces = [];
  let bytes = 0;
  for await (const piece of answer) {
    let rest = piece;
    for (let end = rest.indexOf(10); end >= 0; end = rest.indexOf(10)) {
      const line = Buffer.concat([...pieces, rest.subarray(0, end)]).toString();
      if (line.trim() !== '') yield line;
      pieces = [];
      bytes = 0;
      rest = rest.subarray(end + 1);
    }
    pieces.push(rest);
    bytes += rest.length;
    if (bytes > answerBytesMax)
      throw new Ending(1, `a line of the answer has more than ${answerBytesMax} bytes`);
  }
}

function exitCode(code, request) {
  if (!Number.isInteger(code) || code < 0 || code > 255)
    throw new Ending(1, 'the answer tells no exit code of the command');
  if (bestEffort && code !== 0) say(`${request.args.command[0]}: exit code ${code}`);
  return code;
}

/** An answer in one piece: what it says, and the exit code that follows. */
async function conclude(status, text, { request, options, to }) {
  const reply = jsonObject(text);
  const { href } = to.target;
  const well = status >= 200 && status < 300;
  if (reply === undefined || (!well && typeof reply.error !== 'string')) {
    const shown = text.trim() === '' ? '' : `\n${text}`;
    if (status === 403 || status === 407 || (status >= 502 && status <= 504))
      throw unreached(`${href}: answered ${status}${shown.trimEnd()}\n${advice(to.target)}`);
    throw new Ending(
      1,
      `${href}: answered ${status}, and not as the host's bell does${shown}${status === 401 ? `\n${whoAsks}` : ''}`,
    );
  }
  const prints = !['notify', 'play'].includes(request.action);
  if (options.json && prints) await write(process.stdout, `${printable(text)}\n`);
  const failed = !well || reply.ok === false || reply.status === 'error';
  if (failed) say(`${String(reply.error ?? `answered ${status}`)}${status === 401 ? `\n${whoAsks}` : ''}`);
  if (request.action === 'exec') {
    const result = isObject(reply.result) ? reply.result : reply;
    const code = result.exit_code ?? reply.exit_code ?? reply.returncode;
    for (const name of options.json ? [] : ['stdout', 'stderr']) {
      const output = result[name] ?? reply[name];
      if (typeof output === 'string' && output !== '') await write(process[name], output);
    }
    if (!failed || code !== undefined) return exitCode(code, request) || Number(failed);
  }
  if (failed) return 1;
  if (!options.json && request.action === 'ping') await write(process.stdout, 'pong\n');
  if (!options.json && request.shows && reply.result !== undefined && reply.result !== null)
    await write(process.stdout, `${printable(JSON.stringify(reply.result))}\n`);
  return 0;
}

const whoAsks =
  'Set SANDBOX_COMM_TOKEN to a token of this host; its owner makes one with: glovebox bell token add NAME';

async function main(argv) {
  const named = argv.includes('--') ? argv.slice(0, argv.indexOf('--')) : argv;
  let parsed;
  try {
    parsed = parseCommandLine(argv);
  } catch (error) {
    bestEffort = named.includes('--best-effort');
    throw error;
  }
  bestEffort = parsed.options['best-effort'] === true;
  if (parsed.words[0] === '--help') await write(process.stdout, help);
  else if (parsed.words[0] === '--version')
    await write(process.stdout, `sandbox-comm ${version} (Glovebox)\n`);
  else {
    const to = await whereTo(parsed.options);
    return converse(await requestOf(parsed), parsed.options, to);
  }
  return 0;
}

// The end of this process closes its connection, which ends the command on the host.
process.on('SIGINT', () => process.exit(130));
process.on('SIGTERM', () => process.exit(143));
for (const stream of [process.stdout, process.stderr])
  stream.on('error', (error) => process.exit(bestEffort ? 0 : error.code === 'EPIPE' ? 141 : 1));

main(process.argv.slice(2)).then(leave, (error) => {
  say(error instanceof Ending ? error.message : `unexpected: ${error?.message}`);
  return leave(error instanceof Ending ? error.code : 1);
});
