// Every route of the HTTP API in one table: the router, the checks of what comes in, the answers and openapi.json all come from it.
// What is not described here is not served, but for the proxy to a guest's own ports (api/proxy.ts).
import { z } from 'zod';
import { ImageInfo, SystemInfo } from './admin.ts';
import { AgentInfo } from './agents.ts';
import { AuditEntry } from './audit.ts';
import * as bell from './bell.ts';
import * as vault from './credential-vault.ts';
import { diagnosticRoutes } from './diagnostic-routes.ts';
import * as execd from './execd.ts';
import { isolationRoutes, ofIsolatedSession } from './isolation-routes.ts';
import * as network from './network.ts';
import * as lifecycle from './opensandbox.ts';
import { poolRoutes } from './pool-routes.ts';
import { PublishedPort, PublishPort, UnpublishPort } from './ports.ts';
import { ProcessInfo, SignalProcess, StartProcess } from './process.ts';
import { decimal, flag, positive } from './query.ts';
import { snapshotRoutes } from './snapshot-routes.ts';
import { TemplateInfo, templateName } from './template.ts';
import type { TenantAccess } from './tenant.ts';
import { tenantRoutes } from './tenant-routes.ts';
import { volumeRoutes } from './volume-routes.ts';
import { Why } from './why.ts';
import { workerRoutes } from './worker-routes.ts';
import * as workspace from './workspace.ts';

/** Who may call it: anybody; who has the API key; or also who has the sandbox's own access token. */
export type Access = 'open' | 'key' | 'sandbox';

export interface Route {
  method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE';
  /**
   * With {names}. `execd` routes lie below /sandboxes/{sandboxId}/proxy/44772, `egress` routes below …/proxy/18080; all are served with and
   * without a leading /v1.
   */
  path: string;
  area:
    | 'sandbox'
    | 'pool'
    | 'execd'
    | 'egress'
    | 'image'
    | 'template'
    | 'agent'
    | 'workspace'
    | 'policy'
    | 'network'
    | 'secret'
    | 'bell'
    | 'audit'
    | 'worker'
    | 'project'
    | 'snapshot'
    | 'volume'
    | 'request';
  access: Access;
  /** Who with a key of a project may call it, and for what. Absent: nobody, and the answer is always the same. */
  tenant?: TenantAccess;
  summary: string;
  query?: z.ZodObject;
  /** A schema for a JSON body; or the media type of a body that the handler reads by itself. */
  body?: z.ZodType | string;
  bodyOptional?: boolean;
  /** Less than what is taken of JSON anyway. */
  bodyBytesMax?: number;
  status: number;
  /** A schema for JSON, or a media type. Nothing when absent. */
  answer?: z.ZodType | string;
  /** Sub-protocol of a WebSocket, or the empty string for none. */
  webSocket?: string;
  /** Runs until somebody ends it, so a daemon that stops does not wait for it. */
  endless?: boolean;
  /** With `follow=true` the answer is NDJSON without end: each line of this schema, and an empty line now and then to show that it lives. */
  follow?: z.ZodType;
}

const route = <const R extends Route>(it: R): R => it;

const offset = decimal(Number.MAX_SAFE_INTEGER);
const path = z.string().min(1).max(16_384);
const paths = z.object({ path: z.array(path).max(10_000).default([]) });
const onePath = z.object({ path });

const sandboxes = {
  listSandboxes: route({
    method: 'GET',
    path: '/sandboxes',
    tenant: { role: 'viewer', scope: 'own' },
    area: 'sandbox',
    access: 'key',
    summary: 'List sandboxes, newest first',
    query: z.object({
      state: z
        .array(z.string())
        .default([])
        .describe('Repeat it for one state or the other; case does not matter.'),
      metadata: z.array(z.string()).default([]).describe('k=v&k2=v2, itself URL-encoded; all must match.'),
      page: positive(1_000_000).default(1),
      pageSize: positive(200).default(20),
    }),
    status: 200,
    answer: lifecycle.ListSandboxesResponse,
  }),
  createSandbox: route({
    method: 'POST',
    path: '/sandboxes',
    tenant: { role: 'member', scope: 'own' },
    area: 'sandbox',
    access: 'key',
    summary: 'Create a sandbox; answered when it runs and its agent has answered',
    body: lifecycle.CreateSandboxRequest,
    status: 202,
    answer: lifecycle.CreateSandboxResponse,
  }),
  getSandbox: route({
    method: 'GET',
    path: '/sandboxes/{sandboxId}',
    tenant: { role: 'viewer', scope: 'sandbox' },
    area: 'sandbox',
    access: 'key',
    summary: 'Show a sandbox',
    status: 200,
    answer: lifecycle.Sandbox,
  }),
  why: route({
    method: 'GET',
    path: '/sandboxes/{sandboxId}/why',
    tenant: { role: 'viewer', scope: 'own' },
    area: 'sandbox',
    access: 'key',
    summary: 'Why a sandbox, or a command in it, came to its end; by id or name, also when it is gone',
    query: z.object({ command: z.string().max(128).optional() }),
    status: 200,
    answer: Why,
  }),
  deleteSandbox: route({
    method: 'DELETE',
    path: '/sandboxes/{sandboxId}',
    tenant: { role: 'member', scope: 'sandbox' },
    area: 'sandbox',
    access: 'key',
    summary: 'Remove a sandbox; answered when nothing of it is left',
    status: 204,
  }),
  patchMetadata: route({
    method: 'PATCH',
    path: '/sandboxes/{sandboxId}/metadata',
    tenant: { role: 'member', scope: 'sandbox' },
    area: 'sandbox',
    access: 'key',
    summary: 'Change metadata by merge patch',
    body: lifecycle.MetadataPatch,
    status: 200,
    answer: lifecycle.Sandbox,
  }),
  pauseSandbox: route({
    method: 'POST',
    path: '/sandboxes/{sandboxId}/pause',
    tenant: { role: 'member', scope: 'sandbox' },
    area: 'sandbox',
    access: 'key',
    summary: 'Freeze every process of a sandbox',
    status: 202,
  }),
  resumeSandbox: route({
    method: 'POST',
    path: '/sandboxes/{sandboxId}/resume',
    tenant: { role: 'member', scope: 'sandbox' },
    area: 'sandbox',
    access: 'key',
    summary: 'Let a paused sandbox run on',
    status: 202,
  }),
  renewExpiration: route({
    method: 'POST',
    path: '/sandboxes/{sandboxId}/renew-expiration',
    tenant: { role: 'member', scope: 'sandbox' },
    area: 'sandbox',
    access: 'key',
    summary: 'Set when a sandbox expires',
    body: lifecycle.RenewExpirationRequest,
    status: 200,
    answer: lifecycle.RenewExpirationResponse,
  }),
  getEndpoint: route({
    method: 'GET',
    path: '/sandboxes/{sandboxId}/endpoints/{port}',
    tenant: { role: 'member', scope: 'sandbox' },
    area: 'sandbox',
    access: 'key',
    summary: 'The address of a port of a sandbox, and the headers to send there',
    query: z.object({
      use_server_proxy: flag.optional(),
      expires: z
        .string()
        .regex(/^(0|[1-9][0-9]{0,19})$/, 'must be seconds since 1970, in decimal')
        .optional()
        .describe(
          'Gives a signed address of the gateway that lets in whoever has it until then: seconds since 1970.',
        ),
    }),
    status: 200,
    answer: lifecycle.Endpoint,
  }),
};

