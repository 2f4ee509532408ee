// Our end of an HTTP/1.1 connection to the world: one request after the other, answers read strictly. What comes unasked ends it.
import type { Relay } from '../upstream.ts';
import type { Line, Wire, WireReader } from '../wire.ts';
import { type BodyReader, type BodySink, bodyReader } from './body.ts';
import {
  endOfHead,
  type HeadLimits,
  headLimits,
  Malformed,
  parseResponseHead,
  type ResponseHead,
} from './head.ts';
import { Output } from './output.ts';

/** Answers before the answer (1xx): more of them than this are a flood. */
const informationalMax = 16;

/** Whoever has sent a request. */
export interface AnswerReader {
  /** An answer before the answer, but not 100 or 101. */
  informed(head: ResponseHead): void;
  answer(head: ResponseHead): void;
  answerBody(bytes: Buffer): void;
  /** All that one read brought has been told. */
  answerPaused(): void;
  /** The answer is whole. The connection is the reader's until it lets go of it. */
  answered(): void;
  /** 101: the wire has been released and holds what came behind the head. */
  switched(head: ResponseHead): void;
  /** What was sent has left. */
  upstreamDrained(): void;
  /** No answer, or half of one: the connection is closed. `broken`: what came was not HTTP. */
  answerFailed(why: { broken: boolean; message: string }): void;
}

type State = 'idle' | 'head' | 'body' | 'answered';

export interface Reached {
  address: string;
  judged: boolean;
  relay?: Relay;
  hearsEnd?: boolean;
  /** Of answers. */
  limits?: HeadLimits;
}

export class Http1Upstream<L extends Line = Wire> implements WireReader, BodySink {
  readonly wire: L;
  readonly output: Output;
  readonly address: string;
  /** The policy was asked about `address`; it was not where a proxy of the host's network stands between. */
  readonly judged: boolean;
  /** Set when it ends at a proxy of the host's network, which has to be told each request's whole URL. */
  readonly relay: Relay | undefined;
  /** What it has been used for: connections with other shares are kept apart. Undefined while it is fresh. */
  share: string | undefined;
  /** Called when an idle connection ends by itself. */
  onIdleEnd: () => void = () => {};
  /** Whether another request may follow. */
  reusable = true;
  /** How long the other end said that it waits for the next request. */
  keptSeconds: number | undefined;
  readonly #hearsEnd: boolean;
  readonly #limits: HeadLimits;
  #state: State = 'idle';
  #reader: AnswerReader | undefined;
  #method = '';
  #head: Buffer | undefined;
  #seen = 0;
  #body: BodyReader | undefined;
  #informational = 0;
  #untilClose = false;

  constructor(wire: L, reached: Reached) {
    this.wire = wire;
    this.output = new Output(wire);
    this.address = reached.address;
    this.judged = reached.judged;
    this.relay = reached.relay;
    this.#hearsEnd = reached.hearsEnd === true;
    this.#limits = reached.limits ?? headLimits;
    wire.take(this);
  }

  /** The answer to what is sent from now on goes to `reader`. */
  begin(method: string, reader: AnswerReader): void {
    this.#reader = reader;
    this.#method = method;
    this.#state = 'head';
    this.#informational = 0;
  }

