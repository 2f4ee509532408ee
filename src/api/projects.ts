// Projects and their keys: requests to calls of the registry. The shapes are those of contract/tenant.ts.
import type { ProjectInfo, ProjectRecord } from '../contract/tenant.ts';
import { Failure } from '../lib/failure.ts';
import type { SandboxService } from '../sandbox/sandbox.ts';
import type { ApiOptions, Handlers } from './handlers.ts';
import { noProject, type Tenant } from './tenants.ts';

type ProjectHandlers = Handlers<
  | ('listProjects' | 'createProject' | 'getProject' | 'changeProject' | 'removeProject')
  | ('listKeys' | 'createKey' | 'revokeKey')
>;

/** For the administrator without a tenant; else for that one, who sees its own project only. */
export function projectHandlers(
  { tenants, service, snapshots, volumes }: ApiOptions,
  tenant?: Tenant,
): ProjectHandlers {
  const infoOf = ({ id, name, quotas, createdAt }: ProjectRecord): ProjectInfo => ({
    ...{ id, name, quotas, createdAt },
    usage: service.usage(id),
    keys: tenants.keys(name).length,
  });
  const nameIn = (params: Record<string, string>): string => {
    const { project = '' } = params;
    if (tenant !== undefined && project !== tenant.project.name) throw noProject(project);
    return project;
  };
  return {
    listProjects: () => {
      const all = tenants.list().filter(({ id }) => tenant === undefined || id === tenant.project.id);
      return { status: 200, json: { items: all.map(infoOf) } };
    },
    createProject: ({ body }) => ({ status: 201, json: infoOf(tenants.create(body)) }),
    getProject: ({ params }) => ({ status: 200, json: infoOf(tenants.get(nameIn(params))) }),
    changeProject: ({ params, body }) => ({
      status: 200,
      json: infoOf(tenants.setQuotas(nameIn(params), body.quotas)),
    }),
    removeProject: async ({ params, query, lifetime }) => {
      const name = nameIn(params);
      const { id } = tenants.get(name);
      const left = service.list({ project: id }).length;
      if (left > 0 && !query.sandboxes)
        throw new Failure('conflict', `project ${name} has ${left} ${left === 1 ? 'sandbox' : 'sandboxes'}`, {
          hint: `Remove them first, or with it: glovebox project rm --sandboxes ${name}`,
        });
      const kept = snapshots.list({ project: id }).length;
      if (kept > 0 && !query.sandboxes)
        throw new Failure(
          'conflict',
          `project ${name} has ${kept} ${kept === 1 ? 'snapshot' : 'snapshots'}`,
          {
            hint: `Remove them first, or with it: glovebox project rm --sandboxes ${name}`,
          },
        );
      await tenants.remove(name, async (projectId) => {
        await removeAll(service, projectId, lifetime);
        await snapshots.removeAll(projectId);
        await volumes.removeOf(projectId);
      });
      return { status: 204 };
    },
    listKeys: ({ params }) => ({ status: 200, json: { items: tenants.keys(nameIn(params)) } }),
    createKey: ({ params, body }) => ({ status: 201, json: tenants.createKey(nameIn(params), body) }),
    revokeKey: ({ params }) => {
      tenants.revokeKey(nameIn(params), params.keyId ?? '');
      return { status: 204 };
    },
  };
}

/** Also what was being made when its key was taken back. */
async function removeAll(service: SandboxService, projectId: string, lifetime: AbortSignal): Promise<void> {
  for (;;) {
    const left = service.list({ project: projectId });
    if (left.length === 0) return;
    const removed = await Promise.allSettled(
      left.map(({ id }) => service.remove(id, lifetime, 'the removal of its project')),
    );
    const failed = removed
      .map((it) => (it.status === 'rejected' ? Failure.from(it.reason, 'remove a sandbox') : undefined))
      .find((it) => it !== undefined && it.code !== 'not-found');
    if (failed !== undefined) throw failed;
  }
}
