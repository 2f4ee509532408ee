// Tokens of callers that are no sandboxes of ours. The file keeps only their hashes, is written whole, and is read again when another process has changed it.
import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import { mkdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { z } from 'zod';
import { BellToken, NewBellToken } from '../contract/bell.ts';
import { Failure } from '../lib/failure.ts';

const tokensMax = 256;
/** Longer is no token of ours and is not hashed. */
const tokenCharactersMax = 256;

const Kept = z.strictObject({
  tokens: z
    .array(z.strictObject({ ...BellToken.shape, sha256: z.string().regex(/^[0-9a-f]{64}$/) }))
    .max(tokensMax),
});
type Kept = z.infer<typeof Kept>['tokens'];

export interface BellTokensOptions {
  file: string;
  now: () => Date;
}

const hashOf = (token: string) => createHash('sha256').update(token).digest();

export class BellTokens {
  readonly #options: BellTokensOptions;
  #kept: Kept = [];
  /** What the file looked like when it was read. */
  #version: string | undefined;

  /** Failure('invalid') when the file cannot be understood. */
  constructor(options: BellTokensOptions) {
    this.#options = options;
    this.#refresh();
  }

  list(): BellToken[] {
    this.#refresh();
    return this.#kept.map(({ name, createdAt }) => ({ name, createdAt }));
  }

  /** The token is shown this once. Failure('conflict') when the name is taken. */
  add(name: string): BellToken & { token: string } {
    const checked = NewBellToken.safeParse({ name });
    if (!checked.success)
      throw new Failure('invalid', `token ${JSON.stringify(name)}: ${checked.error.issues[0]?.message}`);
    this.#refresh();
    if (this.#kept.some((it) => it.name === name))
      throw new Failure('conflict', `there is a token named ${name} already`, {
        hint: `Choose another name, or run: glovebox bell token rm ${name}`,
      });
    if (this.#kept.length >= tokensMax)
      throw new Failure('exhausted', `there are ${tokensMax} tokens already, which is the most`, {
        hint: 'Remove those nobody uses: glovebox bell token rm NAME',
      });
    const token = randomBytes(32).toString('base64url');
    const createdAt = this.#options.now().toISOString();
    this.#save([...this.#kept, { name, createdAt, sha256: hashOf(token).toString('hex') }]);
    return { name, createdAt, token };
  }

  /** Failure('not-found'). */
  remove(name: string): void {
    this.#refresh();
    const rest = this.#kept.filter((it) => it.name !== name);
    if (rest.length === this.#kept.length)
      throw new Failure('not-found', `there is no token named ${JSON.stringify(name)}`, {
        hint: 'See those there are: glovebox bell token ls',
      });
    this.#save(rest);
  }

  /** Whose token this is. Takes the same time whichever it is. */
  nameOf(token: string): string | undefined {
    this.#refresh();
    if (token.length > tokenCharactersMax) return undefined;
    const hash = hashOf(token);
    let name: string | undefined;
    for (const kept of this.#kept)
      if (timingSafeEqual(hash, Buffer.from(kept.sha256, 'hex'))) name = kept.name;
    return name;
  }

  #refresh(): void {
    const { file } = this.#options;
    try {
      const stat = statSync(file, { throwIfNoEntry: false });
      const version = stat === undefined ? 'none' : `${stat.ino} ${stat.mtimeMs} ${stat.size}`;
      if (version === this.#version) return;
      this.#kept = stat === undefined ? [] : read(file);
      this.#version = version;
    } catch (error) {
      // Nobody gets in by a token that may have been removed.
      this.#kept = [];
      this.#version = undefined;
      throw Failure.from(error, `read ${file}`);
    }
  }

  #save(tokens: Kept): void {
    const { file } = this.#options;
    const beside = `${file}.${process.pid}.new`;
    try {
      mkdirSync(dirname(file), { recursive: true, mode: 0o700 });
      // What is there was left by a process of our number that was killed; its mode may be another.
      rmSync(beside, { force: true });
      writeFileSync(beside, `${JSON.stringify({ tokens }, null, 2)}\n`, {
        mode: 0o600,
        flag: 'wx',
        flush: true,
      });
      renameSync(beside, file);
    } catch (error) {
      rmSync(beside, { force: true });
      throw Failure.from(error, `keep tokens in ${file}`);
    }
    this.#refresh();
  }
}

function read(file: string): Kept {
  const text = readFileSync(file, 'utf8');
  try {
    return Kept.parse(JSON.parse(text)).tokens;
  } catch (error) {
    throw new Failure('invalid', `${file} holds no tokens of the bell`, {
      cause: error,
      hint: 'Remove it and make new tokens: glovebox bell token add NAME',
    });
  }
}
