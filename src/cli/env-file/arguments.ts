// What an env file may be told: the arguments that it declares, what they are given, and the three kinds of expressions that become values.

import { compilePattern, mismatch } from '../../bell/commands.ts';
import { Failure } from '../../lib/failure.ts';
import type { Key } from './document.ts';
import type { Argument } from './layer.ts';

const valueCharactersMax = 4_096;

export interface Declared {
  argument: Argument;
  /** `PATH:LINE`. */
  place: string;
}

/** Failure('invalid') for what is not declared, is missing, or does not fit. */
export function argumentValues(
  declared: ReadonlyMap<string, Declared>,
  given: Readonly<Record<string, string>>,
): Record<string, string> {
  for (const name of Object.keys(given))
    if (!declared.has(name))
      throw new Failure('invalid', `--env-arg: the env file has no argument '${name}'`, {
        hint:
          declared.size === 0
            ? 'It declares none.'
            : `It declares ${[...declared.keys()].sort().join(', ')}.`,
      });
  const values: [string, string][] = [];
  for (const [name, { argument, place }] of declared) {
    const value = Object.hasOwn(given, name) ? given[name] : argument.default;
    if (value === undefined)
      throw new Failure('invalid', `${place}: the argument '${name}' has to be given`, {
        hint: `Add --env-arg ${name}=VALUE${argument.description ? `: ${argument.description}` : ''}`,
      });
    const problem = problemOf(value, argument);
    if (problem !== undefined) throw new Failure('invalid', `${place}: the argument '${name}' ${problem}`);
    values.push([name, value]);
  }
  return Object.fromEntries(values);
}

function problemOf(value: string, { enum: choices, pattern }: Argument): string | undefined {
  const shown = `is '${value.slice(0, 100)}'`;
  if (value.length > valueCharactersMax) return `has more than ${valueCharactersMax} characters`;
  if (value.includes('\0')) return 'has a NUL in it';
  if (choices !== undefined && !choices.includes(value)) return `${shown}, not one of ${choices.join(', ')}`;
  if (pattern === undefined) return undefined;
  const compiled = compilePattern(pattern);
  if (typeof compiled === 'string') return `has a pattern that cannot be used: ${compiled}`;
  const how = mismatch([compiled], [value]);
  if (how === -1) return undefined;
  return how === 'slow'
    ? `${shown}, which takes its pattern too long`
    : `${shown}, which does not match ${pattern}`;
}

export interface Known {
  args: Readonly<Record<string, string>>;
  projectDir: string;
  fileDir: string;
}

/** Every text in it with its expressions replaced; keys stay, and so does what stands in `args`. `fail` gets the place of what is none. */
export function expanded(value: unknown, known: Known, fail: (key: Key, what: string) => Failure): unknown {
  const visit = (it: unknown, key: Key): unknown => {
    if (typeof it === 'string') return replaced(it, known, (what) => fail(key, what));
    if (Array.isArray(it)) return it.map((item, index) => visit(item, [...key, index]));
    return Object.fromEntries(
      Object.entries(it as object).map(([name, inner]) => [
        name,
        key.length === 0 && name === 'args' ? inner : visit(inner, [...key, name]),
      ]),
    );
  };
  return visit(value, []);
}

function replaced(
  text: string,
  { args, projectDir, fileDir }: Known,
  fail: (what: string) => Failure,
): string {
  return text.replace(/\$(\$\{\{)|\$\{\{([^}]*)(\}\})?/g, (_, escaped?: string, inner = '', end?: string) => {
    if (escaped !== undefined) return escaped;
    const word = inner.trim();
    if (end === undefined)
      throw fail('an expression has no }}; write $$ before {{ for the characters themselves');
    if (word === 'env.projectDir') return projectDir;
    if (word === 'env.fileDir') return fileDir;
    const name = /^env\.args\.(.+)$/s.exec(word)?.[1];
    if (name !== undefined && Object.hasOwn(args, name)) return args[name] as string;
    if (name !== undefined) throw fail(`\${{ ${word} }}: there is no argument '${name}' under args`);
    throw fail(`\${{ ${word} }}: there are env.args.NAME, env.projectDir and env.fileDir`);
  });
}
