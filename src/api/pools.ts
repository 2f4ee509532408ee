// Pools: requests to calls of the service. The shapes are those of contract/pool.ts, the words of errors those of OpenSandbox's server for Kubernetes.
import type { NewPool, PoolChange, PoolInfo } from '../contract/pool.ts';
import { Failure } from '../lib/failure.ts';
import type { CreateRequest } from '../sandbox/sandbox.ts';
import type { ApiOptions, Handlers } from './handlers.ts';
import { Refusal } from './refusal.ts';

/** See pool/pools.ts for failures. */
export interface PoolService {
  list(): PoolInfo[];
  get(name: string): PoolInfo;
  create(pool: NewPool): PoolInfo;
  update(name: string, change: PoolChange): Promise<PoolInfo>;
  remove(name: string): Promise<void>;
  /** What a request that names a pool asks for, filled up from its template. */
  prepare(request: CreateRequest, name: string): CreateRequest;
}

type PoolHandlers = Handlers<'listPools' | 'createPool' | 'getPool' | 'updatePool' | 'deletePool'>;

/** A client that lost a race for the last one does well to wait this long. */
const retryAfterSeconds = '5';

export function poolHandlers({ pools }: ApiOptions): PoolHandlers {
  const nameOf = ({ poolName = '' }: Record<string, string>) => poolName;
  return {
    listPools: () => ({ status: 200, json: { items: pools.list() } }),
    createPool: ({ body }) =>
      worded({ conflict: 'KUBERNETES::POOL_ALREADY_EXISTS' }, () => ({
        status: 201,
        json: pools.create(body),
      })),
    getPool: ({ params }) => worded(notFound, () => ({ status: 200, json: pools.get(nameOf(params)) })),
    updatePool: ({ params, body }) =>
      worded(notFound, async () => ({ status: 200, json: await pools.update(nameOf(params), body) })),
    deletePool: ({ params }) =>
      worded(notFound, async () => {
        await pools.remove(nameOf(params));
        return { status: 204 };
      }),
  };
}

type Words = Partial<Record<Failure['code'], string>>;
const notFound: Words = { 'not-found': 'KUBERNETES::POOL_NOT_FOUND' };

async function worded<T>(words: Words, work: () => T | Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (thrown) {
    const wireCode = thrown instanceof Failure ? words[thrown.code] : undefined;
    throw wireCode === undefined ? thrown : refusalOf(thrown as Failure, { wireCode });
  }
}

/** What a creation that named a pool met, in the words of clients that know pools. */
export function poolRefusal(thrown: unknown): unknown {
  if (!(thrown instanceof Failure) || thrown.details?.pool === undefined) return thrown;
  if (thrown.code === 'exhausted')
    return refusalOf(thrown, {
      wireCode: 'KUBERNETES::POOL_CAPACITY_EXHAUSTED',
      headers: { 'Retry-After': retryAfterSeconds },
    });
  return thrown.code === 'not-found' ? refusalOf(thrown, { wireCode: 'KUBERNETES::POOL_NOT_FOUND' }) : thrown;
}

function refusalOf(failure: Failure, more: { wireCode: string; headers?: Record<string, string> }): Refusal {
  const { code, message, hint } = failure;
  return new Refusal(code, message, { cause: failure, ...(hint === undefined ? {} : { hint }), ...more });
}
