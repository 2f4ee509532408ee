// AWS Signature Version 4 (AWS General Reference, "Signing AWS API requests"): a request that a guest has signed with a placeholder key pair is
// signed anew with the real one. Both ways of signing: by headers, and by the query (presigned).
// Bodies that are signed chunk by chunk, and the asymmetric Version 4A, cannot be signed anew and are refused with what to set instead.
import { createHash, createHmac } from 'node:crypto';
import { percentDecoded } from './encodings.ts';

export interface KeyPair {
  accessKeyId: string;
  secretAccessKey: string;
  sessionToken?: string;
}

type Header = readonly [name: string, value: string];

export interface SignableRequest {
  host: string;
  port: number;
  method: string;
  target: string;
  headers: readonly Header[];
}

export type Resigning =
  | { kind: 'signed'; target: string; headers: [name: string, value: string][] }
  /** The signature covers a body whose hash the guest has not given. */
  | { kind: 'body'; sign: (body: Buffer) => [name: string, value: string][] }
  | { kind: 'refused'; message: string };

const algorithm = 'AWS4-HMAC-SHA256';
const emptyHash = createHash('sha256').digest('hex');

/** `ACCESS_KEY_ID:SECRET`, `ACCESS_KEY_ID:SECRET:SESSION_TOKEN`, or JSON as `credential_process` and `aws configure export-credentials` write it. */
export function parseKeyPair(value: string): KeyPair | undefined {
  const text = value.trim();
  const parts = text.startsWith('{') ? fromJson(text) : text.split(':');
  const [accessKeyId, secretAccessKey, sessionToken, ...more] = parts;
  if (!/^\w{16,128}$/.test(accessKeyId ?? '') || !/^[\x21-\x7e]{16,256}$/.test(secretAccessKey ?? ''))
    return undefined;
  if (more.length > 0 || (sessionToken !== undefined && !/^[\x21-\x7e]{1,16384}$/.test(sessionToken)))
    return undefined;
  return {
    accessKeyId: accessKeyId as string,
    secretAccessKey: secretAccessKey as string,
    ...(sessionToken === undefined ? {} : { sessionToken }),
  };
}

function fromJson(text: string): string[] {
  try {
    const json = JSON.parse(text) as Record<string, unknown>;
    const fields = ['AccessKeyId', 'SecretAccessKey', 'SessionToken'].map((name) => json[name]);
    return fields.filter((field): field is string => typeof field === 'string' && field !== '');
  } catch {
    return [];
  }
}

interface Credential {
  way: 'header' | 'query';
  /** False for what is signed in another way than Version 4. */
  supported: boolean;
  accessKeyId: string;
  region: string;
  service: string;
  signedHeaders: string[];
}

/** By which access key a request says that it is signed. Undefined when it is not signed, or in a form that nobody would accept. */
export function awsCredential(request: {
  target: string;
  headers: readonly Header[];
}): Credential | undefined {
  const authorization = request.headers.find(([name]) => name.toLowerCase() === 'authorization')?.[1];
  const [, version, fields] = /^(AWS4-[A-Z0-9-]+)\s+(.*)$/.exec(authorization ?? '') ?? [];
  if (version !== undefined && fields !== undefined)
    return credentialOf('header', version, {
      credential: /\bCredential=([^\s,]+)/.exec(fields)?.[1],
      signedHeaders: /\bSignedHeaders=([^\s,]+)/.exec(fields)?.[1],
    });
  const query = queryOf(request.target);
  const field = (name: string) => query.find(([key]) => key.toLowerCase() === name)?.[1];
  return credentialOf('query', field('x-amz-algorithm'), {
    credential: field('x-amz-credential'),
    signedHeaders: field('x-amz-signedheaders'),
  });
}

function credentialOf(
  way: Credential['way'],
  version: string | undefined,
  fields: { credential: string | undefined; signedHeaders: string | undefined },
): Credential | undefined {
  // Version 4A names no region, so its scope is shorter.
  const [, accessKeyId, scope] = /^(\w+)\/(.+)$/.exec(fields.credential ?? '') ?? [];
  if (version === undefined || accessKeyId === undefined || scope === undefined) return undefined;
  const [, region, service] = /^\d{8}\/([\w-]{1,64})\/([\w-]{1,64})\/aws4_request$/.exec(scope) ?? [];
  return {
    way,
    supported: version === algorithm && region !== undefined,
    accessKeyId,
    region: region ?? '',
    service: service ?? '',
    signedHeaders: (fields.signedHeaders ?? '').toLowerCase().split(';'),
  };
}

