// glovebox completion: scripts for shells, which ask this same program what fits. So they know every verb and option there is, and the
// sandboxes that exist; no daemon is started for it.
import type { Command, Option } from 'commander';
import { configSections } from '../../contract/config.ts';
import { configExamples } from '../../contract/config-examples.ts';
import { serviceVariables } from '../../contract/services.ts';
import { connectIfRunning } from '../connect.ts';
import { usageError } from '../exit-codes.ts';
import { cleanLine, print } from '../output.ts';

const scripts: Record<string, string> = {
  bash: `_glovebox() {
  local line
  COMPREPLY=()
  while IFS= read -r line; do
    COMPREPLY+=("\${line%%$'\\t'*}")
  done < <(glovebox __complete "\${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
  [ "\${#COMPREPLY[@]}" -eq 1 ] && [ "\${COMPREPLY[0]: -1}" = : ] && compopt -o nospace
}
complete -o default -o bashdefault -F _glovebox glovebox`,
  zsh: `#compdef glovebox
_glovebox() {
  local -a found
  found=("\${(@f)$(glovebox __complete "\${(@)words[2,CURRENT]}" 2>/dev/null)}")
  found=("\${(@)found//:/\\\\:}")
  found=("\${(@)found/$'\\t'/:}")
  if [[ -n "\${found[1]}" ]]; then _describe glovebox found; else _files; fi
}
compdef _glovebox glovebox`,
  fish: `function __glovebox_complete
  set -l words (commandline -opc) (commandline -ct)
  glovebox __complete $words[2..-1] 2>/dev/null
end
set -l with_files cp import exec serve init-config check run create save build load export client unit env backup restore
complete -c glovebox -f -n "not __fish_seen_subcommand_from $with_files" -a '(__glovebox_complete)'
complete -c glovebox -n "__fish_seen_subcommand_from $with_files" -a '(__glovebox_complete)'`,
};

export async function completion(shell: string): Promise<void> {
  const script = scripts[shell];
  if (script === undefined)
    throw usageError(`completion: unknown shell '${shell}'`, 'There are bash, zsh and fish.');
  await print(script);
}

type Candidates = [word: string, meaning: string][];

const words = (...all: string[]): Candidates => all.map((word) => [word, '']);

/** What may stand at each place behind a verb; the last one again and again, if `more`. */
interface Places {
  at: ((before: readonly string[]) => Candidates | Promise<Candidates>)[];
  more?: boolean;
}

const sandbox = () => sandboxNames('');
const oneSandbox: Places = { at: [sandbox] };
const sandboxes: Places = { at: [sandbox], more: true };
const network: Places = { at: [() => words('network')] };
const services = () => words(...Object.keys(serviceVariables));

const placesOf: Record<string, Places> = {
  run: { at: [agentsAndSandboxes] },
  create: { at: [agents] },
  exec: oneSandbox,
  attach: { at: [sandbox, ([reference]) => processIds(reference as string)] },
  sessions: oneSandbox,
  ports: oneSandbox,
  save: oneSandbox,
  start: sandboxes,
  ssh: oneSandbox,
  diff: oneSandbox,
  apply: oneSandbox,
  discard: oneSandbox,
  checkpoint: oneSandbox,
  'checkpoint ls': oneSandbox,
  undo: { at: [sandbox, ([reference]) => checkpointIds(reference as string)] },
  fetch: oneSandbox,
  fork: oneSandbox,
  'snapshot create': oneSandbox,
  'snapshot rm': { at: [snapshotIds], more: true },
  'ssh proxy': oneSandbox,
  'image rm': { at: [imageNames], more: true },
  'template save': oneSandbox,
  'template export': { at: [templateNames] },
  'template rm': { at: [templateNames], more: true },
  'settings get': { at: [settingKeys] },
  'settings set': { at: [settingKeys, ([key]) => settingValues(key as string)] },
  'settings unset': { at: [settingKeys] },
  logs: { at: [sandbox, ([reference]) => processIds(reference as string)] },
  ps: oneSandbox,
  why: { at: [sandbox, ([reference]) => processIds(reference as string)] },
  renew: oneSandbox,
  inspect: sandboxes,
  stop: sandboxes,
  pause: sandboxes,
  resume: sandboxes,
  rm: sandboxes,
  cp: { at: [() => sandboxNames(':')], more: true },
  completion: { at: [() => words(...Object.keys(scripts))] },
  'network proxy': oneSandbox,
  'network log': oneSandbox,
  'bell allow': { at: [bellActions] },
  'bell ask': { at: [bellActions] },
  'bell deny': { at: [bellActions] },
  'bell forget': { at: [bellActions] },
  'bell token rm': { at: [bellTokens], more: true },
  'policy init': { at: [presets] },
  'policy allow': network,
  'policy deny': network,
  'policy ask': network,
  'policy bypass': network,
  'policy rm': network,
  'policy check': network,
  'policy ls': oneSandbox,
  'policy log': oneSandbox,
  'policy learn': oneSandbox,
  'policy inspect': { at: [ruleIds] },
  'policy approval answer': { at: [questionIds, () => words('allow', 'deny')] },
  'secret set': { at: [services] },
  'secret import': { at: [services] },
  'secret rm': { at: [secretNames] },
  'volume inspect': { at: [volumeNames], more: true },
  'volume rm': { at: [volumeNames], more: true },
};

/** `line`: all behind `glovebox`, the last word being what is typed. Prints one candidate a line, behind a tab its meaning. */
export async function complete(program: Command, line: readonly string[]): Promise<void> {
  const typed = line.at(-1) ?? '';
  const candidates = await candidatesFor(program, line.slice(0, -1), typed);
  const fitting = candidates.filter(([word]) => word.startsWith(typed));
  if (fitting.length > 0)
    await print(
      fitting.map(([word, meaning]) => cleanLine(word) + (meaning && `\t${cleanLine(meaning)}`)).join('\n'),
    );
}

