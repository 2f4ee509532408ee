// The commands of a sandbox whose agent runs in this process, without walls.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { startLocalAgent } from '../../test/agents.ts';
import { SandboxExecutions } from '../sandbox/executions.ts';

export async function startExecutions() {
  const home = mkdtempSync(join(tmpdir(), 'glovebox-code-'));
  const agent = await startLocalAgent();
  const make = () =>
    new SandboxExecutions({
      folder: join(home, 'logs'),
      guest: () => agent.guest,
      // The Node.js of this process rather than the machine's own.
      defaults: () => ({
        env: { PATH: `${dirname(process.execPath)}:${process.env.PATH}` },
        cwd: home,
        entrypoint: [],
      }),
      save: () => {},
      forget: () => {},
      now: () => new Date(),
      beforeStart: async () => {},
      onRunning: () => {},
      onTrouble: (error) => {
        throw error;
      },
    });
  return {
    home,
    guest: agent.guest,
    executions: make(),
    /** As a daemon that has just started finds them. */
    adopted: async () => {
      const executions = make();
      await executions.adopt([], agent.guest, AbortSignal.timeout(60_000));
      return executions;
    },
    async [Symbol.asyncDispose]() {
      await agent[Symbol.asyncDispose]();
      rmSync(home, { recursive: true, force: true });
    },
  };
}
