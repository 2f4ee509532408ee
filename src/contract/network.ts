// The way out as it crosses a wire or a disk: rules, the log of attempts, questions to a person, secrets without their values.
//
//   GET    /v1/policy/rules?sandbox=S                 -> 200 { initialized, items: Rule[] }
//   POST   /v1/policy/rules            NewRule        -> 201 Rule         409 when it contradicts one of the same scope
//   DELETE /v1/policy/rules/{ruleId}                  -> 204
//   POST   /v1/policy/init             { preset }     -> 200 { items }    409 when there are global rules already
//   POST   /v1/policy/reset            {}             -> 204              forgets all global rules
//   GET    /v1/policy/presets                         -> 200 { items: Preset[] }
//   POST   /v1/policy/check            PolicyCheck    -> 200 PolicyAnswer
//   POST   /v1/policy/learn            LearnPolicy    -> 200 LearnedPolicy
//   GET    /v1/network/log?sandbox=S&limit=N          -> 200 { items: LogEntry[] }       &follow=true -> NDJSON without end
//   GET    /v1/network/questions                      -> 200 { items: Question[] }       ?follow=true -> NDJSON without end
//   POST   /v1/network/questions/{questionId}  Answer -> 204
//   GET    /v1/sandboxes/{id}/network                 -> 200 ProxyConfig as far as it has one
//   PATCH  /v1/sandboxes/{id}/network  ProxyConfigChange -> 200
//   GET    /v1/secrets?sandbox=S                      -> 200 { items: SecretInfo[] }
//   PUT    /v1/secrets                 SetSecret      -> 200 SecretInfo
//   DELETE /v1/secrets/{secretId}                     -> 204
//
// OpenSandbox's egress API (/policy, /credential-vault) lies at the sandbox's port 18080 and is spelt in opensandbox.ts.
import { z } from 'zod';

const instant = z.iso.datetime({ offset: true });
const resource = z.string().min(1).max(512);

export const RuleDecision = z.enum(['allow', 'deny', 'ask', 'bypass']);

/** `bypass` allows nothing; it says that what is allowed passes without being looked into. */
export const NewRule = z.strictObject({
  decision: RuleDecision,
  resources: z.array(resource).min(1).max(1024),
  /** Id or name of a sandbox; all sandboxes when absent. */
  sandbox: z.string().max(128).optional(),
  /** HTTP methods, or ANY. */
  methods: z.array(z.string().max(16)).max(16).optional(),
  path: z.string().max(2048).optional(),
  protocols: z
    .array(z.enum(['tcp', 'udp']))
    .min(1)
    .max(2)
    .optional(),
  name: z.string().max(128).optional(),
  /** How it came about, where that was not by hand. */
  createdVia: z.enum(['added', 'learned']).optional(),
});
export type NewRule = z.infer<typeof NewRule>;

export const Rule = z.object({
  id: z.string().max(64),
  name: z.string().max(128).optional(),
  /** Id of a sandbox. */
  sandboxId: z.string().max(128).optional(),
  decision: RuleDecision,
  resources: z.array(resource),
  methods: z.array(z.string()).optional(),
  path: z.string().optional(),
  protocols: z.array(z.enum(['tcp', 'udp'])),
  createdVia: z.enum(['default', 'added', 'approval', 'learned']),
  createdAt: instant,
});
export type Rule = z.infer<typeof Rule>;

/** A set of global rules to begin with. */
export const Preset = z.object({ name: z.string(), description: z.string(), rules: z.array(NewRule) });
export type Preset = z.infer<typeof Preset>;

export const PolicyCheck = z.strictObject({
  sandbox: z.string().max(128).optional(),
  /** `host`, `host:port` (443 when absent), `[v6]:port`, or a URL. */
  target: z.string().min(1).max(2048),
  protocol: z.enum(['tcp', 'udp']).optional(),
  method: z.string().max(16).optional(),
  path: z.string().max(2048).optional(),
});

export type PolicyCheck = z.infer<typeof PolicyCheck>;

export const PolicyAnswer = z.object({
  target: z.string(),
  decision: z.enum(['allow', 'deny', 'ask']),
  reason: z.string(),
  message: z.string(),
  rule: z.object({ id: z.string(), text: z.string(), source: z.string() }).optional(),
  remedy: z.string().optional(),
});
export type PolicyAnswer = z.infer<typeof PolicyAnswer>;

