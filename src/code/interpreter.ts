// A program of a guest that runs one piece of code after the other and keeps in between what they leave: variables, functions, the current folder.
// It is an ordinary command, so it outlives its callers, and the daemon.
import { createHash, randomBytes } from 'node:crypto';
import { z } from 'zod';
import { Failure } from '../lib/failure.ts';
import type { Execution, Executions } from '../sandbox/sandbox.ts';
import { FrameReader } from './frames.ts';
import type { Language } from './language.ts';

export type CodeEvent =
  | { type: 'output'; lane: 'stdout' | 'stderr'; bytes: Uint8Array }
  | { type: 'gap'; bytes: number }
  /** Something to be shown, by media types; what is no text is base64 or JSON. */
  | { type: 'result'; forms: Record<string, string> }
  /** The last one. `code` is as a shell tells it, or null when nobody knows how its process ended. `count`: of the runs so far, where the language counts. */
  | { type: 'end'; code: number | null; timedOut: boolean; error?: CodeError; count?: number };

/** As the language tells it. */
export interface CodeError {
  ename: string;
  evalue: string;
  traceback: string[];
}

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
/** A kernel of Jupyter on a slow machine. */
const startWithinMs = 120_000;
/** Of a frame that comes in parts. */
const frameCharactersMax = 32 * 1024 * 1024;

interface Options {
  executions: Executions;
  language: Language;
  /** Of the interpreter, with the prefix of its language. */
  id: string;
  /** Where its process starts. */
  cwd?: string;
  /** Known to the daemon alone, and the same after its restart. */
  secret: string;
}

export class Interpreter {
  readonly id: string;
  readonly #executions: Executions;
  readonly #language: Language;
  readonly #cwd: string | undefined;
  readonly #mark: string;
  #process: Execution | undefined;
  #state = '';
  #waiting = 0;
  #turn: Promise<void> = Promise.resolve();
  /** The run that has its turn. */
  #current: symbol | undefined;
  /** It was found, and whether a run of an earlier daemon goes on in it shows only when the next one begins. */
  #inherited = false;
  #closed = false;