const admin = {
  health: route({
    method: 'GET',
    path: '/health',
    area: 'request',
    access: 'open',
    summary: 'Whether the daemon answers',
    status: 200,
    answer: lifecycle.HealthResponse,
  }),
  openApi: route({
    method: 'GET',
    path: '/openapi.json',
    area: 'request',
    access: 'open',
    summary: 'This document',
    status: 200,
    answer: 'application/json',
  }),
  daemonMetrics: route({
    method: 'GET',
    path: '/metrics',
    area: 'request',
    access: 'key',
    summary: "What the daemon measures, in Prometheus' text format",
    status: 200,
    answer: 'text/plain',
  }),
  reportEvent: route({
    method: 'POST',
    path: '/metrics/events',
    tenant: { role: 'viewer', scope: 'shared' },
    area: 'request',
    access: 'key',
    summary: 'Takes what clients report of themselves, and keeps nothing of it',
    body: 'application/json',
    status: 204,
  }),
  system: route({
    method: 'GET',
    path: '/system',
    area: 'request',
    access: 'key',
    summary: 'What this daemon is, and what its runtimes can do',
    status: 200,
    answer: SystemInfo,
  }),
  listImages: route({
    method: 'GET',
    path: '/images',
    tenant: { role: 'viewer', scope: 'shared' },
    area: 'image',
    access: 'key',
    summary: 'Images of the local store',
    status: 200,
    answer: z.object({ items: z.array(ImageInfo) }),
  }),
  importImage: route({
    method: 'POST',
    path: '/images',
    area: 'image',
    access: 'key',
    summary: 'Import a root file system, a `docker save` archive or an OCI layout',
    query: z.object({ name: z.string().min(1).max(255) }),
    body: 'application/octet-stream',
    status: 201,
    answer: ImageInfo,
  }),
  removeImage: route({
    method: 'DELETE',
    path: '/images/{name}',
    area: 'image',
    access: 'key',
    summary: 'Remove an image',
    status: 204,
  }),
};

/** What every execd route has in common. */
const inside = { area: 'execd', access: 'sandbox' } as const;

