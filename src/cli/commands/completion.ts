// glovebox completion: scripts for shells, which ask this same program what fits. So they know every verb and option there is, and the
// sandboxes that exist; no daemon is started for it.
import type { Command } from 'commander';
import { connectIfRunning } from '../connect.ts';
import { usageError } from '../exit-codes.ts';
import { clean, print } from '../output.ts';

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
set -l with_files cp import exec serve
complete -c glovebox -f -n "not __fish_seen_subcommand_from $with_files" -a '(__glovebox_complete)'
complete -c glovebox -n "__fish_seen_subcommand_from $with_files" -a '(__glovebox_complete)'`,
};

export async function completion(shell: string): Promise<void> {
  const script = scripts[shell];
  if (script === undefined)
    throw usageError(`completion: unknown shell '${shell}'`, 'There are bash, zsh and fish.');
  await print(script);
}

/** What the arguments of a verb name. */
const sandboxesFor = new Set(['exec', 'logs', 'ps', 'inspect', 'stop', 'pause', 'resume', 'renew', 'rm']);
const withManySandboxes = new Set(['inspect', 'stop', 'pause', 'resume', 'rm']);

/** `words`: all behind `glovebox`, the last one being what is typed. Prints one candidate a line, behind a tab its meaning. */
export async function complete(program: Command, words: readonly string[]): Promise<void> {
  const typed = words.at(-1) ?? '';
  const candidates = await candidatesFor(program, words.slice(0, -1), typed);
  const fitting = candidates.filter(([word]) => word.startsWith(typed));
  if (fitting.length > 0)
    await print(fitting.map(([word, meaning]) => clean(`${word}\t${meaning}`.trimEnd())).join('\n'));
}

async function candidatesFor(
  program: Command,
  before: readonly string[],
  typed: string,
): Promise<[string, string][]> {
  let command = program;
  let args: string[] = [];
  for (let i = 0; i < before.length; i++) {
    const word = before[i] as string;
    const option = command.options.find((it) => it.short === word || it.long === word);
    if (option) {
      if ((option.required || option.optional) && ++i === before.length) return [];
    } else {
      const verb =
        args.length === 0
          ? command.commands.find((it) => it.name() === word || it.aliases().includes(word))
          : undefined;
      if (verb) command = verb;
      else args = [...args, word];
    }
  }
  const verb = command.name();
  // Behind the sandbox comes a command of the sandbox, of which we know nothing.
  if (verb === 'exec' && args.length > 0) return [];
  if (typed.startsWith('-')) {
    return command.options
      .filter((it) => !it.hidden && it.long)
      .map((it) => [it.long as string, it.description]);
  }
  if (command.commands.length > 0) {
    return command.commands
      .filter((it) => !it.name().startsWith('_'))
      .map((it) => [it.name(), it.description()]);
  }
  if (verb === 'completion') return Object.keys(scripts).map((shell) => [shell, '']);
  if (sandboxesFor.has(verb) && (args.length === 0 || withManySandboxes.has(verb)))
    return await sandboxNames('');
  if (verb === 'logs' && args.length === 1) return await processIds(args[0] as string);
  if (verb === 'cp') return await sandboxNames(':');
  return [];
}

async function sandboxNames(suffix: string): Promise<[string, string][]> {
  const client = await connectIfRunning();
  const all = (await client?.list()) ?? [];
  return all.map((it) => [`${it.name ?? it.id}${suffix}`, `${it.state} ${it.image ?? ''}`]);
}

async function processIds(reference: string): Promise<[string, string][]> {
  const client = await connectIfRunning();
  const processes = (await (await client?.connect(reference))?.processes()) ?? [];
  return processes.map((it) => [it.id, it.command.join(' ').slice(0, 60)]);
}
