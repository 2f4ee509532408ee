// A gRPC service as its protocol has it over HTTP/2, for the lab: `/lab.Echo/Unary` gives back the one message, `/lab.Echo/Stream` each message as it
// comes. Messages are bytes; there is no schema.
import type { LabRequest, LabResponse } from './lab.ts';

/** Answers the request if it is a call of the service. */
export function answerGrpc(request: LabRequest, response: LabResponse): boolean {
  if (!request.url?.startsWith('/lab.Echo/')) return false;
  response.setHeader('content-type', 'application/grpc');
  void echo(request, response);
  return true;
}

async function echo(request: LabRequest, response: LabResponse): Promise<void> {
  let waiting = Buffer.alloc(0);
  try {
    for await (const chunk of request as AsyncIterable<Buffer>) {
      waiting = Buffer.concat([waiting, chunk]);
      for (let message = first(waiting); message !== undefined; message = first(waiting)) {
        waiting = waiting.subarray(message.length);
        response.write(message);
      }
    }
  } catch {
    // Broken off: nobody waits for the status.
  }
  if (response.destroyed) return;
  response.addTrailers({ 'grpc-status': '0' });
  response.end();
}

/** The first message with its prefix: a flag and four bytes of length. */
function first(bytes: Buffer): Buffer | undefined {
  if (bytes.length < 5) return undefined;
  const end = 5 + bytes.readUInt32BE(1);
  return bytes.length < end ? undefined : bytes.subarray(0, end);
}
