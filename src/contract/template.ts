// Templates: images of a runtime's own store that sandboxes are made from, built from a Dockerfile or a small file of ours, or saved from a sandbox.
//
//   GET    /v1/templates                     -> 200 { items: TemplateInfo[] }       of all runtimes that can be asked
//   POST   /v1/templates/build?…             body: BuildTemplate -> 200 NDJSON of BuildEvent, the last one `done` or `failed`
//   POST   /v1/templates/load?runtime=R&name=N   body: a tar (`docker save`, OCI layout, root file system) -> 201 TemplateInfo
//   GET    /v1/templates/{name}/export?runtime=R -> 200 application/x-tar
//   DELETE /v1/templates/{name}?runtime=R    -> 204
//   POST   /v1/sandboxes/{id}/save           { name } -> 201 TemplateInfo
import { z } from 'zod';
import { SetupStep } from './agents.ts';

const instant = z.iso.datetime({ offset: true });

/** `name` or `name:tag`, in Docker's words; a runtime without tags takes `name:tag` as one name. */
export const templateName = z
  .string()
  .max(255)
  .regex(
    /^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?$/,
    'use small letters, digits, and - _ . between them, perhaps with :tag',
  );

export const TemplateInfo = z.object({
  name: z.string(),
  runtime: z.string(),
  id: z.string(),
  sizeBytes: z.int(),
  createdAt: instant,
  /** What it was made from, as far as it is known: an image's name, or `sandbox NAME`. */
  base: z.string().optional(),
});
export type TemplateInfo = z.infer<typeof TemplateInfo>;

/** A template file (TOML): works for every runtime that can save. */
export const TemplateFile = z.strictObject({
  /** An image or another template; by default a small Debian system, which is made when it is not there. */
  base: z.string().min(1).max(1024).optional(),
  /** Debian packages. */
  packages: z
    .array(z.string().regex(/^[a-z0-9][a-z0-9+.-]*(=[A-Za-z0-9.+:~-]+)?$/, 'is no name of a Debian package'))
    .max(1_000)
    .default([]),
  files: z
    .array(
      z.strictObject({
        path: z.string().max(4096).regex(/^\//, 'must be absolute'),
        /** Either its content, or a file or folder beside the template file. */
        content: z.string().max(1_048_576).optional(),
        source: z.string().max(4096).optional(),
        mode: z
          .string()
          .regex(/^0?[0-7]{3}$/)
          .optional(),
        owner: z.string().max(128).optional(),
      }),
    )
    .max(1_000)
    .default([]),
  env: z.record(z.string().regex(/^[^=\0]+$/), z.string().max(65_536)).default({}),
  /** Made if it is not there; commands run as it. */
  user: z
    .string()
    .regex(/^[a-z_][a-z0-9_-]{0,31}$/, 'is no name of a user')
    .optional(),
  workdir: z.string().max(4096).regex(/^\//, 'must be absolute').optional(),
  run: z
    .array(z.union([z.string().min(1).max(65_536), SetupStep]))
    .max(1_000)
    .default([]),
  /** Run at every start of a sandbox made from it. */
  startup: z.array(z.string().min(1).max(65_536)).max(64).default([]),
  /** What the build may reach beside Debian's mirrors. */
  hosts: z.array(z.string().min(1).max(512)).max(256).default([]),
});
export type TemplateFile = z.infer<typeof TemplateFile>;

export const BuildEvent = z.discriminatedUnion('type', [
  z.object({ type: z.literal('step'), number: z.int(), of: z.int(), label: z.string(), cached: z.boolean() }),
  z.object({ type: z.literal('output'), text: z.string() }),
  z.object({ type: z.literal('done'), template: TemplateInfo }),
  z.object({
    type: z.literal('failed'),
    message: z.string(),
    hint: z.string().optional(),
    step: z.int().optional(),
  }),
]);
export type BuildEvent = z.infer<typeof BuildEvent>;
