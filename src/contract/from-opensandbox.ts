// What becomes of each call and key of OpenSandbox, for the guide: whether it is there is read off our own tables; only what is better, or other, is said here.
import { z } from 'zod';
import { configSections, foreignKey, inertKeys, partsOfKey, refusedKeys, renamedKeys } from './config.ts';
import { absent, type Route, routes } from './routes.ts';

type Area = 'sandbox' | 'execd' | 'egress' | 'request';

/** Every call of OpenSandbox, below the base of its area. The last: what is better here; nothing where it is the same. */
const calls: readonly [Area, string, string?][] = [
  [
    ...(['sandbox', 'POST /sandboxes'] as const),
    'answered when commands can run in it; quantities are read strictly, and what cannot be held is refused',
  ],
  ['sandbox', 'GET /sandboxes'],
  ['sandbox', 'GET /sandboxes/{id}'],
  ['sandbox', 'DELETE /sandboxes/{id}', 'answered when nothing of it is left'],
  ['sandbox', 'PATCH /sandboxes/{id}/metadata'],
  ['sandbox', 'POST /sandboxes/{id}/pause'],
  ['sandbox', 'POST /sandboxes/{id}/resume'],
  ['sandbox', 'POST /sandboxes/{id}/renew-expiration', 'what was renewed is on disk before the answer'],
  [
    ...(['sandbox', 'GET /sandboxes/{id}/endpoints/{port}'] as const),
    'every endpoint asks for credentials, which the answer holds',
  ],
  ['sandbox', 'POST /sandboxes/{id}/snapshots', 'on both runtimes'],
  ['sandbox', 'GET /snapshots'],
  ['sandbox', 'GET /snapshots/{id}'],
  ['sandbox', 'DELETE /snapshots/{id}'],
  ['sandbox', 'GET /sandboxes/{id}/diagnostics/logs'],
  ['sandbox', 'GET /sandboxes/{id}/diagnostics/events'],
  ['sandbox', 'GET /sandboxes/{id}/diagnostics/inspect'],
  ['sandbox', 'GET /sandboxes/{id}/diagnostics/summary'],
  ['sandbox', 'GET /pools', 'without Kubernetes'],
  ['sandbox', 'POST /pools', 'without Kubernetes'],
  ['sandbox', 'GET /pools/{name}', 'without Kubernetes'],
  ['sandbox', 'PUT /pools/{name}', 'without Kubernetes'],
  ['sandbox', 'DELETE /pools/{name}', 'without Kubernetes'],
  [
    ...(['sandbox', 'ANY /sandboxes/{id}/proxy/{port}/{path}'] as const),
    'every method, HEAD and OPTIONS, too; nobody gets in without credentials, and these never reach the guest',
  ],
  ['request', 'GET /health'],
  ['request', 'POST /metrics/events'],
  ['execd', 'GET /ping'],
  ['execd', 'POST /command'],
  ['execd', 'DELETE /command'],
  ['execd', 'GET /command/status/{id}'],
  ['execd', 'GET /command/{id}/logs'],
  ['execd', 'POST /session'],
  [
    ...(['execd', 'POST /session/{id}/run'] as const),
    'one shell that lives: functions, variables, options and jobs stay; runs wait for each other',
  ],
  ['execd', 'DELETE /session/{id}'],
  ['execd', 'POST /code', 'without Jupyter, too, by the language’s own program'],
  ['execd', 'DELETE /code'],
  ['execd', 'POST /code/context'],
  ['execd', 'GET /code/contexts'],
  ['execd', 'DELETE /code/contexts'],
  ['execd', 'GET /code/contexts/{id}'],
  ['execd', 'DELETE /code/contexts/{id}'],
  ['execd', 'GET /files/info'],
  ['execd', 'DELETE /files'],
  ['execd', 'POST /files/permissions'],
  ['execd', 'POST /files/mv'],
  ['execd', 'GET /files/search'],
  ['execd', 'POST /files/replace'],
  ['execd', 'POST /files/upload', 'the old file stays until the new one is whole'],
  ['execd', 'GET /files/download'],
  ['execd', 'GET /directories/list'],
  ['execd', 'POST /directories'],
  ['execd', 'DELETE /directories'],
  ['execd', 'GET /metrics', 'of the sandbox’s own control group, rather than of the host'],
  ['execd', 'GET /metrics/watch', 'of the sandbox’s own control group, rather than of the host'],
  ['execd', 'POST /pty'],
  ['execd', 'GET /pty/{id}'],
  ['execd', 'DELETE /pty/{id}'],
  ['execd', 'GET /pty/{id}/ws'],
  ['execd', 'GET /v1/isolated/capabilities'],
  [
    'execd',
    'POST /v1/isolated/session',
    'bubblewrap comes with the agent, so any image with bash will do; `strict` shows the folders of the system and nothing else of the disk; on the runtime bubblewrap',
  ],
  ['execd', 'GET /v1/isolated/sessions'],
  ['execd', 'GET /v1/isolated/session/{id}', 'sessions outlive a restart of the server'],
  ['execd', 'DELETE /v1/isolated/session/{id}'],
  ['execd', 'POST /v1/isolated/session/{id}/run', '`exit` ends the run, not the session'],
  ['execd', 'GET /v1/isolated/session/{id}/diff'],
  ['execd', 'POST /v1/isolated/session/{id}/commit'],
  ['execd', 'GET /v1/isolated/session/{id}/files/info'],
  ['execd', 'GET /v1/isolated/session/{id}/files/download'],
  [
    'execd',
    'POST /v1/isolated/session/{id}/files/upload',
    'with an overlay, too, the session sees it at once',
  ],
  ['execd', 'DELETE /v1/isolated/session/{id}/files'],
  ['execd', 'POST /v1/isolated/session/{id}/files/mv'],
  ['execd', 'POST /v1/isolated/session/{id}/files/permissions'],
  ['execd', 'POST /v1/isolated/session/{id}/files/replace'],
  ['execd', 'GET /v1/isolated/session/{id}/files/search'],
  ['execd', 'GET /v1/isolated/session/{id}/directories/list'],
  ['execd', 'POST /v1/isolated/session/{id}/directories'],
  ['execd', 'DELETE /v1/isolated/session/{id}/directories'],
  ['egress', 'GET /healthz'],
  ['egress', 'GET /policy'],
  ['egress', 'POST /policy', 'names and addresses are both decided, always'],
  ['egress', 'PUT /policy'],
  ['egress', 'PATCH /policy', 'connections that are open and no longer allowed are cut at once'],
  ['egress', 'DELETE /policy'],
  ['egress', 'GET /credential-vault'],
  ['egress', 'POST /credential-vault'],
  ['egress', 'PATCH /credential-vault'],
  ['egress', 'DELETE /credential-vault'],
  ['egress', 'GET /credential-vault/credentials'],
  ['egress', 'GET /credential-vault/credentials/{name}'],
  ['egress', 'GET /credential-vault/bindings'],
  ['egress', 'GET /credential-vault/bindings/{name}'],
];

