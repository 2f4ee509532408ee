// glovebox network: the way out of sandboxes in the manner of `docker sandbox network`: one sandbox's proxy configuration, and the log.
import type { ProxyConfig, ProxyConfigChange } from '../../../sdk/src/index.ts';
import { attemptJson, attemptLine, urlOf } from '../attempts.ts';
import { connect } from '../connect.ts';
import { cleanLine, jsonText, paint, print, printJson, say } from '../output.ts';
import { wholeNumberOf } from '../values.ts';

export interface ProxyOptions {
  policy?: 'allow' | 'deny';
  allowHost?: string[];
  blockHost?: string[];
  bypassHost?: string[];
  allowCidr?: string[];
  blockCidr?: string[];
  bypassCidr?: string[];
  json?: boolean;
}

export async function proxy(reference: string, options: ProxyOptions): Promise<void> {
  const { policy, json, ...lists } = options;
  const change: ProxyConfigChange = {
    ...(policy === undefined ? {} : { policy }),
    ...(lists.allowHost ? { allowHosts: lists.allowHost } : {}),
    ...(lists.blockHost ? { blockHosts: lists.blockHost } : {}),
    ...(lists.bypassHost ? { bypassHosts: lists.bypassHost } : {}),
    ...(lists.allowCidr ? { allowCidrs: lists.allowCidr } : {}),
    ...(lists.blockCidr ? { blockCidrs: lists.blockCidr } : {}),
    ...(lists.bypassCidr ? { bypassCidrs: lists.bypassCidr } : {}),
  };
  const { network } = await (await connect()).connect(reference);
  const config =
    Object.keys(change).length > 0 ? await network.changeProxyConfig(change) : await network.proxyConfig();
  if (json) return await printJson(config);
  if (config.policy === undefined && config.network === undefined) {
    say(
      `${cleanLine(reference)} has no proxy configuration of its own: the rules of \`glovebox policy ls\` hold.`,
    );
    return;
  }
  await print(described(config));
}

function described({ policy, network }: ProxyConfig): string {
  const lists: [string, readonly string[] | undefined][] = [
    ['policy', policy && [policy]],
    ['allowed hosts', network?.allowedDomains],
    ['blocked hosts', network?.blockedDomains],
    ['bypassed hosts', network?.bypassDomains],
    ['allowed networks', network?.allowCIDR],
    ['blocked networks', network?.blockCIDR],
    ['bypassed networks', network?.bypassCIDR],
  ];
  return lists
    .filter(([, items]) => items !== undefined && items.length > 0)
    .map(([name, items]) => `${paint('bold', `${name}:`.padEnd(18))} ${cleanLine((items ?? []).join(', '))}`)
    .join('\n');
}

export interface LogOptions {
  limit?: string;
  quiet?: boolean;
  follow?: boolean;
  json?: boolean;
}

/** What the server gives at most. */
export const logEntriesMax = 100_000;

/** As Docker has it, 0 means all. */
export function limitOf(text: string): number {
  const limit = wholeNumberOf('--limit', text, 0);
  return limit === 0 ? logEntriesMax : Math.min(limit, logEntriesMax);
}

export async function log(sandbox: string | undefined, options: LogOptions): Promise<void> {
  const limit = options.limit === undefined ? undefined : limitOf(options.limit);
  const { network } = await connect();
  const query = {
    ...(sandbox === undefined ? {} : { sandbox }),
    ...(limit === undefined ? {} : { limit }),
  };
  const line = options.quiet ? urlOf : attemptLine;
  if (options.follow) {
    for await (const entry of network.followLog(query))
      await print(options.json ? jsonText(attemptJson(entry)) : line(entry));
    return;
  }
  const entries = await network.log(query);
  if (options.json) return await printJson({ entries: entries.map(attemptJson) });
  if (entries.length > 0) await print(entries.map(line).join('\n'));
  else if (!options.quiet) say('Nothing has been logged yet.');
}
