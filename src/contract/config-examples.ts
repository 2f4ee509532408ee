// Configuration files to begin with, for `glovebox init-config`. What a key does is told in the words of its schema, so that they are the same everywhere.
import { z } from 'zod';
import { configSections, partsOfKey } from './config.ts';

type Value = string | number | boolean | readonly string[];

interface Example {
  /** What it is for, as one sentence without its full stop. */
  summary: string;
  /** What to know before the first line. */
  notes: readonly string[];
  /** Dotted keys with values, in the order of the file. */
  set: Readonly<Record<string, Value>>;
  /** Shown as comments, for who wants them: the default where the value is undefined. */
  offered: Readonly<Record<string, Value | undefined>>;
}

const loopback = {
  'server.host': '127.0.0.1',
  'server.port': 8080,
  'server.max_sandbox_timeout_seconds': 86_400,
};
const access = { 'server.api_key': 'change-me', 'server.eip': 'sandboxes.example.com' };
const reach = {
  'storage.allowed_host_paths': ['/srv/data'],
  'egress.upstream_proxy': 'http://proxy.example.com:3128',
  'egress.extra_ca': ['/etc/ssl/certs/company.pem'],
};

export const configExamples = {
  bubblewrap: {
    summary: 'sandboxes of namespaces, which start in milliseconds; no Docker is needed',
    notes: ['What the network lets out is not written here: see `glovebox policy --help`.'],
    set: { ...loopback, 'log.level': 'INFO', 'runtime.type': 'bubblewrap' },
    offered: {
      ...access,
      ...{
        'bubblewrap.cpu': '2',
        'bubblewrap.memory': '2Gi',
        'bubblewrap.pids': 1024,
        'bubblewrap.disk': '4Gi',
      },
      ...reach,
    },
  },
  docker: {
    summary: 'sandboxes as containers of a Docker engine, walled off as ours are',
    notes: [
      'Containers have no network but the way out that your rules open (see `glovebox policy --help`),',
      'so network_mode stays "none": with "bridge" or "host" they reach everything, whatever the rules say.',
    ],
    set: {
      ...loopback,
      ...{ 'log.level': 'INFO', 'runtime.type': 'docker', 'docker.network_mode': 'none' },
      ...{ 'docker.no_new_privileges': true, 'docker.pids_limit': 4096 },
    },
    offered: {
      ...access,
      'docker.host': 'unix:///var/run/docker.sock',
      ...{ 'docker.api_timeout': undefined, 'docker.drop_capabilities': undefined },
      ...{ 'docker.apparmor_profile': 'docker-default', 'docker.seccomp_profile': undefined },
      ...reach,
    },
  },
  gvisor: {
    summary: 'containers behind a kernel of their own, by gVisor (or Kata)',
    notes: [
      'The engine has to know the runtime: `docker info` lists it, and `glovebox doctor` says what is missing.',
      'No request gets a weaker wall than this.',
    ],
    set: {
      ...loopback,
      ...{
        'runtime.type': 'docker',
        'secure_runtime.type': 'gvisor',
        'secure_runtime.docker_runtime': 'runsc',
      },
      'docker.network_mode': 'none',
    },
    offered: { ...access, 'docker.host': 'unix:///var/run/docker.sock', ...reach },
  },
  shared: {
    summary: 'one server for several people, who have projects with keys of their own',
    notes: [
      'Projects and their keys are made with `glovebox project create` and `glovebox project key create`.',
      'Others reach it once server.host is an address of this machine; give it a certificate first.',
    ],
    set: {
      ...loopback,
      'server.limit_concurrency': 1024,
      ...{ 'server.rate_limit.key_per_minute': 1200, 'server.rate_limit.failures_per_minute': 30 },
      ...{ 'log.level': 'INFO', 'runtime.type': 'bubblewrap' },
    },
    offered: {
      'server.eip': 'sandboxes.example.com',
      ...{
        'server.tls.cert_file': '/etc/glovebox/server.pem',
        'server.tls.key_file': '/etc/glovebox/server-key.pem',
      },
      ...{ 'log.file_enabled': true, 'log.file_path': '/var/log/glovebox/daemon.log' },
      ...{ 'log.access_file_path': '/var/log/glovebox/access.log', 'log.file_backup_count': undefined },
      'telemetry.otlp_endpoint': 'http://127.0.0.1:4318',
      ...reach,
    },
  },
  full: {
    summary: 'every key there is, at its default and as a comment',
    notes: ['As it is, this file changes nothing.'],
    set: {},
    offered: Object.fromEntries(
      Object.entries(configSections).flatMap(([section, { shape }]) =>
        Object.keys(shape).map((key) => [`${section}.${key}`, undefined]),
      ),
    ),
  },
} as const satisfies Record<string, Example>;

