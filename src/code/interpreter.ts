// A program of a guest that runs one piece of code after the other and keeps in between what they leave: variables, functions, the current folder.
// It is an ordinary command, so it outlives its callers, and the daemon.
import { createHash, randomBytes } from 'node:crypto';
import { Failure } from '../lib/failure.ts';
import type { Execution, Executions } from '../sandbox/sandbox.ts';
import { FrameReader } from './frames.ts';
import type { Language } from './language.ts';

export type CodeEvent =
  | { type: 'output'; lane: 'stdout' | 'stderr'; bytes: Uint8Array }
  | { type: 'gap'; bytes: number }
  /** The last one. `code` is as a shell tells it, or null when nobody knows how its process ended. */
  | { type: 'end'; code: number | null; timedOut: boolean };

export interface Run {
  code: string;
  /** Where it runs, and what runs after it. */
  cwd?: string;
  timeoutMs?: number;
}

/** Runs that wait for their turn. */
const waitingMax = 64;
/** Who does not heed this many requests to end, so long after each other, is killed, and has lost what it kept. */
const triesMax = 3;
const tryMs = 1_000;
/** What a process leaves for the next one; beyond that the next one begins anew. */
const stateCharactersMax = 4 * 1024 * 1024;

interface Options {
  executions: Executions;
  language: Language;
  /** Of the interpreter, with the prefix of its language. */
  id: string;
  /** Known to the daemon alone, and the same after its restart. */
  secret: string;
}

export class Interpreter {
  readonly id: string;
  readonly #executions: Executions;
  readonly #language: Language;
  readonly #mark: string;
  #process: Execution | undefined;
  #processes = 0;
  #state = '';
  #waiting = 0;
  #turn: Promise<void> = Promise.resolve();
  /** The run that has its turn. */
  #current: symbol | undefined;
  #closed = false;

  constructor({ executions, language, id, secret }: Options) {
    this.id = id;
    this.#executions = executions;
    this.#language = language;
    this.#mark = createHash('sha256').update(`${secret} ${id}`).digest('hex').slice(0, 32);
  }

  /** Starts its process, which a run does otherwise. Failure with details.exitCode when the guest has no such program. */
  async start(signal: AbortSignal): Promise<void> {
    await this.#start(signal);
  }

  /** One that an earlier daemon has started and that still runs. Undefined when there is none. */
  static find(options: Options): Interpreter | undefined {
    const { executions, id } = options;
    const generation = new RegExp(`^${RegExp.escape(id)}(?:\\.(\\d{1,9}))?$`);
    for (const info of executions.list()) {
      const match = generation.exec(info.id);
      if (match === null || info.exit !== undefined) continue;
      const interpreter = new Interpreter(options);
      interpreter.#process = executions.get(info.id);
      interpreter.#processes = Number(match[1] ?? 0) + 1;
      return interpreter;
    }
    return undefined;
  }

  /**
   * One run at a time, in the order they came. A reader who leaves does not end the run. Failures: `exhausted` when too many wait; `conflict` when it was closed;
   * `invalid` for code with NUL.
   */
  async *run({ code, cwd, timeoutMs }: Run, signal: AbortSignal): AsyncGenerator<CodeEvent> {
    for (const [name, text] of Object.entries({ code, cwd: cwd ?? '' }))
      if (text.includes('\0')) throw new Failure('invalid', `${name}: must not contain NUL`);
    const leave = await this.#takeTurn(signal);
    const me = Symbol('run');
    this.#current = me;
    let timedOut = false;
    let timer: NodeJS.Timeout | undefined;
    let events: AsyncGenerator<CodeEvent> | undefined;
    const over = () => {
      clearTimeout(timer);
      this.#current = undefined;
      leave();
    };
    try {
      const process = await this.#alive(signal);
      const run = this.#follow(process, code, cwd ?? '', () => timedOut);
      events = run;
      if (timeoutMs !== undefined)
        timer = setTimeout(() => {
          timedOut = true;
          void this.interrupt().catch(() => {});
        }, timeoutMs);
      const gone = aborted(signal);
      gone.catch(() => {});
      for (;;) {
        const next = await Promise.race([run.next(), gone]);
        if (next.done) return;
        const last = next.value.type === 'end';
        if (last) {
          await run.return(undefined);
          events = undefined;
        }
        yield next.value;
        if (last) return;
      }
    } finally {
      // A reader that has left does not end the run, and the next one waits for its end.
      if (events === undefined) over();
      else void drained(events).finally(over);
    }
  }

