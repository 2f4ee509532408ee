// Commands that a client starts in containers of its sandbox.
import { z } from 'zod';
import { Failure } from '../lib/failure.ts';

export interface Exec {
  ID: string;
  ContainerID: string;
}

const text = z.string().max(131_072);
const size = z.array(z.int().min(0).max(65_535)).length(2);

const ExecBody = z.strictObject({
  AttachStdin: z.boolean().nullish(),
  AttachStdout: z.boolean().nullish(),
  AttachStderr: z.boolean().nullish(),
  Detach: z.boolean().nullish(),
  DetachKeys: z.string().max(64).nullish(),
  Tty: z.boolean().nullish(),
  Env: z.array(text).max(4096).nullish(),
  Cmd: z.array(text).min(1).max(4096),
  User: z.string().max(256).nullish(),
  WorkingDir: z.string().max(4096).nullish(),
  ConsoleSize: size.nullish(),
  Privileged: z.literal(false, 'a privileged command is in no sandbox').nullish(),
});

const StartBody = z.strictObject({
  Detach: z.boolean().nullish(),
  Tty: z.boolean().nullish(),
  ConsoleSize: size.nullish(),
});

export function execBodyFor(body: unknown): z.infer<typeof ExecBody> {
  if ((body as { Privileged?: unknown } | null)?.Privileged === true)
    throw new Failure('permission', 'Privileged: a privileged command is in no sandbox');
  return parsed(ExecBody, body);
}

export function startBodyFor(body: unknown): z.infer<typeof StartBody> {
  return parsed(StartBody, body);
}

function parsed<T extends z.ZodType>(schema: T, body: unknown): z.infer<T> {
  const result = schema.safeParse(body);
  if (result.success) return result.data;
  const [issue] = result.error.issues;
  throw new Failure('invalid', `${issue?.path.join('.') || 'the body'}: ${issue?.message}`);
}
