// glovebox bell serve: the bell alone, in this process, for sandboxes of others.
import { isIP } from 'node:net';
import { openLog } from '../../lib/log.ts';
import { homeFolder } from '../connect.ts';
import { exitCodes, usageError } from '../exit-codes.ts';
import { jsonText, print, say } from '../output.ts';
import { failedToStart, portOf, stopSignal } from './serve.ts';

export interface ServeBellOptions {
  port?: string;
  host?: string[];
  soundFile?: string;
  config?: string;
  insecure?: boolean;
  json?: boolean;
}

/** Resolves when it has been told to stop, and has stopped. */
export async function serveBell(words: readonly string[], options: ServeBellOptions): Promise<void> {
  if (words[0] !== undefined)
    throw usageError(`bell: there is no verb '${words[0]}'`, 'See `glovebox bell --help`.');
  const { port, host, soundFile, config, insecure, json } = options;
  for (const address of host ?? []) {
    if (isIP(address) === 0)
      throw usageError(
        `--host: '${address}' is no address`,
        'Give one of this machine, e.g. 127.0.0.1 or 172.17.0.1.',
      );
  }
  const { closeInheritedDescriptors } = await import('../../daemon/descriptors.ts');
  closeInheritedDescriptors();
  const stopping = stopSignal();
  const { runBellAlone } = await import('../../daemon/bell.ts');
  const running = await runBellAlone({
    ...{ home: homeFolder(), env: process.env, cwd: process.cwd(), log: openLog({ level: 'info' }) },
    ...(config === undefined ? {} : { file: config }),
    ...(port === undefined ? {} : { port: portOf(port) }),
    ...(host === undefined ? {} : { listen: host }),
    ...(soundFile === undefined ? {} : { soundFile }),
    ...(insecure === undefined ? {} : { insecure }),
  }).catch((error: unknown) => {
    throw failedToStart(error, {
      ...{ invalid: exitCodes.config, 'not-found': exitCodes.config, conflict: exitCodes.daemonRuns },
    });
  });
  const { urls, warnings } = running;
  for (const warning of warnings) say(`glovebox: ${warning}`);
  if (json) await print(jsonText({ urls, warnings }));
  else {
    await print(urls.map((url) => `glovebox bell listens on ${url}`).join('\n'));
    if (!insecure) say('Callers need a token: `glovebox bell token add NAME` makes one.');
  }
  await stopping;
  await running.stop();
}
