// glovebox policy: the operator's rules for what sandboxes may reach, in the manner of `sbx policy`. The server decides what a rule means and
// whether it can stand; here it is only said and shown.
import type { NewRule, Rule, SandboxClient } from '../../../sdk/src/index.ts';
import { quote } from '../../../sdk/src/index.ts';
import { connect } from '../connect.ts';
import { CliError, exitCodes, usageError } from '../exit-codes.ts';
import { cleanLine, counted, paint, print, printJson, say, table } from '../output.ts';
import { atTerminal, confirm } from '../terminal.ts';
import { listOf } from '../values.ts';

/** The one policy that there is: all rules that were made here. */
const policyName = 'local-policy';

export async function init(preset: string, options: { json?: boolean }): Promise<void> {
  const rules = await (await connect()).policy.init(preset);
  if (options.json) return await printJson(rules);
  const resources = rules.reduce((sum, rule) => sum + rule.resources.length, 0);
  await print(
    `Global network policy initialized with '${preset}': ${counted(rules.length, 'rule')} of ${counted(resources, 'place')}`,
  );
}

export interface RuleOptions {
  sandbox?: string;
  global?: boolean;
  method?: string;
  path?: string;
  protocol?: string;
  name?: string;
  json?: boolean;
}

/** `words`: the resources; in Docker's older form a sandbox before them. */
export async function addRule(
  decision: Rule['decision'],
  type: string,
  words: string[],
  options: RuleOptions,
): Promise<void> {
  refuseOtherTypes(decision, type, words);
  const { sandbox, lists } = scopeOf(decision, words, options);
  const { policy } = await connect();
  const rule = await policy[decision](resourcesOf(lists), {
    ...(sandbox === undefined ? {} : { sandbox }),
    ...(options.method === undefined ? {} : { methods: methodsOf(options.method) }),
    ...(options.path === undefined ? {} : { path: options.path }),
    ...(options.protocol === undefined ? {} : { protocols: protocolsOf(options.protocol) }),
    ...(options.name === undefined ? {} : { name: options.name }),
  });
  await (options.json ? printJson(rule) : print(added(rule.id, sandbox)));
}

/** What is said of a rule that was made; in `sbx`'s words. */
export const added = (id: string, sandbox: string | undefined) =>
  `Rule added to policy local (scope: ${scopeName(sandbox)}): ${cleanLine(id)}`;

const scopeName = (sandbox: string | undefined) =>
  sandbox === undefined ? 'global' : `sandbox:${cleanLine(sandbox)}`;

function refuseOtherTypes(verb: string, type: string, words: readonly string[]): void {
  if (type === 'network') return;
  throw usageError(
    `policy ${verb}: '${type}' is no kind of rule; there are rules for the network only`,
    `Write: glovebox policy ${verb} network ${[type, ...words].map(quote).join(' ')}`,
  );
}

function scopeOf(
  verb: string,
  words: string[],
  { sandbox, global }: RuleOptions,
): { sandbox: string | undefined; lists: string[] } {
  if (sandbox !== undefined && global)
    throw usageError(`policy ${verb}: --sandbox and -g exclude each other`);
  if (sandbox !== undefined || global || words.length === 1) return { sandbox, lists: words };
  if (words.length === 2) return { sandbox: words[0], lists: words.slice(1) };
  throw usageError(
    `policy ${verb}: more than one list of resources`,
    `Separate them by commas: glovebox policy ${verb} network ${words.map(quote).join(',')}`,
  );
}

const resourcesOf = (lists: readonly string[]) => listOf('RESOURCES', lists.join(','));
const methodsOf = (text: string) => listOf('--method', text).map((it) => it.toUpperCase());

function protocolsOf(text: string): ('tcp' | 'udp')[] {
  return listOf('--protocol', text).map((it) => {
    const protocol = it.toLowerCase();
    if (protocol === 'tcp' || protocol === 'udp') return protocol;
    throw usageError(`--protocol: '${it}' is neither tcp nor udp`);
  });
}

export interface RemoveOptions extends RuleOptions {
  id?: string;
  resource?: string;
  force?: boolean;
}

/** By id: that one. By resource: the rules of the scope that name it; what would go with it is asked about, or needs --force. */
export async function removeRule(type: string, options: RemoveOptions): Promise<void> {
  refuseOtherTypes('rm', type, []);
  const { id, resource, force } = options;
  if ((id === undefined) === (resource === undefined))
    throw usageError('policy rm: give either --id or --resource', 'See `glovebox policy ls --wide`.');
  const client = await connect();
  const { rules } = await client.policy.rules();
  let doomed: Rule[];
  if (id !== undefined) doomed = [ruleCalled(rules, id)];
  else {
    const scope = options.sandbox === undefined ? undefined : (await client.find(options.sandbox)).id;
    doomed = rules.filter((rule) => rule.sandboxId === scope && names(rule, options));
    if (doomed.length === 0)
      throw new CliError(`no rule of the scope ${scopeName(options.sandbox)} names '${resource}'`, {
        hint: 'See `glovebox policy ls --wide`; --sandbox names another scope.',
      });
    const others = doomed.flatMap((rule) => rule.resources).filter((it) => !isSame(it, resource ?? ''));
    if (!force && (doomed.length > 1 || others.length > 0)) await confirmMore(doomed, others);
  }
  for (const rule of doomed) {
    await client.policy.remove(rule.id);
    await print(`Rule removed from policy local (scope: ${await scopeOfRule(client, rule)}): ${rule.id}`);
  }
}

