// Snapshots over the link: a worker answers with its store, a controller asks. A stream for each request: one SnapshotCall, then progress, then `done` or
// `error`. When the asking end resets its stream, what it asked for is given up.
import { z } from 'zod';
import { NewSnapshot, PatchSnapshot, RestoreSnapshot, SnapshotInfo } from '../../contract/worker.ts';
import { Failure, type FailureCode } from '../../lib/failure.ts';
import type { IncomingCall, Link } from '../link.ts';
import { ask } from '../rpc.ts';
import type { FolderSnapshots, Progress } from './snapshots.ts';

const id = SnapshotInfo.shape.id;

const SnapshotCall = z.discriminatedUnion('op', [
  z.strictObject({ op: z.literal('snapshot.create'), request: NewSnapshot }),
  z.strictObject({ op: z.literal('snapshot.list'), tags: PatchSnapshot.shape.tags }),
  z.strictObject({ op: z.literal('snapshot.get'), id }),
  z.strictObject({ op: z.literal('snapshot.tag'), id, tags: PatchSnapshot.shape.tags }),
  z.strictObject({ op: z.literal('snapshot.remove'), id }),
  z.strictObject({ op: z.literal('snapshot.restore'), id, request: RestoreSnapshot }),
]);
type SnapshotCall = z.infer<typeof SnapshotCall>;

const ops = SnapshotCall.options.map((it) => it.shape.op.value);

/** What a worker may say of the failures of its own disk; the rest is `internal`. */
const FailureWord = z.enum([
  'invalid',
  'not-found',
  'conflict',
  'aborted',
  'exhausted',
  'full',
  'permission',
  'io',
  'unsupported',
  'internal',
] satisfies FailureCode[]);

const listed = 100;
const listedMax = 100_000;

const Info = SnapshotInfo.extend({
  folder: z.string().max(4096),
  message: z.string().max(4096),
  tags: z.array(z.string().max(63)).max(10_000),
});

const SnapshotReply = z.discriminatedUnion('type', [
  z.object({ type: z.literal('progress'), files: z.number().nonnegative(), bytes: z.number().nonnegative() }),
  z.object({ type: z.literal('items'), items: z.array(Info).max(listed) }),
  z.object({ type: z.literal('done'), info: Info.optional() }),
  z.object({
    type: z.literal('error'),
    code: FailureWord,
    message: z.string().max(4096),
    hint: z.string().max(1024).optional(),
  }),
]);
type SnapshotReply = z.infer<typeof SnapshotReply>;

const progressEveryMs = 500;
/** On one worker; each reads and writes as much as the disk gives. */
const atOnceMax = 16;

/** On the worker: answers with this store until it is told to stop. */
export function serveSnapshots(link: Link, snapshots: FolderSnapshots): () => void {
  let running = 0;
  const take = (call: IncomingCall) => {
    const reply = (message: SnapshotReply) => call.reply(message);
    const run = async (): Promise<void> => {
      if (running >= atOnceMax)
        throw new Failure('exhausted', `${atOnceMax} requests about snapshots are under way`, {
          hint: 'Wait for one of them.',
        });
      running += 1;
      try {
        await answer(parse(SnapshotCall, call.request, 'invalid', 'a request about snapshots'), reply);
      } finally {
        running -= 1;
      }
    };
    const answer = async (request: SnapshotCall, reply: (message: SnapshotReply) => void): Promise<void> => {
      const doing = { onProgress: rarely((it) => reply({ type: 'progress', ...it })), signal: call.signal };
      if (request.op === 'snapshot.list') {
        const all = await snapshots.list({ tags: request.tags });
        for (let at = 0; at < all.length; at += listed)
          reply({ type: 'items', items: all.slice(at, at + listed) });
        return reply({ type: 'done' });
      }
      reply({ type: 'done', ...(await one(request, doing)) });
    };
    const one = async (
      request: Exclude<SnapshotCall, { op: 'snapshot.list' }>,
      doing: { onProgress: (progress: Progress) => void; signal: AbortSignal },
    ): Promise<{ info?: SnapshotInfo }> => {
      switch (request.op) {
        case 'snapshot.create':
          return { info: await snapshots.create(request.request, doing) };
        case 'snapshot.get':
          return { info: await snapshots.get(request.id) };
        case 'snapshot.tag':
          return { info: await snapshots.setTags(request.id, request.tags) };
        case 'snapshot.restore':
          return { info: await snapshots.restore(request.id, request.request, doing) };
        case 'snapshot.remove':
          await snapshots.remove(request.id);
          return {};
      }
    };
    void run()
      .catch((error: unknown) => reply(errorOf(error)))
      .then(() => call.end())
      .catch(() => call.reset({ code: 'internal', message: 'the answer cannot be sent' }));
  };
  const stops = ops.map((op) => link.onCall(op, take));
  return () => {
    for (const stop of stops) stop();
  };
}

