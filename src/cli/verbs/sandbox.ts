// The verbs about sandboxes, in the grammar of Docker's: run, create, ls, exec, attach, start, stop, rm and the others, with their options and examples.
import { Argument, type Command, Option } from 'commander';
import type { CreateOptions } from '../commands/create.ts';
import type { RunOptions } from '../commands/run.ts';
import { examples } from '../help.ts';
import { collect } from '../values.ts';
import { wordsOf } from '../words.ts';

/** `line`: all behind `glovebox`, to know which words stand behind `--`. */
export function addSandboxVerbs(program: Command, line: readonly string[]): void {
  addMaking(program, line);
  addUsing(program);
  addLife(program);
}

function addMaking(program: Command, line: readonly string[]): void {
  withCreationOptions(
    program
      .command('run')
      .description(
        'open a session of an agent in the sandbox of a folder; makes the sandbox if there is none',
      )
      .usage('[options] [AGENT|IMAGE|SANDBOX] [PATH[:ro]…] [-- ARGS…]')
      .argument('[agent]', 'an agent of the registry, else an image, or a sandbox that exists')
      .argument('[path...]', 'folders of this machine, at the same path inside (default: this one)'),
  )
    .option('-d, --detached', 'only make and start it, and print its name')
    .option('--detach-keys <keys>', 'what to press to leave it running (default: ctrl-p,ctrl-q)')
    .option('--record <file>', 'write what is shown as an asciicast')
    .addHelpText(
      'after',
      examples(
        ['glovebox run claude', 'in this folder; the same sandbox the next time'],
        ['glovebox run codex ~/app ../lib:ro', 'another folder, and one to look at'],
        ['glovebox run --clone claude', 'on a private clone of the repository'],
        ['glovebox run claude -- -p "mend the tests"', 'options of ours go behind its own'],
        ['glovebox run debian -- ls -l', 'any image, any command'],
        ['glovebox run claude-app', 'once more into a sandbox that exists'],
      ),
    )
    .action(async (word: string | undefined, paths: string[], options: RunOptions) => {
      const { run } = await import('../commands/run.ts');
      process.exitCode = await run(wordsOf(line, operands(word, paths)), options);
    });

  withCreationOptions(
    program
      .command('create')
      .description('make a sandbox for an agent or from an image')
      .usage('[options] [AGENT|IMAGE] [PATH[:ro]…] [-- COMMAND…]')
      .argument('[agent]', 'an agent of the registry, else an image: imported, a template, or of a registry')
      .argument('[path...]', 'folders of this machine, at the same path inside (default: none)'),
  )
    .option('-q, --quiet', 'print its name alone')
    .option('--json', 'print all about it')
    .addHelpText(
      'after',
      examples(
        ['glovebox create --name web', "the host's own system folders, read-only, in a sandbox"],
        ['glovebox create claude .', 'for an agent, with this folder in it'],
        ['glovebox create --overlay claude . ../lib:ro', 'writes to this folder wait for `glovebox apply`'],
        [
          'glovebox create --runtime docker node:24 -m 2g -p 8080:3000',
          'a Docker image with a limit and a port',
        ],
        [
          'glovebox create --name ci --allow pypi.org,files.pythonhosted.org',
          'may reach these, and what all may',
        ],
        ['glovebox create debian --timeout 1h -- sleep 600', 'ends with its main process, or after an hour'],
      ),
    )
    .action(async (word: string | undefined, paths: string[], options: CreateOptions) => {
      const { create } = await import('../commands/create.ts');
      await create(wordsOf(line, operands(word, paths)), options);
    });
}

function operands(word: string | undefined, others: string[]): string[] {
  return [...(word === undefined ? [] : [word]), ...others];
}

const pullPolicies = ['always', 'missing', 'never'];

