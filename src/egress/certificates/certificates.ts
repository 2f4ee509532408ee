// Certificates for the guest's side of an inspected connection. One secret for each installation, never in a guest; one authority for each sandbox,
// with a name and a key of its own, so that no sandbox trusts what was made for another.
import type { SecureContext } from 'node:tls';

export interface SandboxAuthority {
  /**
   * The authority's certificate, PEM: the only thing of all this that a guest gets to see. The same after a restart of the daemon but for its
   * signature: whoever trusts one of them trusts what was made before and after.
   */
  readonly certificate: string;
  /**
   * The context that shows a certificate for this name or address; made once and cached, the least used forgotten. Valid now, and before: guests'
   * clocks differ. Sessions are resumed under the same name of the same sandbox only; nothing has to be set on the socket for that. Throws
   * Failure('invalid') for what is no name: ASCII without a wildcard, or an address without a zone.
   */
  contextFor(host: string): SecureContext;
}

export interface CertificateAuthority {
  /** Each call makes one with a cache of its own: keep it for the sandbox's life. Its key is made when it is first needed, in about a millisecond. */
  forSandbox(sandboxId: string): SandboxAuthority;
}
