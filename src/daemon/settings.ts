// Changes of the configuration's file, key by key: nothing else in it changes, and nothing is written that a daemon would not start with.
import { constants } from 'node:fs';
import { type FileHandle, mkdir, open, readFile, realpath, rename, rm, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { parse } from 'smol-toml';
import { partsOfKey } from '../contract/config.ts';
import { Failure } from '../lib/failure.ts';
import { withKey } from '../lib/toml.ts';
import { aboutKey, type ConfigSources, loadConfig, loadSettings, type Setting, valueFor } from './config.ts';

const documentBytesMax = 1024 * 1024;

/** Never shown: whoever has one of these may do what the daemon does, here or with another service. */
const secretKeys = ['server.api_key', 'telemetry.headers', 'ingress.secure_access.keys'];

export const isSecret = (key: string): boolean => secretKeys.includes(key);

export interface SettingChange {
  file: string;
  /** Whether the file is another one now. */
  changed: boolean;
  /** As it is with the change: the environment may still say something else. */
  setting: Setting;
  /** What a daemon warns of now and did not before. */
  warnings: string[];
}

/** `text`: the value as a person writes it; undefined takes the key out of the file. Throws Failure('invalid'), and then nothing has been written. */
export async function changeSetting(
  sources: ConfigSources,
  { key, text }: { key: string; text: string | undefined },
): Promise<SettingChange> {
  aboutKey(key);
  const value = text === undefined ? undefined : valueFor(key, text);
  const { file, before } = await currentFile(sources);
  const document = changed(before.text, { key, value, file });
  const after = await loadSettings({ ...sources, document }).catch((error: Failure) => {
    throw new Failure('invalid', `${key} cannot be changed like this: ${error.message}`, {
      cause: error,
      hint: `Nothing was written. What is wrong beside it can be mended in ${file} with an editor.`,
    });
  });
  const setting = after.settings.find((it) => it.key === key) as Setting;
  const warnings = await newWarnings(sources, before.text, document);
  if (document === before.text) return { file, changed: false, setting, warnings: [] };
  const mode = before.mode ?? 0o600;
  await replace(file, Buffer.from(document), {
    ...{ before, mode: isSecret(key) && value !== undefined ? mode & 0o700 : mode },
  });
  return { file, changed: true, setting, warnings };
}

interface Current {
  text: string;
  /** Undefined where there is no file. */
  mode?: number;
  owner?: { uid: number; gid: number };
}

/** The file itself, where the configured name is a link to it. */
async function currentFile(sources: ConfigSources): Promise<{ file: string; before: Current }> {
  // Mistakes in what is there count only once the change has been made: it may be what mends them.
  const named = (await loadSettings({ ...sources, env: fileOnly(sources.env), document: '' })).file;
  const doing = `read the configuration ${named}`;
  const file = await realpath(named).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return named;
    throw Failure.from(error, doing);
  });
  return { file, before: await currentContent(file) };
}

/** Of the environment, what says where the file is. */
function fileOnly(env: ConfigSources['env']): ConfigSources['env'] {
  const names = ['HOME', 'GLOVEBOX_HOME', 'GLOVEBOX_CONFIG', 'SANDBOX_CONFIG_PATH'];
  return Object.fromEntries(names.map((name) => [name, env[name]]));
}

async function currentContent(file: string): Promise<Current> {
  const doing = `read the configuration ${file}`;
  try {
    const found = await stat(file);
    if (!found.isFile()) throw new Failure('invalid', `${file} is not a file`);
    if (found.size > documentBytesMax)
      throw new Failure('invalid', `${file} has ${found.size} bytes; the most is ${documentBytesMax}`);
    const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(await readFile(file));
    return { text, mode: found.mode & 0o777, owner: { uid: found.uid, gid: found.gid } };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return { text: '' };
    if (error instanceof TypeError)
      throw new Failure('invalid', `${file} is not UTF-8, as TOML has to be`, { cause: error });
    throw Failure.from(error, doing);
  }
}

