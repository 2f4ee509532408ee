// Ports of sandboxes on the host.
import type { PublishedPort, PublishPort, UnpublishPort } from '../contract/ports.ts';
import type { ApiOptions, Handlers } from './handlers.ts';

export interface PortService {
  list(sandboxId: string): PublishedPort[];
  /** All or none. Failure('conflict') for a host port that is taken, Failure('permission') for one that may not be had. Kept for later starts. */
  publish(sandboxId: string, ports: PublishPort[], signal: AbortSignal): Promise<PublishedPort[]>;
  /** How many were taken off. Failure('not-found') when one is not there. */
  unpublish(sandboxId: string, ports: UnpublishPort[]): Promise<number>;
}

export function portHandlers({
  ports,
}: ApiOptions): Handlers<'listPorts' | 'publishPorts' | 'unpublishPorts'> {
  return {
    listPorts: ({ sandboxId }) => ({ status: 200, json: { items: ports.list(sandboxId) } }),
    publishPorts: async ({ sandboxId, body, lifetime }) => ({
      status: 201,
      json: { items: await ports.publish(sandboxId, body, lifetime) },
    }),
    unpublishPorts: async ({ sandboxId, body }) => ({
      status: 200,
      json: { unpublished: await ports.unpublish(sandboxId, body) },
    }),
  };
}
