// The root folder that an isolated session sees: what bubblewrap, which is the command, has put its shell into.
import { closeSync, constants, openSync, readdirSync, readFileSync } from 'node:fs';
import type { Platform } from './platform/platform.ts';
import { Refusal } from './refusal.ts';

const { O_DIRECTORY } = constants;
const pathOnly = 0o10000000;

/** A descriptor of it, to be closed by the caller. `pid`: of the command. Throws Refusal('not-found') when there is nothing in it, as when it is ending. */
export function openSessionRoot(pid: number, platform: Platform): number {
  const inside = childOf(pid);
  if (inside === undefined) throw gone();
  const open = () => openSync(`/proc/${inside.pid}/root`, pathOnly | O_DIRECTORY);
  let fd: number;
  try {
    // Only who made the walls may look behind them, which is the user whom the session runs as.
    const own = inside.uid === process.getuid?.() && inside.gid === process.getgid?.();
    fd = own ? open() : platform.as(inside, open);
  } catch (thrown) {
    throw Refusal.from(thrown, 'look into the session');
  }
  // The number may have become another's meanwhile.
  if (childOf(pid)?.pid === inside.pid) return fd;
  closeSync(fd);
  throw gone();
}

function gone(): Refusal {
  return new Refusal('not-found', 'the session has ended');
}

function childOf(pid: number): { pid: number; uid: number; gid: number } | undefined {
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    let status: string;
    try {
      status = readFileSync(`/proc/${name}/status`, 'latin1');
    } catch {
      continue;
    }
    const number = (key: string) => Number(new RegExp(`^${key}:\\s+(\\d+)`, 'm').exec(status)?.[1]);
    if (number('PPid') === pid && !/^State:\s+[ZX]/m.test(status))
      return { pid: Number(name), uid: number('Uid'), gid: number('Gid') };
  }
  return undefined;
}
