// Glovebox's own routes about the way out: the policy, the log of attempts, questions to a person, secrets. The work is the network service's.
import type {
  CredentialBindingMetadata,
  CredentialMetadata,
  CredentialVaultCreate,
  CredentialVaultMutation,
  CredentialVaultState,
} from '../contract/credential-vault.ts';
import type {
  Answer,
  LearnedPolicy,
  LearnPolicy,
  LogEntry,
  NewRule,
  PolicyAnswer,
  PolicyCheck,
  Preset,
  ProxyConfig,
  ProxyConfigChange,
  Question,
  Rule,
  SecretInfo,
  SetSecret,
} from '../contract/network.ts';
import type { NetworkPolicy } from '../contract/opensandbox.ts';
import { Failure } from '../lib/failure.ts';
import { isOwner, refuseFromAfar } from './gate.ts';
import type { ApiOptions, Handlers } from './handlers.ts';
import { sendLines } from './lines.ts';
import { answerLog, loggedSandbox } from './logs.ts';
import { sandboxIdOf } from './reference.ts';

/** A request about one sandbox, which the API has found already; about all of them when `sandboxId` is absent. */
type Scoped<T> = Omit<T, 'sandbox'> & { sandboxId?: string };

/** What the API can ask of the network around the sandboxes. Changes hold at once, for open connections too. */
export interface NetworkService {
  /** All rules of the operator, or those that hold for one sandbox (global ones among them). `initialized`: whether there ever was a choice. */
  rules(sandboxId?: string): Promise<{ initialized: boolean; items: Rule[] }>;
  /** Failure('invalid') says where a rule is wrong; Failure('conflict') when it contradicts one of the same scope. */
  addRule(rule: Scoped<NewRule>): Promise<Rule>;
  /** Failure('not-found'). */
  removeRule(ruleId: string): Promise<void>;
  /** Failure('invalid') for an unknown preset; Failure('conflict') when there are global rules already. */
  init(preset: string): Promise<Rule[]>;
  reset(): Promise<void>;
  presets(): Promise<Preset[]>;
  check(check: Scoped<PolicyCheck>): Promise<PolicyAnswer>;
  /** `sandbox`: an id, or what the log knows of one that is gone. */
  learn(request: LearnPolicy): Promise<LearnedPolicy>;

  /** Newest last. `sandbox` as in `learn`. */
  log(filter: { sandbox?: string; limit: number }): Promise<LogEntry[]>;
  /** New entries, and entries again when they end, from the moment of this call on. Ends with the signal. */
  followLog(filter: { sandbox?: string }, signal: AbortSignal): AsyncIterable<LogEntry>;

  questions(): Promise<Question[]>;
  /** Those that are open, then new ones. Ends with the signal. */
  followQuestions(signal: AbortSignal): AsyncIterable<Question>;
  /** Failure('not-found') when there is no such question any more. */
  answer(questionId: string, answer: Answer): Promise<void>;

  /** Empty for a sandbox that has none. */
  proxyConfig(sandboxId: string): Promise<ProxyConfig>;
  /** Failure('conflict') for a sandbox that was made with OpenSandbox's policy. */
  changeProxyConfig(sandboxId: string, change: ProxyConfigChange): Promise<ProxyConfig>;

  /** OpenSandbox's policy of a sandbox; undefined for one that has none. */
  networkPolicy(sandboxId: string): Promise<NetworkPolicy | undefined>;
  /**
   * Puts what `change` makes of the policy in its place; nothing else changes it meanwhile. What `change` throws, and Failure('invalid') for a
   * policy that cannot be kept, leave it as it was.
   */
  changeNetworkPolicy(
    sandboxId: string,
    change: (now: NetworkPolicy | undefined) => NetworkPolicy,
  ): Promise<NetworkPolicy>;
  credentialVault(sandboxId: string): CredentialVault;

  /** All secrets, or those that one sandbox may use (global ones among them). */
  secrets(sandboxId?: string): Promise<SecretInfo[]>;
  setSecret(secret: Scoped<SetSecret>): Promise<SecretInfo>;
  /** Failure('not-found'). */
  removeSecret(secretId: string): Promise<void>;
}

type Awaitable<T> = T | Promise<T>;

