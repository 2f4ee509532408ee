// What a guest may reach, decided in one pure place: rules of three dialects, compiled into one ordered list in which the first match decides.
// Nothing here resolves, dials, waits or logs. Callers build an attempt, ask, and do as they are told.
import type { Rule } from '../contract/network.ts';
import type { NetworkPolicy } from '../contract/opensandbox.ts';

/** Where something wants to go, in the one spelling that everything compares. Made by `parseHost` and `parseTarget` only (names.ts). */
export type Host =
  | { kind: 'name'; name: string }
  /** Dotted quad, or IPv6 as RFC 5952 has it. An IPv4 address inside an IPv6 one is an IPv4 address. */
  | { kind: 'address'; address: string; family: 4 | 6 };

export interface Attempt {
  host: Host;
  port: number;
  protocol: 'tcp' | 'udp';
  /** One HTTP request, once it has been read. `path` is as on the wire, without the query. */
  request?: { method: string; path: string };
}

/** Why, as a word for programs. */
export type Reason =
  | 'rule' // a rule says so
  | 'default' // no rule speaks of it
  | 'request-needed' // it depends on method and path, which are not known yet: always an `allow`, for each request will be judged
  | 'metadata' // a cloud's metadata service
  | 'host-address' // an address of this very host
  | 'private-address' // loopback, private, link-local, shared or otherwise not of the public internet
  | 'unusable-address'; // unspecified, multicast, broadcast, reserved

export interface Decision {
  effect: 'allow' | 'deny' | 'ask';
  reason: Reason;
  /** The rule that decided; absent for defaults and guards. `text` is as a person would write it. */
  rule?: { id: string; text: string; source: Source };
  /** One sentence for a person. Ends up in the guest, too: names no address and nothing of the host. */
  message: string;
  /** The command that would allow it, where one can. */
  remedy?: string;
  /** Another request to the same place may be decided otherwise: each has to be looked at, so what cannot be looked into has to be refused. */
  dependsOnRequest: boolean;
  /** The rule names this host and this port, other than 80 and 443, so that what is neither HTTP nor TLS may pass. Never where it `dependsOnRequest`. */
  opaque: boolean;
  /** Pass it on without looking inside. Never where it `dependsOnRequest`. */
  bypass: boolean;
}

/** Where a rule comes from: the operator's list, one sandbox's part of it, or the policy a sandbox was made with. */
export type Source = 'global' | 'sandbox' | 'proxy-config' | 'network-policy';

export interface Policy {
  /**
   * The effect on a connection (no `request`), or on one request. A connection of which some requests may pass, or be asked about, is `allow` with
   * the reason `request-needed`, never `ask`. Never throws.
   */
  decide(attempt: Attempt): Decision;
  /**
   * Of what a name has been resolved to (or the literal address itself), the addresses that may be dialled, in the same order and in their one
   * spelling. An address of this host, of a private network or of a metadata service needs a rule that names that address or a range; metadata
   * needs more than that, and no range opens this host but the loopback's. When none is left of some, `denied` tells why. The text of a rule in
   * it does not give away what the name led to.
   */
  addresses(
    attempt: Attempt,
    decision: Decision,
    resolved: readonly string[],
  ): { dial: string[]; denied?: Decision };
  /** Whether a name may be looked up at all: whether something at it, on any port, may be reached or asked for. */
  mayResolve(name: string): boolean;
  /** TCP ports that rules open, beside 80 and 443, on which connections should be caught; in the order of the rules, at most `portsMax`. */
  readonly ports: readonly number[];
  /** Whether anything at all may be reached or asked for. */
  readonly opens: boolean;
}

export const portsMax = 64;

/** `docker sandbox network proxy`'s own form, as its proxy-config.json holds it. The most specific entry wins. */
export interface ProxyConfig {
  policy: 'allow' | 'deny';
  network: {
    allowedDomains: string[];
    blockedDomains: string[];
    bypassDomains: string[];
    allowCIDR: string[];
    blockCIDR: string[];
    bypassCIDR: string[];
  };
}

/**
 * Everything that holds for one sandbox. The operator's denials, global and for this sandbox, come before all else; then a person's kept answers
 * (`createdVia: 'approval'`), which silence the question; then what the operator asks about; then what the operator allows for this sandbox.
 * After that the sandbox's own policy if it has one (with its own default), else what the operator allows everywhere, and the default denial.
 */
export interface PolicySources {
  /** All rules of the operator that apply: global ones, and those of this sandbox. In `sbx`'s dialect: denials win, `*` is one label. */
  rules: readonly Rule[];
  own?: { kind: 'proxy-config'; config: ProxyConfig } | { kind: 'network-policy'; policy: NetworkPolicy };
  /** Addresses of this host's own interfaces. */
  hostAddresses: readonly string[];
  /** Lets rules that name a metadata address have their way. */
  dangerouslyAllowMetadata?: boolean;
  /** It is a stranger's: only global rules and the proxy configuration, which are the operator's, open this host, private networks and metadata services. */
  strange?: boolean;
  /** How a person names this sandbox on the command line, for remedies. */
  sandboxName?: string;
}
