// Signatures of routes to ports of sandboxes: whoever has one gets to this port until it expires, and nowhere else. The canonical text and the place of its
// parts are those of OpenSandbox's OSEP-0011; the code over them is an HMAC of 56 bits, or OSEP-0011's own hash of 32 bits where other software has to check it.
import { createHash, createHmac, timingSafeEqual } from 'node:crypto';
import { Failure } from '../lib/failure.ts';

export type SignatureForm = 'hmac' | 'opensandbox';

export interface RouteKey {
  /** One character of 0-9 and a-z: the last one of each signature, which says what it was made with. */
  id: string;
  secret: Uint8Array;
}

export interface SignedPart {
  /** Seconds since the epoch, in base 36. */
  expires: string;
  signature: string;
}

export interface RouteKeys {
  form: SignatureForm;
  /** All that signatures are accepted of. */
  keys: readonly RouteKey[];
  /** Id of the one that new signatures are made with. */
  activeKey: string;
}

/** Seven digits: with an id of 36 characters and any port the whole still fits into one label of a host name. The year 4453. */
export const expiresMax = 36 ** 7 - 1;

const expiresForm = /^(?:0|[1-9a-z][0-9a-z]{0,12})$/;
const hmacDigits = 11;
/** Signatures of ours that are remembered; each is less than 300 bytes. */
const rightMax = 1_024;
const forms: Record<SignatureForm, RegExp> = {
  hmac: /^[0-9a-z]{11}[0-9a-z]$/,
  opensandbox: /^[0-9a-f]{8}[0-9a-z]$/,
};

export class RouteSigner {
  readonly #now: () => Date;
  #form: SignatureForm = 'hmac';
  #activeKey = '';
  #keys: ReadonlyMap<string, Uint8Array> = new Map();
  /** What has been found to be of our keys, as its exact text, in the order of its last use: each request of a page brings the same. */
  readonly #right = new Set<string>();

  /** Throws as `use`. */
  constructor({ now, ...keys }: RouteKeys & { now: () => Date }) {
    this.#now = now;
    this.use(keys);
  }

  /** From now on these keys and no others. Throws Failure('invalid') for keys that cannot be; then those before stay. */
  use({ form, keys, activeKey }: RouteKeys): void {
    for (const { id } of keys)
      if (!/^[0-9a-z]$/.test(id)) throw new Failure('invalid', 'the id of a route key is one of 0-9 and a-z');
    const byId = new Map(keys.map(({ id, secret }) => [id, secret]));
    if (byId.size < keys.length) throw new Failure('invalid', 'two route keys have the same id');
    if (!byId.has(activeKey))
      throw new Failure('invalid', `there is no route key ${JSON.stringify(activeKey)}`);
    this.#form = form;
    this.#activeKey = activeKey;
    this.#keys = byId;
    this.#right.clear();
  }

  /** `expiresSeconds`: whole seconds since the epoch. Failure('invalid') when that is past, or beyond `expiresMax`. */
  sign(sandboxId: string, port: number, expiresSeconds: number): SignedPart {
    if (!(expiresSeconds * 1000 > this.#now().getTime()))
      throw new Failure('invalid', `expires: ${expiresSeconds} is not in the future`, {
        hint: 'Give seconds since 1970, as `date +%s` shows them.',
      });
    if (expiresSeconds > expiresMax)
      throw new Failure(
        'invalid',
        `expires: ${expiresSeconds} is too far away; the latest is ${expiresMax}`,
        {
          hint: 'Give seconds since 1970, not milliseconds.',
        },
      );
    const expires = expiresSeconds.toString(36);
    return { expires, signature: this.#code(sandboxId, port, expires, this.#activeKey) };
  }

  /** Whether these could be the parts of a signed route at all. */
  looksSigned({ expires, signature }: SignedPart): boolean {
    return expiresForm.test(expires) && forms[this.#form].test(signature);
  }

  /** `forged` is all that this daemon's keys have not made. */
  check(sandboxId: string, port: number, { expires, signature }: SignedPart): 'valid' | 'expired' | 'forged' {
    if (!this.#isRight(sandboxId, port, { expires, signature })) return 'forged';
    return Number.parseInt(expires, 36) * 1000 >= this.#now().getTime() ? 'valid' : 'expired';
  }

  #isRight(sandboxId: string, port: number, { expires, signature }: SignedPart): boolean {
    const text = `${signature}\n${expires}\n${port}\n${sandboxId}`;
    if (this.#right.delete(text)) {
      this.#right.add(text);
      return true;
    }
    const keyId = signature.at(-1) ?? '';
    if (!this.looksSigned({ expires, signature }) || !this.#keys.has(keyId)) return false;
    const right = this.#code(sandboxId, port, expires, keyId);
    if (!timingSafeEqual(Buffer.from(right), Buffer.from(signature))) return false;
    if (this.#right.size >= rightMax) this.#right.delete(this.#right.values().next().value as string);
    this.#right.add(text);
    return true;
  }

  #code(sandboxId: string, port: number, expires: string, keyId: string): string {
    const secret = this.#keys.get(keyId) as Uint8Array;
    const text = Buffer.from(`v1\nshort\n${sandboxId}\n${port}\n${expires}\n`);
    const code = this.#form === 'hmac' ? hmacOf(secret, text) : hashOf(secret, text);
    return code + keyId;
  }
}

function hmacOf(secret: Uint8Array, text: Buffer): string {
  const number = createHmac('sha256', secret).update(text).digest().readBigUInt64BE(0);
  return (number % 36n ** BigInt(hmacDigits)).toString(36).padStart(hmacDigits, '0');
}

/** OSEP-0011, "Signing algorithm": both parts behind their lengths. */
function hashOf(secret: Uint8Array, text: Buffer): string {
  const length = (bytes: Uint8Array) => {
    const four = Buffer.alloc(4);
    four.writeUInt32BE(bytes.length);
    return four;
  };
  const inner = [length(secret), secret, length(text), text];
  return createHash('sha256').update(Buffer.concat(inner)).digest('hex').slice(0, 8);
}
