// Entries of the network log as Docker Sandboxes shows them: lines, JSON entries, and summaries by host. What scripts read there they find here,
// at the same place; what we know besides stands behind it.
import type { LogEntry } from '../../sdk/src/index.ts';
import { cleanLine, paint } from './output.ts';

const usualPorts: Partial<Record<LogEntry['protocol'], number>> = {
  ...{ http: 80, ws: 80, https: 443, wss: 443, dns: 53 },
};

export function urlOf({ protocol, host, port, path = '' }: LogEntry): string {
  const name = host.includes(':') ? `[${host}]` : host;
  const place = port === usualPorts[protocol] ? name : `${name}:${port}`;
  return cleanLine(`${protocol}://${place}${path}`).replace(/\s/g, '%20');
}

/** A word also for what is no HTTP request, so that all lines have the same columns. */
function methodOf({ method, protocol }: LogEntry): string {
  return cleanLine(method ?? (protocol === 'dns' ? 'RESOLVE' : 'CONNECT')).replace(/\s/g, '_');
}

const actionOf = ({ decision }: LogEntry) => (decision === 'allow' ? 'allowed' : 'denied');
const sandboxOf = ({ sandboxName, sandbox }: LogEntry) => sandboxName ?? sandbox;

/** `2026-01-29T10:15:23Z sandbox=web request GET https://example.com/ allowed`, and then `name=value` for what else is known. */
export function attemptLine(entry: LogEntry): string {
  const { rule, reason, status, bytesOut, bytesIn, durationMs, process, error, detail, secrets, alarm } =
    entry;
  const action = paint(entry.decision === 'allow' ? 'green' : 'red', actionOf(entry));
  const details: [string, string | number | undefined][] = [
    ['rule', rule?.text],
    ['reason', reason],
    ['status', status],
    ['error', error],
    ['detail', detail],
    [
      'bytes',
      bytesOut === undefined && bytesIn === undefined ? undefined : `${bytesOut ?? 0}/${bytesIn ?? 0}`,
    ],
    ['ms', durationMs === undefined ? undefined : Math.round(durationMs)],
    ['process', process && `${process.command}[${process.pid}]`],
    ['secrets', secrets?.join(',') || undefined],
    ['alarm', alarm],
    ['dropped', entry.dropped],
  ];
  return [
    entry.at.toISOString().replace(/\.\d+Z$/, 'Z'),
    `sandbox=${word(sandboxOf(entry))}`,
    ...['request', methodOf(entry), urlOf(entry), action],
    ...details.flatMap(([name, value]) => (value === undefined ? [] : [`${name}=${word(String(value))}`])),
  ].join(' ');
}

/** One word: what has spaces or quotes is quoted. */
export function word(text: string): string {
  const clean = cleanLine(text);
  return /[\s"]/.test(clean) || clean === '' ? JSON.stringify(clean) : clean;
}

export function attemptJson(entry: LogEntry): Record<string, unknown> {
  const { at, sandbox, sandboxName: _, ...more } = entry;
  return {
    timestamp: at,
    sandbox: sandboxOf(entry),
    ...{ type: 'request', method: methodOf(entry), url: urlOf(entry), action: actionOf(entry) },
    ...{ ...more, method: methodOf(entry), sandboxId: sandbox },
  };
}

/** All attempts of a sandbox at one host that came the same way and were decided for the same reason. */
export interface Summary {
  sandbox: string;
  host: string;
  port: number;
  type: 'network';
  /** In Docker's words, `forward` and so on. */
  proxy: LogEntry['kind'];
  rule: string;
  reason: string;
  first: Date;
  last: Date;
  count: number;
}

/** The latest first. */
export function summaries(entries: readonly LogEntry[], decision: LogEntry['decision']): Summary[] {
  const found = new Map<string, Summary>();
  for (const entry of entries) {
    if (entry.decision !== decision) continue;
    const summary: Summary = {
      ...{
        sandbox: sandboxOf(entry),
        host: entry.host,
        port: entry.port,
        type: 'network',
        proxy: entry.kind,
      },
      rule: entry.rule?.text ?? '',
      reason: entry.error ?? entry.reason,
      ...{ first: entry.at, last: entry.at, count: 1 + (entry.dropped ?? 0) },
    };
    const { sandbox, host, proxy, rule, reason } = summary;
    const key = JSON.stringify([sandbox, placeOf(summary), host, proxy, rule, reason]);
    const known = found.get(key);
    if (known === undefined) found.set(key, summary);
    else {
      known.count += summary.count;
      if (summary.last > known.last) known.last = summary.last;
      if (summary.first < known.first) known.first = summary.first;
    }
  }
  return [...found.values()].sort((a, b) => b.last.getTime() - a.last.getTime());
}

/** The host; with its port where that is not one of the web's. */
export function placeOf({ host, port }: { host: string; port: number }): string {
  if (port === 80 || port === 443) return host;
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}
