/** How an application is told of where it was asked, and the client of where the application sends it. */
export interface PortAddress {
  /** What stands before the path, for applications that make links. Empty for nothing. */
  prefix: string;
  /** What the application is called; `localhost:<port>` when absent. */
  host?: string;
  /** What its client called it; the header Host of the request when absent. */
  publicHost?: string;
  /** A credential in the address, which browsers repeat in headers, and what the application sees in its place. */
  hidden?: { text: string; shown: string };
  /** A Location of the application as the client has to see it. */
  relocate?: (location: string) => string;
}
