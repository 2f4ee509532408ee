// Ports of sandboxes on the host: who has which, over stops, starts and restarts. On loopback unless another address was asked for by name.
//
//   saved (SandboxInfo.published)   what was asked for; says everything while the sandbox is stopped
//   open (here)                     the listeners of a running sandbox, or why there is none
import { isIP } from 'node:net';
import { type PublishedPort, type PublishPort, publishText, type UnpublishPort } from '../contract/ports.ts';
import type { SandboxInfo } from '../contract/sandbox.ts';
import type { Guest } from '../guest/guest.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import type { SandboxPorts } from '../sandbox/workspaces.ts';
import { type Address, Listener } from './listener.ts';

/** As many as a guest's agent joins. */
export const connectionsMax = 64;
export const mappingsMax = 64;
/** How often a port that is to be free on both loopbacks is looked for. */
const pairTries = 16;

export interface PublishedPortsOptions {
  /** Failure('not-found') for sandboxes that are not there. */
  info: (sandboxId: string) => SandboxInfo;
  save: (sandboxId: string, published: PublishPort[]) => void;
  log: Log;
}

/** One that was asked for, and what became of it. */
interface Mapping {
  asked: PublishPort;
  listeners: Listener[];
  /** Why there are none. */
  problem?: string;
}

/** Of a sandbox that runs, or is about to. */
interface Opened {
  mappings: Mapping[];
  /** Absent until the sandbox runs: what connects before is turned away. */
  guest?: () => Guest;
  connections: number;
}

export class PublishedPorts implements SandboxPorts {
  readonly #options: PublishedPortsOptions;
  readonly #opened = new Map<string, Opened>();
  /** One change after the other for each sandbox. */
  readonly #queues = new Map<string, Promise<unknown>>();

  constructor(options: PublishedPortsOptions) {
    this.#options = options;
  }

  /**
   * Before a sandbox is made: takes its ports, all or none, so that one that is taken fails the creation and not its end. `attach` goes on with them,
   * `detach` gives them back. Failures as of `publish`.
   */
  reserve(sandboxId: string, ports: readonly PublishPort[]): Promise<void> {
    return this.#exclusive(sandboxId, async () => {
      if (ports.length === 0) return;
      const opened: Opened = { mappings: [], connections: 0 };
      opened.mappings = await this.#openAll(opened, ports);
      this.#opened.set(sandboxId, opened);
    });
  }

  attach(info: SandboxInfo, guest: () => Guest): Promise<void> {
    return this.#exclusive(info.id, async () => {
      const held = this.#opened.get(info.id);
      if (held !== undefined) {
        held.guest = guest;
        return;
      }
      const opened: Opened = { mappings: [], guest, connections: 0 };
      this.#opened.set(info.id, opened);
      for (const asked of info.published) opened.mappings.push(await this.#openOr(opened, asked, info.id));
    });
  }

  detach(sandboxId: string): Promise<void> {
    return this.#exclusive(sandboxId, async () => {
      const opened = this.#opened.get(sandboxId);
      this.#opened.delete(sandboxId);
      await Promise.all((opened?.mappings ?? []).map(closeAll));
    });
  }

  list(sandboxId: string): PublishedPort[] {
    const { published } = this.#options.info(sandboxId);
    const opened = this.#opened.get(sandboxId);
    return opened?.guest === undefined
      ? published.flatMap((asked) => shown({ asked, listeners: [] }))
      : opened.mappings.flatMap(shown);
  }

  /** What is published on a sandbox that is stopped is tried, and opened at its next start. */
  publish(sandboxId: string, ports: readonly PublishPort[], signal: AbortSignal): Promise<PublishedPort[]> {
    return this.#exclusive(sandboxId, async () => {
      signal.throwIfAborted();
      const { published } = this.#options.info(sandboxId);
      if (published.length + ports.length > mappingsMax)
        throw new Failure(
          'exhausted',
          `sandbox ${sandboxId}: at most ${mappingsMax} ports can be published`,
          {
            hint: 'Take some off first.',
          },
        );
      const opened = this.#opened.get(sandboxId);
      const made = await this.#openAll(opened ?? { mappings: [], connections: 0 }, ports);
      try {
        signal.throwIfAborted();
        this.#options.save(sandboxId, [...published, ...ports]);
      } catch (error) {
        await Promise.all(made.map(closeAll));
        throw error;
      }
      if (opened === undefined) {
        await Promise.all(made.map(closeAll));
        return ports.flatMap((asked) => shown({ asked, listeners: [] }));
      }
      opened.mappings.push(...made);
      return made.flatMap(shown);
    });
  }

  unpublish(sandboxId: string, ports: readonly UnpublishPort[]): Promise<number> {
    return this.#exclusive(sandboxId, async () => {
      const { published } = this.#options.info(sandboxId);
      const mappings: Mapping[] =
        this.#opened.get(sandboxId)?.mappings ?? published.map((asked) => ({ asked, listeners: [] }));
      const doomed = new Set<Mapping>();
      for (const wanted of ports) {
        const found = mappings.filter((mapping) => matches(mapping, wanted));
        if (found.length === 0)
          throw new Failure('not-found', `sandbox ${sandboxId}: ${describe(wanted)} is not published`, {
            hint:
              mappings.length === 0
                ? 'Nothing of it is published.'
                : `Published are ${mappings.map(({ asked }) => publishText(asked)).join(', ')}.`,
          });
        for (const mapping of found) doomed.add(mapping);
      }
      const left = mappings.filter((mapping) => !doomed.has(mapping));
      this.#options.save(
        sandboxId,
        left.map(({ asked }) => asked),
      );
      const opened = this.#opened.get(sandboxId);
      if (opened !== undefined) opened.mappings = left;
      await Promise.all([...doomed].map(closeAll));
      return doomed.size;
    });
  }

  /** All of them, or a Failure and none. */
  async #openAll(opened: Opened, ports: readonly PublishPort[]): Promise<Mapping[]> {
    await using undo = new AsyncDisposableStack();
    const made: Mapping[] = [];
    for (const asked of ports) {
      const mapping = { asked, listeners: await this.#open(opened, asked) };
      undo.defer(() => closeAll(mapping));
      made.push(mapping);
    }
    undo.move();
    return made;
  }

  async #openOr(opened: Opened, asked: PublishPort, sandboxId: string): Promise<Mapping> {
    try {
      return { asked, listeners: await this.#open(opened, asked) };
    } catch (error) {
      const problem = Failure.from(error, `publish ${publishText(asked)}`).message;
      this.#options.log.warn({ sandbox: sandboxId, port: publishText(asked), problem }, 'port not published');
      return { asked, listeners: [], problem };
    }
  }

  async #open(opened: Opened, asked: PublishPort): Promise<Listener[]> {
    const [first, second] = addressesOf(asked) as [Address, Address?];
    const listen = (address: Address) => this.#listen(opened, address, asked.sandboxPort);
    if (second === undefined) return [await listen(first)];
    // On both loopbacks, under one number.
    for (let tries = 1; ; tries++) {
      const one = await listen(first);
      try {
        return [one, await listen({ ...second, port: one.address.port })];
      } catch (error) {
        const { code } = Failure.from(error, 'listen');
        // A host without IPv6 has one loopback.
        if (code === 'invalid') return [one];
        await one.close();
        if (code !== 'conflict' || first.port !== 0 || tries === pairTries) throw error;
      }
    }
  }

  #listen(opened: Opened, address: Address, sandboxPort: number): Promise<Listener> {
    return Listener.open({
      ...address,
      dial: (signal) => {
        if (opened.guest === undefined) throw new Failure('unavailable', 'the sandbox does not run yet');
        return opened.guest().dial(sandboxPort, signal);
      },
      admit: () => opened.connections < connectionsMax && ++opened.connections > 0,
      onOver: () => {
        opened.connections--;
      },
    });
  }

  #exclusive<T>(sandboxId: string, work: () => Promise<T>): Promise<T> {
    const result = (this.#queues.get(sandboxId) ?? Promise.resolve()).then(work);
    const settled = result
      .catch(() => {})
      .then(() => {
        if (this.#queues.get(sandboxId) === settled) this.#queues.delete(sandboxId);
      });
    this.#queues.set(sandboxId, settled);
    return result;
  }
}

