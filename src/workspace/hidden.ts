// Which files below a folder a guest is not shown: patterns to paths, by one quick walk.
// A pattern without `/` is one of names, at any depth; with a `/` it is one of paths from the workspace on. `*`, `?` and `[…]` stay within a name, `**`
// between slashes stands for any number of folders. Links are matched by name and never followed. What patterns of names look through ends at `.git` and
// `node_modules`: files in there are other people's, and a hundred thousand of them would make every start slow. Paths reach into them.
// It is a list of what is there when the sandbox starts: a file that the host makes later is seen.
import { neverHidden } from '../contract/workspace.ts';
import { Failure } from '../lib/failure.ts';
import { fromBytes } from '../lib/file-names.ts';
import { Folder, isAbsence, Pauses } from '../lib/folder.ts';

export const hiddenMax = 10_000;
const seenMax = 2_000_000;
const depthMax = 256;
const deadlineMs = 30_000;
const notSearched = new Set(['.git', 'node_modules']);

type Matcher = (name: string) => boolean;

interface Patterns {
  names: Matcher[];
  paths: (Matcher | '**')[][];
  kept: Set<string>;
}

/** Paths of files, folders and links below `root`, relative, with nothing below a folder that is itself in the list. */
export async function hiddenPaths(
  root: string,
  patterns: readonly string[],
  signal: AbortSignal,
  limits = { seenMax, deadlineMs },
): Promise<string[]> {
  if (patterns.length === 0) return [];
  const compiled = compile(patterns);
  const found: string[] = [];
  const until = performance.now() + limits.deadlineMs;
  const pauses = new Pauses(signal);
  let seen = 0;

  const walk = async (
    folder: Folder,
    path: string,
    ways: (Matcher | '**')[][],
    named: boolean,
    depth: number,
  ): Promise<void> => {
    for (const bytes of folder.names()) {
      await pauses.step();
      if (++seen > limits.seenMax || performance.now() > until)
        throw tooMuch(root, `${seen} files were seen`);
      const name = fromBytes(bytes);
      const here = path === '' ? name : `${path}/${name}`;
      const next = ways.flatMap((way) => steps(way, name));
      const byName = named && !compiled.kept.has(name) && compiled.names.some((it) => it(name));
      if (byName || next.some((way) => way.length === 0)) {
        found.push(here);
        if (found.length > hiddenMax) throw tooMuch(root, `more than ${hiddenMax} files are to be hidden`);
        continue;
      }
      const goOn = named && !notSearched.has(name);
      if ((!goOn && next.length === 0) || depth >= depthMax) continue;
      if (!folder.stat(bytes)?.isDirectory()) continue;
      using inner = opened(folder, bytes);
      if (inner) await walk(inner, here, next, goOn, depth + 1);
    }
  };
  using top = Folder.open(root);
  await walk(top, '', compiled.paths, compiled.names.length > 0, 0);
  return found.sort();
}

/** Whether a path below a workspace is hidden by patterns, or lies in what is, wherever it is. */
export function hides(patterns: readonly string[]): (path: string) => boolean {
  const compiled = compile(patterns);
  return (path) => {
    let ways = compiled.paths;
    for (const name of path.split('/')) {
      if (!compiled.kept.has(name) && compiled.names.some((it) => it(name))) return true;
      ways = ways.flatMap((way) => steps(way, name));
      if (ways.some((way) => way.length === 0)) return true;
    }
    return false;
  };
}

/** Throws Failure('invalid') for a pattern that means nothing. */
export function compile(patterns: readonly string[]): Patterns {
  const result: Patterns = { names: [], paths: [], kept: new Set(neverHidden) };
  for (const pattern of patterns) {
    const bare = pattern.replace(/\/+$/, '');
    const parts = bare.replace(/^\/+/, '').split('/');
    if (bare === '' || parts.some((it) => it === '' || it === '.' || it === '..') || /[\0\n]/.test(pattern)) {
      throw new Failure('invalid', `the pattern ${JSON.stringify(pattern)} of files to hide means nothing`, {
        hint: 'Write names such as *.pem, or paths from the workspace on such as /config/secret.json.',
      });
    }
    // A file that somebody names themselves is meant.
    result.kept.delete(bare);
    if (bare.includes('/')) result.paths.push(parts.map((it) => (it === '**' ? '**' : nameMatcher(it))));
    else result.names.push(nameMatcher(bare));
  }
  return result;
}

/** What is left of a way behind this name; empty when it ends here. */
function steps(way: (Matcher | '**')[], name: string): (Matcher | '**')[][] {
  const [first, ...rest] = way;
  if (first === undefined) return [];
  if (first === '**') return rest.length === 0 ? [[]] : [way, ...steps(rest, name)];
  return first(name) ? [rest] : [];
}

/** Goes back to the last star alone, so that no pattern takes long on any name. */
function nameMatcher(pattern: string): Matcher {
  const tokens = tokensOf(pattern);
  return (name) => {
    const characters = [...name];
    let token = 0;
    let back: { token: number; at: number } | undefined;
    for (let at = 0; at < characters.length; ) {
      const wanted = tokens[token];
      if (wanted === '*') back = { token: ++token, at };
      else if (wanted?.(characters[at] as string)) {
        token++;
        at++;
      } else if (back) {
        token = back.token;
        at = ++back.at;
      } else return false;
    }
    return tokens.slice(token).every((it) => it === '*');
  };
}

function tokensOf(pattern: string): ('*' | ((character: string) => boolean))[] {
  const tokens: ('*' | ((character: string) => boolean))[] = [];
  const characters = [...pattern];
  for (let at = 0; at < characters.length; at++) {
    const character = characters[at] as string;
    const close = character === '[' ? characters.indexOf(']', at + 2) : -1;
    if (character === '*') tokens.push('*');
    else if (character === '?') tokens.push(() => true);
    else if (close > 0) {
      tokens.push(setOf(characters.slice(at + 1, close)));
      at = close;
    } else tokens.push((it) => it === character);
  }
  return tokens;
}

function setOf(inside: string[]): (character: string) => boolean {
  const not = inside[0] === '!' || inside[0] === '^';
  const rest = not ? inside.slice(1) : inside;
  return (it) => {
    const member = rest.some((one, index) => {
      if (rest[index + 1] === '-' && rest[index + 2] !== undefined)
        return it >= one && it <= (rest[index + 2] as string);
      return it === one;
    });
    return member !== not;
  };
}

function opened(folder: Folder, name: Buffer): Folder | undefined {
  try {
    return folder.folder(name);
  } catch (error) {
    // What the daemon cannot look into, a guest of it cannot either.
    if (isAbsence(error) || (error as NodeJS.ErrnoException).code === 'EACCES') return undefined;
    throw error;
  }
}

function tooMuch(root: string, what: string): Failure {
  return new Failure('exhausted', `look for files to hide below ${root}: ${what}`, {
    hint: 'Name a smaller folder or fewer patterns, or hide nothing with an empty list.',
  });
}
