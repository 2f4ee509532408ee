// Docker Sandboxes' own API on a Unix socket, as its clients know it: version 1 of the Desktop plugin, and of version 2 what we have. Errors are
// { message }. Names of fields are those of the wire.
//
//   GET    /health                         -> 200 { status, version, vms }
//   GET    /vm                             -> 200 VmSummary[]
//   POST   /vm             CreateVm        -> 200 CreatedVm       made and started; one of this name that is there already is started
//   GET    /vm/{name}                      -> 200 VmDetails
//   POST   /vm/{name}/stop                 -> 204
//   POST   /vm/{name}/keepalive            -> 204
//   DELETE /vm/{name}                      -> 204                 404 when there is none
//   POST   /network/proxyconfig  VmProxyConfig -> 200 {}
//
//   GET    /daemon/health, /daemon/info
//   GET    /sandbox                        -> 200 SandboxV2[]     POST CreateSandboxV2 -> 201
//   GET    /sandbox/{name}                 -> 200                 DELETE -> 204
//   POST   /sandbox/{name}/start, /stop    -> 200 SandboxV2
//   POST   /sandbox/{name}/exec  ExecV2    -> 200 { exit_code, stdout, stderr }
//   POST   /sandbox/{name}/exec/attach     -> 101
//   GET    /sandbox/{name}/exec/{id}       -> 200 { exit_code, running }         POST …/resize { cols, rows } -> 204
//   GET    /sandbox/{name}/ports           -> 200                 POST PublishV2[] -> 201, POST …/unpublish -> 200
//   POST   /sandbox/{name}/save { tag }    -> 200
//   GET    /policy/network/rules?sandbox=  -> 200                 POST /policy/network/check -> 200
import { z } from 'zod';

const word = z.string().min(1).max(256);
const path = z
  .string()
  .min(1)
  .max(4096)
  .regex(/^\/[^\0]*$/, 'must be absolute');
const resources = z.array(z.string().min(1).max(512)).max(1024).default([]);
const action = z
  .string()
  .regex(/^(allow|deny)$/i, 'must be allow or deny')
  .transform((it) => it.toLowerCase() as 'allow' | 'deny');

export const CreateVm = z.strictObject({
  agent_name: z
    .string()
    .regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,59}$/, 'use at most 60 letters, digits, ".", "_" and "-"')
    .optional(),
  workspace_dir: path.optional(),
  vm_name: word.optional(),
  /** The same as `vm_name`. */
  name: word.optional(),
  /** That the folder is there already; it has to be in any case. */
  existing_workspace: z.boolean().optional(),
  mounts: z
    .array(z.strictObject({ source: path, target: path.optional(), readonly: z.boolean().default(false) }))
    .max(31)
    .default([]),
  /** Host to service. */
  service_domains: z.record(z.string().min(1).max(253), word).default({}),
  /** Service to the header that carries its credential; `value_format` has `%s` for the value. */
  service_auth_config: z
    .record(word, z.strictObject({ header_name: word, value_format: z.string().min(1).max(512).optional() }))
    .default({}),
  credential_sources: z
    .record(
      word,
      z.strictObject({
        source: z.enum(['env', 'file']),
        path: z.string().min(1).max(4096).optional(),
        /** Of `env`: its name; by default that of the service. */
        name: z.string().min(1).max(256).optional(),
      }),
    )
    .default({}),
  policy: z.strictObject({ default: action }).optional(),
});
export type CreateVm = z.infer<typeof CreateVm>;

export const VmProxyConfig = z.strictObject({
  vm_name: word,
  policy: action.optional(),
  allow_hosts: resources,
  block_hosts: resources,
  bypass_hosts: resources,
  allow_cidrs: resources,
  block_cidrs: resources,
  bypass_cidrs: resources,
});

export interface VmSummary {
  vm_id: string;
  vm_name: string;
  agent: string;
  agent_name: string;
  workspace_dir: string;
  created_at: string;
  active: boolean;
  status: 'running' | 'stopped';
  vm_config: { socketPath: string };
}

export const CreateSandboxV2 = z.strictObject({
  agent: word,
  workspace: path.optional(),
  name: word.optional(),
  template: z.string().min(1).max(1024).optional(),
  additional_workspaces: z
    .array(z.strictObject({ dir: path, read_only: z.boolean().default(false) }))
    .max(31)
    .default([]),
  environment: z.record(z.string().regex(/^[^=\0]+$/), z.string().max(131_072)).default({}),
  cpus: z.union([z.number(), z.string()]).optional(),
  memory: z.string().max(32).optional(),
  clone: z.boolean().default(false),
  detached: z.boolean().optional(),
  display: z.string().max(256).optional(),
});
export type CreateSandboxV2 = z.infer<typeof CreateSandboxV2>;

export const ExecV2 = z.strictObject({
  cmd: z.array(z.string().max(131_072)).min(1).max(4096),
  env: z.record(z.string().regex(/^[^=\0]+$/), z.string().max(131_072)).default({}),
  working_dir: z.string().max(4096).optional(),
  user: z.string().max(128).optional(),
  privileged: z.boolean().default(false),
  tty: z.boolean().default(false),
});

export const ResizeV2 = z.strictObject({
  cols: z.int().min(1).max(65_535),
  rows: z.int().min(1).max(65_535),
});

const port = z.int().min(1).max(65_535);
const protocol = z.enum(['tcp', 'tcp4', 'tcp6']);

export const PublishV2 = z
  .array(
    z.strictObject({
      host_ip: z.string().max(64).optional(),
      host_port: z.int().min(0).max(65_535).optional(),
      protocol: protocol.optional(),
      sandbox_port: port,
    }),
  )
  .min(1)
  .max(64);

export const UnpublishV2 = z
  .array(
    z.strictObject({
      host_ip: z.string().max(64).optional(),
      host_port: port.optional(),
      protocol: protocol.optional(),
      sandbox_port: port,
    }),
  )
  .min(1)
  .max(64);

export const SaveV2 = z.strictObject({ tag: z.string().min(1).max(1024) });

export const CheckV2 = z.strictObject({
  type: z.literal('network').default('network'),
  target: z.string().min(1).max(2048),
  sandbox_id: z.string().max(128).optional(),
});
