// The agent as a process in a guest: reads what the daemon has left in the run folder, dials its socket there, and serves until told to stop.
// Runs as any user, as the first process or not, with nothing of the image but the kernel it runs on.
import { readFileSync } from 'node:fs';
import { systemClock } from '../channel/clock.ts';
import { Dialer, localBackOff } from '../channel/dialer.ts';
import type { AgentBoot } from '../contract/guest.ts';
import { guestFolder, guestProtocol } from '../contract/guest-wire.ts';
import { BunPlatform } from './platform/bun.ts';
import { Agent } from './serve.ts';

const runFolder = process.argv[2] ?? `${guestFolder}/run`;
const boot = readBoot(`${runFolder}/boot.json`);
const socketPath = `${runFolder}/agent.sock`;
const platform = new BunPlatform();
platform.reapOrphans();
const agent = new Agent({ platform, boot, socketPath });
const dialer = new Dialer({
  connect: (signal) => platform.connectUnix(socketPath, signal),
  token: boot.token,
  clock: systemClock({ keepsProcessAlive: true }),
  backOff: localBackOff,
  caps: agent.caps,
  onChannel: (channel) => agent.serve(channel),
  onHandlerError: (error) => console.error('glovebox agent:', error),
});

for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
  process.on(signal, () => {
    void agent.stop().then(() => {
      dialer.stop({ code: 'stopped', message: `the sandbox got ${signal}` });
    });
  });
}

// The daemon has let go for good, or a signal came. Nothing that was started here outlives the agent.
const reason = await dialer.ended;
await agent.stop();
process.exit(reason.code === 'stopped' ? 0 : 75);

function readBoot(path: string): AgentBoot {
  let boot: AgentBoot;
  try {
    boot = JSON.parse(readFileSync(path, 'utf8'));
  } catch (thrown) {
    console.error(`glovebox agent: cannot read ${path}: ${(thrown as Error).message}`);
    process.exit(78);
  }
  if (boot.protocol !== guestProtocol) {
    console.error(
      `glovebox agent: speaks guest protocol ${guestProtocol}, the daemon ${boot.protocol}; install both from one release`,
    );
    process.exit(78);
  }
  return boot;
}
