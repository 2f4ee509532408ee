// One session channel: a command, a shell or a subsystem in the sandbox, with what a client says about its terminal, environment and signals.
import type { Process, TerminalSize } from '../../../sdk/src/index.ts';
import { cleanLine } from '../output.ts';
import { ForwardedAgent, type OpenAgent } from './agent-forward.ts';
import type { Channel, ChannelUser } from './connection.ts';
import { type GuestUser, isCode, shellCommand, startFailure } from './guest-user.ts';
import { serveSftp } from './sftp/server.ts';
import { sttyWords } from './terminal-modes.ts';
import { WireReader } from './wire-data.ts';

const sizeMax = 1_000;
const sizeDefault = { cols: 80, rows: 24 };
const lineCharsMax = 1024 * 1024;
const variablesMax = 64;
const hangUpDeadlineMs = 5_000;
const acceptedVariables = /^(LANG|LANGUAGE|LC_[A-Z_]+|TERM|COLORTERM)$/;
/** End of transmission: what a terminal takes for the end of its input. */
const endOfInput = Buffer.of(4);

export interface SessionOptions {
  /** Unless given, no agent is forwarded. */
  openAgent?: OpenAgent;
}

export class Session implements ChannelUser {
  readonly #channel: Channel;
  readonly #guest: GuestUser;
  readonly #options: SessionOptions;
  #agentWanted = false;
  readonly #env: Record<string, string> = {};
  #tty: { size: TerminalSize; modes: string[] } | undefined;
  #begun = false;
  #process: Process | undefined;
  /** Sent before the command ran. */
  #earlySignals: string[] = [];
  readonly #work: Promise<void>[] = [];

  constructor(channel: Channel, guest: GuestUser, options: SessionOptions) {
    this.#channel = channel;
    this.#guest = guest;
    this.#options = options;
  }

