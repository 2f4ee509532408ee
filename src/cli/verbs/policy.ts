// glovebox policy …: its verbs with their options and examples, in `sbx`'s grammar.
import { Argument, type Command, Option } from 'commander';
import { examples } from '../help.ts';

const ruleVerbs = [
  {
    name: 'allow',
    description: 'let sandboxes reach something',
    lines: [
      ['glovebox policy allow network --sandbox web api.example.com', 'one host, any port'],
      [
        "glovebox policy allow network -g '**.example.com:443,pypi.org'",
        '* is one label, ** any number of them',
      ],
      ["glovebox policy allow network api.example.com --method GET --path '/v1/**'", 'only such requests'],
      ['glovebox policy allow network -g localhost:9999', 'a service of this host'],
    ],
  },
  {
    name: 'deny',
    description: 'keep sandboxes from reaching something; denials win over all else',
    lines: [
      ["glovebox policy deny network '**.example.com'", 'in no sandbox'],
      [
        "glovebox policy deny network github.com --method POST,PUT,DELETE --path '/**'",
        'reading stays allowed',
      ],
    ],
  },
  {
    name: 'ask',
    description: 'hold connections until a person has answered, even if something allows them',
    lines: [
      ["glovebox policy ask network --sandbox web '**'", 'every place that no other rule decides'],
      ['glovebox policy approval', 'in another terminal: answer with single keys'],
    ],
  },
  {
    name: 'bypass',
    description: 'do not look into connections to something; allows nothing by itself',
    lines: [
      ['glovebox policy bypass network pinned.example.com', 'for clients that insist on a certificate'],
    ],
  },
] as const satisfies { name: string; description: string; lines: [string, string][] }[];

const methodOption = ['--method <methods>', 'HTTP methods, e.g. GET,HEAD, or ANY'] as const;
const pathOption = ['--path <pattern>', "paths of requests, e.g. '/v1/**'"] as const;

