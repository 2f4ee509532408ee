// What the host will do for a guest: a short list of actions, each allowed, asked about or denied; counted, recorded, then done.
import type { BellDecision, BellErrorCode, ExecEvent } from '../contract/bell.ts';

/** Who asks. Known by the connection it came over or by its token, never by what it says. */
export type Caller =
  | { kind: 'sandbox'; id: string; name?: string | undefined }
  | { kind: 'token'; name: string }
  | { kind: 'stranger'; address: string };

/** The caller as a key: bounds and decisions are each one's own. */
export const callerKey = (caller: Caller): string => {
  switch (caller.kind) {
    case 'sandbox':
      return `sandbox ${caller.id}`;
    case 'token':
      return `token ${caller.name}`;
    case 'stranger':
      return `stranger ${caller.address}`;
  }
};

/** A call that came to nothing. `message` is for the guest: nothing of the host in it. */
export class BellError extends Error {
  readonly code: BellErrorCode;
  readonly retryAfterSeconds: number | undefined;
  /** What there is to show all the same, such as the output of a command whose time was over. */
  readonly result: unknown;

  constructor(
    code: BellErrorCode,
    message: string,
    options: { cause?: unknown; retryAfterSeconds?: number; result?: unknown } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'BellError';
    this.code = code;
    this.retryAfterSeconds = options.retryAfterSeconds;
    this.result = options.result;
  }
}

/** What an action may use of one call. */
export interface ActionCall {
  caller: Caller;
  /** Aborted when the caller has gone, or the daemon stops: whatever runs for it ends, its descendants too. */
  signal: AbortSignal;
  /** The caller wants output as it comes. Resolves when more may be sent; `exec` then has no output in its result. */
  emit?: (event: ExecEvent) => Promise<void>;
}

/**
 * One thing that a guest may ask for. `parse` is given what the guest sent (an object of its own, made by JSON.parse) and throws
 * BellError('bad_request') saying what is wrong.
 */
export interface Action<Input = unknown> {
  readonly name: string;
  /** One line for a person. */
  readonly summary: string;
  /** What holds when nobody has decided. */
  readonly decision: BellDecision;
  parse(args: Readonly<Record<string, unknown>>): Input;
  /** The call in one line, for the log and for questions. */
  describe(input: Input): string;
  /**
   * Throws BellError('not_allowed') for what no decision can allow, such as a command that is not listed; gives what is stricter for this input than for
   * the action. Before anybody is asked.
   */
  check?(input: Input, caller: Caller): BellDecision | undefined;
  /** Why it can do nothing on this host, in words; undefined when it can. */
  unavailable(): Promise<string | undefined>;
  /** What it gives is JSON, or undefined. Throws BellError. */
  run(input: Input, call: ActionCall): Promise<unknown>;
}

export interface Bell {
  /**
   * Decides, records, acts. Rejects with BellError for whatever is not done. `args`: of the guest, not looked at yet.
   */
  ring(
    caller: Caller,
    request: { action: string; args: Readonly<Record<string, unknown>> },
    options: { signal: AbortSignal; emit?: ActionCall['emit'] },
  ): Promise<unknown>;
}

/** Asks a person, and waits a bounded time. No answer is a no. */
export interface BellAsker {
  ask(
    question: { sandbox: string; sandboxName?: string; action: string; detail: string },
    signal: AbortSignal,
  ): Promise<boolean>;
}
