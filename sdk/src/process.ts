// Commands in a sandbox: started, watched, fed and ended over the daemon's own routes (src/contract/process.ts).
// A connection that drops is replaced by itself: the output goes on at the byte where it stopped, and no command runs twice.
import { type Connection, pause } from './connection.ts';
import { abortErrorOf, errorOf, ProtocolError, SandboxError, UnavailableError } from './errors.ts';
import type { Socket } from './transport.ts';
import { type Duration, milliseconds } from './units.ts';
import { type ExitStatus, exitStatusOf, expectFields, type ProcessInfo, processInfoOf } from './wire.ts';

/** `cols` and `rows` of a terminal, each from 1 to 1000. */
export interface TerminalSize {
  cols: number;
  rows: number;
}

/** Of one command and all that it starts. Throws UnsupportedError for what cannot be held where it runs; bytes of output can be everywhere. */
export interface ProcessLimits {
  /** Beyond it the kernel ends it, with reason `oom`. At least 4 MiB. */
  memoryBytes?: number;
  /** Processes and threads at one time. */
  pids?: number;
  /** Processors: 0.5 is half of one. */
  cpu?: number;
  /** Of stdout and stderr together. What is more is dropped, and the command ended with reason `output-limit`. */
  outputBytes?: number;
}

export interface StartOptions {
  /** Absolute, or `~`. Default: the user's home folder inside the sandbox. */
  cwd?: string;
  /** Added to the sandbox's own environment. */
  env?: Record<string, string>;
  /** `name`, `uid`, `name:group` or `uid:gid`. */
  user?: string;
  /** True: `write()` and `end()` feed its standard input. False (default): it reads from /dev/null. */
  stdin?: boolean;
  /** Gives it a terminal; its output then comes as stdout alone. */
  tty?: TerminalSize;
  /** After this time SIGTERM goes to the whole tree of its processes, and SIGKILL five seconds later. */
  timeout?: Duration;
  /**
   * Makes starting repeatable: the same id with the same command and options is the same process, which runs once, however often it is asked for; with others
   * it is a ConflictError. At most 128 letters, digits, `.`, `_` and `-`. As long as the process is listed.
   */
  id?: string;
  /** What it may use, with all that it starts. */
  limits?: ProcessLimits;
  /** Keeps up to 64 MiB of its output on disk for a reader that comes later, rather than 1 MiB in memory. */
  background?: boolean;
  signal?: AbortSignal;
}

export interface SignalOptions {
  /** Every process of the command, those that left its process group included. */
  tree?: boolean;
  /** With `tree`: SIGKILL follows after this time. */
  grace?: Duration;
  signal?: AbortSignal;
}

/** A piece of output. `offset` is that of its first byte, counted over stdout and stderr together. */
export interface OutputPiece {
  bytes: Uint8Array;
  /** The bytes as UTF-8; characters that are cut between two pieces come whole, in the later one. Ask for it of every piece, or of none. */
  readonly text: string;
  offset: number;
}

export type OutputEvent =
  | ({ type: 'stdout' } & OutputPiece)
  | ({ type: 'stderr' } & OutputPiece)
  /** The bytes from `from` to `to` are no longer held by the server: the reader came too late. */
  | { type: 'gap'; from: number; to: number };

export type ProcessEvent = OutputEvent | ({ type: 'exit' } & ExitStatus);

const subProtocol = 'glovebox.process.v1';
const headerBytes = 9;

/** Waits between the attempts to reach the server again; after the last one the reader gets an UnavailableError. */
const reconnectDelaysMs = [0, 50, 100, 250, 500, 1_000, 2_000, 3_000, 5_000, 5_000, 5_000, 5_000];

/** A connection that stood this long was a good one: its drop begins a new count of attempts. */
const goodConnectionMs = 5_000;

/** Codes with which a server closes when it is to be tried again: going away, internal error, restart, try again later. */
const passingCloseCodes: readonly number[] = [1001, 1011, 1012, 1013];

/** Input goes in pieces of this size, so that input of any size is held once. */
const inputPieceBytes = 65_536;

/** Cleaning up is not aborted by the signal that made it necessary, but it is not waited for without end either. */
export const cleanupDeadlineMs = 30_000;

export interface ProcessOrigin {
  connection: Connection;
  sandboxId: string;
  /** Of the sandbox's routes, e.g. `/v1/sandboxes/ID/proxy/44772`. */
  base: string;
}

