// Sandboxes that are made before anybody asks for one: what whoever keeps them asks of the sandboxes, and what the creation of one asks of whoever keeps them.
import type { PoolMember } from '../store/store.ts';
import type { CreateRequest, SandboxState } from './sandbox.ts';

/** One that was made for a pool: warm, or somebody's by now. */
export interface PooledSandbox {
  id: string;
  pool: PoolMember;
  runtime: string;
  state: SandboxState;
  /** A warm one could be handed over now. */
  ready: boolean;
}

export interface WarmSandboxes {
  /** Makes one that is nobody's, frozen if wanted, and resolves when it can be handed over. On failure or abort nothing is left. */
  warm(
    request: CreateRequest,
    options: { id: string; pool: Pick<PoolMember, 'name' | 'revision'>; runtime: string; frozen: boolean },
    signal: AbortSignal,
  ): Promise<void>;
  pooled(): PooledSandbox[];
  /** Takes a warm one away; one that is somebody's stays. Never rejects: what fails is tried again. */
  discard(id: string): Promise<void>;
  /** What an image's name stands for, to compare with `PoolMember.image`; undefined when there is no such image. */
  imageId(runtime: string, image: string, signal: AbortSignal): Promise<string | undefined>;
}

/** What a pool has for a request. */
export interface Offer {
  /** The request names the pool, so that what is made for it counts as the pool's, also when nothing was ready. */
  membership?: PoolMember;
  /** Takes one out; undefined when there is none left. */
  claim(): string | undefined;
  /** The request was refused before anything became of what it has claimed, which is as it was. */
  giveBack(id: string): void;
  /** How it went: whether the request got one of these. Of one that was refused nothing is told. */
  end(hit: boolean): void;
}

export interface WarmSupply {
  /** Undefined where nothing fits. Failure('exhausted') for a pool that is named and may not have more; Failure('not-found') when there is none of this name. */
  offer(request: CreateRequest, runtime: string, signal: AbortSignal): Promise<Offer | undefined>;
  /** Something has become of a sandbox that a pool counts. */
  changed(pool: string): void;
}