/** Headers that change on the way, so that a signature over them would not hold. AWS asks for none of them. */
const unsigned = new Set([
  ...[
    'authorization',
    'connection',
    'content-length',
    'expect',
    'keep-alive',
    'te',
    'trailer',
    'transfer-encoding',
  ],
  ...[
    'upgrade',
    'accept-encoding',
    'user-agent',
    'via',
    'x-amzn-trace-id',
    'proxy-authorization',
    'proxy-connection',
  ],
]);

/** `bodyChanges`: the body will not be the one that the guest has hashed. */
export function resign(
  request: SignableRequest,
  keys: KeyPair,
  options: { bodyChanges: boolean },
): Resigning {
  const credential = awsCredential(request);
  if (credential?.supported !== true)
    return refused(
      'only AWS Signature Version 4 can be signed anew, not Version 4A; a multi-region access point needs a region of its own',
    );
  return credential.way === 'query'
    ? presigned(request, keys, credential)
    : signedByHeaders(request, keys, credential, options.bodyChanges);
}

const refused = (message: string): Resigning => ({ kind: 'refused', message });

function signedByHeaders(
  request: SignableRequest,
  keys: KeyPair,
  credential: Credential,
  bodyChanges: boolean,
): Resigning {
  const date = timeOf(request.headers);
  if (date === undefined) return refused('the signed request has no X-Amz-Date');
  const given = headerOf(request.headers, 'x-amz-content-sha256');
  if (given?.startsWith('STREAMING-') && given !== 'STREAMING-UNSIGNED-PAYLOAD-TRAILER')
    return refused(
      'a body that is signed chunk by chunk cannot be signed anew; let the client send it unsigned over TLS ' +
        '(payload_signing_enabled = false, or AWS_REQUEST_CHECKSUM_CALCULATION=when_required)',
    );
  const sign = (payloadHash: string): [string, string][] => {
    const headers: [string, string][] = request.headers
      .filter(
        ([name]) => !['authorization', 'x-amz-security-token', 'x-amz-date'].includes(name.toLowerCase()),
      )
      .map(([name, value]) => [name, name.toLowerCase() === 'x-amz-content-sha256' ? payloadHash : value]);
    headers.push(['x-amz-date', date]);
    if (keys.sessionToken !== undefined) headers.push(['x-amz-security-token', keys.sessionToken]);
    const names = signedNames(headers, credential.signedHeaders);
    const scope = scopeOf(date, credential);
    const signature = signatureOf(
      { ...request, headers },
      { names, payloadHash, date, scope, credential, keys },
    );
    headers.push([
      'authorization',
      `${algorithm} Credential=${keys.accessKeyId}/${scope}, SignedHeaders=${names.join(';')}, Signature=${signature}`,
    ]);
    return headers;
  };
  const hashed = given !== undefined && /^[0-9a-f]{64}$/.test(given);
  if (given === undefined || (hashed && bodyChanges))
    return { kind: 'body', sign: (body) => sign(createHash('sha256').update(body).digest('hex')) };
  return { kind: 'signed', target: request.target, headers: sign(given) };
}

/** S3 takes no hash of the body here. Of other services only requests without a body are presigned. */
function presigned(request: SignableRequest, keys: KeyPair, credential: Credential): Resigning {
  const mark = request.target.indexOf('?');
  const ours = new Set([
    'x-amz-credential',
    'x-amz-signature',
    'x-amz-security-token',
    'x-amz-signedheaders',
  ]);
  const query = queryOf(request.target);
  const date = query.find(([name]) => name.toLowerCase() === 'x-amz-date')?.[1];
  if (date === undefined || !isTime(date)) return refused('the presigned request has no X-Amz-Date');
  const given = query.find(([name]) => name.toLowerCase() === 'x-amz-content-sha256')?.[1];
  const scope = scopeOf(date, credential);
  const names = signedNames(request.headers, credential.signedHeaders);
  const fields = [
    ...query.filter(([name]) => !ours.has(name.toLowerCase())),
    ['X-Amz-Credential', `${keys.accessKeyId}/${scope}`],
    ['X-Amz-SignedHeaders', names.join(';')],
    ...(keys.sessionToken === undefined ? [] : [['X-Amz-Security-Token', keys.sessionToken]]),
  ] as [string, string][];
  const target = `${request.target.slice(0, mark)}?${fields.map(([name, value]) => `${encode(name)}=${encode(value)}`).join('&')}`;
  const payloadHash =
    given ??
    headerOf(request.headers, 'x-amz-content-sha256') ??
    (isS3(credential.service) ? 'UNSIGNED-PAYLOAD' : emptyHash);
  const signature = signatureOf(
    { ...request, target },
    { names, payloadHash, date, scope, credential, keys },
  );
  return {
    kind: 'signed',
    target: `${target}&X-Amz-Signature=${signature}`,
    headers: request.headers.map(([name, value]) => [name, value]),
  };
}

