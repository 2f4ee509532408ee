// glovebox policy approval: the connections and the actions of the host that wait for a person, and the person's answers; at a terminal with single keys.
import { type Answer, type Question, SandboxError } from '../../../sdk/src/index.ts';
import { connect } from '../connect.ts';
import { CliError, exitCodes, usageError } from '../exit-codes.ts';
import { cleanLine, paint, print, printJson, say, table } from '../output.ts';
import { placeOf, wishOf } from '../question.ts';
import { atTerminal, Keys } from '../terminal.ts';

const answers: Record<string, { answer: Answer; said: string }> = {
  o: { answer: { allow: true, scope: 'once' }, said: 'allowed this once' },
  s: { answer: { allow: true, scope: 'sandbox' }, said: 'allowed for this sandbox' },
  a: { answer: { allow: true, scope: 'always' }, said: 'allowed always, for all sandboxes' },
  n: { answer: { allow: false, scope: 'once' }, said: 'refused' },
};

const legend = '[o]nce  this [s]andbox  [a]lways  [n]o  [q]uit';

/** Shows one question after the other until the person quits. Resolves with the exit code. */
export async function watch(): Promise<number> {
  if (!atTerminal()) {
    throw usageError(
      'policy approval: needs a terminal',
      'Use `glovebox policy approval ls` and `… answer`.',
    );
  }
  const { network } = await connect();
  const quit = new AbortController();
  using keys = new Keys();
  let code: number = exitCodes.ok;
  keys.onInterrupt = () => {
    code = exitCodes.interrupted;
    quit.abort();
  };
  const questions = new Waiting(network.followQuestions({ signal: quit.signal }));
  say(paint('dim', 'Waiting for questions; q quits.', process.stderr));
  try {
    for (;;) {
      const came = new AbortController();
      const idle = AbortSignal.any([quit.signal, came.signal]);
      const question = await Promise.race([questions.next(), quitKey(keys, idle)]);
      came.abort();
      if (question === 'quit') return exitCodes.ok;
      const chosen = await answered(question, keys, quit.signal);
      if (chosen === 'quit') return exitCodes.ok;
      if (chosen === 'late') {
        say('  no answer in time: refused');
        continue;
      }
      say(`  ${await told(network.answer(question.id, chosen.answer), chosen.said)}`);
    }
  } catch (error) {
    if (quit.signal.aborted) return code;
    throw error;
  } finally {
    quit.abort();
  }
}

async function quitKey(keys: Keys, signal: AbortSignal): Promise<'quit'> {
  while ((await keys.next(signal)).toLowerCase() !== 'q');
  return 'quit';
}

/** The key for this question that comes while it is open. */
async function answered(
  question: Question,
  keys: Keys,
  quit: AbortSignal,
): Promise<(typeof answers)[string] | 'quit' | 'late'> {
  const leftMs = question.until.getTime() - Date.now();
  if (leftMs <= 0) return 'late';
  say(
    `${paint('bold', questionText(question), process.stderr)}  (${Math.ceil(leftMs / 1000)} s)\n  ${legend}`,
  );
  const over = AbortSignal.timeout(leftMs);
  try {
    for (;;) {
      const key = (await keys.next(AbortSignal.any([quit, over]))).toLowerCase();
      if (key === 'q') return 'quit';
      const chosen = answers[key];
      if (chosen) return chosen;
    }
  } catch (error) {
    if (over.aborted && !quit.aborted) return 'late';
    throw error;
  }
}

async function told(answering: Promise<void>, said: string): Promise<string> {
  try {
    await answering;
    return said;
  } catch (error) {
    if (!(error instanceof SandboxError)) throw error;
    if (error.code === 'not-found') return 'too late: it waits no more';
    if (error.code === 'invalid') return cleanLine(error.message);
    throw error;
  }
}

/** Questions that have come and have not been shown yet, so that reading them does not wait for the person. */
class Waiting {
  readonly #queue: Question[] = [];
  #wake: () => void = () => {};
  #failed: unknown;

  constructor(source: AsyncIterable<Question>) {
    this.#read(source).catch((error: unknown) => {
      this.#failed = error;
      this.#wake();
    });
  }

  async #read(source: AsyncIterable<Question>): Promise<void> {
    for await (const question of source) {
      this.#queue.push(question);
      this.#wake();
    }
  }

  /** For one caller at a time; a question is handed out once. Rejects when the source has failed. */
  async next(): Promise<Question> {
    while (this.#queue.length === 0) {
      if (this.#failed !== undefined) throw this.#failed;
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#wake = resolve;
      await promise;
    }
    return this.#queue.shift() as Question;
  }
}

function questionText(question: Question): string {
  const { sandbox, sandboxName = sandbox, protocol, method, path, rule } = question;
  const wish = wishOf(question);
  if (wish !== undefined) return cleanLine(`Sandbox ${sandboxName} asks: may it ${wish}?`);
  const request = method === undefined ? '' : ` (${method} ${path ?? ''})`;
  const why = rule === undefined ? '' : ` by rule: ${rule}`;
  return cleanLine(`${sandboxName} wants to reach ${placeOf(question)}, ${protocol}${request}${why}`);
}

export async function ls(options: { json?: boolean }): Promise<void> {
  const questions = await (await connect()).network.questions();
  if (options.json) return await printJson(questions);
  if (questions.length === 0) return say('Nothing waits for an answer.');
  const rows = questions.map((it) => [
    it.id,
    it.sandboxName ?? it.sandbox,
    it.action === undefined ? placeOf(it) : 'this host',
    wishOf(it) ?? (it.method === undefined ? it.protocol : `${it.method} ${it.path ?? ''}`.trim()),
    it.rule ?? '-',
    `${Math.max(0, Math.ceil((it.until.getTime() - Date.now()) / 1000))} s`,
  ]);
  await print(table(['QUESTION', 'SANDBOX', 'HOST', 'REQUEST', 'RULE', 'TIME LEFT'], rows));
}

export async function answer(
  id: string,
  verdict: 'allow' | 'deny',
  { scope = 'once' }: { scope?: NonNullable<Answer['scope']> },
): Promise<void> {
  const { network } = await connect();
  try {
    await network.answer(id, { allow: verdict === 'allow', scope });
  } catch (error) {
    if (!(error instanceof SandboxError) || error.code !== 'not-found') throw error;
    throw new CliError(`no question ${id} waits for an answer`, {
      cause: error,
      hint: 'It was answered, or its time is over: see `glovebox policy approval ls`.',
    });
  }
  await print(id);
}
