// The HTTP server: takes a request, finds what it means, lets it in or not, checks what it brings, calls the handler, sends the answer.
// Knows nothing of sandboxes; the handlers call the service. No state is shared between two servers of one process.
import {
  createServer,
  type IncomingMessage,
  type Server,
  type ServerOptions,
  ServerResponse,
} from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { ownerHeader } from '../contract/admin.ts';
import { type Area, httpStatusOf } from '../contract/errors.ts';
import { type Access, fullPathOf, type Route } from '../contract/routes.ts';
import type { Guest } from '../guest/guest.ts';
import { Failure } from '../lib/failure.ts';
import { type Span, within } from '../lib/trace.ts';
import { adminHandlers } from './admin.ts';
import { agentHandlers } from './agents.ts';
import { Audited, auditHandlers } from './audit.ts';
import { bellHandlers } from './bell.ts';
import { connectHandlers } from './connect.ts';
import { type Answer, checked, Exchange } from './exchange.ts';
import { commandHandlers } from './execd/command.ts';
import { contextHandlers } from './execd/contexts.ts';
import { enterSandbox, fileHandlers } from './execd/files.ts';
import { Interpreters } from './execd/interpreters.ts';
import { isolationHandlers } from './execd/isolation.ts';
import { metricsHandlers } from './execd/metrics.ts';
import { processHandlers } from './execd/processes.ts';
import { ptyHandlers } from './execd/pty.ts';
import { sessionHandlers } from './execd/sessions.ts';
import { contentHandlers, transferHandlers } from './execd/transfer.ts';
import { type Admitted, admit, isLoopback, isOwner, refuseForeignPage, showsCredentials } from './gate.ts';
import { type Entry, Gateway, wantsPage } from './gateway.ts';
import { GatewayClients } from './gateway-clients.ts';
import { type ApiLimits, type ApiOptions, defaultLimits, type Handlers } from './handlers.ts';
import { keepingHandlers } from './keeping.ts';
import { daemonMetricsHandlers } from './metrics.ts';
import { networkHandlers } from './network.ts';
import { diagnosticHandlers } from './opensandbox/diagnostics.ts';
import { egressHandlers } from './opensandbox/egress.ts';
import { lifecycleHandlers } from './opensandbox/lifecycle.ts';
import { snapshotHandlers } from './opensandbox/snapshots.ts';
import { poolHandlers } from './pools.ts';
import { portHandlers } from './ports.ts';
import { projectHandlers } from './projects.ts';
import { proxyRequest, proxyUpgrade } from './proxy.ts';
import { parseQuery } from './query.ts';
import { Refusal } from './refusal.ts';
import { find, parsePort, type Target } from './router.ts';
import { refuseToTenant, scopedTo } from './scope.ts';
import { templateHandlers } from './templates.ts';
import type { Tenant } from './tenants.ts';
import type { ServerTls } from './tls.ts';
import { volumeHandlers } from './volumes.ts';
import { whyHandlers } from './why.ts';
import { type Upgrade, WireServer } from './wire.ts';
import { workerHandlers } from './workers.ts';
import { workspaceHandlers } from './workspaces.ts';

export interface Listening {
  /** Where programs of this machine reach it. */
  url: string;
  port: number;
  /**
   * Stops listening, ends what runs without an end of its own (streams, terminals), and waits for the rest; the signal ends the waiting
   * and cuts the connections. Idempotent.
   */
  close(signal: AbortSignal): Promise<void>;
}

export interface Where {
  host: string;
  port: number;
  backlog?: number;
  /** HTTPS with its certificate; HTTP when absent. */
  tls?: ServerTls;
}

export interface Api {
  /** Failure('unavailable') when the port is taken, Failure('permission') when it may not be used. */
  listen(where: Where): Promise<Listening>;
  /** From the next request on, and for the next connections; what is not named is the default again. */
  setLimits(limits: Partial<ApiLimits>): void;
  /** The same for the gateway of `ApiOptions`, which serves ports of sandboxes and nothing else. */
  listenAsGateway(where: Where): Promise<Listening>;
}

