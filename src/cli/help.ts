// What people read first: the verbs in groups, and the examples of each.
import type { Command } from 'commander';

/** For `glovebox --help`, in its order: what somebody new needs comes first. */
const groups: Readonly<Record<string, readonly string[]>> = {
  'Common:': ['run', 'create', 'ls', 'exec', 'cp', 'ports', 'diff', 'apply', 'stop', 'rm'],
  'Sessions and output:': ['tui', 'attach', 'sessions', 'ssh', 'logs', 'ps'],
  'Sandboxes:': [
    'env',
    'inspect',
    'why',
    'start',
    'pause',
    'resume',
    'renew',
    'fork',
    'save',
    'prune',
    'reset',
  ],
  'Workspaces:': ['discard', 'checkpoint', 'undo', 'fetch'],
  'Network, secrets and the bell:': ['network', 'policy', 'secret', 'bell'],
  'Images:': ['template', 'image', 'snapshot'],
  'Other machines:': ['workers', 'worker'],
  'This machine:': [
    ...['settings', 'init-config', 'config', 'setup', 'doctor', 'project', 'pool', 'volume', 'audit'],
    ...['backup', 'restore', 'serve', 'version'],
    'completion',
  ],
};

/** Puts the verbs into their groups. One that has none comes last, so that it is seen to be missing. */
export function arrange(program: Command): void {
  const order = Object.values(groups).flat();
  const place = (it: Command) => (order.includes(it.name()) ? order.indexOf(it.name()) : order.length);
  for (const verb of program.commands) {
    const group = Object.entries(groups).find(([, names]) => names.includes(verb.name()));
    if (group !== undefined) verb.helpGroup(group[0]);
  }
  // Commander shows groups in the order in which the first verb of each was made.
  (program.commands as Command[]).sort((a, b) => place(a) - place(b));
}

/** Lines to type, and what each is good for. */
export function examples(...lines: [string, string][]): string {
  const width = Math.max(...lines.map(([line]) => line.length));
  return `\nExamples:\n${lines.map(([line, why]) => `  $ ${line.padEnd(width)}   ${why}`).join('\n')}`;
}
