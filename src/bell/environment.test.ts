// Which variables a guest can give to a command (J8).
import { expect, test } from 'vitest';
import { guestVariables, variableBytesMax } from './environment.ts';

const refused = `
  PATH HOME SHELL IFS ENV BASH_ENV PS4 PROMPT_COMMAND SHELLOPTS BASHOPTS CDPATH GLOBIGNORE BASH_FUNC_ls ZDOTDIR PWD OLDPWD USER LOGNAME LANG LC_ALL TMPDIR
  LD_PRELOAD LD_LIBRARY_PATH LD_AUDIT LD_DEBUG_OUTPUT DYLD_INSERT_LIBRARIES DYLD_LIBRARY_PATH GLIBC_TUNABLES GCONV_PATH LOCPATH NLSPATH MALLOC_CHECK_
  GIT_SSH GIT_SSH_COMMAND GIT_EXEC_PATH GIT_CONFIG_COUNT GIT_CONFIG_KEY_0 GIT_EXTERNAL_DIFF GIT_PAGER GIT_EDITOR GIT_ASKPASS GIT_DIR GIT_TEMPLATE_DIR
  SSH_ASKPASS SSH_AUTH_SOCK SVN_SSH HGRCPATH CVS_RSH RSYNC_RSH RSYNC_CONNECT_PROG
  PYTHONSTARTUP PYTHONPATH PYTHONHOME PYTHONINSPECT PYTHONBREAKPOINT PIP_INDEX_URL VIRTUAL_ENV
  NODE_OPTIONS NODE_PATH NODE_EXTRA_CA_CERTS NPM_CONFIG_SCRIPT_SHELL NPM_CONFIG_PREFIX YARN_RC_FILENAME BUN_OPTIONS DENO_DIR
  PERL5OPT PERL5LIB PERL5DB RUBYOPT RUBYLIB BUNDLE_GEMFILE GEM_HOME PHPRC PHP_INI_SCAN_DIR LUA_INIT LUA_PATH ERL_FLAGS
  JAVA_TOOL_OPTIONS _JAVA_OPTIONS JDK_JAVA_OPTIONS JAVA_HOME CLASSPATH MAVEN_OPTS GRADLE_OPTS GRADLE_USER_HOME DOTNET_STARTUP_HOOKS CORECLR_PROFILER
  MAKEFLAGS MFLAGS MAKEFILES GNUMAKEFLAGS CC CXX LD CFLAGS LDFLAGS RUSTC_WRAPPER RUSTFLAGS CARGO_HOME GOFLAGS GOPROXY GOENV CGO_CFLAGS CMAKE_TOOLCHAIN_FILE
  HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY FTP_PROXY PROXY SSL_CERT_FILE SSL_CERT_DIR OPENSSL_CONF CURL_HOME CURL_CA_BUNDLE WGETRC REQUESTS_CA_BUNDLE
  EDITOR VISUAL PAGER BROWSER MANPAGER SYSTEMD_PAGER LESSOPEN LESSCLOSE LESS MANPATH VIMINIT EXINIT INPUTRC SUDO_ASKPASS SUDO_EDITOR
  TAR_OPTIONS GREP_OPTIONS POSIXLY_CORRECT GZIP ZIPOPT XDG_CONFIG_HOME XDG_RUNTIME_DIR DBUS_SESSION_BUS_ADDRESS DISPLAY XAUTHORITY WAYLAND_DISPLAY
  GTK_MODULES GTK_PATH GIO_EXTRA_MODULES QT_PLUGIN_PATH GST_PLUGIN_PATH FONTCONFIG_FILE DOCKER_HOST DOCKER_CONFIG KUBECONFIG AWS_CONFIG_FILE TERM TERMINFO
  HOSTALIASES RES_OPTIONS LOCALDOMAIN TZ TZDIR KRB5_CONFIG P11_KIT_X NOTIFY_SOCKET LISTEN_FDS GLOVEBOX_HOME GLOVEBOX_BELL_RUN SANDBOX_COMM_TOKEN _
`
  .trim()
  .split(/\s+/);

test.each(refused)('%s cannot be set by a guest, however it is spelt', (name) => {
  const spelt = [name, name.toLowerCase(), name.replaceAll('_', '-'), name.replaceAll('_', '.')];
  // Letters whose capitals are among A to Z.
  spelt.push(name.replaceAll('S', 'ſ').replaceAll('I', 'ı'));
  for (const it of spelt) expect(guestVariables('', { [it]: 'x' }), it).toEqual({});
});

/** Whatever Claude Code's hooks send. */
const fields = `
  session_id transcript_path cwd permission_mode hook_event_name prompt_id effort agent_id agent_type message title notification_type stop_hook_active
  last_assistant_message agent_transcript_path error_type tool_name tool_input tool_use_id tool_response error is_interrupt is_timeout
  permission_suggestions reason prompt source model trigger custom_instructions old_cwd new_cwd file_path event hook_json
`
  .trim()
  .split(/\s+/);

test.each(fields)('the field %s of a hook reaches a command', (name) => {
  expect(guestVariables('', { [name]: 'x' })).toEqual({ [name.toUpperCase()]: 'x' });
});

const conversions: [given: Record<string, unknown>, prefix: string, variables: Record<string, string>][] = [
  [{ 'my-key.x': 'a' }, '', { MY_KEY_X: 'a' }],
  [{ '1st': 'a' }, '', { _1ST: 'a' }],
  [{ n: 1.5, b: true, none: null }, '', { N: '1.5', B: 'true' }],
  [{ o: { a: [1, 'x'] } }, '', { O: '{"a":[1,"x"]}' }],
  [{ session_id: 'a', path: 'b' }, 'HOOK_', { HOOK_SESSION_ID: 'a', HOOK_PATH: 'b' }],
  [{ HOOK_JSON: '{}', HOOK_A: 'b' }, 'HOOK_', { HOOK_JSON: '{}', HOOK_A: 'b' }],
  [{ ssh_command: 'x', preload: 'y' }, 'GIT_', {}],
  [{ preload: 'x' }, 'LD_', {}],
  [{ a: 'x\u0000y\u001b[2Jz\nw\tv\u009b' }, '', { A: 'xy[2Jz\nw\tv' }],
  [{ '': 'x', '=': 'y', 'A=B': 'z' }, '', { A_B: 'z' }],
  [JSON.parse('{"__proto__":"x","constructor":"y"}'), '', { __PROTO__: 'x', CONSTRUCTOR: 'y' }],
];

test.each(conversions)('%j with prefix %j gives %j', (given, prefix, variables) => {
  expect({ ...guestVariables(prefix, given) }).toEqual(variables);
});

test('a long value is cut between characters, and a long payload is left out whole', () => {
  const long = 'ä'.repeat(3000);
  const { A } = guestVariables('', { a: `x${long}` });
  expect(Buffer.byteLength(A as string)).toBe(variableBytesMax - 1);
  expect(A).toMatch(/^xä+$/);
  expect(guestVariables('', { HOOK_JSON: 'x'.repeat(65_536) }).HOOK_JSON).toHaveLength(65_536);
  expect(guestVariables('', { HOOK_JSON: 'x'.repeat(65_537) })).toEqual({});
});

test('more than 64 variables are refused', () => {
  const many = (count: number) => Object.fromEntries(Array.from({ length: count }, (_, n) => [`a${n}`, 'x']));
  expect(Object.keys(guestVariables('', many(64)))).toHaveLength(64);
  expect(() => guestVariables('', many(65))).toThrow('env has 65 variables; the most is 64');
});