/** What `run` and `create` have in common. */
function withCreationOptions(command: Command): Command {
  return command
    .option('--name <name>', 'what to call it (default: AGENT-FOLDER)')
    .option('-t, --template <image>', 'an image instead of what the agent would take')
    .option('--snapshot <snapshot>', 'of a snapshot instead of an image; see `glovebox snapshot`')
    .addOption(
      new Option('--pull <when>', 'whether a registry is asked for the image (default: missing)').choices(
        pullPolicies,
      ),
    )
    .addOption(new Option('--pull-template <when>').choices(pullPolicies).hideHelp())
    .option('--install', 'install the agent where the image has it not')
    .option('--clone', 'give it a private clone of the git repository')
    .option('--overlay', 'keep what it writes to the folder apart, for diff, apply and discard')
    .option('--sync', 'give it a copy that is kept like the folder')
    .option('--hide <pattern>', 'with --clone and --overlay: instead of what is hidden (repeatable)', collect)
    .addOption(new Option('--branch [name]').hideHelp())
    .option('--runtime <name>', 'bubblewrap, docker, …')
    .option('--cpus <number>', 'cores, e.g. 0.5')
    .option('-m, --memory <size>', 'e.g. 512m or 2g')
    .option('--pids <number>', 'most processes and threads')
    .option('--disk <size>', 'most that it may write')
    .option('-e, --env <KEY=VALUE>', 'for every command in it; KEY alone copies ours (repeatable)', collect)
    .option('--env-file <file>', 'a file of such lines; -e goes before it (repeatable)', collect)
    .option('-p, --publish <[[IP:]PORT:]PORT>', 'a port of it on this machine (repeatable)', collect)
    .option('-l, --label <KEY=VALUE>', 'metadata to find it by (repeatable)', collect)
    .option(
      '-v, --volume <SOURCE:PATH[:ro]>',
      'a named volume, or a folder of the host that the configuration allows (repeatable)',
      collect,
    )
    .option('-u, --user <user[:group]>', 'what commands run as')
    .option('-w, --workdir <path>', 'where they run (default: the first folder)')
    .option('--timeout <duration>', 'remove it after this time, e.g. 30m (default: never)')
    .option('--auto-pause <duration>', 'pause it when nobody uses it for so long; 0 for never')
    .option('--renew-on-use <duration>', 'let it live so long from each use on, 5m to 24h')
    .option('--no-auto-stop', 'do not stop it when nobody uses it, as agents and the configuration have it')
    .option('--no-keep', 'when it ends it is over; it cannot be stopped and started')
    .option('--entrypoint <program>', 'main process; COMMAND becomes its arguments')
    .option('--platform <os/arch>', 'e.g. linux/arm64')
    .option('--allow <resources>', 'what it may reach, e.g. pypi.org,*.npmjs.org:443 (repeatable)', collect)
    .option('--deny <resources>', 'what it may not reach, whatever else is allowed (repeatable)', collect)
    .option('--deny-network <resources>', 'the same as --deny (repeatable)', collect)
    .option('--worker <id>', 'on this machine that dials in, rather than here; see `glovebox workers`')
    .option('--worker-label <KEY=VALUE>', 'on a worker with this label (repeatable)', collect)
    .option('--bell', 'let it ask this host for what `glovebox bell status` lists, e.g. to notify you')
    .option(
      '--bell-action <ACTION=DECISION>',
      'the same, with other decisions for it, e.g. exec=ask,play=deny (repeatable)',
      collect,
    )
    .option(
      '--no-transparent',
      'leave ports 80 and 443 to its own servers: only what uses the proxy gets out',
    )
    .option('--network-policy-file <file>', "a network policy in OpenSandbox's form, as JSON");
}