const isSame = (a: string, b: string) => a.trim().toLowerCase() === b.trim().toLowerCase();

function names(rule: Rule, { resource = '', method, path }: RemoveOptions): boolean {
  if (!rule.resources.some((it) => isSame(it, resource))) return false;
  if (path !== undefined && rule.path !== path) return false;
  if (method === undefined) return true;
  return methodsOf(method).sort().join() === [...(rule.methods ?? [])].sort().join();
}

async function confirmMore(doomed: readonly Rule[], others: readonly string[]): Promise<void> {
  const what = doomed.length === 1 ? 'a rule' : `${doomed.length} rules`;
  const besides =
    others.length === 0
      ? ''
      : ` ${doomed.length === 1 ? 'It also names' : 'They also name'} ${others.slice(0, 10).join(', ')}.`;
  if (!atTerminal())
    throw new CliError(`${what} would go.${besides}`, {
      hint: 'Add --force to remove all of it, or name one rule with --id.',
    });
  await confirm(`Remove ${what}?${besides}`, 'no rule was removed');
}

async function scopeOfRule(client: SandboxClient, { sandboxId }: Rule): Promise<string> {
  return sandboxId === undefined ? 'global' : `sandbox:${nameIn(await namesOf(client), sandboxId)}`;
}

/** Names of sandboxes by id. */
async function namesOf(client: SandboxClient): Promise<Map<string, string>> {
  return new Map((await client.list()).map((info) => [info.id, info.name ?? info.id]));
}

const nameIn = (known: ReadonlyMap<string, string>, id: string) => cleanLine(known.get(id) ?? id);

/** By id, unique beginning of one, or name. */
function ruleCalled(rules: readonly Rule[], reference: string): Rule {
  const exact = rules.find((it) => it.id === reference);
  if (exact) return exact;
  const found = rules.filter((it) => it.name === reference || it.id.startsWith(reference));
  if (found.length === 1 && found[0]) return found[0];
  throw new CliError(
    found.length === 0
      ? `there is no rule '${reference}'`
      : `${found.length} rules are called '${reference}'`,
    { hint: 'See `glovebox policy ls --wide` for their ids.' },
  );
}

export interface CheckOptions {
  sandbox?: string;
  protocol?: string;
  method?: string;
  path?: string;
  verbose?: boolean;
  json?: boolean;
}

/** Resolves with the exit code: 0 only for what is allowed without asking anybody. */
export async function check(
  type: string,
  target: string | undefined,
  options: CheckOptions,
): Promise<number> {
  refuseOtherTypes('check', type, target === undefined ? [] : [target]);
  if (target === undefined)
    throw usageError(
      'policy check: no target',
      'Write e.g. `glovebox policy check network example.com:443`.',
    );
  const { sandbox, method, path } = options;
  const [protocol, ...more] = options.protocol === undefined ? [] : protocolsOf(options.protocol);
  if (more.length > 0) throw usageError('--protocol: a check is about one protocol');
  const { policy } = await connect();
  const answer = await policy.check(target, {
    ...(sandbox === undefined ? {} : { sandbox }),
    ...(protocol === undefined ? {} : { protocol }),
    ...(method === undefined ? {} : { method: method.toUpperCase() }),
    ...(path === undefined ? {} : { path }),
  });
  if (options.json) await printJson(answer);
  else {
    const { decision, message, rule, reason, remedy } = answer;
    const word = { allow: 'allowed', deny: 'denied', ask: 'ask' }[decision];
    const lines = [
      `${cleanLine(answer.target)} ${paint(decision === 'allow' ? 'green' : decision === 'deny' ? 'red' : 'yellow', word)}`,
      `  detail: ${cleanLine(message)}`,
      ...(rule ? [`  rule: ${cleanLine(rule.text)}`] : []),
      ...(options.verbose ? [`  reason: ${cleanLine(reason)}`] : []),
      ...(options.verbose && rule
        ? [`  rule id: ${cleanLine(rule.id)}`, `  origin: ${cleanLine(rule.source)}`]
        : []),
      ...(remedy ? [`  allow it with: ${cleanLine(remedy)}`] : []),
    ];
    await print(lines.join('\n'));
  }
  return answer.decision === 'allow' ? exitCodes.ok : exitCodes.failed;
}

export interface ListOptions {
  type?: 'all' | 'network' | 'http';
  decision?: Rule['decision'];
  createdVia?: Rule['createdVia'];
  wide?: boolean;
  json?: boolean;
}

const typeOf = (rule: Rule) => (rule.methods || rule.path ? 'http' : 'network');

