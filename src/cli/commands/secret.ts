// glovebox secret: what sandboxes may use without ever holding it. A value goes from here to the daemon and is never printed.
import { resolve } from 'node:path';
import type {
  SandboxClient,
  SecretBinding,
  SecretInfo,
  SecretSource,
  SetSecret,
} from '../../../sdk/src/index.ts';
import { type ServiceName, serviceVariables } from '../../contract/services.ts';
import { connect, serverIsHere } from '../connect.ts';
import { CliError, usageError } from '../exit-codes.ts';
import { hostCredentials } from '../host-credentials.ts';
import { cleanLine, print, printJson, say, table } from '../output.ts';
import { askHidden, atTerminal, confirm } from '../terminal.ts';
import { durationOf, listOf, wholeNumberOf } from '../values.ts';

/** Services that need no bindings of one's own. */
export const serviceNames = Object.keys(serviceVariables) as ServiceName[];

/** Longer values are refused by the server. */
const valueBytesMax = 65_536;

export interface SourceOptions {
  /** The value itself, on the command line. */
  token?: string;
  value?: string;
  /** A variable of this shell. */
  fromEnv?: string;
  file?: string;
  command?: string;
  refresh?: string;
}

export interface SetOptions extends SourceOptions {
  sandbox?: string;
  force?: boolean;
  json?: boolean;
}

/** A service; or one of set-custom, which keeps its bindings and its placeholder. */
export async function set(name: string | undefined, options: SetOptions): Promise<void> {
  if (name === undefined)
    throw usageError(
      'secret set: name a service',
      `There are ${serviceNames.join(', ')}; see also set-custom.`,
    );
  if ((serviceNames as string[]).includes(name)) return await store({ name }, options);
  const client = await connect();
  const sandboxId = await idOf(client, options.sandbox);
  const custom = (await client.secrets.list()).find((it) => it.name === name && it.sandboxId === sandboxId);
  if (custom === undefined)
    throw usageError(
      `secret set: '${name}' is neither a service nor a secret that is there`,
      `Services are ${serviceNames.join(', ')}; for others: glovebox secret set-custom ${name} --host HOST`,
    );
  const { bindings, env, placeholder } = custom;
  await store({ name, bindings, env, placeholder }, options);
}

async function idOf(client: SandboxClient, sandbox: string | undefined): Promise<string | undefined> {
  return sandbox === undefined ? undefined : (await client.find(sandbox)).id;
}

export interface CustomOptions extends SetOptions {
  host?: string[];
  port?: string[];
  env?: string[];
  placeholder?: string;
  header?: string;
  format?: string;
  method?: string;
  path?: string[];
  substitute?: string;
  awsSigv4?: boolean;
}

export async function setCustom(name: string | undefined, options: CustomOptions): Promise<void> {
  const { host: hosts = [], env, placeholder } = options;
  const [first] = hosts;
  if (first === undefined)
    throw usageError(
      'secret set-custom: give at least one --host',
      'A secret goes to the hosts it is bound to only.',
    );
  await store(
    {
      name: name ?? first.replace(/^\*+\./, '').toLowerCase(),
      bindings: [bindingOf(hosts, options)],
      ...(env ? { env } : {}),
      ...(placeholder === undefined ? {} : { placeholder }),
    },
    options,
  );
}

const parts = ['header', 'query', 'path', 'body'] as const;

function bindingOf(hosts: string[], options: CustomOptions): SecretBinding {
  const { port, header, format, method, path, substitute, awsSigv4 } = options;
  if (format !== undefined && header === undefined)
    throw usageError('--format: says how the value stands in a header', 'Name the header with --header.');
  // As `sbx` does it: without a header of its own the placeholder is what is replaced.
  const replaced = substitute ?? (header === undefined && !awsSigv4 ? 'header' : undefined);
  return {
    hosts,
    ...(port ? { ports: port.map((it) => wholeNumberOf('--port', it, 1)) } : {}),
    ...(header === undefined ? {} : { header }),
    ...(format === undefined ? {} : { format }),
    ...(method === undefined ? {} : { methods: listOf('--method', method).map((it) => it.toUpperCase()) }),
    ...(path ? { paths: path } : {}),
    ...(replaced === undefined ? {} : { substitute: listOf('--substitute', replaced).map(partOf) }),
    ...(awsSigv4 ? { awsSigV4: true } : {}),
  };
}

function partOf(text: string): (typeof parts)[number] {
  const part = parts.find((it) => it === text);
  if (part === undefined) throw usageError(`--substitute: '${text}' is none of ${parts.join(', ')}`);
  return part;
}

