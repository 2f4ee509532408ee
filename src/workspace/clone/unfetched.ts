// How many commits of a clone would be gone with its sandbox. The guest is asked what it has, and the host's repository what it knows of that.
import type { Guest } from '../../guest/guest.ts';
import { Failure } from '../../lib/failure.ts';
import { git } from './git.ts';

const answerBytesMax = 1024 * 1024;
const idsMax = 500;
const deadlineMs = 20_000;

export async function unfetchedCommits(
  repository: { root: string; owner: { uid: number; gid: number }; base: string },
  guest: Guest,
  signal: AbortSignal,
): Promise<number | undefined> {
  const until = AbortSignal.any([signal, AbortSignal.timeout(deadlineMs)]);
  const inGuest = async (...argv: string[]) => await lines(guest, repository.root, argv, until);
  const heads = await inGuest('git', 'for-each-ref', '--format=%(objectname)', 'refs/heads');
  const current = await inGuest('git', 'rev-parse', '--verify', '--quiet', 'HEAD');
  if (heads === undefined) return undefined;
  const ids = [...new Set([...heads, ...(current ?? [])])].filter((it) => /^[0-9a-f]{40,64}$/.test(it));
  const asked = ids.slice(0, idsMax);
  const known = await git(
    ['cat-file', '--batch-check=%(objectname)'],
    { in: repository.root, as: repository.owner, input: asked.map((it) => `${it}\n`) },
    until,
  );
  const has = new Set(known.stdout.toString().split('\n'));
  const unknown = asked.filter((it) => !has.has(it));
  if (unknown.length === 0) return 0;
  // What the host has of it, so that what was fetched before counts no more.
  const refs = await git(
    ['for-each-ref', '--format=%(objectname)', '--count=500', '--sort=-creatordate', 'refs/'],
    { in: repository.root, as: repository.owner },
    until,
  );
  const there = [repository.base, ...refs.stdout.toString().split('\n')].filter((it) =>
    /^[0-9a-f]{40,64}$/.test(it),
  );
  const counted = await inGuest(
    ...['git', 'rev-list', '--count', '--ignore-missing', ...unknown, '--not', ...new Set(there)],
  );
  const count = Number(counted?.[0] ?? Number.NaN);
  return Number.isSafeInteger(count) && count >= 0 ? Math.max(1, count) : unknown.length;
}

/** Undefined when it fails, whatever the reason but an abort. */
async function lines(
  guest: Guest,
  cwd: string,
  argv: string[],
  signal: AbortSignal,
): Promise<string[] | undefined> {
  try {
    const execId = `git-${crypto.randomUUID()}`;
    const env = {
      PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
      GIT_OPTIONAL_LOCKS: '0',
    };
    const trusting = ['git', '-c', 'safe.directory=*', ...argv.slice(1)];
    const running = await guest.exec(
      { execId, argv: trusting, env, cwd, stdin: 'none', timeoutMs: deadlineMs },
      signal,
    );
    const pieces: Uint8Array[] = [];
    let bytes = 0;
    for await (const output of running.output) {
      if (output.type !== 'output' || output.lane !== 'stdout') continue;
      bytes += output.bytes.length;
      if (bytes > answerBytesMax) {
        running.signal('SIGKILL', { tree: true });
        return undefined;
      }
      pieces.push(output.bytes);
    }
    const { code } = await running.exit;
    return code === 0
      ? Buffer.concat(pieces)
          .toString()
          .split('\n')
          .filter((it) => it !== '')
      : undefined;
  } catch {
    if (signal.aborted) throw Failure.from(signal.reason, 'look for commits that were not fetched');
    return undefined;
  }
}
