// The gate: whether one request of a guest goes on, decided in this order: it says one thing only, the policy lets it, a person does where asked, and no
// secret is on a wrong way. Each request that is refused here is on record when this returns.
import type { LogEntry } from '../contract/network.ts';
import type { OpenEntry } from '../journal/journal.ts';
import type { Attempt, Decision } from '../policy/policy.ts';
import { meansAnother } from '../vault/place.ts';
import type { Injection } from '../vault/vault.ts';
import { type Connection, Judgement, type Outcome } from './connection.ts';
import type { Admitted, Gate, GuestRequest, Refused } from './gate.ts';
import { bareHost, defaultPort, placeFrom, samePlace } from './place.ts';
import { policyRefusal, requestRefusal } from './refusal.ts';
import type { Destination, UpstreamError } from './upstream.ts';

const nothing: readonly Buffer[] = [];

/**
 * The gate of one connection. `verifiedTls`: what is asked here goes out on TLS that is verified for its destination. `address`: where it has been
 * connected to already.
 */
export class RequestGate implements Gate {
  readonly #connection: Connection;
  readonly #options: { verifiedTls: boolean; address?: string };
  /** What agreed last: the next request on the connection nearly always says the same. */
  #agreed: { authority: string; to: Destination } | undefined;

  constructor(connection: Connection, options: { verifiedTls: boolean; address?: string }) {
    this.#connection = connection;
    this.#options = options;
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
    if (decision.dependsOnRequest && meansAnother(request.headers)) return this.#masked(request);
    const { secrets } = this.#connection.session.sandbox;
    const host = bareHost(to.host);
    // Nothing that stands for a secret has any business on a way that is not verified.
    const forbidden = this.#options.verifiedTls
      ? secrets.foreignPlaceholders(host, to.port)
      : secrets.placeholders;
    const admitted = (injection: Sound) =>
      new AdmittedRequest(this.#connection, {
        request,
        attempt,
        decision,
        injection,
        forbidden,
        address: this.#options.address,
      });
    if (!secrets.binds(host, to.port) && secrets.placeholders.length === 0) return admitted(unchanged);
    const { method, target, headers } = request;
    const outgoing = { verifiedTls: this.#options.verifiedTls, host, port: to.port, method, target, headers };
    return Promise.try(() => secrets.inject(outgoing, signal)).then(
      (injection) => {
        // The policy may have changed while a secret was fetched.
        const now = this.#connection.decide(attempt);
        if (now.effect !== 'allow') return this.#refuse(request, now, policyRefusal(to, scheme, now));
        if (injection.kind === 'changed' && breaksHead(injection)) return this.#unusable(request);
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
      () => this.#unusable(request),
    );
  }

  #masked(request: GuestRequest): Refused {
    const refusal = requestRefusal(
      403,
      'request-override',
      'A header says that another method or path is meant, and rules depend on those here. Send the request as what it is.',
    );
    return this.#refuse(request, { effect: 'deny', reason: 'request-override' }, refusal);
  }

  #unusable(request: GuestRequest): Refused {
    const refusal = requestRefusal(
      502,
      'secret_unavailable',
      'A secret that belongs to this request cannot be used.',
    );
    return this.#refuse(request, { effect: 'deny', reason: 'secret_unavailable' }, refusal);
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

type Sound = Injection & { kind: 'none' | 'changed' };
const unchanged: Sound = { kind: 'none' };

/** A secret with a line break in it would make two heads of one. */
const breaksHead = ({ target, headers }: Injection & { kind: 'changed' }): boolean =>
  !/^[\x21-\x7e]+$/.test(target) ||
  headers.some(([name, value]) => unsound.test(name) || unsound.test(value));
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const unsound = /[\0-\x08\x0a-\x1f\x7f]|[^\0-\xff]/;

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
  readonly #address: string | undefined;
  #entry: OpenEntry | undefined;

  constructor(
    connection: Connection,
    admitted: {
      request: GuestRequest;
      attempt: Attempt;
      decision: Decision;
      injection: Sound;
      forbidden: readonly Buffer[];
      address: string | undefined;
    },
  ) {
    const { request, injection, forbidden } = admitted;
    this.#connection = connection;
    this.#request = request;
    this.#address = admitted.address;
    this.forbidden = forbidden;
    this.judgement = new Judgement(connection, admitted.attempt, admitted.decision);
    if (injection.kind === 'none') {
      this.target = request.target;
      this.headers = request.headers;
      this.scrub = nothing;
      this.pool = '';
      this.#secrets = [];
      return;
    }
    this.target = injection.target;
    this.headers = injection.headers;
    this.scrub = injection.scrub;
    this.pool = injection.secrets.join(' ');
    this.#secrets = injection.secrets;
    if (injection.body !== undefined) this.body = injection.body;
  }

  get entry(): OpenEntry {
    this.#entry ??= record(this.#connection, this.#request, this.judgement.decision, {
      ...(this.#secrets.length > 0 && { secrets: this.#secrets }),
      ...(this.#address !== undefined && { address: this.#address }),
    });
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
    else {
      this.entry.note({ detail: error.message });
      this.entry.end({ ...outcome, error: error.code });
    }
  }
}

function record(
  connection: Connection,
  request: GuestRequest,
  decision: Outcome,
  more: Partial<Pick<LogEntry, 'secrets' | 'alarm' | 'address'>>,
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
