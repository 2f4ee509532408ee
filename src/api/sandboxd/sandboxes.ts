// What we have of version 2: sandboxes of every runtime, commands in them, their files and ports, and the rules of the way out.
import { pipeline } from 'node:stream/promises';
import type { z } from 'zod';
import { nameLabel, sandboxNameProblem } from '../../contract/admin.ts';
import type { PublishedPort, UnpublishPort } from '../../contract/ports.ts';
import { parseLimits } from '../../contract/quantity.ts';
import {
  CheckV2,
  CreateSandboxV2,
  ExecV2,
  PublishV2,
  ResizeV2,
  SaveV2,
  UnpublishV2,
} from '../../contract/sandboxd.ts';
import type { WorkspaceMode } from '../../contract/workspace.ts';
import { Failure } from '../../lib/failure.ts';
import type { Execution, SandboxInfo } from '../../sandbox/sandbox.ts';
import { primed } from '../primed.ts';
import { attachCommand } from './attach.ts';
import { removeSandbox, stopSandbox } from './ends.ts';
import type { SandboxdCall, SandboxdRoute } from './server.ts';
import type { SandboxdOptions } from './service.ts';

/** The version of the API that these routes are of. */
const apiVersion = '0.26.0';
const outputBytesMax = 16 * 1024 * 1024;