/** Every key of OpenSandbox's server, with its default there where it has one. The last: what is better or other here. */
const keys: readonly [key: string, usual?: unknown, note?: string][] = [
  ['server.host', '0.0.0.0', 'other machines are let in only when you say so'],
  ['server.port', 8080],
  ['server.api_key', undefined, 'without one, one is made: there is no server without a key'],
  ['server.eip'],
  ['server.max_sandbox_timeout_seconds'],
  ['server.timeout_keep_alive', 30],
  ['server.limit_concurrency', 1024],
  ['server.timeout_graceful_shutdown', 5],
  ['server.backlog', 2048],
  ['server.thread_pool_size', 200],
  ['server.loop', 'auto'],
  ['server.http', 'auto'],
  ['server.log_level'],
  ['proxy.resolve_internal', true],
  ['log.level', 'INFO'],
  ['log.file_enabled', false],
  ['log.file_path', undefined, 'in the home folder by default, one JSON object a line'],
  ['log.access_file_path', undefined, 'only where it is set; never with a key or a query in it'],
  ['log.file_max_bytes', 104_857_600],
  ['log.file_backup_count', 5],
  ['runtime.type', undefined, '`bubblewrap`, too, which needs no engine and starts in milliseconds'],
  ['runtime.execd_image'],
  ['runtime.execd_run_as_init', false],
  ['docker.network_mode', 'host', 'nothing gets past the rules'],
  ['docker.api_timeout', 180],
  ['docker.host_ip'],
  ['docker.drop_capabilities'],
  ['docker.no_new_privileges', true],
  ['docker.apparmor_profile'],
  ['docker.seccomp_profile', undefined, 'our own, narrower profile by default'],
  ['docker.pids_limit', 4096],
  ['docker.port_range_min', 40_000],
  ['docker.port_range_max', 60_000],
  ['docker.sandbox_env.*'],
  ['docker.sandbox_binds', []],
  ['kubernetes.*'],
  ['agent_sandbox.*'],
  ['fleets.*'],
  ['ingress.mode', 'direct'],
  ['ingress.gateway.address'],
  ['ingress.gateway.route.mode'],
  ['ingress.secure_access.keys'],
  ['ingress.secure_access.active_key'],
  ['egress.image'],
  ['egress.mode', 'dns'],
  ['egress.disable_ipv6', true],
  ['egress.readiness_timeout_seconds', 30],
  ['egress.requests.*'],
  ['egress.limits.*'],
  ['storage.allowed_host_paths', [], 'none when empty, whichever version of its documentation you have read'],
  ['storage.ossfs_mount_root', '/mnt/ossfs', 'a folder in the home folder by default'],
  ['storage.volume_default_size', '1Gi'],
  ['store.type', 'sqlite'],
  ['store.path', '~/.opensandbox/opensandbox.db', 'in the home folder by default'],
  ['store.postgresql.*'],
  ['secure_runtime.type', ''],
  ['secure_runtime.docker_runtime', undefined, 'has a default for each type'],
  ['secure_runtime.k8s_runtime_class'],
  ['renew_intent.enabled', false],
  ['renew_intent.min_interval_seconds', 60],
  ['renew_intent.redis.enabled', false],
  ['renew_intent.redis.dsn'],
  ['renew_intent.redis.queue_key', 'opensandbox:renew:intent'],
  ['renew_intent.redis.consumer_concurrency', 8],
  ['tenants.*'],
  ['otel.enabled', false],
  ['otel.endpoint'],
  ['otel.service_name', 'opensandbox-server'],
  ['otel.export_interval_millis', 60_000],
];

