// The gate: whether one request of a guest goes on, decided in this order: it says one thing only, the policy lets it, a person does where asked, and no
// secret is on a wrong way. Each request that is refused here is on record when this returns.
import type { LogEntry } from '../contract/network.ts';
import type { OpenEntry } from '../journal/journal.ts';
import type { Attempt, Decision } from '../policy/policy.ts';
import type { Injection } from '../vault/vault.ts';
import { type Connection, Judgement, type Outcome } from './connection.ts';
import type { Admitted, Gate, GuestRequest, Refused } from './gate.ts';
import { bareHost, defaultPort, placeFrom, samePlace } from './place.ts';
import { policyRefusal, requestRefusal } from './refusal.ts';
import type { Destination, UpstreamError } from './upstream.ts';

const nothing: readonly Buffer[] = [];

/** The gate of one connection. `verifiedTls`: what is asked here goes out on TLS that is verified for its destination. */
export class RequestGate implements Gate {
  readonly #connection: Connection;
  readonly #verifiedTls: boolean;
  /** What agreed last: the next request on the connection nearly always says the same. */
  #agreed: { authority: string; to: Destination } | undefined;

  constructor(connection: Connection, options: { verifiedTls: boolean }) {
    this.#connection = connection;
    this.#verifiedTls = options.verifiedTls;
  }

  admit(
    request: GuestRequest,
    signal: AbortSignal,
  ): Refused | AdmittedRequest | Promise<Refused | AdmittedRequest> {
    const { destination: to } = request;
    if (!this.#agrees(request))
      return this.#refuse(
        request,
        { effect: 'deny', reason: 'host-mismatch' },
        requestRefusal(
          421,
          'host-mismatch',
          'The request names another host than the one that this connection goes to.',
        ),
      );
    const attempt: Attempt = {
      host: to.host,
      port: to.port,
      protocol: 'tcp',
      request: { method: request.method, path: pathOf(request.target) },
    };
    const decision = this.#connection.settle(attempt, request.protocol);
    if (!(decision instanceof Promise)) return this.#decided(request, attempt, decision, signal);
    return decision.then((settled) => this.#decided(request, attempt, settled, signal));
  }

  #agrees({ authority, destination, scheme }: GuestRequest): boolean {
    const agreed = this.#agreed;
    if (agreed !== undefined && agreed.authority === authority && samePlace(agreed.to, destination))
      return true;
    const said = placeFrom(authority, defaultPort[scheme]);
    if (said === undefined || !samePlace(said, destination)) return false;
    this.#agreed = { authority, to: destination };
    return true;
  }

  #decided(
    request: GuestRequest,
    attempt: Attempt,
    decision: Decision,
    signal: AbortSignal,
  ): Refused | AdmittedRequest | Promise<Refused | AdmittedRequest> {
    const { destination: to, scheme } = request;
    if (decision.effect !== 'allow')
      return this.#refuse(request, decision, policyRefusal(to, scheme, decision));
    const { secrets } = this.#connection.session.sandbox;
    const host = bareHost(to.host);
    const binds = secrets.binds(host, to.port);
    const admitted = (injection: Injection & { kind: 'none' | 'changed' }) =>
      new AdmittedRequest(
        this.#connection,
        request,
        attempt,
        decision,
        injection,
        binds ? nothing : secrets.placeholders,
      );
    if (!binds && secrets.placeholders.length === 0) return admitted(unchanged);
    const { method, target, headers } = request;
    const outgoing = { verifiedTls: this.#verifiedTls, host, port: to.port, method, target, headers };
    return Promise.try(() => secrets.inject(outgoing, signal)).then(
      (injection) => {
        if (injection.kind !== 'refused') return admitted(injection);
        return this.#refuse(
          request,
          { effect: 'deny', reason: injection.reason },
          requestRefusal(
            injection.reason === 'secret_unavailable' ? 502 : 403,
            injection.reason,
            injection.message,
          ),
          injection.alarm ? injection.message : undefined,
        );
      },
      () =>
        this.#refuse(
          request,
          { effect: 'deny', reason: 'secret_unavailable' },
          requestRefusal(502, 'secret_unavailable', 'A secret that belongs to this request cannot be read.'),
        ),
    );
  }

  #refuse(request: GuestRequest, decision: Outcome, refusal: Refused, alarm?: string): Refused {
    record(this.#connection, request, decision, alarm === undefined ? {} : { alarm }).end({
      bytesOut: 0,
      bytesIn: Buffer.byteLength(refusal.body),
      status: refusal.status,
    });
    return refusal;
  }
}

