// The secrets of one home: kept in a sealed file, checked when set, given to sandboxes as what they may use. One change after the other; each is on
// the disk before it holds.
import { randomUUID } from 'node:crypto';
import { z } from 'zod';
import { SecretBinding, type SecretInfo, SecretSource, type SetSecret } from '../contract/network.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import { checkedBinding, conflictOf, type Grant, grantsOf, misfit } from './grant.ts';
import { inject } from './inject.ts';
import { type KeyPlace, keyKeeper } from './key.ts';
import { grantsOfBinding, SandboxVault, VaultContent } from './opensandbox.ts';
import { placeholderFrom, placeholderProblem, secretKeyBeside } from './placeholders.ts';
import { readSealedFile, type SealingKey, writeSealedFile } from './sealed-file.ts';
import { type Service, serviceOf, services } from './services.ts';
import { parseKeyPair } from './sigv4.ts';
import { openValues, type Source, type Values } from './sources.ts';
import type { SandboxSecrets, Vault } from './vault.ts';
import { isBoundTo, type UsableSecret, type View, viewOf } from './view.ts';

export interface VaultOptions {
  /** The sealed file. */
  file: string;
  /** Where the key is, or will be; also tells the homes of one keyring apart. */
  keyFile: string;
  /** Where the key is kept. `auto`, the default: where the key of the existing file is, or for a new one in the key file. */
  keyring?: 'file' | 'auto' | 'system';
  now: () => Date;
  /** Reads a variable of the daemon's environment. */
  readEnv: (name: string) => string | undefined;
  log: Log;
  /** The keyring's program. */
  secretTool?: string;
}

const secretsMax = 1_024;
const readMs = 35_000;
const vaultPrefix = 'credential-vault/';

const SecretContent = z.object({
  type: z.literal('secret'),
  source: SecretSource,
  /** None for those of a service that are where the service says. */
  bindings: z.array(SecretBinding),
  /** Variables of the user's own; those of the service when absent. */
  env: z.array(z.string()).optional(),
  placeholder: z.string(),
  createdAt: z.string(),
});

type Secret = z.infer<typeof SecretContent> & { id: string; name: string; sandboxId: string | undefined };
type CredentialVault = { id: string; sandboxId: string; content: VaultContent };

interface Kept {
  readonly secrets: readonly Secret[];
  readonly vaults: readonly CredentialVault[];
}

/** Failure when the file cannot be opened whole: nothing is changed then, and nothing of it is used. */
export async function openVault(options: VaultOptions): Promise<Vault> {
  const keys = keyKeeper({ keyFile: options.keyFile, secretTool: options.secretTool ?? 'secret-tool' });
  const file = await readSealedFile(options.file, keys);
  const asked = options.keyring ?? 'auto';
  const place: KeyPlace = asked === 'auto' ? (file?.key.place ?? 'file') : asked;
  if (file !== undefined && file.key.place !== place)
    throw new Failure(
      'conflict',
      `the key of ${options.file} is in ${file.key.place === 'file' ? 'a key file' : 'the system keyring'}, not where it is asked to be`,
      { hint: 'Ask for the place where it is, or move the file away and set the secrets again.' },
    );
  const kept = file === undefined ? { secrets: [], vaults: [] } : keptOf(file.records, options.file);
  // Asked for once: what has been sealed with a key must not come to depend on what the keyring says later.
  const key: { found?: SealingKey } = file === undefined ? {} : { found: file.key };
  return new HomeVault(kept, options, async (next) => {
    key.found ??= { place, bytes: await keys.made(place) };
    await writeSealedFile(options.file, recordsOf(next), key.found);
  });
}