/**
 * A command in a sandbox. Iterate it for its output and its end (one reader):
 *
 *     for await (const event of process) if (event.type === 'stdout') console.log(event.text);
 *
 * Output that nobody reads makes the command wait, as in a pipe. Leaving the loop detaches; the command goes on.
 */
export class Process implements AsyncIterable<ProcessEvent> {
  readonly id: string;
  /** Its process id as seen from inside the sandbox. */
  readonly pid: number;
  readonly #origin: ProcessOrigin;
  /** Whether disposing of this handle ends the command. */
  #owned: boolean;
  #offset: number;
  #status: ExitStatus | undefined;
  /** Settles, never rejects, when the present reader has stopped. */
  #reader: Promise<void> | undefined;
  #link: Promise<Socket> | undefined;
  #failures = 0;
  readonly #detached = new AbortController();
  /** Messages of input, and how many of them the server has confirmed: after a drop nobody can tell whether the others arrived. */
  #sent = 0;
  #confirmed = 0;
  #inputLost = false;

  /** @internal Made by Sandbox.start() and Sandbox.attach(). */
  constructor(
    origin: ProcessOrigin,
    info: { id: string; pid: number },
    options: { from: number; owned: boolean },
  ) {
    this.#origin = origin;
    this.id = info.id;
    this.pid = info.pid;
    this.#offset = options.from;
    this.#owned = options.owned;
  }

  /** Where the next output begins: pass it to `attach(id, { from })` to go on later, elsewhere. */
  get offset(): number {
    return this.#offset;
  }

  [Symbol.asyncIterator](): AsyncIterator<ProcessEvent> {
    return this.#events();
  }

  /**
   * Resolves with how it ended. If nobody is reading the output it is read here and dropped. Throws SandboxLostError when the
   * sandbox went away, UnavailableError when the server cannot be reached any more; the command may still be running then.
   */
  async wait(options: { signal?: AbortSignal } = {}): Promise<ExitStatus> {
    return await unlessAborted(this.#untilExit(), options.signal, this.#doing('wait for'));
  }

  async #untilExit(): Promise<ExitStatus> {
    while (this.#status === undefined) {
      if (this.#reader) await this.#reader;
      else for await (const _ of this);
    }
    return this.#status;
  }

  /** Resolves when more may be written. Throws UnknownOutcomeError once the connection has dropped with input on its way. */
  async write(input: string | Uint8Array): Promise<void> {
    const bytes = typeof input === 'string' ? new TextEncoder().encode(input) : input;
    for (let at = 0; at < bytes.length; at += inputPieceBytes) {
      await this.#send(bytes.subarray(at, at + inputPieceBytes), 'write to');
    }
  }

  /** Closes its standard input: it reads an end of file after what was written. */
  async end(): Promise<void> {
    await this.#send('{"type":"end"}', 'close the input of');
  }

  async resize(size: TerminalSize): Promise<void> {
    const socket = await this.#linked();
    // A size that is lost with the connection is not worth an error: the next one comes with the next change.
    await socket.send(JSON.stringify({ type: 'resize', cols: size.cols, rows: size.rows })).catch(() => {});
  }

  /** To its process group, e.g. `SIGINT`; with `tree` to all of its processes. Throws ConflictError when it has ended. */
  async signal(name: string, options: SignalOptions = {}): Promise<void> {
    await this.#signal(name, options, false);
  }

  async #signal(name: string, options: SignalOptions, cleanup: boolean): Promise<void> {
    const { connection, base, sandboxId } = this.#origin;
    await connection.send('POST', `${base}/processes/${encodeURIComponent(this.id)}/signal`, {
      json: {
        signal: name,
        ...(options.tree ? { tree: true } : {}),
        ...(options.grace === undefined ? {} : { graceMs: milliseconds(options.grace, 'grace') }),
      },
      ...{
        doing: `send ${name} to process ${this.id}`,
        sandboxId,
        inside: true,
        signal: options.signal,
        cleanup,
      },
    });
  }

  /** Kills the whole tree of its processes. One that has ended already is no error. */
  async kill(options: { signal?: AbortSignal } = {}): Promise<void> {
    await this.#kill(options.signal, false);
  }

