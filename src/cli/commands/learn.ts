// glovebox policy learn: the least rules for what a sandbox has used, as commands to be read first, or made at once.
import type { LearnedPolicy, NewRule, Rule } from '../../../sdk/src/index.ts';
import { quote } from '../../../sdk/src/index.ts';
import { connect } from '../connect.ts';
import { CliError } from '../exit-codes.ts';
import { cleanLine, counted, print, printJson, say } from '../output.ts';
import { added } from './policy.ts';

export interface LearnOptions {
  apply?: boolean;
  paths?: boolean;
  wildcards?: boolean;
  json?: boolean;
}

/** Prints the commands that would make the rules; with --apply makes them. Rules that would not reproduce the log are never made. */
export async function learn(sandbox: string, options: LearnOptions): Promise<void> {
  const { policy } = await connect();
  const learned = await policy.learn(sandbox, {
    ...(options.paths ? { paths: true } : {}),
    ...(options.wildcards ? { wildcards: true } : {}),
  });
  const { rules, replayed, differing } = learned;
  if (options.apply && differing > 0)
    throw new CliError(`${differing} of ${replayed} attempts would come out otherwise; no rule was added`, {
      hint: 'Look at the rules without --apply, and add those that you want.',
    });
  const made: Rule[] = [];
  if (options.apply) {
    for (const { decision, resources, ...details } of rules) {
      const rule = await policy[decision](resources, { ...details, sandbox, createdVia: 'learned' });
      made.push(rule);
      if (!options.json) await print(added(rule.id, sandbox));
    }
  }
  if (options.json) return await printJson(options.apply ? { ...learned, added: made } : learned);
  if (!options.apply && rules.length > 0) await print(rules.map((it) => commandOf(it, sandbox)).join('\n'));
  say(proofOf(learned));
}

/** The line that makes this rule. */
function commandOf({ decision, resources, methods, path, protocols }: NewRule, sandbox: string): string {
  return [
    ...['glovebox', 'policy', decision, 'network', '--sandbox', sandbox],
    ...(methods ? ['--method', methods.join(',')] : []),
    ...(path === undefined ? [] : ['--path', path]),
    ...(protocols ? ['--protocol', protocols.join(',')] : []),
    resources.join(','),
  ]
    .map((word) => quote(cleanLine(word)))
    .join(' ');
}

function proofOf({ rules, replayed, differing }: LearnedPolicy): string {
  if (replayed === 0) return 'The log shows nothing yet that could be learned from.';
  const outcome = differing === 0 ? 'all come out the same' : `${differing} come out otherwise`;
  return `${counted(rules.length, 'rule')}; ${counted(replayed, 'attempt')} of the log replayed against them: ${outcome}.`;
}
