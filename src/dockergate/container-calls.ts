// Calls about containers, and commands in them.

import { realpath } from 'node:fs/promises';
import { Failure } from '../lib/failure.ts';
import { containerBodyFor, sharedFolder } from './create.ts';
import {
  type Exchange,
  type Filters,
  flag,
  isSet,
  join,
  jsonOf,
  keys,
  moment,
  number,
  pick,
  relay,
  sendJson,
} from './exchange.ts';
import { type Exec, execBodyFor, startBodyFor } from './exec.ts';
import type { DockerGate } from './gate.ts';
import { parseFilters } from './images.ts';
import { vmLabels } from './names.ts';
import { route } from './routes.ts';
import { bareBody } from './server.ts';
import { shownContainer, shownStats, shownSummary } from './shown.ts';

const containersMax = 128;

route('GET', '/containers/json', async function (it) {
  const asked = parseFilters(it.query.get('filters'));
  const { name: wantedNames, ancestor, volume, before, since, ...others } = asked;
  const known = ['label', 'status', 'id', 'exited', 'health'];
  const strange = Object.keys(others).find((key) => !known.includes(key) && key !== 'network');
  if (strange !== undefined) throw new Failure('invalid', `Invalid filter '${strange.slice(0, 40)}'`);
  const { network: _one, ...filters } = others as Filters;
  if (volume)
    filters.volume = await Promise.all(
      volume.map(async (each) => (await this.volume(it.version, each)).Name),
    );
  for (const [key, values] of Object.entries({ before, since }))
    if (values) filters[key] = await Promise.all(values.map((each) => this.containerId(it.version, each)));
  const all = isSet(it.query.get('all')) || filters.status !== undefined || filters.exited !== undefined;
  const query = { ...pick(it.query, { size: flag, limit: number }), all: all ? '1' : '0' } as Record<
    string,
    string
  >;
  const found = await this.containers(it.version, withoutUndefined(query), filters);
  const images =
    ancestor === undefined
      ? []
      : await Promise.all(ancestor.map((each) => this.images.idOf(it.version, each).catch(() => '')));
  const shown = found
    .filter((each) => ancestor === undefined || images.includes(each.ImageID))
    .map((each) => shownSummary(each, this.names))
    .filter(
      (each) =>
        wantedNames === undefined ||
        wantedNames.some((pattern) => each.Names.some((own) => nameFits(own, pattern))),
    );
  sendJson(it.response, 200, shown);
});

function withoutUndefined(query: Record<string, string | undefined>): Record<string, string> {
  return Object.fromEntries(
    Object.entries(query).filter((it): it is [string, string] => it[1] !== undefined),
  );
}