async function candidatesFor(
  program: Command,
  before: readonly string[],
  typed: string,
): Promise<Candidates> {
  let command = program;
  const path: string[] = [];
  const args: string[] = [];
  for (let i = 0; i < before.length; i++) {
    const word = before[i] as string;
    const option = command.options.find((it) => it.short === word || it.long === word);
    if (option) {
      if ((option.required || option.optional) && ++i === before.length) return await valuesOf(option);
      continue;
    }
    const verb =
      args.length === 0
        ? command.commands.find((it) => it.name() === word || it.aliases().includes(word))
        : undefined;
    if (verb) {
      command = verb;
      path.push(verb.name());
    } else args.push(word);
  }
  // Behind the sandbox comes a command of the sandbox, of which we know nothing.
  if ((path[0] === 'exec' || (path[0] === 'ssh' && path.length === 1)) && args.length > 0) return [];
  if (typed.startsWith('-')) {
    return command.options
      .filter((it) => !it.hidden && it.long)
      .map((it) => [it.long as string, it.description]);
  }
  const verbs =
    args.length > 0
      ? []
      : command.commands
          .filter((it) => !it.name().startsWith('_'))
          .map((it): [string, string] => [it.name(), it.description()]);
  const places = placesOf[path.join(' ')];
  const place = places?.at[args.length] ?? (places?.more ? places.at.at(-1) : undefined);
  // Verbs are known without a server; what else may stand there may not be.
  return [...verbs, ...((await place?.(args)) ?? [])];
}

async function valuesOf(option: Option): Promise<Candidates> {
  if (option.argChoices) return words(...option.argChoices);
  if (option.long === '--example')
    return Object.entries(configExamples).map(([name, { summary }]) => [name, summary]);
  if (option.long === '--snapshot') return await snapshotIds();
  return option.long === '--sandbox' ? await sandbox() : [];
}

async function agents(): Promise<Candidates> {
  const all = (await (await connectIfRunning())?.agents.list()) ?? [];
  return all.map((it) => [it.name, it.description]);
}

async function agentsAndSandboxes(): Promise<Candidates> {
  const [known, made] = await Promise.all([agents().catch(() => []), sandboxNames('')]);
  return [...known, ...made];
}

async function presets(): Promise<Candidates> {
  const all = (await (await connectIfRunning())?.policy.presets()) ?? [];
  return all.map((it) => [it.name, it.description]);
}

async function bellActions(): Promise<Candidates> {
  const { actions } = (await (await connectIfRunning())?.bell.status()) ?? { actions: [] };
  return actions.map((it) => [it.name, it.summary]);
}

async function bellTokens(): Promise<Candidates> {
  return words(...((await (await connectIfRunning())?.bell.tokens()) ?? []).map((it) => it.name));
}

async function checkpointIds(reference: string): Promise<Candidates> {
  const sandbox = await (await connectIfRunning())?.connect(reference);
  const all = (await sandbox?.workspaces.checkpoints()) ?? [];
  return all.map((it) => [it.id, it.label]);
}

async function imageNames(): Promise<Candidates> {
  return words(...((await (await connectIfRunning())?.images.list()) ?? []).map((it) => it.name));
}

async function templateNames(): Promise<Candidates> {
  return words(...((await (await connectIfRunning())?.templates.list()) ?? []).map((it) => it.name));
}

async function snapshotIds(): Promise<Candidates> {
  const all = (await (await connectIfRunning())?.snapshots.list()) ?? [];
  return all.map((it) => [it.id, `${it.state} ${it.name ?? ''}`.trim()]);
}

function settingKeys(): Candidates {
  return Object.entries(configSections).flatMap(([section, { shape }]) =>
    Object.entries(shape).map(([key, field]): [string, string] => [
      `${section}.${key}`,
      field.description ?? '',
    ]),
  );
}

async function settingValues(key: string): Promise<Candidates> {
  const { aboutKey } = await import('../../daemon/config.ts');
  const { kind, choices } = aboutKey(key);
  return words(...(kind === 'boolean' ? ['true', 'false'] : (choices ?? [])));
}

async function ruleIds(): Promise<Candidates> {
  const { rules } = (await (await connectIfRunning())?.policy.rules()) ?? { rules: [] };
  return rules.map((it) => [it.id, `${it.decision} ${it.resources.join(',').slice(0, 60)}`]);
}

async function questionIds(): Promise<Candidates> {
  const all = (await (await connectIfRunning())?.network.questions()) ?? [];
  return all.map((it) => [it.id, `${it.sandboxName ?? it.sandbox} ${it.host}:${it.port}`]);
}

async function secretNames(): Promise<Candidates> {
  const all = (await (await connectIfRunning())?.secrets.list()) ?? [];
  return words(...new Set(all.map((it) => it.name)));
}

async function volumeNames(): Promise<Candidates> {
  const all = (await (await connectIfRunning())?.volumes.list()) ?? [];
  return all.map((it) => [it.name, `${it.sandboxes.length} sandboxes`]);
}

async function sandboxNames(suffix: string): Promise<Candidates> {
  const client = await connectIfRunning();
  const all = (await client?.list()) ?? [];
  return all.map((it) => [`${it.name ?? it.id}${suffix}`, `${it.state} ${it.image ?? ''}`]);
}

async function processIds(reference: string): Promise<Candidates> {
  const client = await connectIfRunning();
  const processes = (await (await client?.connect(reference))?.processes()) ?? [];
  return processes.map((it) => [it.id, it.command.join(' ').slice(0, 60)]);
}
