// Secrets that never enter a guest: kept encrypted, given a placeholder, and put into a request on its way out when, and only when, the request
// goes where the secret is bound to.
import type { SecretInfo, SetSecret } from '../contract/network.ts';

/** A request on its way out, as it was read: `headers` in order, names in lower case. */
export interface OutgoingRequest {
  /** True only behind a TLS connection whose other end has been verified for `host`. */
  verifiedTls: boolean;
  host: string;
  port: number;
  method: string;
  /** Path and query, as on the wire. */
  target: string;
  headers: readonly (readonly [name: string, value: string])[];
}

/** What becomes of a request. */
export type Injection =
  /** Goes on as it is: no secret is bound to it, and it holds no placeholder. */
  | { kind: 'none' }
  /** Goes on changed. `scrub`: byte strings that the answer must not show (the secrets, and their usual encodings). */
  | {
      kind: 'changed';
      target: string;
      headers: [name: string, value: string][];
      /** Names of the secrets put in, for the log. */
      secrets: string[];
      scrub: Buffer[];
      /** Set when the body has to be seen whole first (substitution, signature): at most `bodyBytesMax` bytes. May change headers, too. */
      body?: (body: Buffer) => { body: Buffer; headers: [name: string, value: string][] };
    }
  /** Must not go on: a placeholder where it does not belong, a signature that cannot be made anew, … `alarm` when it smells of theft. */
  | { kind: 'refused'; reason: string; message: string; alarm: boolean };

/** Bodies that have to be seen whole. */
export const bodyBytesMax = 16 * 1024 * 1024;

/** The secrets that one sandbox may use. Cheap to ask; answers change when secrets do. */
export interface SandboxSecrets {
  /** Whether something is bound to this place: it has to be intercepted then, whatever else is configured. */
  binds(host: string, port: number): boolean;
  /** Decides and builds. Reads sources that are read on demand; rejects with a Failure when one cannot be read. */
  inject(request: OutgoingRequest, signal: AbortSignal): Promise<Injection>;
  /**
   * Every placeholder of this home, to be looked for in bodies and in bytes that are not HTTP. Empty when there is none. The same object as long
   * as nothing has changed.
   */
  readonly placeholders: readonly Buffer[];
  /** Variables of the guest that hold placeholders. */
  readonly environment: Readonly<Record<string, string>>;
}

export interface Vault {
  /** Checks, encrypts, stores. Replaces the secret of the same name and scope. Failure('invalid') with what to mend. */
  set(secret: Omit<SetSecret, 'sandbox'> & { sandboxId?: string }): Promise<SecretInfo>;
  list(filter?: { sandboxId?: string }): SecretInfo[];
  /** Failure('not-found'). */
  remove(id: string): Promise<void>;
  forSandbox(sandboxId: string): SandboxSecrets;
  /** Forgets what belongs to a sandbox that is gone. */
  forgetSandbox(sandboxId: string): Promise<void>;
  /** Called after every change: connections made with old secrets have to go. */
  onChange: (sandboxId: string | undefined) => void;
}
