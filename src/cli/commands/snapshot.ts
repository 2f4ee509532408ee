// glovebox snapshot and glovebox fork.
import { SandboxError, type SnapshotInfo, type SnapshotState } from '../../../sdk/src/index.ts';
import { snapshotStates } from '../../contract/snapshot.ts';
import { connect } from '../connect.ts';
import { entryOf } from '../entry.ts';
import { usageError } from '../exit-codes.ts';
import { checkName, freeName } from '../names.ts';
import { clean, print, printJson, span, table, withStatus } from '../output.ts';
import { durationOf, pairsOf, wholeNumberOf } from '../values.ts';
import { takenNames } from './create.ts';

export async function create(
  reference: string,
  options: { name?: string; wait: boolean; json?: boolean },
): Promise<void> {
  const client = await connect();
  const info = await client.find(reference);
  const { name, wait } = options;
  const making = client.snapshots.create(info.id, { wait, ...(name === undefined ? {} : { name }) });
  const snapshot = await withStatus(making, async () => `capturing ${info.name ?? info.id}`);
  await (options.json ? printJson(snapshot) : print(snapshot.id));
}

export async function list(options: {
  sandbox?: string;
  state?: string[];
  quiet?: boolean;
  json?: boolean;
}): Promise<void> {
  const states = (options.state ?? []).map(stateOf);
  const client = await connect();
  const sandboxes = new Map((await client.list()).map((it) => [it.id, it.name ?? it.id]));
  const { sandbox } = options;
  const snapshots = await client.snapshots.list({
    states,
    ...(sandbox === undefined ? {} : { sandboxId: await idOf(sandbox) }),
  });
  if (options.json) return await printJson(snapshots);
  if (options.quiet)
    return snapshots.length > 0 ? await print(snapshots.map((it) => it.id).join('\n')) : undefined;
  const row = ({ id, name, state, message, sandboxId, createdAt }: SnapshotInfo) => [
    ...[id, clean(name ?? '-'), state === 'Failed' ? clean(`Failed: ${message ?? ''}`) : state],
    ...[
      clean(sandboxes.get(sandboxId) ?? `${sandboxId} (gone)`),
      `${span(Date.now() - createdAt.getTime())} ago`,
    ],
  ];
  await print(table(['SNAPSHOT', 'NAME', 'STATE', 'SANDBOX', 'CREATED'], snapshots.map(row)));

  /** Snapshots outlive their sandboxes. */
  async function idOf(reference: string): Promise<string> {
    try {
      return (await client.find(reference)).id;
    } catch (error) {
      if (error instanceof SandboxError && error.code === 'not-found') return reference;
      throw error;
    }
  }
}

function stateOf(text: string): SnapshotState {
  const state = snapshotStates.find((it) => it.toLowerCase() === text.toLowerCase());
  if (state === undefined)
    throw usageError(`--state: '${text}' is no state of snapshots`, `Write ${snapshotStates.join(', ')}.`);
  return state;
}

export async function remove(references: string[]): Promise<void> {
  const client = await connect();
  for (const reference of references) {
    const { id } = await client.snapshots.find(reference);
    await client.snapshots.remove(id);
    await print(id);
  }
}

export async function fork(
  reference: string,
  options: { count?: string; name?: string; timeout?: string; label?: string[]; json?: boolean },
): Promise<void> {
  const count = options.count === undefined ? 1 : wholeNumberOf('--count', options.count, 1);
  const timeout = options.timeout === undefined ? null : durationOf('--timeout', options.timeout);
  const metadata = pairsOf('--label', options.label ?? []);
  if (options.name !== undefined) checkName(options.name);
  const client = await connect();
  const info = await client.find(reference);
  const name = options.name ?? freeName(`${info.name ?? info.id.slice(0, 8)}-fork`, await takenNames(client));
  const forking = client.handle(info.id).fork({ count, timeout, name, metadata });
  const made = await withStatus(forking, async () => `forking ${info.name ?? info.id}`);
  const infos = await Promise.all(made.map(async (it) => await it.info()));
  await (options.json
    ? printJson(infos.map((it) => entryOf(it)))
    : print(infos.map((it) => it.name ?? it.id).join('\n')));
}
