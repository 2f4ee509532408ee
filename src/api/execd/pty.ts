// execd's terminals over WebSocket. A terminal is made first, its shell starts with the first client, and it outlives every client.
//
// Server to client, binary: 0x01 and output (0x02 and stderr, without a terminal); before `connected`, 0x03, an offset of eight bytes in network
// order, and output from before. Text: {type: connected | exit | pong | error}. Client to server: 0x00 and input; text: contract/execd.ts PtyMessage.
// Close codes: 1000 after the exit, 4001 when another client took over.
import { PtyMessage } from '../../contract/execd.ts';
import { Failure } from '../../lib/failure.ts';
import type { Execution, Executions } from '../../sandbox/sandbox.ts';
import type { PreparedTerminal } from '../../sandbox/terminals.ts';
import { checked } from '../exchange.ts';
import type { ApiOptions, Handlers } from '../handlers.ts';
import { Refusal } from '../refusal.ts';
import type { Wire } from '../wire.ts';
import { expandVariables } from './paths.ts';
import { framed } from './processes.ts';

type PtyHandlers = Handlers<'createPty' | 'getPty' | 'deletePty' | 'attachPty'>;

const size = { cols: 80, rows: 24 };
const preparedCommandCharactersMax = 64 * 1024;
/** Whatever the image has; neither reads the start-up files of a login. */
const shellLine = 'if command -v bash >/dev/null 2>&1; then exec bash --noprofile --norc; else exec sh; fi';

export function ptyHandlers({ service, terminals }: ApiOptions): PtyHandlers {
  const starting = new Map<string, Promise<Execution>>();
  const attached = new Map<string, Wire>();

  /** The id of a terminal is that of its command, so that a terminal is found again after a restart of the daemon. */
  const executionOf = (sandboxId: string, id: string): Execution => service.executions(sandboxId).get(id);
  /** One that a daemon was killed behind the start of is no longer to be started. */
  const preparedIn = (sandboxId: string, id: string): PreparedTerminal | undefined => {
    const terminal = terminals.find(sandboxId, id);
    const hasStarted = () =>
      service
        .executions(sandboxId)
        .list()
        .some((it) => it.id === id);
    if (terminal === undefined || starting.has(id) || !hasStarted()) return terminal;
    terminals.drop(id);
    return undefined;
  };
  const startOnce = async (terminal: PreparedTerminal, tty: boolean): Promise<Execution> => {
    const { id, sandboxId } = terminal;
    const started = starting.get(id) ?? start(service.executions(sandboxId), terminal, tty);
    starting.set(id, started);
    try {
      return await started;
    } finally {
      // Its command is on record now, or never will be.
      terminals.drop(id);
      starting.delete(id);
    }
  };

  return {
    createPty: ({ sandboxId, body }) => {
      service.guest(sandboxId);
      if ((body.command?.length ?? 0) > preparedCommandCharactersMax)
        throw new Failure('invalid', `command: more than ${preparedCommandCharactersMax} characters`);
      const { id } = terminals.add({
        ...{ sandboxId, command: body.command || shellLine },
        ...(body.cwd ? { cwd: expandVariables(body.cwd, service.executions(sandboxId).environment()) } : {}),
      });
      return { status: 201, json: { session_id: id } };
    },

    getPty: ({ sandboxId, params: { id = '' } }) => {
      service.get(sandboxId);
      const info = preparedIn(sandboxId, id) ? undefined : executionOf(sandboxId, id).info;
      const running = info !== undefined && info.exit === undefined;
      return { status: 200, json: { session_id: id, running, output_offset: info?.end ?? 0 } };
    },

    deletePty: async ({ sandboxId, params: { id = '' }, exchange }) => {
      service.get(sandboxId);
      if (preparedIn(sandboxId, id)) {
        terminals.drop(id);
        return { status: 200 };
      }
      await quietly(executionOf(sandboxId, id).signal('SIGKILL', { tree: true }, exchange.signal));
      return { status: 200 };
    },

    attachPty: async ({ sandboxId, params: { id = '' }, query, accept }) => {
      service.guest(sandboxId);
      const terminal = preparedIn(sandboxId, id);
      if (terminal === undefined) executionOf(sandboxId, id);
      if (attached.has(id) && !query.takeover)
        throw new Refusal('conflict', `terminal ${id} has a client`, {
          wireCode: 'ALREADY_CONNECTED',
          hint: 'Add takeover=1 to take its place.',
        });
      const execution = terminal ? await startOnce(terminal, query.pty) : executionOf(sandboxId, id);
      const wire = await accept();
      attached.get(id)?.close(4001, 'TAKEN_OVER');
      attached.set(id, wire);
      wire.onMessage((message) => takeMessage(execution, wire, message));
      try {
        // To the client that started it, all of the output is new.
        const present = terminal ? 0 : execution.info.end;
        await sendOutput(execution, { id, since: query.since, present }, wire);
      } finally {
        if (attached.get(id) === wire) attached.delete(id);
      }
      return 'taken' as const;
    },
  };
}

