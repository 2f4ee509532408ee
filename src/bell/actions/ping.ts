// Does nothing, so that a guest can find out whether somebody answers.
import type { Action } from '../bell.ts';

export const createPing = (): Action<undefined> => ({
  name: 'ping',
  summary: 'Answers, and does nothing else',
  decision: 'allow',
  // Whatever comes with it is not looked at.
  parse: () => undefined,
  describe: () => '',
  unavailable: async () => undefined,
  run: async () => undefined,
});
