// Projects, who share one daemon without knowing of each other, and their keys, as they cross a wire or lie on a disk. The routes are in tenant-routes.ts.
//
// A key is `gbx_<id>_<secret>`: id of 12 hexadecimal digits, secret of 43 characters (256 bits, base64url). Of the secret the daemon keeps the SHA-256.
// What `GET /v1/sandboxes/{id}/endpoints/{port}` gives to a key of a project is `gbe_<id>_<mac>`: mac is the HMAC-SHA256 (base64url) of the key's id by the sandbox's own token.
import { z } from 'zod';

const instant = z.iso.datetime({ offset: true });

/** Each may do what the one before may: `viewer` looks, `member` makes and uses sandboxes, `admin` hands out keys of the project. */
export const roles = ['viewer', 'member', 'admin'] as const;
export const Role = z.enum(roles);
export type Role = z.infer<typeof Role>;

export const mayAct = (role: Role, least: Role): boolean => roles.indexOf(role) >= roles.indexOf(least);

/**
 * What a key of a project may do with a route: from which role on, and of what.
 * `sandbox`: {sandboxId} of the path has to be one of the project's. `project`: {project} of the path has to be its own.
 * `own`: the handler gets to see nothing but what is the project's. `shared`: the answer is the same for everybody.
 */
export interface TenantAccess {
  role: Role;
  scope: 'sandbox' | 'project' | 'own' | 'shared';
}

export const ProjectName = z
  .string()
  .regex(
    /^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$/,
    'use at most 40 small letters, digits and -, and a letter or digit at both ends',
  );

/** Absent: no limit but those of the daemon; of ports, none may be published. */
export const Quotas = z.strictObject({
  sandboxes: z.int().min(0).max(10_000).optional().describe('Sandboxes in all, stopped ones too.'),
  cpu: z
    .number()
    .positive()
    .max(65_536)
    .optional()
    .describe('Cores of all that run. Each sandbox then has to say how many it wants.'),
  memoryBytes: z
    .int()
    .positive()
    .max(Number.MAX_SAFE_INTEGER)
    .optional()
    .describe('Memory of all that run. Each sandbox then has to say how much it wants.'),
  ports: z
    .int()
    .min(0)
    .max(10_000)
    .optional()
    .describe('Ports that its sandboxes have published on the host, on loopback. None by default.'),
  requestsPerMinute: z
    .int()
    .min(1)
    .max(1_000_000)
    .optional()
    .describe('Requests of all its keys together; each key has the limit of the configuration besides.'),
});
export type Quotas = z.infer<typeof Quotas>;

/** What a project has at the moment, in the units of its quotas. What runs without a limit of its own counts as nothing. */
export const Usage = z.object({
  sandboxes: z.int(),
  cpu: z.number(),
  memoryBytes: z.int(),
  ports: z.int(),
});
export type Usage = z.infer<typeof Usage>;

export const NewProject = z.strictObject({ name: ProjectName, quotas: Quotas.prefault({}) });
export const ProjectChange = z.strictObject({
  quotas: Quotas.describe('In place of those that it has.'),
});

export const ProjectInfo = z.object({
  /** Never used again for another one, unlike the name. */
  id: z.string(),
  name: z.string(),
  quotas: Quotas,
  usage: Usage,
  keys: z.int(),
  createdAt: instant,
});
export type ProjectInfo = z.infer<typeof ProjectInfo>;

export const NewKey = z.strictObject({
  role: Role.default('member'),
  label: z
    .string()
    .max(100)
    .regex(/^\P{Cc}*$/u, 'must not hold control characters')
    .optional()
    .describe('For people: whose it is.'),
  expiresAt: instant.optional().describe('From then on it opens nothing. Without: until it is revoked.'),
});
export type NewKey = z.infer<typeof NewKey>;

export const KeyInfo = z.object({
  id: z.string(),
  role: Role,
  label: z.string().optional(),
  createdAt: instant,
  expiresAt: instant.optional(),
  /** To the minute. */
  lastUsedAt: instant.optional(),
});
export type KeyInfo = z.infer<typeof KeyInfo>;

/** The only answer that holds the key. */
export const MadeKey = KeyInfo.extend({ key: z.string() });
export type MadeKey = z.infer<typeof MadeKey>;

/** In the store. */
export interface ProjectRecord {
  id: string;
  name: string;
  quotas: Quotas;
  createdAt: string;
}

/** In the store. `hash`: SHA-256 of the secret, in hexadecimal digits. */
export interface KeyRecord extends KeyInfo {
  projectId: string;
  hash: string;
}

export const keyForm = /^gbx_([0-9a-f]{12})_([A-Za-z0-9_-]{43})$/;
export const endpointTokenForm = /^gbe_([0-9a-f]{12})_([A-Za-z0-9_-]{43})$/;
