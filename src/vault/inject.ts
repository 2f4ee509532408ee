// One request on its way out: what of it is a placeholder, whether that may go where it goes, and the request with the secrets in it.
import { jsonEscaped, percentDecoded, percentEncoded, scrubForms } from './encodings.ts';
import { type Action, areAlternatives, formatted, type Grant, misfit, sameHeader } from './grant.ts';
import { type HostMatch, matchesHost, matchesRequest } from './place.ts';
import { awsCredential, type KeyPair, parseKeyPair, resign } from './sigv4.ts';
import { bodyBytesMax, type Injection, type OutgoingRequest } from './vault.ts';
import type { UsableSecret, View } from './view.ts';

type Headers = [name: string, value: string][];
type Refused = Extract<Injection, { kind: 'refused' }>;

interface Candidate<A extends Action = Action> {
  secret: UsableSecret;
  place: Grant['place'];
  action: A;
  match: HostMatch;
}

const none: Injection = { kind: 'none' };

/** `unavailable` hears of a secret that could not be read: the guest is told no more than its name. */
export async function inject(
  view: View,
  request: OutgoingRequest,
  signal: AbortSignal,
  unavailable: (secret: string, failure: unknown) => void,
): Promise<Injection> {
  const bound = candidatesAt(view, request.host, request.port);
  const here = request.verifiedTls ? bound : [];
  const wanted = here.filter(({ place }) => matchesRequest(place, request));
  for (const placeholder of view.finder.find(request)) {
    const refused = misplaced(view, placeholder, request, here, wanted);
    if (refused !== undefined) return refused;
  }
  const acting = actingOf(wanted, request);
  // An earlier request may have left the secret there: every answer is searched for it. What only signs is never sent.
  const left = bound.filter((candidate) => !isAws(candidate));
  if (acting.length === 0 && left.length === 0) return none;

  const values = new Map<UsableSecret, string>();
  for (const secret of new Set([...acting, ...left].map((candidate) => candidate.secret)))
    try {
      const value = await secret.read(signal);
      const uses = acting.filter((candidate) => candidate.secret === secret);
      const problem = misfit(
        value,
        uses.map(({ action }) => action),
      );
      if (problem !== undefined) throw new Error(`its value ${problem}`);
      values.set(secret, value);
    } catch (failure) {
      if (signal.aborted) throw failure;
      unavailable(secret.name, failure);
      return {
        kind: 'refused',
        reason: 'secret_unavailable',
        message: `the secret ${JSON.stringify(secret.name)} cannot be read at the moment; the daemon's log says why`,
        alarm: false,
      };
    }
  return changed({ acting, left }, request, values);
}

/** All grants for a host and port, in the order in which they are asked: by rank, and an exact name before a wildcard. */
function candidatesAt(view: View, host: string, port: number): Candidate[] {
  return view.secrets
    .flatMap((secret) =>
      secret.grants.flatMap(({ place, action }) => {
        const match = matchesHost(place, host, port);
        return match === undefined ? [] : [{ secret, place, action, match }];
      }),
    )
    .toSorted((a, b) => a.secret.rank - b.secret.rank || exactness(a.match) - exactness(b.match));
}

const exactness = (match: HostMatch): number => (match === 'exact' ? 0 : 1);

/** Why a placeholder that has been found in a request may not go with it, or undefined. */
function misplaced(
  view: View,
  placeholder: string,
  request: OutgoingRequest,
  here: readonly Candidate[],
  wanted: readonly Candidate[],
): Refused | undefined {
  const owners = view.owners.get(placeholder) ?? [];
  const isOwned = ({ secret }: Candidate): boolean => owners.includes(secret);
  if (wanted.some(isOwned)) return undefined;
  const whose = owners[0] === undefined ? 'of another sandbox' : JSON.stringify(owners[0].name);
  if (here.some(isOwned))
    return {
      kind: 'refused',
      reason: 'binding_mismatch',
      message: `the secret ${whose} is bound to other methods or paths of ${request.host}`,
      alarm: false,
    };
  const bound = owners.flatMap((secret) => secret.grants.flatMap(({ place }) => place.hosts));
  return {
    kind: 'refused',
    reason: request.verifiedTls ? 'placeholder_misplaced' : 'placeholder_unprotected',
    message: `the placeholder of the secret ${whose} was on its way to ${request.host}:${request.port}${
      request.verifiedTls ? '' : ' without verified TLS'
    }${bound.length === 0 ? '' : `; it is bound to ${bound.slice(0, 8).join(', ')}`}`,
    alarm: true,
  };
}

