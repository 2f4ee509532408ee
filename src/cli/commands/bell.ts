// glovebox bell: what is decided about actions of the host, what was asked of it, and the tokens of callers that are no sandboxes of ours.
import type { BellDecision, BellStatus } from '../../contract/bell.ts';
import { actionOf } from '../bell-actions.ts';
import { bellRecords, entryLine } from '../bell-records.ts';
import { connect } from '../connect.ts';
import { cleanLine, jsonText, paint, print, printJson, say, span, table } from '../output.ts';
import { limitOf } from './network.ts';

export async function status({ json }: { json?: boolean }): Promise<void> {
  const all = await (await connect()).bell.status();
  await (json ? printJson(all) : print(described(all)));
}

function described(status: BellStatus): string {
  const { enabled, url, listening, insecure, warnings, actions, commands, decisions } = status;
  const others =
    listening.length === 0
      ? 'not served'
      : `${listening.join(', ')}, ${insecure ? paint('red', 'whoever reaches it') : 'with a token'}`;
  const sections = [
    `Sandboxes: ${enabled ? cleanLine(url) : 'not served'}\nOthers:    ${others}`,
    table(
      ['ACTION', 'DECISION', 'DECIDED BY', 'WHAT IT DOES'],
      actions.map((it) => [
        ...[it.name, it.decision, it.source],
        it.unavailable === undefined ? it.summary : `${it.summary} (not here: ${it.unavailable})`,
      ]),
    ),
    ...(commands.length === 0
      ? ['No command of this host may be run.']
      : [
          table(
            ['COMMAND', 'DECISION', 'IN PATH', 'USAGE'],
            commands.map((it) => [it.name, it.decision, it.shim ? 'yes' : 'no', it.usage]),
          ),
        ]),
    ...(decisions.length === 0
      ? []
      : [
          table(
            ['SANDBOX', 'ACTION', 'DECISION'],
            decisions.map((it) => [it.sandboxName ?? it.sandbox, it.action, it.decision]),
          ),
        ]),
    ...(warnings.length === 0 ? [] : [warnings.map((it) => `warning: ${cleanLine(it)}`).join('\n')]),
  ];
  return sections.join('\n\n');
}

export interface DecideOptions {
  sandbox?: string;
  json?: boolean;
}

export async function decide(decision: BellDecision, text: string, options: DecideOptions): Promise<void> {
  const action = actionOf(text);
  const { bell } = await connect();
  const status = await bell.decide(action, decision, scopeOf(options));
  if (options.json) return await printJson(status);
  await print(`Decision about ${action}: ${decision} ${scopeText(options)}`);
}

export async function forget(text: string, options: DecideOptions): Promise<void> {
  const action = actionOf(text);
  const { bell } = await connect();
  await bell.forgetDecision(action, scopeOf(options));
  if (options.json) return await printJson(await bell.status());
  await print(`Decision about ${action} forgotten ${scopeText(options)}`);
}

const scopeOf = ({ sandbox }: DecideOptions) => (sandbox === undefined ? {} : { sandbox });
const scopeText = ({ sandbox }: DecideOptions) =>
  `(scope: ${sandbox === undefined ? 'global' : `sandbox:${cleanLine(sandbox)}`})`;

export interface LogOptions {
  sandbox?: string;
  follow?: boolean;
  limit?: string;
  json?: boolean;
}

const logEntriesDefault = 100;

export async function log({ sandbox, follow, json, ...options }: LogOptions): Promise<void> {
  const limit = options.limit === undefined ? logEntriesDefault : limitOf(options.limit);
  const filter = { ...(sandbox === undefined ? {} : { sandbox }), limit };
  const records = await bellRecords();
  if (follow) {
    for await (const entry of records.followLog(filter))
      await print(json ? jsonText(entry) : entryLine(entry));
    return;
  }
  const entries = await records.log(filter);
  if (json) return await printJson({ entries });
  if (entries.length > 0) await print(entries.map(entryLine).join('\n'));
  else say('Nothing has been asked of this host yet.');
}

/** The token alone goes to stdout, for `$(…)`. */
export async function addToken(name: string, { json }: { json?: boolean }): Promise<void> {
  const added = await (await bellRecords()).addToken(name);
  if (json) return await printJson(added);
  say('It is shown this once. Callers have it in SANDBOX_COMM_TOKEN, or send `Authorization: Bearer TOKEN`.');
  await print(added.token);
}

export async function listTokens(options: { quiet?: boolean; json?: boolean }): Promise<void> {
  const tokens = await (await bellRecords()).tokens();
  if (options.json) return await printJson(tokens);
  if (options.quiet) {
    if (tokens.length > 0) await print(tokens.map((it) => cleanLine(it.name)).join('\n'));
    return;
  }
  const rows = tokens.map((it) => [it.name, `${span(Date.now() - new Date(it.createdAt).getTime())} ago`]);
  if (rows.length > 0) await print(table(['NAME', 'MADE'], rows));
  else say('There are no tokens; see `glovebox bell token add --help`.');
}

export async function removeTokens(names: readonly string[]): Promise<void> {
  const records = await bellRecords();
  for (const name of names) {
    await records.removeToken(name);
    await print(`Token removed: ${cleanLine(name)}`);
  }
}
