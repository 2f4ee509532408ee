// glovebox template: the images that sandboxes are made from.
import { createReadStream, createWriteStream } from 'node:fs';
import { access, readFile, rename, rm, stat } from 'node:fs/promises';
import { basename, join, matchesGlob, relative, resolve } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { packTar } from 'modern-tar/fs';
import type { BuildEvent, SandboxClient, TemplateInfo } from '../../../sdk/src/index.ts';
import { connect } from '../connect.ts';
import { CliError, usageError } from '../exit-codes.ts';
import { clean, print, printJson, say, sizeText, span, table, withProgress, writeAll } from '../output.ts';

/** The names of ready recipes and of the templates that they make. */
const recipeTags: Readonly<Record<string, string>> = { base: 'glovebox/base' };

export interface BuildOptions {
  tag?: string;
  file?: string;
  runtime?: string;
  buildArg?: string[];
  target?: string;
  cache: boolean;
  network?: boolean;
  quiet?: boolean;
  json?: boolean;
}

export async function build(folder: string, options: BuildOptions): Promise<void> {
  const recipeTag = Object.hasOwn(recipeTags, folder) ? recipeTags[folder] : undefined;
  const plan =
    recipeTag === undefined
      ? await folderPlan(folder, options)
      : { file: `recipe:${folder}`, tag: recipeTag, context: new Uint8Array(1024) };
  const { runtime, target } = options;
  const client = await connect();
  const template = await client.templates.build(options.tag ?? plan.tag, plan.context, {
    file: plan.file,
    args: argumentsOf(options.buildArg ?? []),
    noCache: !options.cache,
    network: options.network === true,
    ...(runtime === undefined ? {} : { runtime }),
    ...(target === undefined ? {} : { target }),
    ...(options.quiet ? {} : { onEvent: tell }),
  });
  await (options.json ? printJson(template) : print(template.name));
}

function tell(event: BuildEvent): void {
  if (event.type === 'output') process.stderr.write(clean(event.text));
  else say(`[${event.number}/${event.of}] ${clean(event.label)}${event.cached ? ' (cached)' : ''}`);
}

async function folderPlan(folder: string, options: BuildOptions) {
  const found = await stat(folder).catch(() => undefined);
  if (!found?.isDirectory())
    throw new CliError(`${folder} is neither a folder nor a recipe`, {
      hint: `Name the folder of a Dockerfile or of a template.toml, or one of: ${Object.keys(recipeTags).join(', ')}.`,
    });
  const file =
    options.file ?? ((await exists(join(folder, 'template.toml'))) ? 'template.toml' : 'Dockerfile');
  const inside = relative(folder, resolve(folder, file));
  if (inside.startsWith('..'))
    throw usageError(`--file: ${file} is not in ${folder}`, 'A build sees its own folder only.');
  if (!(await exists(join(folder, inside))))
    throw new CliError(`there is no ${file} in ${folder}`, { hint: 'Name the file with --file.' });
  const ignored = ignoring(await readFile(join(folder, '.dockerignore'), 'utf8').catch(() => ''));
  const packed = packTar(folder, {
    filter: (path) => {
      const below = relative(folder, path);
      return below === '' || below === inside || !ignored(below);
    },
  });
  const tag = basename(resolve(folder))
    .toLowerCase()
    .replace(/[^a-z0-9._-]+/g, '-');
  return { file: inside, tag, context: Readable.toWeb(packed) as ReadableStream<Uint8Array> };
}

/** The rules of a .dockerignore: the last line that fits decides, `!` takes back, a folder stands for all below it. */
export function ignoring(text: string): (path: string) => boolean {
  const rules = text
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '' && !line.startsWith('#'))
    .map((line) => ({
      keep: line.startsWith('!'),
      pattern: line.replace(/^!/, '').replace(/^\/+|\/+$/g, ''),
    }));
  return (path) => {
    const parts = path.split('/');
    const above = parts.map((_, index) => parts.slice(0, index + 1).join('/'));
    return rules.reduce(
      (ignored, { keep, pattern }) => (above.some((it) => matchesGlob(it, pattern)) ? !keep : ignored),
      false,
    );
  };
}

