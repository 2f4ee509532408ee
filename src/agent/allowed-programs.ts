// Which programs may be started at all, where the owner of a machine has named them. Looked at by what a program really is, and by the name it is called by,
// for one file may be many programs. It bounds what is started from outside: what an allowed program starts by itself is its own business.
import { realpathSync } from 'node:fs';
import { basename } from 'node:path';
import { defaultPath } from '../contract/guest-wire.ts';
import type { Prepared } from './lookup.ts';
import { shown } from './paths.ts';
import { Refusal } from './refusal.ts';

/** With these a program does what its caller likes rather than what it is for. */
const steering =
  /^(LD_.*|GCONV_PATH|BASH_ENV|ENV|BASH_FUNC_.*|SHELLOPTS|BASHOPTS|PS4|IFS|PYTHON.*|PERL5?(LIB|OPT|DB)|RUBY(OPT|LIB)|NODE_(OPTIONS|PATH)|BUN_.*|JAVA_TOOL_OPTIONS|_JAVA_OPTIONS|GIT_(SSH.*|EXEC_PATH|EXTERNAL_DIFF|CONFIG.*|PAGER|EDITOR|ASKPASS|PROXY_COMMAND)|PAGER|EDITOR|VISUAL|BROWSER|LESS(OPEN|CLOSE))$/;

export class AllowedPrograms {
  readonly #entries: readonly string[];

  constructor(entries: readonly string[]) {
    this.#entries = entries;
  }

  /** Those of the candidates that may be started, each by its true path. Throws Refusal('permission'). */
  check({ candidates, spec }: Prepared): string[] {
    const name = basename(spec.argv[0] ?? '');
    const allowed = this.#places(name);
    const fitting = candidates.flatMap((it) => {
      const real = realOf(it);
      return real !== undefined && allowed.has(real) ? [real] : [];
    });
    if (fitting.length === 0) {
      const [first = name] = candidates;
      throw new Refusal('permission', `${shown(first)}: not a program that may be started on this machine`);
    }
    const bad = Object.keys(spec.env).find((it) => steering.test(it));
    if (bad !== undefined)
      throw new Refusal(
        'permission',
        `environment variable ${shown(bad)}: not where only some programs may be started, for it makes them run others`,
      );
    if (spec.env.PATH !== defaultPath)
      throw new Refusal(
        'permission',
        `environment variable PATH: must be ${defaultPath} where only some programs may be started`,
      );
    return fitting;
  }

  /** Where the programs of this name on the list are, at this moment. */
  #places(name: string): Set<string> {
    const places = this.#entries
      .filter((it) => basename(it) === name)
      .flatMap((it) =>
        it.startsWith('/') ? [it] : defaultPath.split(':').map((folder) => `${folder}/${it}`),
      );
    return new Set(places.flatMap((it) => realOf(it) ?? []));
  }
}

function realOf(path: string): string | undefined {
  try {
    return realpathSync(path);
  } catch {
    return undefined;
  }
}
