import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';

// What goes into the agent, which runs on Bun, and must neither need Node.js nor bring in what the daemon needs.
const pure = [
  'acceptor',
  'channel',
  'clock',
  'dialer',
  'frame',
  'handshake',
  'heartbeat',
  'link',
  'memory',
  'messages',
  'outbox',
  'session',
  'stream',
];

test.each(pure)('%s.ts imports nothing but its own kind', (name) => {
  const source = readFileSync(new URL(`${name}.ts`, import.meta.url), 'utf8');
  const imports = [...source.matchAll(/from '([^']+)'/g)].map((it) => it[1] as string);
  const allowed = [...pure.map((it) => `./${it}.ts`), '../lib/failure.ts'];
  expect(imports.filter((it) => !allowed.includes(it))).toEqual([]);
});
