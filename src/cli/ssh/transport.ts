// SSH's lower half (RFC 4253, 4252): versions, keys, encryption and authentication, by @microsoft/dev-tunnels-ssh. The packets of connections
// (RFC 4254) pass through unread, for connection.ts. The library's own channels are not used: they answer no request while a channel waits for room
// to write, and the message that makes the room waits behind that request.
import { sign } from 'node:crypto';
import {
  type CancellationToken,
  type KeyPair,
  PublicKeyAlgorithm,
  SshAlgorithms,
  type SshDataWriter,
  SshDisconnectReason,
  SshMessage,
  SshServerSession,
  SshSessionConfiguration,
} from '@microsoft/dev-tunnels-ssh';
import { type HostKey, hostKeyType } from './host-key.ts';
import { Stdio } from './stdio.ts';

/** Global requests, and everything about channels. */
const connectionMessages = [80, 81, 82, ...Array.from({ length: 11 }, (_, index) => 90 + index)];

export interface TransportOptions {
  hostKey: HostKey;
  /** Called for one packet after the other; the next is read when it has resolved. What it throws ends the connection. */
  onPacket: (packet: Buffer) => Promise<void> | void;
  /** Asked before anybody is let in. What it rejects with ends the connection with its message. */
  admit: (user: string) => Promise<void>;
}

export class Transport {
  readonly #session: Session;
  readonly #stream = new Stdio();
  /** Resolves, never rejects, when the connection is over, whoever ended it. */
  readonly ended: Promise<void>;

  constructor(options: TransportOptions) {
    this.#session = new Session(options);
    this.ended = new Promise((resolve) => this.#session.onClosed(() => resolve()));
  }

  /** Resolves when the connection is encrypted. Rejects when the other end leaves before. */
  async open(): Promise<void> {
    if (!(await this.#stream.introduced())) throw new Error('the other end has left');
    await this.#session.connect(this.#stream);
  }

  /** Resolves when more may be sent. Rejects when the connection is over. */
  async send(packet: Uint8Array): Promise<void> {
    await this.#session.sendMessage(new Outgoing(packet));
  }

  async disconnect(message: string): Promise<void> {
    await this.#session.close(SshDisconnectReason.byApplication, message).catch(() => {});
  }
}

class Session extends SshServerSession {
  readonly #options: TransportOptions;

  constructor(options: TransportOptions) {
    const key = new HostKeyPair(options.hostKey);
    super(configuration(key));
    this.#options = options;
    this.credentials = { publicKeys: [key] };
    this.onAuthenticating((attempt) => {
      attempt.authenticationPromise = options.admit(attempt.username ?? '').then(
        () => ({}),
        async (error: Error) => {
          await this.close(SshDisconnectReason.byApplication, error.message);
          return null;
        },
      );
    });
  }

  protected override handleMessage(
    message: SshMessage,
    cancellation?: CancellationToken,
  ): void | Promise<void> {
    if (message.messageType === keyExchangeInit && this.kexService?.exchanging === false)
      return this.#exchangeKeysAnew(message, cancellation);
    if (!(message instanceof Incoming)) return super.handleMessage(message, cancellation);
    if (!this.principal) throw new Error('a message came before authentication');
    return this.#options.onPacket(message.packet);
  }

  /** A client may ask for new keys at any time (RFC 4253 §9). The library's server asks for them itself, but knows no client that does. */
  async #exchangeKeysAnew(message: SshMessage, cancellation?: CancellationToken): Promise<void> {
    const [init] = (await this.kexService?.startKeyExchange(false)) ?? [];
    if (init) await this.sendMessage(init, cancellation);
    await super.handleMessage(message, cancellation);
  }
}

/** SSH_MSG_KEXINIT */
const keyExchangeInit = 20;

function configuration(key: HostKeyPair): SshSessionConfiguration {
  const config = new SshSessionConfiguration();
  config.publicKeyAlgorithms.splice(0, Number.POSITIVE_INFINITY, key.algorithm);
  const { ecdhNistp256Sha256, ecdhNistp384Sha384, dhGroup16Sha512 } = SshAlgorithms.keyExchange;
  const exchanges = [ecdhNistp256Sha256, ecdhNistp384Sha384, dhGroup16Sha512].filter((it) => it != null);
  config.keyExchangeAlgorithms.splice(0, Number.POSITIVE_INFINITY, ...exchanges);
  // Whoever could start this command has the API key already: there is nothing more to prove.
  config.authenticationMethods.splice(0, Number.POSITIVE_INFINITY, 'none' as never);
  config.protocolExtensions.splice(0);
  for (const number of connectionMessages) config.messages.set(number, incoming(number));
  return config;
}

/** A packet as it came. */
abstract class Incoming extends SshMessage {
  packet = Buffer.alloc(0);
}

function incoming(number: number): new () => Incoming {
  return class extends Incoming {
    override get messageType(): number {
      return number;
    }

    // The library reads every packet into the same memory.
    override read(reader: { buffer: Buffer }): void {
      this.packet = Buffer.from(reader.buffer);
    }
  };
}

class Outgoing extends SshMessage {
  readonly #packet: Uint8Array;

  constructor(packet: Uint8Array) {
    super();
    this.#packet = packet;
  }

  override get messageType(): number {
    return this.#packet[0] ?? 0;
  }

  override write(writer: SshDataWriter): void {
    writer.write(this.#packet as Buffer);
  }
}

/** The library knows no Ed25519. */
class HostKeyAlgorithm extends PublicKeyAlgorithm {
  readonly #key: HostKey;
  readonly #pair: HostKeyPair;

  constructor(key: HostKey, pair: HostKeyPair) {
    super(hostKeyType, hostKeyType, 'SHA2-512');
    this.#key = key;
    this.#pair = pair;
  }

  override createKeyPair(): KeyPair {
    return this.#pair;
  }

  override async generateKeyPair(): Promise<KeyPair> {
    return this.#pair;
  }

  override createSigner() {
    const { privateKey } = this.#key;
    return {
      digestLength: 64,
      sign: async (data: Buffer) => sign(null, data, privateKey),
      dispose: () => {},
    };
  }

  override createVerifier(): never {
    throw new Error('a server verifies no host keys');
  }
}

class HostKeyPair implements KeyPair {
  readonly algorithm: HostKeyAlgorithm;
  readonly keyAlgorithmName = hostKeyType;
  readonly hasPublicKey = true;
  readonly hasPrivateKey = true;
  comment = null;
  readonly #key: HostKey;

  constructor(key: HostKey) {
    this.#key = key;
    this.algorithm = new HostKeyAlgorithm(key, this);
  }

  async getPublicKeyBytes(): Promise<Buffer> {
    return this.#key.publicBytes;
  }

  async setPublicKeyBytes(): Promise<void> {
    throw new Error('the host key does not change');
  }

  async generate(): Promise<void> {}

  async importParameters(): Promise<void> {}

  async exportParameters(): Promise<object> {
    return {};
  }

  dispose(): void {}
}
