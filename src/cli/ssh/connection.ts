// SSH's upper half (RFC 4254), the server's side: channels with windows both ways, their requests, and their ends. What a channel of the client does is decided by
// whoever is asked to open it. A channel that cannot write blocks itself alone: packets are taken as they come and never wait for one.
import { WireReader, WireWriter } from './wire-data.ts';

const message = {
  globalRequest: 80,
  requestSuccess: 81,
  requestFailure: 82,
  open: 90,
  openConfirmation: 91,
  openFailure: 92,
  windowAdjust: 93,
  data: 94,
  extendedData: 95,
  eof: 96,
  close: 97,
  request: 98,
  channelSuccess: 99,
  channelFailure: 100,
} as const;

export const openFailure = {
  prohibited: 1,
  connectFailed: 2,
  unknownType: 3,
  resourceShortage: 4,
} as const;

/** What the other end may send before we have dealt with it: for each channel. */
const windowBytes = 1024 * 1024;
const packetBytesMax = 32 * 1024;
const channelsMax = 64;

/** Thrown by whoever is asked to open a channel. */
export class OpenRefused extends Error {
  readonly reason: number;
  constructor(reason: number, message: string) {
    super(message);
    this.reason = reason;
  }
}

/** Gets a channel's requests, until the channel is closed. */
export interface ChannelUser {
  /** Resolves with whether it was done. Called for one request after the other. */
  request?(type: string, details: WireReader): boolean | Promise<boolean>;
  /** The channel has been accepted. */
  opened?(): void;
  /** Nothing can be read or written any more. Called once, however it came to that. */
  closed?(): void;
}

/** Makes the user of a new channel; throws OpenRefused. */
export type Opening = (
  type: string,
  details: WireReader,
  channel: Channel,
) => ChannelUser | Promise<ChannelUser>;

export class Connection {
  readonly #send: (packet: Uint8Array) => Promise<void>;
  readonly #opening: Opening;
  readonly #channels = new Map<number, Channel>();
  /** Channels that we have asked for. */
  readonly #asked = new Map<number, Asked>();
  #nextId = 0;
  /** Openings that are being decided on. */
  #pending = 0;

  constructor(send: (packet: Uint8Array) => Promise<void>, opening: Opening) {
    this.#send = send;
    this.#opening = opening;
  }

