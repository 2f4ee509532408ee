// Starts a Docker engine for the tests when none answers. Prints what it did; the engine stays, as a service would, unless `--stop` ends it.
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, openSync, readFileSync, rmSync } from 'node:fs';
import { request } from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';

const socketPath = '/var/run/docker.sock';
const pidFile = '/run/glovebox-test-dockerd.pid';
const startDeadlineMs = 60_000;

function answers(): Promise<boolean> {
  return new Promise((resolve) => {
    const ping = request({ socketPath, path: '/_ping', timeout: 2_000 }, (reply) => {
      reply.resume();
      resolve(reply.statusCode === 200);
    });
    ping.on('error', () => resolve(false));
    ping.on('timeout', () => ping.destroy());
    ping.end();
  });
}

async function start(): Promise<void> {
  if (await answers()) return;
  console.error('setup: starting dockerd');
  mkdirSync('/var/log', { recursive: true });
  const log = openSync('/var/log/glovebox-test-dockerd.log', 'a');
  const engine = spawn('dockerd', ['--pidfile', pidFile], {
    detached: true,
    stdio: ['ignore', log, log],
    env: { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` },
  });
  engine.unref();
  const failed = new Promise<string>((resolve) => {
    engine.on('error', (error) => resolve(error.message));
    engine.on('exit', (code) => resolve(`dockerd exited with ${code}`));
  });
  const deadline = performance.now() + startDeadlineMs;
  while (performance.now() < deadline) {
    if (await answers()) return;
    const trouble = await Promise.race([failed, delay(200)]);
    if (trouble !== undefined) break;
  }
  console.error('setup: dockerd did not start; see /var/log/glovebox-test-dockerd.log');
  process.exit(69);
}

/** Ends only an engine that `start` began. */
async function stop(): Promise<void> {
  if (!existsSync(pidFile)) return;
  const pid = Number(readFileSync(pidFile, 'utf8'));
  try {
    process.kill(pid, 'SIGTERM');
    const deadline = performance.now() + startDeadlineMs;
    while (existsSync(`/proc/${pid}`) && performance.now() < deadline) await delay(100);
  } catch {
    // It had ended already.
  }
  rmSync(pidFile, { force: true });
}

await (process.argv.includes('--stop') ? stop() : start());