export function sandboxRoutes(options: SandboxdOptions): SandboxdRoute[] {
  const { service, network, ports } = options;
  const named = () => service.list().filter((it) => it.metadata[nameLabel] !== undefined);
  const get = (name = ''): SandboxInfo => {
    const info =
      named().find((it) => it.metadata[nameLabel] === name) ?? service.list().find((it) => it.id === name);
    if (info !== undefined) return info;
    throw new Failure('not-found', `there is no sandbox ${JSON.stringify(name.slice(0, 128))}`);
  };
  const shown = (info: SandboxInfo) => infoOf(service.get(info.id), options);
  const start = async (
    info: ExecSpecV2,
    { id }: SandboxInfo,
    stdin: 'pipe' | 'none',
    signal: AbortSignal,
  ): Promise<Execution> => {
    if (info.privileged)
      throw new Failure('permission', 'privileged: a privileged command is in no sandbox', {
        hint: 'Use "user": "root".',
      });
    const spec = {
      argv: info.cmd,
      env: info.env,
      ...(info.working_dir === undefined ? {} : { cwd: info.working_dir }),
      ...(info.user === undefined ? {} : { user: info.user }),
      stdin,
      ...(info.tty ? { pty: { cols: 80, rows: 24 } } : {}),
    };
    try {
      return await service.executions(id).start(spec, signal);
    } catch (thrown) {
      // Not found is the sandbox alone: clients take it for gone.
      if (!(thrown instanceof Failure) || thrown.details?.guest !== 'not-found') throw thrown;
      throw new Failure('invalid', thrown.message, { cause: thrown });
    }
  };

  return [
    [
      'GET',
      /^\/daemon\/health$/,
      () => ({
        status: 200,
        json: {
          api_version: apiVersion,
          revision: '',
          release: options.version,
          status: 'ok',
          version: options.version,
          runtime: {},
        },
      }),
    ],
    [
      'GET',
      /^\/daemon\/info$/,
      () => ({ status: 200, json: { api_socket: options.socketPath, docker_socket: '' } }),
    ],
    ['GET', /^\/sandbox$/, () => ({ status: 200, json: named().map((it) => infoOf(it, options)) })],
    [
      'POST',
      /^\/sandbox$/,
      async ({ body, lifetime }) => ({
        status: 201,
        json: await createSandbox(await body(CreateSandboxV2), options, lifetime),
      }),
    ],
    ['GET', /^\/sandbox\/([^/]+)$/, ({ params }) => ({ status: 200, json: shown(get(params[0])) })],
    [
      'DELETE',
      /^\/sandbox\/([^/]+)$/,
      async ({ params, lifetime }) => {
        await removeSandbox(get(params[0]).id, options, lifetime);
        return { status: 204 };
      },
    ],
    [
      'POST',
      /^\/sandbox\/([^/]+)\/start$/,
      async ({ params, lifetime }) => {
        const info = get(params[0]);
        await service.start(info.id, lifetime);
        return { status: 200, json: shown(info) };
      },
    ],
    [
      'POST',
      /^\/sandbox\/([^/]+)\/stop$/,
      async ({ params, lifetime }) => {
        const info = get(params[0]);
        await stopSandbox(info.id, options, lifetime);
        return { status: 200, json: shown(info) };
      },
    ],
    [
      'POST',
      /^\/sandbox\/([^/]+)\/exec$/,
      async ({ params, body, signal }) => {
        const info = get(params[0]);
        try {
          const execution = await start(await body(ExecV2), info, 'none', signal);
          return { status: 200, json: await outcomeOf(execution, signal) };
        } catch (thrown) {
          return { status: 200, json: outcomeWithoutStart(thrown) };
        }
      },
    ],
    [
      'POST',
      /^\/sandbox\/([^/]+)\/exec\/attach$/,
      async (call) => {
        const { params, body, signal } = call;
        if (call.bare === undefined)
          throw new Failure('invalid', 'attaching needs the header "Upgrade: tcp"');
        const info = get(params[0]);
        const request = await body(ExecV2);
        using _held = service.hold(info.id);
        await attachCommand(call, await start(request, info, 'pipe', signal), { tty: request.tty });
        return 'taken' as const;
      },
    ],
    [
      'GET',
      /^\/sandbox\/([^/]+)\/exec\/([^/]+)$/,
      ({ params }) => {
        const { exit } = service.executions(get(params[0]).id).get(params[1] ?? '').info;
        return {
          status: 200,
          json: { exit_code: exit?.code ?? null, running: exit === undefined },
        };
      },
    ],
    [
      'POST',
      /^\/sandbox\/([^/]+)\/exec\/([^/]+)\/resize$/,
      async ({ params, body }) => {
        const execution = service.executions(get(params[0]).id).get(params[1] ?? '');
        const size = await body(ResizeV2);
        const { id, tty, exit } = execution.info;
        if (!tty || exit !== undefined)
          throw new Failure('conflict', `resize: command ${id} ${tty ? 'has ended' : 'has no terminal'}`);
        execution.resize(size);
        return { status: 204 };
      },
    ],
    [
      'GET',
      /^\/sandbox\/([^/]+)\/ports$/,
      ({ params }) => ({ status: 200, json: portsOf(get(params[0]).id, options) }),
    ],
    [
      'POST',
      /^\/sandbox\/([^/]+)\/ports$/,
      async ({ params, body, lifetime }) => {
        const { id } = get(params[0]);
        const wanted = (await body(PublishV2)).map(
          ({
            host_ip: hostIp,
            host_port: hostPort,
            sandbox_port: sandboxPort,
            protocol = 'tcp' as const,
          }) => ({
            ...(hostIp === undefined ? {} : { hostIp }),
            ...(hostPort === undefined ? {} : { hostPort }),
            ...{ sandboxPort, protocol },
          }),
        );
        await ports.publish(id, wanted, lifetime);
        return { status: 201, json: portsOf(id, options) };
      },
    ],
    [
      'POST',
      /^\/sandbox\/([^/]+)\/ports\/unpublish$/,
      async ({ params, body }) => {
        const { id } = get(params[0]);
        const wanted = await body(UnpublishV2);
        const listed = ports.list(id);
        await ports.unpublish(
          id,
          wanted.map((key) => unpublishOf(key, listed)),
        );
        const count = listed.length - ports.list(id).length;
        return { status: 200, json: { message: `unpublished ${count} port key(s)` } };
      },
    ],
    [
      'GET',
      /^\/sandbox\/([^/]+)\/files$/,
      async (call) => {
        const guest = service.guest(get(call.params[0]).id);
        const tar = await primed(await guest.pack(pathIn(call), call.signal));
        call.response.writeHead(200, { 'Content-Type': 'application/x-tar' });
        await pipeline(tar, call.response);
        return 'taken' as const;
      },
    ],
    [
      'PUT',
      /^\/sandbox\/([^/]+)\/files$/,
      async (call) => {
        await service.guest(get(call.params[0]).id).unpack(pathIn(call), call.request, {}, call.signal);
        return { status: 204 };
      },
    ],
    [
      'POST',
      /^\/sandbox\/([^/]+)\/save$/,
      async ({ params, body, lifetime }) => {
        const { tag } = await body(SaveV2);
        const saved = await options.templates.save(get(params[0]).id, tag, lifetime);
        return { status: 200, json: { tag: saved.name } };
      },
    ],
    [
      'GET',
      /^\/policy\/network\/rules$/,
      async ({ query }) => {
        const sandbox = query.get('sandbox');
        const { items } = await network.rules(sandbox === null ? undefined : get(sandbox).id);
        return {
          status: 200,
          json: items.map((rule) => ({
            ...{ id: rule.id, name: rule.name ?? rule.id, policy_id: 'local-policy' },
            scope: rule.sandboxId === undefined ? 'global' : `sandbox:${nameOf(rule.sandboxId, options)}`,
            applies_to: rule.sandboxId === undefined ? 'all' : nameOf(rule.sandboxId, options),
            resource_type: 'net:domain',
            ...{ decision: rule.decision, resources: rule.resources, origin: 'local', layer: 'local' },
            ...{ status: 'active', editable: true, provenance: { created_via: rule.createdVia } },
            ...(rule.sandboxId === undefined ? {} : { sandbox_id: rule.sandboxId }),
            actions: rule.protocols.map((it) => `net:connect:${it}`),
          })),
        };
      },
    ],
    [
      'POST',
      /^\/policy\/network\/check$/,
      async ({ body }) => {
        const { target, sandbox_id: sandbox } = await body(CheckV2);
        const sandboxId = sandbox === undefined ? undefined : get(sandbox).id;
        const answer = await network.check({ target, ...(sandboxId === undefined ? {} : { sandboxId }) });
        const allowed = answer.decision === 'allow';
        return {
          status: 200,
          json: {
            ...{ type: 'network', target, action: 'net:connect:tcp', allowed },
            context: sandboxId === undefined ? 'global' : `sandbox:${nameOf(sandboxId, options)}`,
            ...(allowed ? {} : { deny_kind: answer.rule === undefined ? 'implicit' : 'explicit' }),
            governance: { active: false },
            reason: answer.message,
            ...{ resource_type: 'net:domain', resource_value: answer.target },
            ...(answer.rule === undefined ? {} : { rule: answer.rule.text }),
          },
        };
      },
    ],
  ];
}

