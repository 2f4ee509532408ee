// Ports of a sandbox published on the host, in the words of `docker run -p`.
//
//   GET    /v1/sandboxes/{id}/ports            -> 200 { items: PublishedPort[] }
//   POST   /v1/sandboxes/{id}/ports  PublishPort[]   -> 201 { items: PublishedPort[] }     all of them, or none
//   POST   /v1/sandboxes/{id}/ports/unpublish UnpublishPort[] -> 200 { unpublished: n }
//
// They are kept over stop and start: a host port that was asked for is taken again, one that was chosen by us is chosen again.
import { z } from 'zod';

const port = z.int().min(1).max(65_535);

export const PublishPort = z.strictObject({
  /** An address of the host. 127.0.0.1 by default; others let machines of the network in. */
  hostIp: z.string().max(64).optional(),
  /** 0 or absent: any free one. */
  hostPort: z.int().min(0).max(65_535).optional(),
  sandboxPort: port,
  /** `tcp`: on both loopbacks; `tcp4` (default), `tcp6` on one. */
  protocol: z.enum(['tcp', 'tcp4', 'tcp6']).default('tcp4'),
});
export type PublishPort = z.infer<typeof PublishPort>;

export const UnpublishPort = z.strictObject({
  sandboxPort: port,
  hostIp: z.string().max(64).optional(),
  hostPort: port.optional(),
  protocol: z.enum(['tcp', 'tcp4', 'tcp6']).optional(),
});
export type UnpublishPort = z.infer<typeof UnpublishPort>;

export const PublishedPort = z.object({
  hostIp: z.string(),
  /** 0 while the sandbox is stopped and the port was ours to choose. */
  hostPort: z.int(),
  sandboxPort: z.int(),
  protocol: z.enum(['tcp4', 'tcp6']),
  /** Why it is not open although the sandbox runs, e.g. that something else has the port. */
  problem: z.string().optional(),
});
export type PublishedPort = z.infer<typeof PublishedPort>;
