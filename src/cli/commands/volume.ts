// glovebox volume: named volumes of the daemon.
import { connect } from '../connect.ts';
import { cleanLine, print, printJson, say, span, table } from '../output.ts';
import { confirm } from '../terminal.ts';

export async function create(name: string, { json }: { json?: boolean }): Promise<void> {
  const made = await (await connect()).volumes.create(name);
  await (json ? printJson(made) : print(made.name));
}

export async function ls({ json }: { json?: boolean }): Promise<void> {
  const volumes = await (await connect()).volumes.list();
  if (json) return await printJson(volumes);
  if (volumes.length === 0) return say('There are no volumes; see `glovebox volume create --help`.');
  await print(
    table(
      ['NAME', 'PROJECT', 'SANDBOXES', 'AGE', 'KEPT'],
      volumes.map(({ name, project, sandboxes, createdAt, removedWhenUnused }) => [
        name,
        project ?? '-',
        String(sandboxes.length),
        span(Date.now() - createdAt.getTime()),
        removedWhenUnused ? 'while in use' : 'yes',
      ]),
    ),
  );
}

export async function inspect(names: string[]): Promise<void> {
  const { volumes } = await connect();
  await printJson(await Promise.all(names.map((name) => volumes.get(name))));
}

export async function rm(names: string[], { force }: { force?: boolean }): Promise<void> {
  const { volumes } = await connect();
  if (!force)
    await confirm(
      `Remove ${names.map((it) => `'${cleanLine(it)}'`).join(', ')} with all that is in ${names.length === 1 ? 'it' : 'them'}?`,
      'nothing was removed',
    );
  for (const name of names) {
    await volumes.remove(name);
    await print(cleanLine(name));
  }
}
