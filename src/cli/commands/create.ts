// glovebox create: makes a sandbox, for an agent or from an image, with folders of the host in it.
import { type SandboxClient, SandboxError, type Workspace } from '../../../sdk/src/index.ts';
import { type AgentChoice, agentNamed, agentsOf } from '../agent-choice.ts';
import { connect, serverIsHere } from '../connect.ts';
import { type CreationFlags, creationOf, make, type Wanted } from '../creation.ts';
import { entryOf } from '../entry.ts';
import { CliError } from '../exit-codes.ts';
import { checkName, defaultName, freeName } from '../names.ts';
import { clean, print, printJson } from '../output.ts';
import type { Words } from '../words.ts';
import { onThisMachine, workspacesOf } from '../workspace-path.ts';

export interface CreateOptions extends CreationFlags {
  quiet?: boolean;
  json?: boolean;
}

/** How often the free name that was found may turn out to be taken meanwhile. */
const racesMax = 20;

export async function create({ own, behind = [] }: Words, options: CreateOptions): Promise<void> {
  const [word, ...paths] = own;
  if (options.name !== undefined) checkName(options.name);
  const wanted = workspacesOf(paths, options, process.cwd());
  // What is wrong with the line is said before a daemon is started.
  await creationOf({ name: 'sandbox', workspaces: [], command: [] }, { ...options, install: false });
  const client = await connect();
  const workspaces = serverIsHere() ? onThisMachine(wanted) : wanted;
  const project = workspaces[0]?.path;
  const agent = word === undefined ? undefined : await agentNamed(client, word, project);
  const base = {
    ...(agent ? { agent } : word === undefined ? {} : { image: word }),
    ...{ workspaces, command: behind },
  };
  const sandbox = await created(client, word, base, options);
  const info = await sandbox.info();
  if (options.json) return await printJson(entryOf(info));
  const name = info.name ?? info.id;
  await print(options.quiet ? name : `✓ Created sandbox ${clean(name)} in VM ${clean(name)}`);
}

async function created(
  client: SandboxClient,
  word: string | undefined,
  base: Omit<Wanted, 'name'>,
  options: CreateOptions,
) {
  const attempt = async (name: string) => await make(client, await creationOf({ ...base, name }, options));
  if (options.name !== undefined)
    return await withAgentsTold(client, word, base.agent, attempt(options.name));
  const usual = usualName(word, base.workspaces, options);
  // The same agent in the same folder is the same sandbox: a second one has to be wanted.
  if (base.agent) return await attempt(usual);
  for (let race = 1; ; race++) {
    const name = freeName(usual, await takenNames(client));
    try {
      return await withAgentsTold(client, word, base.agent, attempt(name));
    } catch (error) {
      if (race === racesMax || !isNameTaken(error)) throw error;
    }
  }
}

export function usualName(
  word: string | undefined,
  workspaces: readonly Workspace[],
  options: { template?: string; snapshot?: string; runtime?: string },
): string {
  const otherwise = options.snapshot === undefined ? 'host' : 'snapshot';
  return defaultName(word ?? options.template ?? otherwise, workspaces[0]?.path ?? process.cwd());
}

export async function takenNames(client: SandboxClient): Promise<Set<string>> {
  return new Set((await client.list()).flatMap((it) => it.name ?? []));
}

export function isNameTaken(error: unknown): boolean {
  return (
    error instanceof SandboxError && error.code === 'conflict' && /\bname\b.*\btaken\b/.test(error.message)
  );
}

/** Who mistyped an agent's name is told of an image that does not exist. */
async function withAgentsTold<T>(
  client: SandboxClient,
  word: string | undefined,
  agent: AgentChoice | undefined,
  making: Promise<T>,
): Promise<T> {
  try {
    return await making;
  } catch (error) {
    const unknown = error instanceof SandboxError && error.code === 'not-found';
    if (agent || word === undefined || !unknown) throw error;
    const names = (await agentsOf(client)).map((it) => it.name).sort();
    if (names.length === 0) throw error;
    throw new CliError(
      `${error.message}\n'${word}' is not a known agent either: there are ${names.join(', ')}`,
      {
        ...{ cause: error, ...(error.hint === undefined ? {} : { hint: error.hint }) },
      },
    );
  }
}
