// glovebox ssh: the system's ssh, told how to reach a sandbox, and the two commands that it calls back.
import { spawn } from 'node:child_process';
import { homeFolder } from '../connect.ts';
import { CliError, exitCodes, usageError } from '../exit-codes.ts';
import { print } from '../output.ts';
import { defaultUser } from '../ssh/guest-user.ts';
import { hostKeyIn, knownHostLine } from '../ssh/host-key.ts';
import { ownSuffix, referenceOf } from '../ssh/names.ts';
import { sshOptions } from '../ssh/options.ts';

/** OpenSSH 9.2 and others miss a signal that comes just before they begin to wait, so it is sent until ssh has gone. */
const signalAgainMs = 1_000;

export interface SshCommandOptions {
  local?: string[];
  dynamic?: string[];
  tty?: boolean;
  noTty?: boolean;
  forwardOnly?: boolean;
  agent?: boolean;
}

/** Resolves with ssh's exit code. */
export async function ssh(
  destination: string,
  command: readonly string[],
  options: SshCommandOptions,
): Promise<number> {
  if (options.agent && !process.env.SSH_AUTH_SOCK)
    throw usageError(
      'ssh: there is no agent to forward: SSH_AUTH_SOCK is not set',
      'Start one with `eval "$(ssh-agent)"`, and add a key with `ssh-add`.',
    );
  const at = destination.lastIndexOf('@');
  const user = at < 0 ? defaultUser : destination.slice(0, at);
  const reference = referenceOf(destination.slice(at + 1));
  if (user === '' || user.startsWith('-')) throw usageError('ssh: this is no name of a user');
  const words = [
    // Nobody's configuration, so that none can get in the way.
    ...['-F', 'none', '-l', user],
    ...sshOptions(options.agent ? { forwardAgent: true } : {}).flatMap(([name, value]) =>
      name === 'User' ? [] : ['-o', `${name}=${value}`],
    ),
    ...(options.local ?? []).flatMap((it) => ['-L', it]),
    ...(options.dynamic ?? []).flatMap((it) => ['-D', it]),
    ...(options.tty ? ['-t'] : []),
    ...(options.noTty ? ['-T'] : []),
    ...(options.forwardOnly ? ['-N'] : []),
    ...['--', `${reference}${ownSuffix}`, ...command],
  ];
  // Ctrl-C and the like come to ssh from the terminal itself; we wait for what it makes of them.
  const stays = () => {};
  for (const name of ['SIGINT', 'SIGQUIT'] as const) process.on(name, stays);
  const child = spawn('ssh', words, { stdio: 'inherit' });
  let again: NodeJS.Timeout | undefined;
  for (const name of ['SIGTERM', 'SIGHUP'] as const)
    process.on(name, () => {
      child.kill(name);
      again ??= setInterval(() => child.kill(name), signalAgainMs);
    });
  child.once('exit', () => clearInterval(again));
  return await new Promise((resolve, reject) => {
    child.once('error', (cause: NodeJS.ErrnoException) =>
      reject(
        new CliError(cause.code === 'ENOENT' ? 'there is no ssh on this machine' : cause.message, {
          ...{ exitCode: exitCodes.unavailable, cause },
          hint: "Install OpenSSH's client, or use `glovebox exec`.",
        }),
      ),
    );
    child.once('exit', (code) => resolve(code ?? 255));
  });
}

/** For KnownHostsCommand: every sandbox of this home has the same key. */
export async function knownHosts(host: string): Promise<void> {
  if (!/^[\x21-\x7e]{1,300}$/.test(host)) throw usageError('ssh known-hosts: this is no name of a host');
  await print(knownHostLine(host, hostKeyIn(homeFolder())));
}
