// All verbs with their options and examples; those about the way out stand in verbs/. What a verb does is loaded when it is called, so that --help and mistakes are quick.
import { Command, Option } from 'commander';
import { ownVersion } from './commands/version.ts';
import { exitCodeMeanings } from './exit-codes.ts';
import { arrange, examples } from './help.ts';
import { addAuditVerbs } from './verbs/audit.ts';
import { addBackupVerbs } from './verbs/backup.ts';
import { addBellVerbs } from './verbs/bell.ts';
import { addCloneVerbs } from './verbs/clone.ts';
import { addConfigVerbs } from './verbs/config.ts';
import { addEnvVerbs } from './verbs/env.ts';
import { addNetworkVerbs } from './verbs/network.ts';
import { addPolicyVerbs } from './verbs/policy.ts';
import { addPoolVerbs } from './verbs/pool.ts';
import { addProjectVerbs } from './verbs/project.ts';
import { addSandboxVerbs } from './verbs/sandbox.ts';
import { addSecretVerbs } from './verbs/secret.ts';
import { addSettingsVerbs } from './verbs/settings.ts';
import { addSnapshotVerbs } from './verbs/snapshot.ts';
import { addSshVerbs } from './verbs/ssh.ts';
import { addTemplateVerbs } from './verbs/template.ts';
import { addTuiVerb } from './verbs/tui.ts';
import { addVolumeVerbs } from './verbs/volume.ts';
import { addWorkerVerbs } from './verbs/worker.ts';
import { addWorkersVerbs } from './verbs/workers.ts';
import { addWorkspaceVerbs } from './verbs/workspace.ts';

const exitCodesHelp = `
Exit codes:
${exitCodeMeanings.map(([code, meaning]) => `  ${String(code).padEnd(5)}${meaning}`).join('\n')}

Environment:
  GLOVEBOX_HOME      where the daemon keeps everything (default ~/.glovebox)
  GLOVEBOX_URL       a server to use instead of this machine's daemon; then none is started
  GLOVEBOX_API_KEY   the key of that server
  GLOVEBOX_CA_FILE   of an https server: authorities to trust instead of the system's (PEM)
  GLOVEBOX_CLIENT_CERT_FILE, GLOVEBOX_CLIENT_KEY_FILE
                     a certificate to show to a server that asks for one
  NO_COLOR           no colour, even on a terminal

Sandboxes are named by name, by id, or by the beginning of an id.`;

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
    .addHelpText(
      'after',
      examples(
        ['glovebox serve --port 8080', 'prints its address when it is ready'],
        ['glovebox serve --config ~/.sandbox.toml', 'a file of OpenSandbox is understood, too'],
      ),
    )
    .action(async (options) => (await import('./commands/serve.ts')).serve(options));

  addSandboxVerbs(program, args);

  verb('cp', 'copy files and folders into a sandbox or out of it')
    .usage('SOURCE TARGET')
    .argument('<source>', 'PATH, SANDBOX:PATH, or - for a tar archive on stdin')
    .argument('<target>', 'PATH, SANDBOX:PATH, or - for a tar archive on stdout')
    .option('--checksum', 'check what arrives against its SHA-256 (single files)')
    .addHelpText(
      'after',
      examples(
        ['glovebox cp src web:/work', 'to /work/src if /work exists, else to /work'],
        ['glovebox cp src/. web:/work', 'what is in src'],
        ['glovebox cp web:/work/report.txt .', 'out again'],
        ['glovebox cp web:/work - | tar t', 'as an archive'],
      ),
    )
    .action(async (source, target, options) =>
      (await import('./commands/cp.ts')).cp(source, target, options),
    );

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

  addWorkerVerbs(program);
  addWorkersVerbs(program);
  addAuditVerbs(program);
  addBackupVerbs(program);
  addBellVerbs(program);
  addCloneVerbs(program);
  addConfigVerbs(program);
  addEnvVerbs(program, args);
  addNetworkVerbs(program);
  addPolicyVerbs(program);
  addProjectVerbs(program);
  addVolumeVerbs(program);
  addPoolVerbs(program);
  addSecretVerbs(program);
  addSettingsVerbs(program);
  addSnapshotVerbs(program);
  addSshVerbs(program);
  addTemplateVerbs(program);
  addTuiVerb(program);
  addWorkspaceVerbs(program);

  verb('doctor', 'check what works here, and say how to mend the rest')
    .alias('diagnose')
    .addOption(new Option('-o, --output <form>', 'table or json').choices(['table', 'json']))
    .option('--json', 'the same as -o json')
    .addHelpText(
      'after',
      examples(
        ['glovebox doctor', 'fails when no runtime is usable'],
        ['glovebox diagnose -o json', 'for programs'],
      ),
    )
    .action(async (options) => (await import('./commands/doctor.ts')).doctor(options));

  verb('version', 'print the version of this command, and of the server if one runs')
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

  arrange(program);
  return program;
}
