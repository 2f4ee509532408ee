// What sandboxes may be called, and what they are called when nobody says.
import { basename } from 'node:path';
import { sandboxNameProblem } from '../contract/admin.ts';
import { usageError } from './exit-codes.ts';

const nameCharactersMax = 63;

export function checkName(name: string): string {
  const problem = name === 'default' ? 'is reserved' : sandboxNameProblem(name);
  if (problem === undefined) return name;
  throw usageError(
    name === '' ? '--name: is empty' : `--name: '${name}' ${problem}`,
    name === '' ? 'Leave it out, and one is made.' : 'Choose another, e.g. web or api-2.',
  );
}

/** `claude-app` for the agent `claude` in `/work/app`, `node-app` for the image `docker.io/library/node:24`. */
export function defaultName(word: string, folder: string): string {
  const reference = word.replace(/@.*$/s, '').replace(/:[^/:]*$/, '');
  const parts = [basename(reference), basename(folder)].map(wordOf).filter((it) => it !== '');
  const name = trimmed(parts.join('-').slice(0, nameCharactersMax));
  return sandboxNameProblem(name) === undefined && name !== 'default' ? name : `sandbox-${name}`;
}

/** The name itself, or the first of `name-2`, `name-3`, … that is free. */
export function freeName(name: string, taken: ReadonlySet<string>): string {
  for (let number = 1; ; number++) {
    const suffix = number === 1 ? '' : `-${number}`;
    const candidate = `${trimmed(name.slice(0, nameCharactersMax - suffix.length))}${suffix}`;
    if (!taken.has(candidate)) return candidate;
  }
}

function wordOf(text: string): string {
  return trimmed(text.replace(/[^A-Za-z0-9._+-]+/g, '-'));
}

function trimmed(text: string): string {
  return text.replace(/^[^A-Za-z0-9]+/, '').replace(/[^A-Za-z0-9_+]+$/, '');
}