/** How a connection came to us, in Docker Sandboxes' words: through the proxy and looked into; tunnelled; caught on its way; not HTTP. */
export const PathKind = z.enum(['forward', 'forward-bypass', 'transparent', 'network']);

/** One attempt of a guest: a request, a tunnel, a connection, or a name that was asked for and refused. */
export const LogEntry = z.object({
  /** Counts up without gaps over all sandboxes of a home, restarts included; a gap in a filtered view is another sandbox's entry. */
  seq: z.int().nonnegative(),
  at: instant,
  sandbox: z.string(),
  sandboxName: z.string().optional(),
  /** What in the guest asked, as far as it could be seen; said by the guest, so not to be trusted. */
  process: z.object({ pid: z.int(), command: z.string().max(256) }).optional(),
  kind: PathKind,
  protocol: z.enum(['http', 'https', 'ws', 'wss', 'tls', 'tcp', 'udp', 'dns']),
  host: z.string(),
  port: z.int(),
  /** The address that was dialled. */
  address: z.string().optional(),
  method: z.string().optional(),
  /** Values of the query are replaced by `*`. */
  path: z.string().optional(),
  decision: z.enum(['allow', 'deny']),
  reason: z.string(),
  rule: z.object({ id: z.string(), text: z.string() }).optional(),
  /** Names of the secrets that were put in. */
  secrets: z.array(z.string()).optional(),
  /** A placeholder of a secret was on its way to where it does not belong, or the like. */
  alarm: z.string().optional(),
  /** Of the answer, when it was HTTP. */
  status: z.int().optional(),
  /** Why it failed after it was allowed, e.g. `upstream_tls`. */
  error: z.string().optional(),
  /** The same in words, e.g. that a certificate has expired. */
  detail: z.string().optional(),
  /** Bytes from the guest and to the guest, and milliseconds from first to last; absent while it goes on. */
  bytesOut: z.number().optional(),
  bytesIn: z.number().optional(),
  durationMs: z.number().optional(),
  /** Entries of this sandbox that were left out before this one because it made too many. */
  dropped: z.int().optional(),
});
export type LogEntry = z.infer<typeof LogEntry>;

export const Question = z.object({
  id: z.string(),
  at: instant,
  /** When it counts as refused. */
  until: instant,
  sandbox: z.string(),
  sandboxName: z.string().optional(),
  host: z.string(),
  port: z.int(),
  protocol: z.string(),
  method: z.string().optional(),
  path: z.string().optional(),
  rule: z.string().optional(),
  /** An action of the bell, and what is asked of it in one line: not a connection then, but something that the host is to do (`protocol` is `bell`). */
  action: z.string().optional(),
  detail: z.string().optional(),
});
export type Question = z.infer<typeof Question>;

/** `once`: this attempt; `sandbox` and `always` also make a rule, or a decision about the action. */
export const Answer = z.strictObject({
  allow: z.boolean(),
  scope: z.enum(['once', 'sandbox', 'always']).default('once'),
});
export type Answer = z.infer<typeof Answer>;

export const LearnPolicy = z.strictObject({
  sandbox: z.string().min(1).max(128),
  /** Rules as narrow as methods and paths, rather than hosts and ports. */
  paths: z.boolean().default(false),
  /** One pattern for several names of the same domain. */
  wildcards: z.boolean().default(false),
});
export type LearnPolicy = z.infer<typeof LearnPolicy>;

export const LearnedPolicy = z.object({
  sandbox: z.string(),
  /** The least rules that allow all that the log shows as allowed. */
  rules: z.array(NewRule),
  /** The proof: entries of the log that were decided anew by these rules alone, and those that came out otherwise. */
  replayed: z.int(),
  differing: z.int(),
});
export type LearnedPolicy = z.infer<typeof LearnedPolicy>;

export const ProxyConfigChange = z.strictObject({
  policy: z.enum(['allow', 'deny']).optional(),
  allowHosts: z.array(resource).max(1024).default([]),
  blockHosts: z.array(resource).max(1024).default([]),
  bypassHosts: z.array(resource).max(1024).default([]),
  allowCidrs: z.array(resource).max(1024).default([]),
  blockCidrs: z.array(resource).max(1024).default([]),
  bypassCidrs: z.array(resource).max(1024).default([]),
});
export type ProxyConfigChange = z.infer<typeof ProxyConfigChange>;

