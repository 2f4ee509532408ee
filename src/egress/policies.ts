// The policies of all sandboxes: the operator's rules, and what single sandboxes were given of their own. Kept on disk, compiled when asked for,
// compiled anew when something changes. What cannot be read allows nothing.
//
//   store                                  the operator's rules; policies in OpenSandbox's form
//   <network folder>/<id>/proxy-config.json   the form of `docker sandbox network proxy`, to be edited by hand if one likes
//   <home>/proxy-config.json               what new sandboxes get that bring no policy
import { randomUUID } from 'node:crypto';
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { networkInterfaces } from 'node:os';
import { dirname, join } from 'node:path';
import type { NewRule, ProxyConfigChange, Rule } from '../contract/network.ts';
import type { NetworkPolicy } from '../contract/opensandbox.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import { compilePolicy } from '../policy/compile.ts';
import { changeProxyConfig, defaultProxyConfig, parseProxyConfig } from '../policy/docker.ts';
import type { Policy, PolicySources, ProxyConfig } from '../policy/policy.ts';
import { presets } from '../policy/presets.ts';
import { conflictOf, validateRule } from '../policy/rules.ts';
import type { NetworkRequest } from '../sandbox/network.ts';
import type { Store } from '../store/store.ts';

/** Rules of the operator in all; a decision looks at those that may match only, but every sandbox compiles them. */
const rulesMax = 10_000;
/** Interfaces come and go: their addresses are read again this often. */
const hostAddressesMs = 30_000;

type Own = NonNullable<PolicySources['own']>;

interface Compiled {
  policy: Policy;
  hostAddresses: string;
}

export interface PoliciesOptions {
  store: Store;
  /** A folder for each sandbox. */
  folder: string;
  /** What new sandboxes get, if it is there. */
  templateFile: string;
  dangerouslyAllowMetadata: boolean;
  /** Whether what a sandbox has of its own may open guarded places: not where a stranger decides about it. */
  mayOpenGuarded?: (sandboxId: string) => boolean;
  /** How a person calls a sandbox. */
  nameOf: (sandboxId: string) => string | undefined;
  log: Log;
  now: () => Date;
  /** Something has changed for this sandbox, or for all. */
  onChange: (sandboxId: string | undefined) => void;
  /** Default: the addresses of this host's interfaces. */
  hostAddresses?: () => string[];
}

export class Policies {
  readonly #options: PoliciesOptions;
  readonly #own = new Map<string, Own>();
  readonly #compiled = new Map<string | undefined, Compiled>();
  /** Rules of sandboxes that hold for a while and are never recorded: with the daemon they are gone. */
  readonly #passing = new Map<string, Rule[]>();
  #hostAddresses: { at: number; value: string[] } = { at: Number.NEGATIVE_INFINITY, value: [] };

  constructor(options: PoliciesOptions) {
    this.#options = options;
  }

