// Glovebox's own door to the commands in a sandbox, beside OpenSandbox's /command and /pty under the same execd base path:
// binary-safe, with stdin, signals, terminals and replay. The CLI and the SDK use it.
//
//   POST   /processes                      StartProcess -> 201 ProcessInfo
//   GET    /processes                      -> 200 { items: ProcessInfo[] }
//   GET    /processes/{id}                 -> 200 ProcessInfo
//   POST   /processes/{id}/signal          SignalProcess -> 204
//   GET    /processes/{id}/logs?from=N     -> 200 application/octet-stream: what is held, both lanes in order; header Glovebox-Output-End: offset behind it
//   GET    /processes/{id}/attach?from=N   WebSocket, sub-protocol `glovebox.process.v1`
//
// On the WebSocket, server to client: binary = lane (1 byte: 1 stdout or terminal, 2 stderr), offset (8 bytes, big-endian), bytes; text = ProcessEvent.
// Client to server: binary = stdin; text = ProcessControl. After `exit` the server closes with 1000. Closing early detaches and kills nothing.
import { z } from 'zod';
import { ExecExit, ExecLimits } from './guest.ts';

const size = z.strictObject({ cols: z.int().min(1).max(1000), rows: z.int().min(1).max(1000) });

/** Not `main`, which is the id of a sandbox's main process. */
export const ProcessId = z
  .string()
  .regex(/^[A-Za-z0-9._-]{1,128}$/, 'use at most 128 letters, digits, ., _ and -')
  .refine((it) => !['main', '.', '..'].includes(it), 'main, . and .. are taken');

/** Either `argv` or `shell`. `user`: name, uid, name:group or uid:gid. `timeoutMs`: SIGTERM to the whole tree, SIGKILL 5 s later. */
export const StartProcess = z
  .strictObject({
    /**
     * Makes starting repeatable: the same id with the same content is the same command, which runs once, and is answered as it is by now, ended or not; with
     * other content it is refused (409). As long as the command is listed. Default: a new one.
     */
    id: ProcessId.optional(),
    argv: z.array(z.string()).min(1).max(65_536).optional(),
    shell: z.string().min(1).optional(),
    env: z.record(z.string().regex(/^[^=\0]+$/), z.string()).optional(),
    cwd: z.string().min(1).max(4096).optional(),
    user: z.string().min(1).max(128).optional(),
    stdin: z.boolean().default(false),
    tty: size.optional(),
    timeoutMs: z.int().min(1).max(2_147_483_647).optional(),
    /** Of this command and all that it starts. What cannot be held where it runs is refused; `outputBytes` can be everywhere. */
    limits: ExecLimits.optional(),
    /** Keeps up to 64 MiB of output on disk, for a reader that comes later; else the last 1 MiB in memory. */
    background: z.boolean().default(false),
  })
  .refine((it) => (it.argv === undefined) !== (it.shell === undefined), 'give either argv or shell');
export type StartProcess = z.infer<typeof StartProcess>;

export const ProcessInfo = z.object({
  id: z.string(),
  pid: z.int(),
  command: z.array(z.string()),
  running: z.boolean(),
  background: z.boolean(),
  tty: z.boolean(),
  startedAt: z.iso.datetime({ offset: true }),
  finishedAt: z.iso.datetime({ offset: true }).optional(),
  exit: ExecExit.optional(),
  start: z.int(),
  end: z.int(),
});
export type ProcessInfo = z.infer<typeof ProcessInfo>;

export const SignalProcess = z.strictObject({
  signal: z.string().regex(/^SIG[A-Z0-9+-]{2,10}$/),
  /** The whole tree of processes rather than the process group alone. */
  tree: z.boolean().default(false),
  /** With tree: SIGKILL follows after this many milliseconds. */
  graceMs: z.int().min(0).max(600_000).optional(),
});
export type SignalProcess = z.infer<typeof SignalProcess>;

export const ProcessEvent = z.discriminatedUnion('type', [
  z.object({ type: z.literal('gap'), from: z.int(), to: z.int() }),
  z.object({ type: z.literal('exit'), exit: ExecExit, end: z.int() }),
]);
export type ProcessEvent = z.infer<typeof ProcessEvent>;

export const ProcessControl = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('end') }),
  z.strictObject({ type: z.literal('resize'), cols: size.shape.cols, rows: size.shape.rows }),
  z.strictObject({
    type: z.literal('signal'),
    signal: SignalProcess.shape.signal,
    tree: z.boolean().default(false),
  }),
]);
export type ProcessControl = z.infer<typeof ProcessControl>;
