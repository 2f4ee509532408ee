// The lifecycle and egress APIs of OpenSandbox as they cross the wire (specifications: sandbox-lifecycle and egress, both version 0.1.0, and
// their npm client 0.1.11). Answers of the lifecycle API may carry one property more than the specification names: `glovebox`. Properties that are absent are omitted, never null.
import { z } from 'zod';
import { AgentDefinition, SetupFile, SetupStep } from './agents.ts';
import { BellDecisions } from './bell.ts';
import { OssfsVolume } from './bucket.ts';
import { NewRule } from './network.ts';
import { PublishPort } from './ports.ts';
import { volumeName } from './volume.ts';
import { WorkerWish } from './worker.ts';
import { WorkspaceRequest } from './workspace.ts';

export const secureAccessHeader = 'OpenSandbox-Secure-Access';
export const egressAuthHeader = 'OPENSANDBOX-EGRESS-AUTH';
export const apiKeyHeader = 'OPEN-SANDBOX-API-KEY';

/** Ports of a guest with a meaning of their own in OpenSandbox: the API inside a sandbox, and the one of its way out. */
export const execdPort = 44772;
export const egressPort = 18080;

const text = (max: number) => z.string().max(max);
const name63 = /^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$/;
const dnsSubdomain = /^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$/;

/** Why a metadata key is refused, or undefined. The rules are those of Kubernetes labels; `opensandbox.io/` is reserved. */
export function metadataKeyProblem(key: string): string | undefined {
  const slash = key.indexOf('/');
  const prefix = slash < 0 ? undefined : key.slice(0, slash);
  if (prefix === 'opensandbox.io') return 'the prefix opensandbox.io/ is reserved';
  if (prefix !== undefined && (prefix.length > 253 || !dnsSubdomain.test(prefix)))
    return 'its prefix is not a DNS name';
  return name63.test(key.slice(slash + 1))
    ? undefined
    : 'use at most 63 letters, digits, - _ and ., and a letter or digit at both ends';
}

export function metadataValueProblem(value: string): string | undefined {
  return value === '' || name63.test(value)
    ? undefined
    : 'use at most 63 letters, digits, - _ and ., and a letter or digit at both ends, or nothing';
}

export const MetadataPatch = z
  .record(z.string(), z.string().nullable())
  .describe('JSON merge patch (RFC 7396) of the metadata: null deletes a key.');

export const ImageSpec = z.strictObject({
  uri: text(1024).min(1),
  auth: z.strictObject({ username: text(1024), password: text(65_536) }).optional(),
});

export const PlatformSpec = z.strictObject({
  os: z.enum(['linux', 'windows']),
  arch: z.enum(['amd64', 'arm64']),
});

