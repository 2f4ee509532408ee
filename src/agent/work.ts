// The part of the agent that the first request loads. In the bundle it is a file of its own, so that an idle agent does not even read it.
// Shares no classes with main.ts there: each file has its own copy of what both use.
import type { AgentBoot } from '../contract/guest.ts';
import { BunPlatform } from './platform/bun.ts';
import { Agent } from './serve.ts';

export function begin(options: { boot: AgentBoot; socketPath: string }): Agent {
  const platform = new BunPlatform();
  platform.reapOrphans();
  return new Agent({ platform, ...options });
}
