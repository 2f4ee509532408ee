// glovebox project: tenants of this daemon, their quotas and keys.
import type { NewQuotas, ProjectInfo, ProjectKey, Quotas, Role } from '../../../sdk/src/index.ts';
import { roles } from '../../contract/tenant.ts';
import { connect } from '../connect.ts';
import { usageError } from '../exit-codes.ts';
import { cleanLine, counted, print, printJson, say, sizeText, span, table } from '../output.ts';
import { confirm } from '../terminal.ts';
import { durationOf, numberOf, wholeNumberOf } from '../values.ts';

export interface QuotaOptions {
  sandboxes?: string;
  cpu?: string;
  memory?: string;
  ports?: string;
  requests?: string;
  json?: boolean;
}

const quotaNames = ['sandboxes', 'cpu', 'memory', 'ports', 'requests'] as const;
const fieldOf = {
  sandboxes: 'sandboxes',
  cpu: 'cpu',
  memory: 'memory',
  ports: 'ports',
  requests: 'requestsPerMinute',
} as const;

export async function create(name: string, options: QuotaOptions): Promise<void> {
  const quotas = quotasOf(options);
  const made = await (await connect()).projects.create(name, quotas);
  await tell(made, options);
  if (!options.json) say(`Make a key for it: glovebox project key create ${cleanLine(name)}`);
}

export async function set(name: string, options: QuotaOptions & { unset?: string[] }): Promise<void> {
  const { unset = [] } = options;
  const wrong = unset.find((it) => !(quotaNames as readonly string[]).includes(it));
  if (wrong !== undefined)
    throw usageError(`--unset: '${wrong}' is no quota`, `There are ${quotaNames.join(', ')}.`);
  const given = quotasOf(options);
  if (Object.keys(given).length === 0 && unset.length === 0)
    throw usageError('project set: name at least one quota', 'E.g. --sandboxes 20, or --unset cpu.');
  const { projects } = await connect();
  const { memoryBytes, ...before } = (await projects.get(name)).quotas;
  const next: NewQuotas = {
    ...before,
    ...(memoryBytes === undefined ? {} : { memory: memoryBytes }),
    ...given,
  };
  for (const it of unset) delete next[fieldOf[it as (typeof quotaNames)[number]]];
  await tell(await projects.setQuotas(name, next), options);
}

function quotasOf({ sandboxes, cpu, memory, ports, requests }: QuotaOptions): NewQuotas {
  return {
    ...(sandboxes === undefined ? {} : { sandboxes: wholeNumberOf('--sandboxes', sandboxes, 0) }),
    ...(cpu === undefined ? {} : { cpu: numberOf('--cpu', cpu, 0.001) }),
    ...(memory === undefined ? {} : { memory }),
    ...(ports === undefined ? {} : { ports: wholeNumberOf('--ports', ports, 0) }),
    ...(requests === undefined ? {} : { requestsPerMinute: wholeNumberOf('--requests', requests, 1) }),
  };
}

async function tell(project: ProjectInfo, { json }: { json?: boolean }): Promise<void> {
  await (json ? printJson(project) : print(project.name));
}

export async function ls({ json }: { json?: boolean }): Promise<void> {
  const projects = await (await connect()).projects.list();
  if (json) return await printJson(projects);
  if (projects.length === 0) return say('There are no projects; see `glovebox project create --help`.');
  await print(
    table(
      ['NAME', 'SANDBOXES', 'CPU', 'MEMORY', 'PORTS', 'REQUESTS/MIN', 'KEYS'],
      projects.map(({ name, quotas, usage, keys }) => [
        name,
        share(usage.sandboxes, quotas.sandboxes),
        share(usage.cpu, quotas.cpu),
        share(usage.memoryBytes, quotas.memoryBytes, sizeText),
        share(usage.ports, quotas.ports ?? 0),
        requestsText(quotas),
        String(keys),
      ]),
    ),
  );
}

const share = (used: number, most: number | undefined, text: (it: number) => string = String) =>
  most === undefined ? text(used) : `${text(used)}/${text(most)}`;
const requestsText = ({ requestsPerMinute }: Quotas) =>
  requestsPerMinute === undefined ? '-' : String(requestsPerMinute);

export async function inspect(names: string[]): Promise<void> {
  const { projects } = await connect();
  await printJson(await Promise.all(names.map((name) => projects.get(name))));
}

export async function rm(
  names: string[],
  { sandboxes = false, force }: { sandboxes?: boolean; force?: boolean },
) {
  const { projects } = await connect();
  if (!force)
    await confirm(
      `Remove ${names.map((it) => `'${cleanLine(it)}'`).join(', ')}${sandboxes ? ' with all sandboxes' : ''} and revoke all keys?`,
      'nothing was removed',
    );
  for (const name of names) {
    await projects.remove(name, { sandboxes });
    await print(cleanLine(name));
  }
}

export interface KeyOptions {
  role: string;
  label?: string;
  expires?: string;
  json?: boolean;
}

export async function createKey(project: string, options: KeyOptions): Promise<void> {
  const { label, expires, json } = options;
  const role = roles.find((it): it is Role => it === options.role);
  if (role === undefined)
    throw usageError(`--role: '${options.role}' is none`, `There are ${roles.join(', ')}.`);
  const made = await (await connect()).projects.createKey(project, {
    role,
    ...(label === undefined ? {} : { label }),
    ...(expires === undefined ? {} : { expiresAt: new Date(Date.now() + durationOf('--expires', expires)) }),
  });
  if (json) return await printJson(made);
  await print(made.key);
  say(`It is shown this once. Its id is ${cleanLine(made.id)}; use it as GLOVEBOX_API_KEY.`);
}

export async function lsKeys(project: string, { json }: { json?: boolean }): Promise<void> {
  const keys = await (await connect()).projects.keys(project);
  if (json) return await printJson(keys);
  if (keys.length === 0) return say('It has no keys; see `glovebox project key create --help`.');
  await print(
    table(
      ['ID', 'ROLE', 'LABEL', 'EXPIRES', 'LAST USED'],
      keys.map((key) => [key.id, key.role, key.label ?? '-', expiryText(key), usedText(key)]),
    ),
  );
}

function expiryText({ expiresAt }: ProjectKey): string {
  if (expiresAt === undefined) return 'never';
  const leftMs = expiresAt.getTime() - Date.now();
  return leftMs > 0 ? `in ${span(leftMs)}` : 'expired';
}

const usedText = ({ lastUsedAt }: ProjectKey) =>
  lastUsedAt === undefined ? 'never' : `${span(Date.now() - lastUsedAt.getTime())} ago`;

export async function revokeKeys(project: string, ids: string[]): Promise<void> {
  const { projects } = await connect();
  for (const id of ids) await projects.revokeKey(project, id);
  say(`Revoked ${counted(ids.length, 'key')}.`);
}