const commands = {
  ping: route({
    ...inside,
    method: 'GET',
    path: '/ping',
    tenant: { role: 'viewer', scope: 'sandbox' },
    summary: 'Whether the agent answers',
    status: 200,
  }),
  runCommand: route({
    ...inside,
    method: 'POST',
    path: '/command',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'Run a shell command and stream its output',
    body: execd.RunCommandRequest,
    status: 200,
    answer: 'text/event-stream',
    endless: true,
  }),
  interruptCommand: route({
    ...inside,
    method: 'DELETE',
    path: '/command',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'SIGTERM to a command and all it started; SIGKILL after three seconds',
    query: z.object({ id: z.string().min(1) }),
    status: 200,
  }),
  commandStatus: route({
    ...inside,
    method: 'GET',
    path: '/command/status/{id}',
    tenant: { role: 'viewer', scope: 'sandbox' },
    summary: 'How a command is doing',
    status: 200,
    answer: execd.CommandStatus,
  }),
  commandLogs: route({
    ...inside,
    method: 'GET',
    path: '/command/{id}/logs',
    tenant: { role: 'viewer', scope: 'sandbox' },
    summary: 'Output of a background command, from a cursor on',
    query: z.object({ cursor: offset.optional() }),
    status: 200,
    answer: 'text/plain; charset=utf-8',
  }),
  startProcess: route({
    ...inside,
    method: 'POST',
    path: '/processes',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'Start a command, to be attached to',
    body: StartProcess,
    status: 201,
    answer: ProcessInfo,
  }),
  listProcesses: route({
    ...inside,
    method: 'GET',
    path: '/processes',
    tenant: { role: 'viewer', scope: 'sandbox' },
    summary: 'Commands that run or are remembered',
    status: 200,
    answer: z.object({ items: z.array(ProcessInfo) }),
  }),
  getProcess: route({
    ...inside,
    method: 'GET',
    path: '/processes/{id}',
    tenant: { role: 'viewer', scope: 'sandbox' },
    summary: 'One command',
    status: 200,
    answer: ProcessInfo,
  }),
  signalProcess: route({
    ...inside,
    method: 'POST',
    path: '/processes/{id}/signal',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'Send a signal to a command',
    body: SignalProcess,
    status: 204,
  }),
  processLogs: route({
    ...inside,
    method: 'GET',
    path: '/processes/{id}/logs',
    tenant: { role: 'viewer', scope: 'sandbox' },
    summary: 'The output that is held, both lanes in order',
    query: z.object({ from: offset.default(0) }),
    status: 200,
    answer: 'application/octet-stream',
  }),
  attachProcess: route({
    ...inside,
    method: 'GET',
    path: '/processes/{id}/attach',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'Follow a command and talk to it',
    query: z.object({ from: offset.default(0) }),
    status: 101,
    webSocket: 'glovebox.process.v1',
    endless: true,
  }),
  createSession: route({
    ...inside,
    method: 'POST',
    path: '/session',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'Start a bash that lives from run to run',
    body: execd.CreateSessionRequest,
    bodyOptional: true,
    status: 200,
    answer: execd.CreateSessionResponse,
  }),
  runInSession: route({
    ...inside,
    method: 'POST',
    path: '/session/{id}/run',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'Run lines in a session and stream their output; runs of one session wait for each other',
    body: execd.RunInSessionRequest,
    status: 200,
    answer: 'text/event-stream',
    endless: true,
  }),
  deleteSession: route({
    ...inside,
    method: 'DELETE',
    path: '/session/{id}',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'End a session and all that it started',
    status: 200,
  }),
  createCodeContext: route({
    ...inside,
    method: 'POST',
    path: '/code/context',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'Start an interpreter that keeps what code leaves',
    body: execd.CreateCodeContextRequest,
    status: 200,
    answer: execd.CodeContext,
  }),
  listCodeContexts: route({
    ...inside,
    method: 'GET',
    path: '/code/contexts',
    tenant: { role: 'viewer', scope: 'sandbox' },
    summary: 'List contexts, of one language or of all',
    query: z.object({ language: z.string().max(64).optional() }),
    status: 200,
    answer: execd.CodeContextList,
  }),
  getCodeContext: route({
    ...inside,
    method: 'GET',
    path: '/code/contexts/{id}',
    tenant: { role: 'viewer', scope: 'sandbox' },
    summary: 'Look at a context',
    status: 200,
    answer: execd.CodeContext,
  }),
  deleteCodeContext: route({
    ...inside,
    method: 'DELETE',
    path: '/code/contexts/{id}',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'End a context and all that it started',
    status: 200,
  }),
  deleteCodeContexts: route({
    ...inside,
    method: 'DELETE',
    path: '/code/contexts',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'End all contexts of a language',
    query: z.object({ language: z.string().min(1).max(64) }),
    status: 200,
  }),
  runCode: route({
    ...inside,
    method: 'POST',
    path: '/code',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'Run code in a context and stream what it says; runs of one context wait for each other',
    body: execd.RunCodeRequest,
    status: 200,
    answer: 'text/event-stream',
    endless: true,
  }),
  interruptCode: route({
    ...inside,
    method: 'DELETE',
    path: '/code',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'Interrupt what runs in a context',
    query: z.object({ id: z.string().min(1).max(256) }),
    status: 200,
  }),
  createPty: route({
    ...inside,
    method: 'POST',
    path: '/pty',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'Prepare a terminal; its shell starts when the first client attaches',
    body: execd.CreatePtyRequest,
    bodyOptional: true,
    status: 201,
    answer: execd.CreatePtyResponse,
  }),
  getPty: route({
    ...inside,
    method: 'GET',
    path: '/pty/{id}',
    tenant: { role: 'viewer', scope: 'sandbox' },
    summary: 'How a terminal is doing',
    status: 200,
    answer: execd.PtyStatus,
  }),
  deletePty: route({
    ...inside,
    method: 'DELETE',
    path: '/pty/{id}',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'End a terminal and what runs in it',
    status: 200,
  }),
  attachPty: route({
    ...inside,
    method: 'GET',
    path: '/pty/{id}/ws',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'Attach to a terminal',
    query: z.object({ pty: flag.default(true), since: offset.optional(), takeover: flag.default(false) }),
    status: 101,
    webSocket: '',
    endless: true,
  }),
};

