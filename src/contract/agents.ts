// Agents as data: what a coding agent needs to run unattended in a sandbox. Built in, from `<home>/agents/*.toml`, or from a project's `.glovebox/agents/*.toml`.
//
//   GET /v1/agents           -> 200 { items: AgentInfo[] }
//   GET /v1/agents/{name}    -> 200 AgentInfo
import { z } from 'zod';
import { NewRule } from './network.ts';
import { serviceVariables } from './services.ts';

const shortText = z
  .string()
  .min(1)
  .max(4096)
  .regex(/^[^\0]*$/, 'must not contain NUL');
const guestPath = z
  .string()
  .max(4096)
  .regex(/^(\/|~\/)/, 'must be absolute, or begin with ~/')
  .refine((it) => !it.split('/').includes('..') && !it.includes('\0'), 'must not contain ..');

export const agentNamePattern = /^[a-z0-9][a-z0-9-]{0,39}$/;

/** A shell line that runs in the sandbox while it is made (`create`), or at every start, before anything else of it. */
export const SetupStep = z.strictObject({
  run: z.string().min(1).max(65_536),
  when: z.enum(['create', 'start']).default('create'),
  /** Default: the guest's root. `agent` stands for the user that commands run as. */
  user: z.string().min(1).max(128).optional(),
  env: z.record(z.string().regex(/^[^=\0]+$/), z.string()).optional(),
  /** What a person reads while it runs. */
  label: z.string().max(200).optional(),
  /** What it may reach while it runs, and no longer, beside what the sandbox may: names, or `name:port`; port 443 when none is said. */
  hosts: z.array(z.string().min(1).max(512)).max(64).optional(),
  timeoutSeconds: z.int().min(1).max(7_200).default(1_800),
});
export type SetupStep = z.infer<typeof SetupStep>;

/**
 * A file that is written into the sandbox when it is made. In an agent's definition, `{{workspace}}` in the content is the path of the main workspace,
 * `{{secret.SERVICE}}` the placeholder of a service's secret, `{{secret.SERVICE.tail}}` the last 20 characters of that. `~/` is the home folder of the user that commands run as. */
export const SetupFile = z.strictObject({
  path: guestPath,
  content: z.string().max(1_048_576),
  mode: z
    .string()
    .regex(/^0?[0-7]{3}$/, 'must be an octal mode such as 0644')
    .default('0644'),
  /** Leave a file that is there already. */
  keep: z.boolean().default(false),
});
export type SetupFile = z.infer<typeof SetupFile>;

/** Where a part of a definition holds only if a credential of the service is there (or only if none is). */
const condition = z.strictObject({
  has: z.enum(Object.keys(serviceVariables) as [string, ...string[]]).optional(),
  lacks: z.enum(Object.keys(serviceVariables) as [string, ...string[]]).optional(),
});

export const AgentDefinition = z.strictObject({
  name: z.string().regex(agentNamePattern, 'use at most 40 small letters, digits and -'),
  description: z.string().max(500).default(''),
  /** The image or template by runtime; `default` for all others. Absent: the runtime's own default. */
  image: z.union([shortText, z.record(z.string(), shortText)]).optional(),
  /** What `run` starts: the program and its arguments for unattended use. */
  command: z.array(shortText).min(1).max(256),
  /** Arguments for a person's own session instead of those of `command`, where they differ. */
  interactive: z.array(shortText).max(256).optional(),
  /** The file that has to be in the image, looked for in PATH; default: the first word of `command`. */
  binary: shortText.optional(),
  /** How to get the agent where the image has it not: printed, or run with `--install`. */
  install: z.array(SetupStep).max(64).default([]),
  setup: z.array(SetupStep).max(64).default([]),
  env: z.record(z.string().regex(/^[^=\0]+$/), z.string().max(65_536)).default({}),
  files: z
    .array(SetupFile.extend({ if: condition.optional() }))
    .max(64)
    .default([]),
  /** What it has to reach, in the words of `policy allow network`; port 443 when none is said. */
  hosts: z.array(z.string().min(1).max(512)).max(256).default([]),
  rules: z
    .array(NewRule.omit({ sandbox: true }))
    .max(256)
    .default([]),
  /** Services whose credentials it looks for, best first. Without any it asks to be logged in. */
  credentials: z
    .array(z.enum(Object.keys(serviceVariables) as [string, ...string[]]))
    .max(16)
    .default([]),
  /** Where it reads instructions about its surroundings: ours are written there, unless the workspace has the file. */
  instructions: guestPath.optional(),
  user: z.string().max(128).optional(),
});
export type AgentDefinition = z.infer<typeof AgentDefinition>;

export const AgentInfo = AgentDefinition.extend({
  source: z.enum(['built-in', 'config', 'project']),
  /** Of the services it can use, those that a secret is stored for. */
  available: z.array(z.string()),
});
export type AgentInfo = z.infer<typeof AgentInfo>;
