// A process that synchronises two folders until it is killed, its agent with it.
import { startLocalAgent } from '../../../test/agents.ts';
import type { SandboxInfo } from '../../sandbox/sandbox.ts';
import { SyncMode } from './sync.ts';

const [path = '', inside = '', folder = '', fresh] = process.argv.slice(2);
const { guest } = await startLocalAgent();
const mode = new SyncMode({
  log: { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} },
  now: () => new Date(),
  guestRoot: () => inside,
});
const place = {
  sandbox: { id: 'box1' } as SandboxInfo,
  request: { path, mode: 'sync' as const, readOnly: false },
  index: 0,
  folder,
};
await mode.attach(place, { guest, fresh: fresh === 'true', user: '' }, AbortSignal.timeout(60_000));
setInterval(() => {}, 1_000);
