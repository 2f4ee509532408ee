import { expect, test } from 'vitest';
import { hookCalls, hookText } from './hooks.ts';

const texts: [payload: Record<string, unknown>, title: string, body: string][] = [
  [
    { hook_event_name: 'Notification', message: 'Claude needs your permission to use Bash' },
    'Claude Code',
    'Claude needs your permission to use Bash',
  ],
  [{ hook_event_name: 'Notification', title: 'Needs you', message: 'Look' }, 'Needs you', 'Look'],
  [{ hook_event_name: 'Stop', last_assistant_message: 'All done.' }, 'Claude Code', 'All done.'],
  [{ hook_event_name: 'Stop', stop_hook_active: false }, 'Claude Code', 'Stop'],
  [{ hook_event_name: 'Stop', message: ' ', reason: 'clear' }, 'Claude Code', 'clear'],
  [{ hook_event_name: 'PermissionRequest', tool_name: 'Bash', tool_input: {} }, 'Claude Code', 'Bash'],
  [{ hook_event_name: 'UserPromptSubmit', prompt: 'mend it' }, 'Claude Code', 'mend it'],
  [{ hook_event_name: 'Stop', title: 7, message: { a: 1 } }, 'Claude Code', 'Stop'],
];

test.each(texts)('%j says %s: %s', (payload, title, body) => {
  expect(hookText(payload)).toEqual({ title, body });
});

test('long texts are cut between characters', () => {
  const { title, body } = hookText({ title: '😀'.repeat(300), message: 'x'.repeat(5_000) });
  expect(title).toBe(`${'😀'.repeat(255)}…`);
  expect(body).toBe(`${'x'.repeat(4_095)}…`);
});

const events: [event: string, actions: string[]][] = [
  ['Notification', ['notify']],
  ['Stop', ['notify', 'play']],
  ['StopFailure', ['notify']],
  ['PermissionRequest', ['notify']],
  ['Elicitation', ['notify']],
  ['SubagentStop', []],
  ['PreToolUse', []],
  ['constructor', []],
  ['__proto__', []],
];

test.each(events)('%s sets off %j unless the owner says otherwise', (event, actions) => {
  expect(hookCalls(event, {}, {}).map((it) => it.action)).toEqual(actions);
});

test('what the owner says about an event holds for it alone', () => {
  const hooks = { Stop: [], SessionEnd: ['play'] } as const;
  expect(hookCalls('Stop', {}, hooks)).toEqual([]);
  expect(hookCalls('SessionEnd', { reason: 'logout' }, hooks)).toEqual([{ action: 'play', args: {} }]);
  expect(hookCalls('Notification', { message: 'm' }, hooks)).toEqual([
    { action: 'notify', args: { title: 'Claude Code', body: 'm' } },
  ]);
});
