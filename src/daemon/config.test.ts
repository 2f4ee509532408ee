import * as fs from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  ConfigFile,
  configSections,
  configurationReference,
  inertKeys,
  refusedKeys,
  reloadedKeys,
} from '../contract/config.ts';
import { Failure } from '../lib/failure.ts';
import { keyLines } from '../lib/toml.ts';
import { hostIdBase } from '../runtime/bubblewrap/rootfs.ts';
import { droppedCapabilities } from '../runtime/docker/docker.ts';
import { aboutKey, type Config, loadConfig, reloadConfig } from './config.ts';

let home: string;
let file: string;

beforeEach(async () => {
  home = await fs.mkdtemp(join(tmpdir(), 'glovebox-config-'));
  file = join(home, 'config.toml');
});
afterEach(() => fs.rm(home, { recursive: true, force: true }));

const load = (env: Record<string, string> = {}, overrides: Record<string, unknown> = {}) =>
  loadConfig({ env: { GLOVEBOX_HOME: home, ...env }, overrides });

async function loadFile(document: string, env: Record<string, string> = {}): Promise<Config> {
  await fs.writeFile(file, document, { mode: 0o600 });
  return load(env);
}

async function problemsOf(promise: Promise<unknown>): Promise<string[]> {
  const thrown = await promise.then(
    () => undefined,
    (error: unknown) => error,
  );
  expect(thrown).toBeInstanceOf(Failure);
  const failure = thrown as Failure;
  expect(failure.code).toBe('invalid');
  return (failure.details?.problems as string[]) ?? [failure.message];
}

test('without any configuration the defaults are the safe ones', async () => {
  const { settings, ...config } = await load();
  expect(settings).toEqual(ConfigFile.parse({}));
  expect(config).toMatchObject({
    home,
    warnings: [],
    workers: {},
    sandboxd: { enabled: true, shortParent: `/tmp/glovebox-${process.getuid?.()}` },
    paths: {
      database: join(home, 'glovebox.db'),
      apiKeyFile: join(home, 'api-key'),
      ownerKeyFile: join(home, 'owner-key'),
      ingressKeyFile: join(home, 'ingress-key'),
      addressFile: join(home, 'daemon.json'),
      lockFile: join(home, 'daemon.lock'),
      runFolder: join(home, 'run'),
      stateRoot: join(home, 'state'),
      imagesFolder: join(home, 'images'),
      workspacesFolder: join(home, 'workspaces'),
      agentsFolder: join(home, 'agents'),
      templatesFolder: join(home, 'templates'),
      volumesFolder: join(home, 'volumes'),
      logFile: join(home, 'daemon.log'),
      networkFolder: join(home, 'network'),
      proxyConfigFile: join(home, 'proxy-config.json'),
    },
    server: {
      ...{ host: '127.0.0.1', port: 8080, keepAliveMs: 30_000, requestsMax: 1024, backlog: 2048 },
      drainMs: 5_000,
      rateLimits: { key: { perMinute: 1200, burst: 200 }, failures: { perMinute: 30, burst: 30 } },
    },
    log: { level: 'info', fileBytesMax: 104_857_600, filesKept: 5 },
    pools: [],
    runtime: { type: 'bubblewrap' },
    docker: {
      host: 'unix:///var/run/docker.sock',
      network: 'none',
      apiTimeoutMs: 180_000,
      dropCapabilities: droppedCapabilities,
      noNewPrivileges: true,
      seccompProfile: 'default',
      pidsLimit: 4096,
    },
    bubblewrap: { idBase: hostIdBase, defaults: {} },
    storage: { allowedHostPaths: [] },
    egress: {
      inspect: 'all',
      transparent: true,
      nameServers: [],
      hosts: {},
      extraAuthorityFiles: [],
      connectionsMax: 1024,
      idleMs: 600_000,
      askMs: 30_000,
      askNotify: false,
      logFileBytes: 16_777_216,
      logFiles: 8,
      keyring: 'file',
      dangerouslyAllowMetadata: false,
    },
  });
  expect(Object.isFrozen(config.docker.dropCapabilities)).toBe(true);
});

test('the home folder is ~/.glovebox unless something says otherwise', async () => {
  const at = async (sources: Parameters<typeof loadConfig>[0]) => (await loadConfig(sources)).home;
  expect(await at({ env: { HOME: home } })).toBe(join(home, '.glovebox'));
  expect(await at({ env: { HOME: home, GLOVEBOX_HOME: '~/else' } })).toBe(join(home, 'else'));
  expect(await at({ env: { GLOVEBOX_HOME: '/nowhere' }, home })).toBe(home);
});