export async function ls(sandbox: string | undefined, options: ListOptions): Promise<void> {
  const { type = 'all', decision, createdVia } = options;
  const client = await connect();
  const { initialized, rules } = await client.policy.rules(sandbox === undefined ? {} : { sandbox });
  const shown = rules.filter(
    (rule) =>
      (type === 'all' || typeOf(rule) === type) &&
      (decision === undefined || rule.decision === decision) &&
      (createdVia === undefined || rule.createdVia === createdVia),
  );
  const known = shown.some((rule) => rule.sandboxId !== undefined) ? await namesOf(client) : new Map();
  const scope = (rule: Rule) =>
    rule.sandboxId === undefined ? 'all' : `sandbox:${nameIn(known, rule.sandboxId)}`;
  if (options.json) return await printJson(shown.map((rule) => ruleJson(rule, scope(rule))));
  if (!initialized)
    say('The global network policy has not been initialized; see `glovebox policy init --help`.');
  await print(options.wide ? wideTable(shown, scope) : summaryTable(shown, scope));
}

function summaryTable(rules: readonly Rule[], scope: (rule: Rule) => string): string {
  const scopes = Map.groupBy(rules, scope);
  const rows = [...scopes].map(([applies, all]) => {
    const types = Map.groupBy(all, typeOf);
    const counts = [...types].map(([type, some]) => {
      const decisions = Map.groupBy(some, (rule) => rule.decision);
      return `${type}: ${[...decisions].map(([word, { length }]) => `${length} ${word}`).join(', ')}`;
    });
    return [policyName, 'local', applies, counts.join('; ')];
  });
  return table(['POLICY', 'SOURCE', 'APPLIES TO', 'SUMMARY'], rows);
}

function wideTable(rules: readonly Rule[], scope: (rule: Rule) => string): string {
  const head = ['SOURCE', 'APPLIES TO', 'POLICY/RULE', 'RULE_ID', 'TYPE', 'DECISION', 'RESOURCES'];
  const rows = rules.map((rule) => [
    ...['local', scope(rule), rule.name ?? policyName, rule.id, typeOf(rule), rule.decision],
    rule.resources.join(','),
    ...[rule.methods?.join(',') ?? '-', rule.path ?? '-', rule.createdVia],
  ]);
  return table([...head, 'METHOD', 'PATH', 'CREATED VIA'], rows);
}

/** A rule in `sbx`'s words, ours beside. */
function ruleJson(rule: Rule, appliesTo: string): Record<string, unknown> {
  const { createdVia, sandboxId, ...more } = rule;
  return {
    ...more,
    policy_id: policyName,
    scope: sandboxId === undefined ? 'global' : 'sandbox',
    applies_to: appliesTo,
    resource_type: typeOf(rule),
    ...{ origin: 'local', status: 'active', editable: true, provenance: { created_via: createdVia } },
    ...(sandboxId === undefined ? {} : { sandbox_id: sandboxId }),
    actions: rule.protocols.map((protocol) => `net:connect:${protocol}`),
  };
}

export async function inspect(reference: string, options: { json?: boolean }): Promise<void> {
  const client = await connect();
  const { rules } = await client.policy.rules();
  const known = await namesOf(client);
  const found = ['local', policyName].includes(reference) ? rules : [ruleCalled(rules, reference)];
  const scope = (rule: Rule) =>
    rule.sandboxId === undefined ? 'all' : `sandbox:${nameIn(known, rule.sandboxId)}`;
  if (options.json) return await printJson(found.map((rule) => ruleJson(rule, scope(rule))));
  if (found.length > 0) await print(found.map((rule) => described(rule, scope(rule))).join('\n\n'));
  else say('There are no rules.');
}

function described(rule: Rule, appliesTo: string): string {
  const lines: [string, string | undefined][] = [
    ['rule', rule.id],
    ['name', rule.name],
    ['applies to', appliesTo],
    ['decision', rule.decision],
    ['resources', rule.resources.join(', ')],
    ['methods', rule.methods?.join(', ')],
    ['path', rule.path],
    ['protocols', rule.protocols.join(', ')],
    ['created', `${rule.createdAt.toISOString()} (${rule.createdVia})`],
  ];
  return lines
    .flatMap(([name, value]) => (value === undefined ? [] : [`${`${name}:`.padEnd(12)} ${cleanLine(value)}`]))
    .join('\n');
}

export async function reset(options: { force?: boolean }): Promise<void> {
  const { policy } = await connect();
  if (!options.force) {
    if (!atTerminal())
      throw usageError('policy reset: forgets all global rules', 'Add -f if that is what you want.');
    await confirm('Forget all global rules? Rules of single sandboxes stay.', 'nothing was reset');
  }
  await policy.reset();
  await print('Global network policy reset; choose a new one with: glovebox policy init balanced');
}

export async function profiles(options: { json?: boolean }): Promise<void> {
  const presets = await (await connect()).policy.presets();
  if (options.json) return await printJson(presets);
  const places = (rules: readonly NewRule[]) => rules.reduce((sum, rule) => sum + rule.resources.length, 0);
  const rows = presets.map((it) => [it.name, String(places(it.rules)), it.description]);
  await print(table(['PROFILE', 'PLACES', 'DESCRIPTION'], rows));
}
