// OpenSandbox's credential vault of one sandbox: credentials and bindings by name, changed together, each change a revision.
// It is kept in the same sealed file as all other secrets, and comes down to the same grants.
import { z } from 'zod';
import {
  type CredentialAuth,
  type CredentialBindingMetadata,
  type CredentialMetadata,
  CredentialVaultCreate,
  CredentialVaultMutation,
  type CredentialVaultState,
  VaultBinding,
  VaultCredential,
  vaultItemsMax,
} from '../contract/credential-vault.ts';
import { Failure } from '../lib/failure.ts';
import { type Grant, headerProblem, misfit, pathHint } from './grant.ts';
import { canonicalHost, impossiblePath, overlap, type Place } from './place.ts';

/** A vault as it is kept. Names are unique among each kind, and in order. */
export const VaultContent = z.object({
  type: z.literal('credential-vault'),
  revision: z.int(),
  createdAt: z.string(),
  credentials: z.array(VaultCredential.extend({ revision: z.int() })),
  bindings: z.array(VaultBinding),
});
export type VaultContent = z.infer<typeof VaultContent>;

/** Where a sandbox's vault is kept. */
export interface VaultKeeper {
  current(): VaultContent | undefined;
  /** One change after the other: `make` sees what is kept, and what it returns (nothing: no vault) is kept before this resolves. */
  change(make: (current: VaultContent | undefined) => VaultContent | undefined): Promise<void>;
}

/** One credential and where it goes. */
export interface VaultGrant {
  credential: string;
  grant: Grant;
}

export class SandboxVault {
  readonly #keeper: VaultKeeper;
  readonly #covered: (host: string) => boolean;
  readonly #now: () => Date;

  /** `covered`: whether an explicit rule of the sandbox's policy allows a host, which may begin with `*.`. */
  constructor(options: { keeper: VaultKeeper; covered: (host: string) => boolean; now: () => Date }) {
    this.#keeper = options.keeper;
    this.#covered = options.covered;
    this.#now = options.now;
  }

  /** Failure('conflict') when there is one already, Failure('invalid') for what is wrong with the body. */
  async create(body: unknown): Promise<CredentialVaultState> {
    const request = parsed(CredentialVaultCreate, body);
    await this.#keeper.change((current) => {
      if (current !== undefined)
        throw new Failure('conflict', 'this sandbox has a credential vault already', {
          hint: 'Change it with PATCH, or delete it first.',
        });
      return this.#checked({
        type: 'credential-vault',
        revision: 1,
        createdAt: this.#now().toISOString(),
        credentials: request.credentials.map((credential) => ({ ...credential, revision: 1 })),
        bindings: request.bindings.map(canonicalBinding),
      });
    });
    return this.state();
  }

  /** Failure('not-found') without a vault, as all below. */
  state(): CredentialVaultState {
    return { revision: this.#content().revision, credentials: this.credentials(), bindings: this.bindings() };
  }

  /** All of it or nothing. Failure('conflict') when `expectedRevision` is not the one there is. */
  async patch(body: unknown): Promise<CredentialVaultState> {
    this.#content();
    const request = parsed(CredentialVaultMutation, body);
    await this.#keeper.change((current = this.#content()) => {
      if (request.expectedRevision !== undefined && request.expectedRevision !== current.revision)
        throw new Failure(
          'conflict',
          `expectedRevision ${request.expectedRevision} does not match the current revision ${current.revision}`,
          { hint: 'Read the vault again, then change it.' },
        );
      const revision = current.revision + 1;
      const numbered = (items: readonly VaultCredential[] = []) =>
        items.map((credential) => ({ ...credential, revision }));
      const canonical = (items: readonly VaultBinding[] = []) => items.map(canonicalBinding);
      return this.#checked({
        ...current,
        revision,
        credentials: mutated('credential', current.credentials, {
          add: numbered(request.credentials?.add),
          replace: numbered(request.credentials?.replace),
          delete: request.credentials?.delete ?? [],
        }),
        bindings: mutated('binding', current.bindings, {
          add: canonical(request.bindings?.add),
          replace: canonical(request.bindings?.replace),
          delete: request.bindings?.delete ?? [],
        }),
      });
    });
    return this.state();
  }

  async remove(): Promise<void> {
    await this.#keeper.change((current) => {
      if (current === undefined) this.#content();
      return undefined;
    });
  }

  credentials(): CredentialMetadata[] {
    return this.#content().credentials.map(({ name, source, revision }) => ({
      name,
      sourceType: source.type,
      revision,
    }));
  }

  credential(name: string): CredentialMetadata {
    return found('credential', name, this.credentials());
  }

  bindings(): CredentialBindingMetadata[] {
    const { bindings, revision } = this.#content();
    return bindings.map(({ name, match, auth }) => ({
      name,
      revision,
      match,
      auth: { type: auth.type, ...(auth.type === 'apiKey' ? { name: auth.name } : {}) },
    }));
  }

  binding(name: string): CredentialBindingMetadata {
    return found('binding', name, this.bindings());
  }

  #content(): VaultContent {
    const content = this.#keeper.current();
    if (content === undefined)
      throw new Failure('not-found', 'this sandbox has no credential vault', {
        hint: 'Create one with POST /credential-vault.',
      });
    return content;
  }

  /** The content in order, or a Failure with what is wrong with it. */
  #checked(content: VaultContent): VaultContent {
    const credentials = inOrder('credential', content.credentials);
    const bindings = inOrder('binding', content.bindings);
    for (const { name, match } of bindings)
      for (const host of match.hosts)
        if (!this.#covered(host))
          throw invalid(
            `binding ${JSON.stringify(name)}: no rule of the egress policy allows ${JSON.stringify(host)}`,
            'Allow the host in the policy first.',
          );
    for (const [at, a] of bindings.entries()) {
      for (const b of bindings.slice(at + 1))
        if (overlap(placeOf(a), placeOf(b)))
          throw invalid(
            `the bindings ${JSON.stringify(a.name)} and ${JSON.stringify(b.name)} can match the same request`,
          );
    }
    checkUses(credentials, bindings);
    return { ...content, credentials, bindings };
  }
}