async function store(secret: Omit<SetSecret, 'source' | 'sandbox'>, options: SetOptions): Promise<void> {
  // What is wrong with the line is said before a value is asked for.
  const given = givenSource(options);
  const client = await connect();
  const { sandbox, force } = options;
  const sandboxId = await idOf(client, sandbox);
  if (!force) {
    const existing = await client.secrets.list();
    if (existing.some((it) => it.name === secret.name && it.sandboxId === sandboxId))
      await mayReplace(secret.name, sandbox);
  }
  const source = given ?? { type: 'value' as const, value: await typedValue(secret.name) };
  const info = await client.secrets.set({
    ...{ ...secret, source },
    ...(sandboxId === undefined ? {} : { sandbox: sandboxId }),
  });
  await (options.json
    ? printJson(info)
    : print(`Secret set (scope: ${scopeName(sandbox)}): ${cleanLine(info.name)}`));
}

const scopeName = (sandbox: string | undefined) =>
  sandbox === undefined ? 'global' : `sandbox:${cleanLine(sandbox)}`;

async function mayReplace(name: string, sandbox: string | undefined): Promise<void> {
  if (!atTerminal())
    throw new CliError(
      `there is a secret '${name}' already (scope: ${scopeName(sandbox)}); nothing was set`,
      {
        hint: 'Add -f to replace it.',
      },
    );
  await confirm(`Replace the secret '${name}' (scope: ${scopeName(sandbox)})?`, 'nothing was set');
}

/** The source that the options name; undefined when the value comes from stdin or the keyboard. */
function givenSource({
  token,
  value,
  fromEnv,
  file,
  command,
  refresh,
}: SourceOptions): SecretSource | undefined {
  const given = [token, value, fromEnv, file, command].filter((it) => it !== undefined);
  if (given.length > 1) throw usageError('a value comes from one place only', 'Give one of these options.');
  if (refresh !== undefined && command === undefined) throw usageError('--refresh goes with --command only');
  const plain = token ?? value;
  if (plain !== undefined) {
    if (plain === '') throw usageError('--token: is empty');
    say(
      'A value on the command line can be seen by others on this machine: pipe it in, or type it when asked.',
    );
    return { type: 'value', value: plain };
  }
  if (fromEnv !== undefined) {
    const found = process.env[fromEnv];
    if (!found)
      throw usageError(
        `the variable ${fromEnv} is not set in this shell`,
        'Export it, or use another source.',
      );
    return { type: 'value', value: found };
  }
  if (file !== undefined) return { type: 'file', path: resolve(file) };
  if (command === undefined) return undefined;
  return {
    ...{ type: 'command', command: ['sh', '-c', command] },
    ...(refresh === undefined ? {} : { refreshSeconds: refreshOf(refresh) }),
  };
}

function refreshOf(text: string): number {
  return text === 'on-demand' ? 0 : Math.ceil(durationOf('--refresh', text) / 1000);
}

/** From a pipe or file on stdin; else typed, without being shown. */
async function typedValue(name: string): Promise<string> {
  if (!process.stdin.isTTY) return checkedValue(await pipedValue());
  if (!process.stderr.isTTY)
    throw usageError('secret: cannot ask for the value', 'Pipe it in, or give one of the options for it.');
  return checkedValue(await askHidden(`Value of '${name}' (is not shown): `, 'nothing was set'));
}

function checkedValue(text: string): string {
  const value = text.replace(/\r?\n$/, '');
  if (value === '') throw usageError('the value is empty', 'Pipe it in, or give one of the options for it.');
  return value;
}

async function pipedValue(): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of process.stdin as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > valueBytesMax + 2)
      throw usageError(`stdin: more than the ${valueBytesMax} bytes of a secret`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString();
}

export interface ImportOptions {
  all?: boolean;
  force?: boolean;
  dryRun?: boolean;
}

/** Takes what this shell's environment holds for services, and where this machine keeps logins of agents: those stay where they are. */
export async function importSecrets(service: string | undefined, options: ImportOptions): Promise<void> {
  const { offers, withheld } = hostCredentials({ local: serverIsHere() });
  const here = offers.map((it) => `${it.service} (${it.from})`).join(', ') || 'nothing';
  if ((service === undefined) === (options.all !== true))
    throw usageError(
      'secret import: name a service, or give --all',
      `In this environment there is: ${here}.`,
    );
  if (service !== undefined && !(serviceNames as string[]).includes(service))
    throw usageError(
      `secret import: '${service}' is no service that is known here`,
      `There are ${serviceNames.join(', ')}.`,
    );
  const wanted = offers.filter((it) => options.all || it.service === service);
  if (wanted.length === 0) {
    const variables =
      service === undefined ? undefined : serviceVariables[service as ServiceName].join(' or ');
    throw new CliError(`there is nothing to import${variables ? `: ${variables} is not set` : ''}`, {
      hint: `In this environment there is: ${here}.`,
    });
  }
  const { secrets } = await connect();
  if (options.all) for (const { what, why } of withheld) say(`Not ${what}: ${why}.`);
  const global = new Set(
    (await secrets.list()).filter((it) => it.sandboxId === undefined).map((it) => it.name),
  );
  let kept = 0;
  for (const { service: name, source, from } of wanted) {
    if (global.has(name) && !options.force) {
      say(`${name} is there already and stays as it is; --force replaces it.`);
      kept++;
      continue;
    }
    if (!options.dryRun) await secrets.set({ name, source: source as SecretSource });
    await print(`${options.dryRun ? 'Would import' : 'Imported'} ${name} from ${from} (scope: global)`);
  }
  if (service !== undefined && kept > 0) throw new CliError('nothing was imported', { hint: 'Add --force.' });
}

