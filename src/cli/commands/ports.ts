// glovebox ports: ports of a sandbox on this machine, shown, published and taken off.

import type { UnpublishPort } from '../../../sdk/src/index.ts';
import { parseUnpublish } from '../../contract/ports.ts';
import { connect } from '../connect.ts';
import { mappingOf } from '../creation.ts';
import { shownPort } from '../entry.ts';
import { print, printJson, say } from '../output.ts';
import { wakeUp } from '../waking.ts';

export interface PortsOptions {
  publish?: string[];
  unpublish?: string[];
  json?: boolean;
}

export async function ports(reference: string, options: PortsOptions): Promise<void> {
  const published = (options.publish ?? []).map(mappingOf);
  const unpublished = (options.unpublish ?? []).map((it) => parseUnpublish(it) as UnpublishPort);
  const client = await connect();
  const info = await client.find(reference);
  const sandbox = client.handle(info.id);
  if (unpublished.length > 0) await sandbox.published.unpublish(unpublished);
  if (published.length > 0) {
    await wakeUp(client, info);
    await sandbox.published.publish(published);
  }
  const all = await sandbox.published.list();
  if (options.json) return await printJson(all);
  if (all.length > 0) await print(all.map(shownPort).join('\n'));
  for (const { sandboxPort, problem } of all) if (problem) say(`glovebox: port ${sandboxPort}: ${problem}`);
}
