// What the processes of the egress figures say to each other.

/** Of one tunnel. */
export const bulkBytes = 256 * 1024 * 1024;

/** What a load does: each names how its bytes travel. */
export type Scenario = 'plain' | 'intercepted' | 'intercepted-new' | 'tunnel';

export interface LoadOrder {
  scenario: Scenario;
  /** Absent: straight to the origin. */
  proxyPort?: number;
  /** The name that the origin goes by, and its port. */
  host: string;
  port: number;
  /** PEM of the authority that the answers have to be signed by. */
  authority: string;
  clients: number;
  /** How long; ignored by `tunnel`, where every client takes one tunnel's worth. */
  ms: number;
}

export interface LoadResult {
  /** Answers, or bytes of tunnels. */
  count: number;
  ms: number;
  p50Ms: number;
  p99Ms: number;
}

/** What our proxy is started with: files and the origin's ports. */
export interface OurSetup {
  folder: string;
  /** File of the authority that signed for the origin. */
  originAuthority: string;
  inspected: number[];
  tunnelled: number;
}
