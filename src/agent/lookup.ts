// From what was asked to what the kernel can run: the program's path, its environment, its folder, its user; and why it cannot run, in clear words.
import { accessSync, closeSync, constants, openSync, readSync, statSync } from 'node:fs';
import type { ExecRequest } from '../contract/guest.ts';
import { defaultPath } from '../contract/guest-wire.ts';
import { shown } from './paths.ts';
import type { SpawnSpec, User } from './platform/platform.ts';
import { errnoOf, Refusal } from './refusal.ts';
import { markName, markOf } from './tree.ts';
import { type Account, Accounts } from './users.ts';

/** Everything of a SpawnSpec but the program's path, of which there may be several to try. */
export interface Prepared {
  candidates: string[];
  spec: Omit<SpawnSpec, 'path'>;
}

export function prepare(
  request: ExecRequest,
  own: { uid: number; gid: number },
  hostMark: string | undefined,
): Prepared {
  const accounts = new Accounts();
  const account =
    request.user === undefined ? accounts.own(own.uid, own.gid) : accounts.resolve(request.user);
  const argv = argumentsOf(request);
  const env = { ...request.env };
  env.PATH ??= defaultPath;
  env.HOME ??= account.home;
  env.USER ??= account.name;
  env.LOGNAME ??= account.name;
  if (request.pty) env.TERM ??= 'xterm-256color';
  env[markName] = markOf(request.execId, hostMark);
  for (const [name, value] of Object.entries(env)) {
    if (
      name === '' ||
      name.includes('=') ||
      name.includes('\0') ||
      typeof value !== 'string' ||
      value.includes('\0')
    ) {
      throw new Refusal(
        'invalid',
        `environment variable ${JSON.stringify(shown(name))}: no NUL bytes, and no = in the name`,
      );
    }
  }
  const cwd = folderOf(request.cwd, account, accounts);
  const same = account.uid === own.uid && account.gid === own.gid;
  const user: User | undefined = same
    ? undefined
    : { uid: account.uid, gid: account.gid, groups: account.groups };
  return {
    ...program(request, argv, { path: env.PATH, cwd }),
    spec: {
      argv,
      env,
      cwd,
      stdin: request.stdin,
      ...(user && { user }),
      ...(request.pty && { pty: request.pty }),
    },
  };

  function program(
    of: ExecRequest,
    words: string[],
    where: { path: string; cwd: string },
  ): { candidates: string[] } {
    if (of.shell === undefined) return { candidates: search(words[0] as string, where) };
    for (const shell of ['bash', 'sh']) {
      const found = [...onPath(shell, where), `/bin/${shell}`, `/usr/bin/${shell}`].filter(isProgram);
      if (found.length > 0) {
        words[0] = shell;
        return { candidates: found };
      }
    }
    throw new Refusal(
      'command-not-found',
      'the image has neither bash nor sh; give the command as an argument vector',
    );
  }
}

function argumentsOf(request: ExecRequest): string[] {
  if ((request.argv === undefined) === (request.shell === undefined)) {
    throw new Refusal('invalid', 'a command is either argv or shell');
  }
  const argv = request.argv === undefined ? ['sh', '-c', request.shell as string] : [...request.argv];
  if (argv.length === 0 || argv[0] === '')
    throw new Refusal('invalid', 'argv: the name of the program is empty');
  if (argv.some((it) => typeof it !== 'string' || it.includes('\0'))) {
    throw new Refusal('invalid', 'argv: an argument holds a NUL byte');
  }
  return argv;
}

function search(name: string, where: { path: string; cwd: string }): string[] {
  if (!name.includes('/')) {
    const found = onPath(name, where);
    if (found.length > 0) return found;
    throw new Refusal(
      'command-not-found',
      `${shown(name)}: command not found (PATH is ${shown(where.path)})`,
    );
  }
  const path = name.startsWith('/') ? name : `${where.cwd}/${name}`;
  if (exists(path)) return [path];
  throw new Refusal('command-not-found', `${shown(name)}: no such file`, 'ENOENT');
}