const files = {
  filesInfo: route({
    ...inside,
    method: 'GET',
    path: '/files/info',
    tenant: { role: 'viewer', scope: 'sandbox' },
    summary: 'Describe files',
    query: paths,
    status: 200,
    answer: execd.FileInfoMap,
  }),
  deleteFiles: route({
    ...inside,
    method: 'DELETE',
    path: '/files',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'Delete files',
    query: paths,
    status: 200,
  }),
  setPermissions: route({
    ...inside,
    method: 'POST',
    path: '/files/permissions',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'Change mode, owner and group',
    body: execd.PermissionMap,
    status: 200,
  }),
  moveFiles: route({
    ...inside,
    method: 'POST',
    path: '/files/mv',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'Rename or move files; an existing target is refused',
    body: execd.MoveList,
    status: 200,
  }),
  searchFiles: route({
    ...inside,
    method: 'GET',
    path: '/files/search',
    tenant: { role: 'viewer', scope: 'sandbox' },
    summary: 'Find files by a glob on their base name',
    query: z.object({ path, pattern: z.string().min(1).max(1024).default('**') }),
    status: 200,
    answer: execd.FileInfoList,
  }),
  replaceContents: route({
    ...inside,
    method: 'POST',
    path: '/files/replace',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'Replace every occurrence of a text; counts are answered with verbose=true only',
    query: z.object({ verbose: flag.default(false) }),
    body: execd.ReplaceMap,
    status: 200,
    answer: execd.ReplaceResult,
  }),
  uploadFiles: route({
    ...inside,
    method: 'POST',
    path: '/files/upload',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'Write files: pairs of a `metadata` part (JSON: path, mode, owner, group) and a `file` part',
    body: 'multipart/form-data',
    status: 200,
  }),
  downloadFile: route({
    ...inside,
    method: 'GET',
    path: '/files/download',
    tenant: { role: 'viewer', scope: 'sandbox' },
    summary:
      'Read a file: all, a byte range, or lines. ETag tells one content from another, If-Range notices that it has changed, and Want-Repr-Digest asks for its SHA-256',
    query: z.object({
      path,
      offset: positive(Number.MAX_SAFE_INTEGER).optional(),
      limit: positive(Number.MAX_SAFE_INTEGER).optional(),
    }),
    status: 200,
    answer: 'application/octet-stream',
  }),
  uploadState: route({
    ...inside,
    method: 'GET',
    path: '/uploads/{uploadId}',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'How much of an upload is on the disk',
    query: onePath,
    status: 200,
    answer: execd.UploadState,
  }),
  continueUpload: route({
    ...inside,
    method: 'PATCH',
    path: '/uploads/{uploadId}',
    tenant: { role: 'member', scope: 'sandbox' },
    summary:
      'Begin or continue an upload under an id of the caller (a UUID): the bytes from `offset` on. What has come is kept for a day. `complete` puts the file in place',
    query: z.object({
      path,
      offset,
      complete: flag.default(false),
      sha256: execd.sha256.optional().describe('Of the whole file, with `complete`.'),
      mode: z
        .string()
        .regex(/^[0-7]{3,4}$/, 'must be octal digits')
        .optional()
        .describe('Octal, e.g. 0644.'),
      owner: z.string().min(1).max(256).optional(),
      group: z.string().min(1).max(256).optional(),
    }),
    body: 'application/octet-stream',
    status: 200,
    answer: execd.UploadState,
  }),
  dropUpload: route({
    ...inside,
    method: 'DELETE',
    path: '/uploads/{uploadId}',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'Give an upload up: what has come of it is removed',
    query: onePath,
    status: 204,
  }),
  listDirectory: route({
    ...inside,
    method: 'GET',
    path: '/directories/list',
    tenant: { role: 'viewer', scope: 'sandbox' },
    summary: 'List a directory',
    query: z.object({ path, depth: decimal(64).default(1) }),
    status: 200,
    answer: execd.FileInfoList,
  }),
  makeDirectories: route({
    ...inside,
    method: 'POST',
    path: '/directories',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'Make directories and their parents',
    body: execd.PermissionMap,
    status: 200,
  }),
  deleteDirectories: route({
    ...inside,
    method: 'DELETE',
    path: '/directories',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'Delete directories and all below',
    query: paths,
    status: 200,
  }),
  packArchive: route({
    ...inside,
    method: 'GET',
    path: '/archive',
    tenant: { role: 'viewer', scope: 'sandbox' },
    summary: 'A file or folder as a tar archive',
    query: onePath,
    status: 200,
    answer: 'application/x-tar',
  }),
  unpackArchive: route({
    ...inside,
    method: 'PUT',
    path: '/archive',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'Unpack a tar archive below a folder',
    query: onePath,
    body: 'application/x-tar',
    status: 204,
  }),
  metrics: route({
    ...inside,
    method: 'GET',
    path: '/metrics',
    tenant: { role: 'viewer', scope: 'sandbox' },
    summary: 'What the sandbox uses',
    status: 200,
    answer: execd.Metrics,
  }),
  watchMetrics: route({
    ...inside,
    method: 'GET',
    path: '/metrics/watch',
    tenant: { role: 'viewer', scope: 'sandbox' },
    summary: 'What the sandbox uses, every second',
    status: 200,
    answer: 'text/event-stream',
    endless: true,
  }),
};

/** Of what an isolated session sees. */
const isolatedFiles = {
  isolatedFilesInfo: ofIsolatedSession(files.filesInfo),
  isolatedDeleteFiles: ofIsolatedSession(files.deleteFiles),
  isolatedSetPermissions: ofIsolatedSession(files.setPermissions),
  isolatedMoveFiles: ofIsolatedSession(files.moveFiles),
  isolatedSearchFiles: ofIsolatedSession(files.searchFiles),
  isolatedReplaceContents: {
    ...ofIsolatedSession(files.replaceContents),
    summary:
      'Replace every occurrence of a text, as an isolated session sees its files; counts are always answered',
  },
  isolatedUploadFiles: ofIsolatedSession(files.uploadFiles),
  isolatedDownloadFile: ofIsolatedSession(files.downloadFile),
  isolatedListDirectory: ofIsolatedSession(files.listDirectory),
  isolatedMakeDirectories: ofIsolatedSession(files.makeDirectories),
  isolatedDeleteDirectories: ofIsolatedSession(files.deleteDirectories),
};

const oneOf = (area: Route['area'], summary: string) => ({ area, summary, access: 'key' }) as const;
const inRuntime = z.object({
  runtime: z.string().min(1).max(64).optional().describe('The default one when absent.'),
});
const ofWorkspace = z.object({
  path: z.string().max(4096).optional().describe('The workspace; the first one when absent.'),
});

