// glovebox diff, apply, discard, checkpoint and undo: what a sandbox did to an overlaid folder, with their options and examples.
import { type Command, Option } from 'commander';
import { examples } from '../help.ts';

export function addWorkspaceVerbs(program: Command): void {
  const load = () => import('../commands/workspace.ts');
  const verb = (name: string, description: string) => program.command(name).description(description);
  const which = ['-w, --workspace <path>', 'which workspace (default: the first)'] as const;

  verb('diff', 'show what a sandbox did to an overlaid folder')
    .usage('[options] SANDBOX')
    .argument('<sandbox>')
    .option('--stat', 'lines added and removed of each file')
    .option('--name-only', 'paths alone')
    .option(...which)
    .option('--json', 'paths, kinds, counts and conflicts as JSON')
    .addHelpText(
      'after',
      examples(
        ['glovebox diff demo', 'as git shows changes'],
        ['glovebox diff demo --stat', 'how much in which file'],
        ['glovebox diff demo | git apply --check', 'a patch for other tools'],
      ),
    )
    .action(async (sandbox, options) => (await load()).diff(sandbox, options));

  verb('apply', 'bring what a sandbox did to the folder of the host')
    .usage('[options] SANDBOX [PATH…]')
    .argument('<sandbox>')
    .argument('[path...]', 'these alone, relative to the workspace; a folder means all below it')
    .option('-p, --pick', 'ask for each hunk, as git add -p does')
    .addOption(new Option('--theirs', "where both changed a file, take the sandbox's").conflicts('ours'))
    .option('--ours', "where both changed a file, keep the host's")
    .option('-n, --dry-run', 'tell what would happen')
    .option(...which)
    .option('--json', 'as JSON')
    .addHelpText(
      'after',
      examples(
        ['glovebox apply demo', 'everything; what both sides changed is merged or left'],
        ['glovebox apply demo src README.md', 'a folder and a file'],
        ['glovebox apply demo --pick', 'hunk by hunk'],
        ['glovebox apply demo --theirs src/main.ts', 'a conflict, decided'],
      ),
    )
    .action(async (sandbox, paths, options) => {
      process.exitCode = await (await load()).apply(sandbox, paths, options);
    });

  verb('discard', 'forget what a sandbox did to an overlaid folder')
    .usage('[options] SANDBOX [PATH…]')
    .argument('<sandbox>')
    .argument('[path...]', 'these alone, relative to the workspace')
    .option('-f, --force', 'do not ask')
    .option(...which)
    .option('--json', 'as JSON')
    .addHelpText(
      'after',
      examples(
        ['glovebox discard demo', 'it sees the files of the host again'],
        ['glovebox discard demo -f src/generated', 'one folder, without a question'],
      ),
    )
    .action(async (sandbox, paths, options) => (await load()).discard(sandbox, paths, options));

  const checkpoint = verb('checkpoint', 'remember the state of the overlaid folders')
    .usage('[options] SANDBOX [LABEL] | ls SANDBOX')
    .helpCommand(false)
    .argument('<sandbox>')
    .argument('[label]', 'to find it by')
    .option('--json', 'as JSON')
    .addHelpText(
      'after',
      examples(
        ['glovebox checkpoint demo before-refactoring', 'prints its id'],
        ['glovebox checkpoint ls demo', 'also those that were made before commands'],
      ),
    )
    .action(async (sandbox, label, options) => (await load()).checkpoint(sandbox, label, options));
  checkpoint
    .command('ls')
    .alias('list')
    .description('list checkpoints, newest last')
    .usage('[options] SANDBOX')
    .argument('<sandbox>')
    .option('-q, --quiet', 'ids only')
    // The command above has taken it before this one could.
    .option('--json', 'as JSON')
    .addHelpText('after', examples(['glovebox checkpoint ls demo', 'ids for undo']))
    .action(async (sandbox, _options, command: Command) =>
      (await load()).checkpoints(sandbox, command.optsWithGlobals()),
    );

  verb('undo', 'take the overlaid folders back to a checkpoint')
    .usage('[options] SANDBOX [CHECKPOINT]')
    .argument('<sandbox>')
    .argument('[checkpoint]', 'its id (default: the newest that is not as it is now)')
    .option('--json', 'as JSON')
    .addHelpText(
      'after',
      examples(
        ['glovebox undo demo', 'what the last command did; once more does it again'],
        ['glovebox undo demo c3', 'back to that one'],
      ),
    )
    .action(async (sandbox, id, options) => (await load()).undo(sandbox, id, options));
}
