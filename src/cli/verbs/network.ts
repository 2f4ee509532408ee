// glovebox network …: its verbs with their options and examples.
import { type Command, Option } from 'commander';
import { examples } from '../help.ts';
import { collect } from '../values.ts';

export function addNetworkVerbs(program: Command): void {
  const network = program
    .command('network')
    .description("what sandboxes reach: one sandbox's proxy configuration, and the log of attempts")
    .usage('VERB …')
    .helpCommand(false);

  network
    .command('proxy')
    .description('show or change the proxy configuration of a sandbox; the most specific entry wins')
    .usage('[options] SANDBOX')
    .argument('<sandbox>')
    .addOption(new Option('--policy <what>', 'where no entry fits').choices(['allow', 'deny']))
    .option(
      '--allow-host <host[:port]>',
      'e.g. example.com, *.example.com, example.com:443 (repeatable)',
      collect,
    )
    .option('--block-host <host[:port]>', 'what it may not reach (repeatable)', collect)
    .option('--bypass-host <host[:port]>', 'pass without being looked into (repeatable)', collect)
    .option('--allow-cidr <network>', 'take it off the blocked and bypassed networks (repeatable)', collect)
    .option('--block-cidr <network>', 'e.g. 10.0.0.0/8 (repeatable)', collect)
    .option('--bypass-cidr <network>', 'pass without being looked into (repeatable)', collect)
    .option('--json', 'as JSON')
    .addHelpText(
      'after',
      examples(
        ['glovebox network proxy web', 'shows it'],
        ['glovebox network proxy web --policy deny --allow-host example.com', 'holds at once, and is kept'],
        [
          'glovebox network proxy web --bypass-host pinned.example.com',
          'for clients that insist on a certificate',
        ],
      ),
    )
    .action(async (sandbox, options) => (await import('../commands/network.ts')).proxy(sandbox, options));

  network
    .command('log')
    .description('show what sandboxes tried to reach, newest last')
    .usage('[options] [SANDBOX]')
    .argument('[sandbox]')
    .option('-f, --follow', 'go on with new attempts as they come')
    .option('--limit <number>', 'how many at most, the newest; 0 for all (default: 100)')
    .option('-q, --quiet', 'addresses only')
    .option('--json', 'as JSON; with -f one object a line')
    .addHelpText(
      'after',
      examples(
        ['glovebox network log web', 'the last 100 attempts'],
        ['glovebox network log -f', 'all sandboxes, live'],
        ['glovebox network log --json --limit 0 web', 'everything that is kept'],
      ),
    )
    .action(async (sandbox, options) => (await import('../commands/network.ts')).log(sandbox, options));
}