export function addPolicyVerbs(program: Command): void {
  const policy = program
    .command('policy')
    .description('rules for what sandboxes may reach')
    .usage('VERB …')
    .helpCommand(false);
  const verb = (name: string, description: string) => policy.command(name).description(description);
  const load = () => import('../commands/policy.ts');

  verb('init', 'choose what holds for all sandboxes, once')
    .usage('[options] allow-all|balanced|deny-all')
    .argument('<preset>')
    .option('--json', 'as JSON')
    .addHelpText(
      'after',
      examples(
        ['glovebox policy init balanced', 'package managers, code hosts, AI services'],
        ['glovebox policy profile ls', 'what there is to choose from'],
      ),
    )
    .action(async (preset, options) => (await load()).init(preset, options));

  for (const { name, description, lines } of ruleVerbs) {
    verb(name, description)
      .usage('network [options] RESOURCE[,RESOURCE…]')
      .argument('<type>')
      .argument('<resources...>', 'names, HOST:PORT, addresses or networks, separated by commas')
      .option('--sandbox <sandbox>', 'for this sandbox alone')
      .option('-g, --global', 'for all sandboxes (the default)')
      .option(...methodOption)
      .option(...pathOption)
      .option('--protocol <protocols>', 'tcp, udp, or both')
      .option('--name <name>', 'what to call the rule')
      .option('--json', 'print all about it')
      .addHelpText('after', examples(...lines.map((it): [string, string] => [...it])))
      .action(async (type, words, options) => (await load()).addRule(name, type, words, options));
  }

  verb('rm', 'remove rules')
    .usage('network [options] --id ID | --resource RESOURCE')
    .argument('<type>')
    .option('--id <id>', 'a rule, as `policy ls --wide` names it')
    .option('--resource <resource>', 'rules that name this')
    .option('--sandbox <sandbox>', 'with --resource: rules of this sandbox (default: of all)')
    .option(...methodOption)
    .option(...pathOption)
    .option('--force', 'also several rules, and those that name more')
    .addHelpText(
      'after',
      examples(
        ['glovebox policy rm network --id 1b2633ea', 'the beginning of an id is enough'],
        ['glovebox policy rm network --sandbox web --resource example.com', ''],
      ),
    )
    .action(async (type, options) => (await load()).removeRule(type, options));

  verb('check', 'tell what would become of an attempt, and why; fails when it is not allowed')
    .usage('network [options] TARGET')
    .argument('<type>')
    .argument('[target]', 'HOST, HOST:PORT (443 when absent), or a URL')
    .option('--sandbox <sandbox>', 'what holds for this sandbox (default: for all)')
    .option('--protocol <protocol>', 'tcp or udp')
    .option('--method <method>', 'of an HTTP request')
    .option('--path <path>', 'of an HTTP request')
    .option('--verbose', 'more about the rule')
    .option('--json', 'as JSON')
    .addHelpText(
      'after',
      examples(
        ['glovebox policy check network --sandbox web api.example.com', 'dials nothing'],
        ['glovebox policy check network github.com --method POST --path /x', 'one request'],
      ),
    )
    .action(async (type, target, options) => {
      process.exitCode = await (await load()).check(type, target, options);
    });

  verb('ls', 'list rules')
    .alias('list')
    .usage('[options] [SANDBOX]')
    .argument('[sandbox]', 'those that hold for it')
    .addOption(
      new Option('--type <type>', 'those about requests only, or not').choices(['all', 'network', 'http']),
    )
    .addOption(new Option('--decision <decision>').choices(['allow', 'deny', 'ask', 'bypass']))
    .addOption(
      new Option('--created-via <origin>', 'a preset, by hand, an answer, learned').choices([
        ...['default', 'added', 'approval', 'learned'],
      ]),
    )
    .option('--wide', 'each rule with its id')
    .option('--json', 'as JSON')
    .addHelpText(
      'after',
      examples(
        ['glovebox policy ls', 'how many rules of each kind'],
        ['glovebox policy ls --wide --decision deny web', 'each denial that holds for a sandbox'],
      ),
    )
    .action(async (sandbox, options) => (await load()).ls(sandbox, options));

  verb('log', 'show what sandboxes tried to reach, by host')
    .usage('[options] [SANDBOX]')
    .argument('[sandbox]')
    .option('--limit <number>', 'how many hosts of each kind at most; 0 for all')
    .addOption(new Option('--type <type>', 'there is one type').choices(['all', 'network']))
    .option('-q, --quiet', 'hosts only')
    .option('--json', 'as JSON')
    .addHelpText(
      'after',
      examples(
        ['glovebox policy log web', 'blocked and allowed hosts'],
        ['glovebox network log web', 'each attempt by itself'],
      ),
    )
    .action(async (sandbox, options) => (await import('../commands/policy-log.ts')).log(sandbox, options));

  verb('inspect', 'show all about a rule, or about all')
    .usage('[options] RULE|local-policy')
    .argument('<rule>')
    .option('--json', 'as JSON')
    .addHelpText('after', examples(['glovebox policy inspect 1b2633ea', 'the beginning of an id is enough']))
    .action(async (reference, options) => (await load()).inspect(reference, options));

  verb('reset', 'forget all global rules')
    .option('-f, --force', 'do not ask')
    .addHelpText('after', examples(['glovebox policy reset -f', 'rules of single sandboxes stay']))
    .action(async (options) => (await load()).reset(options));

  const profile = verb('profile', 'sets of rules to begin with').usage('VERB …').helpCommand(false);
  profile
    .command('ls')
    .alias('list')
    .description('list the sets there are')
    .option('--json', 'as JSON, with all their rules')
    .addHelpText('after', examples(['glovebox policy profile ls', 'for policy init']))
    .action(async (options) => (await load()).profiles(options));

  verb('learn', 'propose the least rules for what a sandbox has used')
    .usage('[options] SANDBOX')
    .argument('<sandbox>')
    .option('--apply', 'add them for the sandbox')
    .option('--paths', 'as narrow as methods and paths')
    .option('--wildcards', 'one pattern for several names of a domain')
    .option('--json', 'as JSON')
    .addHelpText(
      'after',
      examples(
        ['glovebox policy learn web', 'as commands to read first'],
        ['glovebox policy learn web --paths --apply', 'added at once'],
      ),
    )
    .action(async (sandbox, options) => (await import('../commands/learn.ts')).learn(sandbox, options));

  addApprovalVerbs(verb('approval', 'answer connections, and calls of the bell, that wait for a person'));
}

function addApprovalVerbs(approval: Command): void {
  const load = () => import('../commands/approval.ts');
  approval.usage('[VERB …]').helpCommand(false);
  approval
    .command('watch', { isDefault: true })
    .description('ask at this terminal, as they come; answers are single keys')
    .addHelpText('after', examples(['glovebox policy approval', 'until q is pressed']))
    .action(async () => {
      process.exitCode = await (await load()).watch();
    });
  approval
    .command('ls')
    .alias('list')
    .description('list what waits')
    .option('--json', 'as JSON')
    .addHelpText('after', examples(['glovebox policy approval ls --json', 'for programs']))
    .action(async (options) => (await load()).ls(options));
  approval
    .command('answer')
    .description('answer a question')
    .usage('[options] QUESTION allow|deny')
    .argument('<question>')
    .addArgument(new Argument('<answer>').choices(['allow', 'deny']))
    .addOption(
      new Option('--scope <scope>', 'for this attempt, or also as a rule (default: once)').choices([
        ...['once', 'sandbox', 'always'],
      ]),
    )
    .addHelpText(
      'after',
      examples(
        ['glovebox policy approval answer q1 allow', 'this attempt'],
        ['glovebox policy approval answer q1 deny --scope sandbox', 'and makes a rule of it'],
      ),
    )
    .action(async (id, verdict, options) => (await load()).answer(id, verdict, options));
}
