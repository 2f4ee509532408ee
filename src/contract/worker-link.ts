// What a controller asks of the runtimes of a worker, and what the worker answers. One stream for each request: the controller's first message is a
// LinkRequest, LinkControls may follow; the worker sends LinkReplies, the last of them `done` or `error`. Bytes of images go on lane 1.
// Both ends parse what they hear: a worker is a stranger's machine, and the controller's words become paths.
import { z } from 'zod';
import type { FailureCode } from '../lib/failure.ts';
import { WorkerRuntimeInfo } from './worker.ts';

/** In all lists together that answer one request. */
export const machinesMax = 10_000;
export const imagesMax = 10_000;
/** Files of a run folder that go along with a new machine: their content on lane 1, one behind the other. */
export const runFilesMax = 256;
export const runFilesBytesMax = 16 * 1024 * 1024;

export const MachineId = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$/, 'is no id of a machine');
const path = z
  .string()
  .min(1)
  .max(4096)
  .regex(/^\/[^\0]*$/, 'must be an absolute path');
/** Relative, of plain names only. */
const runPath = z
  .string()
  .max(512)
  .regex(/^[A-Za-z0-9_][A-Za-z0-9_.-]*(\/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$/, 'must be a plain relative path');
const imageName = z.string().min(1).max(1024);
const words = z.record(z.string().max(4096), z.string().max(131_072));

const ImageDefaults = z.object({
  env: words,
  cwd: z.string().max(4096).optional(),
  user: z.string().max(1024).optional(),
  entrypoint: z.array(z.string().max(131_072)).max(4096),
});
const id = z.int().min(0).max(0xffff_ffff);

/** `MachineSpec` without what the worker decides: where its run and state folders lie. */
const WireSpec = z.strictObject({
  id: MachineId,
  image: imageName,
  pull: z.enum(['always', 'missing', 'never']).optional(),
  imageCredentials: z.strictObject({ username: z.string(), password: z.string() }).optional(),
  platform: z.strictObject({ os: z.string().max(64), arch: z.string().max(64) }).optional(),
  user: z.string().max(1024).optional(),
  limits: z.strictObject({
    cpu: z.number().optional(),
    memoryBytes: z.number().optional(),
    pids: z.number().optional(),
    diskBytes: z.number().optional(),
    gpu: z.union([z.number(), z.literal('all')]).optional(),
  }),
  mounts: z
    .array(
      z.strictObject({
        hostPath: path,
        guestPath: path,
        readOnly: z.boolean(),
        owner: z.strictObject({ uid: id, gid: id }).optional(),
        overlay: z.strictObject({ upper: path, work: path }).optional(),
        hidden: z.array(z.string().max(4096)).max(100_000).readonly().optional(),
      }),
    )
    .max(1024),
  labels: words,
});
export type WireSpec = z.infer<typeof WireSpec>;

const RunFile = z.strictObject({
  path: runPath,
  mode: z.int().min(0).max(0o777),
  sizeBytes: z.int().min(0).max(runFilesBytesMax),
});
export type RunFile = z.infer<typeof RunFile>;
const begin = { spec: WireSpec, files: z.array(RunFile).max(runFilesMax) };
const machine = { machine: MachineId };
const image = { name: imageName };

export const RuntimeCall = z.discriminatedUnion('do', [
  z.strictObject({ do: z.literal('check') }),
  /** `facts`, the machines there are, `ready`; then, for as long as the stream is there, what becomes of machines. */
  z.strictObject({ do: z.literal('watch') }),
  z.strictObject({ do: z.literal('list') }),
  /** After `done` the worker waits for `confirm`; without it, it takes the machine away again, or stops it. */
  z.strictObject({ do: z.literal('create'), ...begin }),
  z.strictObject({ do: z.literal('start'), ...begin }),
  z.strictObject({ do: z.literal('remove'), ...machine }),
  z.strictObject({ do: z.literal('pause'), ...machine }),
  z.strictObject({ do: z.literal('resume'), ...machine }),
  z.strictObject({ do: z.literal('stop'), ...machine }),
  z.strictObject({ do: z.literal('save'), ...machine, ...image, defaults: ImageDefaults }),
  z.strictObject({ do: z.literal('images') }),
  z.strictObject({ do: z.literal('has-image'), ...image }),
  z.strictObject({ do: z.literal('remove-image'), ...image }),
  /** The tar on lane 1, then `end`. */
  z.strictObject({ do: z.literal('load-image'), ...image }),
  /** The tar on lane 1, then `done`. */
  z.strictObject({ do: z.literal('export-image'), ...image }),
  /** The context on lane 1, then `end`. */
  z.strictObject({
    do: z.literal('build-image'),
    ...image,
    dockerfile: z.string().max(4096),
    args: words,
    target: z.string().max(1024).optional(),
    noCache: z.boolean(),
    network: z.boolean(),
  }),
]);
export type RuntimeCall = z.infer<typeof RuntimeCall>;

export const LinkRequest = z.strictObject({
  op: z.literal('runtime'),
  runtime: WorkerRuntimeInfo.shape.name,
  call: RuntimeCall,
});
export type LinkRequest = z.infer<typeof LinkRequest>;

/** `abort`: the answer is no longer wanted; it follows all the same, once what was begun is undone. */
export const LinkControl = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('abort') }),
  z.strictObject({ type: z.literal('confirm') }),
  z.strictObject({ type: z.literal('end') }),
]);
export type LinkControl = z.infer<typeof LinkControl>;

