// The services whose secrets need no bindings of one's own: where each credential goes, in what form, and how its placeholder looks.
// Placeholders have the prefix, length and characters that the services' own clients look for, and no valid checksum, so that a scanner that
// checks one does not take them for real.
import type { SecretBinding } from '../contract/network.ts';
import { importedValue, type ServiceName, serviceVariables } from '../contract/services.ts';

export interface ServiceBinding extends SecretBinding {
  /**
   * Other ways in which a client may bring a credential to these hosts. They are taken off: a guest must not bring an account of its own to a
   * place that is managed, and carry data out through it.
   */
  removes?: { headers?: readonly string[]; query?: readonly string[] };
}

export interface Service {
  name: ServiceName;
  /** See placeholders.ts for the form. */
  placeholder: string;
  bindings: readonly ServiceBinding[];
  /** Variables of the guest with which programs find the placeholder. */
  variables: readonly string[];
  /** Variables with a value that is no secret, which programs need beside. */
  beside?: Readonly<Record<string, string>>;
}

const bearer = (hosts: string[], ...others: ('x-api-key' | 'x-goog-api-key')[]): ServiceBinding => ({
  hosts,
  ports: [443],
  header: 'authorization',
  format: 'Bearer %s',
  ...(others.length === 0 ? {} : { removes: { headers: others } }),
});

const table: readonly Omit<Service, 'variables'>[] = [
  {
    name: 'anthropic',
    placeholder: 'sk-ant-api03-{rand:93}AA',
    bindings: [
      {
        hosts: ['api.anthropic.com', 'console.anthropic.com', 'claude.ai', 'mcp-proxy.anthropic.com'],
        ports: [443],
        header: 'x-api-key',
        format: '%s',
        removes: { headers: ['authorization'] },
      },
    ],
  },
  {
    // Of a subscription, as `claude setup-token` prints it. An alternative to the key: each takes the other's header off, and the key goes first.
    name: 'anthropic-oauth',
    placeholder: 'sk-ant-oat01-{rand:93}AA',
    bindings: [bearer(['api.anthropic.com', 'mcp-proxy.anthropic.com'], 'x-api-key')],
  },
  {
    name: 'openai',
    placeholder: 'sk-proj-{rand:74}T3BlbkFJ{rand:74}',
    bindings: [bearer(['api.openai.com', 'openai.com', 'chatgpt.com', 'www.chatgpt.com'])],
  },
  {
    name: 'github',
    placeholder: 'gho_{rand:36}',
    bindings: [
      // The API takes every kind of token as a bearer, whether the client wrote `token`, `Bearer` or Basic.
      bearer([
        'api.github.com',
        'uploads.github.com',
        'raw.githubusercontent.com',
        'copilot.github.com',
        'api.githubcopilot.com',
      ]),
      // Git over HTTPS takes nothing but Basic.
      {
        hosts: ['github.com', 'gist.github.com'],
        ports: [443],
        header: 'authorization',
        format: 'Basic base64(x-access-token:%s)',
      },
    ],
  },
  {
    name: 'google',
    placeholder: 'AIza{rand:35}',
    bindings: [
      {
        hosts: [
          'generativelanguage.googleapis.com',
          'oauth2.googleapis.com',
          'aiplatform.googleapis.com',
          'vertexai.googleapis.com',
        ],
        ports: [443],
        header: 'x-goog-api-key',
        format: '%s',
        removes: { headers: ['authorization'], query: ['key', 'access_token'] },
      },
    ],
  },
  { name: 'groq', placeholder: 'gsk_{rand:52}', bindings: [bearer(['api.groq.com'])] },
  { name: 'mistral', placeholder: '{rand:32}', bindings: [bearer(['api.mistral.ai'])] },
  { name: 'openrouter', placeholder: 'sk-or-v1-{hex:64}', bindings: [bearer(['openrouter.ai'])] },
  { name: 'xai', placeholder: 'xai-{rand:80}', bindings: [bearer(['api.x.ai'], 'x-api-key')] },
  { name: 'npm', placeholder: 'npm_{rand:36}', bindings: [bearer(['registry.npmjs.org'])] },
  {
    name: 'pypi',
    placeholder: 'pypi-AgEIcHlwaS5vcmc{rand:134}',
    bindings: [
      {
        hosts: ['upload.pypi.org'],
        ports: [443],
        header: 'authorization',
        format: 'Basic base64(__token__:%s)',
      },
    ],
    beside: { TWINE_USERNAME: '__token__' },
  },
  {
    name: 'aws',
    placeholder: 'AKIA{base32:16}',
    bindings: [{ hosts: ['*.amazonaws.com', '*.amazonaws.com.cn'], ports: [443], awsSigV4: true }],
  },
  {
    name: 'cursor',
    placeholder: 'key_{hex:64}',
    bindings: [bearer(['api2.cursor.sh', 'api3.cursor.sh', 'repo42.cursor.sh', 'cursor.com'])],
  },
  {
    name: 'droid',
    placeholder: 'fk-{rand:48}',
    bindings: [bearer(['api.factory.ai', 'app.factory.ai', 'relay.factory.ai'])],
  },
  {
    name: 'nebius',
    placeholder: 'v1.{rand:64}',
    bindings: [bearer(['api.studio.nebius.com', 'api.tokenfactory.nebius.com'])],
  },
];

export const services: readonly Service[] = table.map((service) => ({
  ...service,
  variables: serviceVariables[service.name],
}));

export function serviceOf(name: string): Service | undefined {
  return services.find((service) => service.name === name);
}

/** What an environment could provide: each service, the variable it was found in, and the value to store. */
export function importable(
  readEnv: (variable: string) => string | undefined,
): { service: ServiceName; variable: string; value: string }[] {
  return services.flatMap(({ name }) => {
    const found = importedValue(name, readEnv);
    return found === undefined ? [] : [{ service: name, ...found }];
  });
}
