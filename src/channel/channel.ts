// The channel: one connection between two hostile-minded ends, many streams on it, and no knowledge of what they mean.
// It outlives its connection: after a drop, both ends tell each other what they hold and go on from there,
// so every byte arrives exactly once and in order, or the stream ends with a reason.
// Runs unchanged in the daemon (Node.js) and in the agent (Bun); it imports nothing of either.

/**
 * An ordered pipe of bytes that may break at any time: a Unix socket, a WebSocket (message borders mean nothing), or a pair in memory.
 * The channel sets the three handlers before anything is sent or read.
 */
export interface Carrier {
  /** Takes the bytes, which neither side changes from now on. False means "enough for now" (or closed): `onDrain` follows. */
  send(bytes: Uint8Array): boolean;
  /** Idempotent. `onClose` follows once. */
  close(): void;
  onData: (bytes: Uint8Array) => void;
  onDrain: () => void;
  onClose: (cause?: Error) => void;
}

/** Which of a stream's byte sequences a piece belongs to. Lanes share the stream's one order and one offset. */
export type Lane = number;

/** Why a stream or a channel ended before its time. `code` is a short word that programs may switch on. */
export interface EndReason {
  code: string;
  message: string;
  /** For the dialling end: not to come back before. */
  retryAfterMs?: number;
}

/**
 * Bytes in both directions, each in order, each with flow control. Handlers must be set before the turn of the event loop ends in which
 * `open` gave the stream, or before `onStream` returns; nothing is delivered before that. A handler that throws resets its own stream.
 */
export interface Stream {
  readonly id: number;
  /**
   * Queues bytes, which must not be changed afterwards: they are kept until the other end has consumed them, so that they can be
   * sent again. False means that 128 KiB wait for credit: stop until `onDrain`. (Nothing is lost when the caller goes on; memory is.)
   * False for ever, and dropped, once the stream is gone. Throws Failure('invalid') after `end`.
   */
  write(lane: Lane, bytes: Uint8Array): boolean;
  /** No more bytes from this side. */
  end(): void;
  /** Ends both directions at once; unsent and unread bytes are dropped. The other end's `onReset` gets the reason. */
  reset(reason: EndReason): void;
  onData: (lane: Lane, bytes: Uint8Array) => void;
  /** Tells that the final consumer has taken `bytes` more of what `onData` delivered, on any lane; only this gives the sender new credit. */
  consumed(bytes: number): void;
  /** The other end has ended its direction and every byte before was delivered. */
  onEnd: () => void;
  /** The stream is gone: reset by the other end, or the channel ended. Not called after both directions ended well. */
  onReset: (reason: EndReason) => void;
  onDrain: () => void;
}

export interface Channel {
  /** A new stream. Throws Failure('exhausted') beyond the limit of open streams, Failure('lost') once the channel has ended. */
  open(): Stream;
  /** Called for each stream that the other end opens. Without a handler such streams are reset. */
  onStream: (stream: Stream) => void;
  /** Whether a carrier is attached and its handshake done. */
  readonly connected: boolean;
  onConnected: () => void;
  onDisconnected: () => void;
  /** Says goodbye, resets every stream and closes the carrier. Idempotent. */
  close(reason: EndReason): void;
  /** Resolves, never rejects, once the channel is over for good: closed, replaced, or not reconnected in time. */
  readonly ended: Promise<EndReason>;
}
