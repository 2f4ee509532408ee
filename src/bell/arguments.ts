// What guests send with an action, taken apart: every mistake is said with the name of the argument and what it should be.
import { BellError } from './bell.ts';

export type Arguments = Readonly<Record<string, unknown>>;

/** Refuses what an action does not know, rather than doing half of what was asked for. */
export function only(action: string, args: Arguments, known: readonly string[]): void {
  const strange = Object.keys(args).find((name) => !known.includes(name));
  if (strange === undefined) return;
  const takes = known.length === 0 ? 'takes no arguments' : `takes ${known.join(', ')}`;
  throw new BellError('bad_request', `${action} ${takes}; it was given ${shown(strange)}`);
}

/** Text, which has to be there unless `fallback` says what stands for it. */
export function text(action: string, args: Arguments, name: string, fallback?: string): string {
  const value = Object.hasOwn(args, name) ? args[name] : undefined;
  if (value === undefined && fallback !== undefined) return fallback;
  if (typeof value === 'string') return value;
  throw new BellError(
    'bad_request',
    `${action}: ${name} ${value === undefined ? 'is missing' : 'is no text'}; example: {"action":"${action}","args":{"${name}":"…"}}`,
  );
}

const shown = (name: string): string => JSON.stringify(name.length > 40 ? `${name.slice(0, 40)}…` : name);
