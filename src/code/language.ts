// What an interpreter is made of: a program of the guest, and our driver that makes it live from run to run.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

export interface Language {
  /** The beginning of the ids of its interpreters: by them they are found again after a restart of the daemon. */
  readonly prefix: string;
  readonly argv: readonly string[];
  /** Where its frames come; each run ends on all of them. */
  readonly lanes: readonly ('stdout' | 'stderr')[];
  readonly env?: Record<string, string>;
  /** Whom it runs as; by default as commands do. */
  readonly user?: string;
  /** It has one process: when that has ended, there is nothing to go on with. */
  readonly once?: boolean;
  /** Kept with its process. */
  readonly note?: string;
}

const driver = (file: string): string => readFileSync(join(import.meta.dirname, 'drivers', file), 'utf8');
const both = ['stdout', 'stderr'] as const;
const bash = { argv: ['bash', '--noprofile', '--norc', '-c', driver('bash.sh')], lanes: ['stdout'] } as const;
const jupyter = driver('jupyter.py');
const node = driver('node.cjs');

/**
 * The shell of an isolated session, in which bash is the only thing that lives: it goes on by itself where code has ended it, and ends when it has heard nothing
 * for so long (0: never).
 */
export const isolatedShell = (idleSeconds: number): readonly string[] => [
  ...[...bash.argv, 'bash'],
  ...[String(idleSeconds), 'stay'],
];
export const bashLanes = bash.lanes;

/** stderr goes where stdout goes, in the order in which both were written. */
export const bashSession: Language = { prefix: 'session', ...bash };

/** The exit status of a driver that finds nothing in this image to work with. */
export const nothingToDrive = 64;

const own: Record<string, Omit<Language, 'prefix'>> = {
  python: { argv: ['python3', '-c', driver('python.py')], lanes: both },
  javascript: { argv: ['node', '-e', node, 'javascript'], lanes: both },
  typescript: { argv: ['node', '-e', node, 'typescript'], lanes: both },
  bash,
};
export const ownLanguages = Object.keys(own);

const names: Record<string, string> = {
  py: 'python',
  python3: 'python',
  js: 'javascript',
  ts: 'typescript',
  sh: 'bash',
};

/** As it is called here; lower case. */
export function languageName(given: string): string {
  const name = given.trim().toLowerCase();
  return Object.hasOwn(names, name) ? (names[name] as string) : name;
}

/** What may run a language, best first: a kernel of Jupyter, if the image has one, then the language's own program. */
export function interpretersOf(name: string): Language[] {
  const mine = Object.hasOwn(own, name) ? own[name] : undefined;
  return [
    { prefix: `jupyter-${name}`, argv: ['python3', '-c', jupyter, name], lanes: both },
    ...(mine === undefined ? [] : [{ prefix: name, ...mine }]),
  ];
}

/** What an interpreter is, by its id. */
export function languageOf(id: string): { name: string; language: Language } | undefined {
  const [, prefix = '', name = ''] = /^((?:jupyter-)?([a-z0-9.+#_-]{1,32}))-[0-9a-f]{32}$/.exec(id) ?? [];
  if (prefix === bashSession.prefix) return { name: 'bash', language: bashSession };
  const language = interpretersOf(name).find((it) => it.prefix === prefix);
  return language && { name, language };
}

export const isLanguageName = (name: string): boolean => /^[a-z0-9.+#_-]{1,32}$/.test(name);
