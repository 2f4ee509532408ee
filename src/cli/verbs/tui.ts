// glovebox tui, which is what `glovebox` without a verb means at a terminal.
import type { Command } from 'commander';
import { examples } from '../help.ts';

export function addTuiVerb(program: Command): void {
  program
    .command('tui')
    .description('all of it on one screen: sandboxes, sessions, the network log, questions, the bell')
    .addHelpText(
      'after',
      examples(['glovebox', 'the same, at a terminal'], ['glovebox tui', '? shows the keys']),
    )
    .action(async () => {
      process.exitCode = await (await import('../commands/tui.ts')).tui();
    });
}

/** The line that is meant. Where nobody would see a screen, no verb still means help. */
export function withDefaultVerb(args: string[]): string[] {
  return args.length === 0 && process.stdin.isTTY && process.stdout.isTTY ? ['tui'] : args;
}
