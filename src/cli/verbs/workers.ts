// `glovebox workers …`: machines that dial in, as their controller sees them. `glovebox worker` itself is on the other machine.
import type { Command } from 'commander';
import { examples } from '../help.ts';
import { collect } from '../values.ts';

export function addWorkersVerbs(program: Command): void {
  const workers = program
    .command('workers')
    .description(
      'machines that dial in: who may, who is there, commands on many of them, snapshots of their folders',
    )
    .usage('VERB …')
    .helpCommand(false);
  const verb = (name: string, description: string) => workers.command(name).description(description);
  const load = () => import('../commands/workers.ts');
  const label = ['--label <KEY=VALUE>', 'only workers with this label (repeatable)', collect] as const;

  verb('enrol', 'make a one-time token with which a machine becomes a worker, and print it, this once')
    .usage('[options]')
    .option('--id <id>', 'the id that it gets (default: the one that it asks for)')
    .option('--label <KEY=VALUE>', 'a label that it gets (repeatable)', collect)
    .option('--replace', 'also when there is a worker of this id, whose key is then worth nothing')
    .option('--expires <duration>', 'how long it can be used (default: 1h)')
    .option('--json', 'as JSON')
    .addHelpText(
      'after',
      examples(
        ['glovebox workers enrol --id gpu-1 --label zone=cellar', ''],
        ['glovebox worker --server-url wss://box.example --id gpu-1 --token TOKEN', 'then, on that machine'],
      ),
    )
    .action(async (options) => (await load()).enrol(options));

  verb('enrolments', 'list the tokens that can still be used, without the tokens themselves')
    .usage('[options]')
    .option('--json', 'as JSON')
    .addHelpText(
      'after',
      examples(['glovebox workers enrolments', 'take one back with `workers unenrol ID`']),
    )
    .action(async (options) => (await load()).enrolments(options));

  verb('unenrol', 'take one-time tokens back')
    .usage('ENROLMENT…')
    .argument('<enrolment...>', 'as `workers enrolments` lists them')
    .addHelpText('after', examples(['glovebox workers unenrol 3f9c21', '']))
    .action(async (ids) => (await load()).unenrol(ids));

  verb('ls', 'list workers')
    .alias('list')
    .usage('[options]')
    .option(...label)
    .option('-q, --quiet', 'ids only')
    .option('--json', 'as JSON')
    .addHelpText(
      'after',
      examples(
        ['glovebox workers ls', ''],
        ['glovebox exec worker:gpu-1 nvidia-smi', 'a command on one of them'],
        ['glovebox cp data.tar worker:gpu-1:/srv', 'a file to one of them'],
      ),
    )
    .action(async (options) => (await load()).ls(options));

  verb('inspect', 'show all that is known of a worker')
    .usage('[options] WORKER')
    .argument('<worker>')
    .option('--json', 'as JSON, which it is anyway')
    .addHelpText('after', examples(['glovebox workers inspect gpu-1', 'as JSON']))
    .action(async (id) => (await load()).inspect(id));

  verb('label', 'set labels of a worker; with KEY- one is taken away')
    .usage('WORKER KEY=VALUE…')
    .argument('<worker>')
    .argument('<labels...>')
    .option('--json', 'print the worker afterwards')
    .addHelpText('after', examples(['glovebox workers label gpu-1 zone=attic old-', '']))
    .action(async (id, labels, options) => (await load()).label(id, labels, options));

  verb('allow', 'say which programs may be started on the system of a worker itself')
    .usage('[options] WORKER [PROGRAM…]')
    .argument('<worker>')
    .argument('[programs...]', 'as commands name them: absolute paths, or names')
    .option('--any', 'whatever it is')
    .option('--json', 'print the worker afterwards')
    .addHelpText(
      'after',
      examples(
        ['glovebox workers allow gpu-1 /usr/bin/nvidia-smi /usr/bin/df', 'these and no others'],
        ['glovebox workers allow gpu-1', 'none'],
        ['glovebox workers allow gpu-1 --any', 'as it is at first'],
      ),
    )
    .action(async (id, programs, options) => (await load()).allow(id, programs, options));

  verb('cordon', 'put no more sandboxes on a worker')
    .usage('WORKER')
    .argument('<worker>')
    .addHelpText('after', examples(['glovebox workers cordon gpu-1', 'those on it go on']))
    .action(async (id) => (await load()).schedule(id, false));
  verb('uncordon', 'let sandboxes be put on a worker again')
    .usage('WORKER')
    .argument('<worker>')
    .addHelpText('after', examples(['glovebox workers uncordon gpu-1', '']))
    .action(async (id) => (await load()).schedule(id, true));

  verb('rm', 'forget workers: their keys are worth nothing from now on')
    .usage('WORKER…')
    .argument('<worker...>')
    .addHelpText('after', examples(['glovebox workers rm gpu-1', 'fails while sandboxes are on it']))
    .action(async (ids) => (await load()).rm(ids));

  verb('exec', 'run a command on every worker that is connected and has the labels')
    .usage('[options] [--] COMMAND…')
    .argument('<command...>')
    .option(...label)
    .option('-e, --env <KEY=VALUE>', 'set a variable (repeatable)', collect)
    .option('-w, --workdir <folder>', 'where it runs')
    .option('--timeout <duration>', 'ends it on each (default: 5m)')
    .option('--json', 'one object a line')
    .passThroughOptions()
    .addHelpText(
      'after',
      examples(
        ['glovebox workers exec --label zone=cellar uptime', 'each line with the name of its worker'],
        ["glovebox workers exec -- sh -c 'df -h | tail -1'", 'exit code 1 when it failed on any'],
      ),
    )
    .action(async (command, options) => (await load()).broadcast(command, options));

  verb('stats', 'count workers')
    .usage('[options]')
    .option('--json', 'as JSON')
    .addHelpText('after', examples(['glovebox workers stats', '']))
    .action(async (options) => (await load()).stats(options));

  const snapshot = verb('snapshot', 'keep what is in a folder of a worker, on the worker')
    .usage('VERB …')
    .helpCommand(false);
  const loadSnapshots = () => import('../commands/worker-snapshots.ts');
  snapshot
    .command('create')
    .description('take a snapshot; what was stored before is not stored again')
    .usage('[options] WORKER FOLDER')
    .argument('<worker>')
    .argument('<folder>')
    .option('-m, --message <text>', 'what it is')
    .option('--tag <tag>', 'a name for it, which moves from the snapshot that had it (repeatable)', collect)
    .option('--json', 'as JSON')
    .addHelpText('after', examples(['glovebox workers snapshot create gpu-1 /srv/data --tag good', '']))
    .action(async (id, folder, options) => (await loadSnapshots()).create(id, folder, options));
  snapshot
    .command('ls')
    .alias('list')
    .description('list snapshots, newest first')
    .usage('[options] WORKER')
    .argument('<worker>')
    .option('--tag <tag>', 'those with any of these tags (repeatable)', collect)
    .option('--json', 'as JSON')
    .addHelpText('after', examples(['glovebox workers snapshot ls gpu-1', '']))
    .action(async (id, options) => (await loadSnapshots()).ls(id, options));
  snapshot
    .command('restore')
    .description('put what a snapshot holds where it was taken, or into another folder')
    .usage('[options] WORKER SNAPSHOT [FOLDER]')
    .argument('<worker>')
    .argument('<snapshot>', 'its id, a unique beginning of it, or a tag')
    .argument('[folder]')
    .option('--replace', 'in a folder that is not empty: what the snapshot does not have is removed')
    .addHelpText('after', examples(['glovebox workers snapshot restore gpu-1 good --replace', '']))
    .action(async (id, reference, folder, options) =>
      (await loadSnapshots()).restore(id, reference, folder, options),
    );
  snapshot
    .command('tag')
    .description('set the tags of a snapshot')
    .usage('WORKER SNAPSHOT [TAG…]')
    .argument('<worker>')
    .argument('<snapshot>')
    .argument('[tags...]')
    .addHelpText(
      'after',
      examples(['glovebox workers snapshot tag gpu-1 3f9c21 good', 'no tag takes all away']),
    )
    .action(async (id, reference, tags) => (await loadSnapshots()).tag(id, reference, tags));
  snapshot
    .command('rm')
    .description('remove snapshots, and what no other one has')
    .usage('WORKER SNAPSHOT…')
    .argument('<worker>')
    .argument('<snapshot...>')
    .addHelpText('after', examples(['glovebox workers snapshot rm gpu-1 3f9c21', '']))
    .action(async (id, references) => (await loadSnapshots()).rm(id, references));
}
