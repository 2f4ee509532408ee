// glovebox backup and glovebox restore, with their options and examples.
import type { Command } from 'commander';
import { examples } from '../help.ts';

export function addBackupVerbs(program: Command): void {
  const load = () => import('../commands/backup.ts');

  program
    .command('backup')
    .description("write this machine's records, rules, logs and sealed secrets into one file")
    .usage('[options] FILE|-')
    .argument('<file>', 'a tar archive; compressed if its name ends in .gz, .tgz or .zst; - for stdout')
    .option(
      '--with-keys',
      'private keys, too: whoever has the file can then read the secrets and call the daemon',
    )
    .option('--json', 'what was written, as JSON')
    .addHelpText(
      'after',
      `
A daemon may go on working meanwhile. Disks of sandboxes, workspaces and images are not in the file.
Keep it where only you can read it: configuration and records are in it as they are.${examples(
        ['glovebox backup /mnt/elsewhere/glovebox.tar.zst', 'also for a timer, every night'],
        ['glovebox backup --with-keys - | age -r KEY > box.age', 'keys, too, encrypted by a tool of yours'],
      )}`,
    )
    .action(async (file, options) => (await load()).backup(file, options));

  program
    .command('restore')
    .description('make a home folder of a backup, with no daemon running in it')
    .usage('[options] FILE|-')
    .argument('<file>', 'what `glovebox backup` has written; - for stdin')
    .option('--home <folder>', 'where to (default: GLOVEBOX_HOME, or ~/.glovebox)')
    .option('--force', 'move aside what is there; disks, workspaces and images of sandboxes stay')
    .option('--json', 'what was restored, as JSON')
    .addHelpText(
      'after',
      `
Every file is held against the list in the backup before anything is put in place. Sandboxes that still
run on this machine are taken up by the daemon; those made after the backup are removed by it.${examples(
        ['glovebox restore glovebox.tar.zst --home /srv/glovebox', 'into a new or empty folder'],
        ['glovebox restore glovebox.tar.zst --force', 'over what is there, e.g. a damaged database'],
      )}`,
    )
    .action(async (file, options) => (await load()).restore(file, options));
}
