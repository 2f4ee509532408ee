// Which programs run what a guest has written, so that allowing them is allowing everything: build tools run what lies in the folder, interpreters and
// launchers what their arguments say.

const list = (names: string) => new Set(names.split(/\s+/));

/** They run what they find in the folder that they work in, whatever their arguments are. */
const folderTools = list(
  `make gmake bmake just task rake npm npx pnpm pnpx yarn yarnpkg corepack bun bunx deno cargo go mvn gradle gradlew ant sbt bazel buck meson ninja cmake
   tox nox pytest pip pip3 pipx uv uvx poetry pdm hatch invoke bundle bundler gem composer mix rebar3 stack cabal dotnet msbuild swift xcodebuild tsc vite
   jest vitest webpack eslint prettier git hg svn pre-commit direnv terraform packer vagrant ansible ansible-playbook docker-compose scons waf conan
   turbo nx lerna gulp grunt rails jekyll hugo dune opam lein clj clojure nimble zig pwsh`,
);

/** They run what their arguments, or files that these name, say. */
const argumentTools = list(
  `sh bash dash zsh fish ksh mksh ash csh tcsh rbash busybox toybox env xargs find parallel nice nohup time timeout stdbuf setsid ionice chrt taskset flock
   watch script strace ltrace gdb lldb perf valgrind ssh scp sftp ssh-agent autossh mosh sudo su doas pkexec run0 runuser setpriv capsh chroot unshare
   nsenter bwrap firejail docker podman nerdctl buildah kubectl helm crictl ctr lxc lxc-exec systemd-run systemctl systemd-nspawn machinectl crontab at
   batch tar bsdtar cpio rsync zip unzip 7z vi vim nvim view ex ed emacs emacsclient nano pico awk gawk mawk nawk original-awk sed less more most man
   pager bat code cursor curl wget nc ncat netcat socat openssl dd tee cp mv ln install mount node nodejs tsx ts-node perl ruby irb php lua luajit tclsh
   wish expect R Rscript julia ghc runghc ocaml java jshell groovy scala kotlin elixir erl iex guile racket sbcl gcc g++ cc c++ clang clang++ ld as gnat
   sqlite3 psql mysql mongosh redis-cli ftp lftp tmux screen byobu dialog whiptail xterm gnome-terminal konsole kitty alacritty osascript open launchctl
   dpkg apt apt-get yum dnf pacman apk rpm snap flatpak brew nix nix-shell nix-build logrotate run-parts start-stop-daemon update-alternatives gpg pass
   ip iptables nft tcpdump nmap aria2c ffmpeg convert magick gs pdflatex latex tex xelatex troff groff sort split uniq glovebox sbx`,
);

const argumentPatterns = [
  /^(python|pypy|perl|ruby|php|lua|node|gcc|g\+\+|clang|gawk|mawk|vim)[\d.-]*$/,
  /^vim\./,
  /^busybox/,
  /-(sh|shell|exec)$/,
];

/** Launchers and interpreters: the first argument that is not theirs is the program. */
const interpreters =
  /^((ba|da|z|fi|k|mk|a|c|tc|rba)?sh|python[\d.]*|pypy[\d.]*|node|nodejs|perl[\d.]*|ruby[\d.]*|php[\d.]*|lua[\d.]*|env|xargs|sudo|doas|nice|nohup|timeout|busybox.*|awk|[gmn]awk|sed|ssh)$/;

/** Why guests could run code of theirs with it, in words that follow the program's name; undefined when nothing says so. */
export function guestCodeIn(command: {
  /** The program's, and that of the file behind it. */
  names: readonly string[];
  /** Arguments that are always there. */
  fixed: readonly string[];
  args: readonly string[] | 'any';
  more: boolean;
}): string | undefined {
  const { names, fixed, args, more } = command;
  const plain = names.map((it) => it.replace(/\.(exe|js|cjs|mjs|py|sh)$/, ''));
  if (plain.some((it) => folderTools.has(it) || folderTools.has(it.replace(/-cli$/, ''))))
    return 'runs what lies in the folder it works in, and a guest that can write there so runs its code on this host, as you';
  const takes = args === 'any' || args.length > 0 || more;
  const known = plain.some(
    (it) => argumentTools.has(it) || argumentPatterns.some((pattern) => pattern.test(it)),
  );
  if (known && args === 'any')
    return 'can run any program or write any file that its arguments name, and here a guest chooses these: it so runs its code on this host, as you';
  if (takes && fixed.length === 0 && plain.some((it) => interpreters.test(it)))
    return 'runs the program that its first argument names, and here a guest chooses that: it so runs its code on this host, as you';
  return undefined;
}