type ExecSpecV2 = z.infer<typeof ExecV2>;

function nameOf(id: string, { service }: SandboxdOptions): string {
  return service.list().find((it) => it.id === id)?.metadata[nameLabel] ?? id;
}

function pathIn({ query }: SandboxdCall): string {
  const path = query.get('path') ?? '';
  if (!path.startsWith('/') || path.includes('\0'))
    throw new Failure('invalid', 'path: an absolute path is needed');
  return path;
}

function infoOf(info: SandboxInfo, options: SandboxdOptions): object {
  const [main, ...others] = info.workspaces;
  const words: Partial<Record<SandboxInfo['state'], string>> = {
    Running: 'running',
    Stopped: 'stopped',
    Paused: 'paused',
  };
  return {
    id: info.id,
    name: info.metadata[nameLabel] ?? info.id,
    status: words[info.state] ?? info.state.toLowerCase(),
    agent: info.agent ?? info.metadata['glovebox.vm-agent'] ?? '',
    workspace: main?.path ?? '',
    created_at: info.createdAt.toISOString(),
    additional_workspaces: others.map((it) => ({ dir: it.path, read_only: it.readOnly })),
    labels: {},
    ports: portsOf(info.id, options),
  };
}

/** One that is broken breaks no list. */
function portsOf(id: string, { ports }: SandboxdOptions): object[] {
  try {
    return ports.list(id).map((it) => ({
      ...{ host_ip: it.hostIp, host_port: it.hostPort },
      ...{ protocol: it.protocol, sandbox_port: it.sandboxPort },
    }));
  } catch {
    return [];
  }
}

