// Whether one path is among those that patterns hide: the same answer that hidden.ts finds by its walk, for paths that are known already.
import { compile } from './hidden.ts';

const notSearched = new Set(['.git', 'node_modules']);

/** For paths below the workspace. What lies below a hidden folder is hidden, too. */
export function hides(patterns: readonly string[]): (path: string) => boolean {
  if (patterns.length === 0) return () => false;
  const { names, paths, kept } = compile(patterns);
  type Way = (typeof paths)[number];
  const steps = (way: Way, name: string): Way[] => {
    const [first, ...rest] = way;
    if (first === undefined) return [];
    if (first === '**') return rest.length === 0 ? [[]] : [way, ...steps(rest, name)];
    return first(name) ? [rest] : [];
  };
  return (path) => {
    let ways = paths;
    let named = names.length > 0;
    for (const name of path.split('/')) {
      if (named && !kept.has(name) && names.some((it) => it(name))) return true;
      ways = ways.flatMap((way) => steps(way, name));
      if (ways.some((way) => way.length === 0)) return true;
      named = named && !notSearched.has(name);
      if (!named && ways.length === 0) return false;
    }
    return false;
  };
}