  /** Resolves, never rejects, when nothing of it is left to be done. */
  async finished(): Promise<void> {
    for (const work of this.#work) await work;
  }

  request(type: string, details: WireReader): boolean {
    switch (type) {
      case 'env':
        this.#setVariable(details.text(), details.text());
        // Also for those that are passed over: a client would only complain.
        return true;
      case 'pty-req':
        return this.#setTerminal(details);
      case 'window-change':
        return this.#resize({ cols: details.uint32(), rows: details.uint32() });
      case 'signal':
        return this.#signal(details.text());
      case 'shell':
        return this.#begin(() => this.#run(undefined));
      case 'exec': {
        const line = details.text();
        if (line.length > lineCharsMax || line.includes('\0')) return false;
        return this.#begin(() => this.#run(line));
      }
      case 'subsystem':
        return details.text() === 'sftp' && this.#begin(() => serveSftp(this.#channel, this.#guest));
      case 'auth-agent-req@openssh.com':
        this.#agentWanted = this.#options.openAgent !== undefined && !this.#begun;
        return this.#agentWanted;
      default:
        // x11-req and the like: nothing of the client's machine is given to a sandbox.
        return false;
    }
  }

  closed(): void {
    // Whatever reads and writes here comes to its end by itself; a command is told as by a terminal that is gone.
    if (this.#process) this.#work.push(hangUp(this.#process));
    this.#process = undefined;
  }

  #setVariable(name: string, value: string): void {
    const fits = acceptedVariables.test(name) && value.length <= 4_096 && !value.includes('\0');
    if (fits && Object.keys(this.#env).length < variablesMax) this.#env[name] = value;
  }

  #setTerminal(details: WireReader): boolean {
    if (this.#begun) return false;
    const term = details.text();
    const size = { cols: details.uint32(), rows: details.uint32() };
    // The size in pixels.
    details.uint32();
    details.uint32();
    this.#tty = { size: bounded(size), modes: sttyWords(new WireReader(details.bytes())) };
    this.#setVariable('TERM', term);
    return true;
  }

  #resize(size: TerminalSize): boolean {
    if (this.#tty === undefined) return false;
    this.#tty.size = bounded(size);
    void this.#process?.resize(this.#tty.size).catch(() => {});
    return true;
  }

  #signal(name: string): boolean {
    if (!/^[A-Z0-9]{2,10}$/.test(name) || !this.#begun) return false;
    if (this.#process) void this.#process.signal(`SIG${name}`).catch(() => {});
    else if (this.#earlySignals.length < 16) this.#earlySignals.push(`SIG${name}`);
    return true;
  }

  /** One program for each session. */
  #begin(run: () => Promise<void>): boolean {
    if (this.#begun) return false;
    this.#begun = true;
    // Behind the answer to the request.
    this.#work.push(new Promise<void>((resolve) => setImmediate(resolve)).then(run).catch(() => {}));
    return true;
  }

  async #run(line: string | undefined): Promise<void> {
    const channel = this.#channel;
    const { sandbox, user } = this.#guest;
    const tty = this.#tty;
    // Until the client knows the end, and no longer.
    await using agent = await this.#forwardAgent();
    try {
      const running = await sandbox.start(shellCommand(line, tty?.modes ?? []), {
        ...{ env: { ...this.#env, ...(agent ? { SSH_AUTH_SOCK: await agent.path } : {}) }, stdin: true },
        ...(user === undefined ? {} : { user }),
        ...(tty ? { tty: tty.size } : {}),
      });
      this.#process = running;
      if (channel.over) return this.closed();
      // It may have changed while the command was starting.
      if (tty && this.#tty) void running.resize(this.#tty.size).catch(() => {});
      for (const name of this.#earlySignals) void running.signal(name).catch(() => {});
      void this.#feed(running, tty !== undefined);
      await this.#passOn(running);
    } catch (error) {
      const { text, exitCode } = startFailure(error);
      await channel.write(Buffer.from(text), 'stderr');
      await channel.tell('exit-status', (it) => it.uint32(exitCode));
    }
    this.#process = undefined;
    await channel.end();
    await channel.close();
  }

  /** A command is worth running without. */
  async #forwardAgent(): Promise<ForwardedAgent | undefined> {
    const { openAgent } = this.#options;
    if (openAgent === undefined || !this.#agentWanted) return undefined;
    try {
      return await ForwardedAgent.open(this.#guest, openAgent);
    } catch (error) {
      const message = cleanLine(`glovebox: the SSH agent is not forwarded: ${(error as Error).message}`);
      await this.#channel.write(Buffer.from(`${message}\r\n`), 'stderr');
      return undefined;
    }
  }

  async #feed(running: Process, tty: boolean): Promise<void> {
    try {
      for await (const bytes of this.#channel.input()) await running.write(bytes);
      // One that is closed has no input that ended.
      if (!this.#channel.inputEnded) return;
      if (tty) await running.write(endOfInput);
      else await running.end();
    } catch (error) {
      // A command need not read its input to the end. What else can go wrong is seen by whoever reads the output.
      if (!isCode(error, 'conflict', 'aborted')) return;
      for await (const _ of this.#channel.input());
    }
  }

  /** Resolves when the command has ended, or the channel. */
  async #passOn(running: Process): Promise<void> {
    const channel = this.#channel;
    for await (const event of running) {
      if (event.type === 'stdout' || event.type === 'stderr') await channel.write(event.bytes, event.type);
      else if (event.type === 'gap')
        await channel.write(
          Buffer.from(`glovebox: ${event.to - event.from} bytes of output are lost\r\n`),
          'stderr',
        );
      else {
        const signal = event.reason === 'signaled' || event.reason === 'killed' ? event.signal : null;
        if (signal !== null)
          await channel.tell('exit-signal', (it) =>
            it.text(signal.replace(/^SIG/, '')).boolean(false).text('').text(''),
          );
        else await channel.tell('exit-status', (it) => it.uint32(event.exitCode ?? 255));
      }
      if (channel.over) return;
    }
  }
}

async function hangUp(running: Process): Promise<void> {
  await running.signal('SIGHUP', { signal: AbortSignal.timeout(hangUpDeadlineMs) }).catch(() => {});
  running.detach();
}

/** A terminal that has no size of its own, as those of programs have, gets the usual one. */
export function bounded({ cols, rows }: TerminalSize): TerminalSize {
  return {
    cols: cols === 0 ? sizeDefault.cols : Math.min(sizeMax, cols),
    rows: rows === 0 ? sizeDefault.rows : Math.min(sizeMax, rows),
  };
}
