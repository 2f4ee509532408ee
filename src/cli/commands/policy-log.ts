// glovebox policy log: the network log by host, in `sbx`'s two tables.
import { placeOf, type Summary, summaries } from '../attempts.ts';
import { connect } from '../connect.ts';
import { cleanLine, print, printJson, say, table } from '../output.ts';
import { limitOf, logEntriesMax } from './network.ts';

export interface PolicyLogOptions {
  limit?: string;
  quiet?: boolean;
  json?: boolean;
}

export async function log(sandbox: string | undefined, options: PolicyLogOptions): Promise<void> {
  const limit = options.limit === undefined ? logEntriesMax : limitOf(options.limit);
  const { network } = await connect();
  const entries = await network.log({ ...(sandbox === undefined ? {} : { sandbox }), limit: logEntriesMax });
  const blocked = summaries(entries, 'deny').slice(0, limit);
  const allowed = summaries(entries, 'allow').slice(0, limit);
  if (options.json) {
    return await printJson({
      blocked_hosts: blocked.map(summaryJson),
      allowed_hosts: allowed.map(summaryJson),
    });
  }
  if (options.quiet) {
    const hosts = new Set([...blocked, ...allowed].map((it) => cleanLine(placeOf(it))));
    return hosts.size > 0 ? await print([...hosts].join('\n')) : undefined;
  }
  const sections = [
    ...(blocked.length > 0 ? [`Blocked requests:\n${summaryRows(blocked)}`] : []),
    ...(allowed.length > 0 ? [`Allowed requests:\n${summaryRows(allowed)}`] : []),
  ];
  if (sections.length > 0) await print(sections.join('\n\n'));
  else say('Nothing has been logged yet.');
}

function summaryRows(all: readonly Summary[]): string {
  const rows = all.map((it) => [
    ...[it.sandbox, it.type, placeOf(it), it.proxy, it.rule || '-', it.reason],
    ...[shortTime(it.last), String(it.count)],
  ]);
  return table(['SANDBOX', 'TYPE', 'HOST', 'PROXY', 'RULE', 'REASON', 'LAST SEEN', 'COUNT'], rows);
}

/** `10:15:25 29-Jan`, in the time of this place. */
function shortTime(at: Date): string {
  const two = (number: number) => String(number).padStart(2, '0');
  const time = [at.getHours(), at.getMinutes(), at.getSeconds()].map(two).join(':');
  return `${time} ${two(at.getDate())}-${at.toLocaleString('en-US', { month: 'short' })}`;
}

function summaryJson(it: Summary): Record<string, unknown> {
  return {
    ...{ host: it.host, vm_name: it.sandbox, proxy_type: it.proxy, rule: it.rule, reason: it.reason },
    ...{ port: it.port, last_seen: it.last, since: it.first, count_since: it.count },
  };
}
