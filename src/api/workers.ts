// Our own routes about machines that dial in: who may, who is there, and what can be done on many of them at once.
import type { IncomingMessage } from 'node:http';
import { webSocketProtocol } from '../contract/guest-wire.ts';
import type {
  Broadcast,
  BroadcastResult,
  Enrolled,
  EnrolmentInfo,
  EnrolmentToken,
  EnrolRequest,
  NewEnrolment,
  NewSnapshot,
  PatchWorker,
  RestoreSnapshot,
  SnapshotInfo,
  WorkerInfo,
  WorkerStats,
} from '../contract/worker.ts';
import { sanddProtocol, sanddStatsOf } from '../contract/worker.ts';
import { Failure } from '../lib/failure.ts';
import type { ApiOptions, Handlers } from './handlers.ts';
import { sendLines } from './lines.ts';
import { Refusal } from './refusal.ts';
import type { Upgrade } from './wire.ts';

/** Snapshots of folders of one worker, kept there. Failure('unavailable') while it is not connected, Failure('not-found') for ids unknown. */
export interface WorkerSnapshots {
  create(request: NewSnapshot, signal: AbortSignal): Promise<SnapshotInfo>;
  list(filter: { tags: string[] }, signal: AbortSignal): Promise<SnapshotInfo[]>;
  get(id: string, signal: AbortSignal): Promise<SnapshotInfo>;
  setTags(id: string, tags: string[], signal: AbortSignal): Promise<SnapshotInfo>;
  remove(id: string, signal: AbortSignal): Promise<void>;
  restore(id: string, request: RestoreSnapshot, signal: AbortSignal): Promise<SnapshotInfo>;
}

/** What the API can ask about workers. Failure('not-found') for ids unknown, everywhere. */
export interface WorkerService {
  /** Failure('conflict') when there is a worker of that id and it is not to be replaced. */
  addEnrolment(request: NewEnrolment): EnrolmentToken;
  enrolments(): EnrolmentInfo[];
  removeEnrolment(id: string): void;
  /** Failure('unauthenticated') for tokens wrong, used or expired, which all look the same; Failure('exhausted') with details.retryAfterMs. */
  enrol(request: EnrolRequest, address: string): Enrolled;
  list(labels: Record<string, string>): WorkerInfo[];
  get(id: string): WorkerInfo;
  patch(id: string, change: PatchWorker): WorkerInfo;
  /** Failure('conflict') while sandboxes are on it. */
  remove(id: string): void;
  stats(): WorkerStats;
  /** In any order, each once, as they come; ends when all have answered. */
  broadcast(request: Broadcast, signal: AbortSignal): AsyncIterable<BroadcastResult>;
  snapshots(id: string): WorkerSnapshots;
  /** Whose handshake it is, checked before it is answered; then answers it. Resolves when the connection is over. */
  connect(request: IncomingMessage, takeOver: () => Upgrade, signal: AbortSignal): Promise<void>;
}

/** Of pairs `k=v`. Failure('invalid'). */
export function labelsOf(pairs: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    pairs.map((pair) => {
      const at = pair.indexOf('=');
      if (at < 1)
        throw new Failure('invalid', `label ${JSON.stringify(pair.slice(0, 200))}: must be KEY=VALUE`);
      return [pair.slice(0, at), pair.slice(at + 1)];
    }),
  );
}

type WorkerHandlers = Handlers<
  | ('connectWorker' | 'enrolWorker' | 'addEnrolment' | 'listEnrolments' | 'removeEnrolment')
  | (
      | 'listWorkers'
      | 'workerStats'
      | 'sanddStats'
      | 'broadcast'
      | 'getWorker'
      | 'patchWorker'
      | 'removeWorker'
    )
  | ('createWorkerSnapshot' | 'listWorkerSnapshots' | 'getWorkerSnapshot' | 'patchWorkerSnapshot')
  | ('removeWorkerSnapshot' | 'restoreWorkerSnapshot')
>;

