// One request to a port of a guest, over a connection that has waited for it or a new one, and its answer. Who has asked, and on what, is not known here.
import type { AnswerReader } from '../egress/http1/client.ts';
import type { ResponseHead } from '../egress/http1/head.ts';
import { YoungGarbage } from '../lib/young-garbage.ts';
import type { PortPlace } from './port-dial.ts';
import { type AskedFor, answeredHeaders, askingHead } from './port-heads.ts';
import { connected, giveBack, type PortUpstream, waiting } from './port-pool.ts';
import { Refusal } from './refusal.ts';

/** What may be asked of a server once more when a connection that waited for a request turns out to have ended. */
const repeatable: ReadonlySet<string> = new Set(['GET', 'HEAD', 'OPTIONS']);

/** Whoever asks. Hears nothing any more after `answered`, `failed`, a `switched` that it wanted, and `close`. */
export interface PortAsker {
  /** The head is on its way, and the body may follow. A request without one may come to this twice. */
  reached(): void;
  /** `headers`: name and value in turns, as the client has to see them. */
  answer(head: ResponseHead, headers: string[]): void;
  answerBody(bytes: Buffer): void;
  /** All that one read brought has been told. */
  answerPaused(): void;
  /** The answer is whole. Of a body, what has not been sent by now never will be. */
  answered(): void;
  /** 101: whether that was wanted. The wire is the asker's then. */
  switched?(head: ResponseHead): boolean;
  /** What was sent has left. */
  drained(): void;
  /** No answer, or half of one. */
  failed(failure: unknown): void;
}

export class PortAsking implements AnswerReader {
  readonly #place: PortPlace;
  readonly #asked: AskedFor;
  readonly #asker: PortAsker;
  readonly #signal: AbortSignal | undefined;
  readonly #garbage = new YoungGarbage();
  #upstream: PortUpstream | undefined;
  #pooled = false;
  #sentAll: boolean;
  #answered = false;
  #over = false;

  /** `signal`: gives up waiting for a connection. */
  constructor(place: PortPlace, asked: AskedFor, asker: PortAsker, signal?: AbortSignal) {
    this.#place = place;
    this.#asked = asked;
    this.#asker = asker;
    this.#signal = signal;
    this.#sentAll = asked.framing.kind === 'none';
  }

  begin(): void {
    const upstream = waiting(this.#place);
    if (upstream === undefined) return this.#connect();
    this.#pooled = true;
    this.send(upstream);
  }

  /** In the place of `begin`: over this one. */
  send(upstream: PortUpstream): void {
    this.#upstream = upstream;
    upstream.begin(this.#asked.method, this);
    upstream.output.text(askingHead(this.#asked));
    this.#asker.reached();
    if (upstream.wire.closed) this.answerFailed({ broken: false, message: 'the connection was reset' });
    else upstream.output.flush();
  }

  body(bytes: Buffer): void {
    this.#garbage.passed(bytes.length);
    this.#upstream?.output.payload(bytes, this.#asked.framing.kind === 'chunked');
  }

  bodyEnded(): void {
    this.#sentAll = true;
    if (this.#asked.framing.kind === 'chunked') this.#upstream?.output.text('0\r\n\r\n');
  }

  /** False when no more should come until `drained`. */
  flush(): boolean {
    return this.#upstream?.output.flush() !== false;
  }

  /** Wants no more of the answer for now. */
  hold(): void {
    this.#upstream?.wire.hold();
  }

  go(): void {
    if (!this.#over) this.#upstream?.wire.go();
  }

  /** Gives up what is not over. */
  close(): void {
    if (this.#over) return;
    this.#over = true;
    this.#upstream?.close();
  }

  /** As it is told to who has waited too long. */
  get late(): Refusal {
    const { port, limits } = this.#place;
    return new Refusal('timeout', `port ${port}: no answer within ${limits.proxyFirstByteMs} ms`, {
      status: 504,
    });
  }

  informed(): void {}

  answer(head: ResponseHead): void {
    this.#answered = true;
    this.#asker.answer(head, answeredHeaders(head.headers, head.spelt, this.#asked.relocate));
  }

  answerBody(bytes: Buffer): void {
    this.#garbage.passed(bytes.length);
    this.#asker.answerBody(bytes);
  }

  answerPaused(): void {
    this.#asker.answerPaused();
  }

  answered(): void {
    if (this.#over) return;
    this.#over = true;
    const upstream = this.#upstream as PortUpstream;
    if (this.#sentAll) giveBack(this.#place, upstream);
    else upstream.close();
    this.#asker.answered();
  }

  switched(head: ResponseHead): void {
    if (this.#asker.switched?.(head) === true) this.#over = true;
    else this.#fail('it switched to a protocol that was not asked for');
  }

  upstreamDrained(): void {
    this.#asker.drained();
  }

  answerFailed({ broken, message }: { broken: boolean; message: string }): void {
    if (this.#over) return;
    const { method, framing } = this.#asked;
    const isStale = this.#pooled && !this.#answered && !broken;
    this.#pooled = false;
    if (isStale && framing.kind === 'none' && repeatable.has(method)) this.#connect();
    else this.#fail(message);
  }

  #connect(): void {
    connected(this.#place, this.#signal).then(
      (upstream) => {
        if (this.#over) upstream.close();
        else this.send(upstream);
      },
      (error) => {
        if (this.#over) return;
        this.#over = true;
        this.#asker.failed(error);
      },
    );
  }

  #fail(message: string): void {
    this.close();
    this.#asker.failed(new Refusal('protocol', `port ${this.#place.port}: ${message}`, { status: 502 }));
  }
}
