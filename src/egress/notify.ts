// Shows questions as notifications of the desktop, where there is one and it has notify-send. Best effort: nothing waits for it, nothing fails with it.
import { type ChildProcess, spawn } from 'node:child_process';
import type { Question } from '../contract/network.ts';
import { plain } from '../journal/escape.ts';

/** Of what a guest makes us show, at most so many at once, and one in so long. */
const runningMax = 4;
const pauseMs = 1_000;
const patienceMs = 5_000;

/** `command`: what to run in the place of notify-send. */
export function desktopNotifier(
  options: { command?: string; monotonicMs?: () => number } = {},
): (question: Question) => void {
  const { command = 'notify-send', monotonicMs = () => performance.now() } = options;
  const running = new Set<ChildProcess>();
  let shownAtMs = Number.NEGATIVE_INFINITY;
  return (question) => {
    const nowMs = monotonicMs();
    if (running.size >= runningMax || nowMs - shownAtMs < pauseMs) return;
    shownAtMs = nowMs;
    const { sandbox, sandboxName = sandbox.slice(0, 12) } = question;
    const heldMs = Date.parse(question.until) - Date.parse(question.at);
    const child = spawn(
      command,
      [
        ...['--app-name=Glovebox', `--expire-time=${Math.max(1_000, heldMs)}`, '--'],
        `Sandbox ${plain(sandboxName, 64)} asks`,
        withoutMarkup(`May it ${plain(wishOf(question), 200)}? Answer with: glovebox policy approval`),
      ],
      { stdio: 'ignore', shell: false },
    );
    running.add(child);
    const patience = setTimeout(() => child.kill('SIGKILL'), patienceMs);
    const over = () => {
      clearTimeout(patience);
      running.delete(child);
    };
    child.once('error', over);
    child.once('exit', over);
    child.unref();
  };
}

function wishOf({ host, port, method, path = '', action, detail = '' }: Question): string {
  if (action !== undefined) return `${action} ${detail}`.trimEnd();
  return method === undefined ? `reach ${host}:${port}` : `reach ${method} ${host}:${port}${path}`;
}

/** The body of a notification may hold tags, and escapes that notify-send makes into them. */
function withoutMarkup(text: string): string {
  return text
    .replaceAll('\\', '\\\\')
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;');
}
