// The first line of a connection: what the agent says of it. Said by a guest, so it is bounded and checked like everything else.
import type { Host } from '../policy/policy.ts';
import { type Intent, intentBytesMax } from './egress.ts';
import { peek } from './opening.ts';
import { hostFrom } from './place.ts';
import type { Wire } from './wire.ts';

/** An intent whose words mean something. */
export type Checked =
  | { kind: 'proxy'; client: number }
  | { kind: 'caught'; client: number; address: Host; port: number; name: Host | undefined }
  | { kind: 'names' };

/** Undefined when there is no sound intent; the wire is closed then. */
export async function readIntent(wire: Wire, withinMs: number): Promise<Checked | undefined> {
  const found = await peek(wire, lineOf, { withinMs, taken: ({ bytes }) => bytes });
  const intent = found === undefined || found.text === undefined ? undefined : checked(found.text);
  if (intent === undefined) wire.close();
  return intent;
}

/** `text` is undefined for a line that is too long. */
function lineOf(bytes: Buffer): { bytes: number; text: string | undefined } | undefined {
  const end = bytes.indexOf(10);
  if (end < 0 ? bytes.length >= intentBytesMax : end >= intentBytesMax)
    return { bytes: bytes.length, text: undefined };
  return end < 0 ? undefined : { bytes: end + 1, text: bytes.toString('utf8', 0, end) };
}

function checked(text: string): Checked | undefined {
  let said: Partial<Record<string, unknown>>;
  try {
    said = Object(JSON.parse(text));
  } catch {
    return undefined;
  }
  const kind = said.kind as Intent['kind'] | undefined;
  if (kind === 'names') return { kind };
  const { client } = said;
  if (!isPort(client, 0)) return undefined;
  if (kind === 'proxy') return { kind, client };
  const { port } = said;
  if (kind !== 'caught' || !isPort(port, 1) || typeof said.address !== 'string') return undefined;
  const address = hostFrom(said.address);
  if (address?.kind !== 'address') return undefined;
  if (said.name === undefined) return { kind, client, address, port, name: undefined };
  const name = typeof said.name === 'string' ? hostFrom(said.name) : undefined;
  return name === undefined ? undefined : { kind, client, address, port, name };
}

const isPort = (value: unknown, least: number): value is number =>
  Number.isInteger(value) && (value as number) >= least && (value as number) <= 65_535;