export function createApi(options: ApiOptions): Api {
  const limits: ApiLimits = { ...defaultLimits, ...options.limits };
  const interpreters = new Interpreters(options);
  const handlers: Handlers = {
    ...lifecycleHandlers(options, limits),
    ...adminHandlers(options),
    ...commandHandlers(options, interpreters),
    ...sessionHandlers(options, interpreters),
    ...contextHandlers(options, interpreters),
    ...processHandlers(options),
    ...ptyHandlers(options),
    ...fileHandlers(enterSandbox(options)),
    ...contentHandlers(enterSandbox(options)),
    ...transferHandlers(options),
    ...metricsHandlers(options),
    ...isolationHandlers(options, interpreters),
    ...networkHandlers(options),
    ...bellHandlers(options),
    ...auditHandlers(options),
    ...egressHandlers(options),
    ...keepingHandlers(options),
    ...connectHandlers(options, limits),
    ...agentHandlers(options),
    ...templateHandlers(options),
    ...snapshotHandlers(options),
    ...workspaceHandlers(options),
    ...portHandlers(options),
    ...poolHandlers(options),
    ...whyHandlers(options),
    ...workerHandlers(options),
    ...projectHandlers(options),
    ...volumeHandlers(options),
    ...diagnosticHandlers(options),
    ...daemonMetricsHandlers(options),
  };
  const servers: ApiServer[] = [];
  const listen = ({ tls, ...where }: Where, gateway?: Gateway) => {
    const parts = { options, limits, handlers, ...(gateway === undefined ? {} : { gateway }) };
    const server = new ApiServer(parts, tls);
    servers.push(server);
    return server.listen(where);
  };
  return {
    listen: (where) => listen(where),
    listenAsGateway: (where) => {
      if (options.gateway === undefined) throw new Failure('internal', 'no gateway is configured');
      return listen(where, new Gateway(options.gateway, options.service));
    },
    setLimits: (next) => {
      delete limits.sandboxTimeoutSecondsMax;
      Object.assign(limits, defaultLimits, next);
      for (const server of servers) server.takeLimits();
    },
  };
}

interface ServerParts {
  options: ApiOptions;
  limits: ApiLimits;
  handlers: Handlers;
  /** What is asked for is found by it rather than in the path alone. */
  gateway?: Gateway;
}

class ApiServer {
  readonly #options: ApiOptions;
  readonly #limits: ApiLimits;
  readonly #handlers: Handlers;
  readonly #server: Server;
  readonly #tls: ServerTls | undefined;
  readonly #gateway: Gateway | undefined;
  readonly #clients: GatewayClients | undefined;
  readonly #wires = new WireServer();
  readonly #active = new Map<Exchange, Promise<void>>();
  /** Those that need no key: workers' links, of which there may be thousands and which last, and whatever strangers send, are no reason to refuse who has one. */
  readonly #uncounted = new Set<Exchange>();
  readonly #forced = new AbortController();
  /** Sockets that others have now, and end when they are told to: those of workers, which are told after us. */
  readonly #handedOver = new Set<Upgrade['socket']>();
  readonly #hostRules = { boundToLoopback: true, names: [] as string[] };
  #closing: Promise<void> | undefined;

