// Puts the way out together: journal, secrets, authority, policies, questions, sessions; and gives the API one object over all of it.
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { NetworkService } from '../api/network.ts';
import { withBell } from '../egress/bell-place.ts';
import { openCertificateAuthority } from '../egress/certificates/authority.ts';
import { readExtraAuthorities, systemRoots } from '../egress/certificates/roots.ts';
import { createUpstream } from '../egress/dial.ts';
import { Networks } from '../egress/networks.ts';
import { desktopNotifier } from '../egress/notify.ts';
import { Policies } from '../egress/policies.ts';
import { createQuestions, type Questions, ruleOf } from '../egress/questions.ts';
import { createEgress } from '../egress/session.ts';
import { prepareTrustFiles } from '../egress/trust.ts';
import { openJournal } from '../journal/file-journal.ts';
import { Failure } from '../lib/failure.ts';
import type { Log } from '../lib/log.ts';
import { learn } from '../policy/learn.ts';
import { parseHost, parseTarget, targetText } from '../policy/names.ts';
import type { Policy } from '../policy/policy.ts';
import { presets } from '../policy/presets.ts';
import type { Store } from '../store/store.ts';
import { openVault } from '../vault/open.ts';
import type { SandboxBell } from './bell.ts';
import type { Config } from './config.ts';
import type { Meters } from './meters.ts';

/** A head, a handshake and a connection that take longer than this come to nothing. */
const headMs = 10_000;
const handshakeMs = 10_000;
const connectMs = 20_000;
/** How much of the log `learn` looks at. */
const learnedEntriesMax = 100_000;

export interface HomeNetwork extends AsyncDisposable {
  networks: Networks;
  service: NetworkService;
  /** The placeholder of the secret that all sandboxes have for a service. */
  placeholderOf: (service: string) => string | undefined;
  questions: Questions;
}

