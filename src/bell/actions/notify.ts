// Shows a notification on the owner's desktop, with the name of who sent it in front. Where there is no desktop, the log is the notification. Posted to
// the owner's webhook in any case, if there is one.
import { plain } from '../../journal/escape.ts';
import type { Log } from '../../lib/log.ts';
import { text } from '../arguments.ts';
import type { Action, Caller } from '../bell.ts';
import type { Programs } from '../programs.ts';

const titleMax = 256;
const bodyMax = 4_096;
const nameMax = 64;
const showingMs = 5_000;
const postingMs = 5_000;
/** Beyond these a notification is not posted: a webhook that hangs must not collect them. */
const postingMax = 8;

export interface Notification {
  title: string;
  body: string;
}

export interface NotifyOptions {
  programs: Programs;
  webhook: string | undefined;
  log: Log;
  /** Aborted when the daemon stops. */
  stopped: AbortSignal;
  now?: () => Date;
}

export function createNotify(options: NotifyOptions): Action<Notification> {
  const { programs, webhook, log, stopped, now = () => new Date() } = options;
  const post = webhook === undefined ? undefined : poster({ webhook, log, stopped });
  return {
    name: 'notify',
    summary: 'Shows a notification',
    decision: 'allow',

    /** Fields that it does not know are left alone: programs send whole events of theirs. */
    parse(args) {
      return {
        title: cleanTitle(text('notify', args, 'title', 'sandbox')),
        body: cleanBody(text('notify', args, 'body', '')),
      };
    },

    describe: ({ title, body }) => (body === '' ? title : `${title}: ${body.replaceAll('\n', ' ')}`),

    unavailable: async () => undefined,

    async run({ title, body }, { caller, signal }) {
      const from = nameOf(caller);
      post?.({ sandbox: from, title, body, at: now().toISOString() });
      const by = await show(programs, { title: `${from}: ${title}`, body }, signal);
      if (by !== undefined) return { shown: true, by };
      log.info({ from, title, body }, 'notification');
      return { shown: false, by: 'log' };
    },
  };
}

/** What no guest can choose: the owner's name for it, or where it comes from. Begins with no `-`. */
function nameOf(caller: Caller): string {
  switch (caller.kind) {
    case 'sandbox':
      return plain(caller.name ?? caller.id.slice(0, 12), nameMax).replace(/^-+/, '') || 'sandbox';
    case 'token':
      return `token ${plain(caller.name, nameMax)}`;
    case 'stranger':
      return `stranger ${plain(caller.address, nameMax)}`;
  }
}

/** Resolves with what has shown it. */
async function show(
  programs: Programs,
  notification: Notification,
  signal: AbortSignal,
): Promise<string | undefined> {
  for (const { name, args } of programs.platform === 'darwin' ? macOS : freedesktop) {
    // Without a session bus its programs would start one.
    if (programs.platform !== 'darwin' && programs.env.DBUS_SESSION_BUS_ADDRESS === undefined) break;
    const program = await programs.find(name);
    if (program === undefined) continue;
    const code = await programs.run(program, args(notification), { timeoutMs: showingMs, signal });
    if (code === 0) return name;
  }
  return undefined;
}

interface Shower {
  name: string;
  args(notification: Notification): string[];
}

const bus = {
  name: 'org.freedesktop.Notifications',
  path: '/org/freedesktop/Notifications',
};

const freedesktop: readonly Shower[] = [
  {
    name: 'notify-send',
    // It reads \074 in the body as `<`, so a backslash has to be written as two.
    args: ({ title, body }) => ['-a', 'Glovebox', '--', title, withoutMarkup(body).replaceAll('\\', '\\\\')],
  },
  {
    name: 'gdbus',
    args: ({ title, body }) => [
      ...['call', '--session', '--timeout', '5', '--dest', bus.name, '--object-path', bus.path],
      ...['--method', `${bus.name}.Notify`, '--', '"Glovebox"', '0', '""'],
      ...[quoted(title), quoted(withoutMarkup(body)), '[]', '{}', '-1'],
    ],
  },
  {
    name: 'busctl',
    args: ({ title, body }) => [
      ...['--user', 'call', '--', bus.name, bus.path, bus.name, 'Notify', 'susssasa{sv}i'],
      ...['Glovebox', '0', '', title, withoutMarkup(body), '0', '0', '-1'],
    ],
  },
];

const macOS: readonly Shower[] = [
  {
    name: 'osascript',
    // The script is ours; what a guest wrote reaches it as arguments.
    args: ({ title, body }) => [
      ...['-e', 'on run argv'],
      ...['-e', 'display notification (item 2 of argv) with title (item 1 of argv)'],
      ...['-e', 'end run', title, body],
    ],
  },
];

/** As GLib writes text. */
const quoted = (value: string): string =>
  `"${value.replace(/[\\"]/g, (it) => `\\${it}`).replaceAll('\n', '\\n')}"`;

/** The body of a notification may hold tags. */
const withoutMarkup = (value: string): string =>
  value.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');

// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is taken out.
const controls = /[\x00-\x09\x0b-\x1f\x7f-\x9f]+/g;

const withoutControls = (value: string): string =>
  value.replaceAll('\r\n', '\n').replaceAll('\t', ' ').replace(controls, '');

function cleanTitle(title: string): string {
  // What goes away need not be looked at: it is at most as long as what is kept.
  const line = withoutControls(title.slice(0, titleMax * 4))
    .replace(/\n+/g, ' ')
    .trim();
  return plain(line, titleMax) || 'sandbox';
}

function cleanBody(body: string): string {
  const lines = withoutControls(body.slice(0, bodyMax * 4))
    .replace(/\n{3,}/g, '\n\n')
    .trim()
    .split('\n');
  let kept = '';
  for (const line of lines) {
    const room = bodyMax - kept.length - 1;
    if (room < 2) return `${kept}…`;
    kept += `${kept === '' ? '' : '\n'}${plain(line, room)}`;
  }
  return kept;
}

interface Posted extends Notification {
  sandbox: string;
  at: string;
}

/** Posts once, waits for nobody. What goes wrong is the owner's to know. */
function poster(options: { webhook: string; log: Log; stopped: AbortSignal }): (posted: Posted) => void {
  const { webhook, log, stopped } = options;
  let posting = 0;
  return (posted) => {
    if (posting >= postingMax) return log.warn({ why: 'too many under way' }, 'notification not posted');
    posting += 1;
    fetch(webhook, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(posted),
      // Whoever answers there does not choose where else our request goes.
      redirect: 'manual',
      signal: AbortSignal.any([stopped, AbortSignal.timeout(postingMs)]),
    })
      .then(async (answer) => {
        await answer.body?.cancel();
        if (!answer.ok) log.warn({ why: `HTTP ${answer.status}` }, 'notification not posted');
      })
      .catch((error: Error & { cause?: { code?: string } }) => {
        // The address may hold a secret, and the message the address.
        if (!stopped.aborted) log.warn({ why: error.cause?.code ?? error.name }, 'notification not posted');
      })
      .finally(() => {
        posting -= 1;
      });
  };
}