  constructor({ options, limits, handlers, gateway }: ServerParts, tls: ServerTls | undefined) {
    this.#options = options;
    this.#limits = limits;
    this.#handlers = handlers;
    this.#gateway = gateway;
    const name = options.eip?.replace(/:\d+$/, '').toLowerCase();
    if (name !== undefined) this.#hostRules.names.push(name);
    const http: ServerOptions = {
      // Uploads may take as long as they like; only the head of a request is timed.
      requestTimeout: 0,
      headersTimeout: limits.headMs,
      // How often that is looked at.
      connectionsCheckingInterval: Math.min(30_000, Math.ceil(limits.headMs / 2)),
      keepAliveTimeout: limits.keepAliveMs,
      maxHeaderSize: 64 * 1024,
      // Other upgrades (h2c) are offers that a server may pass over.
      shouldUpgradeCallback: (request) => request.headers.upgrade?.toLowerCase() === 'websocket',
    };
    this.#server = tls?.createServer(http) ?? createServer(http);
    this.#tls = tls;
    this.#server.on('request', (request, response) =>
      this.#begin(new Exchange(request, response), undefined),
    );
    this.#server.on('upgrade', (request, socket: Socket, head) => this.#upgrade(request, socket, head));
    this.#server.on('clientError', (error, socket) => this.#malformed(error, socket));
    this.#clients = gateway && this.#clientsOf(gateway);
  }

  /** They get the connections, and give us what is not theirs. */
  #clientsOf(gateway: Gateway): GatewayClients {
    const event = this.#tls === undefined ? 'connection' : 'secureConnection';
    // Others look at connections too; that of HTTP itself is the last.
    const serve = this.#server.listeners(event).at(-1) as (socket: Socket) => void;
    this.#server.off(event, serve);
    const clients = new GatewayClients({
      ...{ gateway, options: this.#options, limits: this.#limits },
      refuseBeyond: () => this.#refuseBeyond({ counted: 1 }),
      guest: (sandboxId) => this.#guest(sandboxId),
      shown: (thrown, requestId, operation) => this.#shown(thrown, requestId, operation),
      serve: (socket) => {
        serve.call(this.#server, socket);
        // HTTP reads from the handle itself, and would leave what was put back in front.
        socket.resume();
      },
    });
    this.#server.on(event, (socket: Socket) => clients.take(socket));
    return clients;
  }

  async listen({ host, port, backlog }: Where): Promise<Listening> {
    const server = this.#server;
    await new Promise<void>((resolve, reject) => {
      server.once('error', (error: NodeJS.ErrnoException) => reject(listenFailure(error, host, port)));
      server.listen({ host, port, backlog }, resolve);
    });
    // A connection that cannot be accepted (no descriptors left) must not end the daemon.
    server.on('error', (error) =>
      this.#options.log.error({ error: String(error) }, 'a connection was not accepted'),
    );
    const address = server.address() as AddressInfo;
    this.#hostRules.boundToLoopback = isLoopback(address.address);
    const wildcard = { '0.0.0.0': '127.0.0.1', '::': '::1' }[address.address];
    const shown = wildcard ?? address.address;
    return {
      url: `${this.#tls === undefined ? 'http' : 'https'}://${shown.includes(':') ? `[${shown}]` : shown}:${address.port}`,
      port: address.port,
      close: (signal) => {
        this.#closing ??= this.#close(signal);
        return this.#closing;
      },
    };
  }

  /** Those that Node.js keeps itself. */
  takeLimits(): void {
    this.#server.keepAliveTimeout = this.#limits.keepAliveMs;
  }

  async #close(signal: AbortSignal): Promise<void> {
    const stopped = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.#server.closeIdleConnections();
    this.#tls?.endHandshakes();
    for (const exchange of this.#active.keys())
      if (exchange.endless) exchange.abort(new Failure('aborted', 'the daemon stops'));
    const relayed = this.#clients?.close();
    const force = () => {
      this.#clients?.force();
      this.#forced.abort(new Failure('aborted', 'the daemon stops'));
      for (const exchange of this.#active.keys()) {
        exchange.abort(new Failure('aborted', 'the daemon stops'));
        exchange.request.socket.destroy();
      }
    };
    signal.addEventListener('abort', force, { once: true });
    if (signal.aborted) force();
    await relayed;
    while (this.#active.size > 0) await Promise.all(this.#active.values());
    signal.removeEventListener('abort', force);
    this.#server.closeAllConnections();
    this.#clients?.force();
    if (this.#handedOver.size === 0) await stopped;
  }

  #upgrade(request: IncomingMessage, socket: Socket, head: Buffer): void {
    // Node has let go of the socket: an error on it would be nobody's.
    socket.on('error', () => socket.destroy());
    const response = new ServerResponse(request);
    response.shouldKeepAlive = false;
    response.assignSocket(socket);
    response.once('finish', () => socket.destroySoon());
    this.#begin(new Exchange(request, response), { socket, head });
  }

  #malformed(error: NodeJS.ErrnoException, socket: Duplex): void {
    // Whoever said that a request was its last is not listened to any more.
    if (error.code === 'HPE_CLOSED_CONNECTION') return;
    let before: Exchange | undefined;
    for (const exchange of this.#active.keys())
      if (exchange.request.socket === socket && exchange.request.complete) before = exchange;
    // What comes behind a request must not be answered in its place.
    if (before === undefined || !socket.writable) refuseMalformed(error, socket);
    else before.beLast();
  }

  #begin(exchange: Exchange, upgrade: Upgrade | undefined): void {
    const { method = '', headers } = exchange.request;
    const span = this.#options.tracer?.open(method, { kind: 'server', headers });
    const work = within(span, () => this.#serve(exchange, upgrade, span)).finally(() => {
      this.#active.delete(exchange);
      this.#uncounted.delete(exchange);
    });
    this.#active.set(exchange, work);
  }

  async #serve(exchange: Exchange, upgrade: Upgrade | undefined, span: Span | undefined): Promise<void> {
    const startedAt = performance.now();
    let area: Area = 'request';
    let operation = 'unknown';
    let sandbox: string | undefined;
    const audited = new Audited(this.#options.audit, exchange);
    let held: Disposable | undefined;
    try {
      const { request } = exchange;
      if (this.#closing) exchange.response.setHeader('Connection', 'close');
      // Pages of sandboxes are asked for under their own names, and by pages of any origin.
      if (this.#gateway === undefined) refuseForeignPage(request, this.#hostRules);
      const entry = this.#gateway?.enter(request, exchange.path);
      if (entry === 'health') return await exchange.send({ status: 200, json: { status: 'healthy' } });
      const target = find(request.method ?? 'GET', entry?.fullPath ?? exchange.path);
      area = areaOf(target);
      operation = target.kind === 'route' ? target.id : target.kind;
      audited.meant(target);
      if (span !== undefined) tellTarget(span, target, request.method ?? '');
      const access =
        target.kind === 'route' ? target.route.access : target.kind === 'port' ? 'sandbox' : 'key';
      const sandboxId = target.kind === 'route' ? target.params.sandboxId : target.sandboxId;
      sandbox = sandboxId?.slice(0, 64);
      const { ownerKey, service, tenants } = this.#options;
      const { by, tenant } = passOf(request, access, entry) ?? this.#admit(request, access, sandboxId);
      audited.letIn(tenant === undefined && isOwner(request, ownerKey) ? 'owner' : by, tenant);
      // An address that lets in whoever has it takes nothing of what the administrator's key may do.
      if (access !== 'open' && (entry === undefined || showsCredentials(request))) tenants.admit(tenant);
      if (tenant !== undefined) {
        // A key of a project is never the owner's, whoever uses it.
        delete request.headers[ownerHeader.toLowerCase()];
        held = tenants.follow(tenant, exchange);
        refuseToTenant(tenant, target, service);
      }
      if (access === 'open') this.#uncounted.add(exchange);
      // This one is not counted yet.
      else this.#refuseBeyond({ counted: 0 });
      await audited.begin(upgrade !== undefined);
      const answer = await this.#dispatch(exchange, { target, upgrade, tenant, entry });
      audited.answered(answer);
      await exchange.send(answer);
    } catch (thrown) {
      audited.failed(Failure.from(thrown, operation));
      this.#fail(exchange, thrown, area, operation);
    } finally {
      held?.[Symbol.dispose]();
      audited.over();
      const { requestId, response } = exchange;
      const took = performance.now() - startedAt;
      const { statusCode: status } = response;
      this.#options.meters.request({ operation, status, ...(exchange.endless ? {} : { ms: took }) });
      span?.end({
        attributes: {
          ...{ 'http.response.status_code': status, 'glovebox.operation': operation },
          ...{ 'http.request.method': exchange.request.method, 'glovebox.request_id': requestId },
        },
        ...(status >= 500 ? { error: String(status) } : {}),
      });
      const ms = Math.round(took);
      this.#options.log.debug({ requestId, operation, status, ms }, 'request');
      this.#options.access?.info(
        {
          ...{ requestId, method: exchange.request.method, operation, status, ms },
          ...(sandbox === undefined ? {} : { sandbox }),
          from: exchange.request.socket.remoteAddress ?? 'unknown',
        },
        'request',
      );
    }
  }

  /** `counted`: whether the request that asks is among those that are under way, 1 or 0. */
  #refuseBeyond({ counted }: { counted: number }): void {
    const { concurrency } = this.#limits;
    const others = this.#active.size - this.#uncounted.size + (this.#clients?.active ?? 0) - counted;
    if (concurrency > 0 && others >= concurrency)
      throw new Refusal('unavailable', `more than ${concurrency} requests at the same time`, {
        headers: { 'Retry-After': '1' },
        hint: 'Try again in a moment, or raise server.limit_concurrency.',
      });
  }

  /** Throws a 401; or a 429, where too many of these went before. */
  #admit(request: IncomingMessage, access: Access, sandboxId: string | undefined): Admitted {
    const { apiKey, service, tenants } = this.#options;
    try {
      return admit(request, access, sandboxId, {
        ...{ apiKey, tenants },
        accessToken: (id) => service.accessToken(id),
        projectOf: (id) => service.projectOf(id),
      });
    } catch (error) {
      if (error instanceof Failure && error.code === 'unauthenticated')
        tenants.failed(request.socket.remoteAddress ?? 'unknown');
      throw error;
    }
  }

  /** What the handlers of a tenant see is its project's. What the path names has been found to be already. */
  #handlersFor(tenant: Tenant | undefined): Handlers {
    if (tenant === undefined) return this.#handlers;
    const scoped = scopedTo(tenant, this.#options);
    return {
      ...this.#handlers,
      ...lifecycleHandlers(scoped, this.#limits),
      ...networkHandlers(scoped),
      ...agentHandlers(scoped),
      ...templateHandlers(scoped),
      ...snapshotHandlers(scoped),
      ...portHandlers(scoped),
      ...whyHandlers(scoped),
      ...projectHandlers(scoped, tenant),
      ...volumeHandlers(scoped, tenant),
      ...diagnosticHandlers(scoped),
    };
  }

  async #dispatch(exchange: Exchange, { target, upgrade, tenant, entry }: Meant): Promise<Answer> {
    // Its key may have been revoked while the audit log was written.
    if (tenant !== undefined) exchange.signal.throwIfAborted();
    if (target.kind === 'absent' && target.never)
      throw new Refusal('unsupported', target.never.why, { status: target.never.status });
    if (target.kind === 'absent')
      throw new Failure('unsupported', `${target.what} are not part of this version of Glovebox`);
    if (target.kind === 'port') {
      const port = parsePort(target.port);
      const { service } = this.#options;
      const guest = this.#guest(target.sandboxId);
      service.touch(target.sandboxId);
      // Whoever is connected to a port of it is attached.
      using _ = service.hold(target.sandboxId);
      const { path, prefix } = target;
      const address = entry?.addressFor(prefix) ?? { prefix };
      const route = { ...address, guest, port, path, limits: this.#limits };
      if (upgrade) exchange.endless = true;
      await (upgrade ? proxyUpgrade(exchange, upgrade, route) : proxyRequest(exchange, route));
      return 'taken';
    }
    const { route, params } = target;
    if (route.area === 'execd' && params.sandboxId !== undefined)
      this.#options.service.touch(params.sandboxId);
    if (route.webSocket !== undefined && upgrade === undefined)
      throw new Refusal('invalid', 'this is a WebSocket', { status: 426, headers: { Upgrade: 'websocket' } });
    if (route.webSocket === undefined && upgrade !== undefined)
      throw new Refusal('invalid', 'this is no WebSocket');
    const query = parsedQuery(route, exchange.search);
    exchange.endless = route.endless ?? (route.follow !== undefined && query?.follow === true);
    if (exchange.endless && this.#closing) throw new Failure('unavailable', 'the daemon stops');
    const call = {
      exchange,
      params,
      sandboxId: params.sandboxId ?? '',
      query,
      body:
        typeof route.body === 'object'
          ? await exchange.readJson(route.body, {
              optional: route.bodyOptional,
              bytesMax: route.bodyBytesMax,
            })
          : undefined,
      lifetime: this.#forced.signal,
      accept: () => {
        if (upgrade === undefined) throw new Failure('internal', `${target.id} is no WebSocket`);
        return this.#wires.accept(exchange, upgrade, route.webSocket ?? '');
      },
      takeOver: () => {
        if (upgrade === undefined) throw new Failure('internal', `${target.id} is no WebSocket`);
        const { socket } = upgrade;
        exchange.response.detachSocket(socket as never);
        this.#handedOver.add(socket);
        socket.once('close', () => this.#handedOver.delete(socket));
        return upgrade;
      },
    };
    // Or while the body came.
    if (tenant !== undefined) exchange.signal.throwIfAborted();
    const handlers = this.#handlersFor(tenant);
    // The schemas of the table have made sure that the call fits its own handler, which the compiler cannot follow.
    return (handlers[target.id] as (call: unknown) => Answer | Promise<Answer>)(call);
  }

  #guest(sandboxId: string): Guest {
    try {
      return this.#options.service.guest(sandboxId);
    } catch (error) {
      if (this.#gateway === undefined || !(error instanceof Failure) || error.code !== 'conflict')
        throw error;
      // To who knows nothing of sandboxes it is a server that does not answer at the moment.
      const { message, hint } = error;
      throw new Refusal('conflict', message, {
        ...{ status: 503, headers: { 'Retry-After': '5' }, cause: error },
        ...(hint === undefined ? {} : { hint }),
      });
    }
  }

  /** What is told of a failure, after the log has heard of what is to be mended here. */
  #shown(thrown: unknown, requestId: string, operation: string): Failure {
    const failure = Failure.from(thrown, operation);
    const ours = thrown instanceof Failure || failure.code !== 'internal';
    if (failure.code === 'internal' || failure.code === 'unknown') {
      const error = String((thrown as Error)?.stack ?? thrown);
      this.#options.log.error({ requestId, operation, error }, 'request failed');
    } else if (
      !(thrown instanceof Refusal) &&
      failure.code !== 'unsupported' &&
      httpStatusOf(failure.code) >= 500
    )
      this.#options.log.warn(
        { requestId, operation, code: failure.code, error: failure.message },
        'request failed',
      );
    return ours
      ? failure
      : new Failure('internal', `something went wrong in the daemon; its log tells what under ${requestId}`);
  }

  #fail(exchange: Exchange, thrown: unknown, area: Area, operation: string): void {
    const { requestId, response } = exchange;
    const shown = this.#shown(thrown, requestId, operation);
    try {
      if (response.destroyed || response.socket === null) exchange.request.socket.destroy();
      else
        exchange.fail(shown, area, {
          asPage:
            this.#gateway !== undefined &&
            wantsPage(exchange.request.method, exchange.request.headers.accept),
        });
    } catch {
      exchange.request.socket.destroy();
    }
  }
}

