// glovebox audit: who changed something through the API, and whether that log is still what was written.
import { join } from 'node:path';
import type { AuditEntry, AuditReport } from '../../contract/audit.ts';
import { word } from '../attempts.ts';
import { connect, connectIfRunning, homeFolder, serverIsNamed } from '../connect.ts';
import { exitCodes, usageError } from '../exit-codes.ts';
import { cleanLine, counted, jsonText, paint, print, printJson, say, sayError } from '../output.ts';
import { limitOf } from './network.ts';

export interface LogOptions {
  sandbox?: string;
  follow?: boolean;
  limit?: string;
  json?: boolean;
}

type Entry = Omit<AuditEntry, 'at'> & { at: string | Date };

const logEntriesDefault = 100;

export async function log({ sandbox, follow, json, ...options }: LogOptions): Promise<void> {
  const limit = options.limit === undefined ? logEntriesDefault : limitOf(options.limit);
  const filter = { ...(sandbox === undefined ? {} : { sandbox }), limit };
  if (follow) {
    for await (const entry of (await connect()).audit.followLog(filter))
      await print(json ? jsonText(entry) : entryLine(entry));
    return;
  }
  const client = serverIsNamed() ? await connect() : await connectIfRunning();
  const entries: readonly Entry[] = await (client === undefined
    ? (await here()).log(filter)
    : client.audit.log(filter));
  if (json) return await printJson({ entries });
  if (entries.length > 0) await print(entries.map(entryLine).join('\n'));
  else say('Nothing has been recorded yet.');
}

/** Without a daemon the files say it. */
async function here() {
  const { auditOf } = await import('../../daemon/audit.ts');
  return auditOf(homeFolder());
}

/** `2026-01-29T10:15:23Z #17 by=owner deleteSandbox sandbox=web 204 ms=812 address=127.0.0.1 request=…`. */
export function entryLine(entry: Entry): string {
  const { seq, event, by, operation, sandbox, params, status, durationMs, error, made } = entry;
  const { address, certificate, requestId, mendedBytes, damage, count, dropped, project, key } = entry;
  const details: [string, string | number | undefined][] = [
    ['project', project],
    ['key', key],
    ['made', made],
    ['error', error],
    ['ms', event === 'call' && durationMs !== undefined ? Math.round(durationMs) : undefined],
    ['address', address],
    ['certificate', certificate],
    ['request', requestId],
    ['mended_bytes', mendedBytes],
    ['damage', damage],
    ['count', count],
    ['dropped', dropped],
  ];
  const named = Object.entries({ ...(sandbox === undefined ? {} : { sandbox }), ...params });
  return [
    new Date(entry.at).toISOString().replace(/\.\d+Z$/, 'Z'),
    `#${seq}`,
    ...(by === undefined ? [] : [`by=${word(by)}`]),
    ...(operation === undefined ? [] : [word(operation)]),
    ...named.map(([name, value]) => `${word(name)}=${word(value)}`),
    ...(event === 'call' ? [] : [paint(event === 'refused' ? 'red' : 'yellow', event)]),
    ...(status === undefined
      ? event === 'call'
        ? ['running']
        : []
      : [paint(status < 400 ? 'green' : 'red', String(status))]),
    ...details.flatMap(([name, value]) => (value === undefined ? [] : [`${name}=${word(String(value))}`])),
  ].join(' ');
}

export interface VerifyOptions {
  head?: string;
  json?: boolean;
}

/** Needs no daemon. Exit code 1 when the log is not what was written. */
export async function verify({ head, json }: VerifyOptions): Promise<void> {
  const known = head?.toLowerCase();
  if (known !== undefined && !/^[0-9a-f]{64}$/.test(known))
    throw usageError(
      `--head: '${head}' is no hash`,
      'It has 64 hexadecimal digits; `audit verify` prints it.',
    );
  if (serverIsNamed())
    throw usageError(
      'audit verify reads files of this machine, and GLOVEBOX_URL names a server elsewhere',
      'Run it there, as the user of the daemon.',
    );
  const report = await (await here()).verify(known === undefined ? {} : { known });
  if (!report.ok) process.exitCode = exitCodes.failed;
  if (json) return await printJson(report);
  if (report.lines > 0 || report.ok) await print(described(report));
  const { problem } = report;
  if (problem === undefined) return;
  const place = join(homeFolder(), 'audit', problem.file);
  sayError(
    `${place}${problem.line === undefined ? '' : `, line ${problem.line}`}: ${cleanLine(problem.what)}`,
    'Keep a copy of the folder as it is, and compare it with a backup.',
  );
}

function described({ ok, lines, files, from, to, head, unfinishedBytes }: AuditReport): string {
  if (head === undefined) return 'Nothing has been recorded yet.';
  const shown = [
    `${counted(lines, 'line')} in ${counted(files, 'file')} ${ok ? paint('green', 'as they were written') : 'up to the first that is wrong'}`,
    `from ${cleanLine(from ?? '')} to ${cleanLine(to ?? '')}`,
    `head ${head.hash} (line ${head.seq})`,
  ];
  if (unfinishedBytes !== undefined)
    shown.push(`${counted(unfinishedBytes, 'byte')} of a line that is being written, or that a crash left`);
  return shown.join('\n');
}
