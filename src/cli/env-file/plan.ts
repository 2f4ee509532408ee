// What an env file would make, as data: the user's base under the project's file, every path and name decided, and the lines that a person reads before
// saying yes. Nothing is done here.
import { createHash } from 'node:crypto';
import { basename, dirname, relative } from 'node:path';
import type { Workspace } from '../../../sdk/src/index.ts';
import { sandboxNameProblem } from '../../contract/admin.ts';
import { Failure } from '../../lib/failure.ts';
import { defaultName } from '../names.ts';
import type { YamlDocument } from './document.ts';
import { failureAt, type Layer, layersOf } from './layer.ts';

export interface EnvPlan {
  file: string;
  /** The user's own, that the file is laid over. */
  base?: string;
  args: Record<string, string>;
  name: string;
  agent: string;
  /** The main one first, all of this machine; `outside` the folder that the file lies in. */
  workspaces: (Workspace & { outside: boolean })[];
  env: Record<string, string>;
  ports: { sandbox: number; host?: number }[];
  /** Names of secrets that have to be kept here. */
  secrets: string[];
  /** Where secrets are expected to go, by name. */
  bindings: Record<string, string[]>;
  cpus?: string;
  memory?: string;
  /** Run in the sandbox, once, in this order. */
  initialize: { command: string; workdir: string; timeoutSeconds?: number }[];
  /** Of all of this and of the bytes of the files. */
  sha256: string;
}

export interface PlanInputs {
  document: YamlDocument;
  base?: YamlDocument;
  given: Readonly<Record<string, string>>;
  name?: string;
  /** True paths, where they are of this machine. Throws for what is no folder. */
  settle: (workspaces: readonly Workspace[]) => Workspace[];
}

/** Failure('invalid') begins with `PATH:LINE`. */
export function planOf({ document, base, given, name, settle }: PlanInputs): EnvPlan {
  const documents = base === undefined ? [document] : [base, document];
  const projectDir = dirname(document.path);
  const { layers, args } = layersOf(documents, { given, projectDir });
  if (base !== undefined && layers[0]?.name !== undefined)
    throw failureAt(base, ['name'], 'is for the file of a project: all would have the same name');
  const merged = layers.reduce(over);
  const { agent, workspace, additionalWorkspaces, sandboxOptions, lifecycle } = merged;
  if (agent === undefined) throw failureAt(document, ['agent'], 'is missing');
  const workspaces = settle([
    ...(workspace === undefined
      ? []
      : [
          {
            path: workspace.path,
            readOnly: false,
            mode: workspace.clone ? ('clone' as const) : ('mount' as const),
          },
        ]),
    ...additionalWorkspaces.map(({ path, readOnly = false }) => ({ path, readOnly, mode: 'mount' as const })),
  ]).map((it) => ({ ...it, outside: !isIn(it.path, projectDir) }));
  const main = workspaces[0]?.path;
  const plan = {
    file: document.path,
    ...(base === undefined ? {} : { base: base.path }),
    ...{ args, agent, workspaces, env: merged.env },
    name: name ?? merged.name ?? nameFor(workspace === undefined ? projectDir : (main as string)),
    ports: merged.ports.map(({ sandbox, host }) => ({ sandbox, ...(host === undefined ? {} : { host }) })),
    secrets: Object.keys(merged.secrets),
    bindings: Object.fromEntries(
      Object.entries(merged.bindings).map(([service, { apiKey, oauth }]) => [
        service,
        [...(apiKey?.domains ?? []), ...(oauth?.domains ?? [])],
      ]),
    ),
    ...(sandboxOptions.cpus === undefined || Number(sandboxOptions.cpus) === 0
      ? {}
      : { cpus: sandboxOptions.cpus }),
    ...(sandboxOptions.memory === undefined ? {} : { memory: sandboxOptions.memory }),
    initialize: lifecycle.initialize.map(({ command, workdir, timeout }) => ({
      command,
      workdir: workdirOf(workdir, main),
      ...(timeout === undefined ? {} : { timeoutSeconds: timeout }),
    })),
  };
  const sha256 = createHash('sha256')
    .update(JSON.stringify([plan, documents.map((it) => it.sha256)]))
    .digest('hex');
  return { ...plan, sha256 };
}

/** One value of the upper file stands for that of the lower; tables are joined, and lists put behind each other. */
function over(lower: Layer, upper: Layer): Layer {
  return {
    ...{ ...lower, ...upper },
    additionalWorkspaces: [...lower.additionalWorkspaces, ...upper.additionalWorkspaces],
    env: { ...lower.env, ...upper.env },
    sandboxOptions: { ...lower.sandboxOptions, ...upper.sandboxOptions },
    secrets: { ...lower.secrets, ...upper.secrets },
    bindings: { ...lower.bindings, ...upper.bindings },
    ports: [...lower.ports, ...upper.ports],
    lifecycle: { initialize: [...lower.lifecycle.initialize, ...upper.lifecycle.initialize] },
  };
}

