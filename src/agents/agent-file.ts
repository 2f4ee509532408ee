// Definitions of agents that somebody has written: TOML, checked, with the line of what is wrong.
import { basename } from 'node:path';
import { parse, TomlError } from 'smol-toml';
import type { z } from 'zod';
import { AgentDefinition } from '../contract/agents.ts';
import { Failure } from '../lib/failure.ts';
import { keyLines } from '../lib/toml.ts';

export const agentFileBytesMax = 256 * 1024;

/** Its name defaults to the file's. Failure('invalid') begins with `PATH:LINE`. */
export function parseAgentFile(text: string, path: string): AgentDefinition {
  if (Buffer.byteLength(text) > agentFileBytesMax)
    throw new Failure('invalid', `${path}: has more than ${agentFileBytesMax} bytes`);
  const document = parsedToml(text, path);
  const parsed = AgentDefinition.safeParse({ name: basename(path, '.toml'), ...document });
  if (parsed.success) return parsed.data;
  const lines = keyLines(text);
  throw new Failure('invalid', problemOf(parsed.error.issues[0] as z.core.$ZodIssue, lines, path), {
    hint: 'See docs/guide/agents.md for what a definition can say.',
  });
}

function parsedToml(text: string, path: string): Record<string, unknown> {
  try {
    return parse(text);
  } catch (error) {
    if (!(error instanceof TomlError)) throw Failure.from(error, `read ${path}`);
    const why = (error.message.split('\n')[0] ?? '').replace(/^Invalid TOML document: /, '');
    throw new Failure('invalid', `${path}:${error.line}:${error.column}: is not TOML: ${why}`);
  }
}

function problemOf(issue: z.core.$ZodIssue, lines: Map<string, number>, path: string): string {
  const unknown = issue.code === 'unrecognized_keys' ? issue.keys[0] : undefined;
  const key = [...issue.path.map(String), ...(unknown === undefined ? [] : [unknown])].join('.');
  const line = lineOf(key, lines);
  const what = unknown === undefined ? issue.message : 'is no key that is known here';
  return `${path}${line === undefined ? '' : `:${line}`}: ${key === '' ? '' : `${key}: `}${what}`;
}

/** Of the key, or of the nearest thing around it. */
function lineOf(key: string, lines: Map<string, number>): number | undefined {
  for (let path = key; path !== ''; path = path.slice(0, Math.max(path.lastIndexOf('.'), 0))) {
    const line = lines.get(path) ?? lines.get(path.replace(/\.\d+(?=\.|$)/g, ''));
    if (line !== undefined) return line;
  }
  return undefined;
}
