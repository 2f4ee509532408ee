// Secrets of sandboxes that are no secrets for requests: one sealed note for each sandbox, read again from the disk whenever it is asked for.

import { type KeyPlace, keyKeeper } from './key.ts';
import { readSealedFile, type SealingKey, writeSealedFile } from './sealed-file.ts';

export interface SealedNotes {
  get(sandboxId: string): Promise<unknown>;
  save(sandboxId: string, content: unknown): Promise<void>;
  forget(sandboxId: string): Promise<void>;
  /** Ids of sandboxes that have one. */
  all(): Promise<string[]>;
}

/** Failure when the file cannot be opened whole: nothing is changed then. `keyFile`: as for the vault, whose key it shares. */
export function openSealedNotes(options: {
  file: string;
  keyFile: string;
  keyring: 'file' | 'auto' | 'system';
  /** What a note holds, to whoever lists them. */
  name: string;
  secretTool?: string;
}): SealedNotes {
  const keys = keyKeeper({ keyFile: options.keyFile, secretTool: options.secretTool ?? 'secret-tool' });
  const place: KeyPlace = options.keyring === 'system' ? 'system' : 'file';
  const last: { change: Promise<unknown> } = { change: Promise.resolve() };
  const read = () => readSealedFile(options.file, keys);
  const change = (sandboxId: string, content: unknown): Promise<void> => {
    const done = last.change.then(async () => {
      const file = await read();
      const others = (file?.records ?? []).filter((it) => it.sandboxId !== sandboxId);
      if (content === undefined && others.length === (file?.records.length ?? 0)) return;
      const key: SealingKey = file?.key ?? { place, bytes: await keys.made(place) };
      const note = { id: sandboxId, name: options.name, sandboxId, content };
      await writeSealedFile(options.file, content === undefined ? others : [...others, note], key);
    });
    last.change = done.catch(() => {});
    return done;
  };
  return {
    get: async (sandboxId) => (await read())?.records.find((it) => it.sandboxId === sandboxId)?.content,
    save: change,
    forget: (sandboxId) => change(sandboxId, undefined),
    all: async () => ((await read())?.records ?? []).flatMap(({ sandboxId }) => sandboxId ?? []),
  };
}
