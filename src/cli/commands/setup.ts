// glovebox setup ssh: lets `ssh NAME.glovebox`, and every program that uses ssh, find sandboxes.
import { homedir } from 'node:os';
import { join } from 'node:path';
import { homeFolder } from '../connect.ts';
import { usageError } from '../exit-codes.ts';
import { say } from '../output.ts';
import { blockText, sshConfigPath, writeBlock } from '../ssh/config-file.ts';
import { ownSuffix, suffixOf } from '../ssh/names.ts';

export interface SetupSshOptions {
  alias?: string;
  forwardAgent?: boolean;
  remove?: boolean;
  file?: string;
}

export async function setupSsh(options: SetupSshOptions): Promise<void> {
  const path = options.file ?? sshConfigPath();
  if (options.remove) {
    if (options.alias !== undefined || options.forwardAgent)
      throw usageError('setup ssh: --alias and --forward-agent do not go with --remove');
    say(
      (await writeBlock(path, undefined)) ? `removed our block from ${path}` : `${path} has no block of ours`,
    );
    return;
  }
  const home = homeFolder();
  // Programs such as editors start ssh without the variables of this shell.
  const ownHome = home === join(homedir(), '.glovebox') ? {} : { home };
  const suffix = options.alias === undefined ? {} : { suffix: suffixOf(options.alias) };
  const agent = options.forwardAgent ? { forwardAgent: true } : {};
  const changed = await writeBlock(path, blockText({ ...ownHome, ...suffix, ...agent }));
  const names = [ownSuffix, ...(suffix.suffix === undefined ? [] : [suffix.suffix])].map((it) => `NAME${it}`);
  say(`${changed ? `wrote to ${path}` : `${path} is as it should be`}: use ssh ${names.join(' or ')}`);
}

/** For `reset`. True when there was a block. */
export async function removeSshBlock(): Promise<boolean> {
  return await writeBlock(sshConfigPath(), undefined);
}
