// The first frame of a connection of its own: bytes alone follow it.
import { channelProtocol, frameType, headerBytes, writeHeader } from '../channel/frame.ts';
import { encodeJson } from '../channel/handshake.ts';

export function bulkHello(token: string, id: string): Uint8Array {
  const payload = encodeJson({ v: [channelProtocol.min, channelProtocol.max], token, bulk: id });
  const bytes = new Uint8Array(headerBytes + payload.length);
  const length = payload.length;
  writeHeader(bytes, 0, { type: frameType.hello, flags: 0, lane: 0, stream: 0, length, offset: 0 });
  bytes.set(payload, headerBytes);
  return bytes;
}
