// The public face of the package: what is exported here is what users may rely on.
export type { AgentDefinition, AgentInfo, Agents } from './agents.ts';
export type { Audit, AuditEntry, AuditLogOptions } from './audit.ts';
export type { Bell, BellDecision, BellEntry, BellLogOptions, BellStatus, BellToken } from './bell.ts';
export {
  type CreateOptions,
  type Images,
  type ListOptions,
  type NetworkPolicy,
  type Resources,
  SandboxClient,
  type SetupFile,
  type SetupStep,
  type Volume,
} from './client.ts';
export type { ConnectionOptions } from './connection.ts';
export {
  AbortError,
  AuthenticationError,
  CommandError,
  CommandNotFoundError,
  ConflictError,
  type ErrorCode,
  type ErrorDetails,
  FileError,
  NotFoundError,
  PermissionError,
  ProtocolError,
  QuotaError,
  SandboxError,
  SandboxLostError,
  TimeoutError,
  UnavailableError,
  UnknownOutcomeError,
  UnsupportedError,
  ValidationError,
} from './errors.ts';
export type { DownloadOptions, FileContent, Files, ReadOptions, WriteOptions } from './files.ts';
export type { Hold } from './hold.ts';
export type {
  Answer,
  LogEntry,
  LogOptions,
  Network,
  ProxyConfig,
  ProxyConfigChange,
  Question,
  SandboxNetwork,
} from './network.ts';
export type {
  CheckOptions,
  LearnedPolicy,
  LearnOptions,
  NewRule,
  Policy,
  PolicyAnswer,
  Preset,
  Rule,
  RuleDecision,
  RuleDetails,
  RuleList,
} from './policy.ts';
export type { NewPool, PoolCapacity, PoolInfo, PoolOptions, Pools, PoolTemplate } from './pools.ts';
export type { PortAddress, PortConnection, Ports } from './ports.ts';
export {
  type OutputEvent,
  type OutputPiece,
  Process,
  type ProcessEvent,
  type SignalOptions,
  type StartOptions,
  type TerminalSize,
} from './process.ts';
export type {
  NewProjectKey,
  NewQuotas,
  ProjectInfo,
  ProjectKey,
  Projects,
  Quotas,
  Role,
} from './projects.ts';
export type { Published, PublishedPort, UnpublishPort } from './published.ts';
export type { RunOptions, RunResult } from './run.ts';
export { type Command, type ForkOptions, Sandbox } from './sandbox.ts';
export type { SecretBinding, SecretInfo, SecretSource, Secrets, SetSecret } from './secrets.ts';
export { quote } from './shell.ts';
export type {
  CreateSnapshotOptions,
  ListSnapshotsOptions,
  SnapshotInfo,
  SnapshotState,
  Snapshots,
} from './snapshots.ts';
export { type BuildEvent, type BuildOptions, Templates } from './templates.ts';
export type { TransferProgress } from './transfers.ts';
export { type Duration, milliseconds, type Size } from './units.ts';
export type { VolumeInfo, Volumes } from './volumes.ts';
export type { Why, WhyCommand } from './why.ts';
export type {
  ExitStatus,
  FileInfo,
  ImageInfo,
  PortMapping,
  ProcessInfo,
  RuntimeInfo,
  SandboxInfo,
  SandboxLimits,
  SandboxMetrics,
  SandboxState,
  SystemInfo,
  TemplateInfo,
  Workspace,
} from './wire.ts';
export type {
  BroadcastOptions,
  BroadcastResult,
  Enrolment,
  WorkerCapability,
  WorkerInfo,
  WorkerSnapshot,
  WorkerSnapshots,
  WorkerStats,
  Workers,
} from './workers.ts';
export type {
  ApplyOptions,
  ApplyResult,
  SyncedWorkspace,
  WorkspaceChange,
  WorkspaceCheckpoint,
  WorkspaceDetails,
  Workspaces,
} from './workspaces.ts';
