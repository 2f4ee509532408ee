// What a person has said yes to of what projects bring along, remembered by content: a list in the home folder. Whoever wrote the content is a stranger, so
// what has changed since is asked about anew.
import { mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { z } from 'zod';
import { Failure } from '../lib/failure.ts';

const approvalsMax = 4_096;
/** Of what was shown; more is not kept, and a change of it is shown without what was before. */
const shownCharactersMax = 65_536;

const Approvals = z.object({
  version: z.literal(1),
  /** By the content's hash. */
  approved: z.record(
    z.string(),
    z.object({ path: z.string(), at: z.string(), shown: z.array(z.string()).optional() }),
  ),
});
type Approvals = z.infer<typeof Approvals>;

export interface Content {
  /** In messages: `agent mine`. */
  what: string;
  path: string;
  /** Of all that decides what is done. */
  sha256: string;
  /** What a person is shown, to tell them of a later change what there was. */
  shown?: readonly string[];
}

/** `before`: what was shown of the content of this path that was approved last, where it was kept. */
export type Standing =
  | { standing: 'approved' }
  | { standing: 'new' }
  | { standing: 'changed'; before?: readonly string[] };

export async function standingOf({ path, sha256 }: Content, file: string): Promise<Standing> {
  const { approved } = await readApprovals(file);
  if (Object.hasOwn(approved, sha256)) return { standing: 'approved' };
  const last = Object.values(approved).findLast((it) => it.path === path);
  if (last === undefined) return { standing: 'new' };
  return { standing: 'changed', ...(last.shown === undefined ? {} : { before: last.shown }) };
}

export interface ApproveOptions {
  /** The list in the home folder. */
  file: string;
  /** Shows a person what it would do and asks; absent where nobody can be asked. */
  ask?: (standing: Exclude<Standing, { standing: 'approved' }>) => Promise<boolean>;
  /** What to do where nobody can be asked. */
  unasked: string;
  now: () => Date;
}

/** Resolves once the content has been approved, now or before. Failure('permission') when it has not. */
export async function approve(content: Content, { file, ask, unasked, now }: ApproveOptions): Promise<void> {
  const standing = await standingOf(content, file);
  if (standing.standing === 'approved') return;
  if (ask === undefined || !(await ask(standing)))
    throw new Failure(
      'permission',
      `${content.what}: ${content.path} ${standing.standing === 'new' ? 'has not been approved' : 'has changed since it was approved'}`,
      { hint: ask === undefined ? unasked : 'Nothing was made.' },
    );
  await addApproval(file, content, now());
}

async function readApprovals(file: string): Promise<Approvals> {
  const text = await readFile(file, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined;
    throw Failure.from(error, `read ${file}`);
  });
  if (text === undefined) return { version: 1, approved: {} };
  try {
    return Approvals.parse(JSON.parse(text));
  } catch (cause) {
    throw new Failure('invalid', `${file} is not a list of what was approved`, {
      cause,
      hint: 'Move it away: what it approved of is asked again.',
    });
  }
}

/** Read again first: another command may have added one meanwhile. */
async function addApproval(file: string, content: Content, at: Date): Promise<void> {
  const { path, sha256, shown } = content;
  const { approved } = await readApprovals(file);
  // Of each path, what was shown last is enough to compare with.
  const others = Object.entries(approved).map(([hash, it]): [string, Approvals['approved'][string]] => {
    const { shown: _, ...bare } = it;
    return [hash, it.path === path ? bare : it];
  });
  const kept = shown !== undefined && shown.join().length <= shownCharactersMax ? { shown: [...shown] } : {};
  const entries = [...others, [sha256, { path, at: at.toISOString(), ...kept }] as const];
  const text = JSON.stringify(
    { version: 1, approved: Object.fromEntries(entries.slice(-approvalsMax)) },
    null,
    2,
  );
  await mkdir(dirname(file), { recursive: true, mode: 0o700 });
  const beside = `${file}.${process.pid}.new`;
  try {
    await writeFile(beside, `${text}\n`, { mode: 0o600, flush: true });
    await rename(beside, file);
  } catch (error) {
    await rm(beside, { force: true });
    throw Failure.from(error, `write ${file}`);
  }
}
