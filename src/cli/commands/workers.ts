// glovebox workers: machines that dial in, as their controller sees them.
import type { WorkerInfo } from '../../../sdk/src/index.ts';
import { connect } from '../connect.ts';
import { exitCodes, usageError } from '../exit-codes.ts';
import { cleanLine, counted, jsonText, print, printJson, say, sayError, span, table } from '../output.ts';
import { durationOf, pairsOf } from '../values.ts';

interface Json {
  json?: boolean;
}

const labelsOf = (pairs: readonly string[] = []) => pairsOf('--label', pairs);

/** The token alone goes to stdout, for `$(…)`. */
export async function enrol(
  options: Json & { id?: string; label?: string[]; replace?: boolean; expires?: string },
): Promise<void> {
  const client = await connect();
  const enrolment = await client.workers.enrol({
    ...(options.id === undefined ? {} : { workerId: options.id }),
    labels: labelsOf(options.label),
    ...(options.replace ? { replace: true } : {}),
    ...(options.expires === undefined ? {} : { expiresIn: durationOf('--expires', options.expires) }),
  });
  if (options.json) return await printJson(enrolment);
  say(`It is shown this once, and good for one machine until ${enrolment.expiresAt.toISOString()}.`);
  await print(enrolment.token);
}

export async function enrolments({ json }: Json): Promise<void> {
  const all = await (await connect()).workers.enrolments();
  if (json) return await printJson(all);
  if (all.length === 0) return say('No token is out.');
  const rows = all.map((it) => [
    it.id,
    it.workerId ?? '-',
    shownLabels(it.labels),
    it.expiresAt.toISOString(),
  ]);
  await print(table(['ENROLMENT', 'WORKER', 'LABELS', 'EXPIRES'], rows));
}

export async function unenrol(ids: string[]): Promise<void> {
  const { workers } = await connect();
  for (const id of ids) {
    await workers.removeEnrolment(id);
    await print(id);
  }
}

export async function ls({
  label,
  quiet,
  json,
}: Json & { label?: string[]; quiet?: boolean }): Promise<void> {
  const all = await (await connect()).workers.list({ labels: labelsOf(label) });
  if (json) return await printJson(all);
  if (quiet) return all.length > 0 ? await print(all.map(({ id }) => id).join('\n')) : undefined;
  if (all.length === 0) return say('No workers. `glovebox workers enrol` makes a token for one.');
  await print(
    table(['WORKER', 'STATE', 'SINCE', 'PLATFORM', 'RUNTIMES', 'SANDBOXES', 'LABELS'], all.map(row)),
  );
}

function row(it: WorkerInfo): string[] {
  const since = it.state === 'online' ? it.connectedAt : it.lastSeenAt;
  return [
    it.id,
    `${it.state}${it.schedulable ? '' : ' (cordoned)'}`,
    since === undefined ? '-' : span(Date.now() - since.getTime()),
    it.platform === undefined ? '-' : `${it.platform}/${it.arch ?? '?'}`,
    it.protocol === 'sandd'
      ? 'sandd'
      : it.runtimes
          .filter(({ usable }) => usable)
          .map(({ name }) => name)
          .join(', ') || '-',
    String(it.sandboxes),
    shownLabels(it.labels),
  ];
}

const shownLabels = (labels: Record<string, string>) =>
  Object.entries(labels)
    .map(([key, value]) => `${key}=${value}`)
    .join(', ') || '-';

export async function inspect(id: string): Promise<void> {
  await printJson(await (await connect()).workers.get(id));
}

export async function label(id: string, changes: string[], { json }: Json): Promise<void> {
  const taken = changes.filter((it) => /^[^=]+-$/.test(it)).map((it) => [it.slice(0, -1), null] as const);
  const set = pairsOf(
    'label',
    changes.filter((it) => !/^[^=]+-$/.test(it)),
  );
  const worker = await (await connect()).workers.update(id, {
    labels: { ...set, ...Object.fromEntries(taken) },
  });
  await (json ? printJson(worker) : print(`${worker.id}: ${shownLabels(worker.labels)}`));
}

export async function allow(
  id: string,
  programs: string[],
  { any, json }: Json & { any?: boolean },
): Promise<void> {
  if (any && programs.length > 0) throw usageError('workers allow: give programs or --any');
  const worker = await (await connect()).workers.update(id, { allowedCommands: any ? null : programs });
  if (json) return await printJson(worker);
  const allowed = worker.allowedCommands;
  await print(
    `${worker.id}: ${allowed === undefined ? 'any program' : allowed.join(', ') || 'no program'} may be started`,
  );
}

export async function schedule(id: string, schedulable: boolean): Promise<void> {
  const worker = await (await connect()).workers.update(id, { schedulable });
  await print(worker.id);
}

export async function rm(ids: string[]): Promise<void> {
  const { workers } = await connect();
  for (const id of ids) {
    await workers.remove(id);
    await print(id);
  }
}

export async function stats({ json }: Json): Promise<void> {
  const found = await (await connect()).workers.stats();
  if (json) return await printJson(found);
  const platforms = Object.entries(found.byPlatform).map(([name, count]) => `${name}: ${count}`);
  await print(
    [`${counted(found.workers, 'worker')}, ${found.online} online`, ...platforms.map(cleanLine)].join('\n'),
  );
}

export interface BroadcastFlags extends Json {
  label?: string[];
  env?: string[];
  workdir?: string;
  timeout?: string;
}

/** Each line of output behind the name of its worker. The exit code is 1 when the command failed on any worker. */
export async function broadcast(command: string[], options: BroadcastFlags): Promise<void> {
  const client = await connect();
  const results = client.workers.broadcast(command, {
    labels: labelsOf(options.label),
    ...(options.env === undefined ? {} : { env: pairsOf('--env', options.env, process.env) }),
    ...(options.workdir === undefined ? {} : { cwd: options.workdir }),
    ...(options.timeout === undefined ? {} : { timeout: durationOf('--timeout', options.timeout) }),
  });
  let count = 0;
  for await (const { stdout, stderr, ...result } of results) {
    count++;
    const text = { stdout: new TextDecoder().decode(stdout), stderr: new TextDecoder().decode(stderr) };
    const failed = result.error !== undefined || result.exitCode !== 0;
    if (failed) process.exitCode = exitCodes.failed;
    if (options.json) {
      await print(jsonText({ ...result, ...text }));
      continue;
    }
    const name = cleanLine(result.workerId);
    for (const line of linesOf(text.stdout)) await print(`${name}: ${cleanLine(line)}`);
    for (const line of linesOf(text.stderr)) say(`${name}: ${cleanLine(line)}`);
    if (result.truncated) say(`${name}: … there was more`);
    if (result.error !== undefined) sayError(`${name}: ${cleanLine(result.error.message)}`, undefined);
    else if (failed)
      sayError(`${name}: ended with ${result.exitCode ?? `an outcome that is ${result.reason}`}`, undefined);
  }
  if (count === 0) {
    process.exitCode = exitCodes.failed;
    sayError('no worker with these labels is connected', 'See `glovebox workers ls`.');
  }
}

function linesOf(text: string): string[] {
  const lines = text.split('\n');
  if (lines.at(-1) === '') lines.pop();
  return lines;
}
