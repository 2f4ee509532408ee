// A command in the guest, as the daemon holds it: its output with back-pressure, its stdin, its end.
import type { ExecExit, GuestReply } from '../contract/guest.ts';
import { Failure } from '../lib/failure.ts';
import type { Conversation } from './conversation.ts';
import type { GuestProcess, Output } from './guest.ts';
import { failureOf } from './guest-failure.ts';

const unknownExit: ExecExit = { code: null, signal: null, reason: 'unknown' };

export class ConversingProcess implements GuestProcess {
  readonly execId: string;
  readonly pid: number;
  readonly startedAt: Date;
  readonly exit: Promise<ExecExit>;
  readonly output: AsyncIterable<Output>;
  readonly #conversation: Conversation;
  #offset: number;

  constructor(
    execId: string,
    started: Extract<GuestReply, { type: 'started' }>,
    conversation: Conversation,
    exit: Promise<ExecExit>,
  ) {
    this.execId = execId;
    this.pid = started.pid;
    this.startedAt = new Date(started.startedAt);
    this.#offset = started.from;
    this.#conversation = conversation;
    this.exit = exit;
    this.output = this.#read();
  }

  async *#read(): AsyncGenerator<Output> {
    let whole = false;
    try {
      for (
        let item = await this.#conversation.next();
        item !== undefined;
        item = await this.#conversation.next()
      ) {
        if (item.type === 'bytes') {
          const offset = this.#offset;
          this.#offset += item.bytes.length;
          yield { type: 'output', lane: item.lane, bytes: item.bytes, offset };
        } else if (item.reply.type === 'gap') {
          const { from, to } = item.reply;
          if (from !== this.#offset || to <= from)
            throw new Failure(
              'protocol',
              `command ${this.execId}: a gap from ${from} to ${to} at ${this.#offset}`,
            );
          this.#offset = to;
          yield { type: 'gap', from, to };
        } else if (item.reply.type === 'error') {
          throw failureOf(item.reply, `read the output of ${this.execId}`);
        }
      }
      whole = true;
    } finally {
      if (!whole) this.detach();
    }
  }

  write(bytes: Uint8Array): Promise<void> {
    return this.#conversation.write(bytes);
  }

  end(): void {
    this.#conversation.end();
  }

  resize({ cols, rows }: { cols: number; rows: number }): void {
    this.#conversation.control({ op: 'resize', cols, rows });
  }

  signal(signal: string, { tree = false, graceMs }: { tree?: boolean; graceMs?: number } = {}): void {
    this.#conversation.control({ op: 'signal', signal, tree, ...(graceMs === undefined ? {} : { graceMs }) });
  }

  detach(): void {
    if (!this.#conversation.over) this.#conversation.drop(new Failure('aborted', 'detached'));
  }
}

/** The end of a command, told as soon as it arrives; `unknown` when the conversation ends, breaks off or is dropped before. */
export function exitOf(conversation: Conversation): Promise<ExecExit> {
  const { promise, resolve } = Promise.withResolvers<ExecExit>();
  conversation.onReply = (reply) => {
    if (reply.type === 'exit') resolve(reply.exit);
    // Another reader has taken over, and hears of the end instead.
    else if (reply.type === 'error') resolve(unknownExit);
  };
  conversation.onOver = () => resolve(unknownExit);
  return promise;
}