  /** Throws for what no client may say, with which the connection is to end. */
  take(packet: Buffer): void {
    const reader = new WireReader(packet);
    const number = reader.byte();
    if (number === message.globalRequest) return this.#globalRequest(reader);
    if (number === message.open) return void this.#open(reader);
    // Answers to requests of ours, of which there are none that want one.
    if (number === message.requestSuccess || number === message.requestFailure) return;
    const id = reader.uint32();
    if (number === message.openConfirmation || number === message.openFailure)
      return this.#answered(id, number, reader);
    const channel = this.#channels.get(id);
    // One that we have closed may still be spoken of.
    if (channel === undefined) {
      if (id >= this.#nextId) throw new Error(`there is no channel ${id}`);
      return;
    }
    channel.take(number, reader);
  }

  /** The connection is over. */
  end(): void {
    for (const channel of this.#channels.values()) channel.drop();
    this.#channels.clear();
    for (const { reject } of this.#asked.values()) reject(new Error('the connection is over'));
    this.#asked.clear();
  }

  /** A channel to the client. Rejects when the client refuses it, or the connection ends. */
  ask(type: string): Promise<Channel> {
    if (this.#channels.size + this.#pending + this.#asked.size >= channelsMax)
      return Promise.reject(new Error(`at most ${channelsMax} channels`));
    const id = this.#nextId++;
    const { promise, resolve, reject } = Promise.withResolvers<Channel>();
    this.#asked.set(id, { resolve, reject });
    const writer = new WireWriter().byte(message.open).text(type);
    this.#say(writer.uint32(id).uint32(windowBytes).uint32(packetBytesMax));
    return promise;
  }

  #answered(id: number, number: number, reader: WireReader): void {
    const asked = this.#asked.get(id);
    if (asked === undefined) throw new Error(`channel ${id} was not asked for`);
    this.#asked.delete(id);
    if (number === message.openFailure) return asked.reject(new Error('the client refused a channel'));
    const remote = { id: reader.uint32(), window: reader.uint32(), packetBytesMax: reader.uint32() };
    const channel = new Channel(id, remote, this.#links);
    this.#channels.set(id, channel);
    asked.resolve(channel);
  }

  get #links(): ChannelLinks {
    return { send: this.#send, gone: (id) => void this.#channels.delete(id) };
  }

  /** Forwarding to here (`ssh -R`) is not offered; the rest are questions whether we live, which a refusal answers as well. */
  #globalRequest(reader: WireReader): void {
    reader.bytes();
    if (reader.boolean()) this.#say(new WireWriter().byte(message.requestFailure));
  }

  async #open(reader: WireReader): Promise<void> {
    const type = reader.text();
    const remote = { id: reader.uint32(), window: reader.uint32(), packetBytesMax: reader.uint32() };
    this.#pending += 1;
    const channel = new Channel(this.#nextId++, remote, this.#links);
    try {
      if (this.#channels.size + this.#pending + this.#asked.size > channelsMax)
        throw new OpenRefused(openFailure.resourceShortage, `at most ${channelsMax} channels`);
      const user = await this.#opening(type, reader, channel);
      channel.begin(user);
      this.#channels.set(channel.id, channel);
      this.#say(
        new WireWriter()
          .byte(message.openConfirmation)
          .uint32(remote.id)
          .uint32(channel.id)
          .uint32(windowBytes)
          .uint32(packetBytesMax),
      );
      user.opened?.();
    } catch (error) {
      const reason = error instanceof OpenRefused ? error.reason : openFailure.connectFailed;
      const text = error instanceof Error ? error.message : String(error);
      this.#say(
        new WireWriter().byte(message.openFailure).uint32(remote.id).uint32(reason).text(text).text(''),
      );
    } finally {
      this.#pending -= 1;
    }
  }

  /** A connection that is over tells so elsewhere. */
  #say(writer: WireWriter): void {
    this.#send(writer.done()).catch(() => {});
  }
}

interface Asked {
  resolve: (channel: Channel) => void;
  reject: (error: Error) => void;
}

interface Remote {
  id: number;
  window: number;
  packetBytesMax: number;
}

interface ChannelLinks {
  send: (packet: Uint8Array) => Promise<void>;
  gone: (id: number) => void;
}

export class Channel {
  readonly id: number;
  readonly #remote: Remote;
  readonly #links: ChannelLinks;
  #user: ChannelUser = {};
  #received: Buffer[] = [];
  #receivedBytes = 0;
  /** Of the window that the other end has been given; the rest is here, or was dealt with and not given anew. */
  #windowLeft = windowBytes;
  #inputEnded = false;
  #outputEnded = false;
  #over = false;
  #closeSent = false;
  #wakeReader: (() => void) | undefined;
  #wakeWriters: (() => void)[] = [];
  #requests: Promise<void> = Promise.resolve();
  #writes: Promise<void> = Promise.resolve();

  constructor(id: number, remote: Remote, links: ChannelLinks) {
    this.id = id;
    this.#remote = remote;
    this.#links = links;
  }

  /** Nothing can be read or written any more. */
  get over(): boolean {
    return this.#over;
  }

