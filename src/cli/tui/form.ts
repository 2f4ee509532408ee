// The form that asks what sandbox to make: three lines of text.

import { checkName } from '../names.ts';
import type { Form } from './state.ts';

type Field = Form['at'];
export const fields: readonly Field[] = ['agent', 'folder', 'name'];
const fieldCharactersMax = 1024;

/** The form after a key, or what it asks for in the end. */
export function onFormKey(
  form: Form,
  key: string,
  agents: readonly string[],
): Form | Form['fields'] | 'cancelled' {
  switch (key) {
    case 'escape':
      return 'cancelled';
    case 'tab':
    case 'down':
      return { ...form, at: beside(form.at, 1) };
    case 'shift-tab':
    case 'up':
      return { ...form, at: beside(form.at, -1) };
    case 'enter':
      return form.at === 'name' ? checked(form) : { ...form, at: beside(form.at, 1) };
    case 'backspace':
      return changed(form, [...form.fields[form.at]].slice(0, -1).join(''));
    case 'ctrl-u':
      return changed(form, '');
    case 'left':
    case 'right':
      return form.at === 'agent' ? changed(form, nextAgent(form.fields.agent, agents, key)) : form;
    default:
      return [...key].length === 1 ? onFormText(form, key) : form;
  }
}

export function onFormText(form: Form, text: string): Form {
  // What is pasted may have a newline at its end, which is no answer.
  const line = text.replace(/[\r\n]+$/, '').replace(/\p{Cc}/gu, ' ');
  return changed(form, (form.fields[form.at] + line).slice(0, fieldCharactersMax));
}

function beside(field: Field, by: number): Field {
  return fields[(fields.indexOf(field) + by + fields.length) % fields.length] as Field;
}

function changed({ problem: _, ...form }: Form, text: string): Form {
  return { ...form, fields: { ...form.fields, [form.at]: text } };
}

function nextAgent(agent: string, agents: readonly string[], key: 'left' | 'right'): string {
  if (agents.length === 0) return agent;
  const at = agents.indexOf(agent);
  const by = key === 'right' ? 1 : -1;
  return agents[(Math.max(at, key === 'right' ? -1 : 0) + by + agents.length) % agents.length] as string;
}

function checked(form: Form): Form | Form['fields'] {
  const { agent, folder, name } = form.fields;
  const all = { agent: agent.trim(), folder: folder.trim(), name: name.trim() };
  if (all.agent === '') return { ...form, at: 'agent', problem: 'name an agent, or an image' };
  if (all.agent.startsWith('-')) return { ...form, at: 'agent', problem: 'an agent has no dash before it' };
  try {
    if (all.name !== '') checkName(all.name);
  } catch (error) {
    return { ...form, at: 'name', problem: (error as Error).message.replace(/^--name: /, '') };
  }
  return all;
}