function start(executions: Executions, terminal: PreparedTerminal, tty: boolean): Promise<Execution> {
  return executions.start({
    execId: terminal.id,
    shell: terminal.command,
    stdin: 'pipe',
    ...(tty ? { pty: size } : {}),
    ...(terminal.cwd === undefined ? {} : { cwd: terminal.cwd }),
  });
}

async function takeMessage(execution: Execution, wire: Wire, message: string | Uint8Array): Promise<void> {
  try {
    if (typeof message !== 'string') {
      if (message[0] !== 0) throw new Failure('invalid', 'binary messages begin with 0x00');
      await execution.write(message.subarray(1));
      return;
    }
    const asked = checked(PtyMessage, JSON.parse(message), 'the message');
    switch (asked.type) {
      case 'stdin':
        return await execution.write(Buffer.from(asked.data));
      case 'resize':
        return execution.resize({ cols: asked.cols, rows: asked.rows });
      case 'signal':
        return await quietly(execution.signal(asked.signal));
      case 'ping':
        return await wire.sendJson({ type: 'pong' });
      default:
        asked satisfies never;
    }
  } catch (error) {
    const { message: text } = Failure.from(error, 'read the message');
    await wire.sendJson({ type: 'error', error: text, code: 'INVALID_MESSAGE' });
  }
}

/** A command that has ended needs no signal. */
async function quietly(signalled: Promise<void>): Promise<void> {
  try {
    await signalled;
  } catch (error) {
    if (!(error instanceof Failure && error.code === 'conflict')) throw error;
  }
}

/** Output from `since` up to `present` is shown as what was before, all behind it as it comes. */
async function sendOutput(
  execution: Execution,
  { id, since, present }: { id: string; since: number | undefined; present: number },
  wire: Wire,
): Promise<void> {
  const { signal } = wire;
  const { tty } = execution.info;
  try {
    if (since !== undefined && since < present)
      for await (const piece of execution.read(since, { follow: false }, signal)) {
        if (piece.type === 'gap') continue;
        if (piece.offset >= present) break;
        await wire.send(framed(3, piece.offset, piece.bytes.subarray(0, present - piece.offset)));
      }
    await wire.sendJson({ type: 'connected', session_id: id, mode: tty ? 'pty' : 'pipe' });
    for await (const piece of execution.read(present, { follow: true }, signal)) {
      if (piece.type === 'output') {
        await wire.send(Buffer.concat([Buffer.of(piece.lane === 'stdout' ? 1 : 2), piece.bytes]));
      } else {
        const error = `${piece.to - piece.from} bytes of output came faster than they were read and are lost`;
        await wire.sendJson({ type: 'error', error, code: 'OUTPUT_LOST' });
      }
    }
    if (signal.aborted) return;
    const { code } = await execution.exit;
    await wire.sendJson({ type: 'exit', exit_code: code ?? -1 });
    wire.close(1000, 'process exited');
  } catch (error) {
    if (signal.aborted) return;
    wire.close(1011, Failure.from(error, 'read output').message);
  }
}
