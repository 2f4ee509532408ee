// Every line of the guides and the README that begins with `glovebox` is one that the command line takes: its verbs, options and number of arguments.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Command } from 'commander';
import { expect, test } from 'vitest';
import { makeProgram } from '../src/cli/program.ts';

const top = join(import.meta.dirname, '..');
const guides = readdirSync(join(top, 'docs/guide')).map((name) => `docs/guide/${name}`);

/** As a shell splits them; what stands in quotes is one word. */
function wordsOf(line: string): string[] {
  const words = line.match(/(?:'[^']*'|"[^"]*"|\\.|[^\s'"\\])+/g) ?? [];
  return words.map((it) => it.replace(/'([^']*)'|"([^"]*)"|\\(.)/g, '$1$2$3'));
}

/** The first command only: no pipe, redirection, comment or second one. */
function commandsIn(text: string): string[] {
  const blocks = [...text.matchAll(/```sh\n([\s\S]*?)```/g)].map((it) => it[1] as string);
  const lines = blocks.flatMap((it) => it.split('\n'));
  return lines
    .map((line) => line.replace(/"\$\(.*?\)"/g, 'value'))
    .flatMap((line) => /(?:^|\|\s+|=\$\()(glovebox [^|<>;#)]*)/.exec(line)?.[1]?.trim() ?? []);
}

function withoutEffect(command: Command): void {
  command.action(() => {});
  for (const it of command.commands) withoutEffect(it);
}

const found = ['README.md', ...guides].flatMap((path) =>
  commandsIn(readFileSync(join(top, path), 'utf8')).map((line) => [path, line] as const),
);

test('the guides have commands', () => expect(found.length).toBeGreaterThan(100));

test.each(found)('%s: %s', (_, line) => {
  const args = wordsOf(line)
    .slice(1)
    .filter((it) => it !== '…');
  const program = makeProgram(args);
  for (const command of program.commands) withoutEffect(command);
  expect(() => program.parse(args, { from: 'user' })).not.toThrow();
});
