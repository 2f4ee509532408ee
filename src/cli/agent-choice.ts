// The first word of `run` and `create`: an agent of the server's registry or the project's own, or else an image.
import { type AgentInfo, type SandboxClient, SandboxError, type SetupStep } from '../../sdk/src/index.ts';
import { CliError } from './exit-codes.ts';
import { clean } from './output.ts';

export interface AgentChoice {
  name: string;
  /** What the server is asked for: a name of its registry, or the project's definition. */
  asked: string | object;
  install: SetupStep[];
  info: Pick<AgentInfo, 'command' | 'interactive' | 'hosts' | 'credentials' | 'available'>;
}

/** The agent of this name, or undefined when there is none; then the word is an image. */
export async function agentNamed(client: SandboxClient, name: string): Promise<AgentChoice | undefined> {
  if (!/^[a-z0-9][a-z0-9-]{0,39}$/.test(name)) return undefined;
  const info = (await agentsOf(client)).find((it) => it.name === name);
  return info && { name, asked: name, install: info.install, info };
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
