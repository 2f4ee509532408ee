// The part of the agent that the first request loads. In the bundle it is a file of its own, so that an idle agent does not even read it.
// Shares no classes with main.ts there: each file has its own copy of what both use.
import type { AgentBoot } from '../contract/guest.ts';
import { BunPlatform } from './platform/bun.ts';
import type { Receipts } from './receipts.ts';
import { Agent } from './serve.ts';

export async function begin(options: { boot: AgentBoot; socketPath: string }): Promise<Agent> {
  const platform = new BunPlatform({ walls: options.boot.host === undefined });
  platform.keepRights();
  platform.reapOrphans();
  return new Agent({ platform, ...options, ...(await receiptsOf(options.boot)) });
}

/** Loaded where they are wanted, for hashing costs memory. */
async function receiptsOf({ host }: AgentBoot): Promise<{ receipts?: Receipts }> {
  if (host?.receipts === undefined) return {};
  const { Receipts } = await import('./receipts.ts');
  return { receipts: Receipts.open(host.receipts) };
}
