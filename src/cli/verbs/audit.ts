// `glovebox audit` and its verbs.
import type { Command } from 'commander';
import { examples } from '../help.ts';

export function addAuditVerbs(program: Command): void {
  const audit = program
    .command('audit')
    .description('who changed something through the API, in a log that shows when it was changed itself')
    .usage('VERB …')
    .helpCommand(false);
  const load = () => import('../commands/audit.ts');

  audit
    .command('log')
    .description('show the calls that changed something or were refused, newest last')
    .usage('[options]')
    .option('--sandbox <sandbox>', 'about this sandbox alone; one that is gone by its id')
    .option('-f, --follow', 'go on with new calls as they come')
    .option('--limit <number>', 'how many at most, the newest; 0 for all (default: 100)')
    .option('--json', 'as JSON; with -f one object a line')
    .addHelpText(
      'after',
      examples(
        ['glovebox audit log', 'the last 100 calls'],
        ['glovebox audit log -f --sandbox web', 'one sandbox, live'],
      ),
    )
    .action(async (options) => (await load()).log(options));

  audit
    .command('verify')
    .description('check that no line was changed, removed, inserted or cut off; needs no daemon')
    .usage('[options]')
    .option('--head <hash>', 'also that this line, which an earlier run showed, is still there')
    .option('--json', 'as JSON')
    .addHelpText(
      'after',
      examples(
        ['glovebox audit verify', 'prints the hash of the last line: keep it elsewhere'],
        ['glovebox audit verify --head "$(cat /mnt/elsewhere/head)"', 'exit code 1 when something is wrong'],
      ),
    )
    .action(async (options) => (await load()).verify(options));
}