const keeping = {
  startSandbox: route({
    ...oneOf('sandbox', 'Start a stopped sandbox again; one that runs is left as it is'),
    method: 'POST',
    path: '/sandboxes/{sandboxId}/start',
    tenant: { role: 'member', scope: 'sandbox' },
    status: 200,
    answer: lifecycle.Sandbox,
  }),
  stopSandbox: route({
    ...oneOf('sandbox', 'End what runs in a kept sandbox; what it wrote stays'),
    method: 'POST',
    path: '/sandboxes/{sandboxId}/stop',
    tenant: { role: 'member', scope: 'sandbox' },
    status: 200,
    answer: lifecycle.Sandbox,
  }),
  saveSandbox: route({
    ...oneOf('sandbox', 'Make a template of what is on its disk, without its workspaces'),
    method: 'POST',
    path: '/sandboxes/{sandboxId}/save',
    body: z.strictObject({ name: templateName }),
    status: 201,
    answer: TemplateInfo,
  }),
  holdSandbox: route({
    ...oneOf(
      'sandbox',
      'As long as this is open somebody is attached, and the sandbox does not stop by itself',
    ),
    method: 'GET',
    path: '/sandboxes/{sandboxId}/hold',
    tenant: { role: 'member', scope: 'sandbox' },
    status: 101,
    webSocket: '',
    endless: true,
  }),
  connectPort: route({
    ...oneOf(
      'sandbox',
      'A TCP connection to a port at its loopback: bytes in binary messages, and the text {"type":"end"} where one direction ends',
    ),
    method: 'GET',
    path: '/sandboxes/{sandboxId}/ports/{port}/connect',
    tenant: { role: 'member', scope: 'sandbox' },
    status: 101,
    webSocket: '',
    endless: true,
  }),
  listPorts: route({
    ...oneOf('sandbox', 'Ports that it has on the host'),
    method: 'GET',
    path: '/sandboxes/{sandboxId}/ports',
    tenant: { role: 'viewer', scope: 'sandbox' },
    status: 200,
    answer: z.object({ items: z.array(PublishedPort) }),
  }),
  publishPorts: route({
    ...oneOf('sandbox', 'Publish ports on the host: all of them, or none'),
    method: 'POST',
    path: '/sandboxes/{sandboxId}/ports',
    tenant: { role: 'member', scope: 'sandbox' },
    body: z.array(PublishPort).min(1).max(64),
    status: 201,
    answer: z.object({ items: z.array(PublishedPort) }),
  }),
  unpublishPorts: route({
    ...oneOf('sandbox', 'Take ports off the host; a sandbox port alone stands for all that lead to it'),
    method: 'POST',
    path: '/sandboxes/{sandboxId}/ports/unpublish',
    tenant: { role: 'member', scope: 'sandbox' },
    body: z.array(UnpublishPort).min(1).max(64),
    status: 200,
    answer: z.object({ unpublished: z.int() }),
  }),
};

const agents = {
  listAgents: route({
    ...oneOf('agent', 'Agents that sandboxes can be made for'),
    method: 'GET',
    path: '/agents',
    tenant: { role: 'viewer', scope: 'own' },
    status: 200,
    answer: z.object({ items: z.array(AgentInfo) }),
  }),
  getAgent: route({
    ...oneOf('agent', 'One of them'),
    method: 'GET',
    path: '/agents/{name}',
    tenant: { role: 'viewer', scope: 'own' },
    status: 200,
    answer: AgentInfo,
  }),
};

const templates = {
  listTemplates: route({
    ...oneOf('template', 'Templates of all runtimes that can be asked'),
    method: 'GET',
    path: '/templates',
    tenant: { role: 'viewer', scope: 'shared' },
    status: 200,
    answer: z.object({ items: z.array(TemplateInfo) }),
  }),
  buildTemplate: route({
    ...oneOf('template', 'Build a template; the answer tells of its progress and its end'),
    method: 'POST',
    path: '/templates/build',
    query: inRuntime.extend({
      name: templateName,
      file: z
        .string()
        .min(1)
        .max(4096)
        .default('Dockerfile')
        .describe('In the context: a Dockerfile, or a template file when it ends in .toml.'),
      target: z.string().max(128).optional().describe('Of a Dockerfile.'),
      noCache: flag.optional(),
      network: flag
        .optional()
        .describe('Let the steps of a Dockerfile reach what the Docker engine reaches, past the policy.'),
      arg: z.array(z.string().max(65_536)).default([]).describe('KEY=VALUE, of a Dockerfile.'),
    }),
    body: 'application/x-tar',
    status: 200,
    answer: 'application/x-ndjson',
  }),
  loadTemplate: route({
    ...oneOf('template', 'A template from a `docker save` archive, an OCI layout or a root file system'),
    method: 'POST',
    path: '/templates/load',
    query: inRuntime.extend({ name: templateName }),
    body: 'application/octet-stream',
    status: 201,
    answer: TemplateInfo,
  }),
  exportTemplate: route({
    ...oneOf('template', 'A template as a tar that can be loaded elsewhere'),
    method: 'GET',
    path: '/templates/{name}/export',
    query: inRuntime,
    status: 200,
    answer: 'application/x-tar',
  }),
  removeTemplate: route({
    ...oneOf('template', 'Remove a template'),
    method: 'DELETE',
    path: '/templates/{name}',
    query: inRuntime,
    status: 204,
  }),
};

