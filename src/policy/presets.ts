// The policies to begin with. A preset is a list of rules that become the operator's own: shown, changed and removed like any other.
import type { NewRule } from '../contract/network.ts';

export interface Preset {
  name: string;
  description: string;
  rules: NewRule[];
}

/** `names` is a list of patterns, separated by white space; each with its own ports, or else with `ports`. */
function group(name: string, names: string, ports: readonly number[] = [443]): NewRule {
  const resources = names
    .trim()
    .split(/\s+/)
    .flatMap((pattern) => (pattern.includes(':') ? pattern : ports.map((port) => `${pattern}:${port}`)));
  return { name, decision: 'allow', resources };
}

const balanced: NewRule[] = [
  group(
    'default-ai-services',
    `
    api.anthropic.com mcp-proxy.anthropic.com statsig.anthropic.com console.anthropic.com platform.claude.com claude.com claude.ai
    downloads.claude.ai
    **.openai.com chatgpt.com **.chatgpt.com **.oaistatic.com **.oaiusercontent.com cdn.openaimerge.com
    gemini.google.com generativelanguage.googleapis.com play.googleapis.com
    cursor.com **.cursor.sh factory.ai **.factory.ai
    api.groq.com api.mistral.ai openrouter.ai api.x.ai api.perplexity.ai api.workos.com models.dev
    `,
  ),
  group(
    'default-package-managers',
    `
    registry.npmjs.org npmjs.com www.npmjs.com npm.duckdb.org yarnpkg.com **.yarnpkg.com bun.sh **.bun.sh nodejs.org nodesource.com
    pypi.org pypi.python.org files.pythonhosted.org pythonhosted.org pypa.io bootstrap.pypa.io astral.sh
    crates.io index.crates.io static.crates.io static.rust-lang.org rustup.rs sh.rustup.rs
    golang.org pkg.go.dev proxy.golang.org sum.golang.org goproxy.io
    maven.org repo.maven.apache.org repo1.maven.org apache.org gradle.org **.gradle.org spring.io java.com java.net eclipse.org
    rubygems.org ruby-lang.org rubyonrails.org rvm.io packagist.org packagist.com **.packagist.org
    nuget.org api.nuget.org dot.net dotnet.microsoft.com hex.pm pub.dev swift.org cocoapods.org haskell.org cpan.org metacpan.org
    ziglang.org tuf-repo-cdn.sigstore.dev
    `,
  ),
  group(
    'default-code-and-containers',
    `
    github.com **.github.com **.githubusercontent.com **.githubcopilot.com gitlab.com **.gitlab.com bitbucket.org launchpad.net
    ppa.launchpad.net sourceforge.net
    docker.com **.docker.com docker.io **.docker.io production.cloudflare.docker.com **.production.cloudflare.docker.com
    production.cloudfront.docker.com **.production.cloudfront.docker.com dhi.io dhi.io:80 ghcr.io quay.io gcr.io **.gcr.io
    registry.k8s.io k8s.io public.ecr.aws mcr.microsoft.com **.data.mcr.microsoft.com
    vscode.dev code.visualstudio.com vscode.download.prss.microsoft.com
    `,
  ),
  group(
    'default-cloud-infrastructure',
    `
    **.amazonaws.com **.googleapis.com **.googleusercontent.com **.gstatic.com **.gvt1.com apis.google.com dl.google.com
    play.google.com www.google.com csp.withgoogle.com
    azure.com dev.azure.com login.microsoftonline.com packages.microsoft.com **.blob.core.windows.net visualstudio.com
    **.visualstudio.com playwright.azureedge.net
    vercel.com **.public.blob.vercel-storage.com supabase.com clerk.com fastly.com figma.com challenges.cloudflare.com app.daytona.io
    hashicorp.com **.hashicorp.com binaries.prisma.sh jsdelivr.net cdn.jsdelivr.net unpkg.com json-schema.org json.schemastore.org
    mise.run mise-versions.jdx.dev
    `,
  ),
  group(
    'default-os-packages',
    `
    debian.org **.debian.org archive.ubuntu.com security.ubuntu.com ports.ubuntu.com ubuntu.com apt.llvm.org packagecloud.io
    alpinelinux.org dl-cdn.alpinelinux.org archlinux.org centos.org fedoraproject.org
    debian.org:80 **.debian.org:80 archive.ubuntu.com:80 security.ubuntu.com:80 ports.ubuntu.com:80
    `,
  ),
  group(
    'default-cert-validation',
    `
    **.amazontrust.com **.lencr.org **.pki.goog **.pki.microsoft.com ocsp.globalsign.com ocsp2.globalsign.com
    **.amazontrust.com:80 **.lencr.org:80 **.pki.goog:80 **.pki.microsoft.com:80 ocsp.globalsign.com:80 ocsp2.globalsign.com:80
    *.one.digicert.com:80 *.one.au.digicert.com:80 *.one.ch.digicert.com:80 *.one.nl.digicert.com:80 *.one.digicert.co.jp:80
    cacerts.digicert.com:80 crl*.digicert.com:80 ocsp.digicert.com:80
    crl.comodoca.com:80 ocsp.comodoca.com:80 crl.sectigo.com:80 crt.sectigo.com:80 ocsp.sectigo.com:80
    crl.usertrust.com:80 ocsp.usertrust.com:80 crl.globalsign.com:80 crl.globalsign.net:80 isrg.trustid.ocsp.identrust.com:80
    `,
  ),
];

export const presets: readonly Preset[] = [
  {
    name: 'allow-all',
    description:
      'Everything on the public internet. Private networks, this host and metadata services stay closed.',
    rules: [{ name: 'default-allow-all', decision: 'allow', resources: ['**'] }],
  },
  {
    name: 'balanced',
    description:
      'AI services, package registries, code and container hosts, clouds, archives of distributions. Some of these take uploads from anybody.',
    rules: balanced,
  },
  { name: 'deny-all', description: 'Nothing, until rules allow it.', rules: [] },
];
