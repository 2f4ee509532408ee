// SandD's protocol `sandd.v1` as its daemons speak it: one JSON object in each text frame, its kind in `type`, bytes in base64. Whatever a daemon says is parsed
// here and bounded before anything else sees it.
import { z } from 'zod';
import { Labels, sanddProtocol, WorkerId } from '../../contract/worker.ts';
import { Failure } from '../../lib/failure.ts';

export { sanddProtocol };

/** Of one frame. A daemon puts all output of a command into one, so this is the most that a command can bring back. */
export const frameBytesMax = 8 * 1024 * 1024;
/** Bytes of a file in one frame, as its own ends cut them, and of input to a terminal. */
export const pieceBytes = 64 * 1024;

const id = z.string().min(1).max(128);
const text = z.string().max(frameBytesMax);
const short = z.string().max(256);
/** As bytes. */
const base64 = text
  .regex(/^[A-Za-z0-9+/]*={0,2}$/, 'must be base64')
  .transform((it) => Buffer.from(it, 'base64'));
const whole = z.int().nonnegative();

export const SanddMessage = z.discriminatedUnion('type', [
  z.object({
    type: z.literal('register'),
    daemon_id: WorkerId,
    metadata: z.object({
      hostname: short,
      platform: short,
      arch: short,
      version: short.default(''),
      labels: Labels.default({}),
    }),
  }),
  z.object({ type: z.literal('heartbeat') }),
  z.object({ type: z.literal('pong') }),
  z.object({
    type: z.literal('command_output'),
    request_id: id,
    stdout: text,
    stderr: text,
    exit_code: z.int(),
    duration_ms: whole,
  }),
  z.object({ type: z.literal('command_error'), request_id: id, error: text }),
  z.object({
    type: z.literal('session_started'),
    session_id: id,
    success: z.boolean(),
    error: text.nullish(),
  }),
  z.object({ type: z.literal('session_output'), session_id: id, data: base64 }),
  z.object({ type: z.literal('session_exit'), session_id: id, exit_code: z.int() }),
  z.object({
    type: z.literal('file_upload_complete'),
    request_id: id,
    success: z.boolean(),
    error: text.nullish(),
  }),
  z.object({
    type: z.literal('file_download_chunk'),
    request_id: id,
    data: base64,
    offset: whole,
    is_last: z.boolean(),
  }),
  z.object({ type: z.literal('file_download_error'), request_id: id, error: text }),
  z.object({ type: z.literal('error'), message: text, recoverable: z.boolean().default(false) }),
]);
export type SanddMessage = z.infer<typeof SanddMessage>;
export type Registration = Extract<SanddMessage, { type: 'register' }>;

/** What we say to a daemon. */
export type SanddRequest =
  | { type: 'register_ack'; success: boolean; message: string }
  | { type: 'heartbeat_ack'; success: boolean; reason: string }
  | {
      type: 'execute_command';
      request_id: string;
      command: string;
      timeout_secs: number;
      env: Record<string, string>;
      cwd: string | null;
    }
  | { type: 'new_session'; session_id: string; rows: number; cols: number; term: string }
  | { type: 'session_input'; session_id: string; data: string }
  | { type: 'session_resize'; session_id: string; rows: number; cols: number }
  | { type: 'session_close'; session_id: string }
  | { type: 'file_upload_start'; request_id: string; path: string; total_size: number; mode: number | null }
  | { type: 'file_upload_chunk'; request_id: string; data: string; offset: number }
  | { type: 'file_download_start'; request_id: string; path: string }
  | { type: 'error'; message: string; recoverable: boolean };

const known = new Set<string>(SanddMessage.options.map((it) => it.shape.type.value));

/** Undefined for kinds that we do not know, which other versions may have. Failure('protocol') says what is wrong, and where. */
export function parseFrame(frame: string): SanddMessage | undefined {
  let value: unknown;
  try {
    value = JSON.parse(frame);
  } catch {
    throw new Failure('protocol', 'a frame that is no JSON');
  }
  const type = (value as { type?: unknown } | null)?.type;
  if (typeof type !== 'string') throw new Failure('protocol', 'a frame without a type');
  if (!known.has(type)) return undefined;
  const parsed = SanddMessage.safeParse(value);
  if (parsed.success) return parsed.data;
  const { path, message } = parsed.error.issues[0] ?? { path: [], message: 'not understood' };
  throw new Failure('protocol', `${type}: ${path.join('.')}: ${message}`);
}
