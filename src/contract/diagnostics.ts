// Diagnostics of a sandbox as OpenSandbox has them (its diagnostics API 0.1.0): text for people, in JSON when a `scope` is asked for, else the older plain text.
import { z } from 'zod';

/**
 * What the text is about: `container`: the output of the main process; `process`: commands; `lifecycle`: states; `runtime`: how it ended, and memory; `network`:
 * attempts to reach something.
 */
export const diagnosticScopes = ['container', 'lifecycle', 'runtime', 'network', 'process', 'all'] as const;
export type DiagnosticScope = (typeof diagnosticScopes)[number];

/** Of text inline; more is cut at its beginning, since the end is what people look for. */
export const diagnosticBytesMax = 1024 * 1024;

export const DiagnosticContent = z.strictObject({
  sandboxId: z.string(),
  kind: z.enum(['logs', 'events']),
  scope: z.enum(diagnosticScopes),
  delivery: z.literal('inline'),
  contentType: z.string(),
  content: z.string().describe('Without control characters but tabs and line ends.'),
  contentLength: z.int().min(0).describe('Bytes of the content.'),
  truncated: z.boolean(),
  warnings: z.array(z.string()).optional(),
});
export type DiagnosticContent = z.infer<typeof DiagnosticContent>;