  /** Whoever asked says no more, and may have gone. Most servers would take our saying so for a reason not to answer. */
  askerEnded(): void {
    if (!this.#hearsEnd) return;
    this.reusable = false;
    this.wire.end();
  }

  /** Back to idle, behind a whole answer. False when it cannot be used again; it is closed then. */
  rest(): boolean {
    const fit = this.#state === 'answered' && this.reusable && !this.wire.closed && !this.wire.ended;
    this.#reader = undefined;
    this.#state = 'idle';
    if (fit) this.wire.go();
    else this.close();
    return fit;
  }

  close(): void {
    this.#reader = undefined;
    this.wire.close();
  }

  data(bytes: Buffer): void {
    const reader = this.#reader;
    try {
      let rest: Buffer | undefined = bytes;
      if (this.#state === 'idle' || this.#state === 'answered') this.#unasked();
      else
        while (rest !== undefined)
          rest = this.#state === 'head' ? this.#readHead(rest) : this.#readBody(rest);
    } catch (error) {
      if (!(error instanceof Malformed)) throw error;
      this.#fail(true, error.message);
    }
    if (this.#reader === reader) reader?.answerPaused();
  }

  end(): void {
    if (this.#state === 'body' && this.#untilClose) {
      this.reusable = false;
      this.#state = 'answered';
      this.#reader?.answered();
    } else if (this.#state === 'answered') this.reusable = false;
    else this.#fail(false, 'The connection ended before the answer was whole.');
  }

  drained(): void {
    this.#reader?.upstreamDrained();
  }

  gone(): void {
    if (this.#state === 'answered') this.reusable = false;
    else this.#fail(false, 'The connection was reset.');
  }

  body(bytes: Buffer): void {
    this.#reader?.answerBody(bytes);
  }

  /** Undefined when nothing of `bytes` is left to be read. */
  #readHead(bytes: Buffer): Buffer | undefined {
    const all = this.#head === undefined ? bytes : Buffer.concat([this.#head, bytes]);
    const end = endOfHead(all, this.#seen, this.#limits.bytes);
    if (end < 0) {
      this.#head = all;
      this.#seen = all.length;
      return undefined;
    }
    this.#head = undefined;
    this.#seen = 0;
    const head = parseResponseHead(all.toString('latin1', 0, end), this.#method, this.#limits);
    const rest = all.subarray(end);
    // Meant for us: the guest has no credentials for that proxy, and must not be asked for them.
    if (head.status === 407 && this.relay !== undefined)
      throw new Malformed(400, 'The upstream proxy does not accept our credentials (407).');
    if (head.status >= 200) return this.#answer(head, rest);
    if (head.status === 101) {
      const reader = this.#reader;
      this.wire.release(rest);
      this.#reader = undefined;
      reader?.switched(head);
      return undefined;
    }
    if (++this.#informational > informationalMax)
      throw new Malformed(400, 'Too many answers before the answer.');
    if (head.status !== 100) this.#reader?.informed(head);
    return rest.length > 0 ? rest : undefined;
  }

  #answer(head: ResponseHead, rest: Buffer): Buffer | undefined {
    this.keptSeconds = head.keptSeconds;
    this.reusable = head.keepAlive && head.framing.kind !== 'close';
    this.#untilClose = head.framing.kind === 'close';
    this.#body = bodyReader(head.framing);
    this.#state = 'body';
    this.#reader?.answer(head);
    if (this.#body.done) return this.#answered(rest.length);
    return rest.length > 0 ? rest : undefined;
  }

  #readBody(bytes: Buffer): Buffer | undefined {
    const body = this.#body as BodyReader;
    const at = body.read(bytes, 0, this);
    return body.done ? this.#answered(bytes.length - at) : undefined;
  }

  /** `left`: bytes behind the answer. They would pass for the answer to the next request, which is never made here then. */
  #answered(left: number): undefined {
    // The reader may have closed this while it was told of the body.
    if (this.#state !== 'body' || this.#reader === undefined) return;
    if (left > 0) this.reusable = false;
    this.#state = 'answered';
    this.#reader.answered();
  }

  /** Bytes that answer nothing: the other end wants the next request to get an answer that is not its own. */
  #unasked(): void {
    this.reusable = false;
    if (this.#reader !== undefined) return;
    this.close();
    this.onIdleEnd();
  }

  #fail(broken: boolean, message: string): void {
    const reader = this.#reader;
    this.reusable = false;
    this.close();
    if (reader === undefined) this.onIdleEnd();
    else reader.answerFailed({ broken, message });
  }
}
