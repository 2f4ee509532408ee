// glovebox template …: its verbs with their options and examples.
import type { Command } from 'commander';
import { examples } from '../help.ts';
import { collect } from '../values.ts';

export function addTemplateVerbs(program: Command): void {
  const template = program
    .command('template')
    .description('images that sandboxes are made from: built, saved from sandboxes, loaded')
    .usage('VERB …')
    .helpCommand(false);

  template
    .command('build')
    .description('build a template from a Dockerfile or a template file (.toml), or from a ready recipe')
    .usage('[options] FOLDER | RECIPE')
    .argument('<folder>', 'what the build may use, or the name of a recipe: base')
    .option('-t, --tag <name>', "what to call it (default: the folder's name, or the recipe's)")
    .option('-f, --file <path>', 'in the folder (default: template.toml if it is there, else Dockerfile)')
    .option('--runtime <name>', 'bubblewrap, docker, …')
    .option('--build-arg <KEY=VALUE>', 'of a Dockerfile (repeatable)', collect)
    .option('--target <stage>', 'of a Dockerfile')
    .option('--no-cache', 'take every step anew')
    .option(
      '--network',
      'let the steps of a Dockerfile reach what the Docker engine reaches, past the policy (default: no network)',
    )
    .option('-q, --quiet', 'no progress')
    .option('--json', 'print all about it')
    .addHelpText(
      'after',
      examples(
        ['glovebox template build base', 'git, Node.js, Python, Go, search tools, from Debian packages'],
        ['glovebox template build -t web ./box', 'from ./box/template.toml or ./box/Dockerfile'],
        ['glovebox run -t web claude .', 'a sandbox made from it'],
      ),
    )
    .action(async (folder, options) => (await import('../commands/template.ts')).build(folder, options));

  template
    .command('save')
    .description('make a template of what is on a sandbox’s disk, without its workspaces')
    .usage('[options] SANDBOX TAG')
    .argument('<sandbox>')
    .argument('<tag>')
    .option('-o, --output <file>', 'write it as a tar, too')
    .option('--json', 'print all about it')
    .addHelpText(
      'after',
      examples(['glovebox template save web web:ready', 'what was installed in it stays']),
    )
    .action(async (sandbox, tag, options) =>
      (await import('../commands/template.ts')).save(sandbox, tag, options),
    );

  template
    .command('load')
    .description('take in a template: `docker save`, an OCI layout, or a tar of a root file system')
    .usage('[options] FILE|-')
    .argument('<file>')
    .option('-t, --tag <name>', "what to call it (default: the file's name)")
    .option('--runtime <name>', 'bubblewrap, docker, …')
    .option('--json', 'print all about it')
    .addHelpText('after', examples(['docker save node:24 | glovebox template load - -t node:24', '']))
    .action(async (file, options) => (await import('../commands/template.ts')).load(file, options));

  template
    .command('export')
    .description('write a template as a tar that can be loaded elsewhere')
    .usage('[options] TEMPLATE')
    .argument('<template>')
    .option('-o, --output <file>', 'where to (default: stdout)')
    .option('--runtime <name>', 'bubblewrap, docker, …')
    .addHelpText('after', examples(['glovebox template export web -o web.tar', '']))
    .action(async (name, options) => (await import('../commands/template.ts')).exportTemplate(name, options));

  template
    .command('ls')
    .alias('list')
    .description('list templates')
    .usage('[options]')
    .option('-q, --quiet', 'names only')
    .option('--json', 'as JSON')
    .addHelpText('after', examples(['glovebox template ls', '']))
    .action(async (options) => (await import('../commands/template.ts')).list(options));

  template
    .command('rm')
    .description('remove templates')
    .usage('[options] TEMPLATE…')
    .argument('<template...>')
    .option('--runtime <name>', 'bubblewrap, docker, …')
    .addHelpText('after', examples(['glovebox template rm web', 'not while a sandbox uses it']))
    .action(async (names, options) => (await import('../commands/template.ts')).remove(names, options));
}
