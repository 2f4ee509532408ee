// Answers the daemon: one stream, one request, one handler. What commands there are outlives the channel that asked for them.
// In a guest it is loaded with the first request, so that an idle agent stays small.
import { closeSync } from 'node:fs';
import type { AgentBoot, GuestRequest } from '../contract/guest.ts';
import { AllowedPrograms } from './allowed-programs.ts';
import { bulkHello } from './bulk-hello.ts';
import type { Call } from './call.ts';
import { Dials } from './dial.ts';
import { Execs } from './exec.ts';
import * as files from './files.ts';
import { metrics } from './metrics.ts';
import { ownerOf } from './owner.ts';
import { absolutePath } from './paths.ts';
import type { Platform } from './platform/platform.ts';
import { Reach } from './reach.ts';
import type { Receipts } from './receipts.ts';
import { Refusal } from './refusal.ts';
import { openSessionRoot } from './session-root.ts';
import { Uploads } from './uploads.ts';

const idlePollMs = 200;

export interface AgentOptions {
  platform: Platform;
  boot: AgentBoot;
  /** Of the daemon, for connections of their own. */
  socketPath: string;
  receipts?: Receipts;
}

export class Agent {
  readonly #options: AgentOptions;
  readonly #execs: Execs;
  readonly #dials: Dials;
  readonly #reach: Reach;
  readonly #uploads: Uploads;
  #answering = 0;

  constructor(options: AgentOptions) {
    this.#options = options;
    const { platform, boot, receipts } = options;
    const { host, allowedCommands } = boot;
    const own = { uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0 };
    this.#dials = new Dials(platform);
    this.#reach = new Reach(boot.folders?.map(absolutePath));
    this.#uploads = new Uploads(this.#reach);
    this.#execs = new Execs({
      platform,
      own,
      ...(host && { host }),
      ...(receipts && { receipts }),
      ...(allowedCommands && { allowed: new AllowedPrograms(allowedCommands) }),
      openDirect: (id) => {
        this.#mustBeDirect();
        return platform.openDirect(options.socketPath, this.#bulkHello(id));
      },
    });
  }

  /** Kills every command, with all that they started. */
  stop(): Promise<void> {
    return this.#execs.stop();
  }

  /** Resolves when nobody needs this agent any more: nothing runs, every end has been told, and no answer is under way. */
  async idle(): Promise<void> {
    for (;;) {
      await this.#execs.idle();
      if (this.#answering === 0) return;
      await new Promise((resolve) => setTimeout(resolve, idlePollMs));
    }
  }

  /** Answers one request; whatever goes wrong is the answer. */
  handle(call: Call, request: GuestRequest): void {
    this.#answering++;
    void this.#handle(call, request)
      .catch((thrown) => call.fail(thrown, String(request?.op)))
      .finally(() => this.#answering--);
  }

  async #handle(call: Call, request: GuestRequest): Promise<void> {
    const within = 'within' in request ? request.within : undefined;
    if (within === undefined) return this.#answer(call, request, this.#reach);
    this.#mustBeWalled();
    if (request.op === 'write' && request.upload !== undefined)
      throw new Refusal(
        'unsupported',
        'an upload in pieces goes to the sandbox itself, not to a session in it',
      );
    const { platform } = this.#options;
    const root = openSessionRoot(this.#execs.pidOf(within), platform);
    try {
      const reach = new Reach(undefined, (path, flags) => platform.openBelow(root, path, flags));
      await this.#answer(call, request, reach);
    } finally {
      closeSync(root);
    }
  }

  async #answer(call: Call, request: GuestRequest, reach: Reach): Promise<void> {
    const { platform } = this.#options;
    switch (request.op) {
      case 'exec':
        return this.#execs.start(call, request);
      case 'rehearse':
        return this.#execs.rehearse(call, request);
      case 'settle':
        platform.collect();
        return done(call);
      case 'attach':
        return this.#execs.attach(call, request);
      case 'signal':
        this.#execs.signal(request);
        return done(call);
      case 'execs':
        call.reply({ type: 'execs', execs: this.#execs.list() });
        return call.end();
      case 'dial':
        return this.#dials.dial(call, request);
      case 'stat':
        return files.stat(call, request, reach);
      case 'list':
        return files.list(call, request, reach);
      case 'search':
        return files.search(call, request, reach);
      case 'read':
        return files.readFile(call, request, { reach, direct: (id) => this.#openBulk(id) });
      case 'write':
        if (request.upload !== undefined)
          return this.#uploads.write(call, { ...request, upload: request.upload });
        return files.writeFile(call, request, reach);
      case 'upload':
        return this.#uploads.status(call, request);
      case 'mkdir':
        files.mkdir(request, reach);
        return done(call);
      case 'remove':
        await files.remove(request, reach);
        return done(call);
      case 'rename':
        files.rename(request, reach);
        return done(call);
      case 'chmod':
        files.chmod(request, reach);
        return done(call);
      case 'replace':
        return done(call, { count: await files.replace(request, reach) });
      case 'pack': {
        const { pack } = await import('./tar.ts');
        return pack(call, request, reach);
      }
      case 'unpack': {
        const { unpack } = await import('./tar.ts');
        return unpack(call, request, reach);
      }
      case 'metrics':
        call.reply(metrics());
        return call.end();
      case 'ping':
        call.reply({ type: 'pong' });
        return call.end();
      case 'whose':
        this.#mustBeWalled();
        call.reply({ type: 'process', ...ownerOf(request.port, (user, run) => platform.as(user, run)) });
        return call.end();
      // A guest with walls has egress.ts for it.
      case 'egress':
        throw new Refusal('unsupported', 'without walls there is no way out to serve');
      default:
        request satisfies never;
        throw new Refusal(
          'unsupported',
          'this agent does not know that request; it is older than the daemon',
        );
    }
  }

  /** A connection of its own for a file's bytes, written as fast as the daemon reads. */
  async #openBulk(id: string): Promise<files.ReadTarget> {
    this.#mustBeDirect();
    const connection = await this.#options.platform.connectUnix(
      this.#options.socketPath,
      AbortSignal.timeout(10_000),
    );
    let closed = false;
    let wake = () => {};
    connection.onDrain = () => wake();
    connection.onClose = () => {
      closed = true;
      wake();
    };
    connection.onData = () => {};
    connection.send(this.#bulkHello(id));
    return {
      async send(bytes) {
        if (!connection.send(bytes) && !closed) {
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
        }
        if (closed) throw new Refusal('io', 'the connection for the bytes was closed');
      },
      end: () => connection.end(),
    };
  }

  /** Without walls, the network is the host's. */
  #mustBeWalled(): void {
    if (!this.#options.platform.abilities.walls)
      throw new Refusal('unsupported', 'without walls there is no way out to serve');
  }

  #mustBeDirect(): void {
    if (!this.#options.platform.abilities.direct)
      throw new Refusal('unsupported', 'no connections for bytes alone here');
  }

  #bulkHello(id: string): Uint8Array {
    return bulkHello(this.#options.boot.token, id);
  }
}

function done(call: Call, more: { count?: number } = {}): void {
  call.reply({ type: 'done', ...more });
  call.end();
}
