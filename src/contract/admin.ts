// Glovebox's own routes beside OpenSandbox's: images of the local store, and what the daemon is and can do.
//
//   GET    /v1/images                 -> 200 { items: ImageInfo[] }
//   POST   /v1/images?name=NAME       body: the archive as it is (application/octet-stream) -> 201 ImageInfo
//   DELETE /v1/images/{name}          -> 204
//   GET    /v1/system                 -> 200 SystemInfo
//   GET    /v1/sandboxes/{id}/proxy/44772/archive?path=P   -> 200 application/x-tar   a file or folder as tar
//   PUT    /v1/sandboxes/{id}/proxy/44772/archive?path=P   body tar -> 204            unpacked below P
//
// Requests to POST /v1/sandboxes choose a runtime with extensions["glovebox.runtime"], and whether connections are caught with ["glovebox.transparent"]; metadata["glovebox.name"] is a name that is unique among live sandboxes.
import { z } from 'zod';

/** The image that stands for the host's own system folders. */
export const hostImage = 'host';
export const runtimeExtension = 'glovebox.runtime';
/** `false`: connections are not caught, so the guest's own servers can have ports 80 and 443, and only programs that use the proxy get out. */
export const transparentExtension = 'glovebox.transparent';
/** OpenSandbox's: `enable` lets its commands be walled off from each other, for which they may make namespaces. */
export const isolationExtension = 'bootstrap.execd.isolation';
export const isIsolating = (extensions: Readonly<Record<string, string>>): boolean =>
  extensions[isolationExtension] === 'enable';
/** Extension keys with seconds as text: paused when idle for so long; and OpenSandbox's, by which use makes a sandbox live so long from then on. */
export const idlePauseExtension = 'glovebox.idle.pause.seconds';
export const renewExtension = 'access.renew.extend.seconds';
export const nameLabel = 'glovebox.name';

/** Why a sandbox may not be called so, or undefined: it has to do as part of a path, a host name and a name of git's. */
export function sandboxNameProblem(name: string): string | undefined {
  if (name.length < 2 || name.length > 63) return 'has to have 2 to 63 characters';
  if (!/^[A-Za-z0-9]/.test(name)) return 'has to begin with a letter or a digit';
  if (!/^[A-Za-z0-9._+-]*$/.test(name)) return 'may hold letters, digits and - _ . + only';
  return /[-.]$/.test(name) ? 'may not end with - or .' : undefined;
}
/** Sent with what `owner-key` in the home folder holds: the request comes from the user whose daemon it is, who may show sandboxes any folder of theirs. */
export const ownerHeader = 'Glovebox-Owner';

export const ImageInfo = z.object({
  name: z.string(),
  /** `sha256:…` of the imported root file system, stable for the same content. Empty for the built-in `host`. */
  digest: z.string(),
  arch: z.string(),
  sizeBytes: z.number(),
  createdAt: z.iso.datetime({ offset: true }),
  builtin: z.boolean(),
});
export type ImageInfo = z.infer<typeof ImageInfo>;

export const RuntimeInfo = z.object({
  name: z.string(),
  default: z.boolean(),
  usable: z.boolean(),
  version: z.string().optional(),
  capabilities: z.object({
    pause: z.boolean(),
    limits: z.record(z.string(), z.string()),
    users: z.enum(['all', 'single']),
    isolation: z.enum(['none', 'namespaces', 'container', 'virtual-machine']),
    imagePull: z.boolean(),
    /** What becomes of connections: caught whatever their address; only through the proxy; past every rule. */
    network: z.enum(['captured', 'loopback', 'open']),
    /** Whether sandboxes can be stopped and started again, with what they wrote. */
    keep: z.boolean(),
    mounts: z.object({ owner: z.boolean(), overlay: z.boolean(), hidden: z.boolean() }),
  }),
  problems: z.array(z.object({ message: z.string(), hint: z.string(), fatal: z.boolean() })),
});

export const SystemInfo = z.object({
  version: z.string(),
  pid: z.int(),
  home: z.string(),
  startedAt: z.iso.datetime({ offset: true }),
  sandboxes: z.int(),
  runtimes: z.array(RuntimeInfo),
  /** What the configuration lets be that an operator should know of. */
  warnings: z.array(z.string()).default([]),
});
export type SystemInfo = z.infer<typeof SystemInfo>;
