// What routes about logs have in common: they outlive their sandboxes, and following one goes on where reading it ended.
import { Failure } from '../lib/failure.ts';
import type { SandboxService } from '../sandbox/sandbox.ts';
import type { Answer, Exchange } from './exchange.ts';
import { sendLines } from './lines.ts';
import { sandboxIdOf } from './reference.ts';

export interface Logged {
  seq: number;
  /** Once it is over. */
  durationMs?: number | undefined;
}

export interface Readable<E extends Logged> {
  /** Newest last. */
  log(filter: { sandbox?: string; limit: number }): Promise<E[]>;
  /** From this call on. Ends with the signal. */
  followLog(filter: { sandbox?: string }, signal: AbortSignal): AsyncIterable<E>;
}

/** A sandbox that is no longer here may still be known to a log. */
export function loggedSandbox(
  service: SandboxService,
  reference: string,
): { sandbox: string; known: boolean } {
  try {
    return { sandbox: sandboxIdOf(service, reference), known: true };
  } catch (error) {
    if (error instanceof Failure && error.code === 'not-found') return { sandbox: reference, known: false };
    throw error;
  }
}

/** Failure('not-found') for a sandbox that neither is here nor has an entry. */
export async function answerLog<E extends Logged>(
  call: { query: { sandbox?: string | undefined; limit: number; follow: boolean }; exchange: Exchange },
  service: SandboxService,
  source: Readable<E>,
): Promise<Answer> {
  const { query, exchange } = call;
  const wanted = query.sandbox === undefined ? undefined : loggedSandbox(service, query.sandbox);
  const filter = wanted === undefined ? {} : { sandbox: wanted.sandbox };
  // Before the log is read, so that nothing falls in between.
  const following = query.follow ? source.followLog(filter, exchange.signal) : undefined;
  const items = await source.log({ ...filter, limit: query.limit });
  if (wanted?.known === false && items.length === 0 && (query.limit > 0 || query.follow))
    throw new Failure('not-found', `no sandbox ${JSON.stringify(query.sandbox)} is known here or in the log`);
  if (following === undefined) return { status: 200, json: { items } };
  return await sendLines(exchange, continued(items, following));
}

/** What was read, then what follows, without what was read already. */
async function* continued<E extends Logged>(read: E[], following: AsyncIterable<E>): AsyncIterable<E> {
  yield* read;
  const shown = new Map(read.map((it) => [it.seq, it.durationMs !== undefined]));
  for await (const entry of following) {
    const ended = shown.get(entry.seq);
    if (ended === undefined || (!ended && entry.durationMs !== undefined)) yield entry;
  }
}
