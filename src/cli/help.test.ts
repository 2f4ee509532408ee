// Every verb tells what it does, shows how, and can be read by programs where it prints data.
import { type Command, Help } from 'commander';
import { expect, test } from 'vitest';
import { makeProgram } from './program.ts';

const program = makeProgram([]);
const visible = (it: Command) => new Help().visibleCommands(it);

function* verbsBelow(command: Command, path: string[] = []): Generator<[string, Command]> {
  for (const it of visible(command)) {
    const words = [...path, it.name()];
    yield [words.join(' '), it];
    yield* verbsBelow(it, words);
  }
}

const all = [...verbsBelow(program)];

/** They change something and say so, pass something through, or are for other programs in a form of those. */
const withoutData = [
  ...['run', 'cp', 'tui', 'attach', 'ssh', 'ssh proxy', 'ssh known-hosts', 'logs', 'start', 'stop', 'pause'],
  ...[
    'resume',
    'rm',
    'reset',
    'setup ssh',
    'serve',
    'completion',
    'image rm',
    'template rm',
    'snapshot rm',
    'template export',
  ],
  ...['policy rm', 'policy reset', 'policy approval watch', 'policy approval answer', 'secret rm'],
  ...['secret import', 'settings set', 'settings unset', 'bell token rm', 'bell client', 'bell unit'],
  ...['init-config', 'config schema'],
  ...['env run', 'env exec', 'env rm', 'pool rm', 'project rm', 'project key revoke', 'volume rm'],
  ...['worker', 'worker install'],
  ...['workers unenrol', 'workers cordon', 'workers uncordon', 'workers rm'],
  ...['workers snapshot restore', 'workers snapshot tag', 'workers snapshot rm'],
];

test.each(all)('glovebox %s says what it does, with examples', (_path, verb) => {
  expect(verb.description()).toMatch(/^\S.{8,}[^.]$/);
  // The parser has taken what is left of a group for a mistake before its examples could help.
  if (verb.commands.length > 0 && verb.registeredArguments.length === 0) return;
  let help = '';
  verb.configureOutput({
    writeOut: (text) => {
      help += text;
    },
  });
  verb.outputHelp();
  expect(help).toMatch(/\nExamples:\n {2}\$ \S/);
});

const leaves = all.filter(([, it]) => it.commands.length === 0 || it.registeredArguments.length > 0);
test.each(leaves)('glovebox %s has --json if it prints data', (path, verb) => {
  const has = verb.options.some((it) => it.long === '--json');
  expect(has).toBe(!withoutData.includes(path));
});

test('the ten that somebody new needs come first, and each verb has its group', () => {
  const help = program.helpInformation();
  const headings = [...help.matchAll(/^(\S.*):$/gm)].map((it) => it[1]);
  expect(headings.slice(0, 2)).toEqual(['Options', 'Common']);
  expect(headings).not.toContain('Commands');
  const common = help.slice(help.indexOf('Common:'), help.indexOf('Sessions and output:'));
  expect([...common.matchAll(/^ {2}(\w+)/gm)].map((it) => it[1])).toEqual([
    ...['run', 'create', 'ls', 'exec', 'cp', 'ports', 'diff', 'apply', 'stop', 'rm'],
  ]);
});