  /** What runs at the moment ends as by Ctrl-C, and after three seconds by force. Failure('conflict') when nothing runs. */
  async interrupt(): Promise<void> {
    const [me, process] = [this.#current, this.#process];
    if (me === undefined || process === undefined || process.info.exit !== undefined)
      throw new Failure('conflict', `nothing runs in ${this.id}`);
    // Again and again: a program that is just being started does not get it, and who waits for that program hears it too late.
    const timer = setInterval(() => {
      if (this.#current !== me || tries === triesMax) clearInterval(timer);
      if (this.#current !== me) return;
      tries++;
      void process.signal(tries > triesMax ? 'SIGKILL' : 'SIGINT', { tree: true }).catch(() => {});
    }, tryMs);
    timer.unref();
    let tries = 1;
    await process.signal('SIGINT', { tree: true });
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Ends it and all that it started, and resolves when its process has ended. Runs that wait get a Failure('conflict'). */
  async close(signal: AbortSignal): Promise<void> {
    this.#closed = true;
    const process = this.#process;
    if (process === undefined) return;
    try {
      await process.signal('SIGTERM', { tree: true, graceMs: triesMax * tryMs }, signal);
    } catch (error) {
      if (!(error instanceof Failure && error.code === 'conflict')) throw error;
    }
    await Promise.race([process.exit, aborted(signal)]);
  }

  async #takeTurn(signal: AbortSignal): Promise<() => void> {
    if (this.#waiting >= waitingMax)
      throw new Failure('exhausted', `${this.id}: ${waitingMax} runs wait for their turn already`);
    const before = this.#turn;
    const mine = Promise.withResolvers<void>();
    this.#turn = before.then(() => mine.promise);
    this.#waiting++;
    try {
      await Promise.race([before, aborted(signal)]);
    } catch (error) {
      mine.resolve();
      throw error;
    } finally {
      this.#waiting--;
    }
    return mine.resolve;
  }

  async #alive(signal: AbortSignal): Promise<Execution> {
    if (this.#closed) throw new Failure('conflict', `${this.id} has been closed`);
    const process = this.#process;
    if (process !== undefined && process.info.exit === undefined) return process;
    return await this.#start(signal);
  }

  async #start(signal: AbortSignal): Promise<Execution> {
    const execId = this.#processes === 0 ? this.id : `${this.id}.${this.#processes}`;
    const process = await this.#executions.start(
      { execId, argv: [...this.#language.argv], stdin: 'pipe' },
      signal,
    );
    this.#processes++;
    this.#process = process;
    await process.write(fields(this.#mark, this.#state));
    return process;
  }

  async *#follow(
    process: Execution,
    code: string,
    cwd: string,
    timedOut: () => boolean,
  ): AsyncGenerator<CodeEvent> {
    const id = randomBytes(8).toString('hex');
    const lanes = new Map(this.#language.lanes.map((it) => [it, new FrameReader(this.#mark)]));
    const running = new Set<string>();
    const ended = new Set<string>();
    const output = process.read(process.info.end, { follow: true })[Symbol.asyncIterator]();
    try {
      // The reader is there before there is anything to read.
      const first = output.next();
      first.catch(() => {});
      await process.write(fields(id, cwd, code));
      for (let piece = await first; piece.done !== true; piece = await output.next()) {
        if (piece.value.type === 'gap') {
          yield { type: 'gap', bytes: piece.value.to - piece.value.from };
          continue;
        }
        const { lane, bytes } = piece.value;
        const reader = lanes.get(lane);
        if (reader === undefined) {
          yield { type: 'output', lane, bytes };
          continue;
        }
        for (const part of reader.push(bytes)) {
          // What is left of earlier runs, and of what they let run on, before this one has begun.
          if (part.type === 'bytes' && running.has(lane)) yield { type: 'output', lane, bytes: part.bytes };
          if (part.type !== 'frame') continue;
          const frame = frameOf(part.text);
          if ('state' in frame) this.#keep(frame.state);
          else if (frame.begin === id) running.add(lane);
          else if (frame.end === id) {
            ended.add(lane);
            if (ended.size < lanes.size) continue;
            return yield { type: 'end', code: frame.code ?? 0, timedOut: timedOut() };
          }
        }
      }
      for (const [lane, reader] of lanes)
        if (running.has(lane)) yield { type: 'output', lane, bytes: reader.end() };
      const { code: status, reason } = await process.exit;
      yield { type: 'end', code: reason === 'unknown' ? null : status, timedOut: timedOut() };
    } finally {
      await output.return?.();
    }
  }

  #keep(state: string): void {
    this.#state = state.length <= stateCharactersMax ? state : '';
  }
}

/** Both are what the guest says: anything else is no frame of ours. */
function frameOf(text: string): { state: string } | { begin?: unknown; end?: unknown; code?: number } {
  if (text.startsWith('=')) return { state: text.slice(1) };
  try {
    const { begin, end, code } = JSON.parse(text);
    return { begin, end, ...(Number.isInteger(code) && code >= 0 && code <= 255 ? { code } : {}) };
  } catch {
    return {};
  }
}

const fields = (...texts: string[]): Buffer => Buffer.from(texts.map((it) => `${it}\0`).join(''));

async function drained(events: AsyncGenerator<CodeEvent>): Promise<void> {
  try {
    for await (const _ of events);
  } catch {
    // Its guest has gone, and the run with it.
  }
}

function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    if (signal.aborted) reject(signal.reason);
    else signal.addEventListener('abort', () => reject(signal.reason), { once: true });
  });
}
