// Which process of the guest has a connection: the kernel's table of connections tells its inode, the processes' open files tell whose that is.
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { Refusal } from './refusal.ts';

/** Runs with the rights of another user: only the owner of a process may see its open files. */
export type As = <T>(user: { uid: number; gid: number }, run: () => T) => T;

/** Whoever has that many is not worth the time of everybody else. */
const processesMax = 512;
const filesMax = 8_192;
const commandCharsMax = 256;

/** Throws Refusal('not-found') when it cannot be seen, also when several processes have a connection from a port of this number. */
export function ownerOf(port: number, as: As): { pid: number; command: string } {
  if (!Number.isInteger(port) || port < 1 || port > 65_535)
    throw new Refusal('invalid', `port ${port}: 1 to 65535`);
  const inodes = inodesOf(port);
  const owners = inodes.size === 0 ? [] : holdersOf(inodes, as);
  const [pid] = owners;
  if (pid === undefined || owners.length > 1)
    throw new Refusal('not-found', `no process is seen to have the connection from port ${port}`);
  return { pid, command: commandOf(pid) };
}

/** As links in /proc show them. Addresses differ: with every address local, two connections may come from one port. */
function inodesOf(port: number): Set<string> {
  const wanted = `:${port.toString(16).toUpperCase().padStart(4, '0')}`;
  const inodes = new Set<string>();
  for (const table of ['tcp', 'tcp6']) {
    for (const line of textOf(`/proc/net/${table}`).split('\n')) {
      const [, local, , state, , , , , , inode] = line.trim().split(/\s+/);
      const listens = state === '0A';
      if (local?.endsWith(wanted) && !listens && inode !== undefined && inode !== '0')
        inodes.add(`socket:[${inode}]`);
    }
  }
  return inodes;
}

/** Processes that share a connection count once, as the oldest of them: a child has what its parent had. */
function holdersOf(inodes: Set<string>, as: As): number[] {
  const holders = new Map<string, number>();
  let files = filesMax;
  // The newest first, for most connections are those of programs just started.
  const pids = namesIn('/proc').map(Number).filter(Number.isInteger);
  for (const pid of pids.sort((a, b) => b - a).slice(0, processesMax)) {
    if (files <= 0) break;
    if (pid === process.pid) continue;
    for (const link of linksOf(pid, files, as)) {
      files--;
      if (inodes.has(link)) holders.set(link, pid);
    }
  }
  return [...new Set(holders.values())];
}

function linksOf(pid: number, max: number, as: As): string[] {
  const read = () => {
    const folder = `/proc/${pid}/fd`;
    return readdirSync(folder)
      .slice(0, max)
      .map((fd) => linkOf(`${folder}/${fd}`));
  };
  try {
    return read();
  } catch (thrown) {
    const code = (thrown as NodeJS.ErrnoException).code;
    if (code !== 'EACCES' && code !== 'EPERM') return [];
  }
  const status = textOf(`/proc/${pid}/status`);
  const [uid, gid] = ['Uid', 'Gid'].map((key) => new RegExp(`^${key}:\\s+(\\d+)`, 'm').exec(status)?.[1]);
  if (uid === undefined || gid === undefined) return [];
  try {
    return as({ uid: Number(uid), gid: Number(gid) }, read);
  } catch {
    return [];
  }
}

/** The name of the program that was started, which threads and interpreters keep in their arguments; else the kernel's. */
function commandOf(pid: number): string {
  const first = textOf(`/proc/${pid}/cmdline`).split('\0')[0] ?? '';
  const name = first.slice(first.lastIndexOf('/') + 1) || textOf(`/proc/${pid}/comm`).trim();
  return name.toWellFormed().slice(0, commandCharsMax) || '?';
}

function linkOf(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    return '';
  }
}

function namesIn(path: string): string[] {
  try {
    return readdirSync(path);
  } catch {
    return [];
  }
}

function textOf(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}