const unchanged: Injection & { kind: 'none' } = { kind: 'none' };

/** Goes on record when its entry is first asked for: by then it is known whether its addresses may be dialled. */
export class AdmittedRequest implements Admitted {
  readonly kind = 'admitted';
  readonly target: string;
  readonly headers: readonly (readonly [name: string, value: string])[];
  readonly scrub: readonly Buffer[];
  readonly forbidden: readonly Buffer[];
  readonly body?: NonNullable<Admitted['body']>;
  readonly pool: string;
  readonly judgement: Judgement;
  readonly #connection: Connection;
  readonly #request: GuestRequest;
  readonly #secrets: string[];
  #entry: OpenEntry | undefined;

  constructor(
    connection: Connection,
    request: GuestRequest,
    attempt: Attempt,
    decision: Decision,
    injection: Injection & { kind: 'none' | 'changed' },
    forbidden: readonly Buffer[],
  ) {
    this.#connection = connection;
    this.#request = request;
    this.judgement = new Judgement(connection, attempt, decision);
    if (injection.kind === 'none') {
      this.target = request.target;
      this.headers = request.headers;
      this.scrub = nothing;
      this.forbidden = forbidden;
      this.pool = '';
      this.#secrets = [];
      return;
    }
    this.target = injection.target;
    this.headers = injection.scrub.length === 0 ? injection.headers : askingForPlain(injection.headers);
    this.scrub = injection.scrub;
    this.forbidden = nothing;
    this.pool = injection.secrets.join(' ');
    this.#secrets = injection.secrets;
    if (injection.body !== undefined) this.body = injection.body;
  }

  get entry(): OpenEntry {
    this.#entry ??= record(
      this.#connection,
      this.#request,
      this.judgement.decision,
      this.#secrets.length === 0 ? {} : { secrets: this.#secrets },
    );
    return this.#entry;
  }

  get stillAllowed(): boolean {
    return this.judgement.holds(undefined);
  }

  /** It was not to be: none of its addresses may be dialled, or none could be. Instead of `entry`. */
  failed(error: UpstreamError, refusal: Refused): void {
    const outcome = { bytesOut: 0, bytesIn: Buffer.byteLength(refusal.body), status: refusal.status };
    if (error.code === 'denied' && error.decision !== undefined)
      record(this.#connection, this.#request, error.decision, {}).end(outcome);
    else this.entry.end({ ...outcome, error: error.code });
  }
}

/** What an answer must not show has to be found in it, so it should not come compressed. */
function askingForPlain(headers: [string, string][]): [string, string][] {
  return [...headers.filter(([name]) => name !== 'accept-encoding'), ['accept-encoding', 'identity']];
}

function record(
  connection: Connection,
  request: GuestRequest,
  decision: Outcome,
  more: Partial<Pick<LogEntry, 'secrets' | 'alarm'>>,
): OpenEntry {
  return connection.record(
    {
      to: request.destination,
      kind: request.kind,
      protocol: request.protocol,
      method: request.method,
      path: request.target,
      ...more,
    },
    decision,
  );
}

function pathOf(target: string): string {
  const query = target.indexOf('?');
  return query < 0 ? target : target.slice(0, query);
}
