// What ssh has to be told to reach sandboxes, for its command line and its configuration file.
import { join } from 'node:path';
import { CliError } from '../exit-codes.ts';
import { defaultUser } from './guest-user.ts';

const binary = join(import.meta.dirname, '../../../bin/glovebox');

export interface SshOptions {
  /** Set for commands that ssh starts, where they are not to find it by themselves. */
  home?: string;
  suffix?: string;
  /** Where ssh has an agent, sandboxes may ask it. */
  forwardAgent?: boolean;
}

/** Names and values, in the order of ssh_config. */
export function sshOptions({ home, suffix, forwardAgent }: SshOptions): [string, string][] {
  const self = [...(home === undefined ? [] : ['/usr/bin/env', `GLOVEBOX_HOME=${home}`]), binary];
  const flags = [
    ...(suffix === undefined ? [] : ['--suffix', suffix]),
    ...(forwardAgent ? ['--forward-agent'] : []),
  ];
  return [
    ['User', defaultUser],
    // In single quotes: a host's name comes from whoever wrote the link, and this line goes through a shell.
    ['ProxyCommand', `${[...self, 'ssh', 'proxy', ...flags].map(inShell).join(' ')} -- '%n'`],
    ['KnownHostsCommand', `${[...self, 'ssh', 'known-hosts'].map(inConfig).join(' ')} %H`],
    ['UserKnownHostsFile', '/dev/null'],
    ['GlobalKnownHostsFile', '/dev/null'],
    ['StrictHostKeyChecking', 'yes'],
    ['UpdateHostKeys', 'no'],
    ['HostKeyAlgorithms', 'ssh-ed25519'],
    // Without an agent there is none to forward. It is not asked for keys: who is let in needs none.
    ...(forwardAgent ? [] : [['IdentityAgent', 'none'] satisfies [string, string]]),
    ['IdentityFile', '/dev/null'],
    ['IdentitiesOnly', 'yes'],
    ['ForwardAgent', forwardAgent ? 'yes' : 'no'],
    ['ForwardX11', 'no'],
    ['ControlMaster', 'no'],
    ['ControlPath', 'none'],
    ['SendEnv', 'LANG LC_*'],
    // So that ssh never waits without an end: not for a proxy that answers no more, nor after a signal that older ones miss while they begin to wait.
    ['ServerAliveInterval', '15'],
    // Newer ones warn of key exchanges that a quantum computer could break. This connection is a pipe to a process of the same user.
    ['IgnoreUnknown', 'WarnWeakCrypto'],
    ['WarnWeakCrypto', 'no'],
  ];
}

function inShell(word: string): string {
  return `'${checked(word).replaceAll('%', '%%').replaceAll("'", "'\\''")}'`;
}

function inConfig(word: string): string {
  return `"${checked(word).replaceAll('%', '%%').replace(/["\\]/g, '\\$&')}"`;
}

/** A line of a configuration file ends with the line. */
function checked(word: string): string {
  if (/\p{Cc}/u.test(word))
    throw new CliError(`${JSON.stringify(word)} holds control characters, which ssh cannot be given`);
  return word;
}
