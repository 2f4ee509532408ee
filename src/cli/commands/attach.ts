// glovebox attach and sessions: terminal sessions that go on by themselves, and coming back to them.
import type { ProcessInfo, Sandbox } from '../../../sdk/src/index.ts';
import { connect } from '../connect.ts';
import { defaultDetachKeys, parseDetachKeys } from '../detach-keys.ts';
import { CliError } from '../exit-codes.ts';
import { print, printJson, sizeText, span, table } from '../output.ts';
import { attached, sizeOfTerminal } from '../session.ts';
import { endOf } from './list.ts';

/** As much of what was shown before is shown again. */
const scrollbackBytes = 256 * 1024;

export interface AttachOptions {
  detachKeys?: string;
  record?: string;
  /** False with --no-stdin. */
  stdin?: boolean;
}

export async function attach(
  reference: string,
  session: string | undefined,
  options: AttachOptions,
): Promise<number> {
  const detachKeys = parseDetachKeys(options.detachKeys ?? defaultDetachKeys);
  const client = await connect();
  const info = await client.find(reference);
  const name = info.name ?? info.id;
  if (info.state !== 'Running' && info.state !== 'Paused') {
    throw new CliError(`${name} does not run (${info.state.toLowerCase()}), so nothing goes on in it`, {
      hint: `Start it with \`glovebox run ${name}\`.`,
    });
  }
  const sandbox = client.handle(info.id);
  const found = await sessionOf(sandbox, name, session);
  using _held = await sandbox.hold();
  const running = await sandbox.attach(found.id, {
    from: Math.max(found.start, found.end - scrollbackBytes),
  });
  const input = options.stdin !== false && found.tty && found.running;
  if (found.tty && found.running && process.stdout.isTTY) await showAgain(running);
  return await attached(async () => running, {
    ...{ input, tty: found.tty, detachKeys, outlives: true, scrollbackUntil: found.end },
    comeBack: () => `come back with \`glovebox attach ${name} ${found.id}\``,
    ...(options.record === undefined ? {} : { record: options.record, recordTitle: name }),
  });
}

/** Programs that fill the screen draw it anew when its size changes, so it changes twice. */
async function showAgain(running: {
  resize(size: { cols: number; rows: number }): Promise<void>;
}): Promise<void> {
  const size = sizeOfTerminal();
  await running.resize({ ...size, rows: size.rows > 1 ? size.rows - 1 : 2 });
  await running.resize(size);
}

async function sessionOf(sandbox: Sandbox, name: string, id: string | undefined): Promise<ProcessInfo> {
  const all = await sandbox.processes();
  const sessions = all.filter((it) => it.tty && it.running);
  const newest = sessions.toSorted((a, b) => b.startedAt.getTime() - a.startedAt.getTime())[0];
  const found = id === undefined ? newest : (all.find((it) => it.id === id) ?? beginning(all, id));
  if (found) return found;
  throw new CliError(
    id === undefined ? `nobody left a session open in ${name}` : `${name} has no session '${id}'`,
    {
      hint:
        sessions.length === 0
          ? `Open one with \`glovebox run ${name}\` or \`glovebox exec -it ${name} bash\`.`
          : `There are: ${sessions.map((it) => it.id).join(' ')}`,
    },
  );
}

/** Ids are long; a beginning that only one has is enough. */
function beginning(all: readonly ProcessInfo[], id: string): ProcessInfo | undefined {
  const found = all.filter((it) => it.id.startsWith(id));
  return found.length === 1 ? found[0] : undefined;
}

export async function sessions(
  reference: string,
  options: { all?: boolean; quiet?: boolean; json?: boolean },
): Promise<void> {
  const client = await connect();
  const info = await client.find(reference);
  const runs = info.state === 'Running' || info.state === 'Paused';
  const shown = (runs ? await client.handle(info.id).processes() : [])
    .filter((it) => it.tty && (options.all || it.running))
    .toSorted((a, b) => b.startedAt.getTime() - a.startedAt.getTime());
  if (options.json) return await printJson(shown);
  if (options.quiet) return shown.length > 0 ? await print(shown.map((it) => it.id).join('\n')) : undefined;
  const rows = shown.map((it) => [
    it.id,
    endOf(it),
    `${span(Date.now() - it.startedAt.getTime())} ago`,
    sizeText(it.end),
    it.command.join(' ').replace(/\s+/g, ' ').slice(0, 80),
  ]);
  await print(table(['SESSION', 'STATUS', 'STARTED', 'OUTPUT', 'COMMAND'], rows));
}
