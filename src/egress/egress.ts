// The only way out of a sandbox: what its agent has caught comes in as a connection, is decided, and is joined with the world or refused.
import type { Socket } from 'node:net';
import type { Question } from '../contract/network.ts';
import type { Journal } from '../journal/journal.ts';
import type { Decision, Policy } from '../policy/policy.ts';
import type { SandboxSecrets } from '../vault/vault.ts';

/** What the agent says of a connection before its bytes: one line of JSON. Said by a guest: a claim to be decided upon, never a fact. */
export type Intent =
  /** To port 3128 or 1080 of the guest: an HTTP proxy's client or a SOCKS5 client, told apart by the first byte. */
  | { kind: 'proxy'; client: number }
  /** Caught on its way to an address. `name`: what the guest had asked the DNS stub for to get that address. */
  | { kind: 'caught'; client: number; address: string; port: number; name?: string }
  /** Lines of JSON both ways, for as long as the agent lives: { id, name } → { id, resolve: boolean }. */
  | { kind: 'names' };

/** The agent's first line is at most this long. */
export const intentBytesMax = 2_048;

export interface EgressLimits {
  /** Connections of one sandbox at the same time. */
  connections: number;
  /** Milliseconds for a head, a TLS handshake, a connection to be made, and for silence on an open one. */
  headMs: number;
  handshakeMs: number;
  connectMs: number;
  idleMs: number;
}

/** What one sandbox brings. `policy` and `secrets` are asked anew for each decision. */
export interface EgressSandbox {
  id: string;
  name?: string | undefined;
  policy: () => Policy;
  secrets: SandboxSecrets;
  /** `all`: look into every TLS connection but bypassed ones. `needed`: only where a secret is bound or a rule speaks of methods or paths. */
  inspect: 'all' | 'needed';
  /** Finds the program behind a connection of the guest, by its port there. Undefined when it cannot be seen. */
  processOf?: (clientPort: number) => Promise<{ pid: number; command: string } | undefined>;
}

export interface EgressSession {
  /** Takes a connection from the agent: the line of its intent, then bytes. Owns the socket. Never throws. */
  accept(socket: Socket): void;
  /** The policy or the secrets have changed: what is no longer allowed is cut at once, and kept connections are not used again. */
  changed(): void;
  /** Cuts everything. Idempotent. */
  close(): void;
}

/** Puts a question to a person and waits, a bounded time, for the answer. No answer is a no. */
export interface Asker {
  ask(
    question: Omit<Question, 'id' | 'at' | 'until'>,
    decision: Decision,
    signal: AbortSignal,
  ): Promise<boolean>;
}

export interface EgressParts {
  journal: Journal;
  /** A defect of ours: it costs the one connection, and is told here. */
  onTrouble: (error: unknown) => void;
  asker: Asker;
  limits: EgressLimits;
}
