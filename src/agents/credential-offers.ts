// What a host has that agents could use, as secrets that the vault can keep: a value, or better where it can be read whenever it is needed, so that nothing is
// copied. Pure: what the host has is handed in. Only what works from outside is offered; for the rest there is a word on why not.
import { join } from 'node:path';
import type { AgentInfo } from '../contract/agents.ts';
import type { SetSecret } from '../contract/network.ts';
import { importedValue, type ServiceName, serviceVariables } from '../contract/services.ts';

export interface HostFacts {
  home: string;
  env: (variable: string) => string | undefined;
  /** The text of a file of the user's, if it is there and of a sane size. */
  readFile: (path: string) => string | undefined;
  /** Whether a program is in PATH. */
  hasProgram: (name: string) => boolean;
}

export interface CredentialOffer {
  service: ServiceName;
  source: SetSecret['source'];
  /** For a person: a variable, a command, a file. */
  from: string;
}

export interface CredentialOffers {
  /** At most one for each service. */
  offers: CredentialOffer[];
  withheld: { what: string; why: string }[];
}

export function credentialOffers(host: HostFacts): CredentialOffers {
  const offers: CredentialOffer[] = [];
  const withheld: CredentialOffers['withheld'] = [];
  for (const service of Object.keys(serviceVariables) as ServiceName[]) {
    const found = importedValue(service, host.env);
    const offer =
      found === undefined
        ? elsewhere[service]?.(host)
        : { source: { type: 'value' as const, value: found.value }, from: found.variable };
    if (offer !== undefined) offers.push({ service, ...offer });
  }
  const codex = jsonOf(host, codexFile(host));
  if (textAt(codex, 'tokens', 'access_token') !== undefined)
    withheld.push({
      what: `the ChatGPT login in ${codexFile(host)}`,
      why: 'it also needs an account that only the program itself sends; make an API key, or log in inside the sandbox',
    });
  if (host.readFile(join(host.home, '.config/gcloud/application_default_credentials.json')) !== undefined)
    withheld.push({
      what: 'the login of gcloud',
      why: 'its tokens are for Vertex AI and renewed by the program itself; make a Gemini API key',
    });
  return { offers, withheld };
}

type Found = Omit<CredentialOffer, 'service'>;

const claudeFolder = ({ env, home }: HostFacts) => env('CLAUDE_CONFIG_DIR') ?? join(home, '.claude');
const codexFile = ({ env, home }: HostFacts) => join(env('CODEX_HOME') ?? join(home, '.codex'), 'auth.json');

/** A text in a JSON file, read from there each time. */
function inFile(host: HostFacts, path: string, ...keys: string[]): Found | undefined {
  return textAt(jsonOf(host, path), ...keys) === undefined
    ? undefined
    : { source: { type: 'file', path, json: `/${keys.join('/')}` }, from: path };
}

const printedBy = (...command: string[]): Found => ({
  source: { type: 'command', command },
  from: `\`${command.join(' ')}\``,
});

/** Where each may be beside the environment. */
const elsewhere: Partial<Record<ServiceName, (host: HostFacts) => Found | undefined>> = {
  anthropic: (host) => inFile(host, join(host.home, '.claude.json'), 'primaryApiKey'),
  'anthropic-oauth': (host) =>
    inFile(host, join(claudeFolder(host), '.credentials.json'), 'claudeAiOauth', 'accessToken'),
  openai: (host) => inFile(host, codexFile(host), 'OPENAI_API_KEY'),
  github: (host) => {
    const folder =
      host.env('GH_CONFIG_DIR') ?? join(host.env('XDG_CONFIG_HOME') ?? join(host.home, '.config'), 'gh');
    const known = /^["']?github\.com["']?:/m.test(host.readFile(join(folder, 'hosts.yml')) ?? '');
    return known && host.hasProgram('gh') ? printedBy('gh', 'auth', 'token') : undefined;
  },
  aws: (host) => {
    const known = ['config', 'credentials'].some(
      (name) => host.readFile(join(host.home, '.aws', name)) !== undefined,
    );
    return known && host.hasProgram('aws') ? printedBy('aws', 'configure', 'export-credentials') : undefined;
  },
};

function jsonOf(host: HostFacts, path: string): unknown {
  try {
    return JSON.parse(host.readFile(path) ?? 'null');
  } catch {
    return undefined;
  }
}

function textAt(document: unknown, ...keys: string[]): string | undefined {
  let value = document;
  for (const key of keys)
    value =
      typeof value === 'object' && value !== null && Object.hasOwn(value, key)
        ? (value as Record<string, unknown>)[key]
        : undefined;
  return typeof value === 'string' && value !== '' ? value : undefined;
}

/** What to tell whoever starts an agent for which no credential is stored; undefined when there is one, or when it needs none. */
export function credentialAdvice(
  agent: Pick<AgentInfo, 'name' | 'credentials' | 'available'>,
  { offers }: CredentialOffers,
): string | undefined {
  const { name, credentials, available } = agent;
  const [best] = credentials;
  if (best === undefined || available.length > 0) return undefined;
  const offer = credentials.flatMap((service) => offers.find((it) => it.service === service) ?? [])[0];
  const how =
    offer === undefined
      ? `store one with: glovebox secret set ${best}`
      : `this machine has one in ${offer.from}; keep it with: glovebox secret import ${offer.service}`;
  return `No credential is stored for ${name} (${credentials.join(', ')}), so it will ask you to log in; ${how}`;
}
