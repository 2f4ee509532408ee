// Agents that a project brings along, in `.glovebox/agents/*.toml` of its folder. Agents write to such folders, so each content is used only once a person
// has said yes to it, and what is read cannot be a link to something else.
import { createHash } from 'node:crypto';
import { constants } from 'node:fs';
import { type FileHandle, open, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { AgentDefinition } from '../contract/agents.ts';
import { Failure } from '../lib/failure.ts';
import { agentFileBytesMax, parseAgentFile } from './agent-file.ts';
import { approve } from './approvals.ts';

export const projectFolder = ['.glovebox', 'agents'] as const;
const filesMax = 64;

export interface ProjectAgent {
  definition: AgentDefinition;
  path: string;
  /** Of the very bytes that the definition was read from. */
  sha256: string;
}

/** Those of a folder of the host, and what is wrong with files that give none. */
export async function projectAgents(
  folder: string,
): Promise<{ agents: ProjectAgent[]; problems: Failure[] }> {
  const agents: ProjectAgent[] = [];
  const problems: Failure[] = [];
  await using undo = new AsyncDisposableStack();
  let inside = folder;
  for (const name of projectFolder) {
    const opened = await openThere(join(inside, name), constants.O_DIRECTORY);
    if (opened === undefined) return { agents, problems };
    undo.defer(() => opened.close());
    inside = `/proc/self/fd/${opened.fd}`;
  }
  const names = (await readdir(inside)).filter((name) => name.endsWith('.toml') && !name.startsWith('.'));
  for (const name of names.sort().slice(0, filesMax)) {
    const path = join(folder, ...projectFolder, name);
    try {
      const bytes = await bytesOf(join(inside, name), path);
      if (bytes === undefined) continue;
      agents.push({
        definition: parseAgentFile(bytes.toString('utf8'), path),
        path,
        sha256: createHash('sha256').update(bytes).digest('hex'),
      });
    } catch (error) {
      problems.push(Failure.from(error, `read ${path}`));
    }
  }
  return { agents, problems };
}

/** Undefined for what is not there, and for links and whatever else is not of the kind. */
async function openThere(path: string, flags: number): Promise<FileHandle | undefined> {
  return await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK | flags).catch(
    () => undefined,
  );
}

async function bytesOf(path: string, shown: string): Promise<Buffer | undefined> {
  const file = await openThere(path, 0);
  if (file === undefined) return undefined;
  try {
    if (!(await file.stat()).isFile()) return undefined;
    const buffer = Buffer.alloc(agentFileBytesMax + 1);
    let length = 0;
    while (length < buffer.length) {
      const { bytesRead } = await file.read(buffer, length, buffer.length - length);
      if (bytesRead === 0) return buffer.subarray(0, length);
      length += bytesRead;
    }
    throw new Failure('invalid', `${shown}: has more than ${agentFileBytesMax} bytes`);
  } finally {
    await file.close();
  }
}

export interface ApprovalOptions {
  /** `<home>/approved-agents.json`. */
  file: string;
  /** Shows a person what it would do (`summaryOf`) and asks; absent where nobody can be asked. */
  ask?: (agent: ProjectAgent, why: 'new' | 'changed') => Promise<boolean>;
  now: () => Date;
}

/** The definition, once its content has been approved, now or before. Failure('permission') when it has not. */
export async function approvedAgent(
  agent: ProjectAgent,
  { file, ask, now }: ApprovalOptions,
): Promise<AgentDefinition> {
  const { definition, path, sha256 } = agent;
  await approve(
    { what: `agent ${definition.name}`, path, sha256 },
    {
      ...{ file, now },
      ...(ask === undefined ? {} : { ask: ({ standing }) => ask(agent, standing) }),
      unasked:
        'Run this once at a terminal to approve it, or copy the file to the folder `agents` of your glovebox home.',
    },
  );
  return definition;
}

/** What a person has to know before saying yes, a line for each thing. Text of the project's: to be made safe for a terminal. */
export function summaryOf(definition: AgentDefinition): string[] {
  const { command, install, setup, env, files, hosts, rules, user, image } = definition;
  const steps = (kind: string, list: AgentDefinition['setup']) =>
    list.map((step) => `${kind} (${step.when}, as ${step.user ?? 'root'}): ${step.run}`);
  const listed = (what: string, items: readonly string[]) =>
    items.length === 0 ? [] : [`${what}: ${items.join(', ')}`];
  return [
    `runs: ${command.join(' ')}`,
    ...(image === undefined ? [] : [`image: ${typeof image === 'string' ? image : JSON.stringify(image)}`]),
    ...(user === undefined ? [] : [`as user: ${user}`]),
    ...steps('installs', install),
    ...steps('sets up', setup),
    ...listed('may reach', hosts),
    ...rules.map(
      ({ decision, resources, methods, path }) =>
        `rule: ${[decision, resources.join(','), methods?.join(','), path].filter(Boolean).join(' ')}`,
    ),
    ...listed(
      'writes',
      files.map((it) => it.path),
    ),
    ...listed('sets', Object.keys(env)),
  ];
}
