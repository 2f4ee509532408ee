// Variables that a guest wants a command to have: named after the fields of its JSON, and none of those that change what a program is or does.
import { BellError } from './bell.ts';

export const variablesMax = 64;
export const variableBytesMax = 4096;
/** The whole of a hook's payload, which the client adds. */
const wholeName = 'HOOK_JSON';
const wholeBytesMax = 64 * 1024;

/** Names that a guest may not set: each changes which code a program loads, what it starts, where it looks, or whom it speaks to. */
const denied: readonly RegExp[] = [
  // Shells, and whatever they start.
  /^(PATH|HOME|SHELL|IFS|ENV|CDPATH|GLOBIGNORE|SHELLOPTS|PS[0-9]|PROMPT_COMMAND|OPT(ARG|IND|ERR)|MAIL|MAILPATH|PWD|OLDPWD|_+)$/,
  /^(BASH|ZSH|KSH|FISH|ZDOTDIR|HIST|FCEDIT|READNULLCMD)/,
  // Who runs it and how it speaks.
  /^(USER|LOGNAME|USERNAME|LANG|LANGUAGE|TZ|TZDIR|TMP|TEMP|TMPDIR|TEMPDIR|DISPLAY|XAUTHORITY|HOSTALIASES|LOCALDOMAIN|RES_OPTIONS)$/,
  /^(LC_|XDG_|DBUS_|WAYLAND_|SUDO_|SYSTEMD_|TERM|GLOVEBOX_|SANDBOX_COMM_|POLKIT_|NOTIFY_SOCKET|LISTEN_|MAINPID)/,
  // The loader and the C library.
  /^(LD_|DYLD_|GLIBC_|MALLOC_|GCONV_|LOCPATH|NLSPATH|RPATH|LIBPATH|SHLIB|RESOLV_|GETCONF_|ASAN_|LSAN_|TSAN_|UBSAN_|MSAN_|NSS_|P11_|KRB5|GSS)/,
  // Editors, pagers, browsers: programs that programs start.
  /(EDITOR|PAGER|VISUAL|BROWSER|ASKPASS|_SHELL|_COMMAND|_CMD|_EXEC|_HOOK|_WRAPPER|_LAUNCHER|_INTERPRETER)$/,
  /^(LESS|MORE$|MAN(PATH|OPT|SECT|ROFF|WIDTH|LESS|PAGER)|VIM|NVIM|EXINIT|EMACS|SELECTED_EDITOR|LV$)/,
  // Version control and ways to other machines.
  /^(GIT_|SSH_|HG|SVN_|CVS|RSYNC_|GNUPG|GPG_|CURL_|WGET|AWS_|AZURE_|GOOGLE_|CLOUDSDK_|KUBE|DOCKER_|BUILDKIT_|COMPOSE_|PODMAN_|CONTAINER|HELM_|ANSIBLE_|TF_|VAULT_)/,
  /(^|_)PROXY$/,
  /^(SSL_|OPENSSL_|REQUESTS_|CA_BUNDLE|HTTPS?_|FTP_|SOCKS)/,
  // Languages.
  /^(PYTHON|PIP_|PIPX_|UV_|VIRTUAL_ENV|CONDA|POETRY_|TOX_|PYTEST_|NODE|NPM_|NVM_|YARN_|PNPM_|COREPACK_|BUN_|DENO_|ELECTRON_|TS_NODE|TSX_|ESLINT_|PRETTIER_)/,
  /^(PERL|RUBY|BUNDLE|GEM_|RAKE|RBENV|IRB|PHP|COMPOSER_|LUA|TCL|GUILE|ERL|ELIXIR|MIX_|R_|JULIA_|DOTNET_|CORECLR_|COR_|MONO_|NUGET_|MSBUILD)/,
  /^(JAVA|_JAVA|JDK_|JRE_|CLASSPATH|MAVEN|MVN|GRADLE|ANT_|SBT_|SCALA|KOTLIN|GROOVY|CLJ|LEIN)/,
  /^(GO[A-Z]*|CGO_.*|CARGO.*|RUST.*|SCCACHE.*|CCACHE.*|DISTCC.*)$/,
  // Compilers and build tools.
  /^(MAKE|MFLAGS|GNUMAKE|CMAKE|NINJA|MESON|BAZEL|AUTOCONF|AUTOMAKE|ACLOCAL|LIBTOOL|PKG_CONFIG|GCC_|COLLECT_|COMPILER_|CLANG|LIBRARY_|C_INCLUDE|CPLUS_|OBJC)/,
  /^(CC|CXX|CPP|CPATH|AS|AR|LD|FC|F77|NM|RANLIB|STRIP|YACC|LEX|INSTALL|HOSTCC|BUILD_CC|SCONSFLAGS)$/,
  /(FLAGS|OPTIONS|_OPTS|_PRELOAD|_PLUGINS?|_RC|_RCFILE|_MODULES?|_CONFIG|_INIT|_STARTUP|_AUTOLOAD|_SOCK|_SOCKET)$/,
  // Frameworks that load plug-ins from where they are told.
  /^(GTK|GDK_|GIO_|GST_|GSETTINGS_|GVFS|G_|QT_|QML|KDE|SDL_|PULSE_|ALSA_|PIPEWIRE_|JACK_|VDPAU|LIBVA|LIBGL|MESA_|VK_|EGL|__GL|__EGL|CUDA|OCL_|OPENCL|FONTCONFIG|MAGICK|FFMPEG|FFREPORT)/,
  // Small tools.
  /^(TAR|TAPE|GZIP|BZIP2?|XZ_|ZIPOPT|UNZIP|ZIPINFO|ZSTD_|CPIO|GREP_|SED_|AWK|POSIXLY_CORRECT|TEX|BIBINPUTS|INPUTRC|SCREEN|TMUX|STY|CRON|AT_|PG|MYSQL|SQLITE|REDIS|ODBC|ORACLE|TNS_)/,
  /^[A-Z0-9]*(PATH|RC|PRELOAD)$/,
];