const workspaces = {
  listWorkspaces: route({
    ...oneOf('workspace', 'Folders of the host in a sandbox'),
    method: 'GET',
    path: '/sandboxes/{sandboxId}/workspaces',
    status: 200,
    answer: z.object({ items: z.array(workspace.WorkspaceInfo) }),
  }),
  listChanges: route({
    ...oneOf('workspace', 'What the guest did to an overlaid folder'),
    method: 'GET',
    path: '/sandboxes/{sandboxId}/workspaces/changes',
    query: ofWorkspace,
    status: 200,
    answer: z.object({ items: z.array(workspace.WorkspaceChange) }),
  }),
  diffWorkspace: route({
    ...oneOf('workspace', 'The same as a patch in the form of git'),
    method: 'GET',
    path: '/sandboxes/{sandboxId}/workspaces/diff',
    query: ofWorkspace,
    status: 200,
    answer: 'text/x-diff',
  }),
  applyWorkspace: route({
    ...oneOf(
      'workspace',
      'Bring changes of an overlay to the host; what both sides changed is merged or left',
    ),
    method: 'POST',
    path: '/sandboxes/{sandboxId}/workspaces/apply',
    body: workspace.ApplyWorkspace,
    bodyBytesMax: 80 * 1024 * 1024,
    status: 200,
    answer: workspace.ApplyResult,
  }),
  discardWorkspace: route({
    ...oneOf('workspace', 'Forget changes of an overlay'),
    method: 'POST',
    path: '/sandboxes/{sandboxId}/workspaces/discard',
    body: workspace.DiscardWorkspace,
    status: 200,
    answer: z.object({ discarded: z.array(z.string()) }),
  }),
  listCheckpoints: route({
    ...oneOf('workspace', 'States of the overlays that can be gone back to, newest last'),
    method: 'GET',
    path: '/sandboxes/{sandboxId}/workspaces/checkpoints',
    status: 200,
    answer: z.object({ items: z.array(workspace.Checkpoint) }),
  }),
  addCheckpoint: route({
    ...oneOf('workspace', 'Remember the state of the overlays'),
    method: 'POST',
    path: '/sandboxes/{sandboxId}/workspaces/checkpoints',
    body: z.strictObject({ label: z.string().max(200).default('') }),
    status: 201,
    answer: workspace.Checkpoint,
  }),
  undoWorkspace: route({
    ...oneOf('workspace', 'Go back to a checkpoint'),
    method: 'POST',
    path: '/sandboxes/{sandboxId}/workspaces/undo',
    body: workspace.UndoWorkspace,
    status: 200,
    answer: z.object({ checkpoint: workspace.Checkpoint, restored: z.array(z.string()) }),
  }),
  syncStatus: route({
    ...oneOf('workspace', 'How the synchronised folders are'),
    method: 'GET',
    path: '/sandboxes/{sandboxId}/workspaces/sync',
    status: 200,
    answer: workspace.SyncStatus,
  }),
};

/** Id of a sandbox, the beginning of one, or a name. */
const reference = z.string().min(1).max(128);
const oneSandbox = z.object({ sandbox: reference.optional() });
const ofLog = oneSandbox.extend({ limit: decimal(100_000).default(100), follow: flag.default(false) });

const policies = {
  listRules: route({
    method: 'GET',
    path: '/policy/rules',
    tenant: { role: 'viewer', scope: 'own' },
    area: 'policy',
    access: 'key',
    summary: 'Rules of the network policy: all, or those that hold for one sandbox',
    query: oneSandbox,
    status: 200,
    answer: z.object({ initialized: z.boolean(), items: z.array(network.Rule) }),
  }),
  addRule: route({
    method: 'POST',
    path: '/policy/rules',
    tenant: { role: 'member', scope: 'own' },
    area: 'policy',
    access: 'key',
    summary: 'Add a rule; it holds at once, for open connections too',
    body: network.NewRule,
    status: 201,
    answer: network.Rule,
  }),
  removeRule: route({
    method: 'DELETE',
    path: '/policy/rules/{ruleId}',
    tenant: { role: 'member', scope: 'own' },
    area: 'policy',
    access: 'key',
    summary: 'Remove a rule',
    status: 204,
  }),
  initPolicy: route({
    method: 'POST',
    path: '/policy/init',
    area: 'policy',
    access: 'key',
    summary: 'Begin with the rules of a preset',
    body: z.strictObject({ preset: z.string().min(1).max(64) }),
    status: 200,
    answer: z.object({ items: z.array(network.Rule) }),
  }),
  resetPolicy: route({
    method: 'POST',
    path: '/policy/reset',
    area: 'policy',
    access: 'key',
    summary: 'Forget all global rules',
    body: z.strictObject({}),
    bodyOptional: true,
    status: 204,
  }),
  listPresets: route({
    method: 'GET',
    path: '/policy/presets',
    tenant: { role: 'viewer', scope: 'shared' },
    area: 'policy',
    access: 'key',
    summary: 'Presets to begin with',
    status: 200,
    answer: z.object({ items: z.array(network.Preset) }),
  }),
  checkPolicy: route({
    method: 'POST',
    path: '/policy/check',
    tenant: { role: 'viewer', scope: 'own' },
    area: 'policy',
    access: 'key',
    summary: 'Tell what the policy would say, and why',
    body: network.PolicyCheck,
    status: 200,
    answer: network.PolicyAnswer,
  }),
  learnPolicy: route({
    method: 'POST',
    path: '/policy/learn',
    tenant: { role: 'viewer', scope: 'own' },
    area: 'policy',
    access: 'key',
    summary: 'The least rules that allow what the log shows as allowed, proved by a replay of it',
    body: network.LearnPolicy,
    status: 200,
    answer: network.LearnedPolicy,
  }),
};

