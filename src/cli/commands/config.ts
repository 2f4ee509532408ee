// glovebox init-config and glovebox config: configuration files before a daemon reads them. No daemon is asked or started.
import { link, mkdir, open, rename, rm } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import {
  type ConfigExample,
  configExamples,
  configExampleText,
  missingExamples,
} from '../../contract/config-examples.ts';
import { configJsonSchema } from '../../contract/config-schema.ts';
import { loadConfig } from '../../daemon/config.ts';
import { Failure } from '../../lib/failure.ts';
import { homeFolder } from '../connect.ts';
import { CliError, exitCodes, usageError } from '../exit-codes.ts';
import { clean, print, printJson, say } from '../output.ts';

export async function initConfig(
  path: string | undefined,
  { example, force }: { example: string; force?: boolean },
): Promise<void> {
  const text = configExampleText(exampleNamed(example));
  if (path === '-') return await print(text.trimEnd());
  const file = resolve(path ?? join(homeFolder(), 'config.toml'));
  if (path === undefined) await mkdir(homeFolder(), { recursive: true, mode: 0o700 });
  await writeNew(file, text, { replace: force === true });
  say(`${clean(file)} is written. Look at it, then: glovebox config check ${clean(file)}`);
}

function exampleNamed(name: string): ConfigExample {
  if (Object.hasOwn(configExamples, name)) return name as ConfigExample;
  const why = Object.hasOwn(missingExamples, name) ? missingExamples[name] : undefined;
  throw usageError(
    `--example: ${why === undefined ? `there is no '${name.slice(0, 64)}'` : `${name}: ${why}`}`,
    `There are ${Object.keys(configExamples).join(', ')}.`,
  );
}

/** The file is there whole or not at all, and only this user may read it: a key may be written into it. */
async function writeNew(file: string, text: string, { replace }: { replace: boolean }): Promise<void> {
  const beside = join(dirname(file), `.${process.pid}.new-config`);
  try {
    const draft = await open(beside, 'wx', 0o600);
    try {
      await draft.writeFile(text);
      await draft.sync();
    } finally {
      await draft.close();
    }
    await (replace ? rename(beside, file) : link(beside, file));
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    if (code === 'EEXIST')
      throw new CliError(`${file} is there already; nothing was written`, {
        hint: 'Name another file, or replace it with --force.',
      });
    throw new CliError(`${file} cannot be written: ${message}`, {
      ...{ cause, exitCode: code === 'EACCES' || code === 'EPERM' ? exitCodes.permission : exitCodes.failed },
      hint: 'Name a file in a folder that is there and that you may write.',
    });
  } finally {
    await rm(beside, { force: true });
  }
}

export async function checkConfig(file: string | undefined, options: { json?: boolean }): Promise<void> {
  const sources = { env: process.env, ...(file === undefined ? {} : { configPath: file }) };
  try {
    const config = await loadConfig(sources);
    if (options.json)
      return await printJson({ file: config.file ?? null, problems: [], warnings: config.warnings });
    for (const warning of config.warnings) say(`warning: ${clean(warning)}`);
    await print(config.file === undefined ? 'no file; the defaults hold' : `${clean(config.file)}: fine`);
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    const problems = (error.details?.problems as string[] | undefined) ?? [error.message];
    if (options.json) {
      await printJson({ file: file ?? null, problems, warnings: [] });
      process.exitCode = exitCodes.config;
      return;
    }
    throw new CliError(error.message, {
      ...{ exitCode: exitCodes.config, cause: error },
      ...(error.hint === undefined ? {} : { hint: error.hint }),
    });
  }
}

export async function configSchema(): Promise<void> {
  await print(JSON.stringify(configJsonSchema(), null, 2));
}
