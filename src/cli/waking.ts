// A stopped sandbox is started by whoever wants to be in it.
import type { SandboxClient, SandboxInfo } from '../../sdk/src/index.ts';
import { withStatus } from './output.ts';

/** Resolves when it runs; at once for one that does. */
export async function wakeUp(client: SandboxClient, info: SandboxInfo): Promise<void> {
  if (info.state === 'Running' || info.state === 'Pending') return;
  const sandbox = client.handle(info.id);
  await withStatus(sandbox.wake(), async () => (await sandbox.info()).message);
}
