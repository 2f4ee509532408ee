// glovebox init-config and glovebox config …, with their options and examples.
import { type Command, Option } from 'commander';
import { configExamples } from '../../contract/config-examples.ts';
import { examples } from '../help.ts';

export function addConfigVerbs(program: Command): void {
  const load = () => import('../commands/config.ts');
  const names = Object.keys(configExamples);

  program
    .command('init-config')
    .description('write a commented configuration file to begin with')
    .usage('[options] [PATH|-]')
    .argument('[path]', 'where to; - for stdout (default: config.toml in the home folder)')
    // Not as choices: names of OpenSandbox's examples are answered with what to take instead.
    .addOption(new Option('--example <name>', `one of ${names.join(', ')}`).default('full'))
    .option('--force', 'replace a file that is there')
    .addHelpText(
      'after',
      `
Examples of configurations:
${Object.entries(configExamples)
  .map(([name, { summary }]) => `  ${name.padEnd(12)}${summary}`)
  .join('\n')}
${examples(
  ['glovebox init-config --example bubblewrap', 'where the daemon looks for it'],
  ['glovebox init-config box.toml --example docker', 'for glovebox serve --config box.toml'],
  ['glovebox init-config -', 'every key there is, on stdout'],
)}`,
    )
    .action(async (path, options) => (await load()).initConfig(path, options));

  const config = program
    .command('config')
    .description('check configuration files, of OpenSandbox, too; describe them to editors')
    .usage('VERB …')
    .helpCommand(false);

  config
    .command('check')
    .description('say what a daemon would make of a configuration file')
    .usage('[options] [FILE]')
    .argument('[file]', "(default: the file that this machine's daemon reads)")
    .option('--json', 'mistakes and warnings as JSON')
    .addHelpText(
      'after',
      `
With this shell's environment, as \`glovebox serve --config FILE\`. The exit code is 78 when there is a mistake.
${examples(
  ['glovebox config check ~/.sandbox.toml', 'a file of OpenSandbox: what is refused, and what to use'],
  ['glovebox config check --json box.toml', 'for programs'],
)}`,
    )
    .action(async (file, options) => (await load()).checkConfig(file, options));

  config
    .command('schema')
    .description('print a JSON Schema of the configuration file, for editors')
    .addHelpText(
      'after',
      examples([
        'glovebox config schema > glovebox.schema.json',
        'then `#:schema ./glovebox.schema.json` as the first line of the file',
      ]),
    )
    .action(async () => (await load()).configSchema());
}
