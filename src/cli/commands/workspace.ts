// glovebox diff, apply, discard, checkpoint and undo.
import type { ApplyResult, Sandbox, WorkspaceChange } from '../../../sdk/src/index.ts';
import { connect } from '../connect.ts';
import { CliError, exitCodes, usageError } from '../exit-codes.ts';
import { chosenPatch, filesOf, isText, type PatchFile } from '../hunks.ts';
import {
  clean,
  cleanLine,
  counted,
  jsonText,
  paint,
  print,
  printJson,
  say,
  table,
  writeAll,
} from '../output.ts';
import { atTerminal, confirm, Keys } from '../terminal.ts';

interface OfWorkspace {
  workspace?: string;
  json?: boolean;
}

const open = async (reference: string): Promise<Sandbox> => await (await connect()).connect(reference);
const meant = ({ workspace }: OfWorkspace) => (workspace === undefined ? {} : { workspace });

export async function diff(
  reference: string,
  options: OfWorkspace & { stat?: boolean; nameOnly?: boolean },
): Promise<void> {
  if ([options.stat, options.nameOnly, options.json].filter(Boolean).length > 1)
    throw usageError('diff: --stat, --name-only and --json do not go together');
  const { workspaces } = await open(reference);
  if (options.stat || options.nameOnly || options.json) {
    const changes = await workspaces.changes(meant(options));
    if (options.json) return await printJson(changes);
    if (changes.length === 0) return;
    if (options.nameOnly) return await print(changes.map((it) => nameOf(it.path)).join('\n'));
    return await print(statOf(changes));
  }
  const patch = await workspaces.diff(meant(options));
  if (!process.stdout.isTTY) return await writeAll(1, patch);
  if (patch.length > 0) await print(coloured(Buffer.from(patch).toString()).replace(/\n$/, ''));
  const told = (await workspaces.changes(meant(options))).filter((it) => it.warning !== undefined);
  for (const { path, warning } of told) say(paint('dim', cleanLine(`${path}: ${warning}`), process.stderr));
}