function keptOf(
  records: readonly { id: string; name: string; sandboxId?: string | undefined; content: unknown }[],
  path: string,
): Kept {
  const kept: { secrets: Secret[]; vaults: CredentialVault[] } = { secrets: [], vaults: [] };
  for (const { id, name, sandboxId, content } of records) {
    const secret = SecretContent.safeParse(content);
    const vault = VaultContent.safeParse(content);
    if (secret.success) kept.secrets.push({ ...secret.data, id, name, sandboxId });
    else if (vault.success && sandboxId !== undefined)
      kept.vaults.push({ id, sandboxId, content: vault.data });
    else
      throw new Failure(
        'unavailable',
        `open the secrets ${path}: the record ${JSON.stringify(name)} is of no known form`,
        {
          hint: 'Upgrade glovebox.',
        },
      );
  }
  return kept;
}

const recordsOf = ({ secrets, vaults }: Kept) => [
  ...secrets.map(({ id, name, sandboxId, ...content }) => ({ id, name, sandboxId, content })),
  ...vaults.map(({ id, sandboxId, content }) => ({ id, name: 'credential-vault', sandboxId, content })),
];

class HomeVault implements Vault {
  onChange: (sandboxId: string | undefined) => void = () => {};
  #kept: Kept;
  readonly #options: VaultOptions;
  readonly #write: (next: Kept) => Promise<void>;
  readonly #values: Values;
  #last: Promise<unknown> = Promise.resolve();

  constructor(kept: Kept, options: VaultOptions, write: (next: Kept) => Promise<void>) {
    this.#kept = kept;
    this.#options = options;
    this.#write = write;
    this.#values = openValues(options);
  }

