// glovebox secret …: its verbs with their options and examples, in `sbx`'s grammar.
import type { Command } from 'commander';
import { examples } from '../help.ts';
import { collect } from '../values.ts';

export function addSecretVerbs(program: Command): void {
  const secret = program
    .command('secret')
    .description('keys that requests of sandboxes are given on their way out; no sandbox ever holds them')
    .usage('VERB …')
    .helpCommand(false);
  const load = () => import('../commands/secret.ts');
  const verb = (name: string, description: string) => secret.command(name).description(description);
  /** Where a value may come from, besides stdin and the keyboard. */
  const withSource = (command: Command, environment: string) =>
    command
      .option('-t, --token <value>', 'the value itself; others on this machine can see it')
      .option(`${environment} <variable>`, 'from a variable of this shell')
      .option('--file <file>', 'from a file, read whenever it is needed')
      .option('--command <line>', "what a shell line prints, e.g. 'gh auth token'")
      .option('--refresh <time>', 'how long that is good for: e.g. 30m, or on-demand (default: 55m)')
      .option('--sandbox <sandbox>', 'for this sandbox alone')
      .option('-f, --force', 'replace one that is there, without asking')
      .option('--json', 'print all about it, but the value');

  withSource(verb('set', 'keep the key of a service'), '--env')
    .usage('[options] SERVICE|NAME')
    .argument('[service]', 'anthropic, openai, github, …, or what set-custom has made')
    .addHelpText(
      'after',
      examples(
        ['glovebox secret set anthropic', 'asks for it, without showing it'],
        ['glovebox secret set github --sandbox web <token.txt', 'for one sandbox'],
        ["glovebox secret set github --command 'gh auth token'", 'fetched anew when it gets old'],
      ),
    )
    .action(async (name, { env, ...options }) => (await load()).set(name, { ...options, fromEnv: env }));

  withSource(verb('set-custom', 'keep a key for hosts of your own'), '--env-from')
    .usage('[options] [NAME] --host HOST')
    .argument('[name]', 'what to call it (default: the first host)')
    .option('--host <host>', 'where it may go: a name, or *. and a name (repeatable)', collect)
    .option('--port <port>', 'default: 443 (repeatable)', collect)
    .option('--env <variable>', 'variable of the sandbox that holds the placeholder (repeatable)', collect)
    .option('--placeholder <text>', "what sandboxes see, e.g. 'sk-{rand}'")
    .option('--header <name>', 'the header that carries it')
    .option('--format <text>', "its form in the header, e.g. 'Bearer %s'")
    .option('--method <methods>', 'only with these, e.g. GET,POST')
    .option('--path <path>', 'only with these, exact or ending in * (repeatable)', collect)
    .option(
      '--substitute <parts>',
      'replace the placeholder in: header (alone by default), query, path, body',
    )
    .option('--aws-sigv4', 'sign requests anew; the value is ACCESS_KEY_ID:SECRET')
    .option('--value <value>', 'the same as --token')
    .addHelpText(
      'after',
      examples(
        [
          "glovebox secret set-custom shop --host api.shop.example --header Authorization --format 'Bearer %s'",
          '',
        ],
        [
          "glovebox secret set-custom shop --host api.shop.example --env SHOP_KEY --placeholder 'sk-{rand}'",
          '',
        ],
      ),
    )
    .action(async (name, { envFrom, ...options }) =>
      (await load()).setCustom(name, { ...options, fromEnv: envFrom }),
    );

  verb('import', 'keep the keys of services that this shell has, and use the logins of agents where they are')
    .usage('[options] SERVICE | --all')
    .argument('[service]')
    .option('--all', 'of all services')
    .option('--force', 'replace those that are there')
    .option('--dry-run', 'only tell what would be done')
    .addHelpText(
      'after',
      examples(
        ['glovebox secret import --all --dry-run', 'what there is'],
        ['glovebox secret import openai', 'from OPENAI_API_KEY'],
        ['glovebox secret import anthropic-oauth', 'as Claude Code on this machine is logged in'],
        ['glovebox secret import github', 'from GH_TOKEN, or what `gh auth token` prints'],
      ),
    )
    .action(async (service, options) => (await load()).importSecrets(service, options));

  verb('ls', 'list secrets, without their values')
    .alias('list')
    .option('--sandbox <sandbox>', 'those that it may use')
    .option('--service <service>', 'those of this service')
    .option('--json', 'as JSON')
    .addHelpText('after', examples(['glovebox secret ls --sandbox web', 'global ones, and its own']))
    .action(async (options) => (await load()).ls(options));

  verb('rm', 'remove secrets')
    .usage('[options] [NAME]')
    .argument('[name]', 'default: all of the scope')
    .option('--sandbox <sandbox>', 'those of this sandbox (default: global ones)')
    .option('--all-sandboxes', 'in every scope')
    .option('-f, --force', 'do not ask')
    .addHelpText(
      'after',
      examples(
        ['glovebox secret rm github', 'the global one'],
        ['glovebox secret rm github --all-sandboxes -f', 'wherever there is one'],
      ),
    )
    .action(async (name, options) => (await load()).rm(name, options));
}
