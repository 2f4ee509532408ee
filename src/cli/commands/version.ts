// glovebox version: which build this is, and which one the server is.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { connectIfRunning } from '../connect.ts';
import { clean, print, printJson } from '../output.ts';

export function ownVersion(): string {
  const text = readFileSync(join(import.meta.dirname, '../../../package.json'), 'utf8');
  return (JSON.parse(text) as { version: string }).version;
}

/** Starts no server to ask it. */
export async function version(options: { json?: boolean }): Promise<void> {
  const build = {
    version: ownVersion(),
    node: process.version,
    platform: `${process.platform}/${process.arch}`,
  };
  const server = await connectIfRunning()
    .then((client) => client?.system())
    .catch(() => undefined);
  if (options.json) {
    const state = server ? 'running' : 'unavailable';
    return await printJson({
      ...build,
      client: build,
      server: { state, ...(server ? { version: server.version, pid: server.pid } : {}) },
    });
  }
  await print(
    [
      `glovebox ${build.version} (Node.js ${build.node}, ${build.platform})`,
      server ? `server ${clean(server.version)} (process ${server.pid})` : 'server: none runs',
    ].join('\n'),
  );
}
