// Calls about volumes.
import { Failure } from '../lib/failure.ts';
import { nameFits } from './container-calls.ts';
import { labelsOf } from './create.ts';
import { flag, ignoreRefusal, isSet, jsonOf, pick, relay, sendJson } from './exchange.ts';
import { parseFilters } from './images.ts';
import { route } from './routes.ts';
import { shownVolume } from './shown.ts';

route('GET', '/volumes', async function (it) {
  const asked = parseFilters(it.query.get('filters'));
  const all = await this.volumes(it.version);
  const shown = all
    .map((each) => shownVolume(each, this.names))
    .filter((each) => asked.name === undefined || asked.name.some((pattern) => nameFits(each.Name, pattern)))
    .filter((each) => (asked.label ?? []).every((label) => labelFits(each.Labels ?? {}, label)));
  sendJson(it.response, 200, { Volumes: shown, Warnings: null });
});

function labelFits(labels: Record<string, string>, wanted: string): boolean {
  const at = wanted.indexOf('=');
  return at < 0 ? wanted in labels : labels[wanted.slice(0, at)] === wanted.slice(at + 1);
}

route('POST', '/volumes/create', async function (it) {
  const { Name, Driver, DriverOpts, Labels, ...others } = (await jsonOf(it)) as Record<string, unknown>;
  if (Driver != null && Driver !== '' && Driver !== 'local')
    throw new Failure('permission', 'there are local volumes only');
  if (Object.keys((DriverOpts as object | null) ?? {}).length > 0)
    throw new Failure('permission', 'DriverOpts: they would mount what the sandbox may not see');
  if (Object.values(others).some((value) => value != null))
    throw new Failure('invalid', 'the volume has unknown fields');
  if (Name != null && typeof Name !== 'string') throw new Failure('invalid', 'Name must be a text');
  const labels = labelsOf(Labels);
  sendJson(it.response, 201, shownVolume(await this.makeVolume(it.version, Name ?? '', labels), this.names));
});

route('POST', '/volumes/prune', async function (it) {
  const { all, label, ...others } = parseFilters(it.query.get('filters'));
  if (Object.keys(others).length > 0) throw new Failure('invalid', 'the filters are all and label');
  const removed: string[] = [];
  for (const each of await this.volumes(it.version)) {
    const named = this.names.shownVolume(each.Name) !== each.Name;
    if (named && !isSet(all?.[0] ?? null) && Number(it.version.slice(2)) >= 42) continue;
    if (!(label ?? []).every((wanted) => labelFits(each.Labels ?? {}, wanted))) continue;
    const path = `/volumes/${encodeURIComponent(each.Name)}`;
    const gone = await this.upstream.json(it.version, { method: 'DELETE', path }).then(
      () => true,
      (error) => {
        ignoreRefusal(error);
        return false;
      },
    );
    if (gone) removed.push(this.names.shownVolume(each.Name));
  }
  sendJson(it.response, 200, { VolumesDeleted: removed, SpaceReclaimed: 0 });
});

route('GET', '/volumes/{name}', async function (it) {
  sendJson(it.response, 200, shownVolume(await this.volume(it.version, it.params[0] ?? ''), this.names));
});

route('DELETE', '/volumes/{name}', async function (it) {
  const { Name } = await this.volume(it.version, it.params[0] ?? '');
  const path = `/volumes/${encodeURIComponent(Name)}`;
  await relay(
    it,
    await this.upstream.stream(
      it.version,
      { method: 'DELETE', path, query: pick(it.query, { force: flag }) },
      it.signal,
    ),
  );
});
