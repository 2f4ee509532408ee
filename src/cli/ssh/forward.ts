// Forwarded connections (`ssh -L`, `-D`, `-W`): to the sandbox's own loopback, and nowhere else. What a sandbox may reach is its policy's to say.
import type { PortConnection, Sandbox } from '../../../sdk/src/index.ts';
import { type Channel, type ChannelUser, OpenRefused, openFailure } from './connection.ts';
import type { WireReader } from './wire-data.ts';

/** `localhost`, and addresses of the loopback as people and programs write them. */
export function isGuestLoopback(host: string): boolean {
  const name = host
    .toLowerCase()
    .replace(/^\[(.*)\]$/, '$1')
    .replace(/\.$/, '');
  if (name === 'localhost' || name === '::1' || name === '0:0:0:0:0:0:0:1') return true;
  const parts = /^127\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$/.exec(name);
  return parts?.slice(1).every((part) => Number(part) <= 255 && String(Number(part)) === part) ?? false;
}

export async function forward(sandbox: Sandbox, details: WireReader, channel: Channel): Promise<ChannelUser> {
  const host = details.text();
  const port = details.uint32();
  if (!isGuestLoopback(host) || port < 1 || port > 65_535)
    throw new OpenRefused(
      openFailure.prohibited,
      'connections are forwarded to the loopback of the sandbox only, such as localhost:8080',
    );
  const connection = await sandbox.ports.connect(port);
  return {
    opened: () => void join(connection, channel),
    closed: () => connection.close(),
  };
}

async function join(connection: PortConnection, channel: Channel): Promise<void> {
  const input = async () => {
    for await (const bytes of channel.input()) await connection.write(bytes);
    if (!channel.over) await connection.end();
  };
  const output = async () => {
    for await (const bytes of connection) await channel.write(bytes);
    await channel.end();
  };
  // When one breaks off, the other has nobody to speak to any more.
  await Promise.all([input(), output()]).catch(() => {});
  connection.close();
  await channel.close();
}
