// Calls about the engine itself and its network, as far as a sandbox has them.
import { moment, pick, relay, sendJson } from './exchange.ts';
import { parseFilters } from './images.ts';
import { vmLabels } from './names.ts';
import { refused, route } from './routes.ts';
import { shownEvent, shownInfo, shownSummary, shownVolume } from './shown.ts';
import { defaultVersion } from './upstream.ts';

route('GET|HEAD', '/_ping', async function (it) {
  const reply = await this.upstream.open(it.version, { method: 'GET', path: '/_ping' }, it.signal);
  reply.resume();
  it.response.setHeader('Api-Version', reply.headers['api-version'] ?? defaultVersion);
  // The classic builder: what a client would ask for otherwise is not here.
  it.response.setHeader('Builder-Version', '1');
  it.response.setHeader('Docker-Experimental', 'false');
  it.response.setHeader('Ostype', 'linux');
  it.response.setHeader('Cache-Control', 'no-cache, no-store, must-revalidate');
  it.response.writeHead(200, { 'Content-Type': 'text/plain; charset=utf-8', 'Content-Length': 2 });
  it.response.end(it.request.method === 'HEAD' ? undefined : 'OK');
});

route('GET', '/version', async function (it) {
  const said = await this.upstream.json<Record<string, unknown>>(
    it.version,
    { method: 'GET', path: '/version' },
    it.signal,
  );
  const { Version, ApiVersion, MinAPIVersion, Os, Arch, GitCommit, GoVersion, BuildTime } = said;
  const Details = { ApiVersion, MinAPIVersion, Os, Arch, GitCommit, GoVersion, BuildTime };
  const Components = [{ Name: 'Engine', Version, Details }];
  sendJson(it.response, 200, { Platform: { Name: 'Glovebox' }, Components, Version, ...Details });
});

route('GET', '/info', async function (it) {
  const info = await this.upstream.json<Record<string, unknown>>(
    it.version,
    { method: 'GET', path: '/info' },
    it.signal,
  );
  const containers = await this.containers(it.version);
  const images = await this.images.list(it.version);
  sendJson(it.response, 200, shownInfo(info, { vm: this.vm, containers, images: images.length }));
});

route('GET', '/events', async function (it) {
  const asked = parseFilters(it.query.get('filters'));
  const kept = Object.fromEntries(
    ['event', 'label'].flatMap((key) => (asked[key] ? [[key, asked[key]]] : [])),
  );
  const wanted = await Promise.all((asked.container ?? []).map((name) => this.containerId(it.version, name)));
  const filters = {
    ...kept,
    type: ['container'],
    label: [...(asked.label ?? []), `${vmLabels.vm}=${this.vm.sandboxId}`],
    ...(wanted.length === 0 ? {} : { container: wanted }),
  };
  const query = { ...pick(it.query, { since: moment, until: moment }), filters: JSON.stringify(filters) };
  const reply = await this.upstream.stream(it.version, { method: 'GET', path: '/events', query }, it.signal);
  await relay(it, reply, shownEvent(this.names));
});

route('GET', '/system/df', async function (it) {
  const containers = await this.containers(it.version, { size: '1' });
  const volumes = await this.volumes(it.version);
  sendJson(it.response, 200, {
    LayersSize: 0,
    Images: await this.images.shownList(it.version, {}),
    Containers: containers.map((each) => shownSummary(each, this.names)),
    Volumes: volumes.map((each) => ({
      ...shownVolume(each, this.names),
      UsageData: { Size: -1, RefCount: -1 },
    })),
    BuildCache: [],
  });
});

refused('POST', '/auth', 'a sandbox’s engine logs in nowhere', 'Load images with docker load.');
refused(
  'POST',
  '/(?:build|build/prune|session|grpc)',
  'images are not built by a sandbox’s engine, because a build would run past its walls',
  'Build on the host and bring the image in: docker save IMAGE | docker --host … load.',
);
refused(
  'GET|POST|PUT|DELETE',
  '/(?:swarm|nodes|services|tasks|secrets|configs|plugins|distribution)(?:/.*)?',
  'is not a part of a sandbox’s engine',
);

const network = {
  Name: 'sandbox',
  Id: 'sandbox',
  Driver: 'null',
  Scope: 'local',
  Created: '1970-01-01T00:00:00Z',
  EnableIPv6: false,
  IPAM: { Driver: 'default', Options: null, Config: [] },
  ...{ Internal: true, Attachable: false, Ingress: false, ConfigOnly: false, ConfigFrom: { Network: '' } },
  ...{ Containers: {}, Options: {}, Labels: {} },
};

route('GET', '/networks', async (it) => sendJson(it.response, 200, [network]));
route('GET', '/networks/(?:sandbox|none|bridge|default)', async (it) => sendJson(it.response, 200, network));
route('POST', '/networks/prune', async (it) => sendJson(it.response, 200, { NetworksDeleted: null }));
refused(
  'POST|DELETE',
  '/networks/.+',
  'a sandbox has one network, which all its containers share',
  'Leave --network out; containers reach each other at 127.0.0.1.',
);
