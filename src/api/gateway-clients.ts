// The gateway's clients: their connections, and which of their requests go straight to a port of a guest. Those are the ones that their address alone lets in, or
// that everybody may make; what is more than that (keys and tokens, WebSockets, ports of ours, refusals, heads that are out of the ordinary) goes on with the server
// as it came, from its first byte, and its connection stays there.
import type { Socket } from 'node:net';
import { egressPort, execdPort } from '../contract/opensandbox.ts';
import { Deadlines } from '../egress/deadlines.ts';
import type { Refused } from '../egress/gate.ts';
import { Http1Guest, nobody, type RequestReader, type RequestServer } from '../egress/http1/guest.ts';
import type { Malformed, RequestHead } from '../egress/http1/head.ts';
import { Wire } from '../egress/wire.ts';
import type { Guest } from '../guest/guest.ts';
import { ingressHeaders } from '../ingress/routes.ts';
import type { Failure } from '../lib/failure.ts';
import type { Span } from '../lib/trace.ts';
import type { SandboxService } from '../sandbox/sandbox.ts';
import { ownHeaders } from './gate.ts';
import { type Entry, type Gateway, hostForm } from './gateway.ts';
import type { ApiLimits, ApiOptions } from './handlers.ts';
import { type ClientAddress, PortRequest } from './port-request.ts';

/** Of a body that is of no use any more: so much is read and dropped, so that its sender gets to the answer and can use the connection again. */
const droppedBytesMax = 64 * 1024 * 1024;

export interface GatewayHost {
  gateway: Gateway;
  options: ApiOptions;
  /** As they are at the moment. */
  limits: ApiLimits;
  /** Throws when too many requests are under way, at the gateway or beside it. */
  refuseBeyond(): void;
  /** Throws a failure that fits a gateway. */
  guest(sandboxId: string): Guest;
  /** What is told of a failure, after the log has heard of it. */
  shown(thrown: unknown, requestId: string, operation: string): Failure;
  /** Takes a connection over: its bytes are still to be read. */
  serve(socket: Socket): void;
}

const placeNames: ReadonlySet<string> = new Set(ingressHeaders.map((name) => name.toLowerCase()));

export class GatewayClients {
  readonly limits: ApiLimits;
  readonly service: SandboxService;
  closing = false;
  readonly #host: GatewayHost;
  readonly #deadlines: Deadlines;
  readonly #all = new Set<Client>();
  readonly #active = new Set<PortRequest>();
  #whenIdle: (() => void) | undefined;

  constructor(host: GatewayHost) {
    this.#host = host;
    this.limits = host.limits;
    this.service = host.options.service;
    this.#deadlines = new Deadlines(Math.min(1_000, Math.ceil(host.limits.headMs / 2)));
  }

  /** Requests that are under way. */
  get active(): number {
    return this.#active.size;
  }

