// Named volumes: requests to calls of the service. The shapes are those of contract/volume.ts.
import type { VolumeService } from '../sandbox/volumes.ts';
import type { ApiOptions, Handlers } from './handlers.ts';
import type { Tenant } from './tenants.ts';

export type { VolumeService };

/** For the administrator without a tenant; else for that one, whose project has volumes of its own. */
export function volumeHandlers(
  { volumes }: ApiOptions,
  tenant?: Tenant,
): Handlers<'listVolumes' | 'createVolume' | 'getVolume' | 'removeVolume'> {
  const project = tenant?.project;
  return {
    listVolumes: () => ({ status: 200, json: { items: volumes.list(project) } }),
    createVolume: ({ body }) => ({ status: 201, json: volumes.create(body.name, project) }),
    getVolume: ({ params }) => ({ status: 200, json: volumes.get(params.volume ?? '', project) }),
    removeVolume: async ({ params }) => {
      await volumes.remove(params.volume ?? '', project);
      return { status: 204 };
    },
  };
}