/** What a request has been found to mean. */
interface Meant {
  target: Target;
  upgrade: Upgrade | undefined;
  tenant: Tenant | undefined;
  /** At the gateway. */
  entry: Entry | undefined;
}

/** What the address itself lets in, where nothing else says who it is. Throws a 401 for an address that did so once, or says that it does. */
function passOf(request: IncomingMessage, access: Access, entry: Entry | undefined): Admitted | undefined {
  if (entry === undefined || access !== 'sandbox' || showsCredentials(request)) return undefined;
  if (entry.pass === 'open') return { by: 'nobody' };
  if (entry.pass === 'signed') return { by: 'token' };
  if (entry.pass === 'none') return undefined;
  throw new Refusal(
    'unauthenticated',
    entry.pass === 'expired' ? 'the signed address has expired' : 'the signature of the address does not fit',
    { wireCode: 'INVALID_API_KEY', hint: 'Ask whoever gave it to you for a new one.' },
  );
}

/** The route, never the path itself, which may hold what a caller made up. */
function tellTarget(span: Span, target: Target, method: string): void {
  if (target.kind === 'absent') return;
  const route = target.kind === 'route' ? fullPathOf(target.route) : '/sandboxes/{sandboxId}/proxy/{port}';
  span.rename(`${method} ${route}`);
  span.set({
    'http.route': route,
    'sandbox.id': target.kind === 'route' ? target.params.sandboxId : target.sandboxId,
  });
}