/** Names that would break a line or that are no UTF-8 are quoted. */
function nameOf(path: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what it looks for
  return /[\u0000-\u001f\u007f"\\]/.test(path) || !path.isWellFormed() ? jsonText(path) : cleanLine(path);
}

function statOf(changes: readonly WorkspaceChange[]): string {
  const letters = { added: 'A', modified: 'M', deleted: 'D' };
  const rows = changes.map(({ path, kind, type, added, removed, conflict, warning }) => [
    letters[kind],
    added === undefined ? '-' : `+${added}`,
    removed === undefined ? '-' : `-${removed}`,
    `${nameOf(path)}${type === 'folder' ? '/' : ''}`,
    warning ?? (conflict ? 'changed on the host, too' : ''),
  ]);
  const sum = (key: 'added' | 'removed') => changes.reduce((total, it) => total + (it[key] ?? 0), 0);
  const total = `${counted(changes.length, 'change')}, +${sum('added')} -${sum('removed')}`;
  return `${table(['', 'ADDED', 'REMOVED', 'PATH', 'NOTE'], rows)}\n${total}`;
}

function coloured(patch: string): string {
  return patch
    .split('\n')
    .map((line) => {
      const shown = clean(line);
      if (/^(diff --git|index |--- |\+\+\+ |new file|deleted file|old mode|new mode)/.test(line))
        return paint('bold', shown);
      if (line.startsWith('@@')) return paint('cyan', shown);
      if (line.startsWith('+')) return paint('green', shown);
      return line.startsWith('-') ? paint('red', shown) : shown;
    })
    .join('\n');
}

export async function apply(
  reference: string,
  paths: string[],
  options: OfWorkspace & { pick?: boolean; theirs?: boolean; ours?: boolean; dryRun?: boolean },
): Promise<number> {
  if (options.pick && !atTerminal())
    throw usageError('apply: --pick needs a terminal', 'Name the paths to apply instead.');
  const sandbox = await open(reference);
  const asked = {
    ...meant(options),
    ...(paths.length > 0 ? { paths } : {}),
    ...(options.theirs
      ? { conflicts: 'theirs' as const }
      : options.ours
        ? { conflicts: 'ours' as const }
        : {}),
    ...(options.dryRun ? { dryRun: true } : {}),
  };
  const picked = options.pick ? await pick(sandbox, paths, options) : {};
  if (picked === undefined) {
    say('Nothing was chosen.');
    return exitCodes.ok;
  }
  const result = await sandbox.workspaces.apply({ ...asked, ...picked });
  if (options.json) await printJson(result);
  else await printResult(result, reference, options.dryRun === true);
  return result.conflicts.length > 0 ? exitCodes.failed : exitCodes.ok;
}

const isGits = (path: string) => path.split('/').at(-1)?.toLowerCase() === '.git';
const commitsStay =
  'Commits made in the sandbox stay there, their files are applied: commit on the host, or make sandboxes with --clone to bring commits back.';

async function printResult(result: ApplyResult, reference: string, dryRun: boolean): Promise<void> {
  const { applied, merged, conflicts, refused } = result;
  const lines = [
    ...applied.map((it) => `applied   ${nameOf(it)}`),
    ...merged.map((it) => `merged    ${nameOf(it)}`),
    ...conflicts.map((it) => `${paint('red', 'conflict')}  ${nameOf(it.path)}: ${cleanLine(it.reason)}`),
    ...refused.map((it) => `${paint('yellow', 'refused')}   ${nameOf(it.path)}: ${cleanLine(it.reason)}`),
  ];
  if (lines.length > 0) await print(lines.join('\n'));
  else say('There is nothing to apply.');
  if (dryRun) say('Nothing was written: this was a dry run.');
  if (refused.some((it) => isGits(it.path))) say(commitsStay);
  if (conflicts.length === 0) return;
  say(
    `${counted(conflicts.length, 'conflict')} left as they are on both sides. Take the sandbox's with \`glovebox apply ${cleanLine(reference)} --theirs PATH\`, ` +
      `keep the host's with \`glovebox discard ${cleanLine(reference)} PATH\`, or make both alike and apply again.`,
  );
}

const legend = '[y]es  [n]o  [a]ll of this file  [d]one with this file  [q]uit  [?]';
const legendInFull = [
  'y  apply this',
  'n  leave this as a change',
  'a  apply this and the rest of this file',
  'd  leave this and the rest of this file as changes',
  'q  ask no more, and apply what was chosen; Ctrl-C applies nothing',
].join('\n');

/** What the person wants, as the request says it. Undefined for nothing. */
async function pick(
  sandbox: Sandbox,
  only: readonly string[],
  options: OfWorkspace,
): Promise<{ paths: string[]; patch?: string } | undefined> {
  const changes = await sandbox.workspaces.changes(meant(options));
  const patch = Buffer.from(await sandbox.workspaces.diff(meant(options))).toString('latin1');
  const files = new Map(filesOf(patch).map((it) => [it.path, it]));
  const wanted = only.map((it) => it.replace(/^(\.\/)+|\/+$/g, ''));
  const within = (path: string) =>
    wanted.length === 0 || wanted.some((it) => it === '.' || path === it || path.startsWith(`${it}/`));
  const paths: string[] = [];
  const parts: { file: PatchFile; hunks: string[] }[] = [];
  using keys = new Keys(process.stdin, { ahead: true });
  const quit = new AbortController();
  keys.onInterrupt = () =>
    quit.abort(new CliError('nothing was applied', { exitCode: exitCodes.interrupted }));
  for (const change of changes.filter((it) => within(it.path))) {
    const file = files.get(change.path);
    const answer = await pickFile(change, file, keys, quit.signal);
    if (answer.hunks === 'all') paths.push(change.path);
    else if (answer.hunks.length > 0 && file) {
      paths.push(change.path);
      parts.push({ file, hunks: answer.hunks });
    }
    if (answer.quit) break;
  }
  if (paths.length === 0) return undefined;
  return { paths, ...(parts.length > 0 ? { patch: chosenPatch(parts) } : {}) };
}

async function pickFile(
  change: WorkspaceChange,
  file: PatchFile | undefined,
  keys: Keys,
  signal: AbortSignal,
): Promise<{ hunks: 'all' | string[]; quit: boolean }> {
  const title = `${change.kind} ${change.type} ${nameOf(change.path)}`;
  if (change.warning !== undefined) {
    say(`${paint('bold', title, process.stderr)}\n  is left out: ${cleanLine(change.warning)}`);
    if (isGits(change.path)) say(commitsStay);
    return { hunks: [], quit: false };
  }
  say(paint('bold', title, process.stderr));
  // A file comes or goes as a whole, as does what is shown by name only.
  const whole =
    !file || change.kind !== 'modified' || change.type !== 'file' || file.hunks.length === 0 || !isText(file);
  const pieces = whole ? [file?.hunks.join('') ?? ''] : file.hunks;
  const taken: string[] = [];
  for (const [index, piece] of pieces.entries()) {
    say(`${coloured(Buffer.from(piece, 'latin1').toString())}(${index + 1}/${pieces.length}) ${legend}`);
    const key = await answerOf(keys, signal);
    if (key === 'y') taken.push(piece);
    if (key === 'a') taken.push(...pieces.slice(index));
    if (key === 'a' || key === 'd' || key === 'q')
      return { hunks: taken.length === pieces.length ? 'all' : taken, quit: key === 'q' };
  }
  return { hunks: taken.length === pieces.length ? 'all' : taken, quit: false };
}

async function answerOf(keys: Keys, signal: AbortSignal): Promise<string> {
  for (;;) {
    const key = (await keys.next(signal)).toLowerCase();
    if ('ynadq'.includes(key)) return key;
    if (key === '?') say(`${legendInFull}\n${legend}`);
    // Ctrl-D
    if (key === '\u0004') keys.onInterrupt();
  }
}

export async function discard(
  reference: string,
  paths: string[],
  options: OfWorkspace & { force?: boolean },
): Promise<void> {
  const sandbox = await open(reference);
  if (!options.force) {
    const what = paths.length === 0 ? 'everything that it changed' : counted(paths.length, 'path');
    await confirm(`Discard ${what} in ${cleanLine(reference)}?`, 'nothing was discarded');
  }
  const discarded = await sandbox.workspaces.discard({
    ...meant(options),
    ...(paths.length > 0 ? { paths } : {}),
  });
  if (options.json) return await printJson({ discarded });
  if (discarded.length === 0) say('There is nothing to discard.');
  else await print(discarded.map(nameOf).join('\n'));
}

export async function checkpoint(
  reference: string,
  label: string | undefined,
  options: { json?: boolean },
): Promise<void> {
  if (label !== undefined && label.length > 200)
    throw usageError('checkpoint: LABEL has at most 200 characters');
  const made = await (await open(reference)).workspaces.checkpoint(label);
  await (options.json ? printJson(made) : print(made.id));
}

export async function checkpoints(
  reference: string,
  options: { json?: boolean; quiet?: boolean },
): Promise<void> {
  const all = await (await open(reference)).workspaces.checkpoints();
  if (options.json) return await printJson(all);
  if (options.quiet) return all.length === 0 ? undefined : await print(all.map((it) => it.id).join('\n'));
  if (all.length === 0)
    return say('There are no checkpoints yet. One is made before each command that follows a change.');
  const rows = all.map(({ id, at, automatic, changed, label }) => [
    id,
    at.toISOString(),
    automatic ? 'command' : 'asked for',
    String(changed),
    label,
  ]);
  await print(table(['CHECKPOINT', 'AT', 'MADE', 'CHANGED', 'LABEL'], rows));
}

export async function undo(
  reference: string,
  id: string | undefined,
  options: { json?: boolean },
): Promise<void> {
  const result = await (await open(reference)).workspaces.undo(id);
  if (options.json) return await printJson(result);
  if (result.restored.length > 0) await print(result.restored.map(nameOf).join('\n'));
  const { id: went, label } = result.checkpoint;
  say(
    cleanLine(
      `Back to ${went} (${label}): ${counted(result.restored.length, 'path')}. Undo once more to return.`,
    ),
  );
}
