// The door of one sandbox: the Unix socket in its run folder at which its agent dials in. Which socket a connection came to tells which sandbox it is.
import { type FileHandle, open, rm } from 'node:fs/promises';
import { createServer, type Server } from 'node:net';
import { join } from 'node:path';
import type { EndReason } from '../channel/channel.ts';
import type { Guest } from '../guest/guest.ts';

export interface AgentDoor {
  /** The guest behind the door, once its agent has said hello; at once when it is there. */
  connected(signal: AbortSignal): Promise<Guest>;
  /** Resolves, never rejects, when the agent was lost for good. Not when `close` was called. */
  readonly ended: Promise<EndReason>;
  /** The machine is about to be frozen: silence is no sign of death until `release`. */
  hold(): void;
  release(): void;
  /** Stops listening and lets go of the connection; the agent keeps trying to dial in. */
  close(): Promise<void>;
}
