// A name server on loopback that answers as a test says, over UDP, and counts what it is asked.
import { createSocket } from 'node:dgram';
import type { AddressInfo } from 'node:net';
import { isIPv4, SocketAddress } from 'node:net';

/** `nth` counts the questions for this name and type from 1. `silence`: no answer at all. */
export type Script = (question: {
  name: string;
  type: 'A' | 'AAAA';
  nth: number;
}) => { addresses: string[]; ttl?: number } | 'absent' | 'broken' | 'silence';

export interface DnsServer extends AsyncDisposable {
  /** As the resolver's options want it. */
  address: string;
  /** `name TYPE` of each question, in order. */
  questions: string[];
}

export async function dnsServer(script: Script): Promise<DnsServer> {
  const socket = createSocket('udp4');
  const questions: string[] = [];
  socket.on('message', (query, from) => {
    const labels: string[] = [];
    let at = 12;
    for (let length = query[at] as number; length > 0; length = query[at] as number) {
      labels.push(query.toString('latin1', at + 1, at + 1 + length));
      at += 1 + length;
    }
    const question = query.subarray(12, at + 5);
    const type = query.readUInt16BE(at + 1) === 28 ? 'AAAA' : 'A';
    const name = labels.join('.');
    const asked = `${name} ${type}`;
    questions.push(asked);
    const answer = script({ name, type, nth: questions.filter((one) => one === asked).length });
    if (answer === 'silence') return;
    const records = typeof answer === 'string' ? [] : answer.addresses.map((it) => record(it, answer));
    const head = Buffer.alloc(12);
    query.copy(head, 0, 0, 2);
    head.writeUInt16BE(0x8180 | (answer === 'absent' ? 3 : answer === 'broken' ? 2 : 0), 2);
    head.writeUInt16BE(1, 4);
    head.writeUInt16BE(records.length, 6);
    socket.send(Buffer.concat([head, question, ...records]), from.port, from.address);
  });
  await new Promise<void>((bound) => socket.bind(0, '127.0.0.1', bound));
  return {
    address: `127.0.0.1:${(socket.address() as AddressInfo).port}`,
    questions,
    [Symbol.asyncDispose]: () => new Promise<void>((closed) => socket.close(() => closed())),
  };
}

function record(address: string, { ttl = 60 }: { ttl?: number }): Buffer {
  const data = isIPv4(address) ? Buffer.from(address.split('.').map(Number)) : ipv6Bytes(address);
  const head = Buffer.alloc(12);
  head.writeUInt16BE(0xc00c, 0);
  head.writeUInt16BE(isIPv4(address) ? 1 : 28, 2);
  head.writeUInt16BE(1, 4);
  head.writeUInt32BE(ttl, 6);
  head.writeUInt16BE(data.length, 10);
  return Buffer.concat([head, data]);
}

function ipv6Bytes(address: string): Buffer {
  const [left = '', right = ''] = new SocketAddress({ address, family: 'ipv6' }).address.split('::');
  const groups = (text: string) => (text === '' ? [] : text.split(':'));
  const middle = Array<string>(8 - groups(left).length - groups(right).length).fill('0');
  const all = address.includes('::') ? [...groups(left), ...middle, ...groups(right)] : groups(left);
  return Buffer.from(all.map((group) => group.padStart(4, '0')).join(''), 'hex');
}
