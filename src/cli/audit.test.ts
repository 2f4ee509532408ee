// Lines of the audit log as people read them.
import { expect, test } from 'vitest';
import { entryLine } from './commands/audit.ts';

const at = '2026-01-29T10:15:23.412Z';
const call = { by: 'owner', address: '127.0.0.1', method: 'DELETE', requestId: 'r-1' } as const;
const lines: [Parameters<typeof entryLine>[0], string][] = [
  [
    {
      seq: 17,
      at,
      event: 'call',
      ...call,
      operation: 'deleteSandbox',
      sandbox: 'web',
      status: 204,
      durationMs: 811.6,
    },
    '#17 by=owner deleteSandbox sandbox=web 204 ms=812 address=127.0.0.1 request=r-1',
  ],
  [
    { seq: 18, at, event: 'call', ...call, operation: 'port', sandbox: 'web', params: { port: '80' } },
    '#18 by=owner port sandbox=web port=80 running address=127.0.0.1 request=r-1',
  ],
  [
    {
      ...{ seq: 19, at, event: 'call', ...call, operation: 'createSandbox' },
      status: 202,
      durationMs: 5,
      made: 'id-1',
    },
    '#19 by=owner createSandbox 202 made=id-1 ms=5 address=127.0.0.1 request=r-1',
  ],
  [
    {
      seq: 20,
      at,
      event: 'refused',
      ...call,
      by: 'nobody',
      operation: 'why',
      sandbox: 'a b\u001b',
      status: 401,
      durationMs: 0,
    },
    '#20 by=nobody why sandbox="a b\uFFFD" refused 401 address=127.0.0.1 request=r-1',
  ],
  [{ seq: 21, at, event: 'omitted', count: 12 }, '#21 omitted count=12'],
  [{ seq: 22, at, event: 'opened', mendedBytes: 7, damage: 'cut' }, '#22 opened mended_bytes=7 damage=cut'],
];
test.each(lines)('%j is one line', (entry, line) => {
  expect(entryLine(entry)).toBe(`2026-01-29T10:15:23Z ${line}`);
});