/** A sandbox's proxy-config.json, in Docker's own words; nothing in it for a sandbox that has none. */
export const ProxyConfig = z.object({
  policy: z.enum(['allow', 'deny']).optional(),
  network: z
    .object({
      allowedDomains: z.array(z.string()),
      blockedDomains: z.array(z.string()),
      bypassDomains: z.array(z.string()),
      allowCIDR: z.array(z.string()),
      blockCIDR: z.array(z.string()),
      bypassCIDR: z.array(z.string()),
    })
    .optional(),
});
export type ProxyConfig = z.infer<typeof ProxyConfig>;

/** Where a value comes from; read by the daemon when it is needed, or once when set. Never a value itself. */
export const SecretSource = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('value'), value: z.string().min(1).max(65_536) }),
  z.strictObject({ type: z.literal('env'), variable: z.string().min(1).max(256) }),
  z.strictObject({
    type: z.literal('file'),
    path: z.string().min(1).max(4096),
    /** The file is JSON, and this JSON pointer (RFC 6901) leads to the value in it, e.g. `/tokens/access`. */
    json: z
      .string()
      .max(512)
      .regex(/^(\/([^/~]|~[01])*)+$/, 'is no JSON pointer')
      .optional(),
  }),
  z.strictObject({
    type: z.literal('command'),
    command: z.array(z.string().max(4096)).min(1).max(64),
    refreshSeconds: z.int().min(0).max(86_400).optional(),
  }),
]);

export const SecretBinding = z.strictObject({
  /** Exact names, or `*.` and a name. */
  hosts: z.array(z.string().min(1).max(253)).min(1).max(64),
  ports: z.array(z.int().min(1).max(65_535)).max(16).default([443]),
  /** The header that carries it, and its form with `%s` for the value. A `base64(…)` at the end of it is encoded: `Basic base64(user:%s)`. */
  header: z.string().min(1).max(128).optional(),
  format: z.string().min(1).max(512).optional(),
  methods: z.array(z.string().max(16)).max(16).optional(),
  /** Paths, each exact or ending in `*`. */
  paths: z.array(z.string().min(1).max(2048)).max(64).optional(),
  /**
   * Replace the placeholder wherever it stands in these parts of a request; with no `header` either, in headers alone. What stands in a path, a query
   * or a body, a server may keep for whoever asks later.
   */
  substitute: z.array(z.enum(['header', 'query', 'path', 'body'])).optional(),
  /** Sign the request anew with an AWS key pair; the value is `ACCESS_KEY_ID:SECRET` or JSON. */
  awsSigV4: z.boolean().optional(),
});
export type SecretBinding = z.infer<typeof SecretBinding>;

export const SetSecret = z.strictObject({
  /** A built-in service (`anthropic`, `github`, …), or a name of one's own with bindings. */
  name: z.string().regex(/^[a-z0-9][a-z0-9._-]{0,63}$/, 'use at most 64 of a-z, 0-9, ".", "_" and "-"'),
  sandbox: z.string().max(128).optional(),
  source: SecretSource,
  bindings: z.array(SecretBinding).max(16).optional(),
  /** Variables of the guest that hold the placeholder. */
  env: z
    .array(z.string().regex(/^[A-Za-z_][A-Za-z0-9_]{0,127}$/))
    .max(16)
    .optional(),
  /** How the placeholder looks: `{rand}` becomes 32 random letters and digits, `{rand:N}` N of them. */
  placeholder: z.string().min(1).max(256).optional(),
});
export type SetSecret = z.infer<typeof SetSecret>;

export const SecretInfo = z.object({
  id: z.string(),
  name: z.string(),
  sandboxId: z.string().optional(),
  service: z.boolean(),
  sourceType: z.enum(['value', 'env', 'file', 'command']),
  /** E.g. `gho_GCaw****…****43qy`; never enough to use. */
  masked: z.string(),
  placeholder: z.string(),
  env: z.array(z.string()),
  bindings: z.array(SecretBinding),
  createdAt: instant,
});
export type SecretInfo = z.infer<typeof SecretInfo>;