  async #kill(signal: AbortSignal | undefined, cleanup: boolean): Promise<void> {
    await this.#signal('SIGKILL', { tree: true, ...(signal ? { signal } : {}) }, cleanup).catch(
      (error: unknown) => {
        if (!(error instanceof SandboxError && ['conflict', 'not-found', 'lost'].includes(error.code)))
          throw error;
      },
    );
  }

  async info(options: { signal?: AbortSignal } = {}): Promise<ProcessInfo> {
    const { connection, base, sandboxId } = this.#origin;
    const doing = `look up process ${this.id}`;
    const path = `${base}/processes/${encodeURIComponent(this.id)}`;
    return processInfoOf(
      await connection.json('GET', path, { doing, sandboxId, inside: true, signal: options.signal }),
      doing,
    );
  }

  /** Stops reading, and leaves the command to itself: disposing does not end it any more. Idempotent. */
  detach(): void {
    this.#owned = false;
    this.#stop();
  }

  /** `reason`: the client's own signal has fired. */
  #stop(reason?: unknown): void {
    this.#detached.abort(reason);
    this.#unlink();
  }

  /** Ends the command if this handle started it; else only detaches. */
  async [Symbol.asyncDispose](): Promise<void> {
    const kills = this.#owned && this.#status === undefined;
    this.detach();
    if (kills) await this.#kill(AbortSignal.timeout(cleanupDeadlineMs), true);
  }

  #doing(verb: string): string {
    return `${verb} process ${this.id}`;
  }

  async *#events(): AsyncGenerator<ProcessEvent, void, void> {
    if (this.#reader) throw errorOf('conflict', `${this.#doing('read')}: its output has a reader already`);
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#reader = promise;
    const decoders = { stdout: new TextDecoder(), stderr: new TextDecoder() };
    const clientSignal = this.#origin.connection.joined(undefined);
    const onAbort = () => this.#stop(clientSignal?.reason);
    clientSignal?.addEventListener('abort', onAbort);
    try {
      while (this.#status === undefined) {
        const socket = await this.#linked();
        const since = performance.now();
        let dropped = false;
        try {
          for await (const message of socket.messages) {
            this.#failures = 0;
            const event = this.#eventOf(message, decoders);
            if (event === undefined) continue;
            if (event.type === 'exit') {
              const { exitCode, signal, reason } = event;
              this.#status = { exitCode, signal, reason };
              yield event;
              return;
            }
            yield event;
          }
        } catch (error) {
          if (error instanceof SandboxError) throw error;
          dropped = true;
        }
        this.#throwIfDetached();
        const { closed } = socket;
        if (!dropped && closed && !passingCloseCodes.includes(closed.code)) {
          throw new ProtocolError(
            'protocol',
            `${this.#doing('read')}: the server closed without an exit: ${closed.code} ${closed.reason}`.trim(),
          );
        }
        if (performance.now() - since > goodConnectionMs) this.#failures = 0;
        this.#unlink();
      }
    } finally {
      clientSignal?.removeEventListener('abort', onAbort);
      this.#unlink();
      this.#reader = undefined;
      resolve();
    }
  }

  /** The connection, made when there is none. Reader and writers share it. */
  #linked(): Promise<Socket> {
    this.#throwIfDetached();
    if (this.#link === undefined) {
      const link = this.#connect();
      this.#link = link;
      link.catch(() => {
        if (this.#link === link) this.#link = undefined;
      });
    }
    return this.#link;
  }

  #unlink(): void {
    const link = this.#link;
    this.#link = undefined;
    if (this.#sent > this.#confirmed) this.#inputLost = true;
    link?.then(
      (socket) => socket.close(),
      () => {},
    );
  }

  #throwIfDetached(): void {
    const { signal } = this.#detached;
    if (signal.aborted)
      throw errorOf('aborted', `${this.#doing('read')}: detached`, { cause: signal.reason });
  }

  /** A connection at the present offset, tried again for about half a minute. */
  async #connect(): Promise<Socket> {
    const { connection, base, sandboxId } = this.#origin;
    const doing = this.#doing('read');
    for (;;) {
      try {
        return await connection.connect(
          `${base}/processes/${encodeURIComponent(this.id)}/attach`,
          { doing, sandboxId, query: { from: this.#offset }, signal: this.#detached.signal },
          subProtocol,
        );
      } catch (error) {
        if (!(error instanceof SandboxError) || !error.retryable) throw error;
        const delayMs = reconnectDelaysMs[this.#failures++];
        if (delayMs === undefined) {
          throw new UnavailableError('unavailable', error.message, {
            ...{ cause: error, sandboxId },
            hint: `The command may still run: attach('${this.id}', { from: ${this.#offset} }) goes on from here.`,
          });
        }
        await pause(delayMs, this.#detached.signal);
      }
    }
  }

  async #send(message: string | Uint8Array, verb: string): Promise<void> {
    const doing = this.#doing(verb);
    if (this.#status) throw errorOf('conflict', `${doing}: it has ended`);
    // The fate of what went over an earlier connection is unknown, and input with a hole in it is worse than an error.
    if (this.#inputLost) throw this.#inputUnknown(doing);
    const socket = await this.#linked();
    const sequence = ++this.#sent;
    try {
      await socket.send(message);
      void socket.confirmed().then(() => {
        this.#confirmed = Math.max(this.#confirmed, sequence);
      });
    } catch (cause) {
      // The exit, after which the server closes, may not have been read yet; a command that has ended takes no more input.
      if (this.#status || socket.closed?.code === 1000)
        throw errorOf('conflict', `${doing}: it has ended`, { cause });
      throw this.#inputUnknown(doing, cause);
    }
  }

  #inputUnknown(doing: string, cause?: unknown): SandboxError {
    return errorOf('unknown', `${doing}: the connection dropped while input was on its way`, {
      ...{ cause, sandboxId: this.#origin.sandboxId },
      hint: 'Some of the input may be missing: end the command, or go on without input.',
    });
  }

  /** Output that was seen before the connection dropped comes again and is cut off here. */
  #eventOf(
    message: string | Uint8Array,
    decoders: Record<'stdout' | 'stderr', TextDecoder>,
  ): ProcessEvent | undefined {
    const doing = this.#doing('read');
    if (typeof message === 'string') {
      const event = expectFields<{ type: string }>(parseJson(message, doing), { type: 'string' }, doing);
      if (event.type === 'gap') {
        const gap = expectFields<{ from: number; to: number }>(
          event,
          { from: 'number', to: 'number' },
          doing,
        );
        if (gap.to <= this.#offset) return undefined;
        const from = Math.max(gap.from, this.#offset);
        this.#offset = gap.to;
        return { type: 'gap', from, to: gap.to };
      }
      if (event.type !== 'exit') return undefined;
      const { exit, end } = expectFields<{ exit: unknown; end: number }>(
        event,
        { exit: 'object', end: 'number' },
        doing,
      );
      if (end !== this.#offset) {
        throw new ProtocolError(
          'protocol',
          `${doing}: its output ends at ${end}, but ${this.#offset} bytes came`,
        );
      }
      return { type: 'exit', ...exitStatusOf(exit, doing) };
    }
    const view = new DataView(message.buffer, message.byteOffset, message.byteLength);
    const lane = message.length >= headerBytes ? view.getUint8(0) : 0;
    if (lane !== 1 && lane !== 2) throw new ProtocolError('protocol', `${doing}: output of an unknown kind`);
    const from = Number(view.getBigUint64(1));
    const to = from + message.length - headerBytes;
    if (from > this.#offset) {
      throw new ProtocolError('protocol', `${doing}: expected output at ${this.#offset}, got it at ${from}`);
    }
    if (to <= this.#offset) return undefined;
    const bytes = message.subarray(headerBytes + this.#offset - from);
    const offset = this.#offset;
    this.#offset = to;
    const type = lane === 1 ? 'stdout' : 'stderr';
    return pieceOf(type, bytes, offset, decoders[type]);
  }
}

/** Decoding costs time, so it is done when asked for. */
function pieceOf(
  type: 'stdout' | 'stderr',
  bytes: Uint8Array,
  offset: number,
  decoder: TextDecoder,
): OutputEvent {
  let text: string | undefined;
  return {
    type,
    bytes,
    offset,
    get text() {
      text ??= decoder.decode(bytes, { stream: true });
      return text;
    },
  };
}

function parseJson(text: string, doing: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new ProtocolError('protocol', `${doing}: the server sent a message that is not JSON`, { cause });
  }
}

export async function unlessAborted<T>(
  promise: Promise<T>,
  signal: AbortSignal | undefined,
  doing: string,
): Promise<T> {
  if (!signal) return await promise;
  if (signal.aborted) throw abortErrorOf(signal, doing);
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const onAbort = () => reject(abortErrorOf(signal, doing));
  signal.addEventListener('abort', onAbort, { once: true });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener('abort', onAbort);
  }
}