/** Whether a guest may name a variable so. Everything else about it is decided by `guestVariables`. */
export const isDeniedVariable = (name: string): boolean => denied.some((it) => it.test(name));

/**
 * What a guest sent as `env`, as the variables of a command: upper case, with the prefix unless the name begins with it, without names that are denied
 * and values that are null. What is too long is cut, but for the whole payload, which is left out then. Throws BellError('bad_request').
 */
export function guestVariables(
  prefix: string,
  given: Readonly<Record<string, unknown>>,
): Record<string, string> {
  const fields = Object.entries(given);
  if (fields.length > variablesMax)
    throw new BellError(
      'bad_request',
      `exec: env has ${fields.length} variables; the most is ${variablesMax}`,
    );
  const variables: Record<string, string> = Object.create(null);
  for (const [key, value] of fields) {
    const own = variableName(key);
    const name = own.startsWith(prefix) ? own : `${prefix}${own}`;
    const words = cleaned(textOf(value));
    if (own === '' || name.length > 128 || words === undefined || isDeniedVariable(name)) continue;
    const max = own === wholeName ? wholeBytesMax : variableBytesMax;
    if (Buffer.byteLength(words) <= max) variables[name] = words;
    else if (own !== wholeName) variables[name] = cut(words, max);
  }
  return variables;
}

const variableName = (key: string) =>
  key
    .slice(0, 256)
    .toUpperCase()
    .replace(/[^A-Z0-9_]/g, '_')
    .replace(/^(?=[0-9])/, '_');

function textOf(value: unknown): string | undefined {
  if (value === null || value === undefined) return undefined;
  return typeof value === 'string' ? value : JSON.stringify(value);
}

/** Without control characters but line feeds and tabs. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: these are what it is about
const cleaned = (words: string | undefined) => words?.replace(/[\0-\x08\x0b-\x1f\x7f-\x9f]/g, '');

/** The end of a character that is cut through is left out. */
const cut = (words: string, bytesMax: number) =>
  new TextDecoder('utf-8', { ignoreBOM: true }).decode(Buffer.from(words).subarray(0, bytesMax), {
    stream: true,
  });