function nameFor(folder: string): string {
  const name = defaultName('', folder);
  if (sandboxNameProblem(name) === undefined) return name;
  throw new Failure('invalid', `the folder '${basename(folder)}' gives no name for a sandbox`, {
    hint: 'Write a name into the env file, or give --name.',
  });
}

/** In the sandbox the folders have the paths that they have here. */
function workdirOf(workdir: string | undefined, main: string | undefined): string {
  const from = main ?? '/';
  return workdir === undefined
    ? from
    : workdir.startsWith('/')
      ? workdir
      : `${from.replace(/\/$/, '')}/${workdir}`;
}

function isIn(path: string, folder: string): boolean {
  const way = relative(folder, path);
  return way === '' || !(way === '..' || way.startsWith('../'));
}

/** What is kept of secrets, as far as a plan is about it. */
export interface KeptSecret {
  name: string;
  hosts: string[];
}

/** What is missing of what the plan needs: secrets that are not kept, or that do not go where the file expects them to. */
export function secretProblems(plan: EnvPlan, kept: readonly KeptSecret[]): Failure[] {
  const missing = plan.secrets.filter((name) => !kept.some((it) => it.name === name));
  return [
    ...missing.map(
      (name) =>
        new Failure('not-found', `${plan.file}: secrets.${name}: no secret of this name is kept here`, {
          hint: `Keep it with \`glovebox secret set ${name}\`; see \`glovebox secret ls\`.`,
        }),
    ),
    ...kept.flatMap(({ name, hosts }) =>
      (Object.hasOwn(plan.bindings, name) ? (plan.bindings[name] as string[]) : [])
        .filter((domain) => !hosts.some((host) => covers(host, domain.toLowerCase())))
        .map(
          (domain) =>
            new Failure(
              'permission',
              `${plan.file}: bindings.${name}: the secret does not go to ${domain}, only to ${hosts.join(', ')}`,
              { hint: 'A project does not widen where your keys go; `glovebox secret set-custom` does.' },
            ),
        ),
    ),
  ];
}

function covers(host: string, domain: string): boolean {
  return (
    host === domain || (host.startsWith('*.') && !domain.startsWith('*') && domain.endsWith(host.slice(1)))
  );
}

/** Whether the sandbox could write to the file that describes it. */
function isWritable({ file, workspaces }: EnvPlan): boolean {
  return workspaces.some((it) => !it.readOnly && it.mode === 'mount' && isIn(file, it.path));
}

/** What a person has to know before saying yes: a heading and a text for each thing. Text of the project's: to be made safe for a terminal. */
export function planLines(plan: EnvPlan): [heading: string, text: string][] {
  const { args, workspaces, env, ports, cpus, memory } = plan;
  const expected = (name: string) => plan.bindings[name]?.join(', ');
  const line = (heading: string, texts: readonly string[]) =>
    texts.map((it): [string, string] => [heading, it]);
  return [
    ...line('base', plan.base === undefined ? [] : [plan.base]),
    ...line(
      'argument',
      Object.entries(args).map(([name, value]) => `${name} = ${value}`),
    ),
    ...line('sandbox', [plan.name]),
    ...line('agent', [plan.agent]),
    ...line(
      'workspace',
      workspaces.map(
        (it) =>
          `${it.path} (${it.mode}, ${it.readOnly ? 'read-only' : 'read-write'})${it.outside ? ' OUTSIDE the folder of the env file' : ''}`,
      ),
    ),
    ...line('env', Object.keys(env)),
    ...line(
      'port',
      ports.map(({ sandbox, host }) => `127.0.0.1:${host ?? '(any)'} of this machine leads to ${sandbox}`),
    ),
    ...line(
      'secret',
      plan.secrets.map(
        (name) => `${name}, kept on this machine${expected(name) ? `, for ${expected(name)}` : ''}`,
      ),
    ),
    ...line(
      'binding',
      Object.keys(plan.bindings)
        .filter((name) => !plan.secrets.includes(name))
        .map((name) => `${name}, if it is kept on this machine, for ${expected(name)}`),
    ),
    ...line('limit', [
      ...(cpus === undefined ? [] : [`${cpus} cpus`]),
      ...(memory === undefined ? [] : [`${memory} of memory`]),
    ]),
    ...plan.initialize.flatMap(({ command, workdir }) => [
      ...line('runs inside', [`once, in ${workdir}:`]),
      ...line(
        '',
        command
          .trimEnd()
          .split('\n')
          .map((it) => `  ${it}`),
      ),
    ]),
    ...line(
      'note',
      isWritable(plan) ? ['the sandbox may write the env file; what it changes is asked about again'] : [],
    ),
  ];
}

/** The same, to compare with later: values that are not shown are told apart by their hashes. */
export function trackedLines(plan: EnvPlan): string[] {
  return planLines(plan).map(([heading, text]) =>
    heading === 'env'
      ? `env: ${text} (sha256 ${createHash('sha256')
          .update(plan.env[text] as string)
          .digest('hex')
          .slice(0, 12)})`
      : `${heading}: ${text}`,
  );
}
