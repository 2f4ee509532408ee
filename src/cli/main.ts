// The glovebox command: reads the line, runs one verb, and turns whatever goes wrong into one message and an exit code.
import { type Command, CommanderError } from 'commander';
import { type CliError, exitCodeOf, exitCodes } from './exit-codes.ts';
import { endQuietlyOnBrokenPipe, sayError } from './output.ts';
import { makeProgram } from './program.ts';
import { withDefaultVerb } from './verbs/tui.ts';

endQuietlyOnBrokenPipe();
process.exit(await run(withDefaultVerb(process.argv.slice(2))));

async function run(args: string[]): Promise<number> {
  const program = makeProgram(args);
  try {
    await program.parseAsync(args, { from: 'user' });
    return Number(process.exitCode ?? exitCodes.ok);
  } catch (error) {
    return failed(error, meant(program, args));
  }
}

/** As far as it can be understood, as who asks for help writes it. */
function meant(program: Command, args: string[]): string {
  let at: Command | undefined = program;
  const words = [program.name()];
  for (const word of args.filter((it) => !it.startsWith('-'))) {
    at = at.commands.find((it) => it.name() === word || it.aliases().includes(word));
    if (at === undefined) break;
    words.push(at.name());
  }
  return words.join(' ');
}

function failed(error: unknown, verb: string): number {
  if (error instanceof CommanderError) {
    // --help and --version end like this, too.
    if (error.exitCode === 0) return exitCodes.ok;
    // Commander's messages begin in its own way, and a suggestion stands on a line of its own.
    const [message = '', suggestion] = error.message.replace(/^error: /, '').split('\n');
    if (!message.startsWith('('))
      sayError(message, suggestion?.replace(/^\(|\)$/g, '') ?? `See \`${verb} --help\`.`);
    return exitCodes.usage;
  }
  const { message, hint, code } = error as CliError & NodeJS.ErrnoException;
  if (code === 'EPIPE') return exitCodes.brokenPipe;
  // Several things were wrong, and each has been said.
  if (message !== '') sayError(message, hint);
  return exitCodeOf(error);
}
