// One file that is a shell script, JavaScript and Python at once: to be copied into any container that has Node.js, Bun or python3.
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Failure } from '../../lib/failure.ts';

/**
 * sh runs the second line and never comes further; JavaScript sees two expressions, then its program, then a comment; Python sees an expression, two
 * strings, then its program. Failure('invalid') for programs that would end the string or the comment around them.
 */
export function standAlone(js: string, python: string): string {
  if (js.includes('"""'))
    throw new Failure('invalid', 'the JavaScript client has """, which would end the string around it');
  if (python.includes('*/'))
    throw new Failure('invalid', 'the Python client has */, which would end the comment around it');
  return [
    '#!/bin/sh',
    `":" == 1 // 1; '''':; ${launcher} # '''`,
    '1 // 1; r"""',
    js.trimEnd(),
    '/* """',
    python.trimEnd(),
    '# */',
    '',
  ].join('\n');
}

/** In one line, for sh. Python runs isolated from the folder that the file lies in. */
const launcher = [
  'case "$(node -v 2>/dev/null)" in v1[89].*|v[2-9]?.*|v[1-9]??.*) exec node "$0" "$@";; esac',
  'command -v python3 >/dev/null 2>&1 && exec python3 -I "$0" "$@"',
  'command -v bun >/dev/null 2>&1 && exec bun "$0" "$@"',
  'echo "sandbox-comm: needs Node.js (18 or later), python3 or bun" >&2',
  'exit 69',
].join('; ');

/** The client as one file, with a first line that starts it. */
export async function standAloneClient(): Promise<string> {
  const [js, python] = await Promise.all([clientScript(), read('client.py')]);
  return standAlone(js, python);
}

/** The client in JavaScript, for a folder that has its runtime. */
export const clientScript = (): Promise<string> => read('client.cjs');

const read = (name: string): Promise<string> => readFile(join(import.meta.dirname, name), 'utf8');
