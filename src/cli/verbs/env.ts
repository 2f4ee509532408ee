// glovebox env …: its verbs with their options and examples, in `sbx`'s grammar.
import type { Command } from 'commander';
import { usageError } from '../exit-codes.ts';
import { examples } from '../help.ts';
import { collect } from '../values.ts';
import { type Words, wordsOf } from '../words.ts';

const whichFile = 'an env file, or a folder that has sbxenv.yaml (default: this one)';

/** `line`: all behind `glovebox`, to know which words stand behind `--`. */
export function addEnvVerbs(program: Command, line: readonly string[]): void {
  const env = program
    .command('env')
    .description('sandboxes as a project describes them, in its sbxenv.yaml')
    .usage('VERB …')
    .helpCommand(false);
  const load = () => import('../commands/env.ts');
  const verb = (name: string, description: string) =>
    env
      .command(name)
      .description(description)
      .argument('[file]', whichFile)
      .option('--name <name>', 'of the sandbox, instead of what the file says');
  const withArguments = (command: Command) =>
    command
      .option('--env-arg <NAME=VALUE>', 'an argument that the file declares (repeatable)', collect)
      .option(
        '--env-args-file <file>',
        'a file of such lines; --env-arg goes before it (repeatable)',
        collect,
      );
  const withApproval = (command: Command) =>
    withArguments(command).option('-y, --auto-approve', 'say yes to the plan, without a question');

  withArguments(verb('plan', 'show what a file would make, and whether that was approved; nothing is done'))
    .usage('[options] [FILE|FOLDER]')
    .option('--json', 'as JSON')
    .addHelpText(
      'after',
      examples(
        ['glovebox env plan', 'of sbxenv.yaml in this folder, over ~/.sbxenv.yaml'],
        ['glovebox env plan ../app --env-arg channel=beta', 'with an argument that it declares'],
      ),
    )
    .action(async (file, options) => (await load()).envPlan(file, options));

  withApproval(verb('create', 'make the sandbox of a file, once its plan was approved'))
    .usage('[options] [FILE|FOLDER]')
    .option('-q, --quiet', 'print its name alone')
    .option('--json', 'print all about it')
    .addHelpText(
      'after',
      examples(
        ['glovebox env create', 'shows the plan and asks, the first time and after each change'],
        ['glovebox env create --auto-approve ci/sbxenv.yaml', 'where nobody can be asked'],
      ),
    )
    .action(async (file, options) => (await load()).envCreate(file, options));

  withApproval(verb('run', 'open a session of its agent; makes the sandbox if there is none'))
    .usage('[options] [FILE|FOLDER] [-- ARGS…]')
    .argument('[args...]', 'behind --: for the agent')
    .option('-d, --detached', 'only make and start it, and print its name')
    .addHelpText(
      'after',
      examples(
        ['glovebox env run', 'in this folder'],
        ['glovebox env run -- -p "mend the tests"', 'options of ours go behind its own'],
      ),
    )
    .action(async (file: string | undefined, args: string[], options) => {
      process.exitCode = await (await load()).envRun(oneFile(line, file, args), options);
    });

  verb('exec', 'run a command in the sandbox of a file')
    .usage('[options] [FILE|FOLDER] -- COMMAND…')
    .argument('[command...]', 'behind --')
    .option('-i, --interactive', 'pass our input on')
    .option('-t, --tty', 'give it a terminal')
    .option('-e, --env <KEY=VALUE>', 'a variable; KEY alone copies ours (repeatable)', collect)
    .option('-u, --user <user[:group]>', 'names or ids inside the sandbox')
    .option('-w, --workdir <path>', 'folder to run it in (default: the first folder of the sandbox)')
    .addHelpText(
      'after',
      examples(
        ['glovebox env exec -- make test', 'its exit code becomes ours'],
        ['glovebox env exec -it -- bash', 'a shell in a terminal'],
      ),
    )
    .action(async (file: string | undefined, command: string[], options) => {
      process.exitCode = await (await load()).envExec(oneFile(line, file, command), options);
    });

  verb('rm', 'remove the sandbox of a file and everything in it')
    .usage('[options] [FILE|FOLDER]')
    .option('-f, --force', 'do not ask, nor mind that it is in use')
    .addHelpText(
      'after',
      examples(['glovebox env rm', 'asks first on a terminal; the file may have changed']),
    )
    .action(async (file, options) => (await load()).envRm(file, options));
}

function oneFile(line: readonly string[], file: string | undefined, others: readonly string[]): Words {
  const words = wordsOf(line, [...(file === undefined ? [] : [file]), ...others]);
  if (words.own.length > 1)
    throw usageError(
      `env: '${words.own[1]}' is one word too many`,
      'One file or folder; what is for the sandbox goes behind --.',
    );
  return words;
}
