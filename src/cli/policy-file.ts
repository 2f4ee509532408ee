// A network policy of OpenSandbox from a file: {"defaultAction": "deny", "egress": [{"action": "allow", "target": "*.python.org"}]}.
// What is wrong with it is told with line and column, whether we find it or the server does.
import { readFile } from 'node:fs/promises';
import type { NetworkPolicy } from '../../sdk/src/index.ts';
import { SandboxError } from '../../sdk/src/index.ts';
import { NetworkPolicy as Schema } from '../contract/opensandbox.ts';
import { CliError, exitCodes, usageError } from './exit-codes.ts';
import { JsonPlaces } from './json-places.ts';

const fileBytesMax = 4 * 1024 * 1024;

export interface PolicyFile {
  policy: NetworkPolicy;
  /** The same error; with the place in the file, if it is about an entry of the policy. */
  located: (error: unknown) => unknown;
}

/** Throws a usage error with `FILE:LINE:COLUMN` for what cannot be meant. */
export async function readPolicyFile(file: string): Promise<PolicyFile> {
  const text = await readFile(file, 'utf8').catch((error: NodeJS.ErrnoException) => {
    const missing = error.code === 'ENOENT';
    const why = error.code === 'EISDIR' ? 'it is a folder' : error.message;
    throw new CliError(missing ? `there is no file ${file}` : `${file} cannot be read: ${why}`, {
      hint: 'Check the value of --network-policy-file.',
    });
  });
  if (text.length > fileBytesMax) throw usageError(`${file}: more than ${fileBytesMax} bytes`);
  const places = new JsonPlaces(file, text);
  const parsed = Schema.safeParse(places.value);
  if (!parsed.success) {
    const messages = parsed.error.issues.slice(0, 10).map((issue) => {
      const path = issue.code === 'unrecognized_keys' ? [...issue.path, issue.keys[0] ?? ''] : issue.path;
      return `${places.placeOf(path)}: ${dotted(issue.path)}${issue.message}`;
    });
    throw usageError(
      messages.join('\n'),
      'Write e.g. {"defaultAction": "deny", "egress": [{"action": "allow", "target": "*.python.org"}]}.',
    );
  }
  return {
    policy: parsed.data,
    located(error) {
      const entry = error instanceof SandboxError ? /\begress[.[](\d+)/.exec(error.message) : null;
      if (entry === null) return error;
      const { message, hint } = error as SandboxError;
      return new CliError(`${places.placeOf(['egress', Number(entry[1])])}: ${message}`, {
        ...{ exitCode: exitCodes.usage, cause: error },
        ...(hint === undefined ? {} : { hint }),
      });
    },
  };
}

function dotted(path: readonly PropertyKey[]): string {
  const text = path.map((step) => (typeof step === 'number' ? `[${step}]` : `.${String(step)}`)).join('');
  return text === '' ? '' : `${text.replace(/^\./, '')}: `;
}
