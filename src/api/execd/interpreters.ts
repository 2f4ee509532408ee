// The interpreters of all sandboxes: bash sessions and code contexts. Those of a sandbox go with its commands, and are found again by their ids after a restart of the daemon.
import { randomBytes } from 'node:crypto';
import { type CodeEvent, Interpreter, type Run } from '../../code/interpreter.ts';
import { type Language, languageOf, nothingToDrive } from '../../code/language.ts';
import { Failure } from '../../lib/failure.ts';
import type { Executions } from '../../sandbox/sandbox.ts';
import type { Exchange } from '../exchange.ts';
import type { ApiOptions } from '../handlers.ts';
import { type Event, EventStream } from './events.ts';
import { Lines } from './lines.ts';
import { expandHome, expandVariables } from './paths.ts';

/** Of one sandbox. */
const interpretersMax = 256;
/** What a shell says of a program that is not there. */
const notFound = 127;

export class Interpreters {
  readonly #options: ApiOptions;
  readonly #of = new WeakMap<Executions, Map<string, Interpreter>>();
  /** Those that do not take code yet, and perhaps never will. */
  readonly #starting = new WeakMap<Executions, Set<string>>();

  constructor(options: ApiOptions) {
    this.#options = options;
  }

  /** With the first of these languages that the image has. `id`: random when absent. Failure('unsupported') when it has none of them. */
  async create(
    sandboxId: string,
    languages: Language[],
    { cwd, id = randomBytes(16).toString('hex') }: { cwd?: string; id?: string },
    signal: AbortSignal,
  ): Promise<Interpreter> {
    const mine = this.#in(sandboxId);
    const starting = this.#startingIn(sandboxId);
    if (mine.size + starting.size >= interpretersMax)
      throw new Failure('exhausted', `there are ${interpretersMax} sessions and contexts in this sandbox`, {
        hint: 'Delete some.',
      });
    for (const language of languages) {
      const options = this.#optionsOf(sandboxId, `${language.prefix}-${id}`, language);
      const interpreter = new Interpreter({ ...options, ...(cwd === undefined ? {} : { cwd }) });
      starting.add(interpreter.id);
      try {
        await interpreter.start(signal);
        mine.set(interpreter.id, interpreter);
        return interpreter;
      } catch (error) {
        const status = error instanceof Failure ? error.details?.exitCode : undefined;
        if (status !== notFound && status !== nothingToDrive) throw error;
      } finally {
        starting.delete(interpreter.id);
      }
    }
    const programs = [...new Set(languages.map(({ argv }) => argv[0]))].join(' and ');
    throw new Failure(
      'unsupported',
      `the image of this sandbox has nothing that could run it (looked for: ${programs})`,
    );
  }