export const Volume = z.strictObject({
  name: volumeName,
  mountPath: text(4096).regex(/^\//, 'must be absolute'),
  readOnly: z.boolean().default(false),
  subPath: text(4096)
    .refine(
      (path) => !path.startsWith('/') && !path.split('/').includes('..'),
      'must be relative, without ..',
    )
    .optional(),
  host: z.strictObject({ path: text(4096).regex(/^\//, 'must be absolute') }).optional(),
  pvc: z
    .strictObject({
      claimName: volumeName,
      createIfNotExists: z.boolean().default(true),
      deleteOnSandboxTermination: z
        .boolean()
        .default(false)
        .describe(
          'Of one that is made for it: it goes with the last sandbox that has it, also at its expiry.',
        ),
      storageClass: text(253).nullish(),
      storage: z
        .string()
        .max(32)
        .regex(/^\d+(\.\d+)?(Ki|Mi|Gi|Ti|Pi|Ei)?$/, 'must be a size such as "10Gi"')
        .nullish(),
      accessModes: z.array(text(64)).max(8).nullish(),
    })
    .describe(
      'A named volume. storageClass, storage and accessModes say nothing here, as in OpenSandbox on Docker.',
    )
    .optional(),
  ossfs: OssfsVolume.optional(),
});

/** OpenSandbox's specification has `defaultAction` and `action` default to deny. Targets are checked where the policy is compiled. */
export const NetworkRule = z.strictObject({
  action: z.enum(['allow', 'deny']).default('deny'),
  target: text(512).min(1),
});

export type NetworkRule = z.infer<typeof NetworkRule>;

export const networkRulesMax = 4096;

export const NetworkPolicy = z.strictObject({
  defaultAction: z.enum(['allow', 'deny']).default('deny'),
  egress: z.array(NetworkRule).max(networkRulesMax, `at most ${networkRulesMax} rules`).default([]),
});
export type NetworkPolicy = z.infer<typeof NetworkPolicy>;

/** A hundred years: far below the last moment that a date can name. */
export const timeoutSecondsMax = 100 * 365 * 24 * 60 * 60;

export const PullPolicy = z.enum(['always', 'missing', 'never']);

/** Fields that this build refuses are described so that the refusal can be clear; see api/opensandbox/create.ts. */
export const CreateSandboxRequest = z.strictObject({
  image: ImageSpec.optional(),
  snapshotId: z.string().min(1).max(128).nullish().describe('A snapshot to make it of, instead of an image.'),
  entrypoint: z.array(text(131_072)).min(1).max(4096).optional(),
  timeout: z
    .int()
    .min(60)
    .max(timeoutSecondsMax)
    .nullish()
    .describe('Seconds until the sandbox is removed; by hand only when absent.'),
  resourceLimits: z
    .record(z.string(), z.string())
    .optional()
    .describe(
      'cpu ("500m"), memory ("512Mi"), pids ("256"), disk or ephemeral-storage ("2Gi"), gpu ("1", "all").',
    ),
  resourceRequests: z.record(z.string(), z.string()).nullish(),
  env: z.record(z.string().regex(/^[^=\0]+$/, 'is no name of a variable'), z.string().nullable()).optional(),
  metadata: z.record(z.string(), z.string()).optional(),
  networkPolicy: NetworkPolicy.nullish(),
  credentialProxy: z.looseObject({ enabled: z.boolean().optional() }).nullish(),
  secureAccess: z.boolean().optional(),
  volumes: z.array(Volume).max(64).nullish(),
  platform: PlatformSpec.nullish(),
  extensions: z.record(z.string(), z.string()).optional(),
  glovebox: z
    .strictObject({
      rules: z
        .array(NewRule.omit({ sandbox: true }))
        .max(1024)
        .default([])
        .describe('Network rules for this sandbox alone, in force before its first process runs.'),
      keep: z
        .boolean()
        .optional()
        .describe('It can be stopped and started again, and a restart of the host leaves it stopped.'),
      autoStopAfterSeconds: z
        .int()
        .min(1)
        .max(31_536_000)
        .nullish()
        .describe(
          'Of kept ones: stops by itself when nothing has run in it and nobody was attached for so long. Absent: as its agent has it, else never; null: never.',
        ),
      pull: PullPolicy.optional().describe(
        'When a registry is asked for the image: `missing` (the default), `always`, also where there is one, or `never`.',
      ),
      agent: z
        .union([z.string().min(1).max(40), AgentDefinition])
        .optional()
        .describe('Name of an agent of the registry, or a definition: what it needs is prepared.'),
      workspaces: z
        .array(WorkspaceRequest)
        .max(32)
        .default([])
        .describe('Folders of the host, the main one first.'),
      ports: z.array(PublishPort).max(64).default([]),
      files: z.array(SetupFile).max(256).default([]),
      setup: z.array(SetupStep).max(256).default([]),
      user: z
        .string()
        .min(1)
        .max(128)
        .optional()
        .describe('What commands run as instead of what the image says.'),
      cwd: z
        .string()
        .min(1)
        .max(4096)
        .optional()
        .describe('Where they run; by default in the main workspace.'),
      worker: WorkerWish.optional().describe(
        'Put it on this worker, or on one that has all of these labels, rather than on the host of the daemon.',
      ),
      bell: BellDecisions.optional().describe(
        'It may reach the bell. What is said here of actions holds for this sandbox; of the others, what holds for all.',
      ),
    })
    .optional()
    .describe('What OpenSandbox has no field for.'),
});
export type CreateSandboxRequest = z.infer<typeof CreateSandboxRequest>;

const instant = z.iso.datetime({ offset: true });

export const SandboxStatus = z.object({
  state: z.enum([
    ...['Pending', 'Running', 'Pausing', 'Paused', 'Resuming', 'Stopped', 'Stopping', 'Terminated', 'Failed'],
  ] as const),
  reason: z.string().optional(),
  message: z.string().optional(),
  lastTransitionAt: instant.optional(),
});

/** What OpenSandbox has no field for. */
export const SandboxExtras = z.object({
  /** Of those that a project has; absent for the owner's. */
  project: z.string().optional(),
  runtime: z.string(),
  limits: z.object({
    cpu: z.number().optional(),
    memoryBytes: z.number().optional(),
    pids: z.number().optional(),
    diskBytes: z.number().optional(),
    gpu: z.union([z.number(), z.literal('all')]).optional(),
  }),
  /** Of the main process, once it has ended. */
  exitCode: z.int().optional(),
  keep: z.boolean(),
  autoStopAfterSeconds: z.number().optional(),
  agent: z.string().optional(),
  workspaces: z.array(WorkspaceRequest),
  ports: z.array(PublishPort),
  lastUsedAt: z.iso.datetime({ offset: true }).optional(),
  /** Who is attached, and commands that run beside the main process. */
  holds: z.int(),
  commands: z.int(),
});

export const CreateSandboxResponse = z.object({
  id: z.string(),
  status: SandboxStatus,
  metadata: z.record(z.string(), z.string()).optional(),
  platform: PlatformSpec.optional(),
  extensions: z.record(z.string(), z.string()).optional(),
  expiresAt: instant.optional(),
  createdAt: instant,
  entrypoint: z.array(z.string()),
  glovebox: SandboxExtras,
});
export type CreateSandboxResponse = z.infer<typeof CreateSandboxResponse>;

/** Either of image and snapshotId: what it was made of. */
export const Sandbox = CreateSandboxResponse.extend({
  image: z.object({ uri: z.string() }).optional(),
  snapshotId: z.string().optional(),
});
export type Sandbox = z.infer<typeof Sandbox>;

export const Pagination = z.object({
  page: z.int().min(1),
  pageSize: z.int().min(1),
  totalItems: z.int().min(0),
  totalPages: z.int().min(0),
  hasNextPage: z.boolean(),
});

export const ListSandboxesResponse = z.object({ items: z.array(Sandbox), pagination: Pagination });
export type ListSandboxesResponse = z.infer<typeof ListSandboxesResponse>;

/** A time without an offset is taken as UTC. */
export const RenewExpirationRequest = z.strictObject({
  expiresAt: z.iso.datetime({ offset: true, local: true }),
});
export const RenewExpirationResponse = z.object({ expiresAt: instant });

export const Endpoint = z.object({
  endpoint: z.string().describe('Host and path, without a scheme.'),
  headers: z.record(z.string(), z.string()).describe('To be sent with every request to the endpoint.'),
});
export type Endpoint = z.infer<typeof Endpoint>;

export const HealthResponse = z.object({ status: z.literal('healthy') });

/** What the egress API takes: the number of rules is checked behind it, because too many are answered 413. */
export const ReplaceNetworkPolicy = NetworkPolicy.extend({
  egress: z.array(NetworkRule).nullish(),
}).nullable();
export type ReplaceNetworkPolicy = z.infer<typeof ReplaceNetworkPolicy>;
export const PatchNetworkRules = z.array(NetworkRule).min(1);
export const DeleteNetworkRules = z.array(text(512).min(1)).min(1);

export const PolicyStatusResponse = z.object({
  status: z.literal('ok'),
  mode: z.enum(['deny_all', 'allow_all', 'enforcing']),
  enforcementMode: z.literal('dns+nft').describe('What clients of OpenSandbox know as: names and addresses.'),
  reason: z.string().optional(),
  policy: NetworkPolicy.optional(),
});
export type PolicyStatusResponse = z.infer<typeof PolicyStatusResponse>;
