// What the presets let out, and that their rules are rules like any other.
import { expect, test } from 'vitest';
import { NewRule } from '../contract/network.ts';
import { effectOf, policyOf, rule } from './policy.fixture.ts';
import { presets } from './presets.ts';
import { validateRule } from './rules.ts';

const policyFrom = (name: string) =>
  policyOf(
    (presets.find((it) => it.name === name)?.rules ?? []).map((it) =>
      rule(it.decision, it.resources, { id: `${it.name}`, name: `${it.name}`, createdVia: 'default' }),
    ),
  );

test('there are three, and each rule is one that could have been sent', () => {
  expect(presets.map((it) => it.name)).toEqual(['allow-all', 'balanced', 'deny-all']);
  for (const { rules, description } of presets) {
    expect(description).toMatch(/\.$/);
    for (const it of rules) {
      expect(() => validateRule({ ...NewRule.parse(it), createdVia: 'default' })).not.toThrow();
      expect(new Set(it.resources).size).toBe(it.resources.length);
    }
  }
});

test.each([
  ['registry.npmjs.org', 'allow', 'default-package-managers'],
  ['files.pythonhosted.org', 'allow', 'default-package-managers'],
  ['proxy.golang.org', 'allow', 'default-package-managers'],
  ['deb.debian.org:80', 'allow', 'default-os-packages'],
  ['security.debian.org', 'allow', 'default-os-packages'],
  ['archive.ubuntu.com:80', 'allow', 'default-os-packages'],
  ['api.anthropic.com', 'allow', 'default-ai-services'],
  ['api.openai.com', 'allow', 'default-ai-services'],
  ['api.github.com', 'allow', 'default-code-and-containers'],
  ['raw.githubusercontent.com', 'allow', 'default-code-and-containers'],
  ['registry-1.docker.io', 'allow', 'default-code-and-containers'],
  ['bucket.s3.amazonaws.com', 'allow', 'default-cloud-infrastructure'],
  ['crl3.digicert.com:80', 'allow', 'default-cert-validation'],
  ['r3.o.lencr.org:80', 'allow', 'default-cert-validation'],
  ['api.anthropic.com:80', 'deny', undefined],
  ['github.com:22', 'deny', undefined],
  ['example.com', 'deny', undefined],
  ['registry.npmjs.org.evil.test', 'deny', undefined],
  ['10.0.0.1', 'deny', undefined],
])('balanced: %s, %s', (target, effect, name) => {
  const policy = policyFrom('balanced');
  expect(effectOf(policy, target)).toBe(effect);
  if (name !== undefined) {
    const { host, port } = {
      host: { kind: 'name' as const, name: target.replace(/:.*/, '') },
      port: Number(target.split(':')[1] ?? 443),
    };
    expect(policy.decide({ host, port, protocol: 'tcp' }).rule?.id).toBe(name);
  }
});

test('allow-all opens the public internet and nothing of this host, deny-all nothing', () => {
  for (const target of ['example.com', 'example.com:22', '8.8.8.8:53']) {
    expect(effectOf(policyFrom('allow-all'), target)).toBe('allow');
    expect(effectOf(policyFrom('deny-all'), target)).toBe('deny');
  }
  for (const target of ['localhost:80', '127.0.0.1', '10.0.0.1', '169.254.169.254'])
    expect(effectOf(policyFrom('allow-all'), target)).toBe('deny');
});
