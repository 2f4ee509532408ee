// glovebox env: sandboxes as a file of the project describes them. A stranger or the agent itself may have written the file, so what it asks for is shown and
// agreed to before anything of it is done; and only what was made of a file is entered or removed by its name.
import { createHash } from 'node:crypto';
import { readFileSync, realpathSync, statSync } from 'node:fs';
import { homedir } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';
import {
  type SandboxClient,
  SandboxError,
  type SandboxInfo,
  type SetupStep,
} from '../../../sdk/src/index.ts';
import { approve, type Content, type Standing, standingOf } from '../../agents/approvals.ts';
import { projectAgents } from '../../agents/project-agents.ts';
import type { Failure } from '../../lib/failure.ts';
import { agentNamed, agentsOf, unknownWord } from '../agent-choice.ts';
import { connect, homeFolder, serverIsHere } from '../connect.ts';
import { type CreationFlags, creationOf, make } from '../creation.ts';
import { entryOf } from '../entry.ts';
import { fileBytesMax, readDocument } from '../env-file/document.ts';
import {
  type EnvPlan,
  type KeptSecret,
  planLines,
  planOf,
  secretProblems,
  trackedLines,
} from '../env-file/plan.ts';
import { CliError, exitCodeOfExec, usageError } from '../exit-codes.ts';
import { checkName } from '../names.ts';
import { clean, cleanLine, paint, print, printJson, say, sayError } from '../output.ts';
import { sayWhatWasMade } from '../summary.ts';
import { agreed, atTerminal } from '../terminal.ts';
import { pairsOf } from '../values.ts';
import type { Words } from '../words.ts';
import { onThisMachine } from '../workspace-path.ts';
import { type ExecOptions, exec } from './exec.ts';
import { rm } from './life.ts';
import { run } from './run.ts';

const fileName = 'sbxenv.yaml';
/** Of a sandbox: which file it was made of, and what that said. */
const fileLabel = 'glovebox.env-file';
const planLabel = 'glovebox.env-plan';

export interface EnvOptions {
  envArg?: string[];
  envArgsFile?: string[];
  name?: string;
}

export interface ApplyOptions extends EnvOptions {
  autoApprove?: boolean;
}

export async function envPlan(
  place: string | undefined,
  options: EnvOptions & { json?: boolean },
): Promise<void> {
  const plan = await planned(place, options);
  const client = await connect();
  const found = await namedSandbox(client, plan.name);
  const problems = [...(await problemsOf(client, plan)), ...(found ? takenProblem(found, plan) : [])];
  const standing = await standingOf(contentOf(plan), approvalsFile());
  if (options.json) {
    const { env, sha256: _, ...shown } = plan;
    return await printJson({
      ...shown,
      env: Object.keys(env).sort(),
      approval: standing.standing,
      exists: found !== undefined && isOf(found, plan.file),
      problems: problems.map((it) => it.message),
    });
  }
  await print(planText(plan, standing, process.stdout));
  for (const { message, hint } of problems) sayError(message, hint);
}

export async function envCreate(
  place: string | undefined,
  options: ApplyOptions & { quiet?: boolean; json?: boolean },
): Promise<void> {
  const plan = await planned(place, options);
  const client = await connect();
  const found = await namedSandbox(client, plan.name);
  if (found) {
    const [other] = takenProblem(found, plan);
    throw other ?? existsError(plan);
  }
  const { sandbox } = await made(client, plan, options);
  const info = await sandbox.info();
  if (options.json) return await printJson(entryOf(info));
  await print(options.quiet ? plan.name : `✓ Created sandbox ${clean(plan.name)} in VM ${clean(plan.name)}`);
}

export async function envRun(
  { own: [place], behind }: Words,
  options: ApplyOptions & { detached?: boolean },
): Promise<number> {
  const plan = await planned(place, options);
  const client = await connect();
  const found = await namedSandbox(client, plan.name);
  if (found === undefined) {
    const { sandbox, agent } = await made(client, plan, options);
    await sayWhatWasMade(client, await sandbox.info(), agent);
  } else {
    const [other] = takenProblem(found, plan);
    if (other) throw other;
    await approved(plan, options);
    if (found.metadata[planLabel] !== labelOf(plan.sha256))
      say(
        clean(
          `glovebox: '${plan.name}' is as the env file was when it was made; \`glovebox env rm\` makes way for a new one`,
        ),
      );
  }
  return await run({ own: [plan.name], behind }, options.detached ? { detached: true } : {});
}

/** Resolves with the exit code; problems are shown here, because in exec they have codes of their own. */
export async function envExec(
  { own: [place], behind = [] }: Words,
  { name, ...options }: ExecOptions & { name?: string },
): Promise<number> {
  let reference: string;
  try {
    if (behind.length === 0)
      throw usageError('env exec: no command', 'Write e.g. `glovebox env exec -- ls -l`.');
    reference = await madeOf(await connect(), place, name);
  } catch (error) {
    const { message, hint } = error as SandboxError;
    sayError(message, hint);
    return exitCodeOfExec(error);
  }
  return await exec(reference, behind, options);
}

