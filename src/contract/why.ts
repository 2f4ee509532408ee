// Why a sandbox, or a command in it, came to its end; also of sandboxes that are gone.
//
//   GET /v1/sandboxes/{id or name}/why?command=C   -> 200 Why
import { z } from 'zod';
import { BellEntry } from './bell.ts';
import { ExecExit } from './guest.ts';
import { LogEntry } from './network.ts';

const instant = z.iso.datetime({ offset: true });

export const WhyCommand = z.object({
  id: z.string(),
  command: z.string(),
  startedAt: instant,
  finishedAt: instant.optional(),
  /** Absent while it runs, or when it ran until the end of its sandbox. */
  exit: z.object({ ...ExecExit.shape, reason: z.string() }).optional(),
  /** The same in a sentence. */
  explanation: z.string(),
  /** The end of what it wrote, as far as it is kept. */
  output: z.string().optional(),
});
export type WhyCommand = z.infer<typeof WhyCommand>;

export const Why = z.object({
  id: z.string(),
  name: z.string().optional(),
  /** As of a sandbox; `Gone` when it is removed. */
  state: z.string(),
  /** Why it is in this state, and since when. */
  reason: z.string(),
  message: z.string(),
  since: instant,
  /** What happened, and what to do next, in whole sentences. */
  explanation: z.string(),
  next: z.string(),
  runtime: z.string().optional(),
  image: z.string().optional(),
  agent: z.string().optional(),
  createdAt: instant.optional(),
  expiresAt: instant.optional(),
  removedBy: z.string().optional(),
  limits: z
    .object({
      cpu: z.number().optional(),
      memoryBytes: z.number().optional(),
      pids: z.number().optional(),
      diskBytes: z.number().optional(),
    })
    .optional(),
  /** Of all that has run in it since it was started, where its runtime tells. */
  memory: z.object({ peakBytes: z.number().optional(), kills: z.int() }).optional(),
  /** How what ran in it ended, the last time that it did. */
  ending: z
    .object({
      at: instant,
      /** What ended first and took the rest with it; `daemon`: it was ended from outside, on request or in time. */
      of: z.enum(['main', 'machine', 'agent', 'daemon']),
      reason: z.string(),
      message: z.string(),
      exitCode: z.int().optional(),
      signal: z.string().optional(),
      /** The end of what the main process wrote. */
      output: z.string().optional(),
    })
    .optional(),
  /** The one that was asked about. */
  command: WhyCommand.optional(),
  /** The last ones that did not end well. */
  commands: z.array(WhyCommand),
  /** The last attempts to reach something that were refused. */
  refused: z.array(LogEntry),
  /** The last calls to the bell. */
  bell: z.array(BellEntry),
});
export type Why = z.infer<typeof Why>;
