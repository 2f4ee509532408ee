// The agent as a process in a guest: reads what the daemon has left in the run folder, dials its socket there, and serves until told to stop.
// Runs as any user, as the first process or not, with nothing of the image but the kernel it runs on.
// Until the first command only what a connection and the way out need is loaded: a pool of idle sandboxes consists of this.
import { systemClock } from '../channel/clock.ts';
import { Dialer, localBackOff } from '../channel/dialer.ts';
import type { AgentBoot } from '../contract/guest.ts';
import { guestFolder, guestProtocol } from '../contract/guest-wire.ts';
import { Call } from './call.ts';
import { Egress } from './egress.ts';
import { joinGroups } from './join-groups.ts';
import { connect } from './platform/bun-connection.ts';
import type { Agent } from './serve.ts';
import { Shrinking } from './shrinking.ts';

const runFolder = process.argv[2] ?? `${guestFolder}/run`;
const socketPath = `${runFolder}/agent.sock`;

void start();

async function start(): Promise<void> {
  const boot = await readBoot(`${runFolder}/boot.json`);
  const parts: { agent?: Promise<Agent> } = {};
  if (boot.host?.groups) joinGroups(boot.host.groups);
  const shrinking = new Shrinking();
  // Without walls the network is the host's, and serve.ts says so.
  const egress = boot.host ? undefined : new Egress({ boot, socketPath, shrinking });
  const dialer = new Dialer({
    connect: (signal) => connect({ unix: socketPath }, signal, { gathers: true }),
    token: boot.token,
    clock: systemClock({ keepsProcessAlive: true }),
    backOff: localBackOff,
    caps: ['pty', 'direct', 'users', 'limits'],
    onChannel: (channel) => {
      // Starting has left memory behind that an idle agent does not need.
      shrinking.soon();
      channel.onStream = (stream) =>
        new Call(stream, (call, request) => {
          // It would take away what is got ready.
          if (request.op === 'rehearse') shrinking.notNow();
          if (request.op === 'egress' && egress) return egress.configure(call, request);
          parts.agent ??= import('./work.js').then(({ begin }) => begin({ boot, socketPath }));
          void parts.agent.then(
            (agent) => agent.handle(call, request),
            (thrown) => call.fail(thrown, 'load the agent'),
          );
        });
    },
    onHandlerError: (error) => console.error('glovebox agent:', error),
  });
  // Nothing that was started here outlives the agent.
  const stop = async () => (await parts.agent)?.stop();
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
    process.on(signal, () => {
      void stop().then(() => dialer.stop({ code: 'stopped', message: `the sandbox got ${signal}` }));
    });
  }
  // The host runtime has a newer agent, which takes over once nobody needs this one.
  if (boot.host)
    process.on('SIGUSR2', () => {
      void (async () => {
        await (await parts.agent)?.idle();
        dialer.stop({ code: 'stopped', message: 'it made room for a newer agent' });
      })();
    });
  const reason = await dialer.ended;
  await stop();
  process.exit(reason.code === 'stopped' ? 0 : 75);
}

async function readBoot(path: string): Promise<AgentBoot> {
  let boot: AgentBoot;
  try {
    // As a module: reading it as a file would cost a thread and a tenth of the memory of the whole.
    boot = (await import(path, { with: { type: 'json' } })).default;
  } catch (thrown) {
    return refuse(`cannot read ${path}: ${(thrown as Error).message}`);
  }
  if (boot.protocol === guestProtocol) return boot;
  return refuse(
    `speaks guest protocol ${guestProtocol}, the daemon ${boot.protocol}; install both from one release`,
  );
}

function refuse(why: string): never {
  console.error(`glovebox agent: ${why}`);
  process.exit(78);
}
