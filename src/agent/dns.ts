// Questions for names as the guest's resolvers send them, and answers to them: RFC 1035 with the OPT record of RFC 6891, one question a message.
// What comes in is hostile: every length is checked, and nothing is kept.

export const recordType = { a: 1, ptr: 12, aaaa: 28, any: 255 } as const;
export const responseCode = {
  ok: 0,
  malformed: 1,
  failed: 2,
  noSuchName: 3,
  notImplemented: 4,
  refused: 5,
  badVersion: 16,
} as const;

export interface Question {
  kind: 'question';
  id: number;
  /** In lower case, without the last dot; the root is the empty string. Undefined when a label is no part of a host's name. */
  name: string | undefined;
  type: number;
  /** Whether it asks about the Internet. */
  internet: boolean;
  /** The most bytes that the asker takes in one datagram. */
  sizeMax: number;
  /** Of the header: recursion desired. */
  recursion: boolean;
  /** Whether it brought an OPT record, so that the answer needs one. */
  extended: boolean;
  /** Name, type and class as they came, for the answer. */
  echo: Uint8Array;
}

/** A message that gets an error, as far as its id could be read. */
export interface Malformed {
  kind: 'malformed';
  id: number;
  code: number;
}

export interface Answer {
  code: number;
  record?: { type: number; data: Uint8Array };
}

const headerBytes = 12;
const nameBytesMax = 255;
const labelBytesMax = 63;
const classInternet = 1;
const typeOpt = 41;
/** Further records of a question: its OPT, perhaps a signature. */
const additionalMax = 8;
const plainSizeMax = 512;
/** What we tell and keep ourselves: fits through every network. */
const ownSizeMax = 1_232;
/** Names may change their meaning with the policy, so nobody keeps them for long. */
const ttlSeconds = 5;
const flagResponse = 0x8000;
const flagTruncated = 0x0200;
const flagRecursion = 0x0100;
const flagRecursionAvailable = 0x0080;
/** A pointer to the name of the question. */
const pointerToQuestion = 0xc000 | headerBytes;

/** Undefined for what deserves no answer at all: too short to have an id, or itself an answer. */
export function parseQuestion(message: Uint8Array): Question | Malformed | undefined {
  if (message.length < headerBytes) return undefined;
  const at = new DataView(message.buffer, message.byteOffset, message.length);
  const id = at.getUint16(0);
  const flags = at.getUint16(2);
  if ((flags & flagResponse) !== 0) return undefined;
  const malformed: Malformed = { kind: 'malformed', id, code: responseCode.malformed };
  if (((flags >>> 11) & 0xf) !== 0) return { ...malformed, code: responseCode.notImplemented };
  const additional = at.getUint16(10);
  if (at.getUint16(4) !== 1 || at.getUint16(6) !== 0 || at.getUint16(8) !== 0 || additional > additionalMax)
    return malformed;
  const name = readName(message, headerBytes);
  if (name === undefined || name.end + 4 > message.length) return malformed;
  const end = name.end + 4;
  const opt = readOpt(message, at, end, additional);
  if (opt === undefined) return malformed;
  if (opt.version > 0) return { ...malformed, code: responseCode.badVersion };
  return {
    kind: 'question',
    id,
    name: name.text,
    type: at.getUint16(name.end),
    internet: at.getUint16(name.end + 2) === classInternet,
    sizeMax: Math.max(plainSizeMax, Math.min(opt.size, ownSizeMax)),
    recursion: (flags & flagRecursion) !== 0,
    extended: opt.present,
    echo: message.slice(headerBytes, end),
  };
}

