// Actions of the bell and decisions about them, as they are written on the line.
import { BellDecision, type BellDecisions, bellActionName } from '../contract/bell.ts';
import { usageError } from './exit-codes.ts';
import { listOf, pairsOf } from './values.ts';

/** `open-url` is `open_url`, too. Whether there is such an action is for the server to say. */
export function actionOf(text: string): string {
  const { success, data } = bellActionName.safeParse(text.replaceAll('-', '_'));
  if (success) return data;
  throw usageError(`'${text}' is no name of an action`, 'See `glovebox bell status`, e.g. notify.');
}

/** Of `--bell-action`: `notify=allow,exec=ask`, perhaps several times. */
export function bellDecisionsOf(lists: readonly string[]): BellDecisions {
  const pairs = lists.flatMap((list) =>
    Object.entries(pairsOf('--bell-action', listOf('--bell-action', list))),
  );
  return Object.fromEntries(pairs.map(([action, word]) => [actionOf(action), decisionOf(action, word)]));
}

function decisionOf(action: string, word: string): BellDecision {
  const { success, data } = BellDecision.safeParse(word);
  if (success) return data;
  throw usageError(
    `--bell-action: '${action}=${word}' is none of allow, ask, deny`,
    'Write e.g. --bell-action open_url=ask,play=deny.',
  );
}
