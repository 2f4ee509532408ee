// glovebox bell …: its verbs with their options and examples.
import type { Command } from 'commander';
import { examples } from '../help.ts';
import { collect } from '../values.ts';

const decisionVerbs = [
  {
    name: 'allow',
    description: 'let sandboxes have an action of the host done',
    lines: [
      ['glovebox bell allow open_url --sandbox web', 'it may open pages in your browser without asking'],
      ['glovebox bell allow clipboard', 'all may set your clipboard'],
    ],
  },
  {
    name: 'ask',
    description: 'have a person answer each call of an action',
    lines: [
      ['glovebox bell ask exec', 'each command that is listed, every time'],
      ['glovebox policy approval', 'in another terminal: answer with single keys'],
    ],
  },
  {
    name: 'deny',
    description: 'refuse an action of the host',
    lines: [['glovebox bell deny play --sandbox web', 'it makes no more noise']],
  },
] as const satisfies { name: string; description: string; lines: [string, string][] }[];

export function addBellVerbs(program: Command): void {
  const bell = program
    .command('bell')
    .description('what sandboxes may ask of this host; alone: serve that to sandboxes that are not ours')
    .usage('[VERB …]')
    .helpCommand(false);
  const verb = (name: string, description: string) => bell.command(name).description(description);
  const load = () => import('../commands/bell.ts');

  bell
    .command('serve', { isDefault: true })
    .description('run the bell alone, without a daemon for sandboxes, until Ctrl-C')
    .usage('[options]')
    // A mistyped verb comes here, too.
    .argument('[words...]')
    .option('--port <port>', 'port to listen on (default: 9999)')
    .option('--host <address>', 'address to listen on (repeatable; default: 127.0.0.1)', collect)
    .option('--sound-file <file>', 'what `play` plays')
    .option('--config <file>', "another file than bell.toml in the home folder, or sandbox-comm's own")
    .option('--insecure', 'serve whoever reaches it, without a token')
    .option('--json', 'print where it listens as JSON')
    .addHelpText(
      'after',
      examples(
        ['glovebox bell', 'for containers and virtual machines that reach this loopback'],
        ['glovebox bell --host 172.17.0.1', 'for containers of Docker’s usual network'],
        ['glovebox bell token add builder', 'in another terminal: what such a container says who it is with'],
      ),
    )
    .action(async (words, options) => (await import('../commands/bell-serve.ts')).serveBell(words, options));

  verb('status', 'show the actions, what is decided about them, and the commands that may be run')
    .usage('[options]')
    .option('--json', 'as JSON')
    .addHelpText(
      'after',
      examples(
        ['glovebox bell status', 'also what this host lacks for an action'],
        ['glovebox bell status --json', 'for programs'],
      ),
    )
    .action(async (options) => (await load()).status(options));

  for (const { name, description, lines } of decisionVerbs) {
    verb(name, description)
      .usage('[options] ACTION')
      .argument('<action>', 'as `bell status` names it')
      .option('--sandbox <sandbox>', 'for this sandbox alone')
      .option('--json', 'print what holds afterwards')
      .addHelpText('after', examples(...lines.map((it): [string, string] => [...it])))
      .action(async (action, options) => (await load()).decide(name, action, options));
  }

  verb('forget', 'forget what was decided about an action: what holds otherwise holds again')
    .usage('[options] ACTION')
    .argument('<action>')
    .option('--sandbox <sandbox>', 'what was decided for this sandbox alone')
    .option('--json', 'print what holds afterwards')
    .addHelpText('after', examples(['glovebox bell forget open_url --sandbox web', '']))
    .action(async (action, options) => (await load()).forget(action, options));

  verb('log', 'show what was asked of this host, and what came of it, newest last')
    .usage('[options]')
    .option('--sandbox <sandbox>', 'by this sandbox alone')
    .option('-f, --follow', 'go on with new calls as they come')
    .option('--limit <number>', 'how many at most, the newest; 0 for all (default: 100)')
    .option('--json', 'as JSON; with -f one object a line')
    .addHelpText(
      'after',
      examples(
        ['glovebox bell log', 'the last 100 calls'],
        ['glovebox bell log -f --sandbox web', 'one sandbox, live'],
      ),
    )
    .action(async (options) => (await load()).log(options));

  const token = verb('token', 'what callers that are no sandboxes of ours say who they are with')
    .usage('VERB …')
    .helpCommand(false);
  token
    .command('add')
    .description('make a token and print it, this once')
    .usage('[options] NAME')
    .argument('<name>', 'what its calls are listed under')
    .option('--json', 'as JSON')
    .addHelpText(
      'after',
      examples(
        ['glovebox bell token add builder', ''],
        ['docker run -e SANDBOX_COMM_TOKEN="$(glovebox bell token add ci)" …', 'for a container of yours'],
      ),
    )
    .action(async (name, options) => (await load()).addToken(name, options));
  token
    .command('ls')
    .alias('list')
    .description('list the tokens by their names')
    .usage('[options]')
    .option('-q, --quiet', 'names only')
    .option('--json', 'as JSON')
    .addHelpText('after', examples(['glovebox bell token ls', 'they themselves are not kept']))
    .action(async (options) => (await load()).listTokens(options));
  token
    .command('rm')
    .description('remove tokens; whoever has them is refused at once')
    .usage('NAME…')
    .argument('<name...>')
    .addHelpText('after', examples(['glovebox bell token rm builder', '']))
    .action(async (names) => (await load()).removeTokens(names));

  verb('client', 'print the client as one file, for containers and machines that are no sandboxes of ours')
    .usage('[options]')
    .option('-o, --output <file>', 'write it there, executable (default: stdout)')
    .addHelpText(
      'after',
      examples(
        ['glovebox bell client -o sandbox-comm', 'runs with Node.js from 18 on or any python3'],
        ['glovebox bell client | docker exec -i box sh -c "cat >/usr/local/bin/sandbox-comm"', ''],
      ),
    )
    .action(async (options) => (await import('../commands/bell-files.ts')).client(options));

  verb('unit', 'print a systemd unit that runs the bell alone')
    .usage('[options]')
    .option('--system', 'for the whole machine, as a user of its own: without notifications and sound')
    .option('-o, --output <file>', 'write it there (default: stdout)')
    .addHelpText(
      'after',
      examples(
        ['glovebox bell unit -o ~/.config/systemd/user/glovebox-bell.service', 'for your own session'],
        ['systemctl --user enable --now glovebox-bell', 'starts it, now and at each login'],
      ),
    )
    .action(async (options) => (await import('../commands/bell-files.ts')).unit(options));
}
