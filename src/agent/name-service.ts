// Answers the guest's questions for names. Resolves nothing: the daemon says whether a name may be spoken to, and an address that stands for it is
// the answer. So no question leaves the sandbox as such, and none can carry data out.
import {
  type Answer,
  encodeAnswer,
  encodeMalformed,
  encodeName,
  parseQuestion,
  type Question,
  recordType,
  responseCode,
} from './dns.ts';
import type { Names } from './names.ts';

export interface NameServiceOptions {
  names: Names;
  /** Whether the daemon lets this name be spoken to. Rejects when it does not say. */
  ask: (name: string) => Promise<boolean>;
}

const loopback = {
  v4: Uint8Array.of(127, 0, 0, 1),
  v6: Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1),
};
/** The guest's own way out, where programs look for a proxy. */
const gatewayName = 'gateway.docker.internal';
/** Stands for the host; the daemon knows what that means, and whether it may be. */
const hostName = 'host.docker.internal';
/** As much as a stream may carry. */
const streamSizeMax = 65_535;

export class NameService {
  readonly #options: NameServiceOptions;

  constructor(options: NameServiceOptions) {
    this.#options = options;
  }

  /** The answer to one message, or undefined where none is due. Never rejects. */
  async answer(message: Uint8Array, way: 'datagram' | 'stream'): Promise<Uint8Array | undefined> {
    const question = parseQuestion(message);
    if (question === undefined) return undefined;
    if (question.kind === 'malformed') return encodeMalformed(question);
    const answer = await this.#answer(question).catch(() => ({ code: responseCode.failed }));
    return encodeAnswer(question, answer, way === 'stream' ? streamSizeMax : question.sizeMax);
  }

  async #answer({ name, type, internet }: Question): Promise<Answer> {
    if (!internet || type === recordType.any) return { code: responseCode.refused };
    if (name === undefined) return { code: responseCode.noSuchName };
    if (type === recordType.ptr && name.endsWith('.arpa')) return this.#reverse(name);
    if (name === 'localhost' || name.endsWith('.localhost') || name === gatewayName)
      return addressOf(loopback, type);
    if (!isHost(name) || (name !== hostName && !(await this.#options.ask(name))))
      return { code: responseCode.noSuchName };
    // No other kind of record is known here: a name that exists has none of them.
    return type === recordType.a || type === recordType.aaaa
      ? addressOf(this.#options.names.addressOf(name), type)
      : { code: responseCode.ok };
  }

  #reverse(name: string): Answer {
    const address = addressIn(name);
    const found =
      address === '127.0.0.1' || address === '0:0:0:0:0:0:0:1'
        ? 'localhost'
        : address && this.#options.names.nameAt(address);
    if (!found) return { code: responseCode.noSuchName };
    return { code: responseCode.ok, record: { type: recordType.ptr, data: encodeName(found) } };
  }
}

function addressOf(address: { v4: Uint8Array; v6: Uint8Array }, type: number): Answer {
  const data = type === recordType.a ? address.v4 : type === recordType.aaaa ? address.v6 : undefined;
  return { code: responseCode.ok, ...(data && { record: { type, data } }) };
}

/** Whether it can be the name of a host at all: the last label of one is no number, for then it would be an address. */
function isHost(name: string): boolean {
  return name !== '' && !/(^|\.)\d+$/.test(name);
}

/** The address that a name below in-addr.arpa or ip6.arpa asks about. */
function addressIn(name: string): string | undefined {
  const labels = name.split('.').reverse();
  if (labels[1] === 'in-addr' && labels.length === 6) return labels.slice(2).join('.');
  if (labels[1] === 'ip6' && labels.length === 34)
    return (labels.slice(2).join('').match(/.{4}/g) ?? [])
      .map((it) => Number.parseInt(it, 16).toString(16))
      .join(':');
  return undefined;
}
