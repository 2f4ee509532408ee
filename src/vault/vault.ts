// Secrets that never enter a guest: kept encrypted, given a placeholder, and put into a request on its way out when, and only when, the request
// goes where the secret is bound to.
import type { SecretInfo, SetSecret } from '../contract/network.ts';
import type { SandboxVault } from './opensandbox.ts';

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

/** Why a request must not go on, as a word for programs. */
export type RefusedReason =
  | 'placeholder_misplaced' // of a secret that is not bound to this host and port
  | 'placeholder_unprotected' // without verified TLS
  | 'binding_mismatch' // bound to this host, but to other methods or paths
  | 'secret_unavailable' // its source cannot be read
  | 'aws_signature'; // signed in a way that cannot be signed anew

/** What becomes of a request. */
export type Injection =
  /** Goes on as it is: no secret is bound to its place, and it holds no placeholder. */
  | { kind: 'none' }
  /**
   * Goes on changed. `scrub`: byte strings that the answer must not show (the secrets, and their usual encodings). Whatever goes to a place that
   * secrets are bound to is changed, if only to ask for an answer that can be searched: a request before may have left one of them there.
   */
  | {
      kind: 'changed';
      target: string;
      headers: [name: string, value: string][];
      /** Names of the secrets put in, for the log; may be none. */
      secrets: string[];
      scrub: Buffer[];
      /**
       * Set when the body has to be seen whole first (substitution, signature): at most `bodyBytesMax` bytes, before and after. May change headers, too.
       * Throws when it cannot be done.
       */
      body?: (body: Buffer) => { body: Buffer; headers: [name: string, value: string][] };
    }
  /** Must not go on: a placeholder where it does not belong, a signature that cannot be made anew, … `alarm` when it smells of theft. */
  | { kind: 'refused'; reason: RefusedReason; message: string; alarm: boolean };

/** Bodies that have to be seen whole. */
export const bodyBytesMax = 16 * 1024 * 1024;

/** The secrets that one sandbox may use. Cheap to ask; answers change when secrets do. */
export interface SandboxSecrets {
  /** Whether something is bound to this place: it has to be intercepted then, whatever else is configured. */
  binds(host: string, port: number): boolean;
  /**
   * Decides and builds. Reads sources that are read on demand; one that cannot be read is `refused` as `secret_unavailable`, which is our trouble
   * and not the guest's (502). Rejects only when `signal` fires.
   */
  inject(request: OutgoingRequest, signal: AbortSignal): Promise<Injection>;
  /**
   * Every placeholder of this home, to be looked for in bodies and in bytes that are not HTTP. Empty when there is none. The same object as long
   * as nothing has changed.
   */
  readonly placeholders: readonly Buffer[];
  /**
   * Of these, the ones that have no business at a place: all but those of secrets that are bound to it. Whoever talks there about its own key means
   * no harm. The same object for the same place, too.
   */
  foreignPlaceholders(host: string, port: number): readonly Buffer[];
  /** Variables of the guest that hold placeholders. */
  readonly environment: Readonly<Record<string, string>>;
}

export interface Vault {
  /**
   * Checks, encrypts, stores. Replaces the secret of the same name and scope, which keeps its placeholder, since guests hold it, unless another is
   * asked for. A source is read once to see that it can be. Failure('invalid') with what to mend.
   */
  set(secret: Omit<SetSecret, 'sandbox'> & { sandboxId?: string }): Promise<SecretInfo>;
  /** All, or those of one sandbox alone. What OpenSandbox's credential vaults hold is among them, as `credential-vault/NAME`. */
  list(filter?: { sandboxId?: string }): SecretInfo[];
  /** Failure('not-found'); Failure('conflict') for what belongs to a credential vault. */
  remove(id: string): Promise<void>;
  /** `shared: false`: without the secrets that all sandboxes of the owner may use; their placeholders are then foreign to it. */
  forSandbox(sandboxId: string, options?: { shared: boolean }): SandboxSecrets;
  /**
   * OpenSandbox's credential vault of a sandbox, whether there is one yet or not. `covered`: whether an explicit rule of its policy allows a host,
   * which may begin with `*.`.
   */
  openSandbox(sandboxId: string, covered: (host: string) => boolean): SandboxVault;
  /** Forgets what belongs to a sandbox that is gone. */
  forgetSandbox(sandboxId: string): Promise<void>;
  /** Called after every change: connections made with old secrets have to go. */
  onChange: (sandboxId: string | undefined) => void;
}
