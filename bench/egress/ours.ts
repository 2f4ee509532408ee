// Our proxy for the egress figures, as a process of its own: the daemon's parts, with clients on TCP where a sandbox's agent would be.
//
//   node ours.ts SETUP      prints { port, authority } and serves until its stdin ends
import { mkdirSync, readFileSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { join } from 'node:path';
import type { Rule } from '../../src/contract/network.ts';
import { openCertificateAuthority } from '../../src/egress/certificates/authority.ts';
import { createUpstream } from '../../src/egress/dial.ts';
import { createEgress } from '../../src/egress/session.ts';
import { openJournal } from '../../src/journal/file-journal.ts';
import { openLog } from '../../src/lib/log.ts';
import { compilePolicy } from '../../src/policy/compile.ts';
import { openVault } from '../../src/vault/open.ts';
import type { OurSetup } from './shapes.ts';

const { folder, originAuthority, inspected, tunnelled } = JSON.parse(process.argv[2] ?? '') as OurSetup;
mkdirSync(folder);
const now = () => new Date();
const log = openLog({ level: 'warn' });
const createdAt = now().toISOString();
const rule = (...resources: string[]): Rule => ({
  ...{ id: resources[0] as string, decision: 'allow', resources, protocols: ['tcp'] },
  ...{ createdVia: 'added', createdAt },
});
const policy = compilePolicy({
  rules: [
    rule(...inspected.map((port) => `origin.test:${port}`), `origin.test:${tunnelled}`),
    rule('127.0.0.0/8'),
  ],
  hostAddresses: [],
});
const journal = await openJournal({ folder: join(folder, 'log'), now, log });
const vault = await openVault({
  file: join(folder, 'secrets'),
  keyFile: join(folder, 'secrets.key'),
  now,
  readEnv: () => undefined,
  log,
});
const authority = openCertificateAuthority({ keyFile: join(folder, 'authority.key'), now });
const upstream = createUpstream(
  {
    hosts: { 'origin.test': ['127.0.0.1'] },
    nameServers: [],
    extraAuthorities: [readFileSync(originAuthority, 'utf8')],
    connectMs: 20_000,
    handshakeMs: 10_000,
  },
  [],
);
const egress = createEgress({
  journal,
  onTrouble: (error) => {
    throw error;
  },
  asker: { ask: async () => false },
  limits: { connections: 4_096, headMs: 10_000, handshakeMs: 10_000, connectMs: 20_000, idleMs: 600_000 },
  upstream: (sandboxId) => upstream.forCaller(sandboxId),
  authority,
});
const session = egress.open({
  id: 'bench',
  policy: () => policy,
  secrets: vault.forSandbox('bench'),
  inspect: 'all',
});
const intent = Buffer.from(`${JSON.stringify({ kind: 'proxy', client: 1 })}\n`);
const server = createServer({ pauseOnConnect: true, allowHalfOpen: true, noDelay: true }, (socket) => {
  socket.unshift(intent);
  session.accept(socket);
});
server.listen(0, '127.0.0.1', () => {
  const { port } = server.address() as AddressInfo;
  console.log(JSON.stringify({ port, authority: authority.forSandbox('bench').certificate }));
});
process.stdin.resume().on('end', () => process.exit(0));
