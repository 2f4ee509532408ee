// What `run` says about a sandbox that it has just made: short, on stderr, for a person who wants to know what the agent may do.
import type { SandboxClient, SandboxInfo } from '../../sdk/src/index.ts';
import { credentialAdvice } from '../agents/credential-offers.ts';
import type { AgentChoice } from './agent-choice.ts';
import { serverIsHere } from './connect.ts';
import { hostCredentials } from './host-credentials.ts';
import { clean, paint, say } from './output.ts';

const shownMax = 4;

export async function sayWhatWasMade(
  client: SandboxClient,
  info: SandboxInfo,
  agent: AgentChoice | undefined,
): Promise<void> {
  const name = info.name ?? info.id;
  const lines: [string, string][] = [
    ...(agent ? [['agent', agent.name] as [string, string]] : []),
    ...info.workspaces.map((it, index): [string, string] => [
      index === 0 ? 'workspace' : '',
      `${it.path} (${it.mode}, ${it.readOnly ? 'read-only' : 'read-write'})`,
    ]),
    ['image', `${info.image ?? `snapshot ${info.snapshotId ?? '?'}`}, ${info.runtime ?? '?'}`],
    ['reaches', await reaches(client, info)],
    ...(agent ? credentialLines(agent) : []),
  ];
  say(`${paint('green', '✓', process.stderr)} Created sandbox ${clean(name)}`);
  for (const [key, text] of lines) say(`  ${paint('dim', key.padEnd(12), process.stderr)}${clean(text)}`);
}

/** The rules that allow something, the sandbox's own first. */
async function reaches(client: SandboxClient, { id, name }: SandboxInfo): Promise<string> {
  const { rules } = await client.policy.rules({ sandbox: id }).catch(() => ({ rules: [] }));
  const allowing = rules.filter((it) => it.decision === 'allow' || it.decision === 'bypass');
  const hosts = [
    ...allowing.filter((it) => it.sandboxId !== undefined),
    ...allowing.filter((it) => it.sandboxId === undefined),
  ].flatMap((it) => it.resources);
  if (hosts.length === 0) return 'nothing: see `glovebox policy allow network --help`';
  return `${few([...new Set(hosts)])}; see \`glovebox policy ls ${name ?? id}\``;
}

function credentialLines({ name, info }: AgentChoice): [string, string][] {
  const { credentials, available } = info;
  if (credentials.length === 0) return [];
  if (available.length > 0) {
    return [['credentials', `${available.join(', ')}: a placeholder inside, the real one on the way out`]];
  }
  const advice = credentialAdvice(
    { name, credentials, available },
    hostCredentials({ local: serverIsHere() }),
  );
  return advice === undefined ? [] : [['credentials', advice]];
}

function few(all: readonly string[]): string {
  const more = all.length - shownMax;
  return all.slice(0, shownMax).join(', ') + (more > 0 ? ` and ${more} more` : '');
}
