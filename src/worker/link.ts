// The link between a controller and one worker, as the parts above it see it: a channel that comes and goes, and who is at its other end.
import type { Duplex } from 'node:stream';
import type { Channel, EndReason } from '../channel/channel.ts';

/** A stream that the other end has opened, its first message read. Lane 0 has messages, lane 1 bytes. */
export interface IncomingCall {
  readonly request: unknown;
  /** Sends a message on lane 0. */
  reply(message: unknown): void;
  /** Messages that follow the first. */
  onMessage: (message: unknown) => void;
  /** The bytes of both directions, with back-pressure; its end is the stream's. Asked for at most once, and not beside the following. */
  bytes(): Duplex;
  /** Bytes on lane 1. False: wait for `onDrain`. They must not change afterwards. */
  write(bytes: Uint8Array): boolean;
  onDrain: () => void;
  /** Takes bytes of lane 1 as they come, those from before first; `consumed` tells when they are used, and gives credit. */
  set onBytes(handler: (bytes: Uint8Array) => void);
  consumed(bytes: number): void;
  /** The other end has ended its direction. */
  set onEnd(handler: () => void);
  /** As `signal`, and with the reason. */
  set onGone(handler: (reason: EndReason) => void);
  /** All of it on lane 1. Throws Failure('lost') when the other end has gone. */
  writeAll(source: AsyncIterable<Uint8Array>): Promise<void>;
  /** Bytes of lane 1 until `stop` says that no more follow, or the other end's direction ends. Reading throws Failure('lost') when it has gone. */
  input(): { source: AsyncIterable<Uint8Array>; stop: () => void };
  /** Aborted when the other end has reset the stream or the channel has ended. */
  readonly signal: AbortSignal;
  end(): void;
  reset(reason: EndReason): void;
}

/** Of either end. Short drops are the channel's own business; here only a new channel and the reach of the other end are told. */
export interface Link {
  /** Id of the worker. */
  readonly workerId: string;
  /** Throws Failure('unavailable') while no channel has ever been there or the last has ended. Its streams outlive short drops. */
  channel(): Channel;
  /** Whether a connection is there right now. */
  readonly connected: boolean;
  /**
   * Called with each new channel, and at once when there is one: the other end has lost what it knew of the streams before, or is a new process.
   * Returns what ends the listening. Also for the following two.
   */
  onChannel(handler: (channel: Channel) => void): () => void;
  /** Called when the connection comes or goes. */
  onReach(handler: (connected: boolean) => void): () => void;
  /** Streams that the other end opens and whose first message has this `op`, not checked further. One handler for each. */
  onCall(op: string, handler: (call: IncomingCall) => void): () => void;
  /** Resolves, never rejects, when the link is over for good: the worker was removed, or this end was told to stop. */
  readonly ended: Promise<EndReason>;
}
