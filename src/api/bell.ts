// Our own routes about the bell: what it may do for whom, and what it did.
import type { BellDecision, BellEntry, BellStatus, BellToken } from '../contract/bell.ts';

/** What the API can ask of the bell. */
export interface BellService {
  status(): Promise<BellStatus>;
  /** Failure('not-found') for an action that there is not. Holds from now on, also for a daemon that is started later. */
  decide(action: string, decision: BellDecision, sandboxId: string | undefined): Promise<void>;
  /** Back to what holds otherwise. Failure('not-found') when there was no such decision. */
  forgetDecision(action: string, sandboxId: string | undefined): Promise<void>;
  /** Newest last. `sandbox`: an id, or what the log knows of one that is gone. */
  log(filter: { sandbox?: string; limit: number }): Promise<BellEntry[]>;
  /** New entries, and entries again when they end, from this call on. Ends with the signal. */
  followLog(filter: { sandbox?: string }, signal: AbortSignal): AsyncIterable<BellEntry>;
  tokens(): BellToken[];
  /** The token is shown this once. Failure('conflict') when the name is taken. */
  addToken(name: string): Promise<BellToken & { token: string }>;
  /** Failure('not-found'). */
  removeToken(name: string): Promise<void>;
}
