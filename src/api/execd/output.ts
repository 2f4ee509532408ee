// The output of a command that is held at this moment, from an offset on, as one stream of bytes.
import type { Execution } from '../../sandbox/sandbox.ts';

/** `end` is the offset behind the last byte: where the next call should begin. With `wholeCharacters`, a running command's last character is left for later when it is cut. */
export async function heldOutput(
  execution: Execution,
  from: number,
  options: { wholeCharacters: boolean },
  signal: AbortSignal,
): Promise<{ end: number; bytes: AsyncIterable<Uint8Array> }> {
  const { info } = execution;
  let { end } = info;
  if (options.wholeCharacters && info.exit === undefined && from < end)
    end -= await cutBytes(execution, end, signal);
  return { end: Math.max(end, Math.min(from, info.end)), bytes: between(execution, from, end, signal) };
}

async function* between(execution: Execution, from: number, end: number, signal: AbortSignal) {
  if (from >= end) return;
  for await (const piece of execution.read(from, { follow: false }, signal)) {
    if (piece.type === 'gap') continue;
    if (piece.offset >= end) return;
    yield piece.bytes.subarray(0, end - piece.offset);
  }
}

/** How many bytes before `end` belong to a UTF-8 character that is not complete there. */
async function cutBytes(execution: Execution, end: number, signal: AbortSignal): Promise<number> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of between(execution, Math.max(execution.info.start, end - 3), end, signal))
    chunks.push(chunk);
  const last = Buffer.concat(chunks);
  for (let back = 1; back <= last.length; back += 1) {
    const byte = last[last.length - back] ?? 0;
    if (byte < 0x80) return 0;
    if (byte < 0xc0) continue;
    const length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : 2;
    return back < length ? back : 0;
  }
  return 0;
}