/** What the guest had signed as far as it stays, and what AWS insists on. */
function signedNames(headers: readonly Header[], wanted: readonly string[]): string[] {
  const present = new Set(headers.map(([name]) => name.toLowerCase()));
  const names = [...present].filter(
    (name) => !unsigned.has(name) && (wanted.includes(name) || name.startsWith('x-amz-')),
  );
  return [...new Set(['host', ...names])].sort();
}

const scopeOf = (date: string, { region, service }: Credential): string =>
  `${date.slice(0, 8)}/${region}/${service}/aws4_request`;

function signatureOf(
  request: SignableRequest,
  signing: {
    names: readonly string[];
    payloadHash: string;
    date: string;
    scope: string;
    credential: Credential;
    keys: KeyPair;
  },
): string {
  const { names, credential } = signing;
  const host = request.port === 443 ? request.host : `${request.host}:${request.port}`;
  const canonicalHeaders = names.map((name) => {
    const values = request.headers
      .filter(([each]) => each.toLowerCase() === name)
      .map(([, value]) => value.trim().replace(/ +/g, ' '));
    return `${name}:${name === 'host' ? host : values.join(',')}\n`;
  });
  const path = request.target.split('?', 1)[0] as string;
  const canonical = [
    request.method,
    isS3(credential.service) ? encodedPath(path) : encodedPathTwice(path),
    queryOf(request.target)
      .filter(([name]) => name.toLowerCase() !== 'x-amz-signature')
      .map(([name, value]) => [encode(name), encode(value)] as const)
      .sort(([a, x], [b, y]) => order(a, b) || order(x, y))
      .map(([name, value]) => `${name}=${value}`)
      .join('&'),
    canonicalHeaders.join(''),
    names.join(';'),
    signing.payloadHash,
  ].join('\n');
  const toSign = [
    algorithm,
    signing.date,
    signing.scope,
    createHash('sha256').update(canonical).digest('hex'),
  ];
  const key = [...signing.scope.split('/')].reduce<Buffer>(
    (current, part) => createHmac('sha256', current).update(part).digest(),
    Buffer.from(`AWS4${signing.keys.secretAccessKey}`),
  );
  return createHmac('sha256', key).update(toSign.join('\n')).digest('hex');
}

const order = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

const isS3 = (service: string): boolean =>
  ['s3', 's3express', 's3-object-lambda', 's3-outposts'].includes(service);

/** A string of bytes (one character each), as RFC 3986 encodes it. */
const encode = (bytes: string): string =>
  bytes.replace(
    /[^A-Za-z0-9\-._~]/g,
    (character) => `%${character.charCodeAt(0).toString(16).toUpperCase().padStart(2, '0')}`,
  );

/** The key that S3 reads from the path, for which a `+` is a space and `%2F` a slash, encoded in the one way that it expects. */
const encodedPath = (path: string): string =>
  encode(percentDecoded(path.replaceAll('+', ' '))).replaceAll('%2F', '/');

/** Every service but S3 takes `.`, `..` and doubled slashes out of the path and encodes what is on the wire once more. */
function encodedPathTwice(path: string): string {
  const segments: string[] = [];
  for (const segment of path.split('/')) {
    if (segment === '..') segments.pop();
    else if (segment !== '' && segment !== '.') segments.push(encode(segment));
  }
  return `/${segments.join('/')}${segments.length > 0 && /\/\.{0,2}$/.test(path) ? '/' : ''}`;
}

/** Names and values as bytes (one character each). */
function queryOf(target: string): [name: string, value: string][] {
  const mark = target.indexOf('?');
  if (mark < 0) return [];
  return target
    .slice(mark + 1)
    .split('&')
    .filter((field) => field !== '')
    .map((field) => {
      const equals = field.indexOf('=');
      const parts = equals < 0 ? [field, ''] : [field.slice(0, equals), field.slice(equals + 1)];
      return parts.map((part) => percentDecoded(part.replaceAll('+', ' '))) as [string, string];
    });
}

const isTime = (text: string): boolean => /^\d{8}T\d{6}Z$/.test(text);

function timeOf(headers: readonly Header[]): string | undefined {
  const own = headerOf(headers, 'x-amz-date');
  if (own !== undefined) return isTime(own) ? own : undefined;
  const date = new Date(headerOf(headers, 'date') ?? '');
  return Number.isNaN(date.getTime()) ? undefined : date.toISOString().replace(/[-:]|\.\d{3}/g, '');
}

const headerOf = (headers: readonly Header[], wanted: string): string | undefined =>
  headers.find(([name]) => name.toLowerCase() === wanted)?.[1];
