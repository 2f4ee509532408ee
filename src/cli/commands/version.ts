// glovebox version: which build this is.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { print, printJson } from '../output.ts';

export function ownVersion(): string {
  const text = readFileSync(join(import.meta.dirname, '../../../package.json'), 'utf8');
  return (JSON.parse(text) as { version: string }).version;
}

export async function version(options: { json?: boolean }): Promise<void> {
  const build = {
    version: ownVersion(),
    node: process.version,
    platform: `${process.platform}/${process.arch}`,
  };
  await (options.json
    ? printJson(build)
    : print(`glovebox ${build.version} (Node.js ${build.node}, ${build.platform})`));
}
