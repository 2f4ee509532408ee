// `npm run generate`: writes the files that come from the contract. With `--check`, writes nothing and fails when one is not what it should be.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { configJsonSchema } from '../src/contract/config-schema.ts';
import { guideTables, withTables } from '../src/contract/from-opensandbox.ts';
import { createOpenApi } from '../src/contract/openapi.ts';

const root = join(import.meta.dirname, '..');
const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string };

const files: Record<string, string> = {
  'openapi.json': `${JSON.stringify(createOpenApi(version), null, 2)}\n`,
  'docs/reference/config.schema.json': `${JSON.stringify(configJsonSchema(), null, 2)}\n`,
};

const guide = 'docs/guide/from-opensandbox.md';
files[guide] = withTables(readFileSync(join(root, guide), 'utf8'), guideTables());

const configuration = join(root, 'src/contract/config.ts');
if (existsSync(configuration)) {
  const { configurationReference } = (await import(configuration)) as {
    configurationReference?: () => string;
  };
  if (configurationReference) files['docs/reference/configuration.md'] = configurationReference();
}

const check = process.argv.includes('--check');
let wrong = 0;
for (const [name, text] of Object.entries(files)) {
  const path = join(root, name);
  if (existsSync(path) && readFileSync(path, 'utf8') === text) continue;
  if (check) {
    console.error(`${name} is not what the contract says. Run \`npm run generate\` and commit it.`);
    wrong += 1;
    continue;
  }
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, text);
  console.error(`wrote ${relative(process.cwd(), path)}`);
}
process.exit(wrong > 0 ? 1 : 0);