export type ConfigExample = keyof typeof configExamples;

/** Names of OpenSandbox's examples that there are not, with the reason. */
export const missingExamples: Readonly<Record<string, string>> = {
  'docker-zh': 'the comments are in English only; take docker',
  k8s: 'there is no Kubernetes runtime yet; take docker, and workers for more machines',
  'k8s-zh': 'there is no Kubernetes runtime yet; take docker, and workers for more machines',
};

/** The file as TOML, with a comment above each key. */
export function configExampleText(name: ConfigExample): string {
  const { summary, notes, set, offered }: Example = configExamples[name];
  const lines = [
    ...commented(`Glovebox: ${summary}.`),
    ...notes.flatMap((it) => commented(it)),
    '#',
    ...commented(
      `Made by \`glovebox init-config --example ${name}\`. \`glovebox config check FILE\` says what a daemon makes of it, and docs/reference/configuration.md tells of every key. Editors check it with the output of \`glovebox config schema\`.`,
    ),
  ];
  for (const section of Object.keys(configSections)) {
    const entries = [
      ...entriesOf(section, set).map((it) => ({ ...it, mark: '' })),
      ...entriesOf(section, offered).map((it) => ({ ...it, mark: '# ' })),
    ];
    if (entries.length === 0) continue;
    lines.push('', `[${section}]`);
    for (const { key, value, mark } of entries) {
      const field = fieldOf(section, key);
      lines.push(...commented(field.description ?? ''));
      const { default: usual } = z.toJSONSchema(field, { io: 'input' });
      lines.push(
        `${mark}${key} = ${tomlOf((value ?? usual ?? sampleOf(`${section}.${key}`, field)) as Value)}`,
        '',
      );
    }
    lines.pop();
  }
  return `${lines.join('\n')}\n`;
}

function entriesOf(
  section: string,
  values: Readonly<Record<string, Value | undefined>>,
): { key: string; value: Value | undefined }[] {
  return Object.entries(values)
    .map(([dotted, value]) => ({ ...partsOfKey(dotted), value }))
    .filter((it) => it.section === section);
}

function fieldOf(section: string, key: string): z.ZodType {
  const { shape } = configSections[section as keyof typeof configSections];
  return (shape as Record<string, z.ZodType>)[key] as z.ZodType;
}

/** Of a key whose default is nothing: what another example has, or else anything that it takes. */
function sampleOf(dotted: string, field: z.ZodType): Value {
  const all: Example[] = Object.values(configExamples);
  const said = all.map((it) => it.set[dotted] ?? it.offered[dotted]).find((it) => it !== undefined);
  const any = ['/etc/glovebox/example', 'example', 'example.com', '1', 'a', 1, 60, 600, true, []];
  return said ?? any.find((it) => field.safeParse(it).success) ?? '';
}

// Strings of JSON are strings of TOML where they hold no control characters, and none here do.
const tomlOf = (value: Value): string =>
  Array.isArray(value) ? `[${value.map((it) => JSON.stringify(it)).join(', ')}]` : JSON.stringify(value);

/** In lines that fit a terminal. */
function commented(text: string): string[] {
  const lines: string[] = [];
  for (const word of text.split(' ')) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + word.length < 98) lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(`# ${word}`);
  }
  return lines;
}
