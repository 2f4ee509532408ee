// What the API writes into the audit log: each call that may change something, before it is done and when it is over, and each that is not let in.
import type { AuditCaller, AuditEntry } from '../contract/audit.ts';
import type { Failure } from '../lib/failure.ts';
import type { Answer, Exchange } from './exchange.ts';
import type { ApiOptions, Handlers } from './handlers.ts';
import { answerLog } from './logs.ts';
import type { Target } from './router.ts';
import type { Tenant } from './tenants.ts';
import { subjectOf } from './tls.ts';

export interface AuditRequest {
  by: AuditCaller;
  project?: string;
  key?: string;
  address: string;
  certificate?: string;
  operation: string;
  method: string;
  sandbox?: string;
  params?: Record<string, string>;
  requestId: string;
}

/** What the API can ask of the audit log. It cleans and cuts what it is given. */
export interface AuditService {
  /**
   * Resolves when the call is on the disk. Failure('full') or Failure('unavailable') when it cannot be, and then the call is not to be done; but a full disk
   * does not hold up what makes room. Its `end` says what came of it, once.
   */
  begin(
    request: AuditRequest,
    options: { makesRoom: boolean },
  ): Promise<{
    end(outcome: { status: number; error?: string; made?: string }): void;
  }>;
  refused(request: AuditRequest, status: number): void;
  /** Newest last. `sandbox`: an id, or what the log knows of one that is gone. */
  log(filter: { sandbox?: string; limit: number }): Promise<AuditEntry[]>;
  /** Calls as they begin and again when they end, from this call on. Ends with the signal. */
  followLog(filter: { sandbox?: string }, signal: AbortSignal): AsyncIterable<AuditEntry>;
}

export function auditHandlers({ service, audit }: ApiOptions): Handlers<'auditLog'> {
  return { auditLog: async (call) => await answerLog(call, service, audit) };
}

/** Answers of the gate to who may not come in, or not like this. */
const refusals: ReadonlySet<number> = new Set([401, 403, 421, 426]);

/** One request on its way through the server. */
export class Audited {
  readonly #audit: AuditService;
  readonly #exchange: Exchange;
  readonly #address: string;
  readonly #certificate: string | undefined;
  #target: Target | undefined;
  #by: AuditCaller = 'nobody';
  #tenant: Tenant | undefined;
  #call: Awaited<ReturnType<AuditService['begin']>> | undefined;
  #made: string | undefined;
  #error: string | undefined;

  constructor(audit: AuditService, exchange: Exchange) {
    this.#audit = audit;
    this.#exchange = exchange;
    // Later the connection may be gone, and with it the address and the certificate.
    this.#address = exchange.request.socket.remoteAddress ?? 'unknown';
    this.#certificate = subjectOf(exchange.request);
  }

  letIn(by: AuditCaller, tenant: Tenant | undefined): void {
    this.#by = by;
    this.#tenant = tenant;
  }

  meant(target: Target): void {
    this.#target = target;
  }

  /**
   * Done without are reading (GET and HEAD that stay what they are) and what goes to a port of a guest, which is between the two. Throws what `AuditService.begin` does, and when the client has gone
   * meanwhile.
   */
  async begin(upgrade: boolean): Promise<void> {
    const { method } = this.#exchange.request;
    if (this.#target?.kind === 'port' || (!upgrade && (method === 'GET' || method === 'HEAD'))) return;
    this.#call = await this.#audit.begin(this.#request(), { makesRoom: method === 'DELETE' });
    this.#exchange.signal.throwIfAborted();
  }

  answered(answer: Answer): void {
    if (answer === 'taken' || !('json' in answer)) return;
    const { json } = answer;
    const id = json !== null && typeof json === 'object' && 'id' in json ? json.id : undefined;
    if (answer.status < 300 && typeof id === 'string') this.#made = id;
  }

  failed({ code }: Failure): void {
    this.#error = code;
  }

  over(): void {
    const status = this.#status();
    if (this.#call !== undefined)
      this.#call.end({
        status,
        ...(this.#error === undefined ? {} : { error: this.#error }),
        ...(this.#made === undefined ? {} : { made: this.#made }),
      });
    else if (refusals.has(status)) this.#audit.refused(this.#request(), status);
  }

  /** What went out; 499 when nothing did. */
  #status(): number {
    const { response } = this.#exchange;
    if (response.headersSent) return response.statusCode;
    // An upgrade that was accepted has taken the socket away.
    return response.socket === null && this.#call !== undefined ? 101 : 499;
  }

  #request(): AuditRequest {
    const { request, requestId } = this.#exchange;
    const target = this.#target;
    const { sandboxId, ...params } =
      target?.kind === 'route'
        ? target.params
        : target?.kind === 'port'
          ? { sandboxId: target.sandboxId, port: target.port }
          : { sandboxId: target?.sandboxId };
    return {
      ...{ by: this.#by, address: this.#address, method: request.method ?? 'GET', requestId },
      ...(this.#tenant === undefined ? {} : { project: this.#tenant.project.name, key: this.#tenant.keyId }),
      ...(this.#certificate === undefined ? {} : { certificate: this.#certificate }),
      operation: target === undefined ? 'unknown' : target.kind === 'route' ? target.id : target.kind,
      ...(sandboxId === undefined ? {} : { sandbox: sandboxId }),
      ...(Object.keys(params).length === 0 ? {} : { params }),
    };
  }
}