/** Which credential goes where. */
export function grantsOfBinding(binding: VaultBinding): VaultGrant[] {
  const place = placeOf(binding);
  const { auth } = binding;
  const header = (credential: string, name: string, format: string): VaultGrant => ({
    credential,
    grant: {
      place,
      action: { kind: 'header', header: name.toLowerCase(), format, removesHeaders: [], removesQuery: [] },
    },
  });
  const substitutions = (auth.substitutions ?? []).map(
    ({ credential, placeholder, in: parts }): VaultGrant => ({
      credential,
      grant: {
        place,
        action: { kind: 'substitute', placeholders: [placeholder], parts: [...new Set(parts)] },
      },
    }),
  );
  return [...headersOf(auth, header), ...substitutions];
}

function placeOf({ match }: VaultBinding): Place {
  const { hosts, methods, paths } = match;
  return {
    hosts,
    ports: [443],
    ...(methods === undefined ? {} : { methods }),
    ...(paths === undefined || paths.includes('/*') ? {} : { paths }),
  };
}

function headersOf(
  auth: CredentialAuth,
  header: (credential: string, name: string, format: string) => VaultGrant,
): VaultGrant[] {
  switch (auth.type) {
    case 'bearer':
      return [header(auth.credential, 'authorization', 'Bearer %s')];
    case 'basic':
      return [header(auth.credential, 'authorization', 'Basic %s')];
    case 'apiKey':
      return [header(auth.credential, auth.name, '%s')];
    case 'customHeaders':
      return auth.headers.map(({ name, credential }) => header(credential, name, '%s'));
    case 'passthrough':
      return [];
    default:
      return auth satisfies never;
  }
}

const invalid = (message: string, hint?: string): Failure =>
  new Failure('invalid', message, hint === undefined ? {} : { hint });

/** A message of ours rather than the schema's own, which could hold what was sent. */
function parsed<S extends z.ZodType>(schema: S, body: unknown): z.infer<S> {
  const result = schema.safeParse(body);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  const where = issue?.path.join('.') || 'the body';
  const keys =
    issue?.code === 'unrecognized_keys'
      ? `has unknown fields: ${issue.keys.join(', ').slice(0, 200)}`
      : undefined;
  throw invalid(`${where}: ${keys ?? issue?.message ?? 'is not of the right form'}`);
}

