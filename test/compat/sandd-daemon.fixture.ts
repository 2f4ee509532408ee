// A stand-in for SandD's daemon, written from its protocol alone, with its faults: `node sandd-daemon.fixture.ts URL ID [option…]`.
//   one command at a time, and nothing else is read meanwhile · uploads are taken and not written · a command that runs out of time goes on · text is lossy
//   options: `uploads` writes them · `part` sends half of a download · `torn` leaves a hole in it · `mute` never answers commands · `quiet` sends no heartbeats
//   · `deaf` ignores the acknowledgement of heartbeats · `label:k=v` · `once` does not come back
// It prints a line of JSON for each thing that a test waits for.
import { type ChildProcess, spawn } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';

const [url = '', id = '', ...options] = process.argv.slice(2);
const has = (option: string) => options.includes(option);
const chunk = 64 * 1024;
const told = (event: string, fields: object = {}): void => {
  process.stdout.write(`${JSON.stringify({ event, ...fields })}\n`);
};

interface Frame {
  type: string;
  request_id: string;
  session_id: string;
  command: string;
  timeout_secs: number;
  env: Record<string, string>;
  cwd: string | null;
  path: string;
  data: string;
  offset: number;
  rows: number;
  cols: number;
  term: string;
  success: boolean;
  message: string;
  reason: string;
}

function connect(): void {
  const socket = new WebSocket(url, ['sandd.v1']);
  const say = (message: object) =>
    socket.readyState === WebSocket.OPEN && socket.send(JSON.stringify(message));
  const sessions = new Map<string, ChildProcess>();
  const uploads = new Map<string, { path: string; pieces: Buffer[] }>();
  let beat: ReturnType<typeof setInterval> | undefined;

  async function handle(it: Frame): Promise<void> {
    switch (it.type) {
      case 'register_ack':
        return told('registered', { success: it.success, message: it.message });
      case 'heartbeat_ack':
        return told('acknowledged', { success: it.success });
      case 'error':
        return told('error', { message: it.message });
      case 'execute_command':
        told('command', { command: it.command, timeout: it.timeout_secs });
        if (has('mute')) return;
        return await execute(it);
      case 'new_session': {
        const shell = spawn('script', ['-qfc', '/bin/bash --norc', '/dev/null'], {
          env: { ...process.env, TERM: it.term, PS1: '' },
        });
        sessions.set(it.session_id, shell);
        for (const stream of [shell.stdout, shell.stderr])
          stream.on('data', (data: Buffer) =>
            say({ type: 'session_output', session_id: it.session_id, data: data.toString('base64') }),
          );
        shell.on('exit', () => say({ type: 'session_exit', session_id: it.session_id, exit_code: 0 }));
        return void say({ type: 'session_started', session_id: it.session_id, success: true, error: null });
      }
      case 'session_input':
        sessions.get(it.session_id)?.stdin?.write(Buffer.from(it.data, 'base64'));
        return;
      case 'session_resize':
        return told('resized', { rows: it.rows, cols: it.cols });
      case 'session_close':
        sessions.get(it.session_id)?.kill('SIGKILL');
        return told('session closed');
      case 'file_upload_start':
        uploads.set(it.request_id, { path: it.path, pieces: [] });
        return;
      case 'file_upload_chunk': {
        const upload = uploads.get(it.request_id);
        upload?.pieces.push(Buffer.from(it.data, 'base64'));
        if (has('uploads') && upload) await writeFile(upload.path, Buffer.concat(upload.pieces));
        return;
      }
      case 'file_download_start':
        return await download(it);
      default:
        return told('not understood', { type: it.type });
    }
  }

  async function execute({ request_id, command, timeout_secs, env, cwd }: Frame): Promise<void> {
    const begun = Date.now();
    const child = spawn('sh', ['-c', command], {
      ...{ env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'pipe'] },
      ...(cwd === null ? {} : { cwd }),
    });
    const out: Buffer[] = [];
    const err: Buffer[] = [];
    child.stdout?.on('data', (data: Buffer) => out.push(data));
    child.stderr?.on('data', (data: Buffer) => err.push(data));
    const code = await new Promise<number | string>((resolve) => {
      child.on('error', (error) => resolve(`Failed to spawn command: ${error.message}`));
      child.on('close', (status) => resolve(status ?? -1));
      setTimeout(
        () => resolve(`Command timed out after ${timeout_secs} seconds`),
        timeout_secs * 1000,
      ).unref();
    });
    if (typeof code === 'string') return void say({ type: 'command_error', request_id, error: code });
    say({
      ...{ type: 'command_output', request_id, exit_code: code, duration_ms: Date.now() - begun },
      stdout: Buffer.concat(out).toString('utf8'),
      stderr: Buffer.concat(err).toString('utf8'),
    });
  }

  async function download({ request_id, path }: Frame): Promise<void> {
    told('download', { path });
    let data: Buffer;
    try {
      data = await readFile(path);
    } catch (error) {
      return void say({ type: 'file_download_error', request_id, error: (error as Error).message });
    }
    for (let at = 0; at < data.length; at += chunk) {
      if (has('part') && at > data.length / 2) return;
      if (has('torn') && at === chunk) continue;
      const piece = data.subarray(at, at + chunk).toString('base64');
      const last = at + chunk >= data.length;
      say({ type: 'file_download_chunk', request_id, data: piece, offset: at, is_last: last });
    }
  }

  // Inline: the next message waits for the end of this one, be it a command of an hour.
  let work: Promise<void> = Promise.resolve();
  socket.onmessage = ({ data }) => {
    const frame = JSON.parse(String(data)) as Frame;
    work = work.then(() => handle(frame)).catch((error) => told('failed', { message: String(error) }));
  };
  socket.onopen = () => {
    const labels = Object.fromEntries(
      options.filter((it) => it.startsWith('label:')).map((it) => it.slice(6).split('=')),
    );
    const metadata = { hostname: 'far', platform: 'linux', arch: 'x86_64', version: '0.1.0', labels };
    say({ type: 'register', daemon_id: id, metadata });
    if (!has('quiet')) beat = setInterval(() => say({ type: 'heartbeat' }), 1_000);
  };
  socket.onclose = ({ code, reason }) => {
    clearInterval(beat);
    for (const shell of sessions.values()) shell.kill('SIGKILL');
    told('closed', { code, reason });
    if (!has('once')) setTimeout(connect, 200);
  };
}

connect();