  async set(request: Omit<SetSecret, 'sandbox'> & { sandboxId?: string }): Promise<SecretInfo> {
    const { name, sandboxId, source, env } = request;
    const service = serviceOf(name);
    const bindings = (request.bindings ?? []).map((binding, at) =>
      checkedBinding(binding, `binding ${at + 1}`),
    );
    if (bindings.length === 0 && service === undefined)
      throw new Failure('invalid', `the secret ${JSON.stringify(name)} is bound to nothing`, {
        hint: 'Say to which hosts it may go, or use the name of a built-in service.',
      });
    const problem = request.placeholder === undefined ? undefined : placeholderProblem(request.placeholder);
    if (problem !== undefined) throw new Failure('invalid', `the placeholder ${problem}`);

    const fresh = (replaced: Secret | undefined): Secret => ({
      type: 'secret',
      id: replaced?.id ?? randomUUID(),
      name,
      sandboxId,
      source,
      bindings,
      ...(env === undefined ? {} : { env: [...new Set(env)] }),
      placeholder:
        request.placeholder === undefined && replaced !== undefined
          ? replaced.placeholder
          : placeholderFrom(request.placeholder ?? service?.placeholder ?? 'glovebox-{rand}'),
      createdAt: this.#options.now().toISOString(),
    });
    await this.#readable(fresh(undefined));

    const set = await this.#change(sandboxId, ({ secrets, vaults }) => {
      const replaced = secrets.find((each) => each.name === name && each.sandboxId === sandboxId);
      const others = secrets.filter((each) => each !== replaced);
      if (others.length >= secretsMax)
        throw new Failure('exhausted', `at most ${secretsMax} secrets can be kept`);
      const secret = fresh(replaced);
      checkBeside(secret, others);
      return { kept: { secrets: [...others, secret], vaults }, result: secret };
    });
    return infoOf(set);
  }

  list(filter: { sandboxId?: string } = {}): SecretInfo[] {
    return [...this.#kept.secrets.map(infoOf), ...this.#kept.vaults.flatMap(vaultInfos)].filter(
      (info) => filter.sandboxId === undefined || info.sandboxId === filter.sandboxId,
    );
  }

  async remove(id: string): Promise<void> {
    if (this.#kept.vaults.some((vault) => id.startsWith(`${vault.id}/`)))
      throw new Failure('conflict', "it belongs to the sandbox's credential vault", {
        hint: 'Remove it there, through OpenSandbox’s API.',
      });
    const sandboxId = this.#kept.secrets.find((secret) => secret.id === id)?.sandboxId;
    await this.#change(sandboxId, ({ secrets, vaults }) => {
      const left = secrets.filter((secret) => secret.id !== id);
      if (left.length === secrets.length)
        throw new Failure('not-found', `there is no secret ${JSON.stringify(id)}`);
      return { kept: { secrets: left, vaults }, result: undefined };
    });
  }

  forSandbox(sandboxId: string, { shared } = { shared: true }): SandboxSecrets {
    // Built when first asked after a change, for it is asked at every request.
    const last: { of?: Kept; view?: View } = {};
    const view = (): View => {
      if (last.view === undefined || last.of !== this.#kept) {
        last.of = this.#kept;
        last.view = this.#viewFor(sandboxId, shared);
      }
      return last.view;
    };
    const { log } = this.#options;
    return {
      binds: (host, port) => view().secrets.some((secret) => isBoundTo(secret, host, port)),
      inject: (request, signal) =>
        inject(view(), request, signal, (secret, failure) =>
          log.warn(
            {
              secret,
              sandbox: sandboxId,
              error: failure instanceof Error ? failure.message : 'unknown',
            },
            'secret unavailable',
          ),
        ),
      foreignPlaceholders: (host, port) => view().foreignPlaceholders(host, port),
      get placeholders() {
        return view().placeholders;
      },
      get environment() {
        return view().environment;
      },
    };
  }

  openSandbox(sandboxId: string, covered: (host: string) => boolean): SandboxVault {
    const current = (kept: Kept) => kept.vaults.find((vault) => vault.sandboxId === sandboxId);
    return new SandboxVault({
      now: this.#options.now,
      covered,
      keeper: {
        current: () => current(this.#kept)?.content,
        change: (make) =>
          this.#change(sandboxId, (kept) => {
            const before = current(kept);
            const content = make(before?.content);
            const others = kept.vaults.filter((vault) => vault !== before);
            const vaults =
              content === undefined
                ? others
                : [...others, { id: before?.id ?? randomUUID(), sandboxId, content }];
            return { kept: { ...kept, vaults }, result: undefined };
          }),
      },
    });
  }

  async forgetSandbox(sandboxId: string): Promise<void> {
    const others = <T extends { sandboxId?: string | undefined }>(items: readonly T[]): T[] =>
      items.filter((item) => item.sandboxId !== sandboxId);
    const holds = ({ secrets, vaults }: Kept) =>
      others(secrets).length < secrets.length || others(vaults).length < vaults.length;
    // A change under way may be adding one.
    await this.#last;
    if (!holds(this.#kept)) return;
    await this.#change(sandboxId, ({ secrets, vaults }) => ({
      kept: { secrets: others(secrets), vaults: others(vaults) },
      result: undefined,
    }));
  }

  #change<T>(sandboxId: string | undefined, make: (kept: Kept) => { kept: Kept; result: T }): Promise<T> {
    const changing = this.#last.then(async () => {
      const { kept, result } = make(this.#kept);
      await this.#write(kept);
      this.#kept = kept;
      this.onChange(sandboxId);
      return result;
    });
    this.#last = changing.catch(() => {});
    return changing;
  }

  /** Reads a new secret's source once, so that a mistake shows now and not in the middle of somebody's work. */
  async #readable(secret: Secret): Promise<void> {
    const where = `the secret ${JSON.stringify(secret.name)}`;
    const value = await this.#values
      .read(secret.source, AbortSignal.timeout(readMs))
      .catch((error: unknown) => {
        const failure = Failure.from(error, 'read it');
        throw new Failure('invalid', `${where}: ${failure.message}`, {
          ...(failure.hint === undefined ? {} : { hint: failure.hint }),
        });
      });
    const problem = misfit(
      value,
      grantsOfSecret(secret).map(({ action }) => action),
    );
    if (problem === undefined) return;
    throw new Failure('invalid', `${where}: its value ${problem}`, {
      hint: problem.includes('AWS')
        ? 'Give ACCESS_KEY_ID:SECRET, ACCESS_KEY_ID:SECRET:SESSION_TOKEN, or what aws configure export-credentials prints.'
        : 'Give the bare value in one line.',
    });
  }

  #viewFor(sandboxId: string, withShared: boolean): View {
    const { vaults } = this.#kept;
    const secrets = this.#kept.secrets.toSorted((a, b) => precedence(a) - precedence(b));
    const own = secrets.filter((secret) => secret.sandboxId === sandboxId);
    const shared = withShared ? secrets.filter((secret) => secret.sandboxId === undefined) : [];
    const hides = (secret: Secret, other: Secret) => secret.name === other.name;
    const usable: UsableSecret[] = [
      ...own.map((secret) =>
        this.#usable(
          secret,
          1,
          shared.filter((other) => hides(secret, other)).map((other) => other.placeholder),
        ),
      ),
      ...shared
        .filter((other) => !own.some((secret) => hides(secret, other)))
        .map((secret) => this.#usable(secret, 2, [])),
      ...vaults
        .filter((vault) => vault.sandboxId === sandboxId)
        .flatMap(({ content }) => usableOfVault(content)),
    ];
    const foreign = secrets.filter(
      ({ sandboxId: its }) => its !== sandboxId && (its !== undefined || !withShared),
    );
    return viewOf(
      usable,
      foreign.map((secret) => secret.placeholder),
    );
  }

  #usable(secret: Secret, rank: number, aliases: readonly string[]): UsableSecret {
    const placeholders = [secret.placeholder, ...aliases];
    return {
      name: secret.name,
      rank,
      placeholders,
      grants: grantsOfSecret(secret, placeholders),
      environment: environmentOf(secret),
      read: (signal) => this.#values.read(secret.source, signal),
    };
  }
}