/**
 * A key as it is listed names one end of what may be published on both loopbacks, whose protocol is neither's: there the address and the port of the
 * host say which is meant.
 */
function unpublishOf(key: z.infer<typeof UnpublishV2>[number], listed: PublishedPort[]): UnpublishPort {
  const { host_ip: hostIp, host_port: hostPort, sandbox_port: sandboxPort, protocol } = key;
  const end = listed.find(
    (it) =>
      it.sandboxPort === sandboxPort &&
      it.protocol === protocol &&
      (hostIp === undefined || it.hostIp === hostIp) &&
      (hostPort === undefined || it.hostPort === hostPort),
  );
  if (end !== undefined) return { sandboxPort, hostIp: end.hostIp, hostPort: end.hostPort };
  return {
    sandboxPort,
    ...(hostIp === undefined ? {} : { hostIp }),
    ...(hostPort === undefined ? {} : { hostPort }),
    ...(protocol === undefined ? {} : { protocol }),
  };
}

async function createSandbox(
  request: CreateSandboxV2,
  options: SandboxdOptions,
  signal: AbortSignal,
): Promise<object> {
  const { agents, service } = options;
  const mode: WorkspaceMode = request.clone ? 'clone' : 'mount';
  const folder = request.workspace
    ?.split('/')
    .filter((it) => it !== '')
    .at(-1);
  const name =
    request.name ??
    [request.agent, folder]
      .filter((it) => it !== undefined)
      .join('-')
      .slice(0, 63);
  const problem = sandboxNameProblem(name);
  if (problem !== undefined) throw new Failure('invalid', `name: ${JSON.stringify(name)} ${problem}`);
  const limits = {
    ...(request.cpus === undefined ? {} : { cpu: String(request.cpus) }),
    ...(request.memory === undefined ? {} : { memory: dockerSize(request.memory) }),
  };
  const prepared = await agents.prepare(
    {
      ...{ image: request.template ?? '', keep: true, byOwner: true, entrypoint: [] },
      ...{ env: request.environment, metadata: { [nameLabel]: name }, extensions: {}, mounts: [] },
      limits: parseLimits(limits),
      workspaces: [
        ...(request.workspace === undefined ? [] : [{ path: request.workspace, mode, readOnly: false }]),
        ...request.additional_workspaces.map((it) => ({
          path: it.dir,
          mode: 'mount' as const,
          readOnly: it.read_only,
        })),
      ],
    },
    request.agent,
    signal,
  );
  return infoOf(await service.create(prepared, signal), options);
}

/** `512m` as `512Mi`. */
function dockerSize(text: string): string {
  const match = /^(\d+(?:\.\d+)?)([kmgt])b?$/i.exec(text);
  return match === null ? text : `${match[1]}${(match[2] as string).toUpperCase()}i`;
}

/** The message of a command that could not start is what a shell would say of it; other failures are thrown again. */
function outcomeWithoutStart(thrown: unknown): object {
  const exitCode = thrown instanceof Failure ? thrown.details?.exitCode : undefined;
  if (exitCode === undefined) throw thrown;
  return { exit_code: exitCode, stdout: '', stderr: `${(thrown as Failure).message}\n` };
}

async function outcomeOf(execution: Execution, signal: AbortSignal): Promise<object> {
  const text = { stdout: [] as Buffer[], stderr: [] as Buffer[] };
  let bytes = 0;
  for await (const piece of execution.read(0, { follow: true }, signal)) {
    if (piece.type === 'gap') continue;
    bytes += piece.bytes.length;
    if (bytes > outputBytesMax) {
      await execution.signal('SIGKILL', { tree: true }).catch(() => undefined);
      throw new Failure('exhausted', `the command wrote more than ${outputBytesMax} bytes`, {
        hint: 'Use exec/attach for its output.',
      });
    }
    text[piece.lane].push(Buffer.from(piece.bytes));
  }
  return {
    exit_code: (await execution.exit).code,
    stdout: Buffer.concat(text.stdout).toString('utf8'),
    stderr: Buffer.concat(text.stderr).toString('utf8'),
  };
}
