// The one spelling of hosts and targets. Whatever compares, dials, mints a certificate or logs uses what these functions return, never the
// text they were given. The order matters: bytes are checked before anything is interpreted, so that no two parsers read one text differently.
import { domainToASCII, domainToUnicode } from 'node:url';
import { Failure } from '../lib/failure.ts';
import { addressOf, parseAddress } from './addresses.ts';
import type { Host } from './policy.ts';

const nameLengthMax = 253;
const labelLengthMax = 63;

/** A host as it comes off a wire: a name, an address in any form that some resolver would take for one, or IPv6 with or without brackets. */
export function parseHost(text: string): Host {
  checkCharacters(text);
  if (text.startsWith('[') || text.includes(':')) return parseBracketed(text);
  if (/[[\]]/.test(text)) throw invalid(text, 'has brackets that are not around an IPv6 address');
  return hostOfText(text);
}

/** `host:port`, with IPv6 in brackets. Without a port it is `defaultPort`, or an error where there is none. */
export function parseTarget(text: string, defaultPort?: number): { host: Host; port: number } {
  checkCharacters(text);
  const parts = /^(\[[^[\]]*\]|[^:[\]]+)(?::(.*))?$/.exec(text);
  if (parts?.[1] === undefined)
    throw invalid(text, 'is no "host:port"; an IPv6 address goes into square brackets');
  const host = parseHost(parts[1]);
  if (parts[2] !== undefined) return { host, port: parsePort(parts[2], text) };
  if (defaultPort === undefined) throw invalid(text, 'names no port');
  return { host, port: defaultPort };
}

/** 1 to 65535 in plain decimal. `whole` is the text it is part of, for the message. */
export function parsePort(text: string, whole: string = text): number {
  const port = /^[1-9][0-9]{0,4}$/.test(text) ? Number(text) : Number.NaN;
  if (!(port <= 65_535))
    throw invalid(whole, `has the port "${text}"; a port is 1 to 65535 in plain decimal`);
  return port;
}

/**
 * A host as an operator writes it: names may be in Unicode and become what goes over the wire (punycode). What would turn into a plain ASCII
 * name or an address on the way, as full-width digits and ligatures do, is refused: it is not what it looks like.
 */
export function parseWrittenHost(text: string): Host {
  return parseHost(asciiLabels(text));
}

/** Each label that is not ASCII as punycode; everything else unchanged. */
export function asciiLabels(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: what is ASCII is the question
  const isAscii = (label: string) => /^[\x00-\x7f]*$/.test(label);
  if (isAscii(text)) return text;
  return text
    .split('.')
    .map((label) => {
      if (isAscii(label)) return label;
      const written = label.toLowerCase().normalize('NFC');
      const ascii = domainToASCII(written);
      if (!/^xn--[a-z0-9-]+$/.test(ascii) || domainToUnicode(ascii) !== written)
        throw invalid(text, 'has characters that would turn into others in a name', columnOf(text, label));
      return ascii;
    })
    .join('.');
}

/** A name or address, for people and for `Host` headers: IPv6 in brackets. */
export const hostText = (host: Host): string =>
  host.kind === 'name' ? host.name : host.family === 6 ? `[${host.address}]` : host.address;

export const targetText = (host: Host, port: number): string => `${hostText(host)}:${port}`;

/** What is wrong with a text, for those who quote it themselves. */
export interface Complaint {
  reason: string;
  column: number | undefined;
}

/** A Failure that quotes the text, bounded and with everything escaped that a terminal might act on. Its details are a `Complaint`. */
function invalid(text: string, reason: string, column?: number): Failure {
  const details: Complaint = { reason, column };
  return new Failure(
    'invalid',
    `${quoted(text)} ${reason}${column === undefined ? '' : `, column ${column}`}`,
    {
      details: { ...details },
    },
  );
}

export function quoted(text: string): string {
  const short = text.length > 80 ? `${text.slice(0, 80)}…` : text;
  return JSON.stringify(short).replace(
    /[^\x20-\x7e…]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}

/** Counted from 1. */
const columnOf = (text: string, part: string): number => text.indexOf(part) + 1;

function checkCharacters(text: string): void {
  if (text === '') throw invalid(text, 'must not be empty');
  // The longest name with its trailing dot, and a port.
  if (text.length > nameLengthMax + 7) throw invalid(text, `is longer than ${nameLengthMax} characters`);
  const at = text.search(/[^A-Za-z0-9._:[\]-]/);
  if (at !== -1) throw invalid(text, `has ${describe(text.charAt(at))}, which no host has`, at + 1);
}

function describe(character: string): string {
  switch (character) {
    case '%':
      return '"%" (an escape or a zone)';
    case '@':
      return '"@" (a user name)';
    case ' ':
      return 'a space';
    default:
      return /[\x21-\x7e]/.test(character)
        ? `"${character}"`
        : `the character U+${character.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}`;
  }
}

function parseBracketed(text: string): Host {
  const inner = /^\[([^[\]]*)\]$/.exec(text)?.[1] ?? text;
  const address = inner.includes(':') ? parseAddress(inner) : undefined;
  if (address === undefined) throw invalid(text, 'is no IPv6 address');
  return { kind: 'address', address: address.text, family: address.family };
}

/** Without colons and brackets: a name, or an IPv4 address in one of its many forms. */
function hostOfText(text: string): Host {
  const name = text.toLowerCase().replace(/\.$/, '');
  if (name.length > nameLengthMax) throw invalid(text, `is longer than ${nameLengthMax} characters`);
  const labels = name.split('.');
  for (const label of labels) {
    if (label === '') throw invalid(text, 'has an empty label');
    if (label.length > labelLengthMax)
      throw invalid(text, `has a label longer than ${labelLengthMax} characters`);
  }
  if (!endsInNumber(labels)) return { kind: 'name', name };
  const bytes = bytesOfIPv4(labels);
  if (bytes === undefined) throw invalid(text, 'ends in a number and is no IPv4 address');
  return { kind: 'address', address: addressOf(bytes).text, family: 4 };
}

/** Resolvers and URL parsers take such a name for an address, or for an error. */
export const endsInNumber = (labels: readonly string[]): boolean =>
  /^([0-9]+|0x[0-9a-f]*)$/.test(labels.at(-1) as string);

/** One to four numbers, decimal, octal or hexadecimal, the last of which fills all bytes that are left: what inet_aton takes. */
function bytesOfIPv4(labels: readonly string[]): Uint8Array | undefined {
  if (labels.length > 4) return undefined;
  const numbers = labels.map(numberOf);
  let value = numbers.pop() as number;
  if (!(value < 256 ** (4 - numbers.length))) return undefined;
  for (const [index, number] of numbers.entries()) {
    if (!(number < 256)) return undefined;
    value += number * 256 ** (3 - index);
  }
  return Uint8Array.of(value >>> 24, value >>> 16, value >>> 8, value);
}

function numberOf(text: string): number {
  if (/^0x[0-9a-f]*$/.test(text)) return Number.parseInt(text.slice(2) || '0', 16);
  if (/^0[0-7]*$/.test(text)) return Number.parseInt(text, 8);
  return /^[1-9][0-9]*$/.test(text) ? Number(text) : Number.NaN;
}