/** The document with the change, having looked that it is this change and no other. */
function changed(
  text: string,
  { key: dotted, value, file }: { key: string; value: unknown; file: string },
): string {
  const { section, key } = partsOfKey(dotted);
  const before = parsed(text, file);
  const said = value === undefined ? undefined : tomlOf(value);
  const wanted = structuredClone(before);
  const table = tableAt(wanted, section.split('.'));
  if (value === undefined && !(table !== undefined && Object.hasOwn(table, key))) return text;
  if (value === undefined) delete table?.[key];
  else if (table !== undefined) table[key] = value;
  const document = withKey(text, { section, key, value: said });
  // A section without keys says nothing, whether its header stays or not.
  const plain = (it: Record<string, unknown>): Record<string, unknown> =>
    Object.fromEntries(
      Object.entries(it)
        .map(([name, inner]) => [name, isTable(inner) ? plain(inner) : inner] as const)
        .filter(([, inner]) => !isEmpty(inner)),
    );
  if (document !== undefined && isDeepStrictEqual(plain(parsedOrEmpty(document)), plain(wanted)))
    return document;
  throw new Failure(
    'unsupported',
    `${file}: ${dotted} stands there in a form that only a person can change`,
    {
      hint: `Write it below a line [${section}], as ${key} = ${said ?? '…'}.`,
    },
  );
}

/** Made where it is missing; undefined where something else is in its place. */
function tableAt(
  root: Record<string, unknown>,
  path: readonly string[],
): Record<string, unknown> | undefined {
  let table = root;
  for (const name of path) {
    if (!Object.hasOwn(table, name)) table[name] = {};
    const inner = table[name];
    if (!isTable(inner)) return undefined;
    table = inner;
  }
  return table;
}

const isTable = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
const isEmpty = (value: unknown) => isTable(value) && Object.keys(value).length === 0;

function parsed(text: string, file: string): Record<string, unknown> {
  try {
    return copied(parse(text));
  } catch (cause) {
    throw new Failure('invalid', `${file} is not TOML: ${(cause as Error).message.split('\n')[0]}`, {
      cause,
      hint: 'Mend it with an editor; nothing was written.',
    });
  }
}

function parsedOrEmpty(text: string): Record<string, unknown> {
  try {
    return copied(parse(text));
  } catch {
    return {};
  }
}

/** Without the prototypes that a parser gives its tables. */
const copied = (table: object) => structuredClone(table) as Record<string, unknown>;

function tomlOf(value: unknown): string {
  // Strings of JSON are strings of TOML: a value holds no control characters.
  return Array.isArray(value)
    ? `[${value.map((it) => JSON.stringify(it)).join(', ')}]`
    : JSON.stringify(value);
}

async function newWarnings(sources: ConfigSources, before: string, after: string): Promise<string[]> {
  const of = async (document: string) => (await loadConfig({ ...sources, document })).warnings;
  const old = await of(before).catch((): readonly string[] => []);
  return (await of(after)).filter((it) => !old.includes(it));
}

/** The new content is whole before it takes the file's place, and takes none that somebody else has changed meanwhile. */
async function replace(
  file: string,
  content: Buffer,
  { before, mode }: { before: Current; mode: number },
): Promise<void> {
  if (content.length > documentBytesMax)
    throw new Failure(
      'invalid',
      `${file} would have ${content.length} bytes; the most is ${documentBytesMax}`,
    );
  const beside = `${file}.${process.pid}.new`;
  let draft: FileHandle | undefined;
  try {
    await mkdir(dirname(file), { recursive: true, mode: 0o700 });
    // Nobody else has our number: what is there was left by one that was killed.
    await rm(beside, { force: true });
    draft = await open(beside, constants.O_CREAT | constants.O_EXCL | constants.O_WRONLY, 0o600);
    if (before.owner !== undefined && before.owner.uid !== process.getuid?.())
      await draft.chown(before.owner.uid, before.owner.gid);
    await draft.writeFile(content);
    await draft.chmod(mode);
    await draft.sync();
    if ((await currentContent(file)).text !== before.text)
      throw new Failure('conflict', `${file} changed meanwhile`, { hint: 'Try again.' });
    await rename(beside, file);
  } catch (error) {
    if (draft !== undefined) await rm(beside, { force: true });
    throw Failure.from(error, `write the configuration ${file}`);
  } finally {
    await draft?.close();
  }
}
