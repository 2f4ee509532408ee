// Reads the audit log from its first line to its last and says where it is not what was written. Changes nothing, needs no daemon, holds one line.
import { join } from 'node:path';
import { AuditDamage, type AuditHead, type AuditReport, auditOrigin } from '../contract/audit.ts';
import { auditFiles, linesOf, readHead, unsealed } from './audit-files.ts';

const damages: Record<AuditDamage, string> = {
  cut: 'lines were missing at the end of the log when the daemon opened it here',
  rewritten: 'the end of the log was another than head.json told when the daemon opened it here',
  headless: 'head.json was missing or unreadable when the daemon opened the log here',
  unreadable: 'the end of the log was unreadable or changed when the daemon opened it here',
};

/** `known`: a hash that an earlier look showed, which has to be in the log still. */
export async function verifyAudit(folder: string, { known }: { known?: string } = {}): Promise<AuditReport> {
  // Before the lines: a daemon that writes meanwhile makes the log longer, and the head is in it all the same.
  const told = await readHead(folder);
  const files = await auditFiles(folder);
  const report: AuditReport = { ok: false, files: files.length, lines: 0 };
  let head: AuditHead = { seq: 0, hash: auditOrigin };
  let knownSeen = known === undefined;
  for (const [index, file] of files.entries()) {
    let number = 0;
    for await (const { text, ended } of linesOf(join(folder, file))) {
      number += 1;
      if (!ended && index === files.length - 1) {
        report.unfinishedBytes = text.length;
        break;
      }
      const line = ended ? unsealed(text) : undefined;
      const what = line === undefined ? 'this is no whole line of the log' : wrongWith(line, head, told);
      const seq = line?.content.seq;
      if (what !== undefined || line === undefined || typeof seq !== 'number') {
        report.problem = {
          ...{ file, line: number, what: what ?? 'this is no whole line of the log' },
          ...(typeof seq === 'number' ? { seq } : {}),
        };
        return report;
      }
      const at = String(line.content.at);
      report.lines += 1;
      report.from ??= at;
      report.to = at;
      head = { seq, hash: line.hash };
      report.head = head;
      knownSeen ||= head.hash === known;
    }
  }
  const missing =
    missingAtEnd(head, told) ??
    (knownSeen ? undefined : 'no line has the hash that was given: the log was cut or written anew');
  if (missing === undefined) return { ...report, ok: true };
  return { ...report, problem: { file: files.at(-1) ?? 'head.json', what: missing } };
}

type Line = NonNullable<ReturnType<typeof unsealed>>;

function wrongWith(
  line: Line,
  before: AuditHead,
  told: Awaited<ReturnType<typeof readHead>>,
): string | undefined {
  const { seq, prev, event, damage } = line.content;
  const due = before.seq + 1;
  if (!line.intact) return 'this line was changed: its hash is not its own';
  if (typeof seq !== 'number' || !Number.isSafeInteger(seq)) return 'this line has no number';
  // The daemon goes on behind the number that head.json told, so that what was cut off is seen here, too.
  const found = event === 'opened' ? AuditDamage.safeParse(damage).data : undefined;
  if (seq > due)
    return `${seq - due === 1 ? `line ${due} is` : `lines ${due} to ${seq - 1} are`} missing before this one${found === undefined ? '' : `; ${damages[found]}`}`;
  if (seq < due)
    return `line ${seq} stands where line ${due} should: lines were inserted or put into another order`;
  if (prev !== before.hash)
    return 'this line does not follow from the one before: lines were changed or replaced';
  if (found !== undefined) return damages[found];
  if (typeof told === 'object' && told.seq === seq && told.hash !== line.hash)
    return 'head.json tells of another line with this number: the end of the log was written anew';
  return undefined;
}

function missingAtEnd(head: AuditHead, told: Awaited<ReturnType<typeof readHead>>): string | undefined {
  if (told === 'unreadable')
    return 'head.json is unreadable: nobody can tell whether lines were cut off the end';
  // The first line of all is written before the first head.
  if (told === undefined)
    return head.seq > 1
      ? 'head.json is missing: nobody can tell whether lines were cut off the end'
      : undefined;
  if (told.seq > head.seq)
    return `the log ends at line ${head.seq}, and head.json tells of line ${told.seq}: lines were cut off the end`;
  return undefined;
}