/** What of the grants has something to do with this request. Of several that set one header, or are alternatives, the first has its way. */
function actingOf(wanted: readonly Candidate[], request: OutgoingRequest): Candidate[] {
  const claimed = new Set<string>();
  const claim = (header: string): boolean => {
    const name = sameHeader(header);
    if (claimed.has(name)) return false;
    claimed.add(name);
    return true;
  };
  const credential = wanted.some(isAws) ? awsCredential(request) : undefined;
  const setting: Action[] = [];
  return wanted.filter((candidate) => {
    switch (candidate.action.kind) {
      case 'header':
        if (setting.some((action) => areAlternatives(action, candidate.action))) return false;
        setting.push(candidate.action);
        return claim(candidate.action.header);
      case 'substitute':
        return (
          candidate.action.parts.includes('body') ||
          substitutedHead(request, candidate.action, '') !== undefined
        );
      case 'aws':
        return (
          credential !== undefined &&
          candidate.action.placeholders.includes(credential.accessKeyId) &&
          claim('authorization')
        );
      default:
        return candidate.action satisfies never;
    }
  });
}

type Substitute = Extract<Action, { kind: 'substitute' }>;
const isAws = (candidate: Candidate): candidate is Candidate<Extract<Action, { kind: 'aws' }>> =>
  candidate.action.kind === 'aws';
const isHeader = (candidate: Candidate): candidate is Candidate<Extract<Action, { kind: 'header' }>> =>
  candidate.action.kind === 'header';
const isSubstitute = (candidate: Candidate): candidate is Candidate<Substitute> =>
  candidate.action.kind === 'substitute';

function changed(
  { acting, left }: { acting: readonly Candidate[]; left: readonly Candidate[] },
  request: OutgoingRequest,
  values: ReadonlyMap<UsableSecret, string>,
): Injection {
  const secretOf = (secret: UsableSecret): string => values.get(secret) as string;
  const signer = acting.find(isAws);
  // A value that is none has been refused.
  const keys = signer === undefined ? undefined : (parseKeyPair(secretOf(signer.secret)) as KeyPair);
  const shown = formsOf(left.flatMap((candidate) => shownValues(candidate, values)));
  const scrub = [...shown, ...formsOf([keys?.secretAccessKey ?? '', keys?.sessionToken ?? ''])];
  if (acting.length === 0 && scrub.length === 0) return none;
  let target = request.target;
  let headers: Headers = request.headers.map(([name, value]) => [name, value]);
  if (scrub.length > 0) headers = askingForPlain(headers);
  if (shown.length > 0) headers = askingForAll(headers);

  const substitutes = acting.filter(isSubstitute);
  for (const { secret, action } of substitutes)
    ({ target, headers } = substitutedHead({ target, headers }, action, secretOf(secret)) ?? {
      target,
      headers,
    });

  // All that a client has brought is taken off before anything is put in.
  const settings = acting.filter(isHeader);
  const taken = new Set(
    settings.flatMap(({ action }) => [action.header, ...action.removesHeaders]).map(sameHeader),
  );
  headers = headers.filter(([name]) => !taken.has(sameHeader(name)));
  target = withoutQuery(target, new Set(settings.flatMap(({ action }) => action.removesQuery)));
  for (const { secret, action } of settings)
    headers.push([action.header, formatted(action.format, secretOf(secret)) as string]);

  const bodySubstitutes = substitutes.filter(({ action }) => action.parts.includes('body'));
  const withBody = (body: Buffer): Buffer =>
    bodySubstitutes.reduce(
      (current, { secret, action }) =>
        substitutedBody(current, contentType(headers), action.placeholders, secretOf(secret)),
      body,
    );
  const names = [...new Set(acting.map(({ secret }) => secret.name))];
  const done = (body?: (body: Buffer) => { body: Buffer; headers: Headers }): Injection => ({
    kind: 'changed',
    target,
    headers,
    secrets: names,
    scrub,
    ...(body === undefined ? {} : { body }),
  });

  if (keys === undefined)
    return bodySubstitutes.length === 0 ? done() : done((body) => ({ body: withBody(body), headers }));

  const signed = resign({ ...request, target, headers }, keys, { bodyChanges: bodySubstitutes.length > 0 });
  switch (signed.kind) {
    case 'refused':
      return { kind: 'refused', reason: 'aws_signature', message: signed.message, alarm: false };
    case 'signed':
      ({ target, headers } = signed);
      return done();
    case 'body':
      return done((body) => {
        const sent = withBody(body);
        return { body: sent, headers: signed.sign(sent) };
      });
    default:
      return signed satisfies never;
  }
}

