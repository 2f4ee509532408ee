// A request to make a sandbox, with what an agent needs in it. Pure: what is there (secrets, images) is asked of whoever calls. What the request says
// itself stays as it is.
import { nameLabel } from '../contract/admin.ts';
import type { AgentDefinition, SetupFile } from '../contract/agents.ts';
import type { NewRule } from '../contract/network.ts';
import { Failure } from '../lib/failure.ts';
import type { CreateRequest } from '../sandbox/sandbox.ts';
import { gitSettings, gitVariables } from './git-settings.ts';
import { instructionsFor } from './instructions.ts';

export const baseTemplate = 'glovebox/base';
export const templateOf = (agent: string): string => `glovebox/${agent}`;

const autoStopAfterMs = 30_000;
/** As many characters of a key as Claude Code keeps of one that was approved of. */
const tailCharacters = 20;

/** Failure('invalid') where the runtime has neither a template nor an image of its own. */
export async function imageFor(
  definition: AgentDefinition,
  runtime: string,
  images: { has: (name: string) => Promise<boolean>; otherwise: string | undefined },
): Promise<string> {
  const { name, image } = definition;
  const said = typeof image === 'string' ? image : (image?.[runtime] ?? image?.default);
  if (said !== undefined) return said;
  for (const template of [templateOf(name), baseTemplate]) if (await images.has(template)) return template;
  if (images.otherwise !== undefined) return images.otherwise;
  throw new Failure(
    'invalid',
    `agent ${name}: runtime ${runtime} has no template ${templateOf(name)} or ${baseTemplate}`,
    {
      hint: 'Build one with `glovebox template build`, or name an image.',
    },
  );
}

/** `request.image` has been decided. */
export function planned(
  request: CreateRequest,
  definition: AgentDefinition,
  placeholderOf: (service: string) => string | undefined,
): CreateRequest {
  const { name, command, binary = command[0] as string, user, setup } = definition;
  const workspace = request.workspaces?.[0]?.path;
  const cwd = request.cwd ?? workspace;
  const keep = request.keep ?? true;
  const asked = user === undefined ? request.user : (request.user ?? user);
  return {
    ...request,
    agent: name,
    env: environmentFor(request, definition),
    files: filesFor(request, definition, placeholderOf),
    rules: rulesFor(request, definition),
    // What the request brings comes first: it is how an agent is installed.
    setup: [...(request.setup ?? []), ...setup],
    requires: {
      binary,
      message: `agent binary ${JSON.stringify(binary)} not found in sandbox (image ${request.image})`,
      hint: hintFor(definition),
    },
    keep,
    // Null stays what it is: never.
    ...(keep && request.autoStopAfterMs === undefined ? { autoStopAfterMs } : {}),
    ...(cwd === undefined ? {} : { cwd }),
    ...(asked === undefined ? {} : { user: asked }),
  };
}

function hintFor({ name, install }: AgentDefinition): string {
  const template = `Build the template ${templateOf(name)} (glovebox template build), or name an image that has it with --template`;
  return `${template}${install.length === 0 ? '' : '; or add --install to install it now'}.`;
}

function environmentFor(request: CreateRequest, { env }: AgentDefinition): Record<string, string> {
  const name = request.metadata[nameLabel];
  const workspaces = (request.workspaces ?? []).map((it) => it.path);
  const settings = [
    // What a user of the host owns may look like somebody else's inside.
    ...workspaces.map((path) => ['safe.directory', path] as const),
    ...gitSettings(env),
    ...gitSettings(request.env),
  ];
  return {
    IS_SANDBOX: '1',
    ...(name === undefined ? {} : { SANDBOX_NAME: name }),
    ...(workspaces[0] === undefined ? {} : { WORKSPACE_DIR: workspaces[0] }),
    ...env,
    ...request.env,
    ...gitVariables(settings),
  };
}

function filesFor(
  request: CreateRequest,
  definition: AgentDefinition,
  placeholderOf: (service: string) => string | undefined,
): SetupFile[] {
  const workspaces = (request.workspaces ?? []).map((it) => it.path);
  const workspace = workspaces[0] ?? request.cwd ?? '/';
  const own = request.files ?? [];
  const files = definition.files
    .filter(
      ({ if: only }) =>
        (only?.has === undefined || placeholderOf(only.has) !== undefined) &&
        (only?.lacks === undefined || placeholderOf(only.lacks) === undefined),
    )
    .map(({ if: _, ...file }) => ({
      ...file,
      content: filled(file.content, file.path, { workspace, placeholderOf }),
    }));
  const { instructions } = definition;
  // Never into a workspace: that is the user's.
  if (instructions !== undefined && !workspaces.some((path) => isBelow(instructions, path)))
    files.push({
      ...{ path: instructions, mode: '0644', keep: true },
      content: instructionsFor({ sandbox: request.metadata[nameLabel], workspaces }),
    });
  return [...files.filter((file) => !own.some((it) => it.path === file.path)), ...own];
}

const isBelow = (path: string, folder: string): boolean =>
  path === folder || path.startsWith(`${folder.replace(/\/$/, '')}/`);

/** Inside the strings of JSON and TOML a path or a key is escaped as those want it. */
function filled(
  content: string,
  path: string,
  from: { workspace: string; placeholderOf: (service: string) => string | undefined },
): string {
  const escaped = (text: string) =>
    /\.(json|toml)$/.test(path) ? JSON.stringify(text).slice(1, -1).replaceAll('\u007f', '\\u007f') : text;
  return content.replace(
    /\{\{(?:(workspace)|secret\.([a-z0-9-]+)(\.tail)?)\}\}/g,
    (_, workspace: string | undefined, service: string | undefined, tail: string | undefined) => {
      if (workspace !== undefined) return escaped(from.workspace);
      const placeholder = from.placeholderOf(service ?? '') ?? '';
      return escaped(tail === undefined ? placeholder : placeholder.slice(-tailCharacters));
    },
  );
}

function rulesFor(
  request: CreateRequest,
  { name, hosts, rules }: AgentDefinition,
): Omit<NewRule, 'sandbox'>[] {
  const own = request.rules ?? [];
  const said = new Set(own.flatMap((rule) => rule.resources.map((it) => it.toLowerCase())));
  const needed = [...new Set(hosts.map(withPort))].filter(
    (it) => !said.has(it.toLowerCase()) && !said.has(it.toLowerCase().replace(/:443$/, '')),
  );
  return [
    ...(needed.length === 0
      ? []
      : [{ decision: 'allow' as const, resources: needed, name: `agent ${name}` }]),
    ...rules.filter((rule) => !rule.resources.some((it) => said.has(it.toLowerCase()))),
    ...own,
  ];
}

/** Names alone are meant at HTTPS's port. */
const withPort = (host: string): string => (/^[\w*.-]+$/.test(host) ? `${host}:443` : host);