  /** Records what a new sandbox brings. Failure('invalid') when it cannot be compiled; then nothing is recorded. */
  open(sandboxId: string, { networkPolicy, rules = [] }: NetworkRequest): void {
    const { store } = this.#options;
    const made = rules.map((rule) => this.#made(rule, sandboxId, 'added'));
    const own = networkPolicy
      ? ({ kind: 'network-policy', policy: networkPolicy } as const)
      : this.#template();
    this.#compile(sandboxId, { own, rules: [...this.#rulesFor(sandboxId), ...made] });
    if (made.length > 0) store.changeRules({ add: made });
    if (networkPolicy !== undefined) store.saveNetworkPolicy(sandboxId, networkPolicy);
    if (own?.kind === 'proxy-config') this.#writeConfig(sandboxId, own.config);
    if (own !== undefined) this.#own.set(sandboxId, own);
    this.#compiled.delete(sandboxId);
  }

  /** The same for one that has been opened for nobody: what it was given then holds no more. */
  reopen(sandboxId: string, request: NetworkRequest): void {
    this.#own.delete(sandboxId);
    this.#compiled.delete(sandboxId);
    this.open(sandboxId, request);
    if (this.#own.get(sandboxId)?.kind !== 'proxy-config')
      rmSync(this.#configFolder(sandboxId), { recursive: true, force: true });
  }

  /** Takes up what an earlier daemon has recorded. */
  adopt(sandboxId: string): void {
    try {
      const own = this.#recorded(sandboxId);
      this.#compile(sandboxId, { own, rules: this.#rulesFor(sandboxId) });
      if (own !== undefined) this.#own.set(sandboxId, own);
    } catch (error) {
      this.#options.log.error(
        { sandbox: sandboxId, error: String(error) },
        'the policy of a sandbox cannot be read; it reaches nothing until that is mended',
      );
      this.#own.set(sandboxId, nothing);
    }
    this.#compiled.delete(sandboxId);
  }

  /** Allows more to one sandbox until it is disposed of. Failure('invalid') for what cannot be meant. */
  allowMeanwhile(sandboxId: string, resources: readonly string[]): Disposable {
    const rule = this.#made({ decision: 'allow', resources: [...resources] }, sandboxId, 'added');
    const others = () => (this.#passing.get(sandboxId) ?? []).filter((it) => it !== rule);
    this.#passing.set(sandboxId, [...others(), rule]);
    this.#changed(sandboxId);
    return {
      [Symbol.dispose]: () => {
        this.#passing.set(sandboxId, others());
        this.#changed(sandboxId);
      },
    };
  }

  forget(sandboxId: string): void {
    this.#passing.delete(sandboxId);
    this.#own.delete(sandboxId);
    this.#compiled.delete(sandboxId);
    rmSync(this.#configFolder(sandboxId), { recursive: true, force: true });
  }

  /** Whether somebody has asked for rules for this very sandbox. */
  hasOwn(sandboxId: string): boolean {
    return this.#own.has(sandboxId) || this.rules(sandboxId).some((it) => it.sandboxId === sandboxId);
  }

  /** What holds for a sandbox; without one, what holds for those that bring nothing of their own. */
  of(sandboxId: string | undefined): Policy {
    const hostAddresses = this.#addresses().join();
    const known = this.#compiled.get(sandboxId);
    if (known !== undefined && known.hostAddresses === hostAddresses) return known.policy;
    const own = sandboxId === undefined ? undefined : this.#own.get(sandboxId);
    const policy = this.#compile(sandboxId, { own, rules: this.#rulesFor(sandboxId) });
    this.#compiled.set(sandboxId, { policy, hostAddresses });
    return policy;
  }

  /** Global rules, and those of one sandbox or of all sandboxes. */
  rules(sandboxId?: string): Rule[] {
    const rules = this.#options.store.rules();
    return sandboxId === undefined
      ? rules
      : rules.filter((it) => it.sandboxId === undefined || it.sandboxId === sandboxId);
  }

  get initialized(): boolean {
    return this.#options.store.policyInitialized();
  }

  /** Failure('conflict') when a rule of the same scope says the contrary, Failure('invalid') when it cannot be meant. */
  addRule(rule: NewRule, sandboxId: string | undefined, createdVia: Rule['createdVia'] = 'added'): Rule {
    const { store } = this.#options;
    const existing = store.rules();
    if (existing.length >= rulesMax)
      throw new Failure('exhausted', `there are ${rulesMax} rules already`, {
        hint: 'Remove some: glovebox policy ls, glovebox policy rm network --id ID.',
      });
    const made = this.#made(rule, sandboxId, createdVia);
    const conflict = conflictOf(
      made,
      existing.filter((it) => it.sandboxId === sandboxId),
    );
    if (conflict !== undefined)
      throw new Failure(
        'conflict',
        `${made.decision}: ${JSON.stringify(made.resources.join(','))} conflicts with existing ${conflict.decision} rule "${conflict.id}"`,
        { hint: `Remove that rule first: glovebox policy rm network --id ${conflict.id}` },
      );
    store.changeRules({ add: [made] });
    this.#changed(sandboxId);
    return made;
  }

  removeRule(id: string): void {
    const rule = this.#options.store.rules().find((it) => it.id === id);
    if (rule === undefined)
      throw new Failure('not-found', `there is no rule ${JSON.stringify(id.slice(0, 64))}`, {
        hint: 'See `glovebox policy ls --wide` for the ids of rules.',
      });
    this.#options.store.changeRules({ drop: [id] });
    this.#changed(rule.sandboxId);
  }

  /** Chooses what holds for all sandboxes. Failure('conflict') when that has been chosen before. */
  init(preset: string): Rule[] {
    const { store } = this.#options;
    const chosen = presets.find((it) => it.name === preset);
    if (chosen === undefined)
      throw new Failure('invalid', `there is no preset ${JSON.stringify(preset.slice(0, 64))}`, {
        hint: `Choose one of ${presets.map((it) => it.name).join(', ')}.`,
      });
    if (store.policyInitialized())
      throw new Failure('conflict', 'the global network policy has been initialized already', {
        hint: 'Begin anew with: glovebox policy reset',
      });
    const rules = chosen.rules.map((rule) => this.#made(rule, undefined, 'default'));
    store.changeRules({ add: rules });
    store.setPolicyInitialized(true);
    this.#changed(undefined);
    return rules;
  }

  /** Forgets all global rules and the choice of a preset. Sandboxes keep their own. */
  reset(): void {
    const { store } = this.#options;
    const global = store.rules().filter((it) => it.sandboxId === undefined);
    store.changeRules({ drop: global.map((it) => it.id) });
    store.setPolicyInitialized(false);
    this.#changed(undefined);
  }

  /** In Docker's form, for a sandbox that has one. */
  proxyConfig(sandboxId: string): ProxyConfig | undefined {
    const own = this.#own.get(sandboxId);
    return own?.kind === 'proxy-config' ? own.config : undefined;
  }

  /** Starts from what the file says now, so that changes made by hand are kept. */
  changeProxyConfig(sandboxId: string, change: ProxyConfigChange): ProxyConfig {
    if (this.#own.get(sandboxId)?.kind === 'network-policy' && this.#own.get(sandboxId) !== nothing)
      throw new Failure(
        'conflict',
        `sandbox ${sandboxId} has a network policy in OpenSandbox's form, which knows no proxy configuration`,
        { hint: 'Add rules instead: glovebox policy allow network --sandbox NAME HOST' },
      );
    const config = changeProxyConfig(this.#configOnDisk(sandboxId) ?? defaultProxyConfig, change);
    const own: Own = { kind: 'proxy-config', config };
    this.#compile(sandboxId, { own, rules: this.#rulesFor(sandboxId) });
    this.#writeConfig(sandboxId, config);
    this.#own.set(sandboxId, own);
    this.#changed(sandboxId);
    return config;
  }

  /** In OpenSandbox's form, for a sandbox that has one. */
  networkPolicy(sandboxId: string): NetworkPolicy | undefined {
    const own = this.#own.get(sandboxId);
    return own?.kind === 'network-policy' ? own.policy : undefined;
  }

  /**
   * Failure('invalid'), and the old policy stays, when the new one cannot be compiled, or `check`, which gets to see what would hold, throws.
   */
  replaceNetworkPolicy(sandboxId: string, policy: NetworkPolicy, check?: (next: Policy) => void): void {
    if (this.#own.get(sandboxId)?.kind === 'proxy-config')
      throw new Failure('conflict', `sandbox ${sandboxId} has a proxy configuration in Docker's form`, {
        hint: 'Change that instead: glovebox network proxy NAME …',
      });
    const own: Own = { kind: 'network-policy', policy };
    const next = this.#compile(sandboxId, { own, rules: this.#rulesFor(sandboxId) });
    check?.(next);
    this.#options.store.saveNetworkPolicy(sandboxId, policy);
    this.#own.set(sandboxId, own);
    this.#changed(sandboxId);
  }

  #made(rule: NewRule, sandboxId: string | undefined, createdVia: Rule['createdVia']): Rule {
    const { decision, protocols = decision === 'deny' ? ['tcp', 'udp'] : ['tcp'] } = rule;
    if ((decision === 'allow' || decision === 'ask') && protocols.includes('udp'))
      throw new Failure('unsupported', `${decision} ${rule.resources[0]}: UDP has no way out of a sandbox`, {
        hint: 'Leave the protocol out; programs that try QUIC fall back to TCP at once.',
      });
    const made: Rule = {
      id: randomUUID(),
      ...(rule.name === undefined ? {} : { name: rule.name }),
      ...(sandboxId === undefined ? {} : { sandboxId }),
      decision,
      resources: rule.resources,
      ...(rule.methods === undefined ? {} : { methods: rule.methods }),
      ...(rule.path === undefined ? {} : { path: rule.path }),
      protocols,
      createdVia,
      createdAt: this.#options.now().toISOString(),
    };
    validateRule(made);
    return made;
  }

  #rulesFor(sandboxId: string | undefined): Rule[] {
    const passing = sandboxId === undefined ? [] : (this.#passing.get(sandboxId) ?? []);
    const kept = this.#options.store
      .rules()
      .filter((it) => it.sandboxId === undefined || it.sandboxId === sandboxId);
    return [...kept, ...passing];
  }

  #compile(
    sandboxId: string | undefined,
    { own, rules }: { own: Own | undefined; rules: readonly Rule[] },
  ): Policy {
    const { dangerouslyAllowMetadata, nameOf, mayOpenGuarded } = this.#options;
    const sandboxName = sandboxId === undefined ? undefined : (nameOf(sandboxId) ?? sandboxId);
    return compilePolicy({
      rules,
      ...(own === undefined ? {} : { own }),
      hostAddresses: this.#addresses(),
      dangerouslyAllowMetadata,
      ...(sandboxId !== undefined && mayOpenGuarded?.(sandboxId) === false ? { strange: true } : {}),
      ...(sandboxName === undefined ? {} : { sandboxName }),
    });
  }

  #changed(sandboxId: string | undefined): void {
    if (sandboxId === undefined) this.#compiled.clear();
    else this.#compiled.delete(sandboxId);
    this.#options.onChange(sandboxId);
  }

  #addresses(): string[] {
    const now = performance.now();
    if (now - this.#hostAddresses.at > hostAddressesMs) {
      const value = (this.#options.hostAddresses ?? ownAddresses)();
      this.#hostAddresses = { at: now, value };
    }
    return this.#hostAddresses.value;
  }

  #recorded(sandboxId: string): Own | undefined {
    const policy = this.#options.store.networkPolicy(sandboxId);
    if (policy !== undefined) return { kind: 'network-policy', policy };
    const config = this.#configOnDisk(sandboxId);
    return config && { kind: 'proxy-config', config };
  }

  #template(): Own | undefined {
    const { templateFile } = this.#options;
    const text = textOf(templateFile);
    return text === undefined
      ? undefined
      : { kind: 'proxy-config', config: parseProxyConfig(text, templateFile) };
  }

  #configFolder(sandboxId: string): string {
    return join(this.#options.folder, sandboxId);
  }

  #configFile(sandboxId: string): string {
    return join(this.#configFolder(sandboxId), 'proxy-config.json');
  }

  #configOnDisk(sandboxId: string): ProxyConfig | undefined {
    const file = this.#configFile(sandboxId);
    const text = textOf(file);
    return text === undefined ? undefined : parseProxyConfig(text, file);
  }

  #writeConfig(sandboxId: string, config: ProxyConfig): void {
    const file = this.#configFile(sandboxId);
    try {
      mkdirSync(dirname(file), { recursive: true, mode: 0o700 });
      writeFileSync(`${file}.new`, `${JSON.stringify(config, undefined, 2)}\n`, { mode: 0o600, flush: true });
      renameSync(`${file}.new`, file);
    } catch (error) {
      throw Failure.from(error, `write ${file}`);
    }
  }
}

/** Of a sandbox whose own policy cannot be read. */
const nothing = {
  kind: 'network-policy',
  policy: { defaultAction: 'deny', egress: [] as NetworkPolicy['egress'] },
} as const satisfies Own;

function ownAddresses(): string[] {
  return Object.values(networkInterfaces()).flatMap((all) => (all ?? []).map((it) => it.address));
}

function textOf(file: string): string | undefined {
  try {
    return readFileSync(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw Failure.from(error, `read ${file}`);
  }
}
