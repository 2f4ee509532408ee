// Claude Code's hooks: what the host does for an event, and what it says. The client has a copy of the text's rules, since it stands alone.

type Payload = Readonly<Record<string, unknown>>;

/** What one event may set off; each list is the owner's or one of these. */
export type Hooks = Readonly<Record<string, readonly ('notify' | 'play')[]>>;

/** For events that the owner has said nothing about; others set off nothing. */
export const defaultHooks: Hooks = {
  Notification: ['notify'],
  Stop: ['notify', 'play'],
  StopFailure: ['notify'],
  PermissionRequest: ['notify'],
  Elicitation: ['notify'],
};

const titleCharactersMax = 256;
const bodyCharactersMax = 4_096;

/** Where the body comes from: the first of these that says something. */
const bodyFields = ['message', 'last_assistant_message', 'reason', 'prompt', 'tool_name', 'hook_event_name'];

/** What a notification about this payload says. */
export function hookText(payload: Payload): { title: string; body: string } {
  return {
    title: cut(textOf(payload.title) ?? 'Claude Code', titleCharactersMax),
    body: cut(
      bodyFields.map((field) => textOf(payload[field])).find((it) => it !== undefined) ?? '',
      bodyCharactersMax,
    ),
  };
}

/** What to ask of the bell for this payload. `event`: its `hook_event_name`. */
export function hookCalls(
  event: string,
  payload: Payload,
  hooks: Hooks,
): { action: string; args: Readonly<Record<string, unknown>> }[] {
  const owned = [hooks, defaultHooks].find((it) => Object.hasOwn(it, event))?.[event] ?? [];
  return owned.map((action) => ({ action, args: action === 'notify' ? hookText(payload) : {} }));
}

const textOf = (value: unknown): string | undefined =>
  typeof value === 'string' && value.trim() !== '' ? value : undefined;

function cut(text: string, charactersMax: number): string {
  // One more than may stay tells whether there is more; a pair of surrogates is never parted.
  const characters = [...text.slice(0, 2 * charactersMax + 2)];
  if (characters.length <= charactersMax) return text;
  return `${characters.slice(0, charactersMax - 1).join('')}…`;
}