function argumentsOf(pairs: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    pairs.map((pair) => {
      const at = pair.indexOf('=');
      const [key, value] = at < 0 ? [pair, process.env[pair]] : [pair.slice(0, at), pair.slice(at + 1)];
      if (key === '' || value === undefined)
        throw usageError(
          `--build-arg: '${pair}' has no value`,
          'Write KEY=VALUE, or KEY for a variable that is set.',
        );
      return [key, value];
    }),
  );
}

const exists = (path: string) =>
  access(path).then(
    () => true,
    () => false,
  );

export async function save(
  reference: string,
  tag: string,
  options: { output?: string; json?: boolean },
): Promise<void> {
  const client = await connect();
  const sandbox = await client.connect(reference);
  const template = await sandbox.save(tag);
  if (options.output !== undefined) await writeTo(options.output, client, template);
  await (options.json ? printJson(template) : print(template.name));
}

export async function load(
  file: string,
  options: { tag?: string; runtime?: string; json?: boolean },
): Promise<void> {
  const tag =
    options.tag ?? (file === '-' ? undefined : basename(file).replace(/\.(tar|tgz)?(\.(gz|zst))?$/, ''));
  if (!tag) throw usageError('template load: a template from stdin needs a name', 'Add --tag NAME.');
  if (file === '-' && process.stdin.isTTY)
    throw usageError('template load: stdin is a terminal', 'Pipe an archive in.');
  if (file !== '-' && !(await exists(file))) throw new CliError(`there is no file ${file}`);
  const source: AsyncIterable<Uint8Array> = file === '-' ? process.stdin : createReadStream(file);
  const body = Readable.toWeb(Readable.from(withProgress(`loading ${tag}`, source), { objectMode: false }));
  const { runtime } = options;
  const template = await (await connect()).templates.load(tag, body as ReadableStream<Uint8Array>, {
    ...(runtime === undefined ? {} : { runtime }),
  });
  await (options.json ? printJson(template) : print(template.name));
}

export async function exportTemplate(
  name: string,
  options: { output?: string; runtime?: string },
): Promise<void> {
  const client = await connect();
  const { runtime } = options;
  if (options.output !== undefined)
    return await writeTo(options.output, client, { name, ...(runtime === undefined ? {} : { runtime }) });
  if (process.stdout.isTTY)
    throw usageError(
      'template export: refusing to write an archive to a terminal',
      'Pipe it on, or add --output FILE.',
    );
  const stream = await client.templates.export(name, runtime === undefined ? {} : { runtime });
  for await (const chunk of Readable.fromWeb(stream as never)) await writeAll(1, chunk as Uint8Array);
}

/** The whole file or none. */
async function writeTo(
  path: string,
  client: SandboxClient,
  template: { name: string; runtime?: string },
): Promise<void> {
  const { name, runtime } = template;
  const beside = `${path}.${process.pid}.part`;
  try {
    const stream = await client.templates.export(name, runtime === undefined ? {} : { runtime });
    const bytes = withProgress(
      `writing ${path}`,
      Readable.fromWeb(stream as never) as AsyncIterable<Uint8Array>,
    );
    await pipeline(bytes, createWriteStream(beside, { flags: 'wx' }));
    await rename(beside, path);
  } catch (error) {
    await rm(beside, { force: true });
    throw error;
  }
}

export async function list(options: { quiet?: boolean; json?: boolean }): Promise<void> {
  const templates = await (await connect()).templates.list();
  if (options.json) return await printJson(templates);
  if (options.quiet)
    return templates.length > 0
      ? await print([...new Set(templates.map((it) => it.name))].join('\n'))
      : undefined;
  await print(table(['TEMPLATE', 'RUNTIME', 'ID', 'SIZE', 'CREATED', 'BASE'], templates.map(rowOf)));
}

function rowOf({ name, runtime, id, sizeBytes, createdAt, base }: TemplateInfo): string[] {
  const short = id.replace(/^sha256:/, '').slice(0, 12);
  return [
    name,
    runtime,
    short,
    sizeText(sizeBytes),
    `${span(Date.now() - createdAt.getTime())} ago`,
    base ?? '-',
  ];
}

export async function remove(names: string[], options: { runtime?: string }): Promise<void> {
  const client = await connect();
  const { runtime } = options;
  for (const name of names) {
    await client.templates.remove(name, runtime === undefined ? {} : { runtime });
    await print(name);
  }
}
