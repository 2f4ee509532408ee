// The worker's end of its link: enrols once, then dials for as long as the worker runs, proving each time who it is, and says when it is of no use to go on.

import type { Carrier, Channel, EndReason } from '../channel/channel.ts';
import type { Clock } from '../channel/clock.ts';
import { type BackOff, Dialer, remoteBackOff } from '../channel/dialer.ts';
import { Enrolled, type WorkerHello } from '../contract/worker.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import { ChannelLink } from './channel-link.ts';
import type { Identity, IdentityFiles } from './identity.ts';
import { publicHalf, signToken } from './keys.ts';
import type { Link } from './link.ts';
import { type Answer, failureOf, type Road } from './road.ts';
import { ask, workerLimits } from './rpc.ts';
import type { ServerClock } from './server-clock.ts';

/** A controller that says so often, one time after the other, that it does not know the worker means it. */
const refusalsMax = 3;
/** Beyond this a token would not be taken. */
const clockWrongMs = 30_000;

/** Makes this machine a worker. Failures: those of the controller, and of the way to it; then the same token may be tried again. */
export async function enrol(
  options: {
    road: Road;
    files: IdentityFiles;
    serverClock: ServerClock;
    token: string;
    workerId?: string | undefined;
    labels: Record<string, string>;
  },
  signal: AbortSignal,
): Promise<Identity> {
  const { road, files, serverClock, token, workerId, labels } = options;
  const key = await files.keyToEnrol();
  const request = {
    token,
    ...(workerId === undefined ? {} : { workerId }),
    publicKey: publicHalf(key),
    labels,
  };
  const answer = await road.post('/v1/workers/enrol', request, signal);
  serverClock.learn(answer.headers.date);
  if (answer.status !== 201) throw failureOf(answer, 'enrol');
  const enrolled = Enrolled.safeParse(parsed(answer.text));
  if (!enrolled.success)
    throw new Failure('protocol', 'enrol: the answer is not understood; is that a Glovebox controller?');
  return await files.enrolled(enrolled.data, key, token);
}

export interface ControllerLinkOptions {
  road: Road;
  identity: Identity;
  serverClock: ServerClock;
  /** How the worker introduces itself, asked for on each new channel. */
  hello: () => Omit<WorkerHello, 'op'>;
  clock: Clock;
  log: Log;
  backOff?: BackOff;
  random?: () => number;
}

/** Dials from `start` until stopped, or until the controller says that it is of no use. */
export class ControllerLink {
  readonly link: Link;
  /**
   * Why there will be no further attempt. Codes: `stopped` by us, `revoked` (removed, or its key replaced), `unauthenticated` (not known there), `superseded` by a
   * newer process, `version` (no protocol in common).
   */
  readonly ended: Promise<EndReason>;
  readonly #options: ControllerLinkOptions;
  readonly #link: ChannelLink;
  #dialer: Dialer | undefined;
  #stopReason: EndReason | undefined;
  #end: (reason: EndReason) => void = () => {};
  #carrier: Carrier | undefined;
  /** What to do about the latest failure to connect. */
  #hint: string | undefined;
  #refusals = 0;

  constructor(options: ControllerLinkOptions) {
    const { clock, log, identity } = options;
    this.#options = options;
    this.#link = new ChannelLink({
      ...{ workerId: identity.workerId, clock },
      onListenerError: (error) => log.error({ error: String(error) }, 'trouble with the link'),
    });
    this.link = this.#link;
    this.#link.onReach((connected) => {
      if (connected) this.#refusals = 0;
      log.info({}, connected ? 'connected to the controller' : 'the connection to the controller is lost');
    });
    this.ended = new Promise((resolve) => {
      this.#end = resolve;
    });
    void this.ended.then((reason) => this.#link.finish(reason));
  }

  /** Whoever answers the controller's calls listens on the link by now. */
  start(): void {
    if (this.#stopReason !== undefined) return;
    const { clock, log, identity, backOff = remoteBackOff, random } = this.#options;
    this.#dialer = new Dialer({
      // The handshake of the WebSocket has proven who it is.
      token: identity.workerId,
      ...{ clock, backOff, limits: workerLimits, ...(random === undefined ? {} : { random }) },
      connect: (signal) => this.#connectOrSay(signal),
      onChannel: (channel) => {
        this.#link.begin(channel);
        this.#introduce(channel);
      },
      onTrouble: ({ code, message, retryAfterMs }) => {
        const hint = this.#hint;
        const more = { ...(hint && { hint }), ...(retryAfterMs !== undefined && { retryAfterMs }) };
        log.warn({ code, message, ...more }, 'not connected');
      },
      onHandlerError: (error) => log.error({ error: String(error) }, 'trouble with a request'),
    });
    void this.#dialer.ended.then(this.#end);
  }

  /** Introduces the worker anew, because what it says of itself has changed. */
  introduce(): void {
    if (this.#link.connected) this.#introduce(this.#link.channel());
  }

  /** Drops the connection for another one, with certificates that were read again, say. Nothing is lost. */
  redial(): void {
    this.#carrier?.close();
  }

  /** Says goodbye and dials no more. Idempotent. */
  async stop(): Promise<void> {
    this.#stop({ code: 'stopped', message: 'the worker stops; what runs on its machine goes on' });
    await this.ended;
  }

  #stop(reason: EndReason): void {
    this.#stopReason ??= reason;
    if (this.#dialer === undefined) this.#end(reason);
    else this.#dialer.stop(reason);
  }

  async #connectOrSay(signal: AbortSignal): Promise<Carrier> {
    this.#hint = undefined;
    try {
      return await this.#connect(signal);
    } catch (thrown) {
      if (thrown instanceof Failure) this.#hint = thrown.hint;
      throw thrown;
    }
  }

  async #connect(signal: AbortSignal): Promise<Carrier> {
    const { road, identity, serverClock, log } = this.#options;
    for (let again = false; ; again = true) {
      const token = await signToken(identity.key, { ...identity, at: serverClock.now() });
      let wrongMs = 0;
      const onDate = (date: string | undefined) => {
        wrongMs = serverClock.learn(date);
      };
      const answer = await road.dial(`Bearer ${token}`, onDate, signal);
      if (!('status' in answer)) {
        this.#carrier = answer;
        return answer;
      }
      if (answer.status === 401 && wrongMs > clockWrongMs && !again) {
        log.warn(
          { wrongSeconds: Math.round(wrongMs / 1000) },
          'our clock is not the controller’s; its own counts',
        );
        continue;
      }
      throw this.#refused(answer);
    }
  }

  #refused(answer: Answer): Failure {
    const failure = failureOf(answer, 'connect to the controller');
    this.#refusals = failure.code === 'unauthenticated' ? this.#refusals + 1 : 0;
    const final =
      answer.status === 426 && failure.code !== 'unavailable'
        ? 'version'
        : this.#refusals >= refusalsMax
          ? 'unauthenticated'
          : undefined;
    if (final !== undefined) this.#stop({ code: final, message: failure.message });
    return failure;
  }

  #introduce(channel: Channel): void {
    const { hello, log } = this.#options;
    try {
      const call = ask(channel, { op: 'hello', ...hello() });
      call.onGone = ({ code, message }) => {
        if (code !== 'lost') log.warn({ code, message }, 'the controller did not take our introduction');
      };
      call.end();
    } catch (error) {
      log.error({ error: String(error) }, 'introducing this worker failed');
    }
  }
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
