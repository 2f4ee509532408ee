// glovebox fetch: what a sandbox has committed in its clone.
import type { Command } from 'commander';
import { examples } from '../help.ts';

export function addCloneVerbs(program: Command): void {
  program
    .command('fetch')
    .description('fetch what a sandbox has committed in its clone, and list its branches')
    .usage('[options] SANDBOX')
    .argument('<sandbox>')
    .option('--json', 'as JSON')
    .addHelpText(
      'after',
      examples(
        ['glovebox fetch web', 'into the branches sandbox-web/… of your repository; starts it if need be'],
        ['git merge sandbox-web/main', 'afterwards, in your repository'],
      ),
    )
    .action(async (sandbox, options) => (await import('../commands/clone.ts')).fetch(sandbox, options));
}
