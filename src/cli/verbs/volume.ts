// `glovebox volume` and its verbs: folders that sandboxes mount and that outlive them.
import type { Command } from 'commander';
import { examples } from '../help.ts';

export function addVolumeVerbs(program: Command): void {
  const volume = program
    .command('volume')
    .description('named volumes: folders that sandboxes mount and that outlive them')
    .usage('VERB …')
    .helpCommand(false);
  const load = () => import('../commands/volume.ts');

  volume
    .command('create')
    .description('make an empty volume')
    .usage('[options] NAME')
    .argument('<name>', 'small letters, digits and -')
    .option('--json', 'print all about it')
    .addHelpText(
      'after',
      examples(
        ['glovebox volume create data', ''],
        ['glovebox create -v data:/data host', 'mounts it; makes it, too, if it is not there'],
      ),
    )
    .action(async (name, options) => (await load()).create(name, options));

  volume
    .command('ls')
    .alias('list')
    .description('list volumes with the sandboxes that have them')
    .usage('[options]')
    .option('--json', 'as JSON')
    .addHelpText('after', examples(['glovebox volume ls', '']))
    .action(async (options) => (await load()).ls(options));

  volume
    .command('inspect')
    .description('show all about volumes, as JSON')
    .usage('NAME…')
    .argument('<name...>')
    .option('--json', 'the same')
    .addHelpText('after', examples(['glovebox volume inspect data', 'which sandboxes have it']))
    .action(async (names) => (await load()).inspect(names));

  volume
    .command('rm')
    .description('remove volumes with all that is in them')
    .usage('[options] NAME…')
    .argument('<name...>')
    .option('-f, --force', 'do not ask')
    .addHelpText('after', examples(['glovebox volume rm -f data', 'not while a sandbox has it']))
    .action(async (names, options) => (await load()).rm(names, options));
}
