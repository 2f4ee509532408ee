// The world's side of a connection: one look-up, a decision on what it gave, one connection to what was decided, verified.
import type { Socket } from 'node:net';
import type { TLSSocket } from 'node:tls';
import type { Decision, Host } from '../policy/policy.ts';
import type { BulkReader } from './tunnel-bytes.ts';

/** Why it could not be reached, as a word for the log and the guest. */
export type UpstreamErrorCode =
  | 'dns' // no such name
  | 'denied' // all its addresses are refused; `decision` tells why
  | 'refused'
  | 'unreachable'
  | 'timeout'
  | 'reset'
  | 'upstream_tls' // its certificate or its TLS is not good; `message` tells what
  | 'upstream_proxy'; // the corporate proxy said no

export class UpstreamError extends Error {
  readonly code: UpstreamErrorCode;
  readonly decision: Decision | undefined;
  /** `message` may be shown to the guest: no addresses of resolved names, nothing of this host. */
  constructor(
    code: UpstreamErrorCode,
    message: string,
    options: { cause?: unknown; decision?: Decision } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'UpstreamError';
    this.code = code;
    this.decision = options.decision;
  }
}

export interface Destination {
  host: Host;
  port: number;
}

/** What is spoken on a connection is HTTP to a proxy: each request names its whole URL, and shows who is asking. */
export interface Relay {
  authorization: string | undefined;
}

export interface Upstream {
  /**
   * Resolves once, keeps what `judge` lets pass, dials those in turn. The socket is connected and paused-or-fresh; `address` is what was
   * dialled, or that of the corporate proxy. Rejects with UpstreamError. `tunnel`: for bytes that nobody looks into. The socket may then be closed
   * one way at a time, and where `bulk` is given it has to be read through that, for it has no 'data' events. `requests`: for plain HTTP; where
   * `relay` is given, it has to be spoken as to a proxy. `hearsEnd`: it answers one who says no more, and finds out whether that one is still there.
   */
  connect(
    to: Destination,
    judge: (addresses: string[]) => { dial: string[]; denied?: Decision },
    signal: AbortSignal,
    options?: { tunnel?: boolean; requests?: boolean },
  ): Promise<{ socket: Socket; address: string; bulk?: BulkReader; relay?: Relay; hearsEnd?: boolean }>;
  /** The same, then TLS ≥ 1.2 with the name verified against the system's roots and the configured ones. `alpn` is offered as it is. */
  connectTls(
    to: Destination,
    judge: (addresses: string[]) => { dial: string[]; denied?: Decision },
    options: { alpn: string[] },
    signal: AbortSignal,
  ): Promise<{ socket: TLSSocket; address: string; alpn: string | undefined }>;
}

export interface UpstreamOptions {
  /** Of our own before any look-up: names with fixed addresses. */
  hosts: Record<string, string[]>;
  /** `address:port` of name servers; the system's when empty. */
  nameServers: string[];
  /** PEM of more authorities to trust. */
  extraAuthorities: string[];
  /** `http://host:port` of a proxy that everything has to go through, and names that need not. */
  proxy?: { url: string; noProxy: string[] };
  connectMs: number;
  handshakeMs: number;
}
