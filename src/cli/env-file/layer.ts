// What an env file may say: its keys, in the grammar of `sbx`'s sbxenv.yaml, checked and made ours. What we have no part for is refused by name, with what to
// use instead.
import { homedir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { z } from 'zod';
import { sandboxNameProblem } from '../../contract/admin.ts';
import { agentNamePattern } from '../../contract/agents.ts';
import { Failure } from '../../lib/failure.ts';
import { durationOf } from '../values.ts';
import { argumentValues, type Declared, expanded } from './arguments.ts';
import type { Key, YamlDocument } from './document.ts';

const listMax = 64;
const stepSecondsMax = 7_200;

const text = z
  .string()
  .min(1, 'is empty')
  .max(4_096, 'has more than 4096 characters')
  .refine((it) => !it.includes('\0'), 'has a NUL in it');
const yesOrNo = z.enum(['true', 'false'], 'must be true or false').transform((it) => it === 'true');
const list = <T extends z.ZodType>(item: T) => z.array(item).max(listMax, `has more than ${listMax} entries`);
const port = z
  .string()
  .regex(/^\d{1,5}$/, 'must be a port, a number from 1 to 65535')
  .transform(Number)
  .refine((it) => it >= 1 && it <= 65_535, 'must be a port, a number from 1 to 65535');
/** `./app` stands for `{ path: ./app }`. */
const folder = <T extends z.ZodType>(table: T) =>
  z.preprocess((it) => (typeof it === 'string' ? { path: it } : it), table);
const nothing = z.preprocess((it) => (it === '' ? {} : it), z.strictObject({}));
const domains = z.strictObject({ domains: list(text).min(1, 'is empty') });

const Argument = z
  .strictObject({
    default: z.string().max(4_096).optional(),
    required: yesOrNo.optional(),
    description: z.string().max(500).optional(),
    enum: list(z.string()).min(1, 'is empty').optional(),
    pattern: z.string().min(1).max(512, 'has more than 512 characters').optional(),
  })
  .refine(
    (it) => (it.default === undefined) === (it.required === true),
    'needs either a default or required: true',
  );
export type Argument = z.infer<typeof Argument>;

const argumentName = /^[A-Za-z_][A-Za-z0-9_-]{0,63}$/;
const Arguments = z.record(z.string().regex(argumentName, 'is no name of an argument'), Argument);

const EnvFile = z.strictObject({
  schemaVersion: z.literal('1', 'must be "1"'),
  name: z
    .string()
    .refine((it) => it !== 'default', 'is reserved')
    .superRefine((it, context) => {
      const problem = sandboxNameProblem(it);
      if (problem !== undefined) context.addIssue({ code: 'custom', message: problem });
    })
    .optional(),
  agent: z.string().regex(agentNamePattern, 'is no name of an agent').optional(),
  args: Arguments.default({}),
  workspace: folder(z.strictObject({ path: text, clone: yesOrNo.optional() })).optional(),
  additionalWorkspaces: list(folder(z.strictObject({ path: text, readOnly: yesOrNo.optional() }))).default(
    [],
  ),
  env: z
    .record(
      z.string().regex(/^[^=\0\s]+$/, 'is no name of a variable'),
      z
        .string()
        .max(65_536)
        .refine((it) => !it.includes('\0'), 'has a NUL in it'),
    )
    .default({}),
  sandboxOptions: z
    .strictObject({
      cpus: z
        .string()
        .regex(/^\d+(\.\d+)?$/, 'must be a number of cores')
        .optional(),
      memory: z
        .string()
        .regex(/^\d+(\.\d+)?[kmgt]?i?b?$/i, 'must be a size such as 512m or 4g')
        .optional(),
    })
    .default({}),
  secrets: z
    .preprocess(
      (it) =>
        Array.isArray(it) && it.every((name) => typeof name === 'string')
          ? Object.fromEntries(it.map((name) => [name, {}]))
          : it,
      z.record(z.string().min(1).max(128), nothing),
    )
    .default({}),
  bindings: z
    .record(
      z.string().min(1).max(128),
      z.strictObject({ apiKey: domains.optional(), oauth: domains.optional() }),
    )
    .default({}),
  ports: list(z.strictObject({ sandbox: port, host: port.optional() })).default([]),
  lifecycle: z
    .strictObject({
      initialize: list(
        z.strictObject({
          command: z
            .string()
            .min(1, 'is empty')
            .max(60_000)
            .refine((it) => !it.includes('\0'), 'has a NUL in it'),
          workdir: text.optional(),
          timeout: z
            .string()
            .transform((it) => Math.ceil(durationOf('timeout', it) / 1000))
            .refine((it) => it >= 1 && it <= stepSecondsMax, `must be from 1s to ${stepSecondsMax}s`)
            .optional(),
        }),
      ).default([]),
    })
    .default({ initialize: [] }),
});

const noHostCommands =
  'a command of a project does not run on this machine; `initialize` runs in the sandbox';
const noSources =
  'a project does not say where a key comes from: name the secret alone, and keep it with `glovebox secret set`';
/** By key, `*` for any. */
const instead: Readonly<Record<string, string>> = {
  kits: 'there are no kits: make a template (`glovebox template build`), or an agent of your own (docs/guide/agents.md)',
  registries:
    'keys of registries are not taken from a project: bring the image in with `glovebox image import`',
  mcp: "servers are not set up from here: put them into the agent's own settings, as a file of its definition",
  skills: 'skills are not shared: keep them in the project, where the agent looks for them',
  'lifecycle.postCreate': noHostCommands,
  'lifecycle.preRemove': noHostCommands,
  'sandboxOptions.writableEnvFiles': 'a file that has changed is asked about again, whoever wrote it',
  'sandboxOptions.skills': 'skills are not shared: keep them in the project, where the agent looks for them',
  ...Object.fromEntries(
    ['command', 'ref', 'value', 'env', 'file', 'refresh', 'snapshot', 'noVerify'].map((key) => [
      `secrets.*.${key}`,
      noSources,
    ]),
  ),
};

/** What one file says, with absolute paths. */
export interface Layer extends Omit<z.infer<typeof EnvFile>, 'schemaVersion' | 'args'> {}

/** Of one or more files, the later over the earlier; each with what the arguments of all of them make of it. */
export function layersOf(
  documents: readonly YamlDocument[],
  { given, projectDir }: { given: Readonly<Record<string, string>>; projectDir: string },
): { layers: Layer[]; args: Record<string, string> } {
  const declared = new Map<string, Declared>(documents.flatMap((it) => [...declaredIn(it)]));
  const args = argumentValues(declared, given);
  const layers = documents.map((document) => {
    const fileDir = dirname(document.path);
    const value = expanded(document.value, { args, projectDir, fileDir }, (key, what) =>
      failureAt(document, key, what),
    );
    return absolute(parsed(EnvFile, value, [], document), fileDir);
  });
  return { layers, args };
}

function declaredIn(document: YamlDocument): Map<string, Declared> {
  if (typeof document.value !== 'object' || Array.isArray(document.value))
    throw new Failure('invalid', `${document.path}: must be a table of keys`, {
      hint: 'It begins with schemaVersion: "1".',
    });
  const { args = {} } = document.value as { args?: unknown };
  const all = parsed(Arguments, args, ['args'], document);
  return new Map(
    Object.entries(all).map(([name, argument]) => [
      name,
      { argument, place: `${document.path}:${document.lineOf(['args', name])}` },
    ]),
  );
}

function absolute({ args: _, schemaVersion: __, ...file }: z.infer<typeof EnvFile>, fileDir: string): Layer {
  const at = (path: string) =>
    path === '~' || path.startsWith('~/') ? join(homedir(), path.slice(1)) : resolve(fileDir, path);
  return {
    ...file,
    ...(file.workspace === undefined
      ? {}
      : { workspace: { ...file.workspace, path: at(file.workspace.path) } }),
    additionalWorkspaces: file.additionalWorkspaces.map((it) => ({ ...it, path: at(it.path) })),
  };
}

function parsed<T extends z.ZodType>(
  schema: T,
  value: unknown,
  above: Key,
  document: YamlDocument,
): z.infer<T> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const issue = result.error.issues[0] as z.core.$ZodIssue;
  const key = [...above, ...(issue.path as Key)];
  if (issue.code === 'unrecognized_keys') {
    const unknown = [...key, issue.keys[0] as string];
    throw failureAt(document, unknown, whyNot(unknown), schemaHint);
  }
  if (issue.code === 'invalid_key') throw failureAt(document, key, issue.issues[0]?.message ?? issue.message);
  throw failureAt(document, key, issue.code === 'invalid_type' ? typeProblem(issue) : issue.message);
}

const schemaHint = 'See docs/guide/agents-at-home.md for what an env file can say.';

function whyNot(key: Key): string {
  const exact = key.join('.');
  const why = instead[exact] ?? instead[[key[0], '*', ...key.slice(2)].join('.')];
  return why ?? 'is no key that is known here';
}

function typeProblem(issue: z.core.$ZodIssueInvalidType): string {
  if (issue.message.endsWith('received undefined')) return 'is missing';
  return `must be ${issue.expected === 'array' ? 'a list' : issue.expected === 'string' ? 'a text' : 'a table of keys'}`;
}

export function failureAt(document: YamlDocument, key: Key, what: string, hint?: string): Failure {
  const line = document.lineOf(key);
  const name = key.join('.');
  return new Failure(
    'invalid',
    `${document.path}${line === undefined ? '' : `:${line}`}: ${name === '' ? '' : `${name}: `}${what}`,
    hint === undefined ? {} : { hint },
  );
}
