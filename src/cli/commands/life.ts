// glovebox start, stop, pause, resume, renew, rm, reset and prune: what can happen to sandboxes that exist.
import { setTimeout as delay } from 'node:timers/promises';
import { type Sandbox, type SandboxClient, SandboxError, type SandboxInfo } from '../../../sdk/src/index.ts';
import { connect, serverIsHere } from '../connect.ts';
import { entryOf } from '../entry.ts';
import { CliError, exitCodeOf, usageError } from '../exit-codes.ts';
import { clean, counted, paint, print, printJson, say, sayError } from '../output.ts';
import { atTerminal, confirm } from '../terminal.ts';
import { durationOf } from '../values.ts';
import { wakeUp } from '../waking.ts';

const leavingMs = 300;

/** Does it to each, side by side; prints the names of those it was done to, and fails if it was not done to all. */
async function each(references: readonly string[], act: (reference: string) => Promise<void>): Promise<void> {
  await eachOf(
    [...new Set(references)].map((reference) => ({ reference })),
    async ({ reference }) => {
      await act(reference);
      return true;
    },
  );
}

/** The same; `act` tells whether there was something to do. */
async function eachOf<T extends { reference: string }>(
  items: readonly T[],
  act: (item: T) => Promise<boolean>,
): Promise<void> {
  let worst: unknown;
  await Promise.all(
    items.map(async (item) => {
      try {
        if (await act(item)) await print(item.reference);
      } catch (error) {
        sayError((error as Error).message, (error as SandboxError).hint);
        worst = error;
      }
    }),
  );
  if (worst !== undefined) throw new CliError('', { exitCode: exitCodeOf(worst) });
}

export async function pause(references: string[]): Promise<void> {
  const client = await connect();
  await each(references, async (it) => await (await client.connect(it)).pause());
}

export async function resume(references: string[]): Promise<void> {
  const client = await connect();
  await each(references, async (it) => await (await client.connect(it)).resume());
}

export async function renew(reference: string, duration: string, options: { json?: boolean }): Promise<void> {
  const ms = durationOf('DURATION', duration);
  const sandbox = await (await connect()).connect(reference);
  const expiresAt = await sandbox.renew(ms);
  await (options.json ? printJson({ id: sandbox.id, expiresAt }) : print(expiresAt.toISOString()));
}

/** Starts stopped ones again, and lets paused ones go on. */
export async function start(references: string[]): Promise<void> {
  const client = await connect();
  await each(references, async (it) => await wakeUp(client, await client.find(it)));
}

/** Commands may end themselves first; what they wrote stays. */
export async function stop(references: string[], options: { grace: string }): Promise<void> {
  const graceMs = durationOf('--grace', options.grace);
  const client = await connect();
  await each(references, async (it) => {
    const { id, state, keep, name = id } = await client.find(it);
    if (!keep) {
      throw new CliError(`${name} was not made to be kept: when it ends it is over`, {
        hint: `Remove it with \`glovebox rm ${name}\`.`,
      });
    }
    const sandbox = client.handle(id);
    if (state === 'Running') await endProcesses(sandbox, graceMs);
    await sandbox.stop();
  });
}

async function endProcesses(sandbox: Sandbox, graceMs: number): Promise<void> {
  const signal = AbortSignal.timeout(graceMs + 5_000);
  try {
    const running = (await sandbox.processes({ signal })).filter((it) => it.running);
    await Promise.all(
      running.map(async ({ id, tty }) => {
        const process = await sandbox.attach(id, { from: 'end', signal });
        // Shells at a terminal do not listen to SIGTERM, but they know that their terminal is gone.
        if (tty) await process.signal('SIGHUP', { tree: true, signal });
        await process.signal('SIGTERM', { tree: true, grace: graceMs, signal });
        await process.wait({ signal }).finally(() => process.detach());
      }),
    );
  } catch (error) {
    // One that has ended meanwhile, or the whole sandbox with its main process, or no end in time: it is stopped next, whatever runs.
    if (!(error instanceof SandboxError)) throw error;
  }
}

export async function rm(references: string[], options: { force?: boolean; all?: boolean }): Promise<void> {
  if (options.all ? references.length > 0 : references.length === 0) {
    throw usageError('rm: name sandboxes, or give --all', 'See `glovebox ls`.');
  }
  const client = await connect();
  const found: { reference: string; info?: SandboxInfo; missing?: unknown }[] = options.all
    ? (await client.list()).map((info) => ({ reference: info.name ?? info.id, info }))
    : await Promise.all(
        [...new Set(references)].map(async (reference) => ({
          reference,
          ...(await lookUp(client, reference)),
        })),
      );
  const infos = found.flatMap((it) => it.info ?? []);
  if (infos.length > 0 && !options.force) {
    const losses = (await Promise.all(infos.map((it) => lossesOf(client, it)))).flat();
    const what =
      infos.length === 1
        ? `the sandbox ${nameOf(infos[0] as SandboxInfo)}`
        : options.all
          ? `all ${infos.length} sandboxes`
          : `${infos.length} sandboxes`;
    const question = `Remove ${what} and everything in ${infos.length === 1 ? 'it' : 'them'}?`;
    await confirm([...losses, question].join('\n'), 'nothing was removed');
  }
  await eachOf(found, async ({ reference, info, missing }) => {
    if (info === undefined) {
      if (options.force) return false;
      throw missing;
    }
    if (!options.force) await refuseInUse(client, info, reference);
    await client.handle(info.id).kill();
    return true;
  });
}

async function lookUp(
  client: SandboxClient,
  reference: string,
): Promise<{ info?: SandboxInfo; missing?: unknown }> {
  try {
    return { info: await client.find(reference) };
  } catch (missing) {
    if (missing instanceof SandboxError && ['not-found', 'conflict'].includes(missing.code))
      return { missing };
    throw missing;
  }
}

