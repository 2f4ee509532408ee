// Glovebox's own door to the commands in a sandbox; its wire is described in contract/process.ts.
import { ProcessControl, type ProcessEvent, type ProcessInfo } from '../../contract/process.ts';
import { Failure } from '../../lib/failure.ts';
import type { Execution, ExecutionInfo } from '../../sandbox/sandbox.ts';
import { checked } from '../exchange.ts';
import type { ApiOptions, Handlers } from '../handlers.ts';
import type { Wire } from '../wire.ts';
import { heldOutput } from './output.ts';

type ProcessHandlers = Handlers<
  'startProcess' | 'listProcesses' | 'getProcess' | 'signalProcess' | 'processLogs' | 'attachProcess'
>;

const laneByte = { stdout: 1, stderr: 2 } as const;

export function processHandlers({ service }: ApiOptions): ProcessHandlers {
  const executionOf = (sandboxId: string, id: string | undefined) =>
    service.executions(sandboxId).get(id ?? '');
  return {
    startProcess: async ({ sandboxId, body, exchange }) => {
      const { id, argv, shell, env, cwd, user, stdin, tty, timeoutMs, limits, background } = body;
      const execution = await service.executions(sandboxId).start(
        {
          ...(id === undefined ? {} : { execId: id, repeatable: true }),
          ...(limits === undefined ? {} : { limits }),
          ...(argv ? { argv } : {}),
          ...(shell === undefined ? {} : { shell }),
          ...(env ? { env } : {}),
          ...(cwd === undefined ? {} : { cwd }),
          ...(user === undefined ? {} : { user }),
          ...(tty ? { pty: tty } : {}),
          ...(timeoutMs === undefined ? {} : { timeoutMs }),
          stdin: stdin || tty ? 'pipe' : 'none',
          background,
        },
        exchange.signal,
      );
      return { status: 201, json: infoOf(execution.info) };
    },

    listProcesses: ({ sandboxId }) => ({
      status: 200,
      json: { items: service.executions(sandboxId).list().map(infoOf) },
    }),

    getProcess: ({ sandboxId, params }) => ({
      status: 200,
      json: infoOf(executionOf(sandboxId, params.id).info),
    }),

    signalProcess: async ({ sandboxId, params, body, exchange }) => {
      const { signal, tree, graceMs } = body;
      const execution = executionOf(sandboxId, params.id);
      await execution.signal(signal, graceMs === undefined ? { tree } : { tree, graceMs }, exchange.signal);
      return { status: 204 };
    },

    processLogs: async ({ sandboxId, params, query, exchange }) => {
      const execution = executionOf(sandboxId, params.id);
      const { end, bytes } = await heldOutput(
        execution,
        query.from,
        { wholeCharacters: false },
        exchange.signal,
      );
      return {
        status: 200,
        type: 'application/octet-stream',
        headers: { 'Glovebox-Output-End': String(end) },
        bytes,
      };
    },

    attachProcess: async ({ sandboxId, params, query, accept }) => {
      const execution = executionOf(sandboxId, params.id);
      const wire = await accept();
      wire.onMessage((message) => takeMessage(execution, message));
      await sendOutput(execution, query.from, wire);
      return 'taken' as const;
    },
  };
}

async function takeMessage(execution: Execution, message: string | Uint8Array): Promise<void> {
  if (typeof message !== 'string') return await execution.write(message);
  const control = checked(ProcessControl, parsed(message), 'the message');
  switch (control.type) {
    case 'end':
      return execution.end();
    case 'resize':
      return execution.resize({ cols: control.cols, rows: control.rows });
    case 'signal':
      // A command that ends while its signal is on the way is no mistake of the client.
      return await execution.signal(control.signal, { tree: control.tree }).catch((error: unknown) => {
        if (!(error instanceof Failure && error.code === 'conflict')) throw error;
      });
    default:
      return control satisfies never;
  }
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new Failure('invalid', 'the message is no JSON');
  }
}

async function sendOutput(execution: Execution, from: number, wire: Wire): Promise<void> {
  const { signal } = wire;
  try {
    for await (const piece of execution.read(from, { follow: true }, signal)) {
      if (piece.type === 'gap')
        await wire.sendJson({ type: 'gap', from: piece.from, to: piece.to } satisfies ProcessEvent);
      else await wire.send(framed(laneByte[piece.lane], piece.offset, piece.bytes));
    }
    if (signal.aborted) return;
    const exit = await execution.exit;
    await wire.sendJson({ type: 'exit', exit, end: execution.info.end } satisfies ProcessEvent);
    wire.close(1000, 'the command has ended');
  } catch (error) {
    if (signal.aborted) return;
    wire.close(1011, Failure.from(error, 'read output').message);
  }
}

/** A byte, an offset of eight bytes in network order, and the bytes themselves. */
export function framed(kind: number, offset: number, bytes: Uint8Array): Uint8Array {
  const frame = Buffer.allocUnsafe(9 + bytes.length);
  frame.writeUInt8(kind, 0);
  frame.writeBigUInt64BE(BigInt(offset), 1);
  frame.set(bytes, 9);
  return frame;
}

function infoOf(info: ExecutionInfo): ProcessInfo {
  const { id, pid, command, background, tty, start, end } = info;
  return {
    ...{ id, pid, command, background, tty, start, end },
    running: info.exit === undefined,
    startedAt: info.startedAt.toISOString(),
    ...(info.finishedAt ? { finishedAt: info.finishedAt.toISOString() } : {}),
    ...(info.exit ? { exit: info.exit } : {}),
  };
}
