// glovebox doctor: what works here, and what to do about the rest.
import { accessSync, constants, existsSync } from 'node:fs';
import { dirname } from 'node:path';
import type { SystemInfo } from '../../../sdk/src/index.ts';
import { Failure } from '../../lib/failure.ts';
import { connect, homeFolder, serverIsNamed } from '../connect.ts';
import { CliError } from '../exit-codes.ts';
import { clean, paint, print, printJson } from '../output.ts';

interface Check {
  name: string;
  status: 'pass' | 'warn' | 'fail' | 'skip';
  message: string;
  hint?: string;
}

export async function doctor(options: { json?: boolean; output?: 'table' | 'json' }): Promise<void> {
  const server = await serverChecks();
  const ours = serverIsNamed() ? [] : [homeCheck(homeFolder()), ...(await databaseChecks())];
  const checks = [nodeCheck(), ...ours, ...server.checks];
  const usable = checks.some((it) => it.name.startsWith('runtime ') && it.status !== 'fail');
  if (options.json || options.output === 'json') {
    const count = (status: Check['status']) => checks.filter((it) => it.status === status).length;
    await printJson({
      version: '1.0',
      checks: checks.map((it) => ({ ...it, detail: '', hint: it.hint ?? '' })),
      summary: { pass: count('pass'), warn: count('warn'), fail: count('fail'), skip: count('skip') },
      ...{ usable, runtimes: server.runtimes },
    });
  } else await print(checks.map(lineOf).join('\n'));
  if (usable) return;
  if (checks.some((it) => it.name === 'daemon' && it.status === 'fail'))
    throw new CliError('the daemon cannot be asked', { hint: 'Mend what is said of it above.' });
  throw new CliError('no runtime is usable here', { hint: 'Mend one of the runtimes above.' });
}

function lineOf({ status, name, message, hint }: Check): string {
  const marks = { pass: 'ok  ', warn: 'warn', fail: 'FAIL', skip: 'skip' };
  const colours = { pass: 'green', warn: 'yellow', fail: 'red', skip: 'dim' } as const;
  const mark = paint(colours[status], marks[status]);
  return `${mark}  ${name}: ${clean(message)}${hint ? `\n      ${paint('dim', clean(hint))}` : ''}`;
}

function nodeCheck(): Check {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
  const enough = major > 24 || (major === 24 && minor >= 11);
  return {
    ...{ name: 'node', status: enough ? 'pass' : 'fail', message: process.version },
    ...(enough ? {} : { hint: 'Run `npm ci` in the folder of glovebox: it brings the right one.' }),
  };
}

function homeCheck(home: string): Check {
  let nearest = home;
  while (!existsSync(nearest)) nearest = dirname(nearest);
  try {
    accessSync(nearest, constants.W_OK | constants.X_OK);
    return { name: 'home', status: 'pass', message: home };
  } catch {
    return {
      name: 'home',
      status: 'fail',
      message: `${home} cannot be written`,
      hint: 'Set GLOVEBOX_HOME to a folder that you may write.',
    };
  }
}

/** A daemon that works already may not have noticed yet. */
async function databaseChecks(): Promise<Check[]> {
  const { checkDatabase } = await import('../../daemon/backup.ts');
  try {
    const path = await checkDatabase({ env: process.env });
    return path === undefined ? [] : [{ name: 'database', status: 'pass', message: path }];
  } catch (error) {
    // What is wrong with the configuration the daemon says.
    if (!(error instanceof Failure && error.code === 'unavailable')) return [];
    const { message, hint } = error;
    return [{ name: 'database', status: 'fail', message, ...(hint === undefined ? {} : { hint }) }];
  }
}

async function serverChecks(): Promise<{ checks: Check[]; runtimes: SystemInfo['runtimes'] }> {
  let system: SystemInfo;
  let url: string;
  try {
    const client = await connect();
    system = await client.system();
    url = await client.url();
  } catch (error) {
    const { message, hint } = error as CliError;
    const failed: Check = { name: 'daemon', status: 'fail', message, ...(hint ? { hint } : {}) };
    return { checks: [failed], runtimes: [] };
  }
  const daemon: Check = {
    name: 'daemon',
    status: 'pass',
    message: `${system.version} at ${url}, process ${system.pid}, ${system.sandboxes} sandboxes`,
  };
  const warnings = system.warnings.map(
    (message): Check => ({ name: 'configuration', status: 'warn', message }),
  );
  return {
    checks: [daemon, ...warnings, ...system.runtimes.flatMap(runtimeChecks)],
    runtimes: system.runtimes,
  };
}

function runtimeChecks(runtime: SystemInfo['runtimes'][number]): Check[] {
  const { isolation, pause, keep, limits, users, network } = runtime.capabilities;
  const name = `runtime ${runtime.name}`;
  const kept = Object.entries(limits).map(([limit, means]) => `${limit} (${means})`);
  const can = [
    `walls: ${isolation}`,
    `limits: ${kept.join(', ') || 'none'}`,
    `users: ${users}`,
    `network: ${network}`,
    ...(pause ? ['pause'] : []),
    ...(keep ? ['stop and start'] : []),
  ];
  const summary: Check = runtime.usable
    ? {
        ...{ name, status: 'pass' },
        message: `${runtime.version ?? 'usable'}${runtime.default ? ', the default' : ''}; ${can.join('; ')}`,
      }
    : { name, status: 'fail', message: 'not usable here' };
  return [
    summary,
    ...runtime.problems.map((it): Check => {
      return { name: runtime.name, status: it.fatal ? 'fail' : 'warn', message: it.message, hint: it.hint };
    }),
  ];
}
