// The configuration file: OpenSandbox's sections and keys with safer defaults, and a few of our own. The one place that spells a key.
// Keys of OpenSandbox that mean nothing here are named too, with the reason: the harmless ones bring a warning, the others are refused.
// Reading it, with its sources and their order, is the work of daemon/config.ts.
import { z } from 'zod';
import { Failure } from '../lib/failure.ts';
import { type NewPool, PoolName, PoolState } from './pool.ts';
import { parseLimits } from './quantity.ts';

/** One line without control characters: such values end up in headers, paths and logs. */
const line = z
  .string()
  .min(1, 'must not be empty')
  .max(4096)
  .regex(/^\P{Cc}*$/u, 'must not hold control characters');
const path = line.regex(/^(\/|~\/)/, 'must be an absolute path, or begin with ~/');

/** One of these words, in capitals or not, as a pattern that needs no flag: JSON Schema has none. */
const anyCase = (...words: string[]) => {
  const letters = (word: string) => [...word].map((it) => `[${it}${it.toUpperCase()}]`).join('');
  return new RegExp(`^(${words.map(letters).join('|')})$`);
};

/** A limit as requests write it, checked where it is read so that a mistake is found at start. */
const quantity = (key: string) =>
  line.superRefine((text, context) => {
    try {
      parseLimits({ [key]: text });
    } catch (thrown) {
      if (!(thrown instanceof Failure)) throw thrown;
      context.addIssue({ code: 'custom', message: thrown.message.replace(/^resourceLimits\.\w+: /, '') });
    }
  });

const server = z.strictObject({
  host: line
    .regex(/^[0-9A-Za-z.:_-]+$/, 'must be an address or a host name')
    .default('127.0.0.1')
    .describe('The address to listen at. Other machines reach only what is not a loopback address.'),
  port: z.int().min(0).max(65_535).default(8080).describe('The TCP port; 0 for any free one.'),
  api_key: line
    .regex(/^[\x21-\x7e]+$/, 'must be printable ASCII without spaces')
    .optional()
    .describe(
      'The key that clients must send. By default one is made at the first start, in `api-key` in the home folder.',
    ),
  eip: line
    .regex(/^[0-9A-Za-z.:_[\]-]+$/, 'must be a host name or an address, perhaps with a port')
    .optional()
    .describe(
      'The host part of the endpoints that are handed out, where clients know the server by another name.',
    ),
  max_sandbox_timeout_seconds: z
    .int()
    .min(60)
    .max(2_147_483)
    .optional()
    .describe('The longest life that a request may ask for.'),
  timeout_keep_alive: z
    .int()
    .min(1)
    .max(86_400)
    .default(30)
    .describe('Seconds that an idle HTTP connection is kept.'),
  limit_concurrency: z
    .int()
    .min(0)
    .max(1_000_000)
    .default(1024)
    .describe('Requests at the same time; more are answered with 503. 0 for no limit.'),
  backlog: z.int().min(1).max(65_535).default(2048).describe('Connections that may wait to be accepted.'),
  timeout_graceful_shutdown: z
    .int()
    .min(1)
    .max(3_600)
    .default(5)
    .describe('Seconds that requests under way may go on for when the daemon stops.'),
});

const serverTls = z.strictObject({
  cert_file: path
    .optional()
    .describe(
      'The certificate to serve HTTPS with (PEM): the server’s own first, then those between it and an authority. Read again when it changes.',
    ),
  key_file: path.optional().describe('Its key (PEM), which other users may not read.'),
  client_ca_file: path
    .optional()
    .describe('Authorities whose certificates clients may show (PEM). For `client_auth`.'),
  client_crl_file: path
    .optional()
    .describe('Certificates of clients that count no more (PEM), one list of each authority.'),
  client_auth: z
    .enum(['none', 'request', 'require'])
    .default('none')
    .describe(
      '`require` lets in only who shows a certificate of `client_ca_file`; `request` asks for one. The API key is needed all the same.',
    ),
  min_version: z.enum(['1.2', '1.3']).default('1.2').describe('The oldest version of TLS that is spoken.'),
});

const perMinute = (most = 1_000_000) => z.int().min(1).max(most);

const rateLimit = z.strictObject({
  key_per_minute: perMinute()
    .default(1_200)
    .describe('Requests of each key of a project; more are answered with 429 and `Retry-After`.'),
  key_burst: perMinute().default(200).describe('How many of them may come at once.'),
  failures_per_minute: perMinute()
    .default(30)
    .describe(
      'Requests of one address (of IPv6, one network of 64 bits) that are refused for a wrong key or none; more are answered with 429.',
    ),
  administrator_per_minute: z
    .int()
    .min(0)
    .max(1_000_000)
    .default(0)
    .describe('Requests with the key of the server itself; 0 for no limit.'),
});