/** OpenSandbox's credential vault of one sandbox. Failure('not-found') for what is not there, the vault itself included. */
export interface CredentialVault {
  /** Failure('conflict') when there is one already. */
  create(request: CredentialVaultCreate): Promise<CredentialVaultState>;
  state(): Awaitable<CredentialVaultState>;
  /** Failure('conflict') when `expectedRevision` is another. */
  patch(request: CredentialVaultMutation): Promise<CredentialVaultState>;
  remove(): Promise<void>;
  credential(name: string): Awaitable<CredentialMetadata>;
  binding(name: string): Awaitable<CredentialBindingMetadata>;
}

type NetworkHandlers = Handlers<
  | ('listRules' | 'addRule' | 'removeRule' | 'initPolicy' | 'resetPolicy' | 'listPresets' | 'checkPolicy')
  | ('learnPolicy' | 'networkLog' | 'listQuestions' | 'answerQuestion' | 'getProxyConfig')
  | ('changeProxyConfig' | 'listSecrets' | 'setSecret' | 'removeSecret')
>;

const sourceNames = { env: 'variable', file: 'file', command: 'command' } as const;

export function networkHandlers({ service, network, ownerKey }: ApiOptions): NetworkHandlers {
  const idOf = (reference: string | undefined) =>
    reference === undefined ? undefined : sandboxIdOf(service, reference);
  const scoped = <T extends { sandbox?: string | undefined }>({ sandbox, ...rest }: T): Scoped<T> => {
    const sandboxId = idOf(sandbox);
    return { ...rest, ...(sandboxId === undefined ? {} : { sandboxId }) };
  };

  return {
    listRules: async ({ query }) => ({ status: 200, json: await network.rules(idOf(query.sandbox)) }),
    addRule: async ({ body }) => ({ status: 201, json: await network.addRule(scoped(body)) }),
    removeRule: async ({ params }) => {
      await network.removeRule(params.ruleId ?? '');
      return { status: 204 };
    },
    initPolicy: async ({ body }) => ({ status: 200, json: { items: await network.init(body.preset) } }),
    resetPolicy: async () => {
      await network.reset();
      return { status: 204 };
    },
    listPresets: async () => ({ status: 200, json: { items: await network.presets() } }),
    checkPolicy: async ({ body }) => ({ status: 200, json: await network.check(scoped(body)) }),
    learnPolicy: async ({ body }) => ({
      status: 200,
      json: await network.learn({ ...body, sandbox: loggedSandbox(service, body.sandbox).sandbox }),
    }),

    networkLog: async (call) => await answerLog(call, service, network),

    listQuestions: async ({ query, exchange }) =>
      query.follow
        ? await sendLines(exchange, network.followQuestions(exchange.signal))
        : { status: 200, json: { items: await network.questions() } },
    answerQuestion: async ({ params, body }) => {
      await network.answer(params.questionId ?? '', body);
      return { status: 204 };
    },

    getProxyConfig: async ({ sandboxId }) => {
      service.get(sandboxId);
      return { status: 200, json: await network.proxyConfig(sandboxId) };
    },
    changeProxyConfig: async ({ sandboxId, body }) => {
      service.get(sandboxId);
      return { status: 200, json: await network.changeProxyConfig(sandboxId, body) };
    },

    listSecrets: async ({ query }) => ({
      status: 200,
      json: { items: await network.secrets(idOf(query.sandbox)) },
    }),
    setSecret: async ({ body, exchange }) => {
      refuseFromAfar(exchange.request, 'secrets');
      // Other sources have the daemon read or run something of its host as its own user, and a binding can send what comes of it anywhere.
      if (body.source.type !== 'value' && !isOwner(exchange.request, ownerKey))
        throw new Failure(
          'permission',
          `secret ${body.name}: only the daemon's own user may have it taken from a ${sourceNames[body.source.type]} of the host`,
          {
            hint: 'Send the value itself, or call as that user: `glovebox secret` and the SDK then prove it by themselves.',
          },
        );
      return { status: 200, json: await network.setSecret(scoped(body)) };
    },
    removeSecret: async ({ params }) => {
      await network.removeSecret(params.secretId ?? '');
      return { status: 204 };
    },
  };
}
