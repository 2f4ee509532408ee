// The agent as a process on Node.js, from the sources: for machines without walls on platforms that Bun has no binary for. No terminals, no other users.
import { readFileSync } from 'node:fs';
import { systemClock } from '../channel/clock.ts';
import { Dialer, localBackOff } from '../channel/dialer.ts';
import type { AgentBoot } from '../contract/guest.ts';
import { guestProtocol } from '../contract/guest-wire.ts';
import { Call } from './call.ts';
import { joinGroups } from './join-groups.ts';
import { NodePlatform } from './platform/node.ts';
import { Receipts } from './receipts.ts';
import { Agent } from './serve.ts';

const [, , runFolder = ''] = process.argv;
const socketPath = `${runFolder}/agent.sock`;
await main(JSON.parse(readFileSync(`${runFolder}/boot.json`, 'utf8')));

async function main(boot: AgentBoot): Promise<void> {
  if (boot.protocol !== guestProtocol) {
    console.error(`glovebox agent: speaks guest protocol ${guestProtocol}, the daemon ${boot.protocol}`);
    process.exit(78);
  }
  if (boot.host?.groups) joinGroups(boot.host.groups);
  const receipts = boot.host?.receipts === undefined ? undefined : Receipts.open(boot.host.receipts);
  const platform = new NodePlatform();
  const agent = new Agent({ platform, boot, socketPath, ...(receipts && { receipts }) });
  const dialer = new Dialer({
    connect: () => platform.connectUnix(socketPath),
    token: boot.token,
    clock: systemClock({ keepsProcessAlive: true }),
    backOff: localBackOff,
    caps: ['limits'],
    onChannel: (channel) => {
      channel.onStream = (stream) => new Call(stream, (call, request) => agent.handle(call, request));
    },
    onHandlerError: (error) => console.error('glovebox agent:', error),
  });
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
    process.on(signal, () => {
      void agent.stop().then(() => dialer.stop({ code: 'stopped', message: `it got ${signal}` }));
    });
  }
  process.on('SIGUSR2', () => {
    void agent.idle().then(() => dialer.stop({ code: 'stopped', message: 'it made room for a newer agent' }));
  });
  const reason = await dialer.ended;
  await agent.stop();
  process.exit(reason.code === 'stopped' ? 0 : 75);
}