function areaOf(target: Target): Area {
  if (target.kind === 'port') return 'proxy';
  return target.kind === 'route' ? target.route.area : target.area;
}

function parsedQuery(route: Route, search: string): Record<string, unknown> | undefined {
  const given = parseQuery(search);
  const { query: schema } = route;
  if (schema === undefined) return undefined;
  const value: Record<string, unknown> = {};
  for (const [name, field] of Object.entries(schema.shape)) {
    const values = given.get(name);
    if (values === undefined) continue;
    const many = field.safeParse([]).success;
    if (!many && values.length > 1) throw new Failure('invalid', `${name}: give it once`);
    value[name] = many ? values : values[0];
  }
  for (const [name, field] of Object.entries(schema.shape))
    if (value[name] === undefined && !field.safeParse(undefined).success)
      throw new Refusal(
        'invalid',
        `the query has no ${name}`,
        route.area === 'execd' ? { wireCode: 'MISSING_QUERY' } : {},
      );
  return checked(schema, value, 'the query');
}

function listenFailure(error: NodeJS.ErrnoException, host: string, port: number): Failure {
  const where = `listen on ${host}:${port}`;
  if (error.code === 'EADDRINUSE')
    return new Failure('unavailable', `${where}: the port is in use`, {
      cause: error,
      hint: 'Choose another with --port, or stop what uses it.',
    });
  if (error.code === 'EADDRNOTAVAIL' || error.code === 'ENOTFOUND')
    return new Failure('invalid', `${where}: that is no address of this machine`, {
      cause: error,
      hint: 'Give --host one of those that `ip address` shows, 127.0.0.1 for this machine alone, or 0.0.0.0 for all.',
    });
  if (error.code === 'EACCES')
    return new Failure('permission', `${where}: this port may not be used by this user`, {
      cause: error,
      hint: 'Choose one from 1024 on with --port.',
    });
  return Failure.from(error, where);
}

/** What Node's parser refuses gets a JSON body like everything else, as far as it can still be written. */
function refuseMalformed(error: NodeJS.ErrnoException, socket: Duplex): void {
  if (!socket.writable || error.code === 'ECONNRESET') {
    socket.destroy();
    return;
  }
  const [status, message] =
    error.code === 'HPE_HEADER_OVERFLOW'
      ? ['431 Request Header Fields Too Large', 'the head of the request is longer than 64 KiB']
      : error.code === 'ERR_HTTP_REQUEST_TIMEOUT'
        ? ['408 Request Timeout', 'the head of the request did not come in time']
        : ['400 Bad Request', 'this is no HTTP request'];
  const body = JSON.stringify({ code: 'REQUEST::INVALID_PARAMETER', message });
  socket.end(
    `HTTP/1.1 ${status}\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\nConnection: close\r\n\r\n${body}`,
  );
}
