// What this machine has that agents could use: the environment of this shell, and files and programs of its user.
import { accessSync, constants, readFileSync, statSync } from 'node:fs';
import { homedir } from 'node:os';
import { delimiter, join } from 'node:path';
import { type CredentialOffers, credentialOffers } from '../agents/credential-offers.ts';

const fileBytesMax = 1024 * 1024;

/** `local`: whether the server is on this machine; files and commands are read by the server, so another one would find its own there. */
export function hostCredentials({ local }: { local: boolean }): CredentialOffers {
  const found = credentialOffers({
    home: homedir(),
    env: (variable) => process.env[variable],
    readFile: local ? textOf : () => undefined,
    hasProgram,
  });
  return { ...found, offers: found.offers.filter((it) => local || it.source.type === 'value') };
}

function textOf(path: string): string | undefined {
  try {
    const stat = statSync(path);
    return stat.isFile() && stat.size <= fileBytesMax ? readFileSync(path, 'utf8') : undefined;
  } catch {
    return undefined;
  }
}

function hasProgram(name: string): boolean {
  return (process.env.PATH ?? '').split(delimiter).some((folder) => {
    try {
      accessSync(join(folder, name), constants.X_OK);
      return folder !== '';
    } catch {
      return false;
    }
  });
}
