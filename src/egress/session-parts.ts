// What the connections of one sandbox share, and share with no other sandbox.
import type { Journal } from '../journal/journal.ts';
import type { SandboxAuthority } from './certificates/certificates.ts';
import type { Deadlines } from './deadlines.ts';
import type { Asker, EgressLimits, EgressSandbox } from './egress.ts';
import type { HeldMemory } from './memory.ts';
import type { Pool } from './pool.ts';
import type { Programs } from './programs.ts';
import type { Protocols } from './protocols.ts';
import type { LargeBuffers } from './tunnel-bytes.ts';
import type { Upstream } from './upstream.ts';

export interface SessionParts {
  readonly sandbox: EgressSandbox;
  readonly journal: Journal;
  readonly limits: EgressLimits;
  readonly onTrouble: (error: unknown) => void;
  readonly upstream: Upstream;
  readonly authority: SandboxAuthority;
  readonly pool: Pool;
  readonly protocols: Protocols;
  readonly deadlines: Deadlines;
  readonly asker: Asker;
  readonly programs: Programs;
  /** What requests hold. */
  readonly memory: HeldMemory;
  /** What tunnels read into. */
  readonly largeBuffers: LargeBuffers;
}
