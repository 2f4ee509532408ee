// The network around all sandboxes of a home: gives each its policy, its secrets, its authority and a session that its agent's connections go to, and
// tells agents and sessions when something changes.
import type { Socket } from 'node:net';
import { hostImage, nameLabel, transparentExtension } from '../contract/admin.ts';
import { type BellDecisions, bellPortDefault } from '../contract/bell.ts';
import { defaultPath, guestFolder } from '../contract/guest-wire.ts';
import type { NewRule } from '../contract/network.ts';
import type { Guest } from '../guest/guest.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import type { NetworkRequest, SandboxNetwork } from '../sandbox/network.ts';
import type { SandboxInfo } from '../sandbox/sandbox.ts';
import type { SandboxSecrets, Vault } from '../vault/vault.ts';
import type { CertificateAuthority, SandboxAuthority } from './certificates/certificates.ts';
import type { EgressSandbox, EgressSession } from './egress.ts';
import type { Policies } from './policies.ts';
import { installTrust, trustEnvironment } from './trust.ts';

/** Caught beside the ports that rules name. */
const webPorts = [80, 443];
/** The built-in image: its trust store is this machine's own, read-only. Looking would only wake the larger part of an idle agent. */
/** An agent that does not answer keeps nobody waiting. */
const agentMs = 10_000;

/** `captured`: connections to any address arrive here; `loopback`: only what goes through the proxy; `open`: past us. */
type Walls = Parameters<SandboxNetwork['attach']>[1]['walls'];

/** What the network does for the bell. */
export interface NetworkBell {
  port: number;
  /** Programs for every guest's PATH: name → script. */
  shims: Readonly<Record<string, string>>;
  /** Decisions that a new sandbox brings. */
  opened(sandboxId: string, decisions: BellDecisions): void;
  forget(sandboxId: string): void;
}

export interface NetworksOptions {
  policies: Policies;
  vault: Vault;
  authority: CertificateAuthority;
  open: (sandbox: EgressSandbox) => EgressSession;
  trustFiles: (authorityPem: string) => Record<string, string | Uint8Array>;
  inspect: EgressSandbox['inspect'];
  /** Whether to catch connections at all where the walls allow it. */
  transparent: boolean;
  /** Absent where sandboxes have none. */
  bell: NetworkBell | undefined;
  log: Log;
}

interface Surroundings {
  /** Changes as the sandbox does. */
  info: SandboxInfo;
  authority: SandboxAuthority;
  session: EgressSession;
  /** Once its agent has said hello. */
  inside?: { guest: Guest; walls: Walls };
  /** The ports that the agent was told to catch last. */
  told: string | undefined;
  /** One telling after the other, so that the last word is the last to arrive. */
  telling: Promise<void>;
}

export class Networks implements SandboxNetwork {
  readonly #options: NetworksOptions;
  readonly #all = new Map<string, Surroundings>();

  constructor(options: NetworksOptions) {
    this.#options = options;
    options.vault.onChange = (sandboxId) => this.changed(sandboxId);
  }

  open(info: SandboxInfo, request: NetworkRequest): void {
    this.#add(info);
    try {
      this.#options.policies.open(info.id, this.#withBell(request));
      if (request.bell !== undefined) this.#options.bell?.opened(info.id, request.bell);
    } catch (error) {
      this.detach(info.id);
      throw error;
    }
  }

  adopt(info: SandboxInfo): void {
    this.#add(info);
    this.#options.policies.adopt(info.id);
  }

  /** How a person calls a sandbox, if it has a name. */
  nameOf(sandboxId: string): string | undefined {
    return this.#all.get(sandboxId)?.info.metadata[nameLabel];
  }

  files(sandboxId: string): Record<string, string | Uint8Array> {
    const shims = Object.entries(this.#options.bell?.shims ?? {});
    return {
      ...this.#options.trustFiles(this.#of(sandboxId).authority.certificate),
      ...Object.fromEntries(shims.map(([name, script]) => [`bin/${name}`, script])),
    };
  }

  environment(sandboxId: string, image: Readonly<Record<string, string>>): Record<string, string> {
    const inside = this.#all.get(sandboxId)?.inside;
    if (inside === undefined || inside.walls === 'open') return {};
    return {
      ...trustEnvironment(),
      ...bellEnvironment(this.#options.bell, image),
      ...this.#secretsOf(this.#of(sandboxId).info).environment,
    };
  }

  async attach(
    sandboxId: string,
    { guest, walls, fresh }: { guest: Guest; walls: Walls; fresh: boolean },
    signal: AbortSignal,
  ): Promise<void> {
    const it = this.#of(sandboxId);
    it.inside = { guest, walls };
    // It may be another agent than before, or have heard only a part.
    it.told = undefined;
    if (walls === 'open') return this.#refuseRules(sandboxId);
    await this.#tell(sandboxId, it, signal);
    if (!fresh || it.info.image === hostImage) return;
    try {
      await installTrust(guest, it.authority.certificate, signal);
    } catch (error) {
      // Programs find the authority through their variables, too.
      if (signal.aborted) throw error;
      this.#options.log.warn(
        { sandbox: sandboxId, error: String(error) },
        'the authority could not be put into the trust store of the image',
      );
    }
  }

  async handOver(info: SandboxInfo, request: NetworkRequest, signal: AbortSignal): Promise<void> {
    const { id } = info;
    const { inside, told, authority } = this.#of(id);
    // Another session: the one before knew the secrets of whoever owns the pool. The authority is the sandbox's own, whoever has it.
    this.#add(info, authority);
    const it = this.#of(id);
    it.told = told;
    if (inside !== undefined) it.inside = inside;
    this.#options.policies.reopen(id, request);
    if (inside?.walls === 'open') this.#refuseRules(id);
    else await this.#tell(id, it, signal);
  }

  async allowMeanwhile(sandboxId: string, resources: readonly string[]): Promise<Disposable> {
    const allowed = this.#options.policies.allowMeanwhile(sandboxId, resources);
    // Its agent has heard of it before anything counts on it.
    await this.#of(sandboxId).telling;
    return allowed;
  }

  accept(sandboxId: string, socket: Socket): void {
    const session = this.#all.get(sandboxId)?.session;
    if (session === undefined) socket.destroy();
    else session.accept(socket);
  }

  detach(sandboxId: string): void {
    this.#all.get(sandboxId)?.session.close();
    this.#all.delete(sandboxId);
  }

  async forget(sandboxId: string): Promise<void> {
    this.detach(sandboxId);
    this.#options.policies.forget(sandboxId);
    this.#options.bell?.forget(sandboxId);
    await this.#options.vault.forgetSandbox(sandboxId);
  }

  /** Rules or secrets have changed, for one sandbox or for all: what is open is looked at again, and agents hear of other ports. */
  changed(sandboxId: string | undefined): void {
    for (const [id, it] of this.#all) {
      if (sandboxId !== undefined && id !== sandboxId) continue;
      it.session.changed();
      if (it.inside === undefined || it.inside.walls === 'open') continue;
      this.#tell(id, it, AbortSignal.timeout(agentMs)).catch((error) =>
        this.#options.log.warn({ sandbox: id, error: String(error) }, 'the agent did not hear of its ports'),
      );
    }
  }