/** Of two services that are alternatives, the one that the table names first has its way: a key before a subscription. */
const precedence = ({ name }: Secret): number => services.findIndex((service) => service.name === name);

const bindingsOf = (secret: Secret) =>
  secret.bindings.length > 0 ? secret.bindings : (serviceOf(secret.name)?.bindings ?? []);

const grantsOfSecret = (secret: Secret, placeholders: readonly string[] = [secret.placeholder]): Grant[] =>
  bindingsOf(secret).flatMap((binding) => grantsOf(binding, placeholders));

const builtIn = (secret: Secret): Service | undefined =>
  secret.bindings.length === 0 ? serviceOf(secret.name) : undefined;

/** Variables that hold the placeholder. Of a key pair, those with SECRET in their name hold a made-up secret key. */
const variablesOf = (secret: Secret): readonly string[] =>
  secret.env ?? serviceOf(secret.name)?.variables ?? [];

function environmentOf(secret: Secret): Record<string, string> {
  const pair = grantsOfSecret(secret).some(({ action }) => action.kind === 'aws');
  return {
    ...(secret.env === undefined ? builtIn(secret)?.beside : {}),
    ...Object.fromEntries(
      variablesOf(secret).map((variable) => [
        variable,
        pair && /SECRET/i.test(variable) ? secretKeyBeside(secret.placeholder) : secret.placeholder,
      ]),
    ),
  };
}

/** Nothing that is kept may leave open which of two secrets is meant. */
function checkBeside(secret: Secret, others: readonly Secret[]): void {
  const named = JSON.stringify(secret.name);
  const grants = grantsOfSecret(secret);
  for (const [at, grant] of grants.entries())
    for (const other of grants.slice(at + 1)) {
      const conflict = conflictOf(grant, other);
      if (conflict !== undefined)
        throw new Failure('invalid', `two bindings of the secret ${named} set ${conflict}`);
    }
  for (const other of others) {
    const theirs = JSON.stringify(other.name);
    const sameElsewhere =
      other.name === secret.name &&
      other.sandboxId !== secret.sandboxId &&
      other.placeholder === secret.placeholder;
    const contained =
      secret.placeholder.includes(other.placeholder) || other.placeholder.includes(secret.placeholder);
    if (contained && !sameElsewhere)
      throw new Failure('invalid', `the placeholder is also that of the secret ${theirs}, or part of it`, {
        hint: 'Choose another, or put {rand} into it.',
      });
    if (other.sandboxId !== secret.sandboxId) continue;
    for (const grant of grants)
      for (const theirGrant of grantsOfSecret(other)) {
        const conflict = conflictOf(grant, theirGrant);
        if (conflict !== undefined)
          throw new Failure('invalid', `the secrets ${named} and ${theirs} would both set ${conflict}`, {
            hint: `Remove ${theirs}, or bind them to different hosts, methods or paths.`,
          });
      }
    const variable = variablesOf(secret).find((each) => variablesOf(other).includes(each));
    if (variable !== undefined)
      throw new Failure(
        'invalid',
        `the secrets ${named} and ${theirs} would both set the variable ${variable}`,
        {
          hint: 'Give one of them other variables.',
        },
      );
  }
}