const log = z.strictObject({
  level: z
    .string()
    .regex(
      anyCase('debug', 'info', 'warn', 'warning', 'error', 'critical'),
      'must be DEBUG, INFO, WARNING, ERROR or CRITICAL',
    )
    .default('INFO')
    .describe('The least important events that are logged: DEBUG, INFO, WARNING, ERROR or CRITICAL.'),
  file_enabled: z.boolean().default(false).describe('Log to a file instead of standard error.'),
  file_path: path.optional().describe('The log file. By default `daemon.log` in the home folder.'),
  file_max_bytes: z
    .int()
    .min(4_096)
    .max(1_099_511_627_776)
    .default(104_857_600)
    .describe('The size at which a log file is closed and the next one begun.'),
  file_backup_count: z
    .int()
    .min(0)
    .max(1_000)
    .default(5)
    .describe('How many closed log files are kept, as `daemon.log.1` (the newest) and so on.'),
  access_file_path: path
    .optional()
    .describe(
      'A file for one line about each request: what was called, by which address, the answer, how long it took. Without it they are in the log at DEBUG.',
    ),
});

const runtime = z.strictObject({
  type: z
    .enum(['bubblewrap', 'docker', 'memory'])
    .default('bubblewrap')
    .describe(
      'The walls of sandboxes whose request names none. `memory` has no walls at all: for tests only.',
    ),
});

const docker = z.strictObject({
  host: line
    .regex(/^(unix:\/\/\/|tcp:\/\/|http:\/\/)/, 'must be unix:///path or tcp://host:port')
    .default('unix:///var/run/docker.sock')
    .describe('The address of the Docker engine.'),
  network_mode: line
    .regex(/^[A-Za-z0-9][A-Za-z0-9_.-]*$/, 'must be none, bridge, host or the name of a network')
    .default('none')
    .describe(
      '`none`, `bridge`, `host` or the name of a network. All but `none` let sandboxes past the walls.',
    ),
  api_timeout: z
    .int()
    .min(1)
    .max(86_400)
    .default(180)
    .describe('Seconds that one call to the engine may take.'),
  drop_capabilities: z
    .array(z.string().regex(/^(CAP_)?[A-Z_]+$/, 'must be the name of a capability, such as NET_RAW'))
    .max(64)
    .default([
      ...['AUDIT_WRITE', 'MKNOD', 'NET_ADMIN', 'NET_RAW', 'SYS_ADMIN'],
      ...['SYS_MODULE', 'SYS_PTRACE', 'SYS_TIME', 'SYS_TTY_CONFIG'],
    ])
    .describe('Capabilities that containers do without; `ALL` for all of them.'),
  no_new_privileges: z
    .boolean()
    .default(true)
    .describe(
      'Whether programs in containers are kept from gaining rights, by set-user-id bits for example.',
    ),
  apparmor_profile: line
    .optional()
    .describe('The AppArmor profile of containers. By default the engine’s own.'),
  seccomp_profile: line
    .regex(/^(default|unconfined|\/.*|~\/.*)$/, 'must be default, unconfined or an absolute path')
    .default('default')
    .describe(
      '`default` for our own filter of system calls, `unconfined` for none, or the path of a profile.',
    ),
  pids_limit: z
    .int()
    .min(0)
    .max(4_194_304)
    .default(4096)
    .describe('Processes and threads of a container whose request says nothing of it; 0 for no limit.'),
  runtime: line
    .regex(/^[A-Za-z0-9][A-Za-z0-9_.-]*$/, 'must be the name of a runtime of the engine, such as runsc')
    .optional()
    .describe('Another OCI runtime of the engine, such as `runsc` (gVisor).'),
});

const bubblewrap = z.strictObject({
  id_base: z
    .int()
    .min(65_536)
    .max(4_294_836_224)
    .default(1_879_048_192)
    .describe(
      'The host’s number for user 0 of sandboxes when the daemon runs as root; the 65,535 after it are taken too.',
    ),
  cpu: quantity('cpu')
    .optional()
    .describe('Cores for sandboxes whose request says nothing of them, such as `2` or `500m`.'),
  memory: quantity('memory')
    .optional()
    .describe('The same for memory, such as `512Mi`. Without it, three quarters of the host’s.'),
  pids: z
    .int()
    .min(1)
    .max(4_194_304)
    .optional()
    .describe('The same for processes and threads. Without it, 4096.'),
  disk: quantity('disk').optional().describe('The same for what a sandbox may write, such as `2Gi`.'),
});

