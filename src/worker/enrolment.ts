// One-time tokens with which a machine becomes a worker. Only their hashes are kept.
import { createHash, randomBytes, randomUUID } from 'node:crypto';
import type { EnrolmentInfo, EnrolmentToken, NewEnrolment } from '../contract/worker.ts';
import { Failure } from '../lib/failure.ts';
import type { Collection } from '../store/store.ts';

export interface EnrolmentRecord extends EnrolmentInfo {
  sha256: string;
  /** Whom it made a worker. It stays until it expires, so that a worker whose answer was lost on the way can ask again. */
  used?: { workerId: string; publicKey: string };
}

/** So many workers can be waited for at the same time. */
const enrolmentsMax = 10_000;

export class Enrolments {
  readonly #kept: Collection<EnrolmentRecord>;
  readonly #now: () => Date;
  readonly #bySha256 = new Map<string, EnrolmentRecord>();

  constructor(kept: Collection<EnrolmentRecord>, now: () => Date) {
    this.#kept = kept;
    this.#now = now;
    for (const record of kept.all()) this.#bySha256.set(record.sha256, record);
  }

  add({ workerId, labels, replace, expiresInSeconds }: NewEnrolment): EnrolmentToken {
    this.#sweep();
    if (this.#bySha256.size >= enrolmentsMax)
      throw new Failure('exhausted', `there are ${enrolmentsMax} enrolments already, which is the most`, {
        hint: 'Remove those that nobody will use, or let them expire.',
      });
    const token = `gbw_${randomBytes(32).toString('base64url')}`;
    const createdAt = this.#now();
    const info: EnrolmentInfo = {
      id: randomUUID(),
      ...(workerId === undefined ? {} : { workerId }),
      labels,
      replace,
      createdAt: createdAt.toISOString(),
      expiresAt: new Date(createdAt.getTime() + expiresInSeconds * 1000).toISOString(),
    };
    this.#save({ ...info, sha256: sha256Of(token) });
    return { ...info, token };
  }

  /** Those that can still be used, the oldest first. */
  list(): EnrolmentInfo[] {
    this.#sweep();
    return [...this.#bySha256.values()]
      .filter(({ used }) => used === undefined)
      .map(({ sha256: _, used: __, ...info }) => info)
      .sort((a, b) => a.createdAt.localeCompare(b.createdAt));
  }

  /** Failure('not-found'). */
  drop(id: string): void {
    const found = [...this.#bySha256.values()].find((it) => it.id === id && it.used === undefined);
    if (found === undefined)
      throw new Failure('not-found', `there is no enrolment ${JSON.stringify(id)} that can still be used`);
    this.#forget(found);
  }

  /** What a token stands for, used or not, unless it has expired. */
  find(token: string): EnrolmentRecord | undefined {
    const found = this.#bySha256.get(sha256Of(token));
    if (found === undefined || Date.parse(found.expiresAt) > this.#now().getTime()) return found;
    this.#forget(found);
    return undefined;
  }

  markUsed(record: EnrolmentRecord, used: { workerId: string; publicKey: string }): void {
    this.#save({ ...record, used });
  }

  /** A worker is gone or has another key: the token that once made it is worth nothing to whoever has the old key. */
  forgetUsedBy(workerId: string): void {
    for (const record of [...this.#bySha256.values()])
      if (record.used?.workerId === workerId) this.#forget(record);
  }

  #save(record: EnrolmentRecord): void {
    this.#kept.save(record.id, record);
    this.#bySha256.set(record.sha256, record);
  }

  #forget(record: EnrolmentRecord): void {
    this.#kept.drop(record.id);
    this.#bySha256.delete(record.sha256);
  }

  #sweep(): void {
    const now = this.#now().getTime();
    for (const record of [...this.#bySha256.values()])
      if (Date.parse(record.expiresAt) <= now) this.#forget(record);
  }
}

const sha256Of = (token: string) => createHash('sha256').update(token).digest('hex');