export function workerHandlers({ workers: taken }: ApiOptions): WorkerHandlers {
  const workers = taken ?? none();
  const snapshots = (params: Record<string, string>) => workers.snapshots(params.workerId ?? '');
  return {
    connectWorker: async ({ exchange, takeOver }) => {
      refuseOtherProtocols(exchange.request);
      await workers.connect(exchange.request, takeOver, exchange.signal);
      return 'taken' as const;
    },
    enrolWorker: ({ body, exchange }) => ({
      status: 201,
      json: workers.enrol(body, exchange.request.socket.remoteAddress ?? ''),
    }),
    addEnrolment: ({ body }) => ({ status: 201, json: workers.addEnrolment(body) }),
    listEnrolments: () => ({ status: 200, json: { items: workers.enrolments() } }),
    removeEnrolment: ({ params }) => {
      workers.removeEnrolment(params.id ?? '');
      return { status: 204 };
    },
    listWorkers: ({ query }) => ({ status: 200, json: { items: workers.list(labelsOf(query.label)) } }),
    sanddStats: () => ({ status: 200, json: sanddStatsOf(workers.stats()) }),
    workerStats: () => ({ status: 200, json: workers.stats() }),
    broadcast: ({ body, exchange }) => sendLines(exchange, ended(workers.broadcast(body, exchange.signal))),
    getWorker: ({ params }) => ({ status: 200, json: workers.get(params.workerId ?? '') }),
    patchWorker: ({ params, body }) => ({ status: 200, json: workers.patch(params.workerId ?? '', body) }),
    removeWorker: ({ params }) => {
      workers.remove(params.workerId ?? '');
      return { status: 204 };
    },
    createWorkerSnapshot: async ({ params, body, exchange }) => ({
      status: 201,
      json: await snapshots(params).create(body, exchange.signal),
    }),
    listWorkerSnapshots: async ({ params, query, exchange }) => ({
      status: 200,
      json: { items: await snapshots(params).list({ tags: query.tag }, exchange.signal) },
    }),
    getWorkerSnapshot: async ({ params, exchange }) => ({
      status: 200,
      json: await snapshots(params).get(params.snapshotId ?? '', exchange.signal),
    }),
    patchWorkerSnapshot: async ({ params, body, exchange }) => ({
      status: 200,
      json: await snapshots(params).setTags(params.snapshotId ?? '', body.tags, exchange.signal),
    }),
    removeWorkerSnapshot: async ({ params, exchange }) => {
      await snapshots(params).remove(params.snapshotId ?? '', exchange.signal);
      return { status: 204 };
    },
    restoreWorkerSnapshot: async ({ params, body, exchange }) => ({
      status: 200,
      json: await snapshots(params).restore(
        params.snapshotId ?? '',
        body ?? { replace: false },
        exchange.signal,
      ),
    }),
  };
}

/** Another generation of workers hears which one this is, rather than a connection that closes. */
function refuseOtherProtocols(request: IncomingMessage): void {
  const offered = (request.headers['sec-websocket-protocol'] ?? '').split(',').map((it) => it.trim());
  if (offered.includes(webSocketProtocol) || offered.includes(sanddProtocol)) return;
  throw new Refusal(
    'invalid',
    `workers of this controller speak ${webSocketProtocol}; ${offered.join(', ').slice(0, 200) || 'nothing'} was offered`,
    {
      status: 426,
      headers: { Upgrade: 'websocket', 'Sec-WebSocket-Protocol': webSocketProtocol },
      hint: 'Upgrade the older of the two.',
    },
  );
}

/** With a last line that says it is whole, for a stream of lines can be cut off anywhere. */
async function* ended(
  results: AsyncIterable<BroadcastResult>,
): AsyncIterable<BroadcastResult | { end: true }> {
  yield* results;
  yield { end: true };
}

function none(): WorkerService {
  return new Proxy({} as WorkerService, {
    get: () => () => {
      throw new Failure('unsupported', 'this daemon takes no workers', {
        hint: 'Set [workers] enabled = true in its configuration.',
      });
    },
  });
}
