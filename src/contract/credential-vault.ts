// OpenSandbox's credential vault as it crosses the wire (specification: egress API 0.1.0, its npm client 0.1.11). It lies at the sandbox's port
// 18080, beside the policy.
//
//   POST   /credential-vault                     CredentialVaultCreate    -> 201 CredentialVaultState     409 when there is one already
//   GET    /credential-vault                                              -> 200 CredentialVaultState     404 when there is none
//   PATCH  /credential-vault                     CredentialVaultMutation  -> 200 CredentialVaultState     409 expectedRevision is another
//   DELETE /credential-vault                                              -> 204
//   GET    /credential-vault/credentials[/NAME]                           -> 200 { revision, credentials } or one of them
//   GET    /credential-vault/bindings[/NAME]                              -> 200 { revision, bindings } or one of them
//
// Values go in and never come out. Beyond the specification's text, its client may send `passthrough` and `substitutions`.
import { z } from 'zod';

const name = z.string().trim().min(1).max(256);
const headerName = z
  .string()
  .trim()
  .max(128)
  .regex(/^[A-Za-z0-9!#$%&'*+\-.^_`|~]+$/, 'is no name of a header');

export const VaultCredential = z.strictObject({
  name,
  source: z.strictObject({
    type: z.literal('inline').default('inline'),
    value: z.string().min(1).max(65_536),
  }),
});
export type VaultCredential = z.infer<typeof VaultCredential>;

/** Ports follow from the scheme; naming them is allowed and changes nothing. */
export const CredentialMatch = z.strictObject({
  schemes: z
    .array(z.enum(['https', 'http']))
    .max(2)
    .optional(),
  ports: z
    .array(z.union([z.literal(80), z.literal(443)]))
    .max(2)
    .optional(),
  hosts: z.array(z.string().trim().min(1).max(255)).min(1).max(64),
  methods: z.array(z.string().trim().min(1).max(16)).max(16).optional(),
  paths: z.array(z.string().trim().min(1).max(2048)).max(64).optional(),
});

export const CredentialSubstitution = z.strictObject({
  credential: name,
  placeholder: z.string().trim().min(1).max(512),
  in: z
    .array(z.enum(['path', 'query', 'header', 'body']))
    .min(1)
    .max(8),
});

const substitutions = z.array(CredentialSubstitution).max(64).optional();

export const CredentialAuth = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('bearer'), credential: name, substitutions }),
  z.strictObject({ type: z.literal('basic'), credential: name, substitutions }),
  z.strictObject({ type: z.literal('apiKey'), name: headerName, credential: name, substitutions }),
  z.strictObject({
    type: z.literal('customHeaders'),
    headers: z
      .array(z.strictObject({ name: headerName, credential: name }))
      .min(1)
      .max(32),
    substitutions,
  }),
  z.strictObject({ type: z.literal('passthrough'), substitutions }),
]);
export type CredentialAuth = z.infer<typeof CredentialAuth>;

export const VaultBinding = z.strictObject({ name, match: CredentialMatch, auth: CredentialAuth });
export type VaultBinding = z.infer<typeof VaultBinding>;

/** Of each kind, in one vault or one request. */
export const vaultItemsMax = 256;
const some = <T extends z.ZodType>(item: T) => z.array(item).max(vaultItemsMax);

export const CredentialVaultCreate = z.strictObject({
  credentials: some(VaultCredential),
  bindings: some(VaultBinding),
});
export type CredentialVaultCreate = z.infer<typeof CredentialVaultCreate>;

export const CredentialVaultMutation = z.strictObject({
  expectedRevision: z.int().optional(),
  credentials: z
    .strictObject({
      add: some(VaultCredential).optional(),
      replace: some(VaultCredential).optional(),
      delete: some(name).optional(),
    })
    .optional(),
  bindings: z
    .strictObject({
      add: some(VaultBinding).optional(),
      replace: some(VaultBinding).optional(),
      delete: some(name).optional(),
    })
    .optional(),
});
export type CredentialVaultMutation = z.infer<typeof CredentialVaultMutation>;

export const CredentialMetadata = z.strictObject({
  name: z.string(),
  sourceType: z.string(),
  revision: z.int(),
});
export type CredentialMetadata = z.infer<typeof CredentialMetadata>;

/** `name` is the header of an `apiKey`. The credentials that a binding refers to are not told. */
export const CredentialBindingMetadata = z.strictObject({
  name: z.string(),
  revision: z.int(),
  match: CredentialMatch,
  auth: z.strictObject({ type: z.string(), name: z.string().optional() }),
});
export type CredentialBindingMetadata = z.infer<typeof CredentialBindingMetadata>;

export const CredentialVaultState = z.strictObject({
  revision: z.int(),
  credentials: z.array(CredentialMetadata),
  bindings: z.array(CredentialBindingMetadata),
});
export type CredentialVaultState = z.infer<typeof CredentialVaultState>;