function addUsing(program: Command): void {
  program
    .command('ls')
    .description('list sandboxes')
    .alias('list')
    .option('-a, --all', 'those that have ended, too')
    .option('-q, --quiet', 'names only')
    .option(
      '-f, --filter <KEY=VALUE>',
      'name=, state=, agent=, image=, runtime=, label=KEY[=VALUE] (repeatable)',
      collect,
    )
    .option('--json', 'as JSON')
    .option('--no-trunc', 'nothing is ever cut; for scripts that say it')
    .addHelpText(
      'after',
      examples(['glovebox ls', ''], ['glovebox ls -q -f label=team=red', 'names of those with a label']),
    )
    .action(async (options) => (await import('../commands/list.ts')).ls(options));

  program
    .command('exec')
    .description('run a command in a sandbox; a stopped one is started')
    .usage('[options] SANDBOX [--] COMMAND…')
    .addArgument(new Argument('<sandbox>'))
    .addArgument(new Argument('[command...]'))
    .passThroughOptions()
    .option('-i, --interactive', 'pass our input on')
    .option('-t, --tty', 'give it a terminal')
    .option('-d, --detach', 'leave it running and print its id, for logs')
    .option('--detach-keys <keys>', 'what to press to leave a terminal running (default: ctrl-p,ctrl-q)')
    .option('-e, --env <KEY=VALUE>', 'a variable; KEY alone copies ours (repeatable)', collect)
    .option('--env-file <file>', 'a file of such lines; -e goes before it (repeatable)', collect)
    .option('-u, --user <user[:group]>', 'names or ids inside the sandbox')
    .option('-w, --workdir <path>', 'folder to run it in (default: the first folder of the sandbox)')
    .option('--timeout <duration>', 'end it after this time, e.g. 90s')
    .option('--record <file>', 'write what is shown as an asciicast')
    .option('--json', 'with -d: print all about it')
    .addOption(new Option('--privileged').hideHelp())
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
      process.exitCode = await (await import('../commands/exec.ts')).exec(sandbox, words, options);
    });

  program
    .command('attach')
    .description('come back to a terminal session that was left running')
    .usage('[options] SANDBOX [SESSION]')
    .argument('<sandbox>')
    .argument('[session]', 'id of one, or the beginning of it (default: the newest)')
    .option('--detach-keys <keys>', 'what to press to leave it running (default: ctrl-p,ctrl-q)')
    .option('--no-stdin', 'only look')
    .option('--record <file>', 'write what is shown as an asciicast')
    .addHelpText(
      'after',
      examples(
        ['glovebox attach claude-app', 'with what it showed last; several may look at once'],
        ['glovebox attach --no-stdin --record demo.cast claude-app', 'for `asciinema play`'],
      ),
    )
    .action(async (sandbox, session, options) => {
      process.exitCode = await (await import('../commands/attach.ts')).attach(sandbox, session, options);
    });

  program
    .command('sessions')
    .description('list the terminal sessions of a sandbox')
    .usage('[options] SANDBOX')
    .argument('<sandbox>')
    .option('-a, --all', 'those that have ended, too')
    .option('-q, --quiet', 'ids only')
    .option('--json', 'as JSON')
    .addHelpText('after', examples(['glovebox sessions claude-app', 'what `glovebox attach` comes back to']))
    .action(async (sandbox, options) => (await import('../commands/attach.ts')).sessions(sandbox, options));

  program
    .command('ports')
    .description('show, publish and take off ports of a sandbox on this machine')
    .usage('[options] SANDBOX')
    .argument('<sandbox>')
    .option('--publish <[[IP:]PORT:]PORT>', 'starts a stopped sandbox (repeatable)', collect)
    .option(
      '--unpublish <[[IP:]PORT:]PORT>',
      'a port of the sandbox alone stands for all that lead to it',
      collect,
    )
    .option('--json', 'as JSON')
    .addHelpText(
      'after',
      examples(
        ['glovebox ports web', '127.0.0.1:8080->3000/tcp4'],
        ['glovebox ports web --publish 8080:3000', 'on 127.0.0.1'],
        ['glovebox ports web --unpublish 3000', ''],
      ),
    )
    .action(async (sandbox, options) => (await import('../commands/ports.ts')).ports(sandbox, options));

  program
    .command('inspect')
    .description('show all about sandboxes, as JSON')
    .usage('SANDBOX…')
    .argument('<sandbox...>')
    .option('--json', 'as it always is')
    .addHelpText('after', examples(['glovebox inspect web', 'state, limits, folders, ports, commands']))
    .action(async (sandboxes) => (await import('../commands/list.ts')).inspect(sandboxes));
}

