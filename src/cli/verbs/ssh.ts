// glovebox ssh and glovebox setup: their verbs with their options and examples.
import type { Command } from 'commander';
import { examples } from '../help.ts';
import { collect } from '../values.ts';

export function addSshVerbs(program: Command): void {
  const load = () => import('../commands/ssh.ts');

  const ssh = program
    .command('ssh')
    .description('open a shell in a sandbox, or run a command, with the ssh of this machine')
    .usage('[options] [USER@]SANDBOX [COMMAND…]')
    .argument('<sandbox>', 'as USER@SANDBOX for another user than its commands run as')
    .argument('[command...]')
    .enablePositionalOptions()
    .passThroughOptions()
    .helpCommand(false)
    .option('-L <address>', "forward a port of this machine to the sandbox's loopback (repeatable)", collect)
    .option('-D <port>', "a SOCKS proxy on this machine to the sandbox's loopback (repeatable)", collect)
    .option('-t', 'with a terminal, also for a command')
    .option('-T', 'without a terminal')
    .option('-N', 'no command: only forward')
    .option('-A', 'let the sandbox ask your SSH agent for signatures, as long as it is connected')
    .addHelpText(
      'after',
      examples(
        ['glovebox ssh web', 'a shell'],
        ['glovebox ssh web make test', 'a command, by the shell of its user'],
        ['glovebox ssh -NL 8080:localhost:3000 web', 'a port of the sandbox, also one on its loopback alone'],
        ['glovebox setup ssh', 'from then on, ssh, scp, rsync and editors know NAME.glovebox'],
      ),
    )
    .action(async (sandbox, command, { L, D, t, T, N, A }) => {
      process.exitCode = await (await load()).ssh(sandbox, command, {
        ...{ local: L, dynamic: D, tty: t, noTty: T, forwardOnly: N, agent: A },
      });
    });

  ssh
    .command('proxy')
    .description('for ProxyCommand: speak SSH on stdin and stdout')
    .usage('[options] HOST')
    .argument('<host>', 'a sandbox, or SANDBOX.glovebox')
    .option('--suffix <ending>', 'another ending that is no part of the name')
    .option('--forward-agent', "let the sandbox ask the client's SSH agent, where the client offers it")
    .addHelpText('after', examples(['glovebox ssh proxy web.glovebox', 'what `setup ssh` has ssh start']))
    .action(async (host, options) => (await import('../ssh/proxy.ts')).proxy(host, options));

  ssh
    .command('known-hosts')
    .description('for KnownHostsCommand: print the key of sandboxes')
    .usage('HOST')
    .argument('<host>')
    .addHelpText('after', examples(['glovebox ssh known-hosts web.glovebox', 'a line as in known_hosts']))
    .action(async (host) => (await load()).knownHosts(host));

  const setup = program
    .command('setup')
    .description('make other programs of this machine know sandboxes')
    .usage('VERB …')
    .helpCommand(false);
  setup
    .command('ssh')
    .description('let ssh find NAME.glovebox: writes a block of its own into ~/.ssh/config')
    .usage('[options]')
    .option('--alias <pattern>', "other names for the same, e.g. '*.box'")
    .option('--forward-agent', 'let sandboxes ask your SSH agent for signatures while they are connected to')
    .option('--remove', 'take the block out again')
    .option('--file <path>', 'another file than ~/.ssh/config')
    .addHelpText(
      'after',
      examples(
        ['glovebox setup ssh', 'then: ssh web.glovebox'],
        ['glovebox setup ssh --remove', 'leaves the file as it was'],
      ),
    )
    .action(async (options) => (await import('../commands/setup.ts')).setupSsh(options));
}