  #refuseRules(sandboxId: string): void {
    if (this.#options.policies.hasOwn(sandboxId))
      throw new Failure(
        'unsupported',
        `sandbox ${sandboxId} is on a network of its own, where no rules can hold`,
        { hint: 'Leave the rules out, or set docker.network_mode to "none" and use no memory runtime.' },
      );
  }

  /** Whoever asks for the bell gets the way to it, too. */
  #withBell(request: NetworkRequest): NetworkRequest {
    if (request.bell === undefined) return request;
    const { bell } = this.#options;
    if (bell === undefined)
      throw new Failure('unsupported', 'glovebox.bell: the bell is switched off on this host', {
        hint: 'Set `enabled = true` in bell.toml and restart the daemon, or leave it out.',
      });
    const rule: NewRule = { decision: 'allow', resources: [`localhost:${bell.port}`] };
    return { ...request, rules: [...(request.rules ?? []), rule] };
  }

  #of(sandboxId: string): Surroundings {
    const it = this.#all.get(sandboxId);
    if (it === undefined) throw new Failure('internal', `sandbox ${sandboxId} has no network around it`);
    return it;
  }

  /** What the owner keeps for all sandboxes is for the owner's. */
  #secretsOf({ id, project }: SandboxInfo): SandboxSecrets {
    return this.#options.vault.forSandbox(id, { shared: project === undefined });
  }

  /** Whether its own rules and policy may open what only the owner may: this host and private networks. */
  isOwners(sandboxId: string): boolean {
    return this.#all.get(sandboxId)?.info.project === undefined;
  }

  #add(info: SandboxInfo, known?: SandboxAuthority): void {
    const { id } = info;
    const { policies, open, inspect } = this.#options;
    const authority = known ?? this.#options.authority.forSandbox(id);
    this.detach(id);
    const sandbox: EgressSandbox = {
      id,
      get name() {
        return info.metadata[nameLabel];
      },
      policy: () => policies.of(id),
      secrets: this.#secretsOf(info),
      inspect,
      processOf: async (port) => this.#all.get(id)?.inside?.guest.whose(port, AbortSignal.timeout(agentMs)),
    };
    this.#all.set(id, {
      ...{ info, authority, session: open(sandbox) },
      ...{ told: undefined, telling: Promise.resolve() },
    });
  }

  /** Which ports to catch. Says nothing where the agent knows already. */
  #tell(sandboxId: string, it: Surroundings, signal: AbortSignal): Promise<void> {
    const told = it.telling.then(() => this.#tellNow(sandboxId, it, signal));
    it.telling = told.catch(() => {});
    return told;
  }

  async #tellNow(sandboxId: string, it: Surroundings, signal: AbortSignal): Promise<void> {
    if (it.inside === undefined) return;
    const { guest, walls } = it.inside;
    const policy = this.#options.policies.of(sandboxId);
    // Where nothing is allowed there is nothing to be caught for, and ports 80 and 443 are the guest's own.
    const capture =
      walls === 'captured' &&
      this.#options.transparent &&
      it.info.extensions[transparentExtension] !== 'false' &&
      policy.opens;
    const ports = capture ? [...new Set([...webPorts, ...policy.ports])] : [];
    const told = `${capture} ${ports.join()}`;
    if (told === it.told) return;
    const { unavailable } = await guest.egress({ capture, ports }, signal);
    it.told = told;
    if (unavailable > 0)
      this.#options.log.info(
        { sandbox: sandboxId, unavailable },
        'some ports belong to programs of the guest and are not caught',
      );
  }
}

/** The bell's client is found last, so that nothing of an image is hidden; what the owner has put before it is found first. */
function bellEnvironment(
  bell: NetworkBell | undefined,
  { PATH = defaultPath }: Readonly<Record<string, string>>,
): Record<string, string> {
  if (bell === undefined) return {};
  const shims = Object.keys(bell.shims).length > 0 ? [`${guestFolder}/run/bin`] : [];
  return {
    PATH: [...shims, PATH, `${guestFolder}/agent/bin`].join(':'),
    ...(bell.port === bellPortDefault
      ? {}
      : { SANDBOX_COMM_URL: `http://host.docker.internal:${bell.port}/` }),
  };
}
