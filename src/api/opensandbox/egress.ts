// OpenSandbox's egress API at a sandbox's port 18080: its own network policy and its credential vault. Errors are plain text.
// A guest cannot widen its own policy with it: even where its rules let it reach this server, it would need the sandbox's access token, which
// only clients get, with an endpoint; nothing inside knows it.
import {
  type NetworkPolicy,
  type NetworkRule,
  networkRulesMax,
  type PolicyStatusResponse,
  type ReplaceNetworkPolicy,
} from '../../contract/opensandbox.ts';
import { Failure } from '../../lib/failure.ts';
import { refuseFromAfar } from '../gate.ts';
import type { ApiOptions, Handlers } from '../handlers.ts';
import { Refusal } from '../refusal.ts';

type EgressHandlers = Handlers<
  | ('egressHealth' | 'getEgressPolicy' | 'replaceEgressPolicy' | 'putEgressPolicy' | 'patchEgressPolicy')
  | ('deleteEgressRules' | 'createCredentialVault' | 'getCredentialVault' | 'patchCredentialVault')
  | ('deleteCredentialVault' | 'listCredentials' | 'getCredential' | 'listBindings' | 'getBinding')
>;

export function egressHandlers({ service, network }: ApiOptions): EgressHandlers {
  const replace = async ({ sandboxId, body }: { sandboxId: string; body: ReplaceNetworkPolicy }) => {
    service.get(sandboxId);
    const wanted: NetworkPolicy = {
      defaultAction: body?.defaultAction ?? 'deny',
      egress: body?.egress ?? [],
    };
    const policy = await network.changeNetworkPolicy(sandboxId, () => bounded(wanted));
    const status = statusOf(policy);
    return answered(policy, status.mode === 'deny_all' ? 'everything is denied' : undefined);
  };
  const vaultOf = (sandboxId: string) => network.credentialVault(service.get(sandboxId).id);

  return {
    egressHealth: ({ sandboxId }) => {
      service.get(sandboxId);
      return { status: 200, type: 'text/plain; charset=utf-8', bytes: ok(), length: 2 };
    },

    getEgressPolicy: async ({ sandboxId }) => {
      service.get(sandboxId);
      const policy = present(await network.networkPolicy(sandboxId));
      return { status: 200, json: { ...statusOf(policy), policy } satisfies PolicyStatusResponse };
    },
    replaceEgressPolicy: replace,
    putEgressPolicy: replace,
    patchEgressPolicy: async ({ sandboxId, body }) => {
      service.get(sandboxId);
      return answered(
        await network.changeNetworkPolicy(sandboxId, (now) => bounded(patched(present(now), body))),
      );
    },
    deleteEgressRules: async ({ sandboxId, body }) => {
      service.get(sandboxId);
      let before = 0;
      const policy = await network.changeNetworkPolicy(sandboxId, (now) => {
        before = present(now).egress.length;
        return without(present(now), body);
      });
      return answered(policy, policy.egress.length === before ? 'no matching targets found' : undefined);
    },

    createCredentialVault: async ({ sandboxId, body, exchange }) => {
      refuseFromAfar(exchange.request, 'credentials');
      return { status: 201, json: await vaultOf(sandboxId).create(body) };
    },
    getCredentialVault: async ({ sandboxId }) => ({ status: 200, json: await vaultOf(sandboxId).state() }),
    patchCredentialVault: async ({ sandboxId, body, exchange }) => {
      refuseFromAfar(exchange.request, 'credentials');
      return { status: 200, json: await vaultOf(sandboxId).patch(body) };
    },
    deleteCredentialVault: async ({ sandboxId, exchange }) => {
      refuseFromAfar(exchange.request, 'credentials');
      await vaultOf(sandboxId).remove();
      return { status: 204 };
    },
    listCredentials: async ({ sandboxId }) => {
      const { revision, credentials } = await vaultOf(sandboxId).state();
      return { status: 200, json: { revision, credentials } };
    },
    getCredential: async ({ sandboxId, params }) => ({
      status: 200,
      json: await vaultOf(sandboxId).credential(params.name ?? ''),
    }),
    listBindings: async ({ sandboxId }) => {
      const { revision, bindings } = await vaultOf(sandboxId).state();
      return { status: 200, json: { revision, bindings } };
    },
    getBinding: async ({ sandboxId, params }) => ({
      status: 200,
      json: await vaultOf(sandboxId).binding(params.name ?? ''),
    }),
  };
}

async function* ok(): AsyncIterable<Uint8Array> {
  yield Buffer.from('ok');
}

function present(policy: NetworkPolicy | undefined): NetworkPolicy {
  if (policy !== undefined) return policy;
  throw new Failure(
    'not-found',
    'this sandbox was made without a networkPolicy: the rules of this server hold',
    {
      hint: 'Create it with a networkPolicy, or give it one with POST /policy.',
    },
  );
}

function statusOf({ defaultAction, egress }: NetworkPolicy): PolicyStatusResponse {
  const plain = defaultAction === 'deny' ? 'deny_all' : 'allow_all';
  return { status: 'ok', mode: egress.length > 0 ? 'enforcing' : plain, enforcementMode: 'dns+nft' };
}

function answered(policy: NetworkPolicy, reason?: string) {
  return { status: 200, json: { ...statusOf(policy), ...(reason === undefined ? {} : { reason }) } };
}

/** Names are compared without regard to case, with or without the last dot. */
const key = (target: string) => target.trim().toLowerCase().replace(/\.$/, '');

/** The rules in front of those that are there; of several for one target the first counts, and the policy's own for it are dropped. */
export function patched(policy: NetworkPolicy, rules: NetworkRule[]): NetworkPolicy {
  const first = new Map<string, NetworkRule>();
  for (const rule of rules) if (!first.has(key(rule.target))) first.set(key(rule.target), rule);
  const rest = policy.egress.filter((it) => !first.has(key(it.target)));
  return { ...policy, egress: [...first.values(), ...rest] };
}

function without(policy: NetworkPolicy, targets: string[]): NetworkPolicy {
  const gone = new Set(targets.map(key));
  return { ...policy, egress: policy.egress.filter((it) => !gone.has(key(it.target))) };
}

function bounded(policy: NetworkPolicy): NetworkPolicy {
  if (policy.egress.length <= networkRulesMax) return policy;
  throw new Refusal('exhausted', `${policy.egress.length} rules; the most is ${networkRulesMax}`, {
    status: 413,
  });
}
