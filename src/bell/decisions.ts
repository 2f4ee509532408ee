// What the owner has decided about actions, for one sandbox or for all callers, over what bell.toml says. Kept in one file, written whole.
import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { z } from 'zod';
import { type BellDecision, BellDecisions } from '../contract/bell.ts';
import { Failure } from '../lib/failure.ts';

const Kept = z.strictObject({
  all: BellDecisions.default({}),
  sandboxes: z.record(z.string().max(128), BellDecisions).default({}),
});
type Kept = z.infer<typeof Kept>;

export interface DecisionsOptions {
  file: string;
  /** Of bell.toml. */
  configured: BellDecisions;
}

export interface Decided {
  decision: BellDecision;
  source: 'default' | 'config' | 'decision';
}

export class Decisions {
  readonly #options: DecisionsOptions;
  #kept: Kept;

  /** Failure('invalid') when the file cannot be understood: what was denied in it must not be forgotten. */
  constructor(options: DecisionsOptions) {
    this.#options = options;
    this.#kept = read(options.file);
  }

  /** The nearest decision: about the subject (the id of a sandbox, or another caller), about all, of the configuration, of the action itself. */
  of(action: { name: string; decision: BellDecision }, subject: string | undefined): Decided {
    const { all, sandboxes } = this.#kept;
    const own = subject === undefined ? undefined : sandboxes[subject]?.[action.name];
    const decided = own ?? all[action.name];
    if (decided !== undefined) return { decision: decided, source: 'decision' };
    const configured = this.#options.configured[action.name];
    if (configured !== undefined) return { decision: configured, source: 'config' };
    return { decision: action.decision, source: 'default' };
  }

  /** Those about single sandboxes. */
  get ofSandboxes(): { sandbox: string; action: string; decision: BellDecision }[] {
    return Object.entries(this.#kept.sandboxes).flatMap(([sandbox, decisions]) =>
      Object.entries(decisions).map(([action, decision]) => ({ sandbox, action, decision })),
    );
  }

  set(sandboxId: string | undefined, decisions: BellDecisions): void {
    const { all, sandboxes } = this.#kept;
    this.#save(
      sandboxId === undefined
        ? { all: { ...all, ...decisions }, sandboxes }
        : { all, sandboxes: { ...sandboxes, [sandboxId]: { ...sandboxes[sandboxId], ...decisions } } },
    );
  }

  /** Whether there was one. */
  remove(sandboxId: string | undefined, action: string): boolean {
    const { all, sandboxes } = this.#kept;
    const from = sandboxId === undefined ? all : sandboxes[sandboxId];
    if (from?.[action] === undefined) return false;
    const { [action]: _, ...rest } = from;
    this.#save(
      sandboxId === undefined
        ? { all: rest, sandboxes }
        : { all, sandboxes: { ...sandboxes, [sandboxId]: rest } },
    );
    return true;
  }

  forget(sandboxId: string): void {
    const { [sandboxId]: gone, ...sandboxes } = this.#kept.sandboxes;
    if (gone !== undefined) this.#save({ all: this.#kept.all, sandboxes });
  }

  #save(kept: Kept): void {
    const { file } = this.#options;
    const beside = `${file}.new`;
    try {
      writeFileSync(beside, `${JSON.stringify(kept, null, 2)}\n`, { mode: 0o600, flush: true });
      renameSync(beside, file);
    } catch (error) {
      rmSync(beside, { force: true });
      throw Failure.from(error, `keep a decision in ${file}`);
    }
    this.#kept = kept;
  }
}

function read(file: string): Kept {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return { all: {}, sandboxes: {} };
    throw Failure.from(error, `read ${file}`);
  }
  try {
    return Kept.parse(JSON.parse(text));
  } catch (error) {
    throw new Failure('invalid', `${file} holds no decisions about the bell`, {
      cause: error,
      hint: 'Mend it by hand, or remove it and decide anew: glovebox bell deny ACTION',
    });
  }
}