const second = (least: number, most: number) => z.int().min(least).max(most).optional();

const sandbox = z.strictObject({
  idle_pause_seconds: second(1, 31_536_000).describe(
    'Pause sandboxes that nobody uses for so long, unless their request says otherwise by `glovebox.idle.pause.seconds`, with `0` for never. What cannot be paused is left as it is. Without it, none.',
  ),
  idle_stop_seconds: second(1, 31_536_000).describe(
    'Stop those that are kept over a stop when nobody uses them for so long, unless their request or their agent says otherwise. Without it, none.',
  ),
  renew_on_access_seconds: second(300, 86_400).describe(
    'Let those that have a timeout live at least so long from each use on, unless their request says otherwise by `access.renew.extend.seconds`. Without it, use changes nothing.',
  ),
});

const storage = z.strictObject({
  allowed_host_paths: z
    .array(path)
    .max(1024)
    .default([])
    .describe('Folders of the host that requests may mount. None by default.'),
  ossfs_mount_root: path
    .optional()
    .describe(
      'Where buckets (`ossfs` volumes) are mounted while sandboxes have them. By default the folder `buckets` in the home folder.',
    ),
});

const store = z.strictObject({
  type: z.enum(['sqlite']).default('sqlite').describe('What keeps the records of sandboxes.'),
  path: path.optional().describe('Its file. By default `glovebox.db` in the home folder.'),
});

const address = '(\\d{1,3}(\\.\\d{1,3}){3}|\\[[0-9a-fA-F:.]+\\])';

const egress = z.strictObject({
  inspect: z
    .enum(['all', 'needed'])
    .default('all')
    .describe(
      '`all`: look into every TLS connection but those of bypassed hosts. `needed`: only where a secret is bound to the host, or a rule speaks of methods or paths.',
    ),
  transparent: z
    .boolean()
    .default(true)
    .describe(
      'Catch connections of programs that know nothing of the proxy. A sandbox can then serve nothing itself at ports 80 and 443.',
    ),
  name_servers: z
    .array(line.regex(new RegExp(`^${address}(:\\d{1,5})?$`), 'must be an address, perhaps with a port'))
    .max(8)
    .default([])
    .describe('Name servers to ask instead of those of the system.'),
  hosts: z
    .array(line.regex(/^[A-Za-z0-9._-]+=[0-9a-fA-F:.]+$/, 'must be name=address'))
    .max(1024)
    .default([])
    .describe('Names with fixed addresses, as `name=address`; repeat a name for more addresses.'),
  upstream_proxy: line
    .regex(/^https?:\/\/[^/]+\/?$/, 'must be http://host:port or https://host:port')
    .optional()
    .describe('A proxy through which everything leaves this host, such as `http://proxy.corp:3128`.'),
  no_proxy: z
    .array(line)
    .max(1024)
    .default([])
    .describe('Names, addresses and networks that are reached without that proxy.'),
  extra_ca: z
    .array(path)
    .max(64)
    .default([])
    .describe('Files of certificates (PEM) of authorities to trust beside those of the system.'),
  connections_max: z
    .int()
    .min(1)
    .max(65_536)
    .default(1024)
    .describe('Connections of one sandbox at the same time.'),
  idle_seconds: z
    .int()
    .min(5)
    .max(86_400)
    .default(600)
    .describe('How long a connection may be silent in both directions.'),
  ask_seconds: z
    .int()
    .min(1)
    .max(600)
    .default(30)
    .describe('How long a connection is held while a person is asked; no answer is a no.'),
  ask_notify: z
    .boolean()
    .default(false)
    .describe('Show such questions as notifications of the desktop, too.'),
  log_file_bytes: z
    .int()
    .min(65_536)
    .max(1_073_741_824)
    .default(16_777_216)
    .describe('The size at which a file of the network log is closed and the next one begun.'),
  log_files: z.int().min(2).max(1_000).default(8).describe('How many of these files are kept.'),
  keyring: z
    .enum(['file', 'system'])
    .default('file')
    .describe(
      'Where the key of the stored secrets lies: in a file of the home folder, or in the system’s keyring.',
    ),
  dangerously_allow_metadata: z
    .boolean()
    .default(false)
    .describe('Lets rules open the metadata services of clouds, which hand out the host’s own rights.'),
});

const ingress = z.strictObject({
  mode: z
    .enum(['direct', 'gateway'])
    .default('direct')
    .describe(
      'How ports of sandboxes are reached. `direct`: below the API, at `/sandboxes/<id>/proxy/<port>`. `gateway`: also at a listener of its own, and clients are told of that.',
    ),
});

