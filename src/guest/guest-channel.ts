// The guest behind a channel: each method is one conversation with the agent.
import type { Duplex, Readable } from 'node:stream';
import type { Channel } from '../channel/channel.ts';
import type { ExecSummary, FileEntry, GuestReply, GuestRequest } from '../contract/guest.ts';
import { directBytesMin } from '../contract/guest-wire.ts';
import { Failure } from '../lib/failure.ts';
import type { BulkConnections } from './bulk.ts';
import { bytesOf, ConversingDuplex, directBytesOf } from './bytes.ts';
import { Conversation } from './conversation.ts';
import type {
  ExecSpec,
  Guest,
  GuestFiles,
  GuestMetrics,
  GuestProcess,
  OpenFile,
  ReadOptions,
  UploadState,
  WriteOptions,
} from './guest.ts';
import { failureOf } from './guest-failure.ts';
import { type PortConnection, PortStream } from './port-stream.ts';
import { ConversingProcess, exitOf } from './process.ts';

/** Entries of a listing, unless the caller wants fewer. */
const entriesMax = 100_000;

/** What their names may take in memory together. */
const entriesCharactersMax = 32 * 1024 * 1024;

/** How long the agent may take to confirm that a command was killed whose start was given up. */
const killAnswerDeadlineMs = 5_000;

/** Requests that change nothing, or the same however often: a loss in the middle leaves no doubt. */
const harmless = new Set<GuestRequest['op']>([
  'attach',
  'execs',
  'stat',
  'list',
  'search',
  'read',
  'pack',
  'metrics',
  'egress',
  'whose',
  'ping',
  'rehearse',
  'settle',
  'dial',
  'upload',
]);

/**
 * `bulk`, where the carrier is a socket of this host, lets files come on connections of their own. `caps` are what the agent has said it can do; absent: all
 * that this release knows of.
 */
export function createGuest(
  channel: Channel,
  options: { bulk?: BulkConnections; caps?: readonly string[] } = {},
): Guest {
  return new ChannelGuest(channel, options);
}

interface ChannelGuestOptions {
  bulk?: BulkConnections;
  caps?: readonly string[];
}

class ChannelGuest implements Guest {
  readonly #channel: Channel;

  readonly #bulk: BulkConnections | undefined;

  readonly #limits: boolean;

  /** The command of an isolated session whose files these are. */
  readonly #within: string | undefined;

  readonly #owner: { owner?: string; group?: string };

  readonly #options: ChannelGuestOptions;

  constructor(
    channel: Channel,
    options: ChannelGuestOptions,
    within?: string,
    owner: { owner?: string; group?: string } = {},
  ) {
    this.#channel = channel;
    this.#options = options;
    this.#bulk = options.bulk;
    this.#limits = options.caps?.includes('limits') ?? true;
    this.#within = within;
    this.#owner = owner;
  }

  within(execId: string, owner?: { owner: string; group: string }): GuestFiles {
    return new ChannelGuest(this.#channel, this.#options, execId, owner);
  }

  async exec({ direct, ...spec }: ExecSpec, signal?: AbortSignal): Promise<GuestProcess> {
    const doing = `run ${JSON.stringify((spec.argv?.[0] ?? spec.shell ?? '').slice(0, 100))}`;
    if (spec.limits !== undefined && !this.#limits)
      throw new Failure('unsupported', `${doing}: the agent here is older than limits of commands`, {
        hint: 'Start the sandbox again, or limit it as a whole.',
      });
    const stdout = direct && this.#bulk?.expect();
    if (direct && stdout === undefined)
      throw new Failure('unsupported', `${doing}: this sandbox has no connections for bytes alone`);
    const request = { op: 'exec', ...spec, ...(stdout && { directStdout: stdout.id }) } as const;
    try {
      const process = await this.#process(spec.execId, this.#ask(request, doing, signal), signal);
      return stdout === undefined ? process : Object.assign(process, { direct: await stdout.socket });
    } catch (error) {
      stdout?.cancel();
      // Whoever gives up on the start does not want the command either, nor one whose output goes nowhere.
      if (signal?.aborted || stdout !== undefined)
        await this.signal(
          spec.execId,
          'SIGKILL',
          { tree: true, graceMs: 0 },
          AbortSignal.timeout(killAnswerDeadlineMs),
        ).catch(() => undefined);
      throw error;
    }
  }

  async attach(execId: string, from: number, signal?: AbortSignal): Promise<GuestProcess> {
    const conversation = this.#ask({ op: 'attach', execId, from }, `attach to command ${execId}`, signal);
    return this.#process(execId, conversation, signal);
  }

  async #process(execId: string, conversation: Conversation, signal?: AbortSignal): Promise<GuestProcess> {
    const exit = exitOf(conversation);
    const started = await conversation.reply('started', signal);
    return new ConversingProcess(execId, started, conversation, exit);
  }

  async signal(
    execId: string,
    name: string,
    options: { tree: boolean; graceMs?: number },
    signal?: AbortSignal,
  ): Promise<void> {
    await this.#done(
      { op: 'signal', execId, signal: name, ...options },
      `send ${name} to command ${execId}`,
      signal,
    );
  }

