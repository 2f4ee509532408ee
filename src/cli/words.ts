// Which words of a line are ours and which are for the sandbox: the latter stand behind `--`.

export interface Words {
  /** Before `--`. */
  own: string[];
  /** Behind it; undefined when there is no `--`. */
  behind: string[] | undefined;
}

/** `operands`: what is left of `line` without options, with the words behind `--` at its end. */
export function wordsOf(line: readonly string[], operands: readonly string[]): Words {
  const dashes = line.indexOf('--');
  if (dashes < 0) return { own: [...operands], behind: undefined };
  const behind = line.slice(dashes + 1);
  return { own: operands.slice(0, operands.length - behind.length), behind };
}

/** The command of an agent with a person's own arguments: those that begin with an option go behind the agent's, others take their place. */
export function withArguments(command: readonly string[], args: readonly string[] | undefined): string[] {
  const [program = '', ...rest] = command;
  if (args === undefined || args.length === 0) return [program, ...rest];
  return args[0]?.startsWith('-') ? [program, ...rest, ...args] : [program, ...args];
}