const nameOf = (info: SandboxInfo): string => info.name ?? info.id;

/** What would be gone for good, one line each. */
export async function lossesOf(client: SandboxClient, info: SandboxInfo): Promise<string[]> {
  if (!info.workspaces.some((it) => it.mode === 'overlay' || it.mode === 'clone')) return [];
  const { workspaces } = client.handle(info.id);
  const known = await workspaces.list().catch(() => []);
  const lines = await Promise.all(
    known.map(async (it) => {
      const where = `${nameOf(info)}: ${it.path}:`;
      if (it.mode === 'clone' && it.unfetched) {
        return [
          `${where} ${counted(it.unfetched, 'commit')} not fetched (\`glovebox fetch ${nameOf(info)}\`)`,
        ];
      }
      if (it.mode !== 'overlay') return [];
      const changes = await workspaces.changes({ workspace: it.path }).catch(() => []);
      return changes.length === 0
        ? []
        : [`${where} ${counted(changes.length, 'change')} not applied (\`glovebox diff ${nameOf(info)}\`)`];
    }),
  );
  return lines.flat();
}

/** Somebody sits in it, or left a session to come back to. */
async function refuseInUse(client: SandboxClient, info: SandboxInfo, reference: string): Promise<void> {
  if (info.state !== 'Running' && info.state !== 'Paused') return;
  const sessions = (
    await client
      .handle(info.id)
      .processes()
      .catch(() => [])
  ).filter((it) => it.tty && it.running).length;
  // Who has just left may not have been noticed yet.
  if (info.holds > 0) await delay(leavingMs);
  const { holds } = info.holds > 0 ? await client.handle(info.id).info() : info;
  const uses = [
    ...(holds > 0 ? [`${holds === 1 ? 'somebody is' : `${holds} are`} attached`] : []),
    ...(sessions > 0 ? [`${counted(sessions, 'session')} in it`] : []),
  ];
  if (uses.length === 0) return;
  throw new CliError(`${reference} is in use: ${uses.join(', ')}`, {
    hint: `End them, see \`glovebox sessions ${reference}\`, or remove it anyway with -f.`,
  });
}

export async function reset(options: { force?: boolean }): Promise<void> {
  const client = await connect();
  const all = await client.list();
  if (!options.force) {
    if (!atTerminal())
      throw usageError('reset: nobody to ask', 'Give -f to remove everything without a question.');
    say(
      paint(
        'yellow',
        'This removes every sandbox with all that is in it, and ends all agents that run.',
        process.stderr,
      ),
    );
    for (const line of (await Promise.all(all.map((it) => lossesOf(client, it)))).flat()) say(clean(line));
    await confirm(
      `Remove ${all.length === 1 ? 'the one sandbox' : `all ${all.length} sandboxes`}?`,
      'nothing was removed',
    );
  }
  await eachOf(
    all.map((info) => ({ reference: nameOf(info), info })),
    async ({ info }) => {
      await client.handle(info.id).kill();
      return true;
    },
  );
  if (!serverIsHere()) return;
  // Names of sandboxes are no hosts of ssh any more.
  const { removeSshBlock } = await import('./setup.ts');
  await removeSshBlock();
}

export interface PruneOptions {
  dryRun?: boolean;
  filter?: string[];
  force?: boolean;
  json?: boolean;
}

/** Stopped ones, and those that have ended. */
export async function prune(options: PruneOptions): Promise<void> {
  const until = untilOf(options.filter ?? [], Date.now());
  const client = await connect();
  const over = (await client.list()).filter(
    (it) =>
      ['Stopped', 'Terminated', 'Failed'].includes(it.state) &&
      (it.lastUsedAt ?? it.lastTransitionAt ?? it.createdAt).getTime() <= until,
  );
  if (options.dryRun) {
    if (options.json) return await printJson(over.map((it) => entryOf(it)));
    return over.length > 0 ? await print(over.map(nameOf).join('\n')) : undefined;
  }
  if (over.length > 0 && !options.force) {
    const losses = (await Promise.all(over.map((it) => lossesOf(client, it)))).flat();
    const question = `Remove ${over.length === 1 ? 'the one sandbox that is' : `the ${over.length} sandboxes that are`} stopped?`;
    await confirm(
      [...over.map((it) => `  ${nameOf(it)}`), ...losses, question].join('\n'),
      'nothing was removed',
    );
  }
  await eachOf(
    over.map((info) => ({ reference: nameOf(info), info })),
    async ({ info }) => {
      // Somebody may have started it meanwhile.
      if ((await client.handle(info.id).info()).state === 'Running') return false;
      await client.handle(info.id).kill();
      return true;
    },
  );
}

/** `until=24h`, `until=2026-01-01T00:00:00Z`, `until=1767225600`: last used before then. */
export function untilOf(filters: readonly string[], now: number): number {
  let until = now;
  for (const filter of filters) {
    const value = /^until=(.+)$/s.exec(filter)?.[1];
    if (value === undefined) {
      throw usageError(`--filter: '${filter}' is not a filter`, 'There is until=, e.g. until=24h.');
    }
    const at = /^\d{9,}$/.test(value)
      ? Number(value) * 1000
      : /^\d{4}-\d\d-\d\d/.test(value)
        ? Date.parse(value)
        : now - durationOf('--filter until', value);
    if (!Number.isFinite(at))
      throw usageError(`--filter: '${value}' is no time`, 'Write e.g. 24h or 2026-01-31T12:00:00Z.');
    until = Math.min(until, at);
  }
  return until;
}