export async function envRm(
  place: string | undefined,
  { name, force }: { name?: string; force?: boolean },
): Promise<void> {
  const client = await connect();
  await rm([await madeOf(client, place, name)], force === undefined ? {} : { force });
}

async function planned(place: string | undefined, options: EnvOptions): Promise<EnvPlan> {
  const { name } = options;
  if (name !== undefined) checkName(name);
  const file = fileOf(place);
  const given = {
    ...(options.envArgsFile ?? []).reduce(withFile, {}),
    ...pairsOf('--env-arg', options.envArg ?? []),
  };
  const document = await readDocument(file, { link: false });
  if (document === undefined)
    throw new CliError(`there is no env file ${file}`, {
      hint: `Name one, or a folder that has ${fileName}; see docs/guide/agents-at-home.md for what it says.`,
    });
  const baseFile = join(homedir(), `.${fileName}`);
  // The user's own may be a link, as those who keep such files elsewhere have it.
  const base = baseFile === file ? undefined : await readDocument(baseFile, { link: true });
  return planOf({
    ...{ document, given },
    ...(base === undefined ? {} : { base }),
    ...(name === undefined ? {} : { name }),
    settle: (workspaces) => (serverIsHere() ? onThisMachine(workspaces) : [...workspaces]),
  });
}

/** With a true folder: what was approved of under one path is known under another that leads there. */
function fileOf(place: string | undefined): string {
  const named = resolve(place ?? '.');
  const isFolder = statSync(named, { throwIfNoEntry: false })?.isDirectory() ?? false;
  const file = isFolder ? join(named, fileName) : named;
  try {
    return join(realpathSync(dirname(file)), basename(file));
  } catch {
    return file;
  }
}

/** Lines NAME=VALUE; empty ones and those that begin with # say nothing. */
function withFile(before: Record<string, string>, path: string): Record<string, string> {
  let text: string;
  try {
    if (statSync(path).size > fileBytesMax)
      throw usageError(`--env-args-file: ${path} is longer than ${fileBytesMax} bytes`);
    text = readFileSync(path, 'utf8');
  } catch (cause) {
    if (cause instanceof CliError) throw cause;
    throw new CliError(`--env-args-file: ${(cause as Error).message}`, {
      ...{ cause, hint: 'It has a line NAME=VALUE for each argument.' },
    });
  }
  const lines = text.split(/\r?\n/).filter((line) => line.trim() !== '' && !line.startsWith('#'));
  return { ...before, ...pairsOf(`--env-args-file ${path}`, lines) };
}

/** Makes it, once the plan has been approved. */
async function made(client: SandboxClient, plan: EnvPlan, options: ApplyOptions) {
  const [problem] = await problemsOf(client, plan);
  if (problem) throw problem;
  await approved(plan, options);
  const workspaces = plan.workspaces.map(({ outside: _, ...it }) => it);
  const agent = await agentNamed(client, plan.agent, workspaces[0]?.path);
  if (agent === undefined) throw await unknownWord(client, plan.agent);
  const flags: CreationFlags = {
    env: Object.entries(plan.env).map(([key, value]) => `${key}=${value}`),
    publish: plan.ports.map(({ sandbox, host }) =>
      host === undefined ? `${sandbox}` : `${host}:${sandbox}`,
    ),
    label: [`${fileLabel}=${labelOf(plan.file)}`, `${planLabel}=${labelOf(plan.sha256)}`],
    ...(plan.cpus === undefined ? {} : { cpus: plan.cpus }),
    ...(plan.memory === undefined ? {} : { memory: plan.memory }),
  };
  const creation = await creationOf({ name: plan.name, agent, workspaces, command: [] }, flags);
  const setup = [...plan.initialize.map(stepOf), ...(creation.options.setup ?? [])];
  try {
    return { sandbox: await make(client, { ...creation, options: { ...creation.options, setup } }), agent };
  } catch (error) {
    if (error instanceof SandboxError && error.code === 'conflict' && /\bname\b/.test(error.message))
      throw existsError(plan);
    throw error;
  }
}

function stepOf({ command, workdir, timeoutSeconds }: EnvPlan['initialize'][number]): SetupStep {
  return {
    run: `cd -- '${workdir.replaceAll("'", "'\\''")}' || exit\n${command}`,
    label: `initialize: ${command.trimStart().split('\n')[0]}`.slice(0, 120),
    user: 'agent',
    ...(timeoutSeconds === undefined ? {} : { timeoutSeconds }),
  };
}

/** Why it could not be made. */
async function problemsOf(client: SandboxClient, plan: EnvPlan): Promise<(Failure | CliError)[]> {
  const known = (await agentsOf(client)).some((it) => it.name === plan.agent);
  const [main] = plan.workspaces;
  const own = main && serverIsHere() ? (await projectAgents(main.path)).agents : [];
  const isKnown = known || own.some((it) => it.definition.name === plan.agent);
  const needed = plan.secrets.length > 0 || Object.keys(plan.bindings).length > 0;
  return [
    ...(isKnown ? [] : [await unknownWord(client, plan.agent)]),
    ...secretProblems(plan, needed ? await keptSecrets(client) : []),
  ];
}