export type Verdict = 'same' | 'better' | 'no effect' | 'refused';

export interface Row {
  /** `POST /sandboxes`, or `server.host`. */
  what: string;
  area?: Area;
  verdict: Verdict;
  why: string;
}

/** Throws for a call that there is not and that is not refused either: nobody could tell what becomes of it. */
export function callsOfOpenSandbox(): Required<Row>[] {
  return calls.map(([area, what, note = '']) => {
    const [method = '', path = ''] = what.split(' ');
    // Passed on to the guest whatever it is, by no entry of the table.
    const served = method === 'ANY' || routesLike(method, path, area).length > 0;
    if (served) return { area, what, verdict: note === '' ? 'same' : 'better', why: note };
    const missing = absent.find((it) => it.area === area && it.path.test(path.replaceAll(/\{\w+\}/g, 'x')));
    if (missing === undefined) throw new Error(`${what}: there is neither a route nor a refusal`);
    return {
      area,
      what,
      verdict: 'refused',
      why: missing.never
        ? `the answer is ${missing.never.status}: ${missing.never.why}`
        : `${missing.what} are not in this version; the answer is 501`,
    };
  });
}

export function keysOfOpenSandbox(): Row[] {
  return keys.map(([what, usual, note]) => {
    const renamed = renamedKeys[what];
    if (renamed !== undefined) return { what, verdict: 'same', why: `an older name of \`${renamed}\`` };
    const refused = foreignKey(refusedKeys, what.replace(/\*$/, 'x'));
    if (refused !== undefined) return { what, verdict: 'refused', why: refusalOf(refused) };
    const inert = foreignKey(inertKeys, what.replace(/\*$/, 'x'));
    if (inert !== undefined) return { what, verdict: 'no effect', why: inert.why };
    const { section, key } = partsOfKey(what);
    const shape: Record<string, z.ZodType> =
      configSections[section as keyof typeof configSections]?.shape ?? {};
    const field = Object.hasOwn(shape, key) ? shape[key] : undefined;
    if (field === undefined) throw new Error(`${what}: there is neither such a key nor a refusal`);
    const ours = z.toJSONSchema(field, { io: 'input' }).default;
    const other = usual !== undefined && ours !== undefined && JSON.stringify(usual) !== JSON.stringify(ours);
    const why = [
      ...(other ? [`the default is \`${JSON.stringify(ours)}\`, not \`${JSON.stringify(usual)}\``] : []),
      ...(note === undefined ? [] : [note]),
    ].join(': ');
    return { what, verdict: why === '' ? 'same' : 'better', why };
  });
}

