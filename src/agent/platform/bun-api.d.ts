// The part of Bun's API that the agent uses, as bun-types has it. The whole of bun-types would claim the globals of Node.js for every file.

declare namespace BunApi {
  interface Socket {
    /** Ours to use. */
    data: unknown;
    readonly localAddress: string;
    readonly remotePort: number;
    write(bytes: Uint8Array): number;
    end(): void;
    shutdown(): void;
    terminate(): void;
    pause(): void;
    resume(): void;
  }

  interface SocketHandler {
    binaryType: 'uint8array';
    open(socket: Socket): void;
    data(socket: Socket, bytes: Uint8Array): void;
    drain(socket: Socket): void;
    end(socket: Socket): void;
    close(socket: Socket, error?: Error): void;
    error(socket: Socket, error: Error): void;
    connectError(socket: Socket, error: Error): void;
  }

  type ConnectTo = ({ unix: string } | { hostname: string; port: number }) & {
    allowHalfOpen: boolean;
    socket: SocketHandler;
  };

  interface TcpListener {
    /** Connections stay, unless `all`. */
    stop(all: boolean): void;
  }

  interface UdpSocket {
    /** False: there was no room, and it was dropped. */
    send(bytes: Uint8Array, port: number, address: string): boolean;
    close(): void;
  }

  interface UdpOptions {
    hostname: string;
    port: number;
    binaryType: 'uint8array';
    socket: {
      data(socket: UdpSocket, bytes: Uint8Array, port: number, address: string): void;
      error(error: Error): void;
    };
  }

  interface Terminal {
    resize(cols: number, rows: number): void;
    close(): void;
  }

  interface SpawnOptions {
    argv0: string;
    cwd: string;
    env: Record<string, string>;
    detached: boolean;
    stdio?: [number | 'ignore', number, number];
    terminal?: {
      cols: number;
      rows: number;
      name: string;
      data(terminal: Terminal, bytes: Uint8Array): void;
      exit(terminal: Terminal): void;
    };
  }

  interface Subprocess {
    readonly pid: number;
    /** For a signal, 128 and its number. */
    readonly exited: Promise<number>;
    readonly signalCode: string | null;
    readonly terminal?: Terminal;
  }

  interface FileSink {
    /** A promise when the pipe is full: it resolves once everything is written, and must be awaited before the next call. */
    write(bytes: Uint8Array): number | Promise<number>;
    end(): number | Promise<number>;
  }

  interface File {
    stream(): ReadableStream<Uint8Array>;
    writer(options: { highWaterMark: number }): FileSink;
  }
}

declare const Bun: {
  connect(options: BunApi.ConnectTo): Promise<BunApi.Socket>;
  /** Throws an error with a `code` such as EADDRINUSE. */
  listen(options: {
    hostname: string;
    port: number;
    allowHalfOpen: boolean;
    socket: Omit<BunApi.SocketHandler, 'connectError'>;
  }): BunApi.TcpListener;
  udpSocket(options: BunApi.UdpOptions): Promise<BunApi.UdpSocket>;
  spawn(argv: string[], options: BunApi.SpawnOptions): BunApi.Subprocess;
  file(fd: number): BunApi.File;
  gc(force: boolean): void;
  shrink(): void;
};

declare module 'bun:jsc' {
  /** Collects everything that is garbage before it returns. */
  export function fullGC(): number;
}

declare module 'bun:ffi' {
  type CType = 'i32' | 'i64' | 'ptr';
  export function dlopen<const Names extends string>(
    path: string,
    symbols: Record<Names, { args: CType[]; returns: 'i32' | 'ptr' }>,
  ): { symbols: Record<Names, (...args: (number | NodeJS.TypedArray | null)[]) => number> };
  /** Where its memory lies, for as long as it lives. */
  export function ptr(memory: NodeJS.TypedArray): number;
  export const read: { i32(address: number, offset: number): number };
}
