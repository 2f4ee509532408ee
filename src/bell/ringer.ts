// One call of a guest, from what it asked for to what came of it: bounded, parsed, decided, recorded, done; in that order.
import type { BellDecision, BellEntry } from '../contract/bell.ts';
import { type Action, type Bell, type BellAsker, BellError, type Caller, callerKey } from './bell.ts';
import type { Decided, Decisions } from './decisions.ts';
import type { Limits } from './limits.ts';
import type { BellRecord, RecordedCall } from './record.ts';

export interface RingerOptions {
  actions: ReadonlyMap<string, Action>;
  decisions: Decisions;
  limits: Limits;
  record: BellRecord;
  /** Undefined where nobody can be asked: `ask` is a no then. */
  asker: BellAsker | undefined;
  /** How a person calls a sandbox. */
  nameOf: (sandboxId: string) => string | undefined;
  /** A defect of an action costs its one call, and is told here. */
  onTrouble: (action: string, error: unknown) => void;
}

/** These pass unnoticed; a person sees or hears of everything else. */
const unnoticed: ReadonlySet<string> = new Set(['ping', 'exec']);

const strictness: Record<BellDecision, number> = { allow: 0, ask: 1, deny: 2 };

type Reason = BellEntry['reason'];

export function createBell(options: RingerOptions): Bell {
  const { actions, decisions, limits, record, asker, nameOf, onTrouble } = options;

  return {
    async ring(who, request, { signal, emit }) {
      const caller = named(who);
      const about = recordedCaller(caller);
      const refuse = (detail: string, reason: Reason, error: BellError): BellError => {
        record
          .record({ ...about, action: request.action, detail, decision: 'deny', reason })
          .end({ outcome: 'refused', error: error.message });
        return error;
      };
      const action = actions.get(request.action);
      const wait = limits.take(callerKey(caller), { bothers: !unnoticed.has(request.action) });
      if (wait !== undefined)
        throw refuse(
          '',
          'limit',
          new BellError('too_many_requests', `too many calls; wait ${wait} s`, { retryAfterSeconds: wait }),
        );
      if (action === undefined)
        throw refuse(
          '',
          'unknown',
          new BellError(
            'unknown_action',
            `there is no action of this name; there are ${[...actions.keys()].join(', ')}`,
          ),
        );
      const input = attempt(
        () => action.parse(request.args),
        (error) => refuse('', 'invalid', error),
      );
      const detail = action.describe(input);
      const stricter = attempt(
        () => action.check?.(input, caller),
        (error) => refuse(detail, 'list', error),
      );
      const decided = strictest(decisions.of(action, subjectOf(caller)), stricter);
      if (decided.decision === 'deny')
        throw refuse(
          detail,
          decided.source,
          notAllowed(action.name, caller, isFixed(decided), 'is denied here'),
        );
      const call = { ...about, action: action.name, detail };
      // Nobody is asked about what cannot be done.
      const missing = await action.unavailable();
      if (missing !== undefined) {
        const error = new BellError('unavailable', `${action.name}: ${missing}`);
        record
          .record({
            ...call,
            decision: decided.decision === 'allow' ? 'allow' : 'deny',
            reason: decided.source,
          })
          .end({ outcome: 'unavailable', error: error.message });
        throw error;
      }
      if (decided.decision === 'ask' && !(await askPerson(action.name, detail, caller, signal)))
        throw refuse(
          detail,
          asker === undefined ? 'nobody' : 'person',
          notAllowed(
            action.name,
            caller,
            isFixed(decided),
            asker === undefined
              ? 'has to be asked for, and nobody can be asked'
              : 'was asked about, and nobody allowed it',
          ),
        );
      const entry = record.record({
        ...{ ...call, decision: 'allow' },
        reason: decided.decision === 'ask' ? 'person' : decided.source,
      });
      return await act(action, input, entry, { caller, signal, ...(emit && { emit }) });
    },
  };

  function named(caller: Caller): Caller {
    return caller.kind === 'sandbox' ? { ...caller, name: nameOf(caller.id) } : caller;
  }

  /** No command changes it: it is about what was asked for, or there is no daemon to be told. */
  function isFixed({ ofInput }: Judged): boolean {
    return ofInput || asker === undefined;
  }

  async function act(
    action: Action,
    input: unknown,
    entry: RecordedCall,
    call: Parameters<Action['run']>[1],
  ): Promise<unknown> {
    try {
      await entry.written();
      call.signal.throwIfAborted();
      const result = await action.run(input, call);
      entry.end({ outcome: 'ok', ...exitCodeIn(result) });
      return result;
    } catch (thrown) {
      const error = call.signal.aborted ? cancelled : thrown;
      if (!(error instanceof BellError)) onTrouble(action.name, error);
      const told = error instanceof BellError ? error : new BellError('failed', `${action.name} failed`);
      entry.end({
        outcome: error === cancelled ? 'cancelled' : (outcomes[told.code] ?? 'failed'),
        error: told.message,
        ...exitCodeIn(told.result),
      });
      throw told;
    }
  }

  async function askPerson(
    action: string,
    detail: string,
    caller: Caller,
    signal: AbortSignal,
  ): Promise<boolean> {
    if (asker === undefined) return false;
    const { sandboxName } = recordedCaller(caller);
    return await asker.ask(
      { sandbox: subjectOf(caller), ...(sandboxName !== undefined && { sandboxName }), action, detail },
      signal,
    );
  }
}

const cancelled = new BellError('failed', 'the caller has gone');

const outcomes: Partial<Record<BellError['code'], NonNullable<BellEntry['outcome']>>> = {
  unavailable: 'unavailable',
  timeout: 'timeout',
};

/** Whom decisions are about. */
const subjectOf = (caller: Caller): string => (caller.kind === 'sandbox' ? caller.id : callerKey(caller));

/** A caller as the record has it. */
export function recordedCaller(caller: Caller): Pick<BellEntry, 'sandbox' | 'sandboxName' | 'caller'> {
  if (caller.kind !== 'sandbox') return { caller: callerKey(caller) };
  return { sandbox: caller.id, ...(caller.name !== undefined && { sandboxName: caller.name }) };
}

interface Judged extends Decided {
  /** It is about what was asked for, and no decision about the action makes it milder. */
  ofInput: boolean;
}

/** What an action's own check asks for can only make a decision stricter; it is the configuration's. */
function strictest(decided: Decided, stricter: BellDecision | undefined): Judged {
  if (stricter === undefined || strictness[stricter] <= strictness[decided.decision])
    return { ...decided, ofInput: false };
  return { decision: stricter, source: 'config', ofInput: true };
}

function notAllowed(action: string, caller: Caller, fixed: boolean, why: string): BellError {
  const scope = caller.kind === 'sandbox' ? ` --sandbox ${caller.name ?? caller.id}` : '';
  const remedy = fixed
    ? 'that is set in bell.toml of the host'
    : `on the host, its owner can allow it: glovebox bell allow ${action}${scope}`;
  return new BellError('not_allowed', `${action} ${why}; ${remedy}`);
}

function attempt<T>(step: () => T, refused: (error: BellError) => BellError): T {
  try {
    return step();
  } catch (error) {
    throw error instanceof BellError ? refused(error) : error;
  }
}

function exitCodeIn(result: unknown): { exitCode?: number } {
  const code = (result as { exit_code?: unknown } | null | undefined)?.exit_code;
  return typeof code === 'number' ? { exitCode: code } : {};
}
