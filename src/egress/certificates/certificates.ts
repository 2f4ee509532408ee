// Certificates for the guest's side of an inspected connection. One key for each installation, never in a guest; one authority for each sandbox,
// so that no sandbox trusts what was made for another.
import type { SecureContext } from 'node:tls';

export interface SandboxAuthority {
  /** The authority's certificate, PEM: the only thing of all this that a guest gets to see. The same after a restart of the daemon. */
  readonly certificate: string;
  /** The context that shows a certificate for this name or address; made once and cached, the least used forgotten. Valid now, and before: guests' clocks differ. */
  contextFor(host: string): SecureContext;
}

export interface CertificateAuthority {
  forSandbox(sandboxId: string): SandboxAuthority;
}