function addLife(program: Command): void {
  program
    .command('why')
    .description('tell why a sandbox, or a command in it, ended; also when it is gone')
    .usage('[options] SANDBOX [COMMAND]')
    .argument('<sandbox>')
    .argument('[command]', 'id of one, or the beginning of it')
    .option('--json', 'as JSON')
    .addHelpText(
      'after',
      examples(
        ['glovebox why web', 'what happened, and what to do next'],
        ['glovebox why web 4f1c', 'of one command, as `glovebox ps` lists them'],
      ),
    )
    .action(async (sandbox, command, options) =>
      (await import('../commands/why.ts')).why(sandbox, command, options),
    );

  program
    .command('start')
    .description('start stopped sandboxes again')
    .usage('SANDBOX…')
    .argument('<sandbox...>')
    .addHelpText('after', examples(['glovebox start web', 'with what it had written']))
    .action(async (sandboxes) => (await import('../commands/life.ts')).start(sandboxes));

  program
    .command('stop')
    .description('end what runs in sandboxes; what they wrote stays')
    .usage('[options] SANDBOX…')
    .argument('<sandbox...>')
    .option('--grace <duration>', 'time between SIGTERM and SIGKILL', '5s')
    .addHelpText('after', examples(['glovebox stop web', 'until glovebox start, run or exec']))
    .action(async (sandboxes, options) => (await import('../commands/life.ts')).stop(sandboxes, options));

  program
    .command('pause')
    .description('freeze everything in sandboxes')
    .usage('SANDBOX…')
    .argument('<sandbox...>')
    .addHelpText('after', examples(['glovebox pause web', 'until glovebox resume web']))
    .action(async (sandboxes) => (await import('../commands/life.ts')).pause(sandboxes));

  program
    .command('resume')
    .description('let paused sandboxes go on')
    .usage('SANDBOX…')
    .argument('<sandbox...>')
    .addHelpText('after', examples(['glovebox resume web', 'after glovebox pause web']))
    .action(async (sandboxes) => (await import('../commands/life.ts')).resume(sandboxes));

  program
    .command('renew')
    .description('let a sandbox live for this long from now')
    .usage('[options] SANDBOX DURATION')
    .argument('<sandbox>')
    .argument('<duration>', 'e.g. 30m')
    .option('--json', 'as JSON')
    .addHelpText('after', examples(['glovebox renew web 2h', 'prints when it expires']))
    .action(async (sandbox, duration, options) =>
      (await import('../commands/life.ts')).renew(sandbox, duration, options),
    );

  program
    .command('save')
    .description("make a template of what is on a sandbox's disk, without its workspaces")
    .usage('[options] SANDBOX TAG')
    .argument('<sandbox>')
    .argument('<tag>', 'name or name:tag')
    .option('-o, --output <file>', 'write it as a tar, too')
    .option('--json', 'as JSON')
    .addHelpText(
      'after',
      examples(
        ['glovebox save web web-ready:1', 'then: glovebox create web-ready:1'],
        ['glovebox save web web-ready:1 -o web.tar', 'to load it elsewhere'],
      ),
    )
    .action(async (sandbox, tag, options) =>
      (await import('../commands/save.ts')).save(sandbox, tag, options),
    );

  program
    .command('rm')
    .description('remove sandboxes and everything in them')
    .usage('[options] SANDBOX… | --all')
    .argument('[sandbox...]')
    .option('-f, --force', 'do not ask, nor mind those that are gone or in use')
    .option('--all', 'all there are')
    .addHelpText(
      'after',
      examples(['glovebox rm web', 'asks first on a terminal'], ['glovebox rm --all -f', 'no questions']),
    )
    .action(async (sandboxes, options) => (await import('../commands/life.ts')).rm(sandboxes, options));

  program
    .command('prune')
    .description('remove sandboxes that are stopped')
    .usage('[options]')
    .option('--dry-run', 'only print which')
    .option(
      '--filter <until=TIME>',
      'not used since, e.g. until=24h or until=2026-01-31 (repeatable)',
      collect,
    )
    .option('-f, --force', 'do not ask')
    .option('--json', 'with --dry-run: as JSON')
    .addHelpText('after', examples(['glovebox prune --filter until=168h', 'those of last week']))
    .action(async (options) => (await import('../commands/life.ts')).prune(options));

  program
    .command('reset')
    .description('remove all sandboxes, whatever runs in them')
    .usage('[options]')
    .option('-f, --force', 'do not ask')
    .addHelpText('after', examples(['glovebox reset', 'secrets, rules and templates stay']))
    .action(async (options) => (await import('../commands/life.ts')).reset(options));
}
