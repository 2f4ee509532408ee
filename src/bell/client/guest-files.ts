// What our own sandboxes have on the PATH for the bell: small scripts that start the client with the agent's runtime, since an image may have nothing
// but sh, and scripts in the place of programs whose work the host does.
import { Failure } from '../../lib/failure.ts';

/** What an image may set for its own programs and must not reach the client's runtime. */
export const unsetVariables = [
  ...['LD_PRELOAD', 'LD_LIBRARY_PATH', 'LD_AUDIT', 'NODE_OPTIONS', 'NODE_EXTRA_CA_CERTS', 'BUN_OPTIONS'],
  ...[
    'BUN_INSPECT',
    'BUN_INSPECT_CONNECT_TO',
    'BUN_CONFIG_VERBOSE_FETCH',
    'BUN_RUNTIME_TRANSPILER_CACHE_PATH',
  ],
] as const;

/** Threads of the engine would be refused in a guest at its limit of processes, which ends the program. */
export const engineVariables: Readonly<Record<string, string>> = {
  BUN_JSC_numberOfGCMarkers: '1',
  BUN_JSC_useConcurrentGC: '0',
  BUN_JSC_useConcurrentJIT: '0',
};

/** Names and contents of the scripts that are the client, for a guest that has the agent's folder at `agentFolder`, with the client as bell.js in it. */
export function clientScripts(agentFolder: string): Record<string, string> {
  if (!/^(\/[A-Za-z0-9._-]+)+$/.test(agentFolder))
    throw new Failure('invalid', `the agent's folder is at ${agentFolder}, which a script cannot name`);
  const settings = Object.entries(engineVariables).map(([name, value]) => `${name}=${value}`);
  const script = [
    '#!/bin/sh',
    `unset ${unsetVariables.join(' ')}`,
    `export ${settings.join(' ')}`,
    [
      `exec ${agentFolder}/ld.so --library-path ${agentFolder}/lib ${agentFolder}/bun`,
      `--config=${agentFolder}/bunfig.toml --no-env-file ${agentFolder}/bell.js "$@"`,
    ].join(' '),
    '',
  ].join('\n');
  return { 'sandbox-comm': script, 'glovebox-bell': script };
}

/**
 * Scripts in the place of programs. `client`: the path of sandbox-comm in the guest; `takesStdin`: whether the command of this name reads its stdin,
 * which is then waited for. Failure('invalid') for a name that is none.
 */
export function shimScripts(
  names: readonly string[],
  client = '/.glovebox/agent/bin/sandbox-comm',
  takesStdin: (name: string) => boolean = () => false,
): Record<string, string> {
  const wrong = names.find((it) => !/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(it));
  if (wrong !== undefined)
    throw new Failure('invalid', `${JSON.stringify(wrong)} cannot be the name of a program in a guest`);
  return Object.fromEntries(
    names.map((name) => [
      name,
      `#!/bin/sh\nexec ${client} ${takesStdin(name) ? '--stdin ' : ''}--as ${name} "$@"\n`,
    ]),
  );
}
