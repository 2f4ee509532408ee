// The door in HTTP: who is there, is it a browser, is it small enough, what does it ask for; then the bell.
import type { Socket } from 'node:net';

export interface BellDoor {
  /**
   * A connection for one of our own sandboxes: whatever comes over it comes from that sandbox. For the way out, which has decided that it may be
   * made. Resolves with a connected socket.
   */
  connect(sandboxId: string, signal: AbortSignal): Promise<Socket>;
  /** Where others are served: `http://127.0.0.1:9999`. */
  readonly listening: readonly string[];
  /** Ends what is under way within `signal`'s time. Idempotent. */
  close(): Promise<void>;
}
