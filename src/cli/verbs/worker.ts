// `glovebox worker`: this machine as a worker of a controller elsewhere. What a controller says of its workers is `glovebox workers`.
import type { Command } from 'commander';
import { examples } from '../help.ts';
import { collect } from '../values.ts';

const environmentHelp = `
Environment, where an option is not given:
  GLOVEBOX_WORKER_SERVER_URL, GLOVEBOX_WORKER_ID, GLOVEBOX_WORKER_TOKEN, GLOVEBOX_WORKER_TOKEN_FILE,
  GLOVEBOX_WORKER_CA, GLOVEBOX_WORKER_CERT, GLOVEBOX_WORKER_CERT_KEY, GLOVEBOX_WORKER_HOME
  GLOVEBOX_WORKER_LABELS     k=v,k=v
  GLOVEBOX_WORKER_RUNTIMES   name,name
  HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY

Signals:
  SIGTERM, SIGINT   say goodbye and end; commands and sandboxes go on, and the next process finds them
  SIGHUP            read --ca, --cert and --cert-key again, and connect anew with them

Exit codes, beside those of every command:
  75  another process has this worker home, or is this worker now
  77  the controller does not let it in: a token that is wrong, used or expired, a worker that was removed
      or whose key was replaced; or a file may not be used
  78  an option, a TLS file or a file of its home is wrong
Trouble with the network, a proxy or a certificate is no reason to end: it tries again, and its log says why.`;

export function addWorkerVerbs(program: Command): void {
  const worker = program
    .command('worker')
    .description('make this machine a worker: it dials a controller, which runs commands and sandboxes on it')
    .usage('[options] | worker install')
    .helpCommand(false)
    // A mistyped verb comes here, too.
    .argument('[words...]')
    .option('--server-url <url>', 'the controller: wss://HOST:PORT')
    .option('--id <id>', 'what to be called (default: as the token says, else one that is made up)')
    .option('--label <KEY=VALUE>', 'what it is chosen by (repeatable)', collect)
    .option('--token-file <file>', 'one-time token of `glovebox workers enrol`; needed once')
    .option('--token <token>', 'the same as an argument, which other users of this machine can see')
    .option('--ca <file>', 'certificates to trust beside the usual ones, in PEM')
    .option('--cert <file>', 'client certificate, for controllers that want one')
    .option('--cert-key <file>', 'its key')
    .option('--home <folder>', 'where it keeps its key and all else (default: ~/.glovebox/worker)')
    .option(
      '--runtime <name>',
      'a runtime for sandboxes (repeatable; default: those that can be used)',
      collect,
    )
    .option('--no-direct', 'sandboxes only: no commands, files and ports of this machine itself')
    .option('--allow-command <program>', 'only these programs on the machine itself (repeatable)', collect)
    .option('--folder <folder>', 'only files in these folders of the machine itself (repeatable)', collect)
    .option('--insecure', 'also without TLS to another machine')
    .addHelpText(
      'after',
      `${examples(
        ['glovebox worker --server-url wss://box.example --id gpu-1 --token-file token', 'the first time'],
        ['glovebox worker --server-url wss://box.example', 'ever after: it has a key of its own'],
        ['glovebox worker --server-url wss://box.example --no-direct --runtime docker', 'sandboxes alone'],
        ['HTTPS_PROXY=http://proxy.example:3128 glovebox worker …', 'through a proxy'],
      )}\n${environmentHelp}`,
    )
    .action(async (words, options) => (await import('../commands/worker.ts')).runWorker(words, options));

  worker
    .command('install')
    .description('print a systemd unit that runs the worker; what it needs is said at its top')
    .usage('[options]')
    .option('-o, --output <file>', 'write it there (default: stdout)')
    .addHelpText(
      'after',
      examples(
        ['glovebox worker install', 'look at it first'],
        ['glovebox worker install -o /etc/systemd/system/glovebox-worker.service', ''],
      ),
    )
    .action(async (options) => (await import('../commands/worker.ts')).printUnit(options));
}