/** One usable secret for each credential, with what all bindings make of it. Its placeholders are words of the client's own, in no variable. */
function usableOfVault(content: VaultContent): UsableSecret[] {
  const granted = content.bindings.flatMap(grantsOfBinding);
  return content.credentials.flatMap(({ name, source }) => {
    const grants = granted.filter((each) => each.credential === name).map(({ grant }) => grant);
    const placeholders = grants.flatMap(({ action }) =>
      action.kind === 'substitute' ? action.placeholders : [],
    );
    return grants.length === 0
      ? []
      : [{ name, rank: 0, grants, placeholders, environment: {}, read: () => Promise.resolve(source.value) }];
  });
}

function infoOf(secret: Secret): SecretInfo {
  return {
    id: secret.id,
    name: secret.name,
    ...(secret.sandboxId === undefined ? {} : { sandboxId: secret.sandboxId }),
    service: builtIn(secret) !== undefined,
    sourceType: secret.source.type,
    masked: masked(secret.source),
    placeholder: secret.placeholder,
    env: [...variablesOf(secret)],
    bindings: bindingsOf(secret).map(shownBinding),
    createdAt: secret.createdAt,
  };
}

/** Without what only we know of a service's binding. */
const shownBinding = (binding: SecretBinding): SecretBinding => SecretBinding.strip().parse(binding);

function vaultInfos({ id, sandboxId, content }: CredentialVault): SecretInfo[] {
  return content.credentials.map(({ name, source }) => {
    const grants = content.bindings.flatMap(grantsOfBinding).filter((each) => each.credential === name);
    return {
      id: `${id}/${name}`,
      name: `${vaultPrefix}${name}`,
      sandboxId,
      service: false,
      sourceType: 'value',
      masked: masked({ type: 'value', value: source.value }),
      placeholder: '',
      env: [],
      bindings: grants.map(({ grant: { place, action } }) => ({
        hosts: [...place.hosts],
        ports: [...place.ports],
        ...(place.methods === undefined ? {} : { methods: [...place.methods] }),
        ...(place.paths === undefined ? {} : { paths: [...place.paths] }),
        ...(action.kind === 'header' ? { header: action.header, format: action.format } : {}),
        ...(action.kind === 'substitute' ? { substitute: [...action.parts] } : {}),
      })),
      createdAt: content.createdAt,
    };
  });
}

/** Enough to tell two of them apart. Of a command only the program, since arguments may be secrets, too. */
function masked(source: Source): string {
  switch (source.type) {
    case 'env':
      return `$${source.variable}`;
    case 'file':
      return source.path;
    case 'command':
      return `$(${source.command[0] ?? ''}${source.command.length > 1 ? ' …' : ''})`;
    case 'value': {
      // The access key of a pair is no secret, the rest is.
      const pair = parseKeyPair(source.value);
      const text = pair?.accessKeyId ?? source.value;
      if (pair === undefined && text.length < 24) return '********';
      return `${text.slice(0, 4)}****…****${text.slice(pair === undefined && text.length >= 40 ? -4 : -2)}`;
    }
    default:
      return source satisfies never;
  }
}
