// A door before a bell that does as a test says, and callers that write what they like.
import { mkdtempSync, rmSync } from 'node:fs';
import { connect as connectTo, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type ActionCall, type Bell, type Caller, callerKey } from './bell.ts';
import { type BellDoor, type BellDoorOptions, openBellDoor } from './door.ts';
import { BellTokens } from './tokens.ts';

export interface Rung {
  caller: Caller;
  action: string;
  args: Readonly<Record<string, unknown>>;
  signal: AbortSignal;
  emit: ActionCall['emit'];
}

export class TestDoor implements AsyncDisposable {
  readonly rung: Rung[] = [];
  /** What the bell does; gives null until a test says otherwise. */
  answer: (rung: Rung) => unknown = () => null;
  readonly folder = mkdtempSync(join(tmpdir(), 'glovebox-door-'));
  readonly socketPath = join(this.folder, 'bell.sock');
  readonly tokens = new BellTokens({ file: join(this.folder, 'tokens.json'), now: () => new Date() });
  /** Who was refused before anything was asked. */
  readonly refused: string[] = [];
  /** What the door logged as an error or a warning. */
  readonly troubles: unknown[] = [];
  door!: BellDoor;

  static async open(options: Partial<BellDoorOptions> = {}): Promise<TestDoor> {
    const it = new TestDoor();
    const bell: Bell = {
      ring: async (caller, { action, args }, { signal, emit }) => {
        const rung = { caller, action, args, signal, emit };
        it.rung.push(rung);
        return it.answer(rung);
      },
    };
    const opening = openBellDoor({
      socketPath: it.socketPath,
      listen: [{ host: '127.0.0.1', port: 0 }],
      insecure: false,
      names: ['workbench'],
      tokens: it.tokens,
      hooks: {},
      bell,
      onRefused: (caller, { code }) => it.refused.push(`${callerKey(caller)}: ${code}`),
      log: {
        debug: () => undefined,
        info: () => undefined,
        warn: (fields) => it.troubles.push(fields),
        error: (fields) => it.troubles.push(fields),
      },
      ...options,
    });
    it.door = await opening.catch((error) => {
      rmSync(it.folder, { recursive: true, force: true });
      throw error;
    });
    return it;
  }

  get url(): string {
    return this.door.listening[0] as string;
  }

  async sandbox(id: string): Promise<RawCaller> {
    return new RawCaller(await this.door.connect(id, AbortSignal.timeout(30_000)));
  }

  tcp(): RawCaller {
    return new RawCaller(connectTo({ port: Number(new URL(this.url).port), host: '127.0.0.1' }));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.door.close();
    rmSync(this.folder, { recursive: true, force: true });
  }
}

export interface RawAnswer {
  status: number;
  headers: Record<string, string>;
  body: string;
  // biome-ignore lint/suspicious/noExplicitAny: tests look into it as they like
  json: any;
}

/** Reads answers off a connection whose requests were written as bytes. */
export class RawCaller implements Disposable {
  readonly socket: Socket;
  received: Buffer = Buffer.alloc(0);
  readonly closed: Promise<void>;
  #over = false;
  #changed = Promise.withResolvers<void>();

  constructor(socket: Socket) {
    this.socket = socket;
    const changed = () => {
      this.#changed.resolve();
      this.#changed = Promise.withResolvers();
    };
    socket.on('data', (data) => {
      this.received = Buffer.concat([this.received, data]);
      changed();
    });
    socket.on('error', () => undefined);
    this.closed = new Promise((resolve) =>
      socket.once('close', () => {
        this.#over = true;
        changed();
        resolve();
      }),
    );
  }

  write(text: string | Uint8Array): this {
    this.socket.write(text);
    return this;
  }

  /** Waits until what has been received says enough. Fails when the connection ends before. */
  async until<T>(read: (received: Buffer, over: boolean) => T | undefined): Promise<T> {
    for (;;) {
      const value = read(this.received, this.#over);
      if (value !== undefined) return value;
      if (this.#over) throw new Error(`the connection ended after ${JSON.stringify(String(this.received))}`);
      await this.#changed.promise;
    }
  }

  /** The next whole answer, which is taken off what was received. */
  answer(): Promise<RawAnswer> {
    return this.until((received) => {
      const end = received.indexOf('\r\n\r\n');
      if (end < 0) return undefined;
      const [first = '', ...lines] = received.toString('latin1', 0, end).split('\r\n');
      const headers = Object.fromEntries(
        lines.map((line) => [
          line.slice(0, line.indexOf(':')).toLowerCase(),
          line.slice(line.indexOf(':') + 2),
        ]),
      );
      const length = Number(headers['content-length'] ?? 0);
      if (received.length < end + 4 + length) return undefined;
      const body = received.toString('utf8', end + 4, end + 4 + length);
      this.received = received.subarray(end + 4 + length);
      return {
        status: Number(first.split(' ')[1]),
        headers,
        body,
        json: body === '' ? undefined : JSON.parse(body),
      };
    });
  }

  ask(text: string | Uint8Array): Promise<RawAnswer> {
    return this.write(text).answer();
  }

  [Symbol.dispose](): void {
    this.socket.destroy();
  }
}

/** A request as clients write it. */
export function post(body: unknown, headers: Record<string, string> = {}, path = '/'): string {
  const text = typeof body === 'string' ? body : JSON.stringify(body);
  const all = {
    Host: 'host.docker.internal:9999',
    'Content-Type': 'application/json',
    'Content-Length': String(Buffer.byteLength(text)),
    ...headers,
  };
  const lines = Object.entries(all).map(([name, value]) => `${name}: ${value}\r\n`);
  return `POST ${path} HTTP/1.1\r\n${lines.join('')}\r\n${text}`;
}