/** The engine takes a regular expression, of which only the anchors are understood here. */
export function nameFits(name: string, pattern: string): boolean {
  const bare = name.replace(/^\//, '');
  const text = pattern
    .replace(/^\^?\/?/, '')
    .replace(/\$$/, '')
    .replaceAll('\\', '');
  const [from, to] = [pattern.startsWith('^'), pattern.endsWith('$')];
  if (from && to) return bare === text;
  return from ? bare.startsWith(text) : to ? bare.endsWith(text) : bare.includes(text);
}

route('POST', '/containers/create', async function (it) {
  const { version } = it;
  const request = (await jsonOf(it)) as Record<string, unknown>;
  const own = await this.containers(version);
  if (own.length >= containersMax)
    throw new Failure('exhausted', `there are ${containersMax} containers already`);
  const name = it.query.get('name') ?? '';
  const hostName = name === '' ? undefined : this.names.container(name);
  const image = await this.images.forContainer(version, request?.Image);
  const body = await containerBodyFor(
    request,
    { ...this.vm.walls(), sandboxId: this.vm.sandboxId, containerId: await this.inside(version) },
    {
      image,
      volume: async (each) => (await this.makeVolume(version, each)).Name,
      container: (each) => this.containerId(version, each),
      realPath: (path) => realpath(path),
    },
  );
  const made = await this.upstream.json<{ Id: string; Warnings: string[] | null }>(version, {
    method: 'POST',
    path: '/containers/create',
    query: { name: hostName },
    json: body,
  });
  sendJson(it.response, 201, { Id: made.Id, Warnings: made.Warnings ?? [] });
});

route('POST', '/containers/prune', async function (it) {
  const { until, label, ...others } = parseFilters(it.query.get('filters'));
  if (Object.keys(others).length > 0) throw new Failure('invalid', 'the filters are until and label');
  const filters = {
    ...(until ? { until } : {}),
    label: [...(label ?? []), `${vmLabels.vm}=${this.vm.sandboxId}`],
  };
  const query = { filters: JSON.stringify(filters) };
  sendJson(
    it.response,
    200,
    await this.upstream.json(it.version, { method: 'POST', path: '/containers/prune', query }),
  );
});

/** A call about one container that has nothing to it but its query. */
function plain(
  method: string,
  verb: string,
  fields: Record<string, RegExp> = {},
  options: { runs?: boolean } = {},
): void {
  route(method, `/containers/{name}${verb === '' ? '' : `/${verb}`}`, async function (it) {
    const id = await this.containerId(it.version, it.params[0] ?? '');
    if (options.runs) await this.inside(it.version);
    const path = `/containers/${id}${verb === '' ? '' : `/${verb}`}`;
    const reply = await this.upstream.stream(
      it.version,
      { method, path, query: pick(it.query, fields) },
      it.signal,
    );
    await relay(it, reply);
  });
}

route('GET', '/containers/{name}/json', async function (it) {
  const id = await this.containerId(it.version, it.params[0] ?? '');
  const query = pick(it.query, { size: flag });
  const said = await this.upstream.json<Record<string, unknown>>(it.version, {
    method: 'GET',
    path: `/containers/${id}/json`,
    query,
  });
  sendJson(it.response, 200, shownContainer(said, this.names));
});

interface Started {
  HostConfig: { NetworkMode: string; Mounts?: { Type: string; Source?: string }[] | null };
}

/** Whether a container that was made earlier may still run as it was made. */
async function checkStart(gate: DockerGate, version: string, id: string): Promise<void> {
  const own = await gate.inside(version);
  const { HostConfig: host } = await gate.upstream.json<Started>(version, {
    method: 'GET',
    path: `/containers/${id}/json`,
  });
  if (host.NetworkMode !== `container:${own}`)
    throw new Failure(
      'conflict',
      'the sandbox has been made anew since, and this container has no network any more',
      {
        hint: 'Remove the container and run it again.',
      },
    );
  const walls = gate.vm.walls();
  for (const { Type: type, Source: source = '' } of host.Mounts ?? []) {
    if (type !== 'bind' || source === walls.hostsFile || source === walls.resolvFile) continue;
    const { path } = await sharedFolder(source, walls.shared, (each) => realpath(each));
    if (path !== source) throw new Failure('conflict', 'a folder of this container is another one by now');
  }
}

route('POST', '/containers/{name}/(start|restart)', async function (it) {
  const [name = '', verb] = it.params;
  const id = await this.containerId(it.version, name);
  await checkStart(this, it.version, id);
  const query = pick(it.query, { t: number, signal: /^[A-Z0-9]{1,16}$/, detachKeys: keys });
  await relay(
    it,
    await this.upstream.stream(
      it.version,
      { method: 'POST', path: `/containers/${id}/${verb}`, query },
      it.signal,
    ),
  );
});

plain('POST', 'stop', { t: number, signal: /^[A-Z0-9]{1,16}$/ });
plain('POST', 'kill', { signal: /^[A-Za-z0-9+-]{1,16}$/ });
plain('POST', 'pause');
plain('POST', 'unpause', {}, { runs: true });
plain('POST', 'wait', { condition: /^(?:not-running|next-exit|removed)$/ });
plain('POST', 'resize', { h: number, w: number });
plain('GET', 'logs', {
  ...{ follow: flag, stdout: flag, stderr: flag, timestamps: flag, details: flag },
  since: moment,
  until: moment,
  tail: /^(?:all|\d{1,9})$/,
});
plain('GET', 'changes');
plain('GET', 'export');

route('GET', '/containers/{name}/stats', async function (it) {
  const id = await this.containerId(it.version, it.params[0] ?? '');
  const query = pick(it.query, { stream: flag, 'one-shot': flag });
  const call = { method: 'GET', path: `/containers/${id}/stats`, query };
  await relay(it, await this.upstream.stream(it.version, call, it.signal), shownStats(this.names));
});

// The engine runs ps on the host, with these words.
plain('GET', 'top', { ps_args: /^(?:-ef|aux|-aux|-e?o ?(?:pid|ppid|user|args|comm|time|,| )+)$/ });
plain('DELETE', '', { v: flag, force: flag });
plain('GET', 'archive', { path: /^[^\0]{1,4096}$/ });
plain('HEAD', 'archive', { path: /^[^\0]{1,4096}$/ });

route('PUT', '/containers/{name}/archive', async function (it) {
  const id = await this.containerId(it.version, it.params[0] ?? '');
  const query = pick(it.query, { path: /^[^\0]{1,4096}$/, noOverwriteDirNonDir: flag, copyUIDGID: flag });
  const stream = { body: it.request, type: 'application/x-tar' };
  await relay(
    it,
    await this.upstream.stream(
      it.version,
      { method: 'PUT', path: `/containers/${id}/archive`, query, stream },
      it.signal,
    ),
  );
});

route('POST', '/containers/{name}/rename', async function (it) {
  const id = await this.containerId(it.version, it.params[0] ?? '');
  const query = { name: this.names.container(it.query.get('name') ?? '') };
  await relay(
    it,
    await this.upstream.stream(
      it.version,
      { method: 'POST', path: `/containers/${id}/rename`, query },
      it.signal,
    ),
  );
});

route('POST', '/containers/{name}/update', async function (it) {
  const id = await this.containerId(it.version, it.params[0] ?? '');
  const { RestartPolicy, ...others } = (await jsonOf(it)) as Record<string, unknown>;
  if (
    Object.values(others).some(
      (value) =>
        value !== null &&
        value !== 0 &&
        value !== '' &&
        !(Array.isArray(value) && value.length === 0) &&
        value !== false,
    )
  )
    throw new Failure('permission', 'limits are the sandbox’s; only the restart policy can be changed');
  const { Name = '', MaximumRetryCount = 0 } = (RestartPolicy ?? {}) as Record<string, unknown>;
  if (
    !['', 'no', 'always', 'unless-stopped', 'on-failure'].includes(Name as string) ||
    !Number.isSafeInteger(MaximumRetryCount)
  )
    throw new Failure('invalid', 'RestartPolicy is malformed');
  const json = { RestartPolicy: { Name, MaximumRetryCount } };
  sendJson(
    it.response,
    200,
    await this.upstream.json(it.version, { method: 'POST', path: `/containers/${id}/update`, json }),
  );
});

route('POST', '/containers/{name}/attach', async function (it) {
  const id = await this.containerId(it.version, it.params[0] ?? '');
  const query = pick(it.query, {
    ...{ logs: flag, stream: flag, stdin: flag, stdout: flag, stderr: flag },
    detachKeys: keys,
  });
  const call = { method: 'POST', path: `/containers/${id}/attach`, query };
  if (it.bare !== undefined) {
    await bareBody(it.request, it.bare);
    return join(it, call, this.upstream);
  }
  if (isSet(query.stdin ?? null))
    throw new Failure('invalid', 'attaching input needs the header "Upgrade: tcp"');
  await relay(it, await this.upstream.stream(it.version, call, it.signal));
});

route('POST', '/containers/{name}/exec', async function (it) {
  const id = await this.containerId(it.version, it.params[0] ?? '');
  await this.inside(it.version);
  const json = execBodyFor(await jsonOf(it));
  sendJson(
    it.response,
    201,
    await this.upstream.json(it.version, { method: 'POST', path: `/containers/${id}/exec`, json }),
  );
});

async function execOf(gate: DockerGate, it: Exchange): Promise<Exec> {
  const id = it.params[0] ?? '';
  const absent = new Failure('not-found', `No such exec instance: ${id.slice(0, 80)}`);
  if (!/^[0-9a-f]{64}$/.test(id)) throw absent;
  const exec = await gate.upstream.jsonIfFound<Exec>(it.version, { method: 'GET', path: `/exec/${id}/json` });
  if (exec === undefined) throw absent;
  const own = await gate.containers(it.version);
  if (!own.some((each) => each.Id === exec.ContainerID)) throw absent;
  return exec;
}

route('GET', '/exec/{name}/json', async function (it) {
  sendJson(it.response, 200, await execOf(this, it));
});

route('POST', '/exec/{name}/start', async function (it) {
  const exec = await execOf(this, it);
  await this.inside(it.version);
  const json = startBodyFor(await jsonOf(it));
  const call = { method: 'POST', path: `/exec/${exec.ID}/start`, json };
  if (it.bare !== undefined && !json.Detach) return join(it, call, this.upstream);
  await relay(it, await this.upstream.stream(it.version, call, it.signal));
});

route('POST', '/exec/{name}/resize', async function (it) {
  const exec = await execOf(this, it);
  const query = pick(it.query, { h: number, w: number });
  await relay(
    it,
    await this.upstream.stream(
      it.version,
      { method: 'POST', path: `/exec/${exec.ID}/resize`, query },
      it.signal,
    ),
  );
});