const networks = {
  networkLog: route({
    method: 'GET',
    path: '/network/log',
    tenant: { role: 'viewer', scope: 'own' },
    area: 'network',
    access: 'key',
    summary:
      'What sandboxes tried to reach, newest last; with follow=true those entries first, then new ones',
    query: ofLog,
    status: 200,
    answer: z.object({ items: z.array(network.LogEntry) }),
    follow: network.LogEntry,
  }),
  listQuestions: route({
    method: 'GET',
    path: '/network/questions',
    tenant: { role: 'viewer', scope: 'own' },
    area: 'network',
    access: 'key',
    summary: 'Connections that wait for the answer of a person',
    query: z.object({ follow: flag.default(false) }),
    status: 200,
    answer: z.object({ items: z.array(network.Question) }),
    follow: network.Question,
  }),
  answerQuestion: route({
    method: 'POST',
    path: '/network/questions/{questionId}',
    tenant: { role: 'member', scope: 'own' },
    area: 'network',
    access: 'key',
    summary: 'Answer a question',
    body: network.Answer,
    status: 204,
  }),
  getProxyConfig: route({
    method: 'GET',
    path: '/sandboxes/{sandboxId}/network',
    tenant: { role: 'viewer', scope: 'sandbox' },
    area: 'network',
    access: 'key',
    summary: 'The proxy configuration of a sandbox',
    status: 200,
    answer: network.ProxyConfig,
  }),
  changeProxyConfig: route({
    method: 'PATCH',
    path: '/sandboxes/{sandboxId}/network',
    area: 'network',
    access: 'key',
    summary: 'Change the proxy configuration of a sandbox',
    body: network.ProxyConfigChange,
    status: 200,
    answer: network.ProxyConfig,
  }),
};

const secrets = {
  listSecrets: route({
    method: 'GET',
    path: '/secrets',
    area: 'secret',
    access: 'key',
    summary: 'Secrets without their values: all, or those that one sandbox may use',
    query: oneSandbox,
    status: 200,
    answer: z.object({ items: z.array(network.SecretInfo) }),
  }),
  setSecret: route({
    method: 'PUT',
    path: '/secrets',
    area: 'secret',
    access: 'key',
    summary: 'Store a secret, in place of one of the same name and scope; only by programs of the same host',
    body: network.SetSecret,
    status: 200,
    answer: network.SecretInfo,
  }),
  removeSecret: route({
    method: 'DELETE',
    path: '/secrets/{secretId}',
    area: 'secret',
    access: 'key',
    summary: 'Remove a secret',
    status: 204,
  }),
};

/** What every route about the bell has in common. */
const ofBell = { area: 'bell', access: 'key' } as const;

const bells = {
  bellStatus: route({
    ...ofBell,
    method: 'GET',
    path: '/bell',
    summary: 'What sandboxes may ask of the host, and where',
    status: 200,
    answer: bell.BellStatus,
  }),
  setBellDecision: route({
    ...ofBell,
    method: 'PUT',
    path: '/bell/decisions',
    summary:
      "Allow an action, ask about it or deny it, for one sandbox or for all; only by the daemon's own user",
    body: bell.SetBellDecision,
    status: 200,
    answer: bell.BellStatus,
  }),
  forgetBellDecision: route({
    ...ofBell,
    method: 'DELETE',
    path: '/bell/decisions',
    summary: "Forget a decision, so that what else holds does; only by the daemon's own user",
    query: oneSandbox.extend({ action: bell.bellActionName }),
    status: 204,
  }),
  bellLog: route({
    ...ofBell,
    method: 'GET',
    path: '/bell/log',
    summary: 'What was asked of the host, newest last; with follow=true those entries first, then new ones',
    query: ofLog,
    status: 200,
    answer: z.object({ items: z.array(bell.BellEntry) }),
    follow: bell.BellEntry,
  }),
  listBellTokens: route({
    ...ofBell,
    method: 'GET',
    path: '/bell/tokens',
    summary: 'Names of the tokens of callers that are no sandboxes of ours',
    status: 200,
    answer: z.object({ items: z.array(bell.BellToken) }),
  }),
  addBellToken: route({
    ...ofBell,
    method: 'POST',
    path: '/bell/tokens',
    summary: "Make a token, which is shown this once; only by the daemon's own user",
    body: bell.NewBellToken,
    status: 201,
    answer: bell.BellToken.extend({ token: z.string() }),
  }),
  removeBellToken: route({
    ...ofBell,
    method: 'DELETE',
    path: '/bell/tokens/{name}',
    summary: "Take a token back; only by the daemon's own user",
    status: 204,
  }),
};

const audits = {
  auditLog: route({
    method: 'GET',
    path: '/audit/log',
    area: 'audit',
    access: 'key',
    summary:
      'Who changed something through this API, newest last; with follow=true those entries first, then new ones',
    query: ofLog,
    status: 200,
    answer: z.object({ items: z.array(AuditEntry) }),
    follow: AuditEntry,
  }),
};

/** What every route of OpenSandbox's egress API has in common. */
const egress = { area: 'egress', access: 'sandbox' } as const;
const egressBodyBytesMax = 1024 * 1024;
const replacePolicy = {
  ...egress,
  path: '/policy',
  tenant: { role: 'member', scope: 'sandbox' },
  body: lifecycle.ReplaceNetworkPolicy,
  bodyOptional: true,
  bodyBytesMax: egressBodyBytesMax,
  status: 200,
  answer: lifecycle.PolicyStatusResponse,
} as const;