  /** What the other end sends, up to its end, or up to the channel's. The other end may send on when a piece has been dealt with. One reader. */
  async *input(): AsyncGenerator<Buffer, void, void> {
    for (;;) {
      const bytes = this.#received.shift();
      if (bytes !== undefined) {
        yield bytes;
        this.#receivedBytes -= bytes.length;
        this.#giveWindow();
        continue;
      }
      if (this.#over || this.#inputEnded) return;
      await new Promise<void>((resolve) => {
        this.#wakeReader = resolve;
      });
      this.#wakeReader = undefined;
    }
  }

  /** Whether the other end has said that it sends nothing more. */
  get inputEnded(): boolean {
    return this.#inputEnded;
  }

  /** Resolves when more may be written; when the channel is over, too, and nothing is sent then. In the order of the calls. */
  write(bytes: Uint8Array, kind: 'stdout' | 'stderr' = 'stdout'): Promise<void> {
    this.#writes = this.#writes.then(() => this.#write(bytes, kind));
    return this.#writes;
  }

  async #write(bytes: Uint8Array, kind: 'stdout' | 'stderr'): Promise<void> {
    const most = Math.max(1, Math.min(packetBytesMax, this.#remote.packetBytesMax));
    for (let at = 0; at < bytes.length; ) {
      while (this.#remote.window === 0 && !this.#over) {
        await new Promise<void>((resolve) => this.#wakeWriters.push(resolve));
      }
      if (this.#over || this.#outputEnded) return;
      const piece = bytes.subarray(at, at + Math.min(most, this.#remote.window));
      this.#remote.window -= piece.length;
      at += piece.length;
      const writer =
        kind === 'stdout' ? this.#writer(message.data) : this.#writer(message.extendedData).uint32(1);
      await this.#links.send(writer.bytes(piece).done()).catch(() => this.drop());
    }
  }

  /** Nothing more is written; behind what was. */
  end(): Promise<void> {
    this.#writes = this.#writes.then(async () => {
      if (this.#outputEnded || this.#over) return;
      this.#outputEnded = true;
      await this.#say(this.#writer(message.eof));
    });
    return this.#writes;
  }

  /** A request that wants no answer, such as `exit-status`. */
  tell(type: string, details: (writer: WireWriter) => void): Promise<void> {
    this.#writes = this.#writes.then(async () => {
      if (this.#over) return;
      const writer = this.#writer(message.request).text(type).boolean(false);
      details(writer);
      await this.#say(writer);
    });
    return this.#writes;
  }

  /** Behind what was written. */
  close(): Promise<void> {
    this.#writes = this.#writes.then(() => this.#close());
    return this.#writes;
  }

  /** @internal */
  begin(user: ChannelUser): void {
    this.#user = user;
  }

  /** @internal Throws for what no client may say. */
  take(number: number, reader: WireReader): void {
    switch (number) {
      case message.windowAdjust:
        this.#remote.window = Math.min(0xffff_ffff, this.#remote.window + reader.uint32());
        this.#wake();
        return;
      case message.data:
        return this.#data(reader.bytes());
      case message.extendedData:
        // Clients have no second stream to send; what comes is counted and forgotten.
        reader.uint32();
        this.#windowLeft -= reader.bytes().length;
        this.#giveWindow();
        return;
      case message.eof:
        this.#inputEnded = true;
        this.#wakeReader?.();
        return;
      case message.close:
        void this.#close();
        return;
      case message.request: {
        const type = reader.text();
        const wantsAnswer = reader.boolean();
        this.#requests = this.#requests.then(() => this.#request(type, wantsAnswer, reader));
        return;
      }
      case message.channelSuccess:
      case message.channelFailure:
        return;
      default:
        throw new Error(`a message of unknown kind ${number}`);
    }
  }

  /** @internal The connection is gone: nothing can be said any more. */
  drop(): void {
    if (this.#over) return;
    this.#over = true;
    this.#received = [];
    this.#wake();
    this.#wakeReader?.();
    this.#user.closed?.();
  }

  #data(bytes: Buffer): void {
    if (bytes.length > this.#windowLeft) throw new Error('more data than the window has room for');
    this.#windowLeft -= bytes.length;
    if (this.#over || this.#inputEnded || bytes.length === 0) return;
    this.#received.push(bytes);
    this.#receivedBytes += bytes.length;
    this.#wakeReader?.();
  }

  /** In large steps, so that not every packet is answered by one. */
  #giveWindow(): void {
    const more = windowBytes - this.#windowLeft - this.#receivedBytes;
    if (this.#over || more < windowBytes / 4) return;
    this.#windowLeft += more;
    void this.#say(this.#writer(message.windowAdjust).uint32(more));
  }

  async #request(type: string, wantsAnswer: boolean, details: WireReader): Promise<void> {
    let done = false;
    try {
      done = !this.#over && ((await this.#user.request?.(type, details)) ?? false);
    } catch {
      // Too short, or not to be done: refused like what nobody knows.
    }
    if (wantsAnswer && !this.#over)
      await this.#say(this.#writer(done ? message.channelSuccess : message.channelFailure));
  }

  async #close(): Promise<void> {
    if (!this.#closeSent) {
      this.#closeSent = true;
      await this.#say(this.#writer(message.close));
    }
    this.drop();
    this.#links.gone(this.id);
  }

  async #say(writer: WireWriter): Promise<void> {
    await this.#links.send(writer.done()).catch(() => this.drop());
  }

  #writer(number: number): WireWriter {
    return new WireWriter().byte(number).uint32(this.#remote.id);
  }

  #wake(): void {
    for (const wake of this.#wakeWriters.splice(0)) wake();
  }
}