/** Failure where something of it cannot be used as the configuration says; nothing is left open then. */
export async function openNetwork(
  config: Config,
  store: Store,
  bell: SandboxBell | undefined,
  meters: Meters,
  log: Log,
): Promise<HomeNetwork> {
  await using undo = new AsyncDisposableStack();
  const now = () => new Date();
  const { egress, paths } = config;
  const folder = paths.networkFolder;
  await mkdir(folder, { recursive: true, mode: 0o700 });
  const journal = undo.adopt(
    await openJournal({
      folder: join(folder, 'log'),
      now,
      limits: { fileBytesMax: egress.logFileBytes, filesMax: egress.logFiles },
      log,
    }),
    (it) => it.close(),
  );
  const vault = await openVault({
    file: join(folder, 'secrets'),
    keyFile: join(folder, 'secrets.key'),
    keyring: egress.keyring,
    now,
    readEnv: (name) => process.env[name],
    log,
  });
  const extraAuthorities = await readExtraAuthorities(egress.extraAuthorityFiles, {
    now,
    warn: (fields, message) => log.warn(fields, message),
  });
  const roots = systemRoots();
  const upstream = undo.adopt(
    createUpstream(
      {
        hosts: Object.fromEntries(Object.entries(egress.hosts).map(([name, to]) => [name, [...to]])),
        nameServers: [...egress.nameServers],
        extraAuthorities,
        ...(egress.upstreamProxy && {
          proxy: { url: egress.upstreamProxy.url, noProxy: [...egress.upstreamProxy.noProxy] },
        }),
        connectMs,
        handshakeMs,
      },
      roots,
    ),
    (it) => it.close(),
  );
  const authority = openCertificateAuthority({ keyFile: join(folder, 'authority.key'), now });
  const policies = new Policies({
    store,
    folder: join(folder, 'sandboxes'),
    templateFile: paths.proxyConfigFile,
    dangerouslyAllowMetadata: egress.dangerouslyAllowMetadata,
    nameOf: (sandboxId) => networks.nameOf(sandboxId),
    mayOpenGuarded: (sandboxId) => networks.isOwners(sandboxId),
    log,
    now,
    onChange: (sandboxId) => networks.changed(sandboxId),
  });
  const questions = createQuestions({
    holdMs: egress.askMs,
    now,
    remember: async (question, { allow, scope }) => {
      const sandboxId = scope === 'sandbox' ? question.sandbox : undefined;
      if (question.action !== undefined)
        return bell?.remember(question.action, allow ? 'allow' : 'deny', sandboxId);
      policies.addRule(ruleOf(question, allow), sandboxId, 'approval');
    },
    ...(egress.askNotify ? { notify: desktopNotifier() } : {}),
  });
  const sessions = createEgress({
    journal: meters.journal(journal),
    asker: questions,
    onTrouble: (error) =>
      log.error(
        { error: String((error as Error)?.stack ?? error) },
        'a connection of a sandbox failed in us',
      ),
    limits: { connections: egress.connectionsMax, headMs, handshakeMs, connectMs, idleMs: egress.idleMs },
    upstream: (sandboxId) => {
      const own = upstream.forCaller(sandboxId);
      return bell === undefined ? own : withBell(own, bell, sandboxId);
    },
    authority,
  });
  const networks = new Networks({
    policies,
    vault,
    authority,
    open: (sandbox) => sessions.open(sandbox),
    trustFiles: prepareTrustFiles([...roots, ...extraAuthorities]),
    inspect: egress.inspect,
    transparent: egress.transparent,
    bell,
    log,
  });

  const service: NetworkService = {
    rules: async (sandboxId) => ({ initialized: policies.initialized, items: policies.rules(sandboxId) }),
    addRule: async ({ sandboxId, ...rule }) => policies.addRule(rule, sandboxId, rule.createdVia),
    removeRule: async (id) => policies.removeRule(id),
    init: async (preset) => policies.init(preset),
    reset: async () => policies.reset(),
    presets: async () => [...presets],
    check: async ({ sandboxId, target, protocol = 'tcp', method, path }) => {
      const place = placeAsked(target);
      const request = method === undefined ? undefined : { method, path: path ?? place.path ?? '/' };
      const attempt = { host: place.host, port: place.port, protocol, ...(request && { request }) };
      const policy = policies.of(sandboxId);
      const decision = policy.decide(attempt);
      // An address is judged as such, too: there is nothing to resolve.
      const { denied } =
        place.host.kind === 'address' && decision.effect !== 'deny'
          ? policy.addresses(attempt, decision, [place.host.address])
          : {};
      const { effect, reason, message, rule, remedy } = denied ?? decision;
      return {
        target: targetText(place.host, place.port),
        decision: effect,
        reason,
        message,
        ...(rule && { rule }),
        ...(remedy !== undefined && { remedy }),
      };
    },
    learn: async ({ sandbox, paths: byPath, wildcards }) =>
      learn(await journal.read({ sandbox, limit: learnedEntriesMax }), sandbox, { paths: byPath, wildcards }),
    log: (filter) => journal.read(filter),
    followLog: (filter, signal) => journal.follow(filter, signal),
    questions: async () => questions.list(),
    followQuestions: (signal) => questions.follow(signal),
    answer: (id, answer) => questions.answer(id, answer),
    proxyConfig: async (sandboxId) => policies.proxyConfig(sandboxId) ?? {},
    changeProxyConfig: async (sandboxId, change) => policies.changeProxyConfig(sandboxId, change),
    networkPolicy: async (sandboxId) => policies.networkPolicy(sandboxId),
    changeNetworkPolicy: async (sandboxId, change) => {
      const policy = change(policies.networkPolicy(sandboxId));
      policies.replaceNetworkPolicy(sandboxId, policy, (next) => refuseUncovered(sandboxId, next));
      return policy;
    },
    credentialVault: (sandboxId) => credentialVaultOf(sandboxId),
    secrets: async (sandboxId) =>
      vault
        .list()
        .filter((it) => sandboxId === undefined || it.sandboxId === undefined || it.sandboxId === sandboxId),
    setSecret: (secret) => vault.set(secret),
    removeSecret: (id) => vault.remove(id),
  };

  const credentialVaultOf = (sandboxId: string) =>
    vault.openSandbox(sandboxId, (host) => covers(policies.of(sandboxId), host));

  /** A credential whose hosts are no longer allowed by name would silently stop to work, or go elsewhere once a default allows it. */
  function refuseUncovered(sandboxId: string, next: Policy): void {
    const bound = vault.list({ sandboxId }).filter((it) => it.name.startsWith('credential-vault/'));
    const hosts = bound.flatMap(({ bindings }) => bindings.flatMap((it) => it.hosts));
    const lost = hosts.find((host) => !covers(next, host));
    if (lost !== undefined)
      throw new Failure(
        'invalid',
        `the credential vault has a binding to ${lost}, which no rule would allow`,
        {
          hint: 'Delete the binding first, or keep a rule that allows its host.',
        },
      );
  }

  const opened = undo.move();
  const placeholderOf = (name: string) =>
    vault.list().find((it) => it.service && it.sandboxId === undefined && it.name === name)?.placeholder;
  return { networks, service, placeholderOf, questions, [Symbol.asyncDispose]: () => opened.disposeAsync() };
}

/** `host`, `host:port` or a URL. */
function placeAsked(target: string): ReturnType<typeof parseTarget> & { path?: string } {
  const url = /^(https?):\/\/([^/?#]*)([^?#]*)/.exec(target);
  if (url === null) return parseTarget(target, 443);
  const [, scheme, authority = '', path = ''] = url;
  if (authority === '') throw new Failure('invalid', `${JSON.stringify(target.slice(0, 200))} names no host`);
  return { ...parseTarget(authority, scheme === 'http' ? 80 : 443), path: path === '' ? '/' : path };
}

/** A host is covered when a rule, not a default, allows it; a wildcard when a name below it that nobody knows is. */
function covers(policy: Policy, host: string): boolean {
  const name = host.replace(/^\*\./, 'any-name-below.');
  const { effect, reason } = policy.decide({ host: parseHost(name), port: 443, protocol: 'tcp' });
  return effect === 'allow' && (reason === 'rule' || reason === 'request-needed');
}