  constructor({ executions, language, id, secret, cwd }: Options) {
    this.id = id;
    this.#cwd = cwd;
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
    for (const { execId, ended } of processesOf(executions, id)) {
      if (ended) continue;
      const interpreter = new Interpreter(options);
      interpreter.#process = executions.get(execId);
      interpreter.#inherited = true;
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

  /**
   * What runs at the moment ends as by Ctrl-C, and after three seconds by force; what an earlier daemon has begun, as by Ctrl-C. Failure('conflict') when
   * nothing runs.
   */
  async interrupt(): Promise<void> {
    const [me, process] = [this.#current, this.#process];
    if (process === undefined || process.info.exit !== undefined || (me === undefined && !this.#inherited))
      throw new Failure('conflict', `nothing runs in ${this.id}`);
    // Once, for nobody tells whether it has helped; drivers that are idle do not mind.
    if (me === undefined) return await process.signal('SIGINT', { tree: true });
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

  /** It has one process, and that has ended. */
  get over(): boolean {
    return this.#language.once === true && this.#process?.info.exit !== undefined;
  }

  /** The id of the command that it is at the moment. */
  get execId(): string | undefined {
    return this.#process?.info.id;
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
    if (process !== undefined && this.#language.once) throw new Failure('conflict', `${this.id} has ended`);
    return await this.#start(signal);
  }

  /** Resolves once it takes code. Failure with details.exitCode when it ended before that. */
  async #start(signal: AbortSignal): Promise<Execution> {
    const { argv, env, user, note } = this.#language;
    const earlier = processesOf(this.#executions, this.id).map(({ generation }) => generation);
    const execId = earlier.length === 0 ? this.id : `${this.id}.${Math.max(...earlier) + 1}`;
    const process = await this.#executions.start(
      {
        ...{ execId, argv: [...argv], stdin: 'pipe' },
        ...(env && { env: { ...env } }),
        ...(user !== undefined && { user }),
        ...(note !== undefined && { note }),
        ...(this.#cwd !== undefined && { cwd: this.#cwd }),
      },
      signal,
    );
    try {
      const said = this.#read(process, signal);
      const first = said.next();
      first.catch(() => {});
      await process.write(fields(this.#mark, this.#state));
      let words = '';
      for (let it = await first; it.done !== true; it = await said.next()) {
        if (it.value.type === 'frame' && it.value.frame.ready === true) {
          await said.return(undefined);
          this.#process = process;
          return process;
        }
        if (it.value.type === 'output') words = (words + Buffer.from(it.value.bytes)).slice(-2_000);
      }
      const { code } = await process.exit;
      throw new Failure('unavailable', `${this.id} ended before it took any code: ${words.trim() || code}`, {
        details: { exitCode: code },
      });
    } catch (error) {
      await process.signal('SIGKILL', { tree: true }).catch(() => {});
      throw error;
    }
  }

  async *#follow(
    process: Execution,
    code: string,
    cwd: string,
    timedOut: () => boolean,
    again = false,
  ): AsyncGenerator<CodeEvent> {
    const id = randomBytes(8).toString('hex');
    const running = new Set<string>();
    const ended = new Set<string>();
    const said = this.#read(process);
    try {
      // The reader is there before there is anything to read.
      const first = said.next();
      first.catch(() => {});
      await process.write(fields(id, cwd, code));
      for (let it = await first; it.done !== true; it = await said.next()) {
        const piece = it.value;
        if (piece.type === 'gap') yield piece;
        // What is left of earlier runs, and of what they let run on, comes before this one begins.
        else if (piece.type === 'output') {
          if (running.has(piece.lane)) yield piece;
        } else {
          const { lane, frame } = piece;
          if (frame.begin === id) {
            this.#inherited = false;
            running.add(lane);
          }
          if (frame.result !== undefined && running.has(lane)) yield { type: 'result', forms: frame.result };
          else if (frame.end === id) {
            ended.add(lane);
            if (ended.size < this.#language.lanes.length) continue;
            if (frame.last === true) await process.exit;
            const { code: status = 0, error, count } = frame;
            const more = { ...(error && { error }), ...(count !== undefined && { count }) };
            return yield { type: 'end', code: status, timedOut: timedOut(), ...more };
          }
        }
      }
      const { code: status, reason } = await process.exit;
      // It was on its way out already.
      if (running.size === 0 && !again && !this.#language.once)
        return yield* this.#follow(
          await this.#start(AbortSignal.timeout(startWithinMs)),
          code,
          cwd,
          timedOut,
          true,
        );
      yield { type: 'end', code: reason === 'unknown' ? null : status, timedOut: timedOut() };
    } finally {
      await said.return(undefined);
    }
  }

  /** From now on, until the process ends. */
  async *#read(process: Execution, signal?: AbortSignal): AsyncGenerator<Said> {
    const lanes = new Map(
      this.#language.lanes.map((it) => [it, { reader: new FrameReader(this.#mark), part: '' }]),
    );
    for await (const piece of process.read(process.info.end, { follow: true }, signal)) {
      if (piece.type === 'gap') {
        yield { type: 'gap', bytes: piece.to - piece.from };
        continue;
      }
      const { lane, bytes } = piece;
      const framed = lanes.get(lane);
      if (framed === undefined) {
        yield { type: 'output', lane, bytes };
        continue;
      }
      for (const part of framed.reader.push(bytes)) {
        if (part.type === 'bytes') yield { type: 'output', lane, bytes: part.bytes };
        else if (part.text.startsWith('+')) {
          framed.part += part.text.slice(1);
          if (framed.part.length > frameCharactersMax) framed.part = '';
        } else {
          const text = framed.part + part.text;
          framed.part = '';
          if (text.startsWith('=')) this.#keep(text.slice(1));
          else yield { type: 'frame', lane, frame: frameOf(text) };
        }
      }
    }
    for (const [lane, { reader }] of lanes) {
      const bytes = reader.end();
      if (bytes.length > 0) yield { type: 'output', lane, bytes };
    }
  }

  #keep(state: string): void {
    this.#state = state.length <= stateCharactersMax ? state : '';
  }
}

/** Of an interpreter, one after the other; those that have ended as long as they are remembered. */
function processesOf(
  executions: Executions,
  id: string,
): { execId: string; generation: number; ended: boolean }[] {
  const pattern = new RegExp(`^${RegExp.escape(id)}(?:\\.(\\d{1,9}))?$`);
  return executions.list().flatMap(({ id: execId, exit }) => {
    const match = pattern.exec(execId);
    return match === null ? [] : [{ execId, generation: Number(match[1] ?? 0), ended: exit !== undefined }];
  });
}

type Said =
  | { type: 'output'; lane: 'stdout' | 'stderr'; bytes: Uint8Array }
  | { type: 'gap'; bytes: number }
  | { type: 'frame'; lane: 'stdout' | 'stderr'; frame: Frame };

const Frame = z.object({
  ready: z.boolean().optional(),
  begin: z.string().optional(),
  end: z.string().optional(),
  /** The process ends behind it. */
  last: z.boolean().optional(),
  code: z.int().min(0).max(255).optional(),
  count: z.int().nonnegative().optional(),
  result: z.record(z.string().max(256), z.string()).optional(),
  error: z.object({ ename: z.string(), evalue: z.string(), traceback: z.array(z.string()) }).optional(),
});
type Frame = z.infer<typeof Frame>;

/** What the guest says: anything else is no frame of ours. */
function frameOf(text: string): Frame {
  try {
    return Frame.safeParse(JSON.parse(text)).data ?? {};
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
