// All verbs with their options and examples; those about the way out stand in verbs/. What a verb does is loaded when it is called, so that --help and mistakes are quick.
import { Argument, Command } from 'commander';
import { ownVersion } from './commands/version.ts';
import { exitCodeMeanings } from './exit-codes.ts';
import { examples } from './help.ts';
import { collect } from './values.ts';
import { addNetworkVerbs } from './verbs/network.ts';
import { addPolicyVerbs } from './verbs/policy.ts';
import { addSecretVerbs } from './verbs/secret.ts';

const exitCodesHelp = `
Exit codes:
${exitCodeMeanings.map(([code, meaning]) => `  ${String(code).padEnd(5)}${meaning}`).join('\n')}

Environment:
  GLOVEBOX_HOME      where the daemon keeps everything (default ~/.glovebox)
  GLOVEBOX_URL       a server to use instead of this machine's daemon; then none is started
  GLOVEBOX_API_KEY   the key of that server
  NO_COLOR           no colour, even on a terminal

Sandboxes are named by id, by the beginning of an id, or by the name given with create --name.`;

/** `args`: the whole line behind `glovebox`. */
export function makeProgram(args: readonly string[]): Command {
  const program = new Command('glovebox')
    .description('Sandboxes for AI agents and untrusted code, on your own machines.')
    .usage('VERB …')
    .enablePositionalOptions()
    .exitOverride()
    // Errors are shown in one place, main.ts.
    .configureOutput({ outputError: () => {} })
    .configureHelp({
      subcommandTerm: (command) => `${command.name()} ${command.usage().replace('[options] ', '')}`.trim(),
    })
    .helpCommand(false)
    .version(ownVersion(), '-V, --version', 'print the version')
    .addHelpText('after', exitCodesHelp);

  const verb = (name: string, description: string) => program.command(name).description(description);

  verb('serve', 'run the daemon in the foreground')
    .option('--host <address>', 'address to listen on')
    .option('--port <port>', 'port to listen on; 0 takes a free one')
    .option('--config <file>', 'configuration file (default: config.toml in the home folder)')
    .addHelpText('after', examples(['glovebox serve --port 8080', 'prints its address when it is ready']))
    .action(async (options) => (await import('./commands/serve.ts')).serve(options));

  verb('create', 'make a sandbox and print its id')
    .usage('[options] [IMAGE] [-- COMMAND…]')
    .argument('[image]', 'an imported image, a reference for Docker, or host')
    .argument('[command...]', 'main process, with which the sandbox ends')
    .option('--name <name>', 'a name to call it by')
    .option('--runtime <name>', 'bubblewrap, docker, …')
    .option('--cpus <number>', 'cores, e.g. 0.5')
    .option('-m, --memory <size>', 'e.g. 512Mi or 2g')
    .option('--pids <number>', 'most processes and threads')
    .option('--disk <size>', 'most that it may write')
    .option('-e, --env <KEY=VALUE>', 'for every command in it; KEY alone copies ours (repeatable)', collect)
    .option('-l, --label <KEY=VALUE>', 'metadata to find it by (repeatable)', collect)
    .option(
      '-v, --volume <HOST:PATH[:ro]>',
      'a folder of the host that the configuration allows (repeatable)',
      collect,
    )
    .option('--timeout <duration>', 'remove it after this time, e.g. 30m (default: never)')
    .option('--entrypoint <program>', 'main process; COMMAND becomes its arguments')
    .option('--platform <os/arch>', 'e.g. linux/arm64')
    .option('--allow <resources>', 'what it may reach, e.g. pypi.org,*.npmjs.org:443 (repeatable)', collect)
    .option('--deny <resources>', 'what it may not reach, whatever else is allowed (repeatable)', collect)
    .option(
      '--no-transparent',
      'leave ports 80 and 443 to its own servers: only what uses the proxy gets out',
    )
    .option('--network-policy-file <file>', "a network policy in OpenSandbox's form, as JSON")
    .option('--json', 'print all about it')
    .addHelpText(
      'after',
      examples(
        ['glovebox create --name web', "the host's own system folders, read-only, in a sandbox"],
        ['glovebox create --runtime docker node:24 -m 2g', 'a Docker image with a limit'],
        [
          'glovebox create --name ci --allow pypi.org,files.pythonhosted.org',
          'may reach these, and what all may',
        ],
        ['glovebox create debian --timeout 1h -- sleep 600', 'ends with its main process, or after an hour'],
      ),
    )
    .action(async (first, others, options) => {
      // Commander does not tell whether the first word stood before the `--` or behind it.
      const words: string[] = [...(first === undefined ? [] : [first]), ...others];
      const dashes = args.indexOf('--');
      const withoutImage = dashes >= 0 && args.length - dashes - 1 === words.length;
      const [image, command] = withoutImage ? [undefined, words] : [words[0], words.slice(1)];
      await (await import('./commands/create.ts')).create(image, command, options);
    });

  verb('ls', 'list sandboxes')
    .alias('list')
    .option('-a, --all', 'those that have ended, too')
    .option('-q, --quiet', 'ids only')
    .option(
      '-f, --filter <KEY=VALUE>',
      'name=, state=, image=, runtime=, label=KEY[=VALUE] (repeatable)',
      collect,
    )
    .option('--json', 'as JSON')
    .addHelpText('after', examples(['glovebox ls -q -f label=team=red', 'ids of those with a label']))
    .action(async (options) => (await import('./commands/list.ts')).ls(options));

  verb('exec', 'run a command in a sandbox')
    .usage('[options] SANDBOX [--] COMMAND…')
    .addArgument(new Argument('<sandbox>'))
    .addArgument(new Argument('[command...]'))
    .passThroughOptions()
    .option('-i, --interactive', 'pass our input on')
    .option('-t, --tty', 'give it a terminal')
    .option('-d, --detach', 'leave it running and print its id, for logs')
    .option('-e, --env <KEY=VALUE>', 'a variable; KEY alone copies ours (repeatable)', collect)
    .option('-u, --user <user[:group]>', 'names or ids inside the sandbox')
    .option('-w, --workdir <path>', 'folder to run it in')
    .option('--timeout <duration>', 'end it after this time, e.g. 90s')
    .option('--json', 'with -d: print all about it')
    .addHelpText(
      'after',
      examples(
        ['glovebox exec web ls -l /tmp', 'its exit code becomes ours'],
        ['glovebox exec -it web bash', 'a shell in a terminal'],
        ['tar c src | glovebox exec -i web tar x', 'input passes through'],
        ["glovebox exec -d web sh -c 'make >log'", 'goes on by itself'],
      ),
    )
    .action(async (sandbox, command, options) => {
      // Behind the sandbox, `--` is not needed and not meant for the sandbox.
      const words = command[0] === '--' ? command.slice(1) : command;
      process.exitCode = await (await import('./commands/exec.ts')).exec(sandbox, words, options);
    });

  verb('cp', 'copy files and folders into a sandbox or out of it')
    .usage('SOURCE TARGET')
    .argument('<source>', 'PATH, SANDBOX:PATH, or - for a tar archive on stdin')
    .argument('<target>', 'PATH, SANDBOX:PATH, or - for a tar archive on stdout')
    .addHelpText(
      'after',
      examples(
        ['glovebox cp src web:/work', 'to /work/src if /work exists, else to /work'],
        ['glovebox cp src/. web:/work', 'what is in src'],
        ['glovebox cp web:/work/report.txt .', 'out again'],
        ['glovebox cp web:/work - | tar t', 'as an archive'],
      ),
    )
    .action(async (source, target) => (await import('./commands/cp.ts')).cp(source, target));

  verb('logs', 'show what a command in a sandbox wrote')
    .usage('[options] SANDBOX [PROCESS]')
    .argument('<sandbox>')
    .argument('[process]', 'id that exec -d printed (default: the main process)')
    .option('-f, --follow', 'go on until the command ends')
    .option('--from <offset>', 'byte to begin at, or end')
    .addHelpText('after', examples(['glovebox logs -f web', 'follow its main process']))
    .action(async (sandbox, id, options) => (await import('./commands/logs.ts')).logs(sandbox, id, options));

  verb('ps', 'list the commands of a sandbox')
    .usage('[options] SANDBOX')
    .argument('<sandbox>')
    .option('-q, --quiet', 'ids only')
    .option('--json', 'as JSON')
    .addHelpText('after', examples(['glovebox ps web', 'running and ended ones']))
    .action(async (sandbox, options) => (await import('./commands/list.ts')).ps(sandbox, options));

  verb('inspect', 'show all about sandboxes')
    .usage('[options] SANDBOX…')
    .argument('<sandbox...>')
    .option('--json', 'as JSON')
    .addHelpText('after', examples(['glovebox inspect --json web', 'state, limits, labels, commands']))
    .action(async (sandboxes, options) => (await import('./commands/list.ts')).inspect(sandboxes, options));

  verb('stop', 'end what runs in sandboxes, then remove them')
    .usage('[options] SANDBOX…')
    .argument('<sandbox...>')
    .option('--grace <duration>', 'time between SIGTERM and SIGKILL', '10s')
    .addHelpText('after', examples(['glovebox stop web', 'SIGTERM to everything first; rm does not wait']))
    .action(async (sandboxes, options) => (await import('./commands/life.ts')).stop(sandboxes, options));

  verb('pause', 'freeze everything in sandboxes')
    .usage('SANDBOX…')
    .argument('<sandbox...>')
    .addHelpText('after', examples(['glovebox pause web', 'until glovebox resume web']))
    .action(async (sandboxes) => (await import('./commands/life.ts')).pause(sandboxes));

  verb('resume', 'let paused sandboxes go on')
    .usage('SANDBOX…')
    .argument('<sandbox...>')
    .addHelpText('after', examples(['glovebox resume web', 'after glovebox pause web']))
    .action(async (sandboxes) => (await import('./commands/life.ts')).resume(sandboxes));

  verb('renew', 'let a sandbox live for this long from now')
    .usage('[options] SANDBOX DURATION')
    .argument('<sandbox>')
    .argument('<duration>', 'e.g. 30m')
    .option('--json', 'as JSON')
    .addHelpText('after', examples(['glovebox renew web 2h', 'prints when it expires']))
    .action(async (sandbox, duration, options) =>
      (await import('./commands/life.ts')).renew(sandbox, duration, options),
    );

  verb('rm', 'remove sandboxes and everything in them, at once')
    .usage('[options] SANDBOX… | --all')
    .argument('[sandbox...]')
    .option('-f, --force', 'do not ask, and do not mind those that are gone')
    .option('--all', 'all there are; asks first on a terminal')
    .addHelpText(
      'after',
      examples(['glovebox rm web', 'whatever runs in it'], ['glovebox rm --all -f', 'no questions']),
    )
    .action(async (sandboxes, options) => (await import('./commands/life.ts')).rm(sandboxes, options));

  const image = verb('image', 'the images kept for runtimes without a store of their own')
    .usage('VERB …')
    .helpCommand(false);
  image
    .command('import')
    .description('make an image from a root file system, a `docker save` archive, or an OCI layout')
    .usage('[options] FILE|-')
    .argument('<file>')
    .option('--name <name>', "what to call it (default: the file's name)")
    .option('--json', 'as JSON')
    .addHelpText(
      'after',
      examples(
        ['docker save debian | glovebox image import - --name debian', ''],
        ['glovebox image import rootfs.tar.gz', ''],
      ),
    )
    .action(async (file, options) => (await import('./commands/image.ts')).importImage(file, options));
  image
    .command('ls')
    .alias('list')
    .description('list images')
    .usage('[options]')
    .option('-q, --quiet', 'names only')
    .option('--json', 'as JSON')
    .addHelpText('after', examples(['glovebox image ls', '']))
    .action(async (options) => (await import('./commands/image.ts')).listImages(options));
  image
    .command('rm')
    .description('remove images')
    .usage('IMAGE…')
    .argument('<image...>')
    .addHelpText('after', examples(['glovebox image rm debian', '']))
    .action(async (names) => (await import('./commands/image.ts')).removeImages(names));

  addNetworkVerbs(program);
  addPolicyVerbs(program);
  addSecretVerbs(program);

  verb('doctor', 'check what works here, and say how to mend the rest')
    .option('--json', 'as JSON')
    .addHelpText('after', examples(['glovebox doctor', 'fails when no runtime is usable']))
    .action(async (options) => (await import('./commands/doctor.ts')).doctor(options));

  verb('version', 'print the version')
    .option('--json', 'as JSON')
    .addHelpText('after', examples(['glovebox version', '']))
    .action(async (options) => (await import('./commands/version.ts')).version(options));

  verb('completion', 'print a completion script for a shell')
    .usage('bash|zsh|fish')
    .argument('<shell>')
    .addHelpText(
      'after',
      examples(
        ['source <(glovebox completion bash)', 'in ~/.bashrc'],
        ['glovebox completion fish | source', 'in config.fish'],
      ),
    )
    .action(async (shell) => (await import('./commands/completion.ts')).completion(shell));

  program
    .command('__complete', { hidden: true })
    .argument('[words...]')
    .passThroughOptions()
    .allowUnknownOption()
    .helpOption(false)
    .action(async (words) => (await import('./commands/completion.ts')).complete(program, words));

  return program;
}