const egressPolicies = {
  egressHealth: route({
    ...egress,
    method: 'GET',
    path: '/healthz',
    tenant: { role: 'viewer', scope: 'sandbox' },
    summary: 'Whether the way out is ready',
    status: 200,
    answer: 'text/plain; charset=utf-8',
  }),
  getEgressPolicy: route({
    ...egress,
    method: 'GET',
    path: '/policy',
    tenant: { role: 'viewer', scope: 'sandbox' },
    summary: "The sandbox's own network policy",
    status: 200,
    answer: lifecycle.PolicyStatusResponse,
  }),
  replaceEgressPolicy: route({
    ...replacePolicy,
    method: 'POST',
    summary: 'Replace the policy; nothing, null or {} denies everything',
  }),
  putEgressPolicy: route({ ...replacePolicy, method: 'PUT', summary: 'The same as POST' }),
  patchEgressPolicy: route({
    ...egress,
    method: 'PATCH',
    path: '/policy',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'Put rules before those that are there, in place of those with the same targets',
    body: lifecycle.PatchNetworkRules,
    bodyBytesMax: egressBodyBytesMax,
    status: 200,
    answer: lifecycle.PolicyStatusResponse,
  }),
  deleteEgressRules: route({
    ...egress,
    method: 'DELETE',
    path: '/policy',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'Remove the rules of these targets',
    body: lifecycle.DeleteNetworkRules,
    bodyBytesMax: egressBodyBytesMax,
    status: 200,
    answer: lifecycle.PolicyStatusResponse,
  }),
};

const credentialVault = {
  createCredentialVault: route({
    ...egress,
    method: 'POST',
    path: '/credential-vault',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: "Make the sandbox's credential vault",
    body: vault.CredentialVaultCreate,
    bodyBytesMax: egressBodyBytesMax,
    status: 201,
    answer: vault.CredentialVaultState,
  }),
  getCredentialVault: route({
    ...egress,
    method: 'GET',
    path: '/credential-vault',
    tenant: { role: 'viewer', scope: 'sandbox' },
    summary: 'What the vault holds, without values',
    status: 200,
    answer: vault.CredentialVaultState,
  }),
  patchCredentialVault: route({
    ...egress,
    method: 'PATCH',
    path: '/credential-vault',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'Change credentials and bindings, all or nothing',
    body: vault.CredentialVaultMutation,
    bodyBytesMax: egressBodyBytesMax,
    status: 200,
    answer: vault.CredentialVaultState,
  }),
  deleteCredentialVault: route({
    ...egress,
    method: 'DELETE',
    path: '/credential-vault',
    tenant: { role: 'member', scope: 'sandbox' },
    summary: 'Remove the vault and all that is in it',
    status: 204,
  }),
  listCredentials: route({
    ...egress,
    method: 'GET',
    path: '/credential-vault/credentials',
    tenant: { role: 'viewer', scope: 'sandbox' },
    summary: 'Credentials, without values',
    status: 200,
    answer: vault.CredentialVaultState.pick({ revision: true, credentials: true }),
  }),
  getCredential: route({
    ...egress,
    method: 'GET',
    path: '/credential-vault/credentials/{name}',
    tenant: { role: 'viewer', scope: 'sandbox' },
    summary: 'One credential, without its value',
    status: 200,
    answer: vault.CredentialMetadata,
  }),
  listBindings: route({
    ...egress,
    method: 'GET',
    path: '/credential-vault/bindings',
    tenant: { role: 'viewer', scope: 'sandbox' },
    summary: 'Bindings of credentials',
    status: 200,
    answer: vault.CredentialVaultState.pick({ revision: true, bindings: true }),
  }),
  getBinding: route({
    ...egress,
    method: 'GET',
    path: '/credential-vault/bindings/{name}',
    tenant: { role: 'viewer', scope: 'sandbox' },
    summary: 'One binding',
    status: 200,
    answer: vault.CredentialBindingMetadata,
  }),
};

export const routes = {
  ...sandboxes,
  ...keeping,
  ...agents,
  ...templates,
  ...workspaces,
  ...admin,
  ...policies,
  ...networks,
  ...secrets,
  ...bells,
  ...audits,
  ...snapshotRoutes,
  ...workerRoutes,
  ...tenantRoutes,
  ...volumeRoutes,
  ...diagnosticRoutes,
  ...poolRoutes,
  ...commands,
  ...files,
  ...isolationRoutes,
  ...isolatedFiles,
  ...egressPolicies,
  ...credentialVault,
};
export type Routes = typeof routes;
export type OperationId = keyof Routes;

/** What no version will have, and the status that OpenSandbox gives it. */
export interface Never {
  status: number;
  why: string;
}

/**
 * Parts of OpenSandbox that this build does not have: answered 501, or what OpenSandbox has for it, rather than 404, so that a caller knows it is not a
 * typing error.
 */
export const absent: { area: Route['area']; path: RegExp; what: string; never?: Never }[] = [
  {
    area: 'execd',
    path: /^\/v1\/isolated\/session\/[^/]+\/(diff|commit)$/,
    what: 'What isolated sessions have changed',
    never: {
      status: 503,
      why: 'what an isolated session has changed in its layer is neither listed nor brought over: read it through the files of the session, and write what is to stay to the workspace',
    },
  },
];

const bases: Partial<Record<Route['area'], string>> = {
  execd: `/sandboxes/{sandboxId}/proxy/${lifecycle.execdPort}`,
  egress: `/sandboxes/{sandboxId}/proxy/${lifecycle.egressPort}`,
};

/** The path below the root, with {names}. */
export function fullPathOf(it: Route): string {
  return (bases[it.area] ?? '') + it.path;
}
