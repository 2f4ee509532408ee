// What an agent is told about the box that it is in, in the file that it reads at its start.

export function instructionsFor(box: { sandbox: string | undefined; workspaces: readonly string[] }): string {
  const { sandbox, workspaces } = box;
  const name = sandbox ?? 'NAME';
  return `# This machine is a sandbox

You are in a Glovebox sandbox${sandbox === undefined ? '' : ` called \`${sandbox}\``}. You may do anything in it: install packages, change files, start servers.
${
  workspaces.length === 0
    ? ''
    : `
## Files

${workspaces.map((path) => `- \`${path}\``).join('\n')}

${workspaces.length === 1 ? 'This folder comes' : 'These folders come'} from the person's machine, under the same path there. Everything else is the sandbox's own.
`
}
## Network

- Every connection goes through a proxy that allows some hosts and refuses the others. \`HTTP_PROXY\` and \`HTTPS_PROXY\` are set, and the proxy's certificate is trusted.
- A refusal is an answer 403 whose body says which host it was and how to allow it, or a connection that is closed at once. Trying again does not help.
- If you need a host, say so and give the person this command: \`glovebox policy allow network --sandbox ${name} HOST:PORT\`. It holds at once.
- \`host.docker.internal\` is the person's own machine. Its ports need a rule, too: \`glovebox policy allow network --sandbox ${name} localhost:PORT\`.

## Servers that you start

Listen on \`127.0.0.1\` or \`0.0.0.0\`. The person reaches a port after \`glovebox ports ${name} --publish PORT\`.

## Credentials

Keys in the environment and in settings are placeholders. The proxy puts the real ones in, at the hosts that they belong to. Do not look for real ones, do not replace them, and do not log in anew.
`;
}
