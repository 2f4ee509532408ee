// Names that programs of the guest look up: the agent asks whether each may be resolved at all, over one connection for as long as it lives. Nothing is
// looked up here, so no query carries anything out.
import type { Connection } from './connection.ts';
import { hostFrom } from './place.ts';
import type { Wire, WireReader } from './wire.ts';

const lineBytesMax = 1_024;

/** Owns the wire; to cut the connection is to cut that. */
export function serveNames(connection: Connection, wire: Wire): void {
  wire.take(new Names(connection, wire));
}

class Names implements WireReader {
  readonly #connection: Connection;
  readonly #wire: Wire;
  #line: Buffer | undefined;

  constructor(connection: Connection, wire: Wire) {
    this.#connection = connection;
    this.#wire = wire;
  }

  data(bytes: Buffer): void {
    let rest = this.#line === undefined ? bytes : Buffer.concat([this.#line, bytes]);
    let answers = '';
    for (let end = rest.indexOf(10); end >= 0; end = rest.indexOf(10)) {
      const answer = end > lineBytesMax ? undefined : this.#answer(rest.toString('utf8', 0, end));
      if (answer === undefined) return this.#connection.cut();
      answers += answer;
      rest = rest.subarray(end + 1);
    }
    if (rest.length > lineBytesMax) return this.#connection.cut();
    this.#line = rest.length === 0 ? undefined : rest;
    // An agent that does not read its answers gets to ask no more.
    if (answers !== '' && !this.#wire.send(answers)) this.#wire.hold();
  }

  drained(): void {
    this.#wire.go();
  }

  end(): void {
    this.#wire.goodbye();
    this.#connection.over();
  }

  gone(): void {
    this.#connection.over();
  }

  /** Undefined for a line that is no question. */
  #answer(text: string): string | undefined {
    let question: { id?: unknown; name?: unknown };
    try {
      question = Object(JSON.parse(text));
    } catch {
      return undefined;
    }
    const { id, name } = question;
    if (!Number.isSafeInteger(id) || typeof name !== 'string') return undefined;
    const resolve = this.#mayResolve(name);
    return `${JSON.stringify({ id, resolve })}\n`;
  }

  #mayResolve(name: string): boolean {
    const host = hostFrom(name);
    const { sandbox } = this.#connection.session;
    if (host?.kind === 'name' && sandbox.policy().mayResolve(host.name)) return true;
    this.#connection
      .record(
        { to: undefined, host: name, port: 53, kind: 'network', protocol: 'dns' },
        { effect: 'deny', reason: 'name' },
      )
      .end({ bytesOut: 0, bytesIn: 0 });
    return false;
  }
}