describe('server.tls', () => {
  const files = 'cert_file = "/c.pem"\nkey_file = "~/k.pem"\n';

  test('is a section of its own, and variables set it', async () => {
    const { server, warnings } = await loadFile(
      `[server]\nhost = "0.0.0.0"\n[server.tls]\n${files}client_auth = "require"\nclient_ca_file = "/ca.pem"\n`,
      { HOME: '/home/someone', GLOVEBOX_SERVER_TLS_MIN_VERSION: '1.3' },
    );
    expect(server.tls).toEqual({
      ...{ certFile: '/c.pem', keyFile: '/home/someone/k.pem', clientAuth: 'require' },
      ...{ clientCaFile: '/ca.pem', minVersion: 'TLSv1.3' },
    });
    // What is encrypted on the way needs no warning.
    expect(warnings).toEqual([]);
    expect((await loadFile('[server.tls]\n')).server.tls).toBeUndefined();
    expect(
      (await loadFile(`server.tls.cert_file = "/c"\nserver.tls.key_file = "/k"\n`)).server.tls,
    ).toBeDefined();
  });

  test.each([
    ['cert_file = "/c"\n', 'server.tls.cert_file needs server.tls.key_file'],
    ['key_file = "/k"\n', 'server.tls.key_file needs server.tls.cert_file'],
    ['client_auth = "require"\n', 'server.tls.client_auth needs server.tls.cert_file'],
    ['min_version = "1.3"\n', 'server.tls.min_version needs server.tls.cert_file'],
    [`${files}client_auth = "request"\n`, 'server.tls.client_auth needs server.tls.client_ca_file'],
    [`${files}client_ca_file = "/a"\n`, 'server.tls.client_ca_file needs server.tls.client_auth'],
    [`${files}client_crl_file = "/a"\n`, 'server.tls.client_crl_file needs server.tls.client_auth'],
    [`${files}min_version = "1.1"\n`, 'server.tls.min_version'],
    [`${files}certfile = "/c"\n`, 'did you mean "server.tls.cert_file"'],
    ['cert_file = "c.pem"\nkey_file = "/k"\n', 'must be an absolute path'],
  ])('%j is refused: %s', async (lines, problem) => {
    expect((await problemsOf(loadFile(`[server.tls]\n${lines}`))).join('\n')).toContain(problem);
  });
});