/** Those that every sandbox may use. */
async function keptSecrets(client: SandboxClient): Promise<KeptSecret[]> {
  const all = await client.secrets.list();
  return all
    .filter((it) => it.sandboxId === undefined)
    .map(({ name, bindings }) => ({ name, hosts: bindings.flatMap((it) => it.hosts) }));
}

const approvalsFile = () => join(homeFolder(), 'approved-env-files.json');

function contentOf(plan: EnvPlan): Content {
  return { what: 'env file', path: plan.file, sha256: plan.sha256, shown: trackedLines(plan) };
}

async function approved(plan: EnvPlan, { autoApprove }: ApplyOptions): Promise<void> {
  const ask = async (standing: Standing) => {
    say(planText(plan, standing, process.stderr));
    return await agreed('Approve this plan?', 'the plan was not approved');
  };
  await approve(contentOf(plan), {
    ...{ file: approvalsFile(), now: () => new Date() },
    unasked:
      'Look at it with `glovebox env plan`, then run this once at a terminal to approve it, or add --auto-approve.',
    ...(autoApprove ? { ask: async () => true } : atTerminal() ? { ask } : {}),
  });
}

/** Of one that has changed, what is new and what is gone is marked. */
function planText(plan: EnvPlan, standing: Standing, stream: NodeJS.WriteStream): string {
  const changed = standing.standing === 'changed';
  const before = changed ? standing.before : undefined;
  const tracked = trackedLines(plan);
  const lines = planLines(plan).map(([heading, text], index) => {
    const isNew = before !== undefined && !before.includes(tracked[index] as string);
    // Values are not shown; that one has changed is.
    const value = isNew && heading === 'env' ? ' (with this value)' : '';
    const shown = `${heading.padEnd(13)}${cleanLine(text)}${value}`;
    return before === undefined ? `  ${shown}` : isNew ? paint('green', `+ ${shown}`, stream) : `  ${shown}`;
  });
  const gone = (before ?? [])
    .filter((it) => !tracked.includes(it))
    .map((it) => {
      const [, heading = '', text = ''] = /^([^:]*): (.*)$/s.exec(it) ?? [];
      const shown =
        heading === 'env' ? text.replace(/ \(sha256 [0-9a-f]+\)$/, ' (with the value before)') : text;
      return paint('red', `- ${heading.padEnd(13)}${cleanLine(shown)}`, stream);
    });
  const said =
    standing.standing === 'approved'
      ? 'approved'
      : changed
        ? 'has CHANGED since it was approved'
        : 'not approved yet';
  return [`${clean(plan.file)}: ${said}`, ...lines, ...gone].join('\n');
}

/** As much of a hash as a label holds. */
function labelOf(text: string): string {
  return createHash('sha256').update(text).digest('hex').slice(0, 40);
}

const isOf = (info: SandboxInfo, file: string) => info.metadata[fileLabel] === labelOf(file);

async function namedSandbox(client: SandboxClient, name: string): Promise<SandboxInfo | undefined> {
  return (await client.list()).find(
    (it) => it.name === name && it.state !== 'Terminated' && it.state !== 'Failed',
  );
}

/** A file chooses a name freely, also that of a sandbox which is none of its business. */
function takenProblem(found: SandboxInfo, { name, file }: EnvPlan): CliError[] {
  return isOf(found, file)
    ? []
    : [
        new CliError(`the sandbox '${name}' was not made of ${file}`, {
          hint: 'Give --name for another one.',
        }),
      ];
}

function existsError({ name }: EnvPlan): CliError {
  return new CliError(`the sandbox '${name}' exists already`, {
    hint: 'Enter it with `glovebox env run`, or remove it first with `glovebox env rm`.',
  });
}

/** The name of what was made of a file. The file itself is not read: what it says by now is not agreed to. */
async function madeOf(
  client: SandboxClient,
  place: string | undefined,
  name: string | undefined,
): Promise<string> {
  const file = fileOf(place);
  const all = (await client.list({ metadata: { [fileLabel]: labelOf(file) } })).filter(
    (it) => it.state !== 'Terminated',
  );
  const names = all.map((it) => it.name ?? it.id);
  const fitting = name === undefined ? names : names.filter((it) => it === name);
  if (fitting.length > 1)
    throw usageError(
      `several sandboxes were made of ${file}: ${names.sort().join(', ')}`,
      'Choose one with --name.',
    );
  const [only] = fitting;
  if (only !== undefined) return only;
  throw new CliError(
    name === undefined ? `no sandbox was made of ${file}` : `no sandbox '${name}' was made of ${file}`,
    { hint: 'Make it with `glovebox env create`, or look at `glovebox ls`.' },
  );
}
