// `glovebox pool` and its verbs: sandboxes that are made before anybody asks for one.
import type { Command } from 'commander';
import { examples } from '../help.ts';

export function addPoolVerbs(program: Command): void {
  const pool = program
    .command('pool')
    .description('sandboxes that are made beforehand, so that a creation that fits gets one at once')
    .usage('VERB …')
    .helpCommand(false);
  const load = () => import('../commands/pool.ts');

  pool
    .command('create')
    .description('make a pool; it is filled in the background')
    .usage('[options] NAME IMAGE')
    .argument('<name>', 'small letters, digits and -')
    .argument('<image>')
    .option('--ready <number>', 'how many are to be ready', '4')
    .option('--most <number>', 'how many there may be, ready and in use', '1000')
    .option('--frozen', 'freeze those that wait: they take no processor time then')
    .option('--runtime <name>', 'their walls (default: those of the server)')
    .option('--cpu <cores>', 'limit of each, e.g. 0.5')
    .option('--memory <size>', 'limit of each, e.g. 512Mi')
    .option('--pids <number>', 'limit of each')
    .option('--disk <size>', 'limit of each, e.g. 2Gi')
    .option('--memory-max <size>', 'what the memory limits of those that wait may add up to')
    .option('--json', 'print all about it')
    .addHelpText(
      'after',
      examples(
        ['glovebox pool create web debian', 'creations of this image without limits get one'],
        ['glovebox pool create ci node --memory 1Gi --ready 8 --memory-max 8Gi', ''],
        ['glovebox pool create idle debian --frozen', ''],
      ),
    )
    .action(async (name, image, options) => (await load()).create(name, image, options));

  pool
    .command('ls')
    .alias('list')
    .description('list pools, and how it goes with them')
    .usage('[options]')
    .option('--json', 'as JSON')
    .addHelpText('after', examples(['glovebox pool ls', '']))
    .action(async (options) => (await load()).ls(options));

  pool
    .command('show')
    .description('show all about pools, as JSON')
    .usage('NAME…')
    .argument('<name...>')
    .option('--json', 'the same')
    .addHelpText('after', examples(['glovebox pool show web', 'what is ready, and why there is not more']))
    .action(async (names) => (await load()).show(names));

  pool
    .command('rm')
    .description('remove pools with what is ready in them; what is in use stays')
    .usage('NAME…')
    .argument('<name...>')
    .addHelpText('after', examples(['glovebox pool rm web', '']))
    .action(async (names) => (await load()).rm(names));
}
