// Paths as execd's clients write them: `$VAR` and `${VAR}` stand for the variables that commands get. `~` is expanded by the agent, which knows the user.
import { Failure } from '../../lib/failure.ts';

/** Throws Failure('invalid') for a variable that is not set, since an empty one could name quite another file. */
export function expandPath(path: string, environment: Record<string, string>): string {
  if (path.includes('\0')) throw new Failure('invalid', `path ${JSON.stringify(path)}: must not contain NUL`);
  return path.replace(
    /\$(?:(\w+)|\{(\w+)\})/g,
    (_, plain: string | undefined, braced: string | undefined) => {
      const name = plain ?? braced ?? '';
      const value = Object.hasOwn(environment, name) ? environment[name] : undefined;
      if (value === undefined)
        throw new Failure(
          'invalid',
          `path ${JSON.stringify(path)}: the variable ${name} is not set in the sandbox`,
        );
      return value;
    },
  );
}
