// glovebox save: what is on a sandbox's disk as a template, without its workspaces.
import { connect } from '../connect.ts';
import { print, printJson, withStatus } from '../output.ts';
import { saveTo } from '../save-to.ts';

export interface SaveOptions {
  output?: string;
  json?: boolean;
}

export async function save(reference: string, tag: string, options: SaveOptions): Promise<void> {
  const client = await connect();
  const info = await client.find(reference);
  const sandbox = client.handle(info.id);
  const template = await withStatus(sandbox.save(tag), async () => `saving ${info.name ?? info.id}`);
  if (options.output !== undefined) {
    await saveTo(options.output, await client.templates.export(template.name, { runtime: template.runtime }));
  }
  await (options.json ? printJson(template) : print(template.name));
}
