// Projects and their keys: who a key is, how often it may call, and what it has open, which is cut when it holds no more.
// Of keys only hashes are kept: 256 random bits need no slow one.
import { createHash, createHmac, randomBytes, randomUUID, timingSafeEqual } from 'node:crypto';
import type { ProjectOfSandbox } from '../contract/sandbox.ts';
import {
  endpointTokenForm,
  type KeyInfo,
  type KeyRecord,
  keyForm,
  type MadeKey,
  type NewKey,
  type ProjectRecord,
  type Quotas,
  type Role,
} from '../contract/tenant.ts';
import { Failure } from '../lib/failure.ts';
import { Buckets, callerNetwork, type Rate } from './rates.ts';
import { Refusal } from './refusal.ts';

const projectsMax = 1_000;
const keysOfProjectMax = 1_000;
/** Networks of callers of which failures are remembered: some 2 MiB. */
const networksMax = 10_000;
/** Of one project at the same time, so that nobody takes all that the server answers at once. */
const openOfProjectMax = 256;
/** A use is written to the disk no more often than this. */
const usedEveryMs = 60_000;
/** Timers take no more. */
const timerMsMax = 2_147_483_647;

/** Who called with a key of a project. */
export interface Tenant {
  project: ProjectOfSandbox;
  keyId: string;
  role: Role;
}

/** What the registry keeps itself in: records by id, durable when the call returns. */
export interface Records<T> {
  all(): T[];
  save(id: string, record: T): void;
  drop(id: string): boolean;
}

export interface RateLimits {
  /** Of each key of a project. */
  key: Rate;
  /** Of the administrator's key and the owner's; absent: none. */
  administrator?: Rate;
  /** Of failed attempts to be let in, by the network that they come from. */
  failures: Rate;
}

export const defaultRateLimits: RateLimits = {
  key: { perMinute: 1_200, burst: 200 },
  failures: { perMinute: 30, burst: 30 },
};

export interface TenantsOptions {
  projects: Records<ProjectRecord>;
  keys: Records<KeyRecord>;
  limits?: Partial<RateLimits>;
  now: () => Date;
  /** For rates: milliseconds of a clock that nobody sets. */
  monotonicMs?: () => number;
}

/** Something that a key has open. */
export interface Cuttable {
  abort(reason: Failure): void;
}

const digest = (text: string): Buffer => createHash('sha256').update(text).digest();

export class Tenants {
  readonly #options: TenantsOptions;
  #limits: RateLimits;
  readonly #monotonicMs: () => number;
  /** By name. */
  readonly #projects = new Map<string, ProjectRecord>();
  readonly #byId = new Map<string, ProjectRecord>();
  readonly #keys = new Map<string, KeyRecord>();
  readonly #open = new Map<string, Set<Cuttable>>();
  /** How many, by the id of the project. */
  readonly #openOf = new Map<string, number>();
  /** Ids of projects that nothing more may be made in. */
  readonly #ending = new Set<string>();
  readonly #savedUseMs = new Map<string, number>();
  readonly #keyRates = new Buckets({ max: projectsMax * keysOfProjectMax });
  readonly #projectRates = new Buckets({ max: projectsMax });
  readonly #administratorRates = new Buckets({ max: 1 });
  readonly #failureRates = new Buckets({ max: networksMax });