export interface ListOptions {
  sandbox?: string;
  service?: string;
  json?: boolean;
}

export async function ls(options: ListOptions): Promise<void> {
  const client = await connect();
  const { sandbox, service } = options;
  const all = await client.secrets.list(sandbox === undefined ? {} : { sandbox });
  const secrets = all.filter((it) => service === undefined || it.name === service);
  const scoped = secrets.some((it) => it.sandboxId !== undefined);
  const names = new Map(scoped ? (await client.list()).map((info) => [info.id, info.name ?? info.id]) : []);
  const scope = ({ sandboxId }: SecretInfo) =>
    sandboxId === undefined ? '(global)' : (names.get(sandboxId) ?? sandboxId);
  if (options.json) return await printJson(secrets.map((it) => ({ ...it, scope: scope(it) })));
  const services = secrets.filter((it) => it.service);
  const custom = secrets.filter((it) => !it.service);
  const tables = [
    ...(services.length === 0
      ? []
      : [
          table(
            ['SCOPE', 'TYPE', 'NAME', 'SECRET'],
            services.map((it) => [scope(it), 'service', it.name, shown(it)]),
          ),
        ]),
    ...(custom.length === 0
      ? []
      : [
          `CUSTOM SECRETS\n${table(
            ['SCOPE', 'TARGETS', 'ENV', 'PLACEHOLDER', 'SECRET', 'NAME'],
            custom.map((it) => [
              ...[scope(it), targetsOf(it), it.env.join(',') || '-', it.placeholder, shown(it), it.name],
            ]),
          )}`,
        ]),
  ];
  if (tables.length > 0) await print(tables.join('\n\n'));
  else say('There are no secrets; see `glovebox secret set --help`.');
}

/** The mask; and where the value comes from, if it is not kept here. */
const shown = ({ masked, sourceType }: SecretInfo) =>
  sourceType === 'value' ? masked : `${masked} (${sourceType})`.trim();

const targetsOf = ({ bindings }: SecretInfo) =>
  bindings
    .flatMap(({ hosts, ports }) =>
      hosts.map((host) => (ports.join() === '443' ? host : `${host}:${ports.join('/')}`)),
    )
    .join(',');

export interface RemoveOptions {
  sandbox?: string;
  allSandboxes?: boolean;
  force?: boolean;
}

export async function rm(name: string | undefined, options: RemoveOptions): Promise<void> {
  const { sandbox, allSandboxes, force } = options;
  if (sandbox !== undefined && allSandboxes)
    throw usageError('secret rm: --sandbox and --all-sandboxes exclude each other');
  if (name === undefined && !force && !atTerminal())
    throw usageError('secret rm: name a secret', 'Or add -f to remove all of the scope.');
  const client = await connect();
  const sandboxId = await idOf(client, sandbox);
  const doomed = (await client.secrets.list()).filter(
    (it) => (name === undefined || it.name === name) && (allSandboxes || it.sandboxId === sandboxId),
  );
  const scope = allSandboxes ? 'all' : scopeName(sandbox);
  if (doomed.length === 0)
    throw new CliError(`there is no secret${name === undefined ? '' : ` '${name}'`} (scope: ${scope})`, {
      hint: 'See `glovebox secret ls`; --sandbox names another scope.',
    });
  if (!force) {
    const what = doomed.length === 1 ? `the secret '${doomed[0]?.name}'` : `${doomed.length} secrets`;
    await confirm(`Remove ${what} (scope: ${scope})?`, 'no secret was removed');
  }
  for (const secret of doomed) {
    await client.secrets.remove(secret.id);
    await print(
      `Secret removed (scope: ${secret.sandboxId === undefined ? 'global' : scopeName(sandbox ?? secret.sandboxId)}): ${cleanLine(secret.name)}`,
    );
  }
}
