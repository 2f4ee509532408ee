// The `sftp` subsystem of a session: one request after the other, each answered before the next is looked at, so that a slow sandbox slows its client.
import { posix } from 'node:path';
import type { Channel } from '../connection.ts';
import { type GuestUser, startFailure } from '../guest-user.ts';
import { WireReader, WireWriter } from '../wire-data.ts';
import { GuestFiles } from './guest-files.ts';
import { type Handle, openFile, openFolder } from './handles.ts';
import {
  type Entry,
  longName,
  Refused,
  readAttributes,
  refusalOf,
  reply,
  request,
  status,
  version,
  writeAttributes,
} from './protocol.ts';

const packetBytesMax = 256 * 1024;
/** Within a packet there are some bytes beside the data. */
const dataBytesMax = packetBytesMax - 1_024;
const handlesMax = 128;

const extensions = { 'posix-rename@openssh.com': '1', 'limits@openssh.com': '1' };

export async function serveSftp(channel: Channel, guest: GuestUser): Promise<void> {
  let exitCode = 0;
  try {
    const server = new SftpServer(await GuestFiles.of(guest));
    try {
      for await (const packet of packetsOf(channel.input())) await channel.write(await server.answer(packet));
    } finally {
      await server.end();
    }
  } catch (error) {
    const failure = startFailure(error);
    exitCode = failure.exitCode;
    await channel.write(Buffer.from(failure.text), 'stderr');
  }
  await channel.tell('exit-status', (it) => it.uint32(exitCode));
  await channel.end();
  await channel.close();
}

/** Packets out of pieces of any size. Throws when one is too long. */
async function* packetsOf(pieces: AsyncIterable<Buffer>): AsyncGenerator<Buffer, void, void> {
  let parts: Buffer[] = [];
  let held = 0;
  let wanted = 4;
  for await (const piece of pieces) {
    parts.push(piece);
    held += piece.length;
    if (held < wanted) continue;
    let bytes: Buffer = parts.length === 1 ? piece : Buffer.concat(parts);
    for (;;) {
      wanted = bytes.length < 4 ? 4 : 4 + bytes.readUInt32BE();
      if (wanted > packetBytesMax + 4)
        throw new RangeError(`a packet of ${wanted - 4} bytes; the most is ${packetBytesMax}`);
      if (bytes.length < wanted) break;
      yield bytes.subarray(4, wanted);
      bytes = bytes.subarray(wanted);
    }
    parts = bytes.length === 0 ? [] : [bytes];
    held = bytes.length;
  }
}

class SftpServer {
  readonly #files: GuestFiles;
  readonly #handles = new Map<string, Handle>();
  #nextHandle = 0;

  constructor(files: GuestFiles) {
    this.#files = files;
  }

