// The configuration file as a JSON Schema, for editors: what each key is, what it takes, and which of OpenSandbox's keys do nothing or are refused here.
// It says what a file may hold; what keys need of each other is checked by daemon/config.ts alone.
import { z } from 'zod';
import {
  ConfigFile,
  configSections,
  emptyKeys,
  type ForeignKey,
  inertKeys,
  refusedKeys,
  renamedKeys,
} from './config.ts';

interface Node {
  description?: string;
  [keyword: string]: unknown;
}

interface Table extends Node {
  type: 'object';
  properties: Record<string, Node>;
  additionalProperties: boolean;
}

const table = (): Table => ({ type: 'object', properties: {}, additionalProperties: false });

/** Draft 7, which editors of TOML understand. */
export function configJsonSchema(): object {
  const root = table();
  for (const [section, { shape }] of Object.entries(configSections)) {
    const { properties } = tableAt(root, section.split('.'));
    for (const [key, field] of Object.entries(shape)) {
      const node = nodeOf(field);
      properties[key] = emptyKeys.includes(`${section}.${key}`) ? orEmpty(node) : node;
    }
  }
  // Sections whose keys are names of one's own.
  for (const [section, schema] of Object.entries(ConfigFile.shape))
    if (!Object.hasOwn(configSections, section)) root.properties[section] = nodeOf(schema);
  for (const [old, key] of Object.entries(renamedKeys)) {
    const found = nodeAt(root, key);
    put(root, old, { ...found, description: `An older name of ${key}.`, deprecated: true });
  }
  for (const it of inertKeys)
    put(root, it.key, { description: `Has no effect here: ${it.why}.`, deprecated: true });
  // Those with an allowed value first: they make the table in which the rest is refused.
  for (const it of [...refusedKeys].sort((a, b) => Number('allow' in b) - Number('allow' in a)))
    put(root, it.key, refused(it));
  return {
    $schema: 'http://json-schema.org/draft-07/schema#',
    title: 'Configuration of Glovebox',
    ...root,
  };
}

function nodeOf(field: z.ZodType): Node {
  const { $schema: _, ...node } = z.toJSONSchema(field, { io: 'input', target: 'draft-7' });
  // Not every reader of schemas knows the classes of Unicode.
  const text = JSON.stringify(node).replaceAll('\\\\P{Cc}', '[^\\\\x00-\\\\x1f\\\\x7f-\\\\x9f]');
  return JSON.parse(text);
}

const orEmpty = ({ description, ...node }: Node): Node => ({
  ...(description === undefined ? {} : { description }),
  anyOf: [node, { const: '' }],
});

function refused({ why, use, ...rest }: ForeignKey): Node {
  const description = `Refused: ${why}${use === undefined ? '' : `; use ${use}`}.`;
  if (!('allow' in rest)) return { description, not: {} };
  const { allow } = rest;
  return {
    description,
    ...(Array.isArray(allow) ? { type: 'array', items: { not: {} }, maxItems: 0 } : { const: allow }),
  };
}

/** A key that ends in `.*` stands for all below it, unless some of that is described already. */
function put(root: Table, dotted: string, node: Node): void {
  const path = dotted.split('.');
  const name = path.pop() as string;
  if (name === '*') {
    const last = path.pop() as string;
    const { properties } = tableAt(root, path);
    const { not, ...rest } = node;
    properties[last] ??= not === undefined ? { type: 'object', ...rest } : node;
    return;
  }
  tableAt(root, path).properties[name] = node;
}

function tableAt(root: Table, path: readonly string[]): Table {
  let at = root;
  for (const name of path) {
    at.properties[name] ??= table();
    at = at.properties[name] as Table;
  }
  return at;
}

function nodeAt(root: Table, dotted: string): Node {
  const path = dotted.split('.');
  const name = path.pop() as string;
  return tableAt(root, path).properties[name] as Node;
}
