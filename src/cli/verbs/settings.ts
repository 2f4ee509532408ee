// glovebox settings …: its verbs with their options and examples.
import type { Command } from 'commander';
import { examples } from '../help.ts';

export function addSettingsVerbs(program: Command): void {
  const load = () => import('../commands/settings.ts');
  const settings = program
    .command('settings')
    .description("the configuration of this machine's daemon")
    .usage('VERB …')
    .helpCommand(false);
  const verb = (name: string, description: string) => settings.command(name).description(description);

  verb('list', 'list what differs from the defaults, and where it is said')
    .alias('ls')
    .usage('[options]')
    .option('-a, --all', 'those at their default, too')
    .option('--no-trunc', 'cut no long values')
    .option('--json', 'as JSON')
    .addHelpText(
      'after',
      examples(
        ['glovebox settings list', 'from the file and the environment'],
        ['glovebox settings list --all', 'all there are, with what they do'],
      ),
    )
    .action(async (options) => (await load()).listSettings(options));

  verb('get', 'print the value of a setting')
    .usage('[options] KEY')
    .argument('<key>', 'SECTION.KEY')
    .option('--json', 'all about it, as JSON')
    .addHelpText(
      'after',
      examples(['glovebox settings get runtime.type', 'bubblewrap, if nothing else is said']),
    )
    .action(async (key, options) => (await load()).getSetting(key, options));

  verb('set', 'write a setting into the configuration file')
    .usage('KEY VALUE')
    .argument('<key>', 'SECTION.KEY')
    .argument('<value>', 'lists are separated by commas')
    .addHelpText(
      'after',
      examples(
        ['glovebox settings set runtime.type docker', 'from the next start of the daemon on'],
        ['glovebox settings set egress.upstream_proxy http://proxy.corp:3128', ''],
        ['glovebox settings set storage.allowed_host_paths ~/src,/srv/data', 'a list'],
      ),
    )
    .action(async (key, value) => (await load()).setSetting(key, value));

  verb('unset', 'take a setting out of the configuration file')
    .usage('KEY')
    .argument('<key>', 'SECTION.KEY')
    .addHelpText('after', examples(['glovebox settings unset runtime.type', 'the default again']))
    .action(async (key) => (await load()).unsetSetting(key));
}