/** The message for a question; cut to its first part, and marked so, when it is longer than `sizeMax`. */
export function encodeAnswer(
  question: Question,
  { code, record }: Answer,
  sizeMax = question.sizeMax,
): Uint8Array {
  const recordBytes = record === undefined ? 0 : 12 + record.data.length;
  const optBytes = question.extended ? 11 : 0;
  const whole = headerBytes + question.echo.length + recordBytes + optBytes;
  const cut = whole > sizeMax;
  const answers = record === undefined || cut ? 0 : 1;
  const message = new Uint8Array(cut ? whole - recordBytes : whole);
  const at = new DataView(message.buffer);
  const flags =
    flagResponse |
    flagRecursionAvailable |
    (question.recursion ? flagRecursion : 0) |
    (cut ? flagTruncated : 0) |
    (code & 0xf);
  writeHeader(at, { id: question.id, flags, questions: 1, answers, additional: question.extended ? 1 : 0 });
  message.set(question.echo, headerBytes);
  let end = headerBytes + question.echo.length;
  if (record !== undefined && !cut) {
    at.setUint16(end, pointerToQuestion);
    at.setUint16(end + 2, record.type);
    at.setUint16(end + 4, classInternet);
    at.setUint32(end + 6, ttlSeconds);
    at.setUint16(end + 10, record.data.length);
    message.set(record.data, end + 12);
    end += recordBytes;
  }
  if (question.extended) writeOpt(at, end, code);
  return message;
}

export function encodeMalformed({ id, code }: Malformed): Uint8Array {
  // A code beyond four bits needs an OPT record for the rest of it.
  const extended = code > 0xf;
  const message = new Uint8Array(headerBytes + (extended ? 11 : 0));
  const at = new DataView(message.buffer);
  const flags = flagResponse | flagRecursionAvailable | (code & 0xf);
  writeHeader(at, { id, flags, questions: 0, answers: 0, additional: extended ? 1 : 0 });
  if (extended) writeOpt(at, headerBytes, code);
  return message;
}

/** A name as data of a record. Its labels are of our own making or came through `parseQuestion`. */
export function encodeName(name: string): Uint8Array {
  const labels = name.split('.').map((label) => Buffer.from(label, 'latin1'));
  return Buffer.concat([...labels.flatMap((label) => [Buffer.of(label.length), label]), Buffer.of(0)]);
}

function writeHeader(
  at: DataView,
  counts: { id: number; flags: number; questions: number; answers: number; additional: number },
): void {
  at.setUint16(0, counts.id);
  at.setUint16(2, counts.flags);
  at.setUint16(4, counts.questions);
  at.setUint16(6, counts.answers);
  at.setUint16(10, counts.additional);
}

function writeOpt(at: DataView, from: number, code: number): void {
  at.setUint16(from + 1, typeOpt);
  at.setUint16(from + 3, ownSizeMax);
  at.setUint8(from + 5, code >>> 4);
}

/** Reads a name without pointers, as the name of a question has none. Undefined when it breaks the rules of the wire. */
function readName(message: Uint8Array, start: number): { text: string | undefined; end: number } | undefined {
  const labels: string[] = [];
  let hostLike = true;
  for (let at = start; ; ) {
    const length = message[at];
    if (length === undefined || length > labelBytesMax || at - start + length + 1 > nameBytesMax)
      return undefined;
    if (length === 0) return { text: hostLike ? labels.join('.') : undefined, end: at + 1 };
    if (at + 1 + length > message.length) return undefined;
    const label = Buffer.from(message.subarray(at + 1, at + 1 + length)).toString('latin1');
    hostLike &&= /^[a-z0-9_-]+$/i.test(label);
    labels.push(label.toLowerCase());
    at += 1 + length;
  }
}

/** Finds the OPT record among those behind the question. Undefined when they are not well formed. */
function readOpt(
  message: Uint8Array,
  at: DataView,
  start: number,
  count: number,
): { present: boolean; size: number; version: number } | undefined {
  let found = { present: false, size: 0, version: 0 };
  let from = start;
  for (let left = count; left > 0; left--) {
    const name = readName(message, from);
    if (name === undefined || name.end + 10 > message.length) return undefined;
    const type = at.getUint16(name.end);
    if (type === typeOpt) {
      if (found.present || name.text !== '') return undefined;
      found = { present: true, size: at.getUint16(name.end + 2), version: at.getUint8(name.end + 5) };
    }
    from = name.end + 10 + at.getUint16(name.end + 8);
    if (from > message.length) return undefined;
  }
  return found;
}