  async execs(signal?: AbortSignal): Promise<ExecSummary[]> {
    const conversation = this.#ask({ op: 'execs' }, 'list commands', signal);
    conversation.end();
    return (await conversation.reply('execs', signal)).execs;
  }

  async dial(port: number, signal?: AbortSignal): Promise<Duplex> {
    return new ConversingDuplex(await this.#dial(port, signal));
  }

  async connect(port: number, signal?: AbortSignal): Promise<PortConnection> {
    const conversation = await this.#dial(port, signal);
    const { stream, ...come } = conversation.release();
    return new PortStream(stream, come);
  }

  async #dial(port: number, signal?: AbortSignal): Promise<Conversation> {
    const doing = `connect to port ${port} of the sandbox`;
    const conversation = this.#ask({ op: 'dial', port }, doing, signal);
    try {
      await conversation.reply('connected', signal);
    } catch (error) {
      // The two directions end apart, so a refusal alone leaves ours open.
      conversation.drop(Failure.from(error, doing));
      throw error;
    }
    return conversation;
  }

  async stat(
    path: string,
    { follow = false }: { follow?: boolean } = {},
    signal?: AbortSignal,
  ): Promise<FileEntry> {
    const conversation = this.#ask({ op: 'stat', path, follow }, `look at ${path}`, signal);
    conversation.end();
    return (await conversation.reply('entry', signal)).entry;
  }

  list(
    path: string,
    options: { depth: number; entriesMax?: number },
    signal?: AbortSignal,
  ): Promise<FileEntry[]> {
    const request = {
      op: 'list',
      path,
      depth: options.depth,
      entriesMax: options.entriesMax ?? entriesMax,
    } as const;
    return this.#entries(request, `list ${path}`, signal);
  }

  search(
    path: string,
    pattern: string,
    options: { entriesMax?: number } = {},
    signal?: AbortSignal,
  ): Promise<FileEntry[]> {
    const request = { op: 'search', path, pattern, entriesMax: options.entriesMax ?? entriesMax } as const;
    return this.#entries(request, `search ${path}`, signal);
  }

