// Finds what a command has left behind, wherever it went: its processes carry a variable in their environment that nobody else's has. On Linux. Out of
// sight are those that cleared or overwrote their environment and left their process group as well.
import { readFileSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { setTimeout as delay, setImmediate as nextTurn } from 'node:timers/promises';

/** Which run a process belongs to. */
export const runVariable = 'GLOVEBOX_BELL_RUN';

const searchMsMax = 5_000;
const betweenMs = 10;
const atOnce = 50;

/**
 * Kills every process whose run is `run` or, when that ends with `-`, begins with it. Ends when two searches in a row have found none, since a process
 * shows no environment for the moment in which it becomes another program. How many there were.
 */
export async function endStragglers(run: string): Promise<number> {
  if (process.platform !== 'linux') return 0;
  const mark = Buffer.from(`${runVariable}=${run}${run.endsWith('-') ? '' : '\0'}`);
  const seen = new Set<number>();
  const deadline = performance.now() + searchMsMax;
  for (let clean = 0; clean < 2 && performance.now() < deadline; ) {
    const found = await endMarked(mark);
    for (const pid of found) seen.add(pid);
    clean = found.length === 0 ? clean + 1 : 0;
    if (clean < 2) await delay(betweenMs);
  }
  return seen.size;
}

/** By turns, since a host may have many processes and the daemon has others to serve. */
async function endMarked(mark: Buffer): Promise<number[]> {
  const found: number[] = [];
  const pids = (await readdir('/proc')).filter((it) => /^\d+$/.test(it) && Number(it) !== process.pid);
  for (const [index, pid] of pids.entries()) {
    if (index % atOnce === atOnce - 1) await nextTurn();
    try {
      if (!hasMark(readFileSync(`/proc/${pid}/environ`), mark)) continue;
      process.kill(Number(pid), 'SIGKILL');
      found.push(Number(pid));
    } catch {
      // It has ended by itself, or is another user's.
    }
  }
  return found;
}

function hasMark(environ: Buffer, mark: Buffer): boolean {
  for (let at = environ.indexOf(mark); at >= 0; at = environ.indexOf(mark, at + 1))
    if (at === 0 || environ[at - 1] === 0) return true;
  return false;
}
