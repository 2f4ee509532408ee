// The first word of `run` and `create`: an agent of the server's registry or the project's own, or else an image.
import { join } from 'node:path';
import { type AgentInfo, type SandboxClient, SandboxError, type SetupStep } from '../../sdk/src/index.ts';
import { approvedAgent, type ProjectAgent, projectAgents, summaryOf } from '../agents/project-agents.ts';
import { agentNamePattern } from '../contract/agents.ts';
import { homeFolder, serverIsHere } from './connect.ts';
import { CliError } from './exit-codes.ts';
import { clean, cleanLine, say } from './output.ts';
import { agreed, atTerminal } from './terminal.ts';

export interface AgentChoice {
  name: string;
  /** What the server is asked for: a name of its registry, or the project's definition. */
  asked: string | object;
  install: SetupStep[];
  info: Pick<AgentInfo, 'command' | 'interactive' | 'hosts' | 'credentials' | 'available'>;
}

/** The agent of this name, or undefined when there is none; then the word is an image. Those of the project are asked about before they are used. */
export async function agentNamed(
  client: SandboxClient,
  name: string,
  project: string | undefined,
): Promise<AgentChoice | undefined> {
  if (!agentNamePattern.test(name)) return undefined;
  const info = (await agentsOf(client)).find((it) => it.name === name);
  if (info) return { name, asked: name, install: info.install, info };
  if (project === undefined || !serverIsHere()) return undefined;
  return await projectAgent(name, project);
}

async function projectAgent(name: string, folder: string): Promise<AgentChoice | undefined> {
  const { agents, problems } = await projectAgents(folder);
  const found = agents.find((it) => it.definition.name === name);
  if (found === undefined) {
    const broken = problems.find((it) => it.message.includes(`/${name}.toml`));
    if (broken) throw broken;
    return undefined;
  }
  const definition = await approvedAgent(found, {
    ...{ file: join(homeFolder(), 'approved-agents.json'), now: () => new Date() },
    ...(atTerminal() ? { ask: askAboutAgent } : {}),
  });
  const { install } = definition;
  // Whatever is stored is found by the server; nothing is known of it here.
  const info = { ...definition, available: [] };
  return { name, asked: definition, install: install as SetupStep[], info: info as AgentChoice['info'] };
}

async function askAboutAgent({ definition, path }: ProjectAgent, why: 'new' | 'changed'): Promise<boolean> {
  say(
    clean(`The agent '${definition.name}' comes from ${path}${why === 'new' ? '' : ', which has changed'}:`),
  );
  for (const line of summaryOf(definition)) say(`  ${cleanLine(line)}`);
  return await agreed('Let it run in sandboxes?', 'the agent was not approved');
}

/** None where the server is one of OpenSandbox's own, which knows no agents. */
export async function agentsOf(client: SandboxClient): Promise<AgentInfo[]> {
  return await client.agents.list().catch((error: unknown) => {
    if (error instanceof SandboxError && error.code === 'not-found') return [];
    throw error;
  });
}

export async function unknownWord(client: SandboxClient, word: string, cause?: unknown): Promise<CliError> {
  const names = (await agentsOf(client)).map((it) => it.name);
  return new CliError(
    [
      `sandbox '${word}' does not exist and '${word}' is not a known agent`,
      ...(names.length === 0 ? [] : [`Available agents: ${clean(names.sort().join(', '))}`]),
    ].join('\n'),
    { cause, hint: 'It may be an image, too: see `glovebox image ls` and `glovebox template ls`.' },
  );
}