  async #entries(
    request: GuestRequest & { entriesMax: number },
    doing: string,
    signal?: AbortSignal,
  ): Promise<FileEntry[]> {
    const conversation = this.#ask(request, doing, signal);
    conversation.end();
    const entries: FileEntry[] = [];
    let characters = 0;
    let last = false;
    const refused = (failure: Failure) => {
      conversation.drop(failure);
      return failure;
    };
    for (;;) {
      const part = await conversation.next(signal);
      if (part === undefined) return entries;
      const reply = part.type === 'reply' ? part.reply : undefined;
      if (reply?.type === 'error') throw failureOf(reply, doing);
      if (reply?.type === 'done') continue;
      if (reply?.type !== 'entries' || last)
        throw refused(new Failure('protocol', `${doing}: the agent sent no entries`));
      // An empty page can only be the last.
      last = reply.entries.length === 0;
      for (const entry of reply.entries) {
        entries.push(entry);
        characters +=
          entry.path.length + (entry.target?.length ?? 0) + entry.owner.length + entry.group.length;
      }
      if (entries.length > request.entriesMax)
        throw refused(new Failure('protocol', `${doing}: the agent sent more entries than asked for`));
      if (characters > entriesCharactersMax)
        throw refused(
          new Failure('exhausted', `${doing}: the names take more than ${entriesCharactersMax} characters`, {
            hint: 'List a smaller part of it.',
          }),
        );
    }
  }

  async read(path: string, options: ReadOptions = {}, signal?: AbortSignal): Promise<OpenFile> {
    const { offset = 0, length, ...more } = options;
    const doing = `read ${path}`;
    const direct = (length ?? Number.POSITIVE_INFINITY) < directBytesMin ? undefined : this.#bulk?.expect();
    const request = {
      op: 'read',
      path,
      offset,
      ...more,
      ...(length === undefined ? {} : { length }),
      ...(direct === undefined ? {} : { direct: direct.id }),
    } as const;
    try {
      const conversation = this.#ask(request, doing, signal);
      conversation.end();
      const { entry, version, sha256 } = await conversation.reply('entry', signal);
      const about = { entry, version, sha256 };
      // The agent goes by the same rule.
      const there = entry.kind === 'file' ? Math.min(entry.size - offset, length ?? entry.size) : 0;
      if (direct !== undefined && there >= directBytesMin)
        return { ...about, bytes: directBytesOf(await direct.socket, conversation, doing, signal) };
      direct?.cancel();
      return { ...about, bytes: bytesOf(conversation, doing, signal) };
    } catch (error) {
      direct?.cancel();
      throw error;
    }
  }

  async write(
    path: string,
    source: AsyncIterable<Uint8Array>,
    options: WriteOptions & { append?: boolean } = {},
    signal?: AbortSignal,
  ): Promise<number> {
    const request = { op: 'write', path, parents: true, ...this.#owner, ...options } as const;
    const conversation = this.#ask(request, `write ${path}`, signal);
    await this.#upload(conversation, source, signal);
    return (await conversation.reply('done', signal)).size ?? 0;
  }

  async upload(
    path: string,
    source: AsyncIterable<Uint8Array>,
    options: WriteOptions & { id: string; offset: number; complete: boolean },
    signal?: AbortSignal,
  ): Promise<UploadState> {
    const { id, offset, complete, ...more } = options;
    const upload = { id, offset, complete };
    const doing = `write ${path}`;
    const conversation = this.#ask({ op: 'write', path, parents: true, upload, ...more }, doing, signal);
    await this.#upload(conversation, source, signal);
    return uploadStateOf(await conversation.reply('upload', signal));
  }

  async uploadState(path: string, id: string, signal?: AbortSignal): Promise<UploadState> {
    const conversation = this.#ask({ op: 'upload', path, id, drop: false }, `look at upload ${id}`, signal);
    conversation.end();
    return uploadStateOf(await conversation.reply('upload', signal));
  }

  async dropUpload(path: string, id: string, signal?: AbortSignal): Promise<void> {
    const conversation = this.#ask({ op: 'upload', path, id, drop: true }, `drop upload ${id}`, signal);
    conversation.end();
    await conversation.reply('upload', signal);
  }

  /** Sends a source until its end. Its failure breaks the conversation off, so that the agent keeps nothing of it, but of an upload what has come. */
  async #upload(
    conversation: Conversation,
    source: AsyncIterable<Uint8Array>,
    signal?: AbortSignal,
  ): Promise<void> {
    try {
      for await (const bytes of source) {
        await conversation.write(bytes, signal);
        // A refusal has come already; it is the answer.
        if (conversation.over) return;
      }
    } catch (error) {
      conversation.drop(Failure.from(error, 'upload'));
      throw error;
    }
    conversation.end();
  }

  async mkdir(
    path: string,
    options: { mode?: number; owner?: string; group?: string } = {},
    signal?: AbortSignal,
  ): Promise<void> {
    const request = { op: 'mkdir', path, parents: true, ...this.#owner, ...options } as const;
    await this.#done(request, `make folder ${path}`, signal);
  }

  async remove(
    path: string,
    options: { recursive: boolean; missingOk: boolean },
    signal?: AbortSignal,
  ): Promise<void> {
    await this.#done({ op: 'remove', path, ...options }, `remove ${path}`, signal);
  }

  async rename(from: string, to: string, signal?: AbortSignal): Promise<void> {
    await this.#done({ op: 'rename', from, to }, `move ${from} to ${to}`, signal);
  }

  async chmod(
    path: string,
    change: { mode?: number; owner?: string; group?: string },
    signal?: AbortSignal,
  ): Promise<void> {
    await this.#done({ op: 'chmod', path, ...change }, `change the rights of ${path}`, signal);
  }

  async replace(path: string, change: { old: string; new: string }, signal?: AbortSignal): Promise<number> {
    return (await this.#done({ op: 'replace', path, ...change }, `replace in ${path}`, signal)).count ?? 0;
  }

  async pack(path: string, signal?: AbortSignal): Promise<Readable> {
    const doing = `pack ${path}`;
    // The first answer tells whether there is anything to pack, before a byte is promised to anyone.
    await this.stat(path, {}, signal);
    const conversation = this.#ask({ op: 'pack', path }, doing, signal);
    conversation.end();
    return bytesOf(conversation, doing, signal);
  }

  async unpack(
    path: string,
    tar: AsyncIterable<Uint8Array>,
    options: { owner?: string; group?: string } = {},
    signal?: AbortSignal,
  ): Promise<void> {
    const conversation = this.#ask({ op: 'unpack', path, ...options }, `unpack below ${path}`, signal);
    await this.#upload(conversation, tar, signal);
    await conversation.reply('done', signal);
  }

  async metrics(signal?: AbortSignal): Promise<GuestMetrics> {
    const conversation = this.#ask({ op: 'metrics' }, 'read metrics', signal);
    conversation.end();
    const { type: _, ...metrics } = await conversation.reply('metrics', signal);
    return metrics;
  }

  async egress(
    options: { capture: boolean; ports: number[] },
    signal?: AbortSignal,
  ): Promise<{ unavailable: number }> {
    const { capture, ports } = options;
    const done = await this.#done({ op: 'egress', capture, ports }, 'open the way out', signal);
    return { unavailable: done.count ?? 0 };
  }

  async whose(port: number, signal?: AbortSignal): Promise<{ pid: number; command: string }> {
    const conversation = this.#ask({ op: 'whose', port }, `find who has port ${port}`, signal);
    conversation.end();
    const { pid, command } = await conversation.reply('process', signal);
    return { pid, command };
  }

  async rehearse(
    { env, times }: { env: Record<string, string>; times: number },
    signal?: AbortSignal,
  ): Promise<void> {
    for (let time = 0; time < times; time++) {
      const conversation = this.#ask({ op: 'rehearse', env }, 'rehearse a command', signal);
      const { output } = await this.#process('rehearsal', conversation, signal);
      for await (const _ of output);
    }
    await this.#done({ op: 'settle' }, 'collect garbage', signal);
  }

  async ping(signal?: AbortSignal): Promise<void> {
    const conversation = this.#ask({ op: 'ping' }, 'ping', signal);
    conversation.end();
    await conversation.reply('pong', signal);
  }

  async #done(
    request: GuestRequest,
    doing: string,
    signal?: AbortSignal,
  ): Promise<Extract<GuestReply, { type: 'done' }>> {
    const conversation = this.#ask(request, doing, signal);
    conversation.end();
    return conversation.reply('done', signal);
  }

  #ask(request: GuestRequest, doing: string, signal: AbortSignal | undefined): Conversation {
    if (signal?.aborted) throw Failure.from(signal.reason, doing);
    const asked = this.#within === undefined ? request : { ...request, within: this.#within };
    return new Conversation(this.#channel, asked, { doing, harmless: harmless.has(request.op) });
  }
}

function uploadStateOf({ offset, complete }: Extract<GuestReply, { type: 'upload' }>): UploadState {
  return { offset, complete };
}
