// Which messages of the SSH agent protocol (draft-ietf-sshm-ssh-agent) pass between a guest and a user's agent: what lists keys, and what signs.
// Nothing that adds, removes or locks, and no extensions.
import { PieceReader } from '../../contract/key-socket.ts';

export const agentMessageBytesMax = 256 * 1024;

const requests = { listKeys: 11, sign: 13 } as const;
const answers = { failure: 5, keys: 12, signature: 14 } as const;

export const failureAnswer = Buffer.from([0, 0, 0, 1, answers.failure]);

/** Cuts a stream into messages, with their lengths. Throws RangeError for what is none. */
export class AgentMessages {
  readonly #pieces = new PieceReader(4, (head) => {
    const length = head.readUInt32BE(0);
    if (length === 0 || length > agentMessageBytesMax)
      throw new RangeError(`${length} bytes are no message of an SSH agent`);
    return length;
  });

  push(bytes: Uint8Array): Buffer[] {
    return this.#pieces.push(bytes);
  }
}

export function mayBeAsked(message: Buffer): boolean {
  const type = message[4];
  return type === requests.sign || (type === requests.listKeys && message.length === 5);
}

/** Whether this answers that request. */
export function mayBeAnswered(request: Buffer, answer: Buffer): boolean {
  const type = answer[4];
  return (
    type === answers.failure || type === (request[4] === requests.sign ? answers.signature : answers.keys)
  );
}
