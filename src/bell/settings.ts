// What the owner has decided about the bell: bell.toml in the home folder, or sandbox-comm's own file, read once at the start.
import type { BellDecision, BellDecisions } from '../contract/bell.ts';

/** A command of the host that guests may run by its name. */
export interface CommandTemplate {
  /** What a guest calls it; it has no `/`. */
  name: string;
  /** The program, an absolute path found at the start, and the arguments that are always there. */
  argv: readonly [string, ...string[]];
  /** What a guest may add: each argument has to match the pattern at its place, as a whole. `any`: whatever it likes. */
  args: readonly RegExp[] | 'any';
  /** For arguments beyond those, any number. */
  moreArgs?: RegExp;
  /** The environment beside PATH, HOME, USER and LANG. */
  env: Readonly<Record<string, string>>;
  /** Variables of the guest begin with this; undefined: none are passed on. */
  guestEnvPrefix: string | undefined;
  cwd: string;
  stdin: boolean;
  timeoutMs: number;
  outputBytesMax: number;
  /** At once, for each caller. */
  concurrency: number;
  decision: BellDecision | undefined;
}

export interface BellSettings {
  /** Whether sandboxes are served. */
  enabled: boolean;
  /** Where guests find it; also the TCP port. */
  port: number;
  /** Addresses to listen at for callers that are no sandboxes of ours; none by default. */
  listen: readonly string[];
  /** Those callers need no token. */
  insecure: boolean;
  soundFile: string | undefined;
  /** Notifications are posted there, too. */
  webhook: string | undefined;
  decisions: BellDecisions;
  commands: ReadonlyMap<string, CommandTemplate>;
  /** Names that are put on the PATH of guests: of commands, and of well-known programs whose work an action does. */
  shims: readonly string[];
  /** For events of Claude Code's hooks: what is done. */
  hooks: Readonly<Record<string, readonly ('notify' | 'play')[]>>;
  /** The owner should know, and it works all the same. */
  warnings: readonly string[];
  /** The file that was read, if there was one. */
  file: string | undefined;
}
