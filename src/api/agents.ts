// The registry of agents: what sandboxes can be made for.
import type { AgentDefinition, AgentInfo } from '../contract/agents.ts';
import { Failure } from '../lib/failure.ts';
import type { CreateRequest } from '../sandbox/sandbox.ts';
import type { ApiOptions, Handlers } from './handlers.ts';

export interface AgentService {
  list(): AgentInfo[];
  get(name: string): AgentInfo | undefined;
  /**
   * The request with what the agent needs: image, variables, files, steps, rules, user. What the request itself says wins. Failure('not-found') with the
   * names there are, when it is none of them.
   */
  prepare(
    request: CreateRequest,
    agent: string | AgentDefinition,
    signal: AbortSignal,
  ): Promise<CreateRequest>;
}

export function agentHandlers({ agents }: ApiOptions): Handlers<'listAgents' | 'getAgent'> {
  return {
    listAgents: () => ({ status: 200, json: { items: agents.list() } }),
    getAgent: ({ params }) => {
      const agent = agents.get(params.name ?? '');
      if (agent === undefined)
        throw new Failure('not-found', `there is no agent ${JSON.stringify(params.name)}`, {
          hint: `There are ${agents
            .list()
            .map((it) => it.name)
            .join(', ')}.`,
        });
      return { status: 200, json: agent };
    },
  };
}
