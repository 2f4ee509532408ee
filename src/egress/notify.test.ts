// Notifications, with a program in the place of notify-send that writes down what it was given.
import { chmod, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import type { Question } from '../contract/network.ts';
import { desktopNotifier } from './notify.ts';

const question: Question = {
  id: 'q',
  at: '2026-01-01T00:00:00.000Z',
  until: '2026-01-01T00:00:30.000Z',
  sandbox: '0123456789abcdef',
  host: 'example.com',
  port: 443,
  protocol: 'https',
};

async function folder() {
  const path = await mkdtemp(join(tmpdir(), 'notify-'));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) };
}

// The program reads two backslashes as one, and one with digits as what they stand for.
test('a question is shown without a shell, with its text cleaned and nothing in it taken for an option or a tag', async () => {
  await using place = await folder();
  const command = join(place.path, 'show');
  await writeFile(
    command,
    `#!/bin/sh\nfor it in "$@"; do printf '[%s]\\n' "$it"; done >> ${place.path}/part\nmv ${place.path}/part ${place.path}/shown\n`,
  );
  await chmod(command, 0o700);
  const notify = desktopNotifier({ command });
  notify({
    ...question,
    sandboxName: '--icon=/etc/x',
    host: '$(id)',
    method: 'GET',
    path: '/<a href="x">\u001b&',
  });
  // Another one right behind it is not shown: a guest decides how many there are.
  notify({ ...question, host: 'second.example' });
  await expect
    .poll(() => readFile(join(place.path, 'shown'), 'utf8').catch(() => ''))
    .toBe(
      [
        ...['[--app-name=Glovebox]', '[--expire-time=30000]', '[--]', '[Sandbox --icon=/etc/x asks]'],
        '[May it reach GET $(id):443/&lt;a href="x"&gt;\\\\u001b&amp;? Answer with: glovebox policy approval]',
        '',
      ].join('\n'),
    );
});

test.each<[Partial<Question>, string]>([
  [{ action: 'open_url', detail: 'https://a.example/?q=<b>' }, 'open_url https://a.example/?q=&lt;b&gt;'],
  [{ action: 'clipboard', detail: '' }, 'clipboard'],
  [{ action: 'exec', detail: '\u001b]0;x\u0007' }, 'exec \\\\u001b]0;x\\\\u0007'],
  [{ action: 'exec', detail: 'x'.repeat(1_000) }, `exec ${'x'.repeat(194)}…`],
])('an action is asked about by its name and what it is to do: %#', async (asked, wish) => {
  await using place = await folder();
  const command = join(place.path, 'show');
  await writeFile(
    command,
    `#!/bin/sh\nfor it in "$@"; do text=$it; done; printf %s "$text" > ${place.path}/part\nmv ${place.path}/part ${place.path}/shown\n`,
  );
  await chmod(command, 0o700);
  desktopNotifier({ command })({ ...question, ...asked, host: 'localhost', port: 9999, protocol: 'bell' });
  await expect
    .poll(() => readFile(join(place.path, 'shown'), 'utf8').catch(() => ''))
    .toBe(`May it ${wish}? Answer with: glovebox policy approval`);
});

test('where there is no such program nothing happens', async () => {
  let clockMs = 0;
  const notify = desktopNotifier({ command: '/nonexistent/notify-send', monotonicMs: () => clockMs });
  for (let n = 0; n < 10; n += 1) {
    notify(question);
    clockMs += 2_000;
  }
  await new Promise((resolve) => setImmediate(resolve));
});
