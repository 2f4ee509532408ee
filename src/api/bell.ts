// Our own routes about the bell: what it may do for whom, and what it did.
import type { BellDecision, BellDecisions, BellEntry, BellStatus, BellToken } from '../contract/bell.ts';
import { Failure } from '../lib/failure.ts';
import type { Exchange } from './exchange.ts';
import { isOwner, refuseFromAfar } from './gate.ts';
import type { ApiOptions, Handlers } from './handlers.ts';
import { answerLog, loggedSandbox } from './logs.ts';
import { sandboxIdOf } from './reference.ts';

/** What the API can ask of the bell. */
export interface BellService {
  status(): Promise<BellStatus>;
  /** Failure('not-found') for an action that there is not. Holds from now on, also for a daemon that is started later. */
  decide(action: string, decision: BellDecision, sandboxId: string | undefined): Promise<void>;
  /** Back to what holds otherwise. Failure('not-found') when there was no such decision. */
  forgetDecision(action: string, sandboxId: string | undefined): Promise<void>;
  /** Newest last. `sandbox`: an id, or what the log knows of one that is gone. */
  log(filter: { sandbox?: string; limit: number }): Promise<BellEntry[]>;
  /** New entries, and entries again when they end, from this call on. Ends with the signal. */
  followLog(filter: { sandbox?: string }, signal: AbortSignal): AsyncIterable<BellEntry>;
  tokens(): BellToken[];
  /** The token is shown this once. Failure('conflict') when the name is taken. */
  addToken(name: string): Promise<BellToken & { token: string }>;
  /** Failure('not-found'). */
  removeToken(name: string): Promise<void>;
}

const callAsOwner = 'Call as that user: `glovebox` and the SDK then prove it by themselves.';

/** What a new sandbox is let ask of the host. To deny is everybody's; the rest is the owner's, as decisions are later. */
export function refuseWidening(decisions: BellDecisions | undefined, byOwner: boolean): void {
  const widened = Object.entries(decisions ?? {}).filter(([, decision]) => decision !== 'deny');
  if (byOwner || widened.length === 0) return;
  throw new Failure(
    'permission',
    `glovebox.bell.${widened[0]?.[0]}: only the daemon's own user may let a sandbox ask this of the host`,
    { hint: callAsOwner },
  );
}

type BellHandlers = Handlers<
  | ('bellStatus' | 'setBellDecision' | 'forgetBellDecision' | 'bellLog')
  | ('listBellTokens' | 'addBellToken' | 'removeBellToken')
>;

export function bellHandlers({ service, bell, ownerKey }: ApiOptions): BellHandlers {
  /** Decisions and tokens say what guests may have done on the host, as its own user. */
  const requireOwner = ({ request }: Exchange, what: string) => {
    refuseFromAfar(request, what);
    if (!isOwner(request, ownerKey))
      throw new Failure('permission', `${what} are taken from the daemon's own user only`, {
        hint: callAsOwner,
      });
  };
  const decisions = 'decisions about what sandboxes may ask of the host';
  const tokens = 'changes to tokens of the bell';

  return {
    bellStatus: async () => ({ status: 200, json: await bell.status() }),
    setBellDecision: async ({ body: { action, decision, sandbox }, exchange }) => {
      requireOwner(exchange, decisions);
      const sandboxId = sandbox === undefined ? undefined : sandboxIdOf(service, sandbox);
      await bell.decide(action, decision, sandboxId);
      return { status: 200, json: await bell.status() };
    },
    forgetBellDecision: async ({ query: { action, sandbox }, exchange }) => {
      requireOwner(exchange, decisions);
      // A decision may have outlived its sandbox.
      const sandboxId = sandbox === undefined ? undefined : loggedSandbox(service, sandbox).sandbox;
      await bell.forgetDecision(action, sandboxId);
      return { status: 204 };
    },
    bellLog: async (call) => await answerLog(call, service, bell),
    listBellTokens: async () => ({ status: 200, json: { items: bell.tokens() } }),
    addBellToken: async ({ body, exchange }) => {
      requireOwner(exchange, tokens);
      return { status: 201, json: await bell.addToken(body.name) };
    },
    removeBellToken: async ({ params, exchange }) => {
      requireOwner(exchange, tokens);
      await bell.removeToken(params.name ?? '');
      return { status: 204 };
    },
  };
}