  async answer(packet: Buffer): Promise<Buffer> {
    const reader = new WireReader(packet);
    const type = reader.byte();
    if (type === request.init) return framed(this.#hello());
    const id = reader.uint32();
    try {
      return framed(await this.#done(type, id, reader));
    } catch (error) {
      const { status: code, message } = refusalOf(error);
      return framed(statusReply(id, code, message));
    }
  }

  /** What is still open was not closed by its client: nothing of it counts. */
  async end(): Promise<void> {
    const handles = [...this.#handles.values()];
    this.#handles.clear();
    await Promise.all(handles.map((handle) => handle.drop().catch(() => {})));
  }

  #hello(): WireWriter {
    const writer = new WireWriter().byte(reply.version).uint32(version);
    for (const [name, data] of Object.entries(extensions)) writer.text(name).text(data);
    return writer;
  }

  async #done(type: number, id: number, reader: WireReader): Promise<WireWriter> {
    const files = this.#files;
    const path = () => files.absolute(reader.text());
    const ok = () => statusReply(id, status.ok, '');
    switch (type) {
      case request.open: {
        const [asked, flags] = [path(), reader.uint32()];
        return await this.#opened(id, () => openFile(files, asked, flags, readAttributes(reader)));
      }
      case request.opendir: {
        const folder = path();
        return await this.#opened(id, () => openFolder(files, folder));
      }
      case request.close: {
        const name = reader.text();
        const handle = this.#handle(name);
        this.#handles.delete(name);
        await handle.close();
        return ok();
      }
      case request.read: {
        const handle = this.#handle(reader.text());
        const [at, length] = [reader.uint64(), Math.min(reader.uint32(), dataBytesMax)];
        if (!handle.read) throw new Refused(status.failure, 'it is not open for reading');
        const bytes = await handle.read(at, length);
        if (bytes.length === 0 && length > 0) return statusReply(id, status.endOfFile, 'end of file');
        return new WireWriter().byte(reply.data).uint32(id).bytes(bytes);
      }
      case request.write: {
        const handle = this.#handle(reader.text());
        const [at, bytes] = [reader.uint64(), reader.bytes()];
        if (!handle.write) throw new Refused(status.permissionDenied, 'it is not open for writing');
        await handle.write(at, bytes);
        return ok();
      }
      case request.lstat:
        return attributesReply(id, await files.lstat(path()));
      case request.stat:
        return attributesReply(id, await files.stat(path()));
      case request.fstat: {
        const handle = this.#handle(reader.text());
        if (!handle.stat) throw new Refused(status.failure, 'it is not a file');
        return attributesReply(id, await handle.stat());
      }
      case request.setstat: {
        const target = path();
        await files.change(target, readAttributes(reader));
        return ok();
      }
      case request.fsetstat: {
        const handle = this.#handle(reader.text());
        if (!handle.change) throw new Refused(status.failure, 'it is not a file');
        await handle.change(readAttributes(reader));
        return ok();
      }
      case request.readdir: {
        const handle = this.#handle(reader.text());
        if (!handle.entries) throw new Refused(status.failure, 'it is not a folder');
        const entries = handle.entries();
        if (entries.length === 0) return statusReply(id, status.endOfFile, 'end of the folder');
        const writer = new WireWriter().byte(reply.name).uint32(id).uint32(entries.length);
        for (const entry of entries) {
          const name = posix.basename(entry.path);
          writeAttributes(writer.text(name).text(longName(entry, name)), entry);
        }
        return writer;
      }
      case request.remove:
        await files.remove(path());
        return ok();
      case request.mkdir: {
        const folder = path();
        await files.mkdir(folder, readAttributes(reader).mode);
        return ok();
      }
      case request.rmdir:
        await files.rmdir(path());
        return ok();
      case request.realpath:
        return nameReply(id, await files.realPath(path()));
      case request.rename: {
        const [from, to] = [path(), path()];
        await files.rename(from, to);
        return ok();
      }
      case request.readlink:
        return nameReply(id, await files.readlink(path()));
      case request.symlink: {
        // OpenSSH sends the target first, unlike what the draft says, and so does everybody else.
        const target = reader.text();
        await files.symlink(target, path());
        return ok();
      }
      case request.extended:
        return await this.#extended(id, reader.text(), reader);
      default:
        throw new Refused(status.unsupported, 'this is not offered here');
    }
  }

  async #extended(id: number, name: string, reader: WireReader): Promise<WireWriter> {
    if (name === 'posix-rename@openssh.com') {
      const [from, to] = [this.#files.absolute(reader.text()), this.#files.absolute(reader.text())];
      await this.#files.replaceByRename(from, to);
      return statusReply(id, status.ok, '');
    }
    if (name === 'limits@openssh.com') {
      const writer = new WireWriter().byte(reply.extended).uint32(id);
      return writer.uint64(packetBytesMax).uint64(dataBytesMax).uint64(dataBytesMax).uint64(handlesMax);
    }
    throw new Refused(status.unsupported, 'this is not offered here');
  }

  async #opened(id: number, open: () => Promise<Handle>): Promise<WireWriter> {
    if (this.#handles.size >= handlesMax)
      throw new Refused(status.failure, `at most ${handlesMax} files and folders may be open`);
    const handle = await open();
    const name = String(this.#nextHandle++);
    this.#handles.set(name, handle);
    return new WireWriter().byte(reply.handle).uint32(id).text(name);
  }

  #handle(name: string): Handle {
    const handle = this.#handles.get(name);
    if (handle === undefined) throw new Refused(status.failure, 'there is no such handle');
    return handle;
  }
}

function framed(writer: WireWriter): Buffer {
  return new WireWriter().bytes(writer.done()).done();
}

function statusReply(id: number, code: number, message: string): WireWriter {
  return new WireWriter().byte(reply.status).uint32(id).uint32(code).text(message).text('');
}

function attributesReply(id: number, entry: Entry): WireWriter {
  return writeAttributes(new WireWriter().byte(reply.attributes).uint32(id), entry);
}

function nameReply(id: number, path: string): WireWriter {
  // One name, twice, without attributes.
  return new WireWriter().byte(reply.name).uint32(id).uint32(1).text(path).text(path).uint32(0);
}
