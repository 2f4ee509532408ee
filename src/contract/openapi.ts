// openapi.json, made from the route table and the schemas. The one place that knows OpenAPI.
import { z } from 'zod';
import * as admin from './admin.ts';
import * as audit from './audit.ts';
import * as bell from './bell.ts';
import * as vault from './credential-vault.ts';
import { ErrorBody } from './errors.ts';
import * as execd from './execd.ts';
import * as network from './network.ts';
import * as lifecycle from './opensandbox.ts';
import * as processes from './process.ts';
import { fullPathOf, type Route, routes } from './routes.ts';
import * as tenant from './tenant.ts';
import * as why from './why.ts';

type Json = Record<string, unknown>;

/** Schemas with a name are written once, below components; the name is that of the export. */
function named(): ReturnType<typeof z.registry<{ id: string }>> {
  const registry = z.registry<{ id: string }>();
  for (const module of [lifecycle, execd, processes, network, vault, bell, audit, admin, why, tenant])
    for (const [id, schema] of Object.entries(module))
      if (schema instanceof z.ZodType && /^[A-Z]/.test(id)) registry.add(schema, { id });
  registry.add(ErrorBody, { id: 'ErrorBody' });
  return registry;
}

const reference = (id: string) => `#/components/schemas/${id}`;

/** The document for one version of the server. The same input gives the same bytes. */
export function createOpenApi(version: string): Json {
  const registry = named();
  const { schemas } = z.toJSONSchema(registry, { uri: reference, io: 'input', unrepresentable: 'any' });
  const schemaOf = (schema: z.ZodType): Json => {
    const id = registry.get(schema)?.id;
    return id === undefined ? inline(schema) : { $ref: reference(id) };
  };
  const inline = (schema: z.ZodType): Json => {
    if (schema instanceof z.ZodArray) return { type: 'array', items: schemaOf(schema.element as z.ZodType) };
    if (schema instanceof z.ZodObject) {
      const properties = Object.entries(schema.shape).map(([name, it]) => [name, schemaOf(it as z.ZodType)]);
      return {
        type: 'object',
        properties: Object.fromEntries(properties),
        required: Object.keys(schema.shape),
      };
    }
    return bare(z.toJSONSchema(schema, { io: 'input', unrepresentable: 'any' }));
  };
  const paths: Record<string, Json> = {};
  for (const [operationId, route] of Object.entries(routes) as [string, Route][]) {
    const path = fullPathOf(route);
    paths[path] = { ...paths[path], [route.method.toLowerCase()]: operation(operationId, route, schemaOf) };
  }
  return {
    openapi: '3.1.0',
    info: {
      title: 'Glovebox',
      version,
      description:
        'Every path is also served below /v1. Below /sandboxes/{sandboxId}/proxy/{port}, any other port of the sandbox is reached, by HTTP and WebSocket.',
      license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
    },
    servers: [{ url: '/v1' }],
    paths,
    components: {
      securitySchemes: {
        apiKey: { type: 'apiKey', in: 'header', name: lifecycle.apiKeyHeader },
        bearer: { type: 'http', scheme: 'bearer', description: 'The API key' },
        egressToken: { type: 'apiKey', in: 'header', name: lifecycle.egressAuthHeader },
        accessToken: { type: 'apiKey', in: 'header', name: lifecycle.secureAccessHeader },
      },
      schemas: Object.fromEntries(Object.entries(schemas).map(([id, schema]) => [id, bare(schema as Json)])),
    },
  };
}

const securityOf: Record<Route['access'], Json[]> = {
  open: [],
  key: [{ apiKey: [] }, { bearer: [] }],
  sandbox: [{ apiKey: [] }, { accessToken: [] }],
};

function operation(operationId: string, route: Route, schemaOf: (schema: z.ZodType) => Json): Json {
  const inPath = [...fullPathOf(route).matchAll(/\{(\w+)\}/g)].map(([, name]) => ({
    name,
    in: 'path',
    required: true,
    schema: { type: 'string' },
  }));
  const inQuery = Object.entries(route.query?.shape ?? {}).map(([name, schema]) => ({
    name,
    in: 'query',
    required: !schema.safeParse(undefined).success,
    schema: bare(z.toJSONSchema(schema, { io: 'input', unrepresentable: 'any' })),
  }));
  const content = (it: z.ZodType | string) =>
    typeof it === 'string' ? { [it]: {} } : { 'application/json': { schema: schemaOf(it) } };
  const description = route.webSocket === undefined ? 'Done' : 'The connection is a WebSocket from here on';
  return {
    operationId,
    summary: route.summary,
    tags: [route.area],
    security: [...securityOf[route.access], ...(route.area === 'egress' ? [{ egressToken: [] }] : [])],
    ...(inPath.length + inQuery.length > 0 ? { parameters: [...inPath, ...inQuery] } : {}),
    ...(route.body === undefined
      ? {}
      : { requestBody: { required: !route.bodyOptional, content: content(route.body) } }),
    responses: {
      [route.status]: {
        description,
        ...(route.answer === undefined
          ? {}
          : {
              content: {
                ...content(route.answer),
                ...(route.follow && { 'application/x-ndjson': { schema: schemaOf(route.follow) } }),
              },
            }),
      },
      default: {
        description: 'What went wrong',
        content:
          route.area === 'egress' ? { 'text/plain': { schema: { type: 'string' } } } : content(ErrorBody),
      },
    },
  };
}

/** Without what only a document of its own needs. */
function bare(schema: Json): Json {
  const {
    $schema: _,
    $id: __,
    id: ___,
    ...rest
  } = schema as Json & { $schema?: string; $id?: string; id?: string };
  return rest;
}