/** Defaults filled in and one spelling for all, as the state shows them. */
function canonicalBinding(binding: VaultBinding): VaultBinding {
  const wrong = (what: string, hint?: string) =>
    invalid(`binding ${JSON.stringify(binding.name)}: ${what}`, hint);
  const { match, auth } = binding;
  const schemes = [...new Set(match.schemes?.length ? match.schemes : (['https'] as const))];
  if (schemes.includes('http'))
    throw wrong(
      'a credential never leaves over a connection that is not verified TLS',
      'Leave "http" out of schemes.',
    );
  const hosts = match.hosts.map((host) => {
    const canonical = canonicalHost(host);
    if (
      canonical === undefined ||
      !canonical.includes('.') ||
      /^[\d.]+$/.test(canonical) ||
      canonical.includes(':')
    )
      throw wrong(`${JSON.stringify(host)} is neither a full host name nor *. and one`);
    return canonical;
  });
  const methods = match.methods?.length ? match.methods : ['GET', 'POST', 'PUT', 'PATCH', 'DELETE'];
  const paths = match.paths?.length ? match.paths : ['/*'];
  for (const path of paths)
    if (impossiblePath(path)) throw wrong(`the path ${JSON.stringify(path)} can never be met`, pathHint);
  const names =
    auth.type === 'apiKey'
      ? [auth.name]
      : auth.type === 'customHeaders'
        ? auth.headers.map((h) => h.name)
        : [];
  for (const name of names) {
    const problem = headerProblem(name);
    if (problem !== undefined) throw wrong(`${JSON.stringify(name)} ${problem}`);
  }
  if (new Set(names.map((name) => name.toLowerCase())).size < names.length)
    throw wrong('a header is named twice');
  return {
    name: binding.name,
    match: {
      schemes,
      hosts: [...new Set(hosts)],
      methods: [...new Set(methods.map((method) => method.toUpperCase()))],
      paths: [...new Set(paths)],
    },
    auth,
  };
}

/** Every credential that a binding refers to is there, and every one can be put where it is bound to. */
function checkUses(credentials: readonly VaultCredential[], bindings: readonly VaultBinding[]): void {
  const granted = bindings.flatMap((binding) =>
    grantsOfBinding(binding).map((each) => ({ ...each, binding: binding.name })),
  );
  for (const { credential, binding } of granted)
    if (!credentials.some(({ name }) => name === credential))
      throw invalid(
        `binding ${JSON.stringify(binding)} refers to the unknown credential ${JSON.stringify(credential)}`,
      );
  for (const { name, source } of credentials) {
    const uses = granted.filter(({ credential }) => credential === name);
    const problem = misfit(
      source.value,
      uses.map(({ grant }) => grant.action),
    );
    if (problem !== undefined)
      throw invalid(`the value of the credential ${JSON.stringify(name)} ${problem}`);
  }
}

function mutated<T extends { name: string }>(
  kind: string,
  current: readonly T[],
  mutation: { add: readonly T[]; replace: readonly T[]; delete: readonly string[] },
): T[] {
  const items = new Map(current.map((item) => [item.name, item]));
  const mentioned = new Set<string>();
  const mention = (name: string, exists: boolean) => {
    const quoted = `${kind} ${JSON.stringify(name)}`;
    if (mentioned.has(name)) throw invalid(`${quoted} is mentioned by several operations`);
    mentioned.add(name);
    if (items.has(name) !== exists)
      throw invalid(`${quoted} ${exists ? 'does not exist' : 'exists already'}`);
  };
  for (const name of mutation.delete) {
    mention(name, true);
    items.delete(name);
  }
  for (const item of mutation.replace) {
    mention(item.name, true);
    items.set(item.name, item);
  }
  for (const item of mutation.add) {
    mention(item.name, false);
    items.set(item.name, item);
  }
  return [...items.values()];
}

function inOrder<T extends { name: string }>(kind: string, items: readonly T[]): T[] {
  if (items.length > vaultItemsMax)
    throw invalid(`a credential vault holds at most ${vaultItemsMax} ${kind}s`);
  const sorted = items.toSorted((a, b) => (a.name < b.name ? -1 : 1));
  for (const [at, item] of sorted.entries())
    if (sorted[at + 1]?.name === item.name)
      throw invalid(`duplicate ${kind} name ${JSON.stringify(item.name)}`);
  return sorted;
}

function found<T extends { name: string }>(kind: string, name: string, items: readonly T[]): T {
  const item = items.find((each) => each.name === name);
  if (item === undefined)
    throw new Failure('not-found', `there is no ${kind} ${JSON.stringify(name)} in the credential vault`);
  return item;
}