  constructor(options: TenantsOptions) {
    this.#options = options;
    this.#limits = { ...defaultRateLimits, ...options.limits };
    this.#monotonicMs = options.monotonicMs ?? (() => performance.now());
    for (const project of options.projects.all()) this.#add(project);
    // A project that was removed half-way leaves keys that open nothing.
    for (const key of options.keys.all())
      if (this.#byId.has(key.projectId)) this.#keys.set(key.id, key);
      else options.keys.drop(key.id);
  }

  /** From the next request on. */
  setLimits(limits: RateLimits): void {
    this.#limits = limits;
  }

  /** Whose key this is; undefined for what is none, never was, or was revoked. Throws a 401 for one that has expired, to who has it. */
  holderOf(text: string): Tenant | undefined {
    const [, id = '', secret = ''] = keyForm.exec(text) ?? [];
    const key = this.#keys.get(id);
    // The same work for a key that there is not.
    const fits = timingSafeEqual(digest(secret), Buffer.from(key?.hash ?? digest('').toString('hex'), 'hex'));
    if (key === undefined || secret === '' || !fits) return undefined;
    if (this.#expired(key))
      throw new Refusal('unauthenticated', `the API key ${id} has expired at ${key.expiresAt}`, {
        wireCode: 'INVALID_API_KEY',
        hint: 'Ask an administrator of the project, or of the server, for a new one.',
      });
    return this.#used(key);
  }

  /** A token for the endpoints of one sandbox that holds as long as the key does. `secret`: the sandbox's own token. */
  endpointToken(keyId: string, secret: string): string {
    return `gbe_${keyId}_${createHmac('sha256', secret).update(keyId).digest('base64url')}`;
  }

  /** Whose token for the endpoints of this sandbox this is; undefined for what is none, or holds no more. */
  endpointHolderOf(
    text: string,
    sandbox: { secret: string; projectId: string | undefined },
  ): Tenant | undefined {
    const [, id = ''] = endpointTokenForm.exec(text) ?? [];
    const key = this.#keys.get(id);
    if (key === undefined || key.projectId !== sandbox.projectId || this.#expired(key)) return undefined;
    const fits = timingSafeEqual(digest(text), digest(this.endpointToken(id, sandbox.secret)));
    return fits ? this.#used(key) : undefined;
  }

  /** Throws a 429 that says when to come again. */
  admit(tenant: Tenant | undefined): void {
    const { key, administrator } = this.#limits;
    if (tenant === undefined) {
      if (administrator !== undefined) this.#take(this.#administratorRates, '', administrator);
      return;
    }
    this.#take(this.#keyRates, tenant.keyId, key);
    const { requestsPerMinute } = this.#byId.get(tenant.project.id)?.quotas ?? {};
    if (requestsPerMinute === undefined) return;
    const rate = { perMinute: requestsPerMinute, burst: Math.max(1, Math.ceil(requestsPerMinute / 6)) };
    this.#take(this.#projectRates, tenant.project.id, rate);
  }

  /** Somebody was not let in. Throws a 429 when that has happened too often. */
  failed(address: string): void {
    this.#take(this.#failureRates, callerNetwork(address), this.#limits.failures);
  }

  /** Networks of which failures are remembered at the moment. */
  get networks(): number {
    return this.#failureRates.size;
  }

  /** Aborts it when the key is revoked, expires, or loses its project, until it is disposed of. Throws a 429 when the project has too many open. */
  follow({ keyId, project }: Tenant, it: Cuttable): Disposable {
    const before = this.#openOf.get(project.id) ?? 0;
    if (before >= openOfProjectMax)
      throw new Refusal(
        'exhausted',
        `project ${project.name} has ${openOfProjectMax} requests under way; that is the most at the same time`,
        {
          wireCode: 'TOO_MANY_REQUESTS',
          headers: { 'Retry-After': '1' },
          hint: 'Let some come to their end.',
        },
      );
    this.#openOf.set(project.id, before + 1);
    const open = this.#open.get(keyId) ?? new Set();
    this.#open.set(keyId, open.add(it));
    const { expiresAt } = this.#keys.get(keyId) ?? {};
    let timer: NodeJS.Timeout | undefined;
    const wait = () => {
      const leftMs = new Date(expiresAt ?? 0).getTime() - this.#options.now().getTime();
      if (leftMs <= 0) return it.abort(new Failure('unauthenticated', `the API key ${keyId} has expired`));
      timer = setTimeout(wait, Math.min(leftMs, timerMsMax));
      timer.unref();
    };
    if (expiresAt !== undefined) wait();
    return {
      [Symbol.dispose]: () => {
        clearTimeout(timer);
        open.delete(it);
        if (open.size === 0) this.#open.delete(keyId);
        const left = (this.#openOf.get(project.id) ?? 1) - 1;
        if (left > 0) this.#openOf.set(project.id, left);
        else this.#openOf.delete(project.id);
      },
    };
  }

  list(): ProjectRecord[] {
    return [...this.#projects.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  /** Failure('not-found'). */
  get(name: string): ProjectRecord {
    const project = this.#projects.get(name);
    if (project === undefined) throw noProject(name);
    return project;
  }

  /** By id. Failure('not-found') for one that is being removed, too. */
  quotasOf(projectId: string): Quotas {
    const project = this.#byId.get(projectId);
    if (project === undefined || this.#ending.has(projectId))
      throw new Failure('not-found', 'the project is gone or being removed');
    return project.quotas;
  }

  /** Failure('conflict') when the name is taken. */
  create({ name, quotas }: { name: string; quotas: Quotas }): ProjectRecord {
    if (this.#projects.has(name))
      throw new Failure('conflict', `there is a project ${name} already`, { hint: 'Choose another name.' });
    if (this.#projects.size >= projectsMax)
      throw new Failure('exhausted', `there are ${projectsMax} projects already; the most is ${projectsMax}`);
    const createdAt = this.#options.now().toISOString();
    const project: ProjectRecord = { id: randomUUID(), name, quotas, createdAt };
    this.#options.projects.save(project.id, project);
    this.#add(project);
    return project;
  }

  /** Failure('not-found'). */
  setQuotas(name: string, quotas: Quotas): ProjectRecord {
    const project = { ...this.get(name), quotas };
    this.#options.projects.save(project.id, project);
    this.#add(project);
    return project;
  }

  /**
   * Revokes all keys, so that nothing more can be made, has `empty` take away what there is, and forgets the project. When that fails, the project stays,
   * without keys. Failure('not-found').
   */
  async remove(name: string, empty: (projectId: string) => Promise<void>): Promise<void> {
    const { id } = this.get(name);
    this.#ending.add(id);
    try {
      for (const key of this.#keysOf(id)) this.#drop(key, 'its project is being removed');
      await empty(id);
      this.#options.projects.drop(id);
      this.#projects.delete(name);
      this.#byId.delete(id);
      this.#projectRates.forget(id);
    } finally {
      this.#ending.delete(id);
    }
  }

  /** Oldest first. Failure('not-found') for the project. */
  keys(name: string): KeyInfo[] {
    return this.#keysOf(this.get(name).id)
      .sort((a, b) => (a.createdAt < b.createdAt ? -1 : 1))
      .map(infoOf);
  }

  /** Failure('invalid') for an expiry that is not in the future, Failure('not-found') for the project. */
  createKey(name: string, { role, label, expiresAt }: NewKey): MadeKey {
    const { id: projectId } = this.get(name);
    // While it is being removed.
    this.quotasOf(projectId);
    const now = this.#options.now();
    const until = expiresAt === undefined ? undefined : new Date(expiresAt);
    if (until !== undefined && !(until > now))
      throw new Failure('invalid', `expiresAt: ${expiresAt} is not in the future`);
    if (this.#keysOf(projectId).length >= keysOfProjectMax)
      throw new Failure('exhausted', `project ${name} has ${keysOfProjectMax} keys already`, {
        hint: 'Revoke some.',
      });
    const id = this.#freeKeyId();
    const secret = randomBytes(32).toString('base64url');
    const key: KeyRecord = {
      ...{ id, projectId, role, createdAt: now.toISOString(), hash: digest(secret).toString('hex') },
      ...(label === undefined ? {} : { label }),
      ...(until === undefined ? {} : { expiresAt: until.toISOString() }),
    };
    this.#options.keys.save(id, key);
    this.#keys.set(id, key);
    return { ...infoOf(key), key: `gbx_${id}_${secret}` };
  }

  /** What it has open is cut. Failure('not-found'). */
  revokeKey(name: string, keyId: string): void {
    const key = this.#keys.get(keyId);
    if (key === undefined || key.projectId !== this.get(name).id)
      throw new Failure('not-found', `project ${name} has no key ${JSON.stringify(keyId.slice(0, 40))}`, {
        hint: `See \`glovebox project key ls ${name}\`.`,
      });
    this.#drop(key, 'it was revoked');
  }

  #add(project: ProjectRecord): void {
    this.#projects.set(project.name, project);
    this.#byId.set(project.id, project);
  }

  #keysOf(projectId: string): KeyRecord[] {
    return [...this.#keys.values()].filter((it) => it.projectId === projectId);
  }

  #freeKeyId(): string {
    for (;;) {
      const id = randomBytes(6).toString('hex');
      if (!this.#keys.has(id)) return id;
    }
  }

  #drop({ id }: KeyRecord, why: string): void {
    this.#options.keys.drop(id);
    this.#keys.delete(id);
    this.#savedUseMs.delete(id);
    this.#keyRates.forget(id);
    for (const it of this.#open.get(id) ?? [])
      it.abort(new Failure('unauthenticated', `the API key ${id} holds no more: ${why}`));
  }

  #expired({ expiresAt }: KeyRecord): boolean {
    return expiresAt !== undefined && !(new Date(expiresAt) > this.#options.now());
  }

  #used(key: KeyRecord): Tenant {
    const { id: keyId, role, projectId } = key;
    const nowMs = this.#monotonicMs();
    key.lastUsedAt = this.#options.now().toISOString();
    const savedMs = this.#savedUseMs.get(keyId);
    if (savedMs === undefined || nowMs - savedMs >= usedEveryMs) {
      this.#savedUseMs.set(keyId, nowMs);
      this.#options.keys.save(keyId, key);
    }
    const { id, name } = this.#byId.get(projectId) ?? { id: projectId, name: '' };
    return { project: { id, name }, keyId, role };
  }

  #take(buckets: Buckets, who: string, rate: Rate): void {
    const waitMs = buckets.take(who, rate, this.#monotonicMs());
    if (waitMs === undefined) return;
    const seconds = Math.max(1, Math.ceil(waitMs / 1000));
    throw new Refusal('exhausted', `too many requests; come again in ${seconds} s`, {
      wireCode: 'TOO_MANY_REQUESTS',
      headers: { 'Retry-After': String(seconds) },
      hint: `Wait as long as Retry-After says. The limit here is ${rate.perMinute} a minute.`,
    });
  }
}

export const noProject = (name: string): Failure =>
  new Failure('not-found', `there is no project ${JSON.stringify(name.slice(0, 64))}`, {
    hint: 'See `glovebox project ls`.',
  });

function infoOf({ hash: _, projectId: __, ...info }: KeyRecord): KeyInfo {
  return info;
}