function onPath(name: string, where: { path: string; cwd: string }): string[] {
  const found: string[] = [];
  for (const folder of where.path.split(':')) {
    const full = folder.startsWith('/') ? folder : `${where.cwd}/${folder}`;
    const path = `${full}/${name}`;
    if (exists(path)) found.push(path);
  }
  // What the kernel can run first; the rest explains why nothing runs.
  return [...found.filter(isProgram), ...found.filter((it) => !isProgram(it))];
}

function exists(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false }) !== undefined;
}

function isProgram(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
}

function folderOf(cwd: string | undefined, account: Account, accounts: Accounts): string {
  if (cwd === undefined) return isFolder(account.home) ? account.home : '/';
  const path = expandHome(cwd, account.home, accounts);
  const full = path.startsWith('/') ? path : `/${path}`;
  if (full.includes('\0')) throw new Refusal('invalid', 'cwd holds a NUL byte');
  if (!exists(full)) throw new Refusal('not-found', `cwd ${shown(full)}: no such directory`, 'ENOENT');
  if (!isFolder(full)) throw new Refusal('not-a-directory', `cwd ${shown(full)}: not a directory`, 'ENOTDIR');
  return full;
}

/** `~` and `~user` at the front stand for a home folder. */
export function expandHome(path: string, home: string, accounts: Accounts): string {
  const match = /^~([^/]*)(.*)$/s.exec(path);
  if (match === null) return path;
  const [, user = '', rest = ''] = match;
  const folder = user === '' ? home : accounts.home(user);
  if (folder === undefined)
    throw new Refusal('invalid', `${shown(path)}: no user ${JSON.stringify(user)} in the sandbox`);
  return folder === '/' && rest !== '' ? rest : `${folder}${rest}`;
}

function isFolder(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() === true;
}

/** Why the kernel would not start a program, in a shell's terms. */
export function explain(thrown: unknown, path: string): Refusal {
  const errno = errnoOf(thrown);
  const no = (why: string) => new Refusal('not-executable', `${shown(path)}: ${why}`, errno);
  switch (errno) {
    case 'ENOENT':
      // The file is there: the look-up has seen it.
      return no(missingInterpreter(path));
    case 'EACCES':
      if (isFolder(path)) return no('is a directory');
      return no('permission denied');
    case 'ENOEXEC':
      return no(foreignFormat(path));
    case 'ETXTBSY':
      return no('somebody is writing to it');
    case 'EPERM':
      return new Refusal('permission', `${shown(path)}: the sandbox may not start it as that user`, errno);
    default:
      return Refusal.from(thrown, `start ${shown(path)}`);
  }
}

function missingInterpreter(path: string): string {
  const head = headOf(path);
  if (head[0] === 0x23 && head[1] === 0x21) {
    const line = head.toString('latin1', 2).split('\n', 1)[0]?.trim() ?? '';
    return `its interpreter ${shown(line)} is missing`;
  }
  return 'the dynamic loader that it asks for is missing in this image';
}

const machines: Record<number, string> = {
  3: 'x86',
  40: 'arm',
  62: 'x86-64',
  183: 'arm64',
  243: 'riscv',
  21: 'ppc64',
  22: 's390x',
};
const ownMachine: Record<string, number> = { x64: 62, arm64: 183 };

function foreignFormat(path: string): string {
  const head = headOf(path);
  if (head.length >= 20 && head.toString('latin1', 0, 4) === '\x7fELF') {
    const machine = head[5] === 2 ? head.readUInt16BE(18) : head.readUInt16LE(18);
    if (machine !== ownMachine[process.arch]) {
      return `built for ${machines[machine] ?? `machine type ${machine}`}, and this machine is ${process.arch}; use an image for this platform`;
    }
    return 'exec format error: a damaged binary';
  }
  return head.length === 0
    ? 'exec format error: the file is empty'
    : 'exec format error: neither a binary nor a script that begins with #!';
}

function headOf(path: string): Buffer {
  const head = Buffer.alloc(256);
  try {
    const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      return head.subarray(0, readSync(fd, head, 0, head.length, 0));
    } finally {
      closeSync(fd);
    }
  } catch {
    return head.subarray(0, 0);
  }
}
