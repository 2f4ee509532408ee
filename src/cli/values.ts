// The values that options take, read strictly.
import type { SandboxError } from '../../sdk/src/errors.ts';
import { milliseconds } from '../../sdk/src/units.ts';
import { usageError } from './exit-codes.ts';

/** For options that may be repeated. */
export function collect(value: string, before: string[] = []): string[] {
  return [...before, value];
}

/** `KEY=VALUE` pairs; with `environment`, a bare `KEY` copies the variable of this shell, if it is set. */
export function pairsOf(
  option: string,
  entries: readonly string[],
  environment?: NodeJS.ProcessEnv,
): Record<string, string> {
  const pairs: Record<string, string> = {};
  for (const entry of entries) {
    const equals = entry.indexOf('=');
    const key = equals < 0 ? entry : entry.slice(0, equals);
    if (key === '' || (equals < 0 && environment === undefined)) {
      throw usageError(`${option}: '${entry}' is not of the form KEY=VALUE`);
    }
    const value = equals < 0 ? environment?.[key] : entry.slice(equals + 1);
    if (value !== undefined) pairs[key] = value;
  }
  return pairs;
}

export function numberOf(option: string, value: string, least: number): number {
  const number = value.trim() === '' ? Number.NaN : Number(value);
  if (!Number.isFinite(number) || number < least) {
    throw usageError(`${option}: '${value}' is not a number from ${least} on`);
  }
  return number;
}

export function wholeNumberOf(option: string, value: string, least: number): number {
  const number = numberOf(option, value, least);
  if (!Number.isSafeInteger(number)) throw usageError(`${option}: '${value}' is not a whole number`);
  return number;
}

/** Milliseconds. A number alone is seconds. */
export function durationOf(option: string, value: string): number {
  try {
    return milliseconds(/^\d+$/.test(value) ? `${value}s` : value, option);
  } catch (error) {
    const { message, hint } = error as SandboxError;
    throw usageError(message, hint);
  }
}

/** `a,b,c`: at least one, none of them empty. */
export function listOf(option: string, value: string): string[] {
  const items = value.split(',').map((it) => it.trim());
  if (items.includes('')) throw usageError(`${option}: '${value}' has an empty place`, 'Write e.g. a,b,c.');
  return items;
}
