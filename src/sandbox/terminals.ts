// Terminals that clients have made and nobody has attached to yet: what is to start in each with its first client. On record, so that a restart forgets none.
import { randomBytes } from 'node:crypto';
import type { Collection } from '../store/store.ts';

export interface PreparedTerminal {
  /** Later that of its command. */
  id: string;
  sandboxId: string;
  cwd?: string;
  command: string;
}

/** In all; the oldest are forgotten beyond this many. */
const terminalsMax = 4096;

export class PreparedTerminals {
  readonly #records: Pick<Collection<PreparedTerminal>, 'all' | 'save' | 'drop'>;
  /** The oldest first. */
  readonly #byId: Map<string, PreparedTerminal>;

  constructor(records: Pick<Collection<PreparedTerminal>, 'all' | 'save' | 'drop'>) {
    this.#records = records;
    this.#byId = new Map(records.all().map((it) => [it.id, it]));
  }

  add(terminal: Omit<PreparedTerminal, 'id'>): PreparedTerminal {
    const prepared = { id: randomBytes(16).toString('hex'), ...terminal };
    for (const id of this.#byId.keys()) {
      if (this.#byId.size < terminalsMax) break;
      this.drop(id);
    }
    this.#records.save(prepared.id, prepared);
    this.#byId.set(prepared.id, prepared);
    return prepared;
  }

  find(sandboxId: string, id: string): PreparedTerminal | undefined {
    const found = this.#byId.get(id);
    return found?.sandboxId === sandboxId ? found : undefined;
  }

  drop(id: string): void {
    if (this.#byId.has(id)) this.#records.drop(id);
    this.#byId.delete(id);
  }

  dropWhere(isOver: (terminal: PreparedTerminal) => boolean): void {
    for (const terminal of [...this.#byId.values()]) if (isOver(terminal)) this.drop(terminal.id);
  }
}
