// The way out of one sandbox: counts its connections, gives each to whoever speaks its language, and cuts what is no longer allowed.
import type { Socket } from 'node:net';
import { serveCaught } from './caught.ts';
import type { CertificateAuthority } from './certificates/certificates.ts';
import { Connection } from './connection.ts';
import { Deadlines } from './deadlines.ts';
import type { EgressLimits, EgressParts, EgressSandbox, EgressSession } from './egress.ts';
import { type Checked, readIntent } from './intake.ts';
import { HeldMemory } from './memory.ts';
import { serveNames } from './names.ts';
import { peek } from './opening.ts';
import { Pool } from './pool.ts';
import { Programs } from './programs.ts';
import { Protocols } from './protocols.ts';
import { serveProxy } from './proxy.ts';
import type { SessionParts } from './session-parts.ts';
import { isSocks, serveSocks } from './socks.ts';
import { LargeBuffers } from './tunnel-bytes.ts';
import type { Upstream } from './upstream.ts';
import { Wire } from './wire.ts';

/** Beyond its limit a sandbox's connections are refused with an answer, up to this many times the limit; then they are closed. */
const refusedTimes = 2;

export interface Egress {
  open(sandbox: EgressSandbox): EgressSession;
}

/** `upstream`: for the sandbox of that id, so that one with slow names holds up itself only. */
export function createEgress(
  parts: EgressParts & { upstream: (sandboxId: string) => Upstream; authority: CertificateAuthority },
): Egress {
  return { open: (sandbox) => new Session(parts, sandbox) };
}

class Session implements EgressSession {
  readonly #parts: SessionParts;
  readonly #wires = new Set<Wire>();
  readonly #connections = new Set<Connection>();
  #closed = false;

  constructor(parts: Parameters<typeof createEgress>[0], sandbox: EgressSandbox) {
    const { journal, asker, limits, onTrouble } = parts;
    const deadlines = new Deadlines(lookEveryMs(limits));
    this.#parts = {
      sandbox,
      journal,
      asker,
      limits,
      onTrouble,
      deadlines,
      upstream: parts.upstream(sandbox.id),
      authority: parts.authority.forSandbox(sandbox.id),
      pool: new Pool(deadlines, limits),
      protocols: new Protocols(),
      programs: new Programs(sandbox.processOf),
      memory: new HeldMemory(),
      largeBuffers: new LargeBuffers(),
    };
  }

  accept(socket: Socket): void {
    const { limits } = this.#parts;
    if (socket.destroyed) return;
    if (this.#closed || this.#wires.size >= limits.connections * refusedTimes) {
      socket.on('error', () => {});
      socket.destroy();
      return;
    }
    const { onTrouble } = this.#parts;
    const wire = new Wire(socket, onTrouble);
    this.#wires.add(wire);
    socket.once('close', () => this.#wires.delete(wire));
    const full = this.#wires.size > limits.connections;
    readIntent(wire, limits.headMs)
      .then((intent) => {
        if (intent === undefined || this.#closed) return wire.close();
        if (full && intent.kind !== 'names') return refuseFull(wire, intent, limits);
        return this.#serve(wire, intent);
      })
      .catch((error) => {
        onTrouble(error);
        wire.cut();
      });
  }

  changed(): void {
    this.#parts.pool.drop();
    this.#parts.protocols.clear();
    for (const connection of [...this.#connections]) if (!connection.allowed()) connection.cut();
  }

  close(): void {
    this.#closed = true;
    for (const connection of [...this.#connections]) connection.cut();
    for (const wire of [...this.#wires]) wire.close();
    this.#parts.pool.drop();
  }

  /** Rejects for defects of ours only; what was begun is cut then. */
  async #serve(wire: Wire, intent: Checked): Promise<void> {
    const client = intent.kind === 'names' ? 0 : intent.client;
    const connection = new Connection(this.#parts, client, kindOf[intent.kind]);
    this.#connections.add(connection);
    connection.signal.addEventListener('abort', () => this.#connections.delete(connection), { once: true });
    connection.cutWith(wire);
    switch (intent.kind) {
      case 'names':
        return serveNames(connection, wire);
      case 'caught':
        return serveCaught(connection, wire, intent);
      case 'proxy': {
        const first = await peek(wire, firstByte, { withinMs: this.#parts.limits.headMs });
        if (first === undefined) connection.over();
        else if (isSocks(first)) return serveSocks(connection, wire);
        else serveProxy(connection, wire);
      }
    }
  }
}

const kindOf = { proxy: 'forward', caught: 'transparent', names: 'network' } as const;

const firstByte = (bytes: Buffer): number | undefined => bytes[0];

/** A deadline may be noticed this late: a quarter of the shortest, and at most a second. */
const lookEveryMs = ({ headMs, idleMs }: EgressLimits): number =>
  Math.min(1_000, Math.max(10, Math.min(headMs, idleMs) / 4));

/** Only HTTP has words for it. */
async function refuseFull(wire: Wire, intent: Checked, limits: EgressLimits): Promise<void> {
  if (intent.kind !== 'proxy') return wire.close();
  const first = await peek(wire, firstByte, { withinMs: limits.headMs });
  if (first === undefined || isSocks(first)) return wire.close();
  const body = `This sandbox has ${limits.connections} connections open, which is the limit.\n`;
  wire.send(
    `HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: ${body.length}\r\n` +
      `X-Glovebox-Deny: connections\r\nConnection: close\r\n\r\n${body}`,
  );
  wire.goodbye();
}
