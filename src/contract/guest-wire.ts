// The constants of the guest protocol that both ends need while they run. Apart from guest.ts, whose schemas have no place in the agent.

/** The generation of this protocol. Frozen once released: a change that an older end cannot follow gets a new number. */
export const guestProtocol = 1;

/** Arguments and environment of one command together may reach the kernel's own limit of about 2 MiB. */
export const messageBytesMax = 4 * 1024 * 1024;

/** Lanes of a stream. On `exec` streams from the daemon, `data` is stdin; from the agent, stdout (or the terminal's output). */
export const laneOf = { message: 0, data: 1, stderr: 2 } as const;

/** The name under which the bundle and the daemon's socket appear in every guest. */
export const guestFolder = '/.glovebox';

const agentFolder = `${guestFolder}/agent`;
const loaded = [`${agentFolder}/ld.so`, '--library-path', `${agentFolder}/lib`] as const;

/** bubblewrap in a guest, which is the host's own: missing where the host has none. */
export const wallsCommand: readonly string[] = [...loaded, `${agentFolder}/bwrap`];

/** What becomes the shell of an isolated session: the workspace, the size of its layer in bytes (0 for none), and the shell's command line follow. */
export const enterSessionCommand: readonly string[] = [
  ...[...loaded, `${agentFolder}/bun`, `--config=${agentFolder}/bunfig.toml`, '--no-env-file'],
  `${agentFolder}/enter-session.js`,
];

/** An empty folder of each such session's own: where its changes lie until the layer has been laid, and nothing afterwards. */
export const sessionLayer = `${guestFolder}/layer`;

/** A `read` of a regular file that names a `direct` connection uses it from this many bytes on; fewer come on lane `data` and cost no connection. */
export const directBytesMin = 256 * 1024;

/** Where a guest finds the way out, on its own loopback. */
export const proxyPort = 3128;
export const socksPort = 1080;

/** Where commands are looked for when neither image nor request says. */
export const defaultPath = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/** The id of bulk connections that carry what a guest sends to the world; they are not asked for. */
export const egressBulkId = 'egress';

/** The name to offer and to pick as Sec-WebSocket-Protocol. */
export const webSocketProtocol = 'glovebox.channel.1';
