// glovebox settings: the configuration that a daemon of this machine starts with. Read and changed where it lies, whether a daemon runs or not.
import { isReloaded } from '../../contract/config.ts';
import { aboutKey, loadSettings, type Setting } from '../../daemon/config.ts';
import { changeSetting, isSecret, type SettingChange } from '../../daemon/settings.ts';
import { Failure } from '../../lib/failure.ts';
import { daemonProcess, homeFolder, serverIsNamed } from '../connect.ts';
import { CliError, exitCodes } from '../exit-codes.ts';
import { clean, print, printJson, say, table } from '../output.ts';

const sources = () => ({ env: process.env });

const mask = '********';
const shownCharactersMax = 40;

export async function listSettings(options: {
  all?: boolean;
  trunc: boolean;
  json?: boolean;
}): Promise<void> {
  const { file, settings } = await loaded();
  const shown = settings.filter((it) => options.all || it.source !== 'default');
  if (options.json) return await printJson({ file, settings: shown.map(entryOf) });
  if (shown.length === 0)
    return say('All settings are at their defaults: see `glovebox settings list --all`.');
  const rows = shown.map((it) => {
    const value = textOf(it);
    const long = options.trunc && value.length > shownCharactersMax;
    const shownValue = long ? `${value.slice(0, shownCharactersMax - 1)}…` : value || '-';
    return [it.key, shownValue, it.source, needsRestart(it) ? 'yes' : 'no', it.description];
  });
  await print(table(['KEY', 'VALUE', 'SOURCE', 'RESTART', 'DESCRIPTION'], rows));
}

export async function getSetting(key: string, options: { json?: boolean }): Promise<void> {
  aboutKey(key);
  const setting = (await loaded()).settings.find((it) => it.key === key) as Setting;
  await (options.json ? printJson(entryOf(setting)) : print(clean(textOf(setting))));
}

export async function setSetting(key: string, text: string): Promise<void> {
  tell(await changeSetting(sources(), { key, text }), 'holds this already');
}

export async function unsetSetting(key: string): Promise<void> {
  tell(await changeSetting(sources(), { key, text: undefined }), 'does not say it');
}

async function loaded(): Promise<Awaited<ReturnType<typeof loadSettings>>> {
  sayOtherServer();
  return await loadSettings(sources()).catch((error: unknown) => {
    if (!(error instanceof Failure)) throw error;
    const hint = error.hint === undefined ? {} : { hint: error.hint };
    throw new CliError(error.message, { exitCode: exitCodes.config, cause: error, ...hint });
  });
}

function sayOtherServer(): void {
  if (serverIsNamed())
    say("These are settings of this machine's daemon, not of the server that the environment names.");
}

function tell({ file, changed, setting, warnings }: SettingChange, already: string): void {
  sayOtherServer();
  if (!changed) return say(`${clean(file)} ${already}: ${setting.key} is ${textOf(setting) || 'not set'}.`);
  say(`${setting.key} is ${clean(textOf(setting)) || 'not set'} now (${clean(file)}).`);
  for (const warning of warnings) say(`warning: ${clean(warning)}`);
  if (setting.source === 'environment')
    say(`The ${clean(setting.place ?? 'environment')} goes before the file, where it is set.`);
  const daemon = daemonProcess(homeFolder());
  if (daemon === undefined) return say('It holds from the next start of the daemon on.');
  if (!needsRestart(setting))
    return say(`The daemon takes it over when it reads its configuration again: \`kill -HUP ${daemon}\`.`);
  say(
    `It holds after a restart of the daemon: \`kill ${daemon}\`, and the next command starts it again. Sandboxes go on meanwhile.`,
  );
  if (setting.key === 'server.port')
    say('A daemon that a command starts takes any free port; `glovebox serve` takes this one.');
}

const needsRestart = ({ key }: Setting) => !isReloaded(key);

/** As Docker's daemon shows its own. */
function entryOf(setting: Setting): object {
  const { key, value, default: usual, kind, source, place, choices, description } = setting;
  return {
    ...{ key, value: masked(setting) ?? value ?? null, default: usual ?? null, type: kind, source },
    ...(place === undefined ? {} : { place }),
    ...(choices === undefined ? {} : { choices }),
    ...{ env_var: setting.variable, requires_restart: needsRestart(setting), description },
  };
}

function textOf(setting: Setting): string {
  const { value } = setting;
  return masked(setting) ?? (Array.isArray(value) ? value.join(',') : String(value ?? ''));
}

/** What is shown instead of a secret. */
function masked({ key, value }: Setting): string | undefined {
  if (isSecret(key) && (Array.isArray(value) ? value.length > 0 : value !== undefined)) return mask;
  if (typeof value !== 'string') return undefined;
  const login = /^(https?:\/\/)[^@/]+@/.exec(value);
  return login === null ? undefined : `${login[1]}${mask}@${value.slice(login[0].length)}`;
}