  take(socket: Socket): void {
    if (socket.destroyed) return;
    this.#all.add(
      new Client(this, socket, {
        deadlines: this.#deadlines,
        onOver: (client) => this.#all.delete(client),
        onTrouble: (error) =>
          this.#host.options.log.error(
            { error: String((error as Error)?.stack ?? error) },
            'request failed at the gateway',
          ),
      }),
    );
  }

  /** No requests after those that are under way. Resolves when those are over. */
  async close(): Promise<void> {
    this.closing = true;
    for (const client of [...this.#all]) client.endIdle();
    if (this.#active.size > 0)
      await new Promise<void>((resolve) => {
        this.#whenIdle = resolve;
      });
  }

  force(): void {
    for (const request of [...this.#active]) request.cut();
    for (const client of [...this.#all]) client.cut();
  }

  // For its requests.

  /** Undefined for what is not for a port that this request may reach by its address alone. */
  entryOf(head: RequestHead, path: string): Entry | undefined {
    const { host } = head;
    if (head.upgrade !== undefined || host === undefined || !hostForm.test(host)) return undefined;
    let token: string | undefined;
    for (const [name, value] of head.headers) {
      if (!ownHeaders.has(name)) continue;
      if (!placeNames.has(name) || token !== undefined) return undefined;
      token = value;
    }
    let entry: Entry | undefined;
    try {
      entry = this.#host.gateway.find({ host, path, token });
    } catch {
      return undefined;
    }
    if (entry === undefined || entry.port === execdPort || entry.port === egressPort) return undefined;
    return entry.pass === 'signed' || entry.pass === 'open' ? entry : undefined;
  }

  serve(socket: Socket): void {
    this.#host.serve(socket);
  }

  guest(sandboxId: string): Guest {
    return this.#host.guest(sandboxId);
  }

  refuseBeyond(): void {
    this.#host.refuseBeyond();
  }

  shown(thrown: unknown, requestId: string): Failure {
    return this.#host.shown(thrown, requestId, 'port');
  }

  begun(request: PortRequest, head: RequestHead, sandboxId: string): Span | undefined {
    this.#active.add(request);
    const { tracer } = this.#host.options;
    if (tracer === undefined) return undefined;
    const headers: Record<string, string> = {};
    for (const [name, value] of head.headers)
      if (name === 'traceparent' || name === 'tracestate') headers[name] = value;
    const route = '/sandboxes/{sandboxId}/proxy/{port}';
    return tracer.open(`${head.method} ${route}`, {
      ...{ kind: 'server', headers },
      attributes: { 'http.route': route, 'sandbox.id': sandboxId },
    });
  }

  ended(
    request: PortRequest,
    {
      method,
      sandboxId,
      status,
      ms: took,
      from,
      span,
    }: {
      method: string;
      sandboxId: string;
      status: number;
      ms: number;
      from: string;
      span: Span | undefined;
    },
  ): void {
    this.#active.delete(request);
    const { meters, log, access } = this.#host.options;
    const { requestId } = request;
    meters.request({ operation: 'port', status, ms: took });
    span?.end({
      attributes: {
        ...{ 'http.response.status_code': status, 'glovebox.operation': 'port' },
        ...{ 'http.request.method': method, 'glovebox.request_id': requestId },
      },
      ...(status >= 500 ? { error: String(status) } : {}),
    });
    const ms = Math.round(took);
    log.debug({ requestId, operation: 'port', status, ms }, 'request');
    access?.info({ requestId, method, operation: 'port', status, ms, sandbox: sandboxId, from }, 'request');
    if (this.#active.size > 0) return;
    this.#whenIdle?.();
    this.#whenIdle = undefined;
  }
}

interface ClientOptions {
  deadlines: Deadlines;
  onOver: (client: Client) => void;
  onTrouble: (error: unknown) => void;
}

/** One connection, as long as it is ours. */
class Client implements RequestServer {
  readonly #clients: GatewayClients;
  readonly #wire: Wire;
  readonly #address: ClientAddress;
  readonly #onOver: (client: Client) => void;
  #busy: PortRequest | undefined;

  constructor(clients: GatewayClients, socket: Socket, { deadlines, onOver, onTrouble }: ClientOptions) {
    this.#clients = clients;
    this.#onOver = onOver;
    // Later it may be gone.
    const { remoteAddress, encrypted } = socket as Socket & { encrypted?: boolean };
    this.#address = { from: remoteAddress ?? 'unknown', encrypted: encrypted === true };
    this.#wire = new Wire(socket, onTrouble);
    const { limits } = clients;
    new Http1Guest(this.#wire, this, deadlines, {
      droppedBytesMax,
      get headMs() {
        return limits.headMs;
      },
      get idleMs() {
        return limits.keepAliveMs;
      },
    });
  }

  request(head: RequestHead, http: Http1Guest): RequestReader {
    const question = head.target.indexOf('?');
    const path = question < 0 ? head.target : head.target.slice(0, question);
    const entry = path.startsWith('/') ? this.#clients.entryOf(head, path) : undefined;
    if (entry === undefined) return { ...nobody, begin: () => this.#handOver(http) };
    const search = question < 0 ? '' : head.target.slice(question);
    this.#busy = new PortRequest(this.#clients, http, { head, entry, search, ...this.#address });
    return this.#busy;
  }

  malformed(_: Malformed, http: Http1Guest): void {
    this.#handOver(http);
  }

  refusalOf({ status, message }: Malformed): Refused {
    return {
      ...{ kind: 'refused', status, close: true },
      headers: [['Content-Type', 'application/json']],
      body: JSON.stringify({ code: 'REQUEST::INVALID_PARAMETER', message }),
    };
  }

  over(): void {
    this.#onOver(this);
  }

  endIdle(): void {
    if (this.#busy === undefined || !this.#busy.underWay) this.cut();
  }

  cut(): void {
    this.#wire.cut();
  }

  #handOver(http: Http1Guest): void {
    this.#onOver(this);
    const wire = http.handOver();
    // What has come cannot be put back in front of an end. A connection may end after any answer.
    if (wire.socket.readableEnded || wire.closed) return wire.close();
    this.#clients.serve(wire.detach());
  }
}