async function closeAll({ listeners }: Mapping): Promise<void> {
  await Promise.all(listeners.map((listener) => listener.close()));
}

/** Where it is to listen. Without an address that is loopback: other machines are let in only by name. */
function addressesOf({ hostIp, hostPort = 0, protocol }: PublishPort): Address[] {
  if (hostIp === undefined) {
    const four = { ip: '127.0.0.1', port: hostPort };
    const six = { ip: '::1', port: hostPort };
    return protocol === 'tcp' ? [four, six] : [protocol === 'tcp6' ? six : four];
  }
  const family = isIP(hostIp);
  if (family === 0)
    throw new Failure('invalid', `publish: ${JSON.stringify(hostIp)} is no address`, {
      hint: 'Give an address of this host, such as 127.0.0.1.',
    });
  if (protocol !== 'tcp' && (protocol === 'tcp6') !== (family === 6))
    throw new Failure('invalid', `publish: ${hostIp} is no address of ${protocol}`, {
      hint: `Say protocol tcp${family}.`,
    });
  return [{ ip: hostIp, port: hostPort }];
}

function shown({ asked, listeners, problem }: Mapping): PublishedPort[] {
  const addresses = listeners.length > 0 ? listeners.map(({ address }) => address) : addressesOf(asked);
  return addresses.map(({ ip, port }) => ({
    hostIp: ip,
    hostPort: port,
    sandboxPort: asked.sandboxPort,
    protocol: ip.includes(':') ? 'tcp6' : 'tcp4',
    ...(problem === undefined ? {} : { problem }),
  }));
}

/** What the request leaves out matches anything. */
function matches(mapping: Mapping, { sandboxPort, hostIp, hostPort, protocol }: UnpublishPort): boolean {
  if (mapping.asked.sandboxPort !== sandboxPort) return false;
  if (protocol !== undefined && protocol !== 'tcp' && protocol !== mapping.asked.protocol) return false;
  return shown(mapping).some(
    (it) =>
      (hostIp === undefined || it.hostIp === hostIp) && (hostPort === undefined || it.hostPort === hostPort),
  );
}

const describe = ({ sandboxPort, hostIp, hostPort, protocol }: UnpublishPort): string =>
  publishText({
    sandboxPort,
    ...(hostIp === undefined ? {} : { hostIp }),
    ...(hostPort === undefined ? {} : { hostPort }),
    protocol: protocol ?? 'tcp',
  }).replace(protocol === undefined ? '/tcp' : '', '');