describe('telemetry', () => {
  test('comes from the file or from the variables of OpenTelemetry, with headers decoded', async () => {
    const { telemetry } = await load({
      OTEL_EXPORTER_OTLP_ENDPOINT: 'http://127.0.0.1:4318',
      OTEL_EXPORTER_OTLP_HEADERS: 'api-key=a%3Db, x=1',
      OTEL_SERVICE_NAME: 'boxes',
      GLOVEBOX_TELEMETRY_SAMPLE_RATIO: '0.25',
    });
    expect(telemetry).toEqual({
      ...{ endpoint: 'http://127.0.0.1:4318', headers: { 'api-key': 'a=b', x: '1' } },
      ...{ serviceName: 'boxes', sampleRatio: 0.25 },
    });
    const fromFile = await loadFile(
      '[telemetry]\notlp_endpoint = "https://o.example/otlp"\nheaders = ["k=v"]\n',
    );
    expect(fromFile.telemetry).toMatchObject({
      endpoint: 'https://o.example/otlp',
      headers: { k: 'v' },
      sampleRatio: 1,
    });
  });

  test('is off without an endpoint, or when OpenTelemetry is', async () => {
    expect((await load()).telemetry).toBeUndefined();
    const env = { OTEL_EXPORTER_OTLP_ENDPOINT: 'http://127.0.0.1:4318', OTEL_SDK_DISABLED: 'true' };
    expect((await load(env)).telemetry).toBeUndefined();
  });

  test('of another protocol, and a file of headers that others may read, are warned of', async () => {
    const env = { OTEL_EXPORTER_OTLP_ENDPOINT: 'http://127.0.0.1:4317', OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc' };
    expect((await load(env)).warnings).toEqual([expect.stringContaining('http/json')]);
    await fs.writeFile(file, '[telemetry]\nheaders = ["authorization=t0ken"]\n', { mode: 0o644 });
    const { warnings } = await load();
    expect(warnings).toEqual([expect.stringContaining('chmod 600')]);
    expect(warnings.join()).not.toContain('t0ken');
  });

  test.each([
    ['otlp_endpoint = "localhost:4318"\n', 'telemetry.otlp_endpoint: must be http://host:port'],
    ['otlp_endpoint = "http://me:pw@host"\n', 'telemetry.otlp_endpoint'],
    ['headers = ["no value"]\n', 'telemetry.headers (item 1): must be name=value'],
    ['headers = ["a=b\\r\\nc: d"]\n', 'telemetry.headers (item 1)'],
    ['sample_ratio = 2\n', 'telemetry.sample_ratio'],
    ['sample_ratio = "half"\n', 'telemetry.sample_ratio'],
  ])('%j is refused: %s', async (lines, problem) => {
    expect((await problemsOf(loadFile(`[telemetry]\n${lines}`))).join('\n')).toContain(problem);
  });
});

test('a file may set everything', async () => {
  const config = await loadFile(
    `[server]
host = "0.0.0.0"
port = 9000
api_key = "secret"
eip = "sandboxes.example.com:443"
max_sandbox_timeout_seconds = 86400
timeout_keep_alive = 5
limit_concurrency = 0
backlog = 16
timeout_graceful_shutdown = 9
[log]
level = "WARNING"
file_enabled = true
file_path = "~/log/it.log"
file_max_bytes = 65536
file_backup_count = 0
access_file_path = "/var/log/access.log"
[runtime]
type = "docker"
[docker]
host = "tcp://127.0.0.1:2375"
network_mode = "my_net"
api_timeout = 10
drop_capabilities = ["ALL", "CAP_NET_RAW"]
no_new_privileges = false
apparmor_profile = "docker-default"
seccomp_profile = "/etc/seccomp.json"
pids_limit = 0
[bubblewrap]
id_base = 100000
cpu = "500m"
memory = "1Gi"
pids = 64
disk = "10Gi"
[storage]
allowed_host_paths = ["/srv/data", "~/shared/../work"]
[store]
type = "sqlite"
path = "/var/lib/glovebox.db"
[secure_runtime]
type = "gvisor"
`,
    { HOME: '/home/someone' },
  );
  expect(config.server).toEqual({
    host: '0.0.0.0',
    port: 9000,
    apiKey: 'secret',
    eip: 'sandboxes.example.com:443',
    maxSandboxTimeoutMs: 86_400_000,
    keepAliveMs: 5_000,
    backlog: 16,
    drainMs: 9_000,
    rateLimits: { key: { perMinute: 1200, burst: 200 }, failures: { perMinute: 30, burst: 30 } },
  });
  expect(config.file).toBe(file);
  expect(config.log).toEqual({
    ...{ level: 'warn', file: '/home/someone/log/it.log', accessFile: '/var/log/access.log' },
    ...{ fileBytesMax: 65_536, filesKept: 0 },
  });
  expect(config.docker).toEqual({
    host: 'tcp://127.0.0.1:2375',
    network: 'my_net',
    apiTimeoutMs: 10_000,
    dropCapabilities: ['ALL', 'NET_RAW'],
    noNewPrivileges: false,
    apparmorProfile: 'docker-default',
    seccompProfile: '/etc/seccomp.json',
    pidsLimit: null,
    runtimeClass: 'runsc',
  });
  expect(config.bubblewrap).toEqual({
    idBase: 100_000,
    defaults: { cpu: 0.5, memoryBytes: 2 ** 30, pids: 64, diskBytes: 10 * 2 ** 30 },
  });
  expect(config.storage.allowedHostPaths).toEqual(['/srv/data', '/home/someone/work']);
  expect(config.paths.database).toBe('/var/lib/glovebox.db');
  expect(config.warnings.join('\n')).not.toContain('secret');
  expect(config.warnings).toEqual([
    expect.stringContaining('server.host is 0.0.0.0'),
    expect.stringContaining('docker.network_mode is my_net'),
    expect.stringContaining('docker.no_new_privileges is off'),
  ]);
});

const variables: [name: string, value: string, read: (config: Config) => unknown, expected: unknown][] = [
  ['GLOVEBOX_SERVER_PORT', '0', (it) => it.server.port, 0],
  ['GLOVEBOX_SERVER_API_KEY', 'k', (it) => it.server.apiKey, 'k'],
  ['OPENSANDBOX_SERVER_API_KEY', 'o', (it) => it.server.apiKey, 'o'],
  ['DOCKER_HOST', 'tcp://docker:2375', (it) => it.docker.host, 'tcp://docker:2375'],
  ['GLOVEBOX_DOCKER_NO_NEW_PRIVILEGES', 'false', (it) => it.docker.noNewPrivileges, false],
  ['GLOVEBOX_STORAGE_ALLOWED_HOST_PATHS', '/a, /b', (it) => it.storage.allowedHostPaths, ['/a', '/b']],
  ['GLOVEBOX_BUBBLEWRAP_MEMORY', '64Mi', (it) => it.bubblewrap.defaults.memoryBytes, 2 ** 26],
  ['GLOVEBOX_RUNTIME_TYPE', 'memory', (it) => it.runtime.type, 'memory'],
  ['GLOVEBOX_SECURE_RUNTIME_TYPE', '', (it) => it.docker.runtimeClass, undefined],
  ['GLOVEBOX_TEST_REQUIRE', 'docker', (it) => it.runtime.type, 'bubblewrap'],
];
test.each(variables)('the environment variable %s=%s is understood', async (name, value, read, expected) => {
  expect(read(await load({ [name]: value }))).toEqual(expected);
});

test('later sources win: file, environment, command line', async () => {
  await fs.writeFile(file, '[server]\nhost = "file"\nport = 1\nbacklog = 1\napi_key = "file"\n', {
    mode: 0o600,
  });
  const env = {
    GLOVEBOX_SERVER_HOST: 'variable',
    GLOVEBOX_SERVER_PORT: '2',
    OPENSANDBOX_SERVER_API_KEY: 'foreign',
    GLOVEBOX_SERVER_API_KEY: 'ours',
  };
  const { server } = await load(env, { 'server.port': 3, 'server.host': undefined });
  expect(server).toMatchObject({ host: 'variable', port: 3, backlog: 1, apiKey: 'ours' });
});

test('one file is read: the flag’s, GLOVEBOX_CONFIG’s, SANDBOX_CONFIG_PATH’s, or the home’s', async () => {
  const named = async (name: string, port: number) => {
    const path = join(home, name);
    await fs.writeFile(path, `[server]\nport = ${port}\n`);
    return path;
  };
  const [flag, ours, theirs] = [await named('a', 1), await named('b', 2), await named('c', 3)];
  await named('config.toml', 4);
  const portOf = async (env: Record<string, string>, configPath?: string) =>
    (await loadConfig({ env, home, ...(configPath && { configPath }) })).server.port;
  expect(await portOf({ GLOVEBOX_CONFIG: ours, SANDBOX_CONFIG_PATH: theirs }, flag)).toBe(1);
  expect(await portOf({ GLOVEBOX_CONFIG: ours, SANDBOX_CONFIG_PATH: theirs })).toBe(2);
  expect(await portOf({ SANDBOX_CONFIG_PATH: theirs })).toBe(3);
  expect(await portOf({})).toBe(4);
});

test.each([
  ['--config', { configPath: '/nowhere/x.toml', env: {} }],
  ['GLOVEBOX_CONFIG', { env: { GLOVEBOX_CONFIG: '/nowhere/x.toml' } }],
  ['SANDBOX_CONFIG_PATH', { env: { SANDBOX_CONFIG_PATH: '/nowhere/x.toml' } }],
])('a file that is named by %s must be there', async (_name, sources) => {
  await expect(loadConfig({ home, ...sources })).rejects.toMatchObject({
    code: 'not-found',
    message: 'there is no configuration file /nowhere/x.toml',
  });
});

const mistakes: [document: string, line: number | null, says: string][] = [
  ['[server]\n\nprot = 1', 3, 'unknown key "server.prot"; did you mean "server.port"?'],
  ['[server]\napi-key = "x"', 2, 'unknown key "server.api-key"; did you mean "server.api_key"?'],
  [
    '[server]\nallowed_host_paths = []',
    2,
    'unknown key "server.allowed_host_paths"; there is "storage.allowed_host_paths"',
  ],
  ['[server]\nsomething = 1', 2, 'unknown key "server.something"'],
  ['[sever]\nport = 1', 1, 'unknown section [sever]; did you mean [server]?'],
  ['[zebra]\nport = 1', 1, 'unknown section [zebra]'],
  ['port = 1', 1, '"port" is not a section; it belongs into [server]'],
  ['server = 1', 1, '"server" is not a section; write it as a table: [server]'],
  ['[[server]]\nport = 1', 1, '"server" is not a section'],
  ['server.prot = 1', 1, 'did you mean "server.port"?'],
  ['server = { prot = 1 }', 1, 'did you mean "server.port"?'],
  ['[server]\nport = "8080"', 2, 'server.port: expected number, received string'],
  ['[server]\nport = 70000', 2, 'server.port: Too big'],
  ['[server]\nport = 1.5', 2, 'server.port: expected a whole number'],
  ['[server.port]\nx = 1', 2, 'unknown key "server.port.x"'],
  ['[server]\nhost = ""', 2, 'server.host: must not be empty'],
  ['[server]\nhost = "a\\nb"', 2, 'server.host: must not hold control characters'],
  ['[server]\napi_key = "with space"', 2, 'server.api_key: must be printable ASCII'],
  ['[server]\nmax_sandbox_timeout_seconds = 59', 2, 'server.max_sandbox_timeout_seconds: Too small'],
  ['[log]\nlevel = "loud"', 2, 'log.level: must be DEBUG, INFO'],
  ['[log]\nfile_path = "here.log"', 2, 'log.file_path: must be an absolute path'],
  ['[log]\nfile_max_bytes = 1', 2, 'log.file_max_bytes: Too small'],
  ['[log]\naccess_file_path = "x"', 2, 'log.access_file_path: must be an absolute path'],
  ['[server]\nlog_level = "loud"', 2, 'log.level: must be DEBUG, INFO'],
  ['[runtime]\ntype = "podman"', 2, 'runtime.type: '],
  [
    '[runtime]\ntype = "kubernetes"',
    2,
    'runtime.type = "kubernetes" is refused: there is no Kubernetes runtime yet; use "docker" or "bubblewrap"',
  ],
  ['[secure_runtime]\ntype = "firecracker"', 2, 'use "gvisor" or "kata"'],
  ['[store]\ntype = "postgresql"', 2, 'use "sqlite"'],
  ['[store.postgresql]\ndsn = "postgres://x"', 2, 'store.postgresql.dsn is refused'],
  ['[docker]\nsandbox_env = { A = "b" }', 2, 'docker.sandbox_env.A is refused'],
  ['[docker]\nsandbox_binds = ["/a:/a"]', 2, 'use `volumes` of the request'],
  ['[tenants]\nprovider = "file"', 2, 'glovebox project create'],
  ['[otel]\nenabled = true', 2, 'use `telemetry.otlp_endpoint`'],
  ['[fleets]\nnamespace = "x"', 2, 'fleets.namespace is refused'],
  ['[docker]\nhost = "docker"', 2, 'docker.host: must be unix:///path or tcp://host:port'],
  ['[docker]\nno_new_privileges = "yes"', 2, 'docker.no_new_privileges: expected boolean'],
  [
    '[docker]\ndrop_capabilities = [\n  "NET_RAW",\n  "net_raw",\n]',
    2,
    'docker.drop_capabilities (item 2): must be the name of a capability',
  ],
  [
    '[docker]\nseccomp_profile = "x.json"',
    2,
    'docker.seccomp_profile: must be default, unconfined or an absolute path',
  ],
  ['[bubblewrap]\nmemory = "lots"', 2, 'bubblewrap.memory: "lots" is not a size above zero'],
  ['[bubblewrap]\nmemory = "1Mi"', 2, 'at least 6Mi'],
  ['[bubblewrap]\ncpu = "0"', 2, 'bubblewrap.cpu: "0" is not a number of cores'],
  ['[bubblewrap]\nid_base = 0', 2, 'bubblewrap.id_base: Too small'],
  [
    '[storage]\nallowed_host_paths = ["relative"]',
    2,
    'storage.allowed_host_paths (item 1): must be an absolute path',
  ],
  ['[store]\ntype = "postgres"', 2, 'store.type: '],
  ['[secure_runtime]\ntype = "gvisor"', 2, 'secure_runtime.type is for Docker; runtime.type is "bubblewrap"'],
  ['[secure_runtime]\ndocker_runtime = "runsc"', 2, 'needs secure_runtime.type'],
  [
    '[runtime]\ntype = "docker"\n[docker]\nruntime = "runc"\n[secure_runtime]\ntype = "kata"',
    6,
    'both name a runtime',
  ],
  ['[secure_runtime]\nk8s_runtime_class = "gvisor"', 2, 'there is no Kubernetes runtime yet'],
  ['[ingress]\nmode = "proxy"', 2, 'ingress.mode: '],
  ['[ingress.gateway]\naddress = "x"', 2, 'ingress.gateway.address needs ingress.mode = "gateway"'],
  [
    '[ingress]\nmode = "gateway"\ngateway.address = "https://x"',
    3,
    'ingress.gateway.address: must be a host name',
  ],
  [
    '[ingress]\nmode = "gateway"\n[ingress.gateway]\naddress = "*.x"',
    4,
    'ingress.gateway.address is *.x: with ingress.gateway.route.mode = "uri" it has no *. in front',
  ],
  [
    '[ingress]\nmode = "gateway"\n[ingress.gateway]\naddress = "x"\nroute.mode = "wildcard"',
    4,
    'ingress.gateway.address is x: with ingress.gateway.route.mode = "wildcard" it begins with *.',
  ],
  [
    '[ingress]\nmode = "gateway"\n[ingress.gateway]\nhost = "0.0.0.0"',
    4,
    'ingress.gateway.host is 0.0.0.0: it needs ingress.gateway.address, too',
  ],
  [
    '[ingress]\nmode = "gateway"\n[ingress.secure_access]\nkeys = ["A=c2VjcmV0"]',
    4,
    'ingress.secure_access.keys (item 1): ',
  ],
  [
    '[ingress]\nmode = "gateway"\n[ingress.secure_access]\nactive_key = "b"\nkeys = ["a=base64:c2VjcmV0LXdpdGgtc2l4dGVlbg=="]',
    4,
    'ingress.secure_access.active_key is b: ingress.secure_access.keys has no such key',
  ],
  ['[egress]\nname_servers = ["dns.example"]', 2, 'egress.name_servers (item 1): must be an address'],
  ['[egress]\nhosts = ["a.test"]', 2, 'egress.hosts (item 1): must be name=address'],
  ['[egress]\nupstream_proxy = "proxy:3128"', 2, 'egress.upstream_proxy: must be http://host:port'],
  ['[egress]\ninspect = "none"', 2, 'egress.inspect: '],
  ['[kubernetes]\nnamespace = "x"', 2, 'kubernetes.namespace is refused'],
  ['[agent_sandbox]\ntemplate_file = "x"', 2, 'agent_sandbox.template_file is refused'],
  ['__proto__ = 1', 1, '"__proto__" is not a section'],
  ['[server]\n__proto__ = 1\nconstructor = 2', 2, 'unknown key "server.__proto__"'],
];
test.each(mistakes)('%j is refused', async (document, line, says) => {
  const problems = await problemsOf(loadFile(document));
  expect(problems[0]).toContain(says);
  expect(problems[0]?.startsWith(`${file}:${line}: `), problems[0]).toBe(true);
});

test.each([
  ['[server\nport = 1', ':1:'],
  ['[server]\nport = 1\nport = 2', ':3:1: this is not TOML: trying to redefine'],
  ['[server]\nhost = ', ':2:8: this is not TOML: invalid value'],
])('%j is not TOML, and the message says where', async (document, says) => {
  expect((await problemsOf(loadFile(document)))[0]).toContain(`${file}${says}`);
});

test('the way out is set up as the file says', async () => {
  const config = await loadFile(`[egress]
name_servers = ["192.0.2.1", "[2001:db8::1]:5353"]
hosts = ["A.test=192.0.2.7", "a.test=2001:db8::7"]
upstream_proxy = "http://proxy.corp:3128"
no_proxy = ["intern.corp"]
extra_ca = ["~/corp.pem"]
dangerously_allow_metadata = true
image = "opensandbox/egress:v1"
`);
  expect(config.egress).toMatchObject({
    nameServers: ['192.0.2.1:53', '[2001:db8::1]:5353'],
    hosts: { 'a.test': ['192.0.2.7', '2001:db8::7'] },
    upstreamProxy: { url: 'http://proxy.corp:3128', noProxy: ['intern.corp'] },
    dangerouslyAllowMetadata: true,
  });
  expect(config.egress.extraAuthorityFiles[0]).toMatch(/^\/.*\/corp\.pem$/);
  expect(config.warnings.join('\n')).toContain('egress.image has no effect');
  expect(config.warnings.join('\n')).toContain('egress.dangerously_allow_metadata is on');
});

test('files of OpenSandbox as they come: older names, and empty for what is not set', async () => {
  const { log, docker, server, paths } = await loadFile(
    '[server]\nlog_level = "WARNING"\napi_key = ""\neip = ""\n[log]\nfile_path = ""\n[docker]\napparmor_profile = ""\nseccomp_profile = ""\nsandbox_binds = []\n[store]\npath = ""\n[otel]\nenabled = false\n',
  );
  expect(log.level).toBe('warn');
  expect(docker).toMatchObject({ seccompProfile: 'default' });
  expect(docker.apparmorProfile).toBeUndefined();
  expect(server.apiKey).toBeUndefined();
  expect(server.eip).toBeUndefined();
  expect(paths.database).toBe(join(home, 'glovebox.db'));
});

test('a server’s whole file of OpenSandbox is taken as it is', async () => {
  const { warnings, ...config } = await loadFile(`
[server]
host = "127.0.0.1"
port = 8080
max_sandbox_timeout_seconds = 86400
loop = "uvloop"
thread_pool_size = 200

[log]
level = "INFO"
file_enabled = true
file_path = "~/logs/opensandbox/server.log"
access_file_path = "~/logs/opensandbox/access.log"

[renew_intent]
enabled = false
min_interval_seconds = 60
redis.enabled = false
redis.queue_key = "opensandbox:renew:intent"
redis.consumer_concurrency = 8

[runtime]
type = "docker"
execd_image = "opensandbox/execd:v1"

[egress]
image = "opensandbox/egress:v1"
mode = "dns+nft"
disable_ipv6 = false

[storage]
allowed_host_paths = []
ossfs_mount_root = "/mnt/ossfs"
volume_default_size = "1Gi"

[docker]
network_mode = "bridge"
host_ip = "192.0.2.1"
drop_capabilities = ["NET_RAW", "SYS_ADMIN"]
no_new_privileges = true
apparmor_profile = ""
pids_limit = 4096
seccomp_profile = ""

[ingress]
mode = "direct"

[store]
type = "sqlite"

[secure_runtime]
type = ""
`);
  expect(config).toMatchObject({
    runtime: { type: 'docker' },
    docker: { network: 'bridge', dropCapabilities: ['NET_RAW', 'SYS_ADMIN'], seccompProfile: 'default' },
    server: { maxSandboxTimeoutMs: 86_400_000 },
  });
  // What is less than it says is never silent.
  expect(warnings.join('\n')).toContain('docker.network_mode is bridge');
});

test('keys of signed addresses are taken as OpenSandbox writes them, in its file and its variables', async () => {
  const gateway = '[ingress]\nmode = "gateway"\n';
  const secret = 'c2VjcmV0LXdpdGgtc2l4dGVlbg==';
  const table = `${gateway}[ingress.secure_access]\nactive_key = "b"\n[[ingress.secure_access.keys]]\nkey_id = "b"\nkey = "${secret}"\n`;
  const wanted = { keys: [{ id: 'b', secret }], activeKey: 'b' };
  expect((await loadFile(table)).gateway).toMatchObject(wanted);
  const variables = {
    OPENSANDBOX_SECURE_ACCESS_KEYS: `b=${secret}`,
    OPENSANDBOX_SECURE_ACCESS_ACTIVE_KEY: 'b',
  };
  expect((await loadFile(gateway, variables)).gateway).toMatchObject(wanted);
});

describe('read again', () => {
  const again = async (running: Config, document: string, env: Record<string, string> = {}) => {
    await fs.writeFile(file, document, { mode: 0o600 });
    return reloadConfig({ env: { GLOVEBOX_HOME: home, ...env } }, running);
  };

  test('what can change does, what cannot waits for the next start', async () => {
    const running = await loadFile('[server]\nport = 1\nhost = "127.0.0.2"\n[log]\nlevel = "INFO"\n');
    const first = await again(running, '[server]\nport = 2\napi_key = "k"\n[log]\nlevel = "DEBUG"\n');
    expect(first.changed.sort()).toEqual(['log.level', 'server.api_key']);
    expect(first.later.sort()).toEqual(['server.host', 'server.port']);
    expect(first.config).toMatchObject({
      server: { port: 1, host: '127.0.0.2', apiKey: 'k' },
      log: { level: 'debug' },
    });
    // What waits goes on being told, and what went back to its default goes back.
    const second = await again(first.config, '[server]\nport = 2\n');
    expect(second.changed.sort()).toEqual(['log.level', 'server.api_key']);
    expect(second.later.sort()).toEqual(['server.host', 'server.port']);
    expect(second.config.server.apiKey).toBeUndefined();
    expect(second.config.log.level).toBe('info');
    const third = await again(second.config, '[server]\nport = 1\nhost = "127.0.0.2"\n');
    expect(third).toMatchObject({ changed: [], later: [] });
  });

  test('pools come, change and go', async () => {
    const running = await loadFile('[pools.a]\nimage = "x"\n[pools.b]\nimage = "x"\n');
    const next = await again(running, '[pools.b]\nimage = "y"\n[pools.c]\nimage = "x"\n');
    expect(next).toMatchObject({
      changed: expect.arrayContaining(['pools.a', 'pools.b', 'pools.c']),
      later: [],
    });
    const images = ({ pools }: Config) => pools.map(({ name, template }) => [name, template.image.uri]);
    expect(images(next.config)).toEqual([
      ['b', 'y'],
      ['c', 'x'],
    ]);
    expect(images((await again(next.config, '')).config)).toEqual([]);
    expect(await problemsOf(again(next.config, '[pools.b]\nimage = "y"\nbuffer_max = -1\n'))).toHaveLength(1);
  });

  test('a mistake changes nothing', async () => {
    const running = await loadFile('[server]\nport = 1\n');
    expect(await problemsOf(again(running, '[server]\nprot = 1\n'))).toHaveLength(1);
  });

  test('the environment still goes before the file', async () => {
    const env = { GLOVEBOX_LOG_LEVEL: 'ERROR' };
    const running = await loadFile('', env);
    const { config, changed } = await again(running, '[log]\nlevel = "DEBUG"\n', env);
    expect(config.log.level).toBe('error');
    expect(changed).toEqual([]);
  });

  test('every key that is taken over is one', () => {
    for (const key of reloadedKeys) expect(() => aboutKey(key), key).not.toThrow();
  });
});

test('a file too large to be one is not read', async () => {
  expect((await problemsOf(loadFile(`# ${'x'.repeat(1024 * 1024)}`)))[0]).toContain('the most is 1048576');
});

test('all mistakes of all sources come in one list', async () => {
  const document = '[server]\nport = -1\nprot = 2\n[kubernetes]\nnamespace = "x"\n';
  const problems = await problemsOf(
    loadFile(document, {
      GLOVEBOX_DOCKER_HOSTS: 'x',
      GLOVEBOX_SEVRER_PORT: '1',
      GLOVEBOX_LOG_FILE_ENABLED: 'maybe',
    }),
  );
  expect(problems).toEqual([
    expect.stringMatching(/config\.toml:3: .*"server\.port"/),
    expect.stringMatching(/config\.toml:5: kubernetes\.namespace is refused/),
    expect.stringMatching(
      /variable GLOVEBOX_DOCKER_HOSTS: unknown key "docker\.hosts"; did you mean "docker\.host"/,
    ),
    expect.stringMatching(/variable GLOVEBOX_SEVRER_PORT: .*did you mean GLOVEBOX_SERVER_PORT/),
    expect.stringMatching(/config\.toml:2: server\.port: Too small/),
    expect.stringMatching(/variable GLOVEBOX_LOG_FILE_ENABLED: log\.file_enabled: expected boolean/),
  ]);
});

test('harmless keys of OpenSandbox bring a warning each, and values that ask for nothing none', async () => {
  const { warnings } = await loadFile(
    '[server]\nloop = "auto"\n[runtime]\nexecd_image = "x"\n[renew_intent]\nenabled = false\n[renew_intent.redis]\ndsn = "x"\n[ingress]\nmode = "direct"\n',
    { OPENSANDBOX_INSECURE_SERVER: 'YES' },
  );
  expect(warnings).toEqual([
    `${file}:2: server.loop has no effect: it chooses a part of Python’s server`,
    `${file}:4: runtime.execd_image has no effect: the agent comes with Glovebox and needs no image`,
    expect.stringContaining(':6: renew_intent.enabled has no effect: a sandbox that asks for it'),
    `${file}:8: renew_intent.redis.dsn has no effect: the daemon sees by itself when a sandbox is used`,
    expect.stringContaining('OPENSANDBOX_INSECURE_SERVER has no effect: an API key is always required'),
  ]);
});

test('an API key in a file that others may read brings a warning', async () => {
  await fs.writeFile(file, '[server]\napi_key = "secret"\n', { mode: 0o644 });
  await fs.chmod(file, 0o644);
  expect((await load()).warnings).toEqual([expect.stringContaining('chmod 600')]);
});

describe('the reference', () => {
  const page = configurationReference();

  test('describes every key', () => {
    for (const [section, schema] of Object.entries(configSections)) {
      const part = page.split(`## [${section}]\n`)[1]?.split('\n## ')[0] ?? '';
      for (const [key, field] of Object.entries(schema.shape)) {
        expect(part, `${section}.${key}`).toContain(`| \`${key}\` |`);
        expect(field.description, `${section}.${key}`).toMatch(/\.$/);
      }
    }
    for (const { key } of [...inertKeys, ...refusedKeys]) expect(page).toContain(`| \`${key}\` |`);
  });
});

test('lines of keys are found through strings, lists, quotes and comments', () => {
  const document = [
    '# [no]', // 1
    'a.b = 1', // 2
    '["quoted sec".sub] # x', // 3
    'text = """', // 4
    'fake = 1', // 5
    '"""', // 6
    "raw = '''x''' # [", // 7
    'list = [ # ]', // 8
    '  "]", {k = 1},', // 9
    '  [1]', // 10
    ']', // 11
    '"odd.key" = "a = # \\" ["', // 12
    '[[array]]', // 13
    'x = 1', // 14
  ].join('\n');
  expect(Object.fromEntries(keyLines(document))).toEqual({
    a: 2,
    'a.b': 2,
    'quoted sec': 3,
    'quoted sec.sub': 3,
    'quoted sec.sub.text': 4,
    'quoted sec.sub.raw': 7,
    'quoted sec.sub.list': 8,
    'quoted sec.sub.odd.key': 12,
    array: 13,
    'array.x': 14,
  });
});

describe('pools', () => {
  test('each has a section of its own; what is left out has a default', async () => {
    const { pools } = await loadFile(
      '[pools.web]\nimage = "debian"\nmemory = "512Mi"\nmemory_max = "2Gi"\nstate = "frozen"\n[pools.ci]\nimage = "ci"\nruntime = "docker"\nbuffer_max = 2\nbuffer_min = 1\npool_max = 9\n',
    );
    expect(pools).toMatchObject([
      {
        ...{ name: 'web', state: 'frozen', memoryMax: '2Gi' },
        template: { image: { uri: 'debian' }, resourceLimits: { memory: '512Mi' } },
        capacitySpec: { bufferMin: 4, bufferMax: 4, poolMin: 0, poolMax: 1_000 },
      },
      {
        ...{ name: 'ci', state: 'started', template: { image: { uri: 'ci' }, runtime: 'docker' } },
        capacitySpec: { bufferMin: 1, bufferMax: 2, poolMin: 0, poolMax: 9 },
      },
    ]);
  });

  test.each([
    [
      '[pools.web]\nimage = "a"\nbufer_max = 1',
      ':3: unknown key "pools.web.bufer_max"; did you mean "pools.web.buffer_max"?',
    ],
    ['[pools.web]\nbuffer_max = 1', 'pools.web.image: '],
    ['[pools.Web]\nimage = "a"', 'pools.Web'],
    ['[pools.web]\nimage = "a"\nmemory = "many"', ':3: pools.web.memory: '],
    [
      '[pools.web]\nimage = "a"\nbuffer_max = 5\npool_max = 2',
      ':2: pools.web: bufferMin ≤ bufferMax ≤ poolMax',
    ],
    ['[pools.web]\nimage = "a"\nmemory_max = "1Gi"', ':2: pools.web: memoryMax: needs a template'],
    ['[pools]\nweb = 1', 'unknown key "pools.web"'],
  ])('%j is a mistake that is found at start', async (document, problem) => {
    await expect(loadFile(document)).rejects.toThrow(problem);
  });
});
