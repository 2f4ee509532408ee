// A terminal on the machine of a SandD daemon. It ends with its connection, and how it has ended is never known: the daemon says 0 of each, or nothing.
import { randomUUID } from 'node:crypto';
import type { Clock } from '../../channel/clock.ts';
import type { ExecExit, ExecSummary } from '../../contract/guest.ts';
import type { ExecSpec, GuestProcess, Output } from '../../guest/guest.ts';
import { Failure } from '../../lib/failure.ts';
import type { SanddConnection } from './connection.ts';
import { pieceBytes, type SanddMessage } from './wire.ts';

/** Output that nobody has read. There is no way to make the daemon wait, so the oldest goes, which the reader is told. */
const unreadBytesMax = 4 * 1024 * 1024;

/** What a terminal makes of these characters. */
const typedSignals: Record<string, string> = { SIGINT: '\x03', SIGQUIT: '\x1c', SIGTSTP: '\x1a' };
const endingSignals = new Set(['SIGHUP', 'SIGTERM', 'SIGKILL']);

export interface SanddSessionOptions {
  spec: ExecSpec;
  connection: SanddConnection;
  clock: Clock;
  onOver: () => void;
}

export class SanddSession implements GuestProcess {
  readonly execId: string;
  readonly pid = 0;
  readonly startedAt = new Date();
  readonly exit: Promise<ExecExit>;
  readonly output: AsyncIterable<Output>;
  readonly #options: SanddSessionOptions;
  readonly #id = randomUUID();
  readonly #started = Promise.withResolvers<string | undefined>();
  readonly #unread: Buffer[] = [];
  #unreadBytes = 0;
  /** Offset of the first unread byte. */
  #offset = 0;
  /** Bytes in front of it that nobody has read, and nobody will. */
  #lost = 0;
  #exit: ExecExit | undefined;
  #settle: (exit: ExecExit) => void = () => {};
  #wake: () => void = () => {};
  #detached = false;
  #undo: (() => void)[] = [];

  constructor(options: SanddSessionOptions) {
    this.#options = options;
    const { spec, connection } = options;
    this.execId = spec.execId;
    this.exit = new Promise((resolve) => {
      this.#settle = resolve;
    });
    this.output = this.#pieces();
    this.#undo.push(
      connection.listen(this.#id, (message) => this.#hear(message)),
      connection.onEnd((why) => {
        this.#started.resolve(why);
        this.#end({ code: null, signal: null, reason: 'unknown' });
      }),
    );
  }

  get summary(): ExecSummary {
    const end = this.#offset + this.#unreadBytes;
    return { execId: this.execId, pid: 0, start: this.#offset, end, startedAt: this.startedAt.getTime() };
  }

  /** Resolves when the terminal is there. Failure('unavailable') with the daemon's own words. */
  async start(doing: string): Promise<void> {
    const { spec, connection, clock } = this.#options;
    const { cols = 80, rows = 24 } = spec.pty ?? {};
    const term = spec.env.TERM ?? 'xterm-256color';
    connection.say({ type: 'new_session', session_id: this.#id, rows, cols, term });
    const problem = await this.#started.promise;
    if (problem !== undefined) throw new Failure('unavailable', `${doing}: ${problem.slice(0, 1_000)}`);
    const { timeoutMs } = spec;
    if (timeoutMs !== undefined)
      this.#undo.push(
        clock.setTimer(timeoutMs, () => this.#close({ code: 124, signal: null, reason: 'timeout' })),
      );
  }

  /** It has not started, or nobody has heard of it. */
  abandon(): void {
    this.#close({ code: null, signal: null, reason: 'unknown' });
  }

  async write(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; at += pieceBytes) {
      if (this.#exit !== undefined) return;
      const data = Buffer.from(bytes.subarray(at, at + pieceBytes)).toString('base64');
      await this.#options.connection.sayInTurn({ type: 'session_input', session_id: this.#id, data });
    }
  }

  end(): void {
    this.#type('\x04');
  }

  resize({ cols, rows }: { cols: number; rows: number }): void {
    this.#options.connection.say({ type: 'session_resize', session_id: this.#id, rows, cols });
  }

  signal(name: string): void {
    this.send(name);
  }

  /** Whether there is a way to. */
  send(name: string): boolean {
    const typed = typedSignals[name];
    if (typed !== undefined) this.#type(typed);
    else if (endingSignals.has(name)) this.#close({ code: null, signal: null, reason: 'unknown' });
    else return false;
    return true;
  }

  detach(): void {
    this.#detached = true;
    this.#wake();
  }

  #type(text: string): void {
    const data = Buffer.from(text).toString('base64');
    if (this.#exit === undefined)
      this.#options.connection.say({ type: 'session_input', session_id: this.#id, data });
  }

  #close(exit: ExecExit): void {
    this.#options.connection.say({ type: 'session_close', session_id: this.#id });
    this.#end(exit);
  }

  #hear(message: SanddMessage): void {
    if (message.type === 'session_started')
      this.#started.resolve(message.success ? undefined : (message.error ?? 'the daemon does not say why'));
    else if (message.type === 'session_exit') this.#end({ code: null, signal: null, reason: 'unknown' });
    else if (message.type === 'session_output') this.#keep(message.data);
  }

  #keep(bytes: Buffer): void {
    if (bytes.length === 0) return;
    this.#unread.push(bytes);
    this.#unreadBytes += bytes.length;
    while (this.#unreadBytes > unreadBytesMax && this.#unread.length > 1) {
      const { length } = this.#unread.shift() as Buffer;
      this.#unreadBytes -= length;
      this.#offset += length;
      this.#lost += length;
    }
    this.#wake();
  }

  #end(exit: ExecExit): void {
    if (this.#exit !== undefined) return;
    this.#exit = exit;
    for (const undo of this.#undo) undo();
    this.#options.onOver();
    this.#settle(exit);
    this.#wake();
  }

  async *#pieces(): AsyncGenerator<Output> {
    while (!this.#detached) {
      if (this.#lost > 0) {
        const from = this.#offset - this.#lost;
        this.#lost = 0;
        yield { type: 'gap', from, to: this.#offset };
      }
      const bytes = this.#unread.shift();
      if (bytes !== undefined) {
        const offset = this.#offset;
        this.#offset += bytes.length;
        this.#unreadBytes -= bytes.length;
        yield { type: 'output', lane: 'stdout', bytes, offset };
      } else if (this.#exit !== undefined) return;
      else
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
    }
  }
}
