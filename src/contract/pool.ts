// Pools of sandboxes that are made before anybody asks for one, as they cross a wire or lie on a disk. The routes are in pool-routes.ts.
// Names and shapes are those of OpenSandbox's server for Kubernetes, where a template is a pod's; of that form we take what has a meaning here.
import { z } from 'zod';
import { Failure } from '../lib/failure.ts';
import { ImageSpec, NetworkPolicy, PlatformSpec } from './opensandbox.ts';
import { parseBytes, parseLimits } from './quantity.ts';
import type { Limits } from './sandbox.ts';

export const PoolName = z
  .string()
  .regex(
    /^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$/,
    'use at most 40 small letters, digits and -, and a letter or digit at both ends',
  );

/** Reports what `read` refuses as a mistake of the field. */
const readable = (read: () => unknown, context: z.RefinementCtx): void => {
  try {
    read();
  } catch (thrown) {
    if (!(thrown instanceof Failure)) throw thrown;
    context.addIssue({ code: 'custom', message: thrown.message.replace(/^resourceLimits\./, '') });
  }
};

const quantities = z
  .record(z.string(), z.string())
  .superRefine((it, context) => readable(() => parseLimits(it), context));

/** What every sandbox of a pool is made of, and what a request has to ask for to get one. */
export const PoolTemplate = z.strictObject({
  image: ImageSpec.omit({ auth: true }),
  resourceLimits: quantities.default({}),
  platform: PlatformSpec.optional(),
  runtime: z
    .string()
    .regex(/^[a-z][a-z0-9-]{0,39}$/, 'must be the name of a runtime of this host')
    .optional()
    .describe('Default: what the configuration has for requests without one.'),
  networkPolicy: NetworkPolicy.optional().describe(
    'For requests that name the pool and bring no policy of their own; policies are bound when a sandbox is handed out.',
  ),
});
export type PoolTemplate = z.infer<typeof PoolTemplate>;

const PodTemplate = z
  .strictObject({
    spec: z.strictObject({
      containers: z
        .array(
          z.strictObject({
            name: z.string().max(63).optional(),
            image: z.string().min(1).max(1024),
            resources: z.strictObject({ limits: quantities.default({}) }).optional(),
          }),
        )
        .length(1, 'must hold exactly one container'),
    }),
  })
  .describe('The form of a pod, as far as it has a meaning here.')
  .transform(({ spec: { containers } }): PoolTemplate => {
    const [{ image, resources } = { image: '' }] = containers;
    return { image: { uri: image }, resourceLimits: resources?.limits ?? {} };
  });

const count = (most: number) => z.int().min(0).max(most);
const ordered = ({ bufferMin, bufferMax, poolMin, poolMax }: Capacity): boolean =>
  bufferMin <= bufferMax && poolMin <= poolMax && bufferMax <= poolMax;

export const CapacitySpec = z
  .strictObject({
    bufferMin: count(1_000).describe('Fewer that are ready than this, and more are made, up to bufferMax.'),
    bufferMax: count(1_000).describe('The most that are ready.'),
    poolMin: count(1_000).describe('The least in all, ready and in use.'),
    poolMax: count(10_000).describe('The most in all, ready and in use.'),
  })
  .refine(ordered, 'bufferMin ≤ bufferMax ≤ poolMax and poolMin ≤ poolMax must hold');
type Capacity = { bufferMin: number; bufferMax: number; poolMin: number; poolMax: number };
export type CapacitySpec = Capacity;

export const PoolState = z.enum(['started', 'frozen']);
export type PoolState = z.infer<typeof PoolState>;

const PoolWishes = z.strictObject({
  state: PoolState.default('started').describe(
    'How its sandboxes wait: `frozen` ones take no processor time at all, and some milliseconds more to be handed out.',
  ),
  memoryMax: z
    .string()
    .superRefine((it, context) => readable(() => parseBytes('memoryMax', it), context))
    .optional()
    .describe(
      'What the memory limits of those that wait may add up to, such as "4Gi"; the template then has to have one.',
    ),
});

const bounded = ({
  template,
  glovebox,
}: {
  template?: PoolTemplate | undefined;
  glovebox?: { memoryMax?: string | undefined } | undefined;
}): boolean => {
  if (glovebox?.memoryMax === undefined || template === undefined) return true;
  const { memoryBytes } = parseLimits(template.resourceLimits);
  return memoryBytes !== undefined && memoryBytes <= parseBytes('memoryMax', glovebox.memoryMax);
};
const boundedMessage = {
  message: 'memoryMax: needs a template with a resourceLimits.memory that is not above it',
  path: ['glovebox'],
};

export const NewPool = z
  .strictObject({
    name: PoolName,
    template: z.union([PoolTemplate, PodTemplate]),
    capacitySpec: CapacitySpec,
    glovebox: PoolWishes.optional(),
  })
  .refine(bounded, boundedMessage);
export type NewPool = z.infer<typeof NewPool>;

export const PoolChange = z.strictObject({
  capacitySpec: CapacitySpec,
  template: z
    .union([PoolTemplate, PodTemplate])
    .optional()
    .describe('Another one replaces all that are ready.'),
  glovebox: PoolWishes.optional(),
});
export type PoolChange = z.infer<typeof PoolChange>;

/** As it is kept. */
export interface PoolRecord {
  name: string;
  template: PoolTemplate;
  capacitySpec: CapacitySpec;
  state: PoolState;
  memoryMax?: string;
  createdAt: string;
}

export const PoolInfo = z.object({
  name: z.string(),
  template: PoolTemplate,
  capacitySpec: CapacitySpec,
  status: z.object({
    total: z.int().describe('Ready and in use.'),
    allocated: z.int().describe('In use.'),
    available: z.int().describe('Ready.'),
    revision: z.string().describe('Of the template; sandboxes of another one are replaced.'),
    starting: z.int(),
    reason: z
      .enum(['ready', 'filling', 'cannot-start', 'memory', 'at-maximum'])
      .describe('Why there are as many as there are.'),
    message: z.string().optional(),
    failures: z.int().describe('In a row, of sandboxes that were to be made.'),
    retryAt: z.iso.datetime().optional().describe('When the next is tried, after failures.'),
  }),
  createdAt: z.iso.datetime().optional(),
  glovebox: z.object({
    source: z.enum(['api', 'configuration']),
    runtime: z.string(),
    state: PoolState,
    memoryMax: z.string().optional(),
    hits: z.int().describe('Requests that got one of these since the daemon started.'),
    misses: z.int().describe('Requests that would have, had one been ready.'),
  }),
});
export type PoolInfo = z.infer<typeof PoolInfo>;

export const limitsOf = (template: PoolTemplate): Limits => parseLimits(template.resourceLimits);
