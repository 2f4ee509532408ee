// Puts the bell together: its settings, actions, door and record; for the daemon, and alone for users of other sandboxes.
import type { BellDecision } from '../contract/bell.ts';
import type { BellPlace } from '../egress/bell-place.ts';
import type { NetworkBell } from '../egress/networks.ts';

/** The bell as the network around the sandboxes sees it. */
export interface SandboxBell extends BellPlace, NetworkBell {
  /** What a person has answered for longer than once. */
  remember(action: string, decision: BellDecision, sandboxId: string | undefined): void;
}