  /** Undefined when there is none. */
  find(
    sandboxId: string,
    id: string,
  ): { interpreter: Interpreter; name: string; prefix: string } | undefined {
    const { name, language } = languageOf(id) ?? {};
    if (name === undefined || language === undefined || this.#startingIn(sandboxId).has(id)) return undefined;
    const mine = this.#in(sandboxId);
    const interpreter = mine.get(id) ?? Interpreter.find(this.#optionsOf(sandboxId, id, language));
    if (interpreter === undefined || interpreter.closed) return undefined;
    mine.set(id, interpreter);
    return { interpreter, name, prefix: language.prefix };
  }

  list(sandboxId: string): { interpreter: Interpreter; name: string; prefix: string }[] {
    const ids = new Set(this.#in(sandboxId).keys());
    for (const { id } of this.#options.service.executions(sandboxId).list())
      ids.add(id.replace(/\.\d+$/, ''));
    return [...ids].flatMap((id) => this.find(sandboxId, id) ?? []);
  }

  async close(
    sandboxId: string,
    { interpreter }: { interpreter: Interpreter },
    signal: AbortSignal,
  ): Promise<void> {
    await interpreter.close(signal);
    this.#in(sandboxId).delete(interpreter.id);
  }

  /** A folder as clients write it; what is relative begins where the interpreter is. */
  async folder(sandboxId: string, path: string, signal: AbortSignal): Promise<string> {
    const { service } = this.#options;
    const environment = service.executions(sandboxId).environment();
    const expanded = expandVariables(path, environment);
    return expanded.startsWith('~')
      ? await expandHome(expanded, { guest: service.guest(sandboxId), environment }, signal)
      : expanded;
  }

  /** The same, made if it is not there. */
  async madeFolder(sandboxId: string, path: string, signal: AbortSignal): Promise<string> {
    const folder = await this.folder(sandboxId, path, signal);
    const absolute = folder.startsWith('/') ? folder : `/${folder}`;
    await this.#options.service.guest(sandboxId).mkdir(absolute, {}, signal);
    return absolute;
  }

  /** Runs it and streams what it says. */
  async stream(interpreter: Interpreter, run: Run, exchange: Exchange): Promise<'taken'> {
    const startedAt = performance.now();
    using stream = new EventStream(exchange, this.#options.now);
    const lanes = { stdout: new Lines(), stderr: new Lines() };
    let begun = false;
    for await (const event of interpreter.run(run, exchange.signal)) {
      if (!begun)
        await stream.send([
          { type: 'init', text: interpreter.id },
          { type: 'ping', text: 'pong' },
        ]);
      begun = true;
      if (event.type === 'output') await stream.sendLines(event.lane, lanes[event.lane].push(event.bytes));
      else if (event.type === 'gap')
        await stream.sendLines('stderr', [`glovebox: ${event.bytes} bytes of output are lost`]);
      else if (event.type === 'result')
        await stream.send([{ type: 'result', results: resultsOf(event.forms) }]);
      else {
        for (const lane of ['stdout', 'stderr'] as const) await stream.sendLines(lane, lanes[lane].end());
        await stream.send(endOf(event, Math.round(performance.now() - startedAt)));
      }
    }
    exchange.response.end();
    return 'taken';
  }

  #optionsOf(sandboxId: string, id: string, language: Language) {
    const { service } = this.#options;
    return {
      executions: service.executions(sandboxId),
      secret: service.accessToken(sandboxId),
      language,
      id,
    };
  }

  #startingIn(sandboxId: string): Set<string> {
    const executions = this.#options.service.executions(sandboxId);
    const starting = this.#starting.get(executions) ?? new Set<string>();
    this.#starting.set(executions, starting);
    return starting;
  }

  #in(sandboxId: string): Map<string, Interpreter> {
    const executions = this.#options.service.executions(sandboxId);
    const mine = this.#of.get(executions) ?? new Map<string, Interpreter>();
    this.#of.set(executions, mine);
    return mine;
  }
}

function resultsOf({ 'text/plain': text, ...forms }: Record<string, string>): Record<string, string> {
  return text === undefined ? forms : { text, ...forms };
}

function endOf(end: Extract<CodeEvent, { type: 'end' }>, ms: number): Event[] {
  const { code, timedOut, count, error } = end;
  const counted: Event[] = count === undefined ? [] : [{ type: 'execution_count', execution_count: count }];
  if (error !== undefined) return [...counted, { type: 'error', error }];
  if (code === null) {
    const why = 'how its process ended is unknown';
    return [{ type: 'error', error: { ename: 'CommandLostError', evalue: why, traceback: [why] } }];
  }
  if (code === 0 && !timedOut)
    return [...counted, { type: 'execution_complete', ...(ms > 0 ? { execution_time: ms } : {}) }];
  const evalue = String(timedOut && code === 0 ? 124 : code);
  const traceback = [timedOut ? 'timed out' : `exit status ${evalue}`];
  return [...counted, { type: 'error', error: { ename: 'CommandExecError', evalue, traceback } }];
}