function errorOf(error: unknown): SnapshotReply {
  const failure = Failure.from(error, 'snapshots');
  const code = FailureWord.safeParse(failure.code);
  return {
    type: 'error',
    code: code.success ? code.data : 'internal',
    message: failure.message.slice(0, 4096),
    ...(failure.hint === undefined ? {} : { hint: failure.hint.slice(0, 1024) }),
  };
}

function rarely(report: (progress: Progress) => void): (progress: Progress) => void {
  let reportedAt = performance.now();
  return (progress) => {
    if (performance.now() - reportedAt < progressEveryMs) return;
    reportedAt = performance.now();
    report(progress);
  };
}

/**
 * On the controller: the snapshots of the worker at the other end. Rejects as FolderSnapshots does; `unavailable` when there is no worker; `unknown` when it
 * left before it had answered what changes something, else `unavailable`; `protocol` for what it may not say.
 */
export class RemoteSnapshots {
  readonly #link: Link;

  constructor(link: Link) {
    this.#link = link;
  }

  async create(
    request: NewSnapshot,
    signal?: AbortSignal,
    onProgress?: (progress: Progress) => void,
  ): Promise<SnapshotInfo> {
    return infoIn(await this.#ask({ op: 'snapshot.create', request }, signal, onProgress));
  }

  async list({ tags = [] }: { tags?: string[] } = {}, signal?: AbortSignal): Promise<SnapshotInfo[]> {
    return (await this.#ask({ op: 'snapshot.list', tags }, signal)).items;
  }

  async get(id: string, signal?: AbortSignal): Promise<SnapshotInfo> {
    return infoIn(await this.#ask({ op: 'snapshot.get', id }, signal));
  }

  async setTags(id: string, tags: string[], signal?: AbortSignal): Promise<SnapshotInfo> {
    return infoIn(await this.#ask({ op: 'snapshot.tag', id, tags }, signal));
  }

  async remove(id: string, signal?: AbortSignal): Promise<void> {
    await this.#ask({ op: 'snapshot.remove', id }, signal);
  }

  async restore(
    id: string,
    request: RestoreSnapshot,
    signal?: AbortSignal,
    onProgress?: (progress: Progress) => void,
  ): Promise<SnapshotInfo> {
    return infoIn(await this.#ask({ op: 'snapshot.restore', id, request }, signal, onProgress));
  }

  async #ask(
    request: SnapshotCall,
    signal: AbortSignal | undefined,
    onProgress: (progress: Progress) => void = () => {},
  ): Promise<{ info: SnapshotInfo | undefined; items: SnapshotInfo[] }> {
    const doing = `worker ${this.#link.workerId}: ${request.op}`;
    signal?.throwIfAborted();
    // What the API has not checked, such as an id in a path, is checked before it goes out.
    const checked = parse(
      SnapshotCall,
      request,
      request.op === 'snapshot.create' ? 'invalid' : 'not-found',
      doing,
    );
    const call = ask(this.#link.channel(), checked);
    const items: SnapshotInfo[] = [];
    const { promise, resolve, reject } = Promise.withResolvers<SnapshotInfo | undefined>();
    const take = (message: unknown) => {
      const reply = parse(SnapshotReply, message, 'protocol', doing);
      if (reply.type === 'progress') onProgress({ files: reply.files, bytes: reply.bytes });
      else if (reply.type === 'done') resolve(reply.info);
      else if (reply.type === 'error')
        reject(new Failure(reply.code, reply.message, reply.hint === undefined ? {} : { hint: reply.hint }));
      else {
        items.push(...reply.items);
        if (items.length > listedMax)
          throw new Failure('protocol', `${doing}: more than ${listedMax} snapshots`);
      }
    };
    const gone = (why: string) => {
      const changes = request.op !== 'snapshot.list' && request.op !== 'snapshot.get';
      const code = changes ? 'unknown' : 'unavailable';
      reject(new Failure(code, `${doing}: ${why}`, { hint: 'List the snapshots when the worker is back.' }));
    };
    call.onMessage = (message) => {
      try {
        take(message);
      } catch (error) {
        reject(error);
        call.reset({ code: 'protocol', message: 'an answer that may not be' });
      }
    };
    call.onEnd = () => gone('it ended without an answer');
    call.onGone = (reason) => gone(reason.message.slice(0, 300));
    const abort = () => {
      reject(Failure.from(signal?.reason, doing));
      call.reset({ code: 'aborted', message: 'the answer is no longer wanted' });
    };
    signal?.addEventListener('abort', abort, { once: true });
    try {
      const info = await promise;
      call.end();
      return { info, items };
    } finally {
      signal?.removeEventListener('abort', abort);
    }
  }
}

function infoIn({ info }: { info: SnapshotInfo | undefined }): SnapshotInfo {
  if (info !== undefined) return info;
  throw new Failure('protocol', 'the worker says that it is done and not with what');
}

function parse<S extends z.ZodType>(
  schema: S,
  value: unknown,
  code: 'invalid' | 'not-found' | 'protocol',
  what: string,
): z.output<S> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const [issue] = result.error.issues;
  throw new Failure(code, `${what}: ${issue?.path.map(String).join('.')}: ${issue?.message}`);
}