function refusalOf({ why, use, ...rest }: (typeof refusedKeys)[number]): string {
  const allowed = 'allow' in rest ? `; only \`${JSON.stringify(rest.allow)}\` is taken` : '';
  return `${why}${use === undefined ? '' : `; use ${use}`}${allowed}`;
}

/** Routes of ours that OpenSandbox does not have. */
export function ownRoutes(): Route[] {
  const theirs = new Set(
    calls.flatMap(([area, what]) => {
      const [method = '', path = ''] = what.split(' ');
      return routesLike(method, path, area);
    }),
  );
  return Object.values(routes as Record<string, Route>).filter((it) => !theirs.has(it));
}

/** By method and path, whatever the names in it; of its own area, as far as OpenSandbox has areas. */
function routesLike(method: string, path: string, area: Area): Route[] {
  const areaOf = (it: string) => (it === 'execd' || it === 'egress' ? it : undefined);
  const nameless = (it: string) => it.replaceAll(/\{\w+\}/g, '{}');
  const found = Object.values(routes as Record<string, Route>).filter(
    (it) => it.method === method && areaOf(it.area) === areaOf(area),
  );
  const same = found.filter((it) => nameless(it.path) === nameless(path));
  // One route of ours may stand for several of theirs.
  const parts = nameless(path).split('/');
  const fits = (it: Route) => {
    const own = nameless(it.path).split('/');
    return own.length === parts.length && own.every((part, at) => part === '{}' || part === parts[at]);
  };
  return same.length > 0 ? same : found.filter(fits);
}

/** The parts of the guide that are generated, by the names that mark their places. */
export function guideTables(): Record<string, string> {
  const areas: [Area, string][] = [
    ['sandbox', 'Lifecycle'],
    ['request', 'The server itself'],
    ['execd', 'execd, at port 44772 of a sandbox'],
    ['egress', 'egress, at port 18080 of a sandbox'],
  ];
  const all = callsOfOpenSandbox();
  const row = ({ what, verdict, why }: Row) => `| \`${what}\` | ${verdict} | ${cell(why)} |`;
  const head = (first: string) => [`| ${first} | here | |`, '|---|---|---|'];
  return {
    calls: areas
      .flatMap(([area, title]) => [
        ...[`**${title}**`, '', ...head('call')],
        ...all.filter((it) => it.area === area).map(row),
        '',
      ])
      .join('\n')
      .trimEnd(),
    keys: [...head('key'), ...keysOfOpenSandbox().map(row)].join('\n'),
    'own calls': [
      '| call | what it does |',
      '|---|---|',
      ...ownRoutes().map((it) => {
        const base = it.area === 'execd' || it.area === 'egress' ? `${it.area}: ` : '';
        return `| ${base}\`${it.method} ${it.path}\` | ${cell(it.summary)} |`;
      }),
    ].join('\n'),
  };
}

/** A page with each part between `<!-- generated: NAME -->` and `<!-- end -->` as it is now. Throws when a mark is missing. */
export function withTables(page: string, tables: Readonly<Record<string, string>>): string {
  return Object.entries(tables).reduce((text, [name, content]) => {
    const [start, end] = [`<!-- generated: ${name} -->\n`, '\n<!-- end -->'];
    const from = text.indexOf(start);
    const to = text.indexOf(end, from);
    if (from < 0 || to < 0) throw new Error(`the page has no place for ${JSON.stringify(name)}`);
    return `${text.slice(0, from + start.length)}${content}${text.slice(to)}`;
  }, page);
}

const cell = (text: string) => text.replaceAll('|', '\\|');