const ingressGateway = z.strictObject({
  address: line
    .regex(
      /^(\*\.)?([0-9A-Za-z._-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?$/,
      'must be a host name or an address without a scheme, perhaps with a port; for wildcard with *. in front',
    )
    .optional()
    .describe(
      'What clients know the gateway by, such as `gateway.example.com`, or `*.sandboxes.example.com` for `wildcard`. By default the listener itself; `*.localhost` for `wildcard`.',
    ),
  host: line
    .regex(/^[0-9A-Za-z.:_-]+$/, 'must be an address or a host name')
    .default('127.0.0.1')
    .describe('The address that the gateway listens at.'),
  port: z.int().min(1).max(65_535).default(28_888).describe('Its TCP port.'),
});

const ingressRoute = z.strictObject({
  mode: z
    .enum(['wildcard', 'uri', 'header'])
    .default('uri')
    .describe(
      'What names a port: `wildcard` the host, `<id>-<port>.<domain>`; `uri` the path, `/<id>/<port>/`; `header` the header `OpenSandbox-Ingress-To: <id>-<port>`. Browsers keep applications apart with `wildcard` only.',
    ),
});

/** As the ingress of OpenSandbox takes it on its command line, and as its configuration has it. */
const routeKeyId = z.string().regex(/^[0-9a-z]$/, 'must be one of 0-9 and a-z');
const routeSecret = line.regex(/^(base64:)?[0-9A-Za-z+/]{22,}={0,2}$/, 'must be base64:<at least 16 bytes>');
const routeKey = z.union([
  line.regex(/^[0-9a-z]=(base64:)?[0-9A-Za-z+/]{22,}={0,2}$/, 'must be <id>=base64:<at least 16 bytes>'),
  z.strictObject({ key_id: routeKeyId, key: routeSecret }),
  z.strictObject({ key_id: routeKeyId, secret: routeSecret }),
]);

const ingressAccess = z.strictObject({
  enabled: z
    .boolean()
    .default(true)
    .describe(
      'Whether ports ask for credentials at the gateway. With `false` whoever reaches it may use them, but for those of sandboxes that were made with `secureAccess`, and the APIs of sandboxes.',
    ),
  signature: z
    .enum(['hmac', 'opensandbox'])
    .default('hmac')
    .describe(
      'What signed addresses are signed with: an HMAC of 56 bits, or OpenSandbox’s hash of 32 bits, where its own ingress has to understand them.',
    ),
  keys: z
    .array(routeKey)
    .max(36)
    .default([])
    .describe(
      'Keys that signatures are accepted of, each `<id>=base64:<secret>` with an id of one character; in the file also tables with `key_id` and `key`, as OpenSandbox has them. By default one is made in `ingress-key` in the home folder.',
    ),
  active_key: z
    .string()
    .regex(/^[0-9a-z]$/, 'must be one of 0-9 and a-z')
    .optional()
    .describe('The id of the key that new addresses are signed with. By default the first one.'),
});

const sandboxd = z.strictObject({
  enabled: z
    .boolean()
    .default(true)
    .describe(
      'Serve the API of Docker Sandboxes on a Unix socket, `sandboxes/sandboxd.sock` in the home folder.',
    ),
  docker_path: z
    .boolean()
    .default(false)
    .describe('Serve it at Docker’s own path, too: `~/.docker/sandboxes/sandboxd.sock`.'),
});

const secureRuntime = z.strictObject({
  type: z
    .enum(['', 'gvisor', 'kata'])
    .default('')
    .describe(
      '`gvisor` or `kata` for stronger walls around every Docker sandbox; needs `runtime.type = "docker"`.',
    ),
  docker_runtime: line
    .regex(/^[A-Za-z0-9][A-Za-z0-9_.-]*$/, 'must be the name of a runtime of the engine')
    .optional()
    .describe(
      'What the engine calls that runtime. By default `runsc` for gvisor and `kata-runtime` for kata.',
    ),
});

const workers = z.strictObject({
  sandd: z
    .enum(['off', 'token', 'insecure'])
    .default('off')
    .describe(
      'Whether daemons of SandD may connect as workers: not at all, with a token of `sandd_token_file`, or whoever comes. They have no keys: each may take any id.',
    ),
  sandd_token_file: path
    .optional()
    .describe(
      'SHA-256 hashes of these tokens, one a line, as `sha256sum` writes them. Read anew for each connection.',
    ),
});

const telemetry = z.strictObject({
  otlp_endpoint: line
    .regex(
      /^https?:\/\/[^/@\s?#]+(\/[^@\s?#]*)?$/,
      'must be http://host:port or https://host:port, perhaps with a path',
    )
    .optional()
    .describe(
      'Where traces and metrics are sent by OTLP over HTTP with JSON, such as `http://127.0.0.1:4318`. Nothing is sent without it.',
    ),
  headers: z
    .array(line.regex(/^[!#$%&'*+.^_`|~0-9A-Za-z-]+=[\x20-\x7e]*$/, 'must be name=value'))
    .max(32)
    .default([])
    .describe('Headers of these requests, as `name=value`. They may hold a key, so they are never shown.'),
  service_name: line.default('glovebox').describe('`service.name` of all that is sent.'),
  sample_ratio: z
    .number()
    .min(0)
    .max(1)
    .default(1)
    .describe('The part of traces that is sent, of those that begin here; who continues one has decided.'),
  disabled: z.boolean().default(false).describe('Send nothing, whatever else is set.'),
});

/** Each `[pools.NAME]` is one: sandboxes that are made before anybody asks. */
export const poolSection = z.strictObject({
  image: line.max(1024).describe('What its sandboxes are made of.'),
  runtime: z
    .enum(['bubblewrap', 'docker', 'memory'])
    .optional()
    .describe('Their walls. By default those of `runtime.type`.'),
  cpu: quantity('cpu').optional().describe('The limit of each, such as "500m".'),
  memory: quantity('memory').optional().describe('The limit of each, such as "512Mi".'),
  pids: z.int().min(16).max(4_194_304).optional().describe('The limit of each.'),
  disk: quantity('disk').optional().describe('The limit of each, such as "2Gi".'),
  state: PoolState.default('started').describe(
    '`started`, or `frozen`: those take no processor time while they wait, and a little longer to be handed out.',
  ),
  buffer_max: z.int().min(0).max(1_000).default(4).describe('The most that are ready.'),
  buffer_min: z
    .int()
    .min(0)
    .max(1_000)
    .optional()
    .describe('Fewer that are ready than this, and more are made. By default `buffer_max`.'),
  pool_min: z.int().min(0).max(1_000).default(0).describe('The least in all, ready and in use.'),
  pool_max: z.int().min(0).max(10_000).default(1_000).describe('The most in all, ready and in use.'),
  memory_max: quantity('memory')
    .optional()
    .describe('What the memory limits of those that wait may add up to; `memory` has to be set, too.'),
});
const poolSections = z.record(PoolName, poolSection);

/** As a request would ask for it. */
export function poolOfSection(name: string, section: z.infer<typeof poolSection>): z.input<typeof NewPool> {
  const { image, runtime, cpu, memory, pids, disk, state, memory_max: memoryMax } = section;
  const { buffer_max: bufferMax, pool_min: poolMin, pool_max: poolMax } = section;
  return {
    name,
    template: {
      image: { uri: image },
      resourceLimits: {
        ...(cpu === undefined ? {} : { cpu }),
        ...(memory === undefined ? {} : { memory }),
        ...(pids === undefined ? {} : { pids: String(pids) }),
        ...(disk === undefined ? {} : { disk }),
      },
      ...(runtime === undefined ? {} : { runtime }),
    },
    capacitySpec: { bufferMin: section.buffer_min ?? bufferMax, bufferMax, poolMin, poolMax },
    glovebox: { state, ...(memoryMax === undefined ? {} : { memoryMax }) },
  };
}

/** Every section that has keys with an effect, but for those of pools, of which there may be any number. */
export const configSections = {
  server,
  'server.tls': serverTls,
  'server.rate_limit': rateLimit,
  log,
  runtime,
  docker,
  bubblewrap,
  sandbox,
  storage,
  store,
  egress,
  ingress,
  'ingress.gateway': ingressGateway,
  'ingress.gateway.route': ingressRoute,
  'ingress.secure_access': ingressAccess,
  sandboxd,
  secure_runtime: secureRuntime,
  workers,
  telemetry,
} as const;

export const ConfigFile = z.strictObject({
  server: server.prefault({}),
  'server.tls': serverTls.prefault({}),
  'server.rate_limit': rateLimit.prefault({}),
  log: log.prefault({}),
  runtime: runtime.prefault({}),
  docker: docker.prefault({}),
  bubblewrap: bubblewrap.prefault({}),
  sandbox: sandbox.prefault({}),
  storage: storage.prefault({}),
  store: store.prefault({}),
  egress: egress.prefault({}),
  ingress: ingress.prefault({}),
  'ingress.gateway': ingressGateway.prefault({}),
  'ingress.gateway.route': ingressRoute.prefault({}),
  'ingress.secure_access': ingressAccess.prefault({}),
  sandboxd: sandboxd.prefault({}),
  secure_runtime: secureRuntime.prefault({}),
  workers: workers.prefault({}),
  telemetry: telemetry.prefault({}),
  pools: poolSections.default({}),
});
export type ConfigFile = z.infer<typeof ConfigFile>;

/** A key of OpenSandbox that cannot do here what it does there. `allow` names the one value that asks for nothing; `use`, what takes its place. */
export interface ForeignKey {
  key: string;
  why: string;
  use?: string;
  allow?: unknown;
}

/** Accepted with a warning: leaving them out changes nothing. A key that ends in `.*` stands for all below it. */
export const inertKeys: readonly ForeignKey[] = [
  { key: 'server.thread_pool_size', why: 'the server has no thread pool' },
  { key: 'server.loop', why: 'it chooses a part of Python’s server' },
  { key: 'server.http', why: 'it chooses a part of Python’s server' },
  { key: 'runtime.execd_image', why: 'the agent comes with Glovebox and needs no image' },
  { key: 'runtime.execd_run_as_init', why: 'the agent always looks after the processes of its sandbox' },
  {
    key: 'proxy.resolve_internal',
    why: 'ports of sandboxes are reached through their agents, wherever these run',
  },
  {
    key: 'docker.port_range_min',
    why: 'sandboxes take no ports of the host unless `glovebox ports` publishes one',
  },
  {
    key: 'docker.port_range_max',
    why: 'sandboxes take no ports of the host unless `glovebox ports` publishes one',
  },
  {
    key: 'docker.host_ip',
    why: 'ports of sandboxes are reached through the server, never on the engine’s host',
  },
  {
    key: 'storage.volume_default_size',
    why: 'named volumes have no size of their own',
  },
  { key: 'egress.image', why: 'the way out is a part of the daemon and needs no image' },
  { key: 'egress.mode', why: 'names and addresses are always both checked' },
  { key: 'egress.disable_ipv6', why: 'IPv6 connections are caught and decided like all others' },
  { key: 'egress.readiness_timeout_seconds', why: 'the way out is there before the sandbox starts' },
  {
    key: 'egress.requests.*',
    why: 'the way out is a part of the daemon, not a container with limits of its own',
  },
  {
    key: 'egress.limits.*',
    why: 'the way out is a part of the daemon, not a container with limits of its own',
  },
  { key: 'otel.endpoint', why: '`telemetry.otlp_endpoint` is its name here' },
  { key: 'otel.service_name', why: '`telemetry.service_name` is its name here' },
  { key: 'otel.export_interval_millis', why: 'the interval is fixed' },
  {
    key: 'renew_intent.enabled',
    why: 'a sandbox that asks for it, by its extension `access.renew.extend.seconds`, is always renewed by use; `sandbox.renew_on_access_seconds` does so for all',
  },
  { key: 'renew_intent.min_interval_seconds', why: 'use renews at most once a minute' },
  { key: 'renew_intent.redis.*', why: 'the daemon sees by itself when a sandbox is used' },
];

/** Refused: who sets them counts on something that would not happen. */
export const refusedKeys: readonly ForeignKey[] = [
  {
    key: 'docker.sandbox_env.*',
    why: 'no variables are put into every sandbox behind the back of its request',
    use: '`env` of the request, or an image or template that has them',
  },
  {
    ...{ key: 'docker.sandbox_binds', allow: [] },
    why: 'no folders of the host are put into every sandbox behind the back of its request',
    use: '`volumes` of the request below `storage.allowed_host_paths`; for certificates of an authority, `egress.extra_ca`',
  },
  {
    key: 'store.postgresql.*',
    why: 'the store is SQLite, in the home of its one daemon',
    use: '`store.path`; `glovebox backup` for copies elsewhere',
  },
  {
    key: 'tenants.*',
    why: 'there is no provider of tenants outside the daemon',
    use: 'projects with keys, quotas and roles of their own: `glovebox project create`',
  },
  {
    ...{ key: 'otel.enabled', allow: false },
    why: 'telemetry is sent where it is told to and switched on by that',
    use: '`telemetry.otlp_endpoint`, without the path `/v1/metrics`',
  },
  {
    ...{ key: 'secure_runtime.k8s_runtime_class', allow: '' },
    why: 'there is no Kubernetes runtime yet',
    use: '`secure_runtime.docker_runtime`',
  },
  {
    key: 'kubernetes.*',
    why: 'there is no Kubernetes runtime yet',
    use: 'workers for more machines: `glovebox workers enrol`',
  },
  {
    key: 'agent_sandbox.*',
    why: 'there is no Kubernetes runtime yet',
    use: 'workers for more machines: `glovebox workers enrol`',
  },
  {
    key: 'fleets.*',
    why: 'there is no fast-sandbox runtime',
    use: 'workers for more machines: `glovebox workers enrol`',
  },
];

/** Values of OpenSandbox that a key of ours does not take, with the reason and what to say instead. */
export const refusedValues: readonly { key: string; value: string; why: string; use: string }[] = [
  {
    ...{ key: 'runtime.type', value: 'kubernetes', why: 'there is no Kubernetes runtime yet' },
    use: '"docker" or "bubblewrap", with workers for more machines (`glovebox workers enrol`)',
  },
  {
    ...{ key: 'runtime.type', value: 'fleets', why: 'there is no fast-sandbox runtime' },
    use: '"docker" or "bubblewrap", with workers for more machines (`glovebox workers enrol`)',
  },
  {
    ...{ key: 'secure_runtime.type', value: 'firecracker', why: 'OpenSandbox has it on Kubernetes only' },
    use: '"gvisor" or "kata"',
  },
  {
    ...{ key: 'store.type', value: 'postgresql', why: 'the store is SQLite, in the home of its one daemon' },
    use: '"sqlite"; `glovebox backup` for copies elsewhere',
  },
];

/** Older names of OpenSandbox for keys. */
export const renamedKeys: Readonly<Record<string, string>> = { 'server.log_level': 'log.level' };

/** OpenSandbox's files have these empty for what its own default is. */
export const emptyKeys: readonly string[] = [
  ...['server.api_key', 'server.eip', 'log.file_path', 'log.access_file_path'],
  ...['docker.apparmor_profile', 'docker.seccomp_profile', 'secure_runtime.docker_runtime', 'store.path'],
];

/** What a running daemon takes over when it is told to read its configuration again (SIGHUP). All else holds from its next start on. */
export const reloadedKeys: readonly string[] = [
  ...['server.api_key', 'server.max_sandbox_timeout_seconds', 'server.timeout_keep_alive'],
  ...['server.limit_concurrency', 'server.timeout_graceful_shutdown'],
  ...Object.keys(rateLimit.shape).map((it) => `server.rate_limit.${it}`),
  ...['log.level', 'storage.allowed_host_paths'],
  ...Object.keys(sandbox.shape).map((it) => `sandbox.${it}`),
  ...Object.keys(ingressAccess.shape).map((it) => `ingress.secure_access.${it}`),
  ...['docker.pids_limit', 'bubblewrap.cpu', 'bubblewrap.memory', 'bubblewrap.pids', 'bubblewrap.disk'],
];

/** Whether a key, `section.key`, is one of those. Pools are, whatever their names. */
export const isReloaded = (key: string): boolean => reloadedKeys.includes(key) || key.startsWith('pools.');

/** The entry of a list that stands for a key. */
export function foreignKey(list: readonly ForeignKey[], key: string): ForeignKey | undefined {
  return list.find((it) => it.key === key || (it.key.endsWith('.*') && key.startsWith(it.key.slice(0, -1))));
}

/** Variables of the environment that set a key, beside `GLOVEBOX_<SECTION>_<KEY>`, which wins over them. */
export const namedVariables: Readonly<Record<string, string>> = {
  OPENSANDBOX_SERVER_API_KEY: 'server.api_key',
  OPENSANDBOX_SECURE_ACCESS_KEYS: 'ingress.secure_access.keys',
  OPENSANDBOX_SECURE_ACCESS_ACTIVE_KEY: 'ingress.secure_access.active_key',
  DOCKER_HOST: 'docker.host',
  OTEL_EXPORTER_OTLP_ENDPOINT: 'telemetry.otlp_endpoint',
  OTEL_EXPORTER_OTLP_HEADERS: 'telemetry.headers',
  OTEL_SERVICE_NAME: 'telemetry.service_name',
  OTEL_SDK_DISABLED: 'telemetry.disabled',
};

/** `GLOVEBOX_SERVER_TLS_CERT_FILE` for `server.tls` and `cert_file`. */
export const variableOf = (section: string, key: string) =>
  `GLOVEBOX_${section.replaceAll('.', '_')}_${key}`.toUpperCase();

/** `server.tls.cert_file` is the key `cert_file` of the section `server.tls`. */
export function partsOfKey(dotted: string): { section: string; key: string } {
  const at = dotted.lastIndexOf('.');
  return at < 0 ? { section: dotted, key: '' } : { section: dotted.slice(0, at), key: dotted.slice(at + 1) };
}

/** What kind of value a key takes, for conversions and for people. */
export function kindOf(schema: z.ZodType): 'integer' | 'number' | 'boolean' | 'list' | 'string' {
  const { type } = z.toJSONSchema(schema, { io: 'input' });
  if (type === 'integer' || type === 'number') return type;
  return type === 'boolean' ? 'boolean' : type === 'array' ? 'list' : 'string';
}

/** The page of the manual on configuration, as Markdown. */
export function configurationReference(): string {
  const all = [...Object.entries(configSections), ['pools.NAME', poolSection] as const];
  const sections = all.map(([section, schema]) => {
    const rows = Object.entries(schema.shape).map(([key, field]: [string, z.ZodType]) => {
      const { default: value } = z.toJSONSchema(field, { io: 'input' });
      const shown = value === undefined ? '' : `\`${JSON.stringify(value).replaceAll(',', ', ')}\``;
      const live = isReloaded(`${section}.${key}`) ? 'yes' : '';
      return `| \`${key}\` | ${kindOf(field)} | ${shown} | ${live} | ${cell(field.description ?? '')} |`;
    });
    return [
      `## [${section}]`,
      '',
      '| key | kind | default | live | what it does |',
      '|---|---|---|---|---|',
      ...rows,
      '',
    ].join('\n');
  });
  const foreign = (list: readonly ForeignKey[]) =>
    list.map(
      ({ key, why, use, allow }) =>
        `| \`${key}\` | ${cell(why)}${use === undefined ? '' : `; use ${cell(use)}`} | ${allow === undefined ? '' : `\`${JSON.stringify(allow)}\``} |`,
    );
  const variables = Object.entries(namedVariables).map(([name, key]) => `- \`${name}\` sets \`${key}\`.`);
  return [
    '# Configuration',
    '',
    '<!-- Generated from src/contract/config.ts by `npm run generate`; changes made here are lost. -->',
    '',
    'Glovebox needs no configuration. Where some is wanted, it is a TOML file with the sections and keys of OpenSandbox’s server.',
    'Later sources win over earlier ones:',
    '',
    '1. the defaults below;',
    '2. one file: the one named with `--config`, else by `GLOVEBOX_CONFIG`, else by `SANDBOX_CONFIG_PATH`, else `config.toml` in the home folder if there is one;',
    '3. the environment: `GLOVEBOX_<SECTION>_<KEY>`, such as `GLOVEBOX_SERVER_PORT=9000`; lists are separated by commas;',
    '4. the command line.',
    '',
    'The home folder holds everything that the daemon keeps. It is `~/.glovebox`, or what `GLOVEBOX_HOME` says.',
    '',
    'A key or section that does not exist, or a value that cannot be, stops the daemon with a list of all mistakes and their lines.',
    '`glovebox init-config` writes a commented file to begin with, `glovebox config check FILE` says what a daemon would make of one, and `glovebox config schema`',
    'prints a JSON Schema for editors, which is [config.schema.json](config.schema.json), too. Coming from OpenSandbox, see [what becomes of each of its keys](../guide/from-opensandbox.md).',
    '',
    ...variables,
    '',
    'A daemon that runs without a terminal reads all of this again on SIGHUP (`kill -HUP`): what is marked as live below holds from then on, with the file `api-key`, the files of TLS,',
    'and log files that have been moved away. What has changed beside that is named in the log and holds from the next start. A configuration with a mistake changes nothing; the log says what',
    'is wrong. At a terminal SIGHUP means that the terminal is gone, and ends the daemon.',
    '',
    ...sections,
    '## Keys without an effect',
    '',
    'OpenSandbox has these; here they are accepted with a warning, because leaving them out changes nothing.',
    '',
    '| key | why | |',
    '|---|---|---|',
    ...foreign(inertKeys),
    '',
    '## Keys that are refused',
    '',
    'OpenSandbox has these too, but who sets them counts on something that would not happen here.',
    '',
    '| key | why | allowed value |',
    '|---|---|---|',
    ...foreign(refusedKeys),
    '',
    'So are these values of keys that do have an effect:',
    '',
    '| value | why |',
    '|---|---|',
    ...refusedValues.map(
      ({ key, value, why, use }) => `| \`${key} = "${value}"\` | ${cell(why)}; use ${cell(use)} |`,
    ),
    '',
    'Two things are taken as OpenSandbox writes them: '.concat(
      Object.entries(renamedKeys)
        .map(([old, key]) => `\`${old}\` is \`${key}\``)
        .join(', '),
      ', and empty text is no value for ',
      emptyKeys.map((key) => `\`${key}\``).join(', '),
      '.',
    ),
    '',
  ].join('\n');
}

const cell = (text: string) => text.replaceAll('|', '\\|');
