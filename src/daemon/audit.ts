// The audit log of a home: opened for the daemon, read and verified from its files for those who have none running.
import { join } from 'node:path';
import { type AuditFilter, AuditLog, readAudit } from '../journal/audit.ts';
import { verifyAudit } from '../journal/audit-verify.ts';
import type { Log } from '../lib/log.ts';

const folderOf = (home: string) => join(home, 'audit');

export async function openAudit(home: string, log: Log): Promise<AuditLog> {
  return await AuditLog.open({ folder: folderOf(home), now: () => new Date(), log });
}

export function auditOf(home: string) {
  return {
    log: (filter: AuditFilter & { limit: number }) => readAudit(folderOf(home), filter),
    verify: (options: { known?: string }) => verifyAudit(folderOf(home), options),
  };
}
