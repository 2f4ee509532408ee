// glovebox bell client and bell unit: files for machines and containers that are no sandboxes of ours, printed or written.
import { chmod, readFile, realpath } from 'node:fs/promises';
import { join } from 'node:path';
import { homeFolder } from '../connect.ts';
import { CliError } from '../exit-codes.ts';
import { cleanLine, print, say } from '../output.ts';
import { saveTo } from '../save-to.ts';

const top = join(import.meta.dirname, '../../..');

export async function client({ output }: { output?: string }): Promise<void> {
  const { standAloneClient } = await import('../../bell/client/stand-alone.ts');
  const text = await standAloneClient();
  if (output === undefined) return await print(text.trimEnd());
  await save(output, text);
  await chmod(output, 0o755);
}

export async function unit({ system, output }: { system?: boolean; output?: string }): Promise<void> {
  const program = await realpath(join(top, 'bin/glovebox'));
  const name = system ? 'glovebox-bell-system.service' : 'glovebox-bell.service';
  const home = system || !process.env.GLOVEBOX_HOME ? undefined : homeFolder();
  const text = unitFor(await readFile(join(top, 'deploy/systemd', name), 'utf8'), program, home);
  if (system && /^\/(home|root|run\/user)\//.test(program))
    say(
      `glovebox: the unit cannot see ${cleanLine(program)}: no home folder is shown to it. Install Glovebox in /opt, say.`,
    );
  await (output === undefined ? print(text.trimEnd()) : save(output, text));
}

export const save = async (path: string, text: string) =>
  await saveTo(
    path,
    (async function* () {
      yield Buffer.from(text);
    })(),
  );

/** The unit with this program in it; and with another home than the usual one, if that is given. */
export function unitFor(text: string, program: string, home: string | undefined): string {
  const [before, after] = text.split('ExecStart=/opt/glovebox/bin/glovebox');
  const environment = home === undefined ? '' : `Environment=${quoted(`GLOVEBOX_HOME=${home}`)}\n`;
  return `${before}${environment}ExecStart=${quoted(program)}${after}`;
}

/** As a unit reads it: a word in which `%` means nothing. */
function quoted(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what it looks for
  if (/[\u0000-\u001f\u007f]/.test(text))
    throw new CliError(`${cleanLine(text)} has control characters, which no unit can hold`, {
      hint: 'Move it to a path without.',
    });
  const escaped = text.replace(/[\\"]/g, '\\$&').replaceAll('%', '%%');
  return /[\s"'\\]/.test(text) ? `"${escaped}"` : escaped;
}
