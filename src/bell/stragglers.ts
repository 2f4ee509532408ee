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

/** Searches in a row that have to find none; more of them where processes came and went meanwhile, for one may have hidden among those. */
const cleanSearches = 2;
const cleanSearchesInUnrest = 6;

/**
 * Kills every process whose run is `run` or, when that ends with `-`, begins with it. Ends when several searches in a row have found none, since a process
 * shows no environment for the moment in which it becomes another program. How many there were.
 */
export async function endStragglers(run: string): Promise<number> {
  if (process.platform !== 'linux') return 0;
  const mark = Buffer.from(`${runVariable}=${run}${run.endsWith('-') ? '' : '\0'}`);
  const deadline = performance.now() + searchMsMax;
  let ended = 0;
  let unrest = false;
  for (let clean = 0; ; ) {
    const search = await endMarked(mark);
    ended += search.ended;
    unrest ||= search.unrest || search.ended > 0;
    clean = search.ended === 0 ? clean + 1 : 0;
    const enough = clean >= (unrest ? cleanSearchesInUnrest : cleanSearches);
    if (enough || performance.now() > deadline) return ended;
    await delay(betweenMs);
  }
}

/**
 * By turns, since a host may have many processes and the daemon has others to serve. `unrest`: some could not be looked at, for they ended meanwhile or were
 * becoming another program.
 */
async function endMarked(mark: Buffer): Promise<{ ended: number; unrest: boolean }> {
  let ended = 0;
  let unrest = false;
  const pids = (await readdir('/proc')).filter((it) => /^\d+$/.test(it) && Number(it) !== process.pid);
  // The newest first: they are the ones that may not be there for long.
  pids.sort((one, other) => Number(other) - Number(one));
  for (const [index, pid] of pids.entries()) {
    if (index % atOnce === atOnce - 1) await nextTurn();
    try {
      const environ = readFileSync(`/proc/${pid}/environ`);
      if (environ.length === 0 && isProgram(pid)) unrest = true;
      if (!hasMark(environ, mark)) continue;
      process.kill(Number(pid), 'SIGKILL');
      ended += 1;
    } catch (error) {
      // Those of other users cannot be looked at.
      if ((error as NodeJS.ErrnoException).code !== 'EACCES') unrest = true;
    }
  }
  return { ended, unrest };
}

/** Neither a thread of the kernel nor one that has ended and waits for its parent. */
function isProgram(pid: string): boolean {
  const [state, parent] = readFileSync(`/proc/${pid}/stat`, 'utf8')
    .replace(/^.*\) /s, '')
    .split(' ');
  return state !== 'Z' && parent !== '2' && parent !== '0';
}

function hasMark(environ: Buffer, mark: Buffer): boolean {
  for (let at = environ.indexOf(mark); at >= 0; at = environ.indexOf(mark, at + 1))
    if (at === 0 || environ[at - 1] === 0) return true;
  return false;
}
