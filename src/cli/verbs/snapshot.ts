// glovebox snapshot … and glovebox fork: what is on the disk of a sandbox at a moment, and sandboxes made of it.
import { type Command, Option } from 'commander';
import { examples } from '../help.ts';
import { collect } from '../values.ts';

export function addSnapshotVerbs(program: Command): void {
  const snapshot = program
    .command('snapshot')
    .description('what was on the disks of sandboxes at a moment, to make others of')
    .usage('VERB …')
    .helpCommand(false);

  snapshot
    .command('create')
    .description('keep what is on the disk of a sandbox, without its workspaces and volumes')
    .usage('[options] SANDBOX')
    .argument('<sandbox>', 'running, paused or stopped')
    .option('--name <name>', 'what to call it')
    .option('--no-wait', 'do not wait until it is ready')
    .option('--json', 'print all about it')
    .addHelpText(
      'after',
      examples(
        ['glovebox snapshot create web --name before-import', 'prints its id'],
        ['glovebox create --snapshot before-import --name again', 'a sandbox made of it'],
      ),
    )
    .action(async (sandbox, options) => (await import('../commands/snapshot.ts')).create(sandbox, options));

  snapshot
    .command('ls')
    .alias('list')
    .description('list snapshots, newest first')
    .usage('[options]')
    .option('--sandbox <sandbox>', 'of this one; by its id when it is gone')
    .addOption(
      new Option('--state <state>', 'Creating, Ready, Failed or Deleting (repeatable)').argParser(collect),
    )
    .option('-q, --quiet', 'ids only')
    .option('--json', 'as JSON')
    .addHelpText('after', examples(['glovebox snapshot ls', ''], ['glovebox snapshot ls --state Failed', '']))
    .action(async (options) => (await import('../commands/snapshot.ts')).list(options));

  snapshot
    .command('rm')
    .description('remove snapshots')
    .usage('SNAPSHOT…')
    .argument('<snapshot...>', 'id, the beginning of one, or name')
    .addHelpText(
      'after',
      examples(['glovebox snapshot rm before-import', 'not while a sandbox is made of it']),
    )
    .action(async (snapshots) => (await import('../commands/snapshot.ts')).remove(snapshots));

  program
    .command('fork')
    .description('make sandboxes like one that there is, with what is on its disk now')
    .usage('[options] SANDBOX')
    .argument('<sandbox>', 'running, paused or stopped')
    .option('-n, --count <number>', 'how many (default: 1)')
    .option('--name <name>', 'what to call it; of several NAME-1, NAME-2, … (default: SANDBOX-fork)')
    .option('--timeout <duration>', 'remove them after this time, e.g. 30m (default: never)')
    .option('-l, --label <KEY=VALUE>', 'metadata to find them by (repeatable)', collect)
    .option('--json', 'print all about them')
    .addHelpText(
      'after',
      examples(
        ['glovebox fork web', 'with its limits, variables and rules; not with its folders and ports'],
        ['glovebox fork -n 3 --name try web', 'try-1, try-2 and try-3'],
      ),
    )
    .action(async (sandbox, options) => (await import('../commands/snapshot.ts')).fork(sandbox, options));
}