const formsOf = (values: readonly string[]): Buffer[] => [...new Set(values)].flatMap(scrubForms);

/** What an answer must not show has to be found in it, so it should not come compressed. */
const askingForPlain = (headers: Headers): Headers => [
  ...headers.filter(([name]) => sameHeader(name) !== 'accept-encoding'),
  ['accept-encoding', 'identity'],
];

/** Nor in pieces, for one that has a half of a secret in it shows nothing to look for. */
const askingForAll = (headers: Headers): Headers =>
  headers.filter(([name]) => !['range', 'if-range'].includes(sameHeader(name)));

/** The values that an answer could echo. A pair for Basic that comes encoded already is also looked for as the text that it stands for. */
function shownValues({ secret, action }: Candidate, values: ReadonlyMap<UsableSecret, string>): string[] {
  const value = values.get(secret) as string;
  if (action.kind !== 'header' || action.format !== 'Basic %s') return [value];
  const pair = Buffer.from(value, 'base64').toString('utf8');
  return [value, pair, pair.slice(pair.indexOf(':') + 1)];
}

/** Target and headers with the value in place of the placeholders, also inside Basic; undefined when there is none in the parts meant. */
function substitutedHead(
  head: { target: string; headers: readonly (readonly [name: string, value: string])[] },
  action: Substitute,
  value: string,
): { target: string; headers: Headers } | undefined {
  const replaced = (text: string, by: string): string =>
    action.placeholders.reduce((current, placeholder) => current.replaceAll(placeholder, () => by), text);
  const start = head.target.indexOf('?');
  const path = start < 0 ? head.target : head.target.slice(0, start);
  const query = start < 0 ? '' : head.target.slice(start);
  const encoded = percentEncoded(value);
  const target =
    (action.parts.includes('path') ? replaced(path, encoded) : path) +
    (action.parts.includes('query') ? replaced(query, encoded) : query);
  const headers = head.headers.map(([name, text]): [string, string] => {
    if (!action.parts.includes('header')) return [name, text];
    const [, scheme, pair] = /^(basic +)(\S+)$/i.exec(text) ?? [];
    if (scheme === undefined || pair === undefined) return [name, replaced(text, value)];
    const decoded = Buffer.from(pair, 'base64').toString('latin1');
    const filled = replaced(decoded, value);
    return [name, filled === decoded ? text : scheme + Buffer.from(filled, 'latin1').toString('base64')];
  });
  const same = target === head.target && headers.every(([, text], at) => text === head.headers[at]?.[1]);
  return same ? undefined : { target, headers };
}

/**
 * Throws when the body would get longer than `bodyBytesMax`: one that consists of placeholders grows as many times as the value is longer than they are.
 * A placeholder stands inside a string of JSON, a field of a form, or text of XML, so the value is escaped as those ask; anywhere else it is put in as
 * it is. A compressed body is not looked into.
 */
function substitutedBody(body: Buffer, type: string, placeholders: readonly string[], value: string): Buffer {
  const written = /[/+]json\b/.test(type)
    ? jsonEscaped(value)
    : type.startsWith('application/x-www-form-urlencoded')
      ? percentEncoded(value)
      : /[/+]xml\b/.test(type)
        ? value.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`)
        : value;
  const put = Buffer.from(written);
  return placeholders.reduce((current, placeholder) => {
    const pieces: Buffer[] = [];
    let from = 0;
    let grown = current.length;
    for (let at = current.indexOf(placeholder); at >= 0; at = current.indexOf(placeholder, from)) {
      pieces.push(current.subarray(from, at), put);
      from = at + Buffer.byteLength(placeholder);
      grown += put.length - Buffer.byteLength(placeholder);
      if (grown > bodyBytesMax) throw new Error('the body with the secrets in it is too long');
    }
    return from === 0 ? current : Buffer.concat([...pieces, current.subarray(from)]);
  }, body);
}

const contentType = (headers: Headers): string =>
  (headers.find(([name]) => name.toLowerCase() === 'content-type')?.[1] ?? '').toLowerCase();

function withoutQuery(target: string, names: ReadonlySet<string>): string {
  const start = target.indexOf('?');
  if (names.size === 0 || start < 0) return target;
  const kept = target
    .slice(start + 1)
    .split('&')
    .filter((field) => !names.has(percentDecoded(field.split('=', 1)[0] as string)));
  return kept.length === 0 ? target.slice(0, start) : `${target.slice(0, start)}?${kept.join('&')}`;
}