const short = z.string().max(256);
const line = z.string().max(4096);
const time = z.number().min(0).max(8.64e15);

const MachineExit = z.object({
  reason: z.enum(['exited', 'out-of-memory', 'removed', 'stopped', 'lost']),
  exitCode: z.int().min(-1).max(65_535).optional(),
  message: line,
  /** Milliseconds since 1970, by the worker's clock. */
  at: time,
});
export type WireExit = z.infer<typeof MachineExit>;

const MemoryUse = z.object({
  peakBytes: z.number().nonnegative().optional(),
  kills: z.number().nonnegative(),
});

/** One machine as the worker has it now. */
export const MachineFacts = z.object({
  id: MachineId,
  /** Tells one run of a machine from the next, and from those that an earlier process of the worker knew. */
  run: z.string().min(1).max(64),
  image: ImageDefaults,
  paused: z.boolean(),
  network: z.enum(['captured', 'loopback', 'open']),
  /** What `Machine` has: pausing, keeping, saving. */
  pauses: z.boolean(),
  keeps: z.boolean(),
  saves: z.boolean(),
  memory: MemoryUse.optional(),
  exit: MachineExit.optional(),
});
export type MachineFacts = z.infer<typeof MachineFacts>;

const KeptImage = z.object({
  name: imageName,
  id: z.string().max(1024),
  sizeBytes: z.number().nonnegative(),
  createdAt: time,
  base: imageName.optional(),
});
export type WireImage = z.infer<typeof KeptImage>;

const means = short.optional();
export const Capabilities = z.object({
  pause: z.boolean(),
  limits: z.object({ cpu: means, memoryBytes: means, pids: means, diskBytes: means, gpu: means }),
  users: z.enum(['all', 'single']),
  isolation: z.enum(['none', 'namespaces', 'container', 'virtual-machine']),
  imagePull: z.boolean(),
  network: z.enum(['captured', 'loopback', 'open']),
  keep: z.boolean(),
  mounts: z.object({ owner: z.boolean(), overlay: z.boolean(), hidden: z.boolean() }),
});

const RuntimeCheck = z.object({
  usable: z.boolean(),
  version: short.optional(),
  capabilities: Capabilities,
  problems: z.array(z.object({ message: line, hint: line, fatal: z.boolean() })).max(100),
});

/** What of `Runtime` there is at all. */
export const RuntimeFacts = z.object({ starts: z.boolean(), images: z.boolean(), builds: z.boolean() });
export type RuntimeFacts = z.infer<typeof RuntimeFacts>;

const failureCodes = [
  'invalid',
  'unauthenticated',
  'not-found',
  'conflict',
  'unsupported',
  'unavailable',
  'timeout',
  'aborted',
  'protocol',
  'lost',
  'unknown',
  'exhausted',
  'full',
  'permission',
  'io',
  'internal',
] as const satisfies readonly FailureCode[];

export const LinkReply = z.discriminatedUnion('type', [
  z.object({ type: z.literal('progress'), line }),
  /** What a build says. */
  z.object({ type: z.literal('output'), text: z.string().max(262_144) }),
  z.object({ type: z.literal('facts'), facts: RuntimeFacts }),
  z.object({ type: z.literal('machines'), machines: z.array(MachineFacts).max(256) }),
  z.object({ type: z.literal('ready') }),
  z.object({
    type: z.literal('exited'),
    ...machine,
    run: z.string().max(64),
    exit: MachineExit,
    memory: MemoryUse.optional(),
  }),
  z.object({
    type: z.literal('memory'),
    uses: z.array(z.object({ ...machine, run: z.string().max(64), memory: MemoryUse })).max(256),
  }),
  z.object({ type: z.literal('images'), images: z.array(KeptImage).max(256) }),
  z.object({
    type: z.literal('done'),
    machine: MachineFacts.optional(),
    check: RuntimeCheck.optional(),
    image: KeptImage.optional(),
    has: z.boolean().optional(),
  }),
  z.object({
    type: z.literal('error'),
    code: z.enum(failureCodes),
    message: line,
    hint: line.optional(),
    details: z
      .record(
        z.string().max(128),
        z.union([z.string().max(4096), z.number(), z.boolean(), z.array(z.string().max(4096)).max(256)]),
      )
      .optional(),
  }),
]);
export type LinkReply = z.infer<typeof LinkReply>;
export type LinkDone = Extract<LinkReply, { type: 'done' }>;
