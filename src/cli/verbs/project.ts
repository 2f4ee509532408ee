// `glovebox project` and its verbs: who else may use this daemon, and how much of it.
import type { Command } from 'commander';
import { examples } from '../help.ts';
import { collect } from '../values.ts';

const quotaOptions: [string, string][] = [
  ['--sandboxes <number>', 'sandboxes in all, stopped ones too'],
  ['--cpu <cores>', 'cores of all that run; each then has to say how many it wants'],
  ['--memory <size>', 'memory of all that run, e.g. 8Gi; each then has to say how much it wants'],
  ['--ports <number>', 'ports published on this host, on loopback (default: none)'],
  ['--requests <number>', 'requests a minute of all its keys together'],
];

export function addProjectVerbs(program: Command): void {
  const project = program
    .command('project')
    .description('tenants that share this daemon, each with keys and quotas of its own')
    .usage('VERB …')
    .helpCommand(false);
  const load = () => import('../commands/project.ts');
  const withQuotas = (command: Command): Command => {
    for (const [flags, description] of quotaOptions) command.option(flags, description);
    return command;
  };

  withQuotas(project.command('create').description('make a project'))
    .usage('[options] NAME')
    .argument('<name>', 'small letters, digits and -')
    .option('--json', 'print all about it')
    .addHelpText(
      'after',
      examples(
        ['glovebox project create research', 'without quotas'],
        ['glovebox project create ci --sandboxes 20 --cpu 8 --memory 16Gi --requests 600', ''],
      ),
    )
    .action(async (name, options) => (await load()).create(name, options));

  withQuotas(project.command('set').description('change quotas; those not named stay as they are'))
    .usage('[options] NAME')
    .argument('<name>')
    .option(
      '--unset <quota>',
      'take one away: sandboxes, cpu, memory, ports or requests (repeatable)',
      collect,
    )
    .option('--json', 'print all about it')
    .addHelpText(
      'after',
      examples(
        ['glovebox project set ci --sandboxes 40', ''],
        ['glovebox project set ci --unset cpu --unset memory', ''],
      ),
    )
    .action(async (name, options) => (await load()).set(name, options));

  project
    .command('ls')
    .alias('list')
    .description('list projects with what they have of their quotas')
    .usage('[options]')
    .option('--json', 'as JSON')
    .addHelpText('after', examples(['glovebox project ls', 'with a key of a project: that one']))
    .action(async (options) => (await load()).ls(options));

  project
    .command('inspect')
    .description('show all about projects, as JSON')
    .usage('NAME…')
    .argument('<name...>')
    .option('--json', 'the same')
    .addHelpText('after', examples(['glovebox project inspect ci', 'quotas, usage, number of keys']))
    .action(async (names) => (await load()).inspect(names));

  project
    .command('rm')
    .description('remove projects and revoke their keys')
    .usage('[options] NAME…')
    .argument('<name...>')
    .option('--sandboxes', 'with all their sandboxes')
    .option('-f, --force', 'do not ask')
    .addHelpText(
      'after',
      examples(
        ['glovebox project rm ci', 'one without sandboxes'],
        ['glovebox project rm --sandboxes -f ci', 'and all that is in it'],
      ),
    )
    .action(async (names, options) => (await load()).rm(names, options));

  const key = project
    .command('key')
    .description('keys of projects: what their members use as API key')
    .usage('VERB …')
    .helpCommand(false);

  key
    .command('create')
    .description('make a key and print it, this once')
    .usage('[options] PROJECT')
    .argument('<project>')
    .option(
      '--role <role>',
      'viewer (looks), member (makes and uses sandboxes), admin (and hands out keys)',
      'member',
    )
    .option('--label <text>', 'for people: whose it is')
    .option('--expires <time>', 'for how long it holds, e.g. 12h (default: until it is revoked)')
    .option('--json', 'print all about it, with the key')
    .addHelpText(
      'after',
      examples(
        ['glovebox project key create ci --label runner-1', ''],
        ['GLOVEBOX_API_KEY=gbx_… glovebox ls', 'how its holder uses it'],
        ['glovebox project key create ci --role viewer --expires 12h', ''],
      ),
    )
    .action(async (name, options) => (await load()).createKey(name, options));

  key
    .command('ls')
    .alias('list')
    .description('list keys, without their secrets')
    .usage('[options] PROJECT')
    .argument('<project>')
    .option('--json', 'as JSON')
    .addHelpText('after', examples(['glovebox project key ls ci', '']))
    .action(async (name, options) => (await load()).lsKeys(name, options));

  key
    .command('revoke')
    .alias('rm')
    .description('take keys back; what they have open is cut')
    .usage('PROJECT KEY_ID…')
    .argument('<project>')
    .argument('<key-id...>')
    .addHelpText(
      'after',
      examples(['glovebox project key revoke ci 3f0c9a1b2d4e', 'see `glovebox project key ls`']),
    )
    .action(async (name, ids) => (await load()).revokeKeys(name, ids));
}
