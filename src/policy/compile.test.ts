// One list, in which the first that holds decides; what guards places; and what is told of it.
import { expect, test } from 'vitest';
import { ProxyConfigChange } from '../contract/network.ts';
import { changeProxyConfig, defaultProxyConfig } from './docker.ts';
import { attemptOf, effectOf, policyOf, rule } from './policy.fixture.ts';
import { type Policy, type PolicySources, type ProxyConfig, portsMax } from './policy.ts';

const forSandbox = { sandboxId: 'sb1' };

const proxy = (
  network: Partial<ProxyConfig['network']>,
  policy: 'allow' | 'deny' = 'allow',
): Partial<PolicySources> => ({
  own: { kind: 'proxy-config', config: { policy, network: { ...defaultProxyConfig.network, ...network } } },
});
const network = (...egress: ['allow' | 'deny', string][]): Partial<PolicySources> => ({
  own: {
    kind: 'network-policy',
    policy: { defaultAction: 'deny', egress: egress.map(([action, target]) => ({ action, target })) },
  },
});

function addressesOf(policy: Policy, target: string, ...resolved: string[]) {
  const attempt = attemptOf(target);
  return policy.addresses(attempt, policy.decide(attempt), resolved);
}

test('denials come first, then kept answers, questions, allowances for the sandbox, its own policy, and allowances for all', () => {
  const all = rule('allow', '**');
  const own = network(['deny', 'x.test']);
  expect(effectOf(policyOf([all]), 'x.test')).toBe('allow');
  expect(effectOf(policyOf([all], own), 'x.test')).toBe('deny');
  // What the operator allows everywhere does not count beside a policy of one's own.
  expect(effectOf(policyOf([all], own), 'y.test')).toBe('deny');
  const forThis = rule('allow', 'x.test', forSandbox);
  expect(effectOf(policyOf([all, forThis], own), 'x.test')).toBe('allow');
  const ask = rule('ask', '*.test', { sandboxId: 'sb1' });
  expect(effectOf(policyOf([forThis, rule('ask', 'x.test')], own), 'x.test')).toBe('ask');
  const answer = rule('allow', 'x.test:443', { createdVia: 'approval' });
  expect(effectOf(policyOf([ask, rule('ask', 'x.test'), answer], own), 'x.test')).toBe('allow');
  expect(effectOf(policyOf([ask, rule('ask', 'x.test'), answer], own), 'x.test:8443')).toBe('ask');
  expect(effectOf(policyOf([answer, rule('deny', 'x.test')], own), 'x.test')).toBe('deny');
});

test('a decision names its rule, in words, and where it comes from', () => {
  const policy = policyOf(
    [
      rule('allow', ['a.test', '*.b.test:443'], { id: 'r1', name: 'default-tests' }),
      rule('deny', 'c.test', { id: 'r2', sandboxId: 'sb1', methods: ['POST', 'PUT'], path: '/x/**' }),
    ],
    network(['allow', 'D.test']),
  );
  expect(policy.decide(attemptOf('d.test'))).toMatchObject({
    effect: 'allow',
    reason: 'rule',
    rule: { id: 'egress[0]', text: 'allow d.test', source: 'network-policy' },
    message: 'd.test:443 is allowed by the rule "allow d.test".',
  });
  expect(policy.decide(attemptOf('PUT c.test /x/y'))).toMatchObject({
    rule: { id: 'r2', text: 'deny c.test POST,PUT /x/**', source: 'sandbox' },
    message: 'This request to c.test:443 is denied by the rule "deny c.test POST,PUT /x/**".',
  });
  expect(
    policyOf([rule('allow', '*.b.test:443', { id: 'r1', name: 'ours' })]).decide(attemptOf('a.b.test')),
  ).toMatchObject({
    rule: { id: 'r1', text: 'allow *.b.test:443 (ours)', source: 'global' },
  });
  expect(
    policyOf([rule('ask', '**', { id: 'r1', methods: ['ANY'] })]).decide(attemptOf('GET a.test /')),
  ).toMatchObject({
    rule: { id: 'r1', text: 'ask ** ANY', source: 'global' },
    message: 'This request to a.test:443 needs a person\'s consent, says the rule "ask ** ANY".',
  });
  expect(policyOf([], proxy({ blockedDomains: ['E.test:443'] })).decide(attemptOf('e.test'))).toMatchObject({
    rule: { id: 'blockedDomains[0]', text: 'blockedDomains: e.test:443', source: 'proxy-config' },
  });
});

test.each([
  ['nothing.test', [], {}, 'No rule allows nothing.test:443.'],
  [
    'a.test:22',
    [rule('allow', ['a.test:443', '*.test:8080'])],
    {},
    'No rule allows a.test:22; rules allow this host on port 443, 8080.',
  ],
  [
    'POST a.test /',
    [rule('allow', 'a.test', { methods: ['GET'] })],
    {},
    'No rule allows this request to a.test:443; rules allow others.',
  ],
  ['a.test', [rule('allow', 'a.test', { methods: ['GET'] })], {}, 'depends on the method and the path'],
  ['a.test', [], proxy({}), 'a.test:443 is allowed, since no rule denies it.'],
  [
    '10.0.0.5',
    [],
    {},
    '10.0.0.5:443 is in a private network; reaching it needs a rule that names the address or its range.',
  ],
  [
    '127.0.0.1',
    [],
    {},
    '127.0.0.1:443 is the host itself; reaching it needs a rule that names exactly this.',
  ],
  [
    'localhost:1',
    [],
    {},
    'localhost:1 is the host itself; reaching it needs a rule that names exactly this.',
  ],
  ['x.localhost', [], {}, 'x.localhost:443 is the host itself, which is reached by the name localhost only.'],
  ['169.254.169.254', [], {}, "is a cloud's metadata service, which no sandbox may reach."],
  ['0.0.0.0', [], {}, 'is no address that can be connected to.'],
])('%s is explained', (target, rules, more, message) => {
  expect(policyOf(rules, more).decide(attemptOf(target)).message).toContain(message);
});

test.each([
  ['10.0.0.5', 'private-address', 'x.test:443 leads into a private network; reaching it needs a rule'],
  ['127.0.0.1', 'host-address', 'x.test:443 leads to the host itself; reaching it needs a rule'],
  ['192.168.7.7', 'host-address', 'x.test:443 leads to the host itself; reaching it needs a rule'],
  ['169.254.169.254', 'metadata', "x.test:443 leads to a cloud's metadata service"],
  ['0.0.0.0', 'unusable-address', 'x.test:443 leads to no address'],
  ['garbage', 'unusable-address', 'x.test:443 leads to no address'],
  ['fe80::1%eth0', 'unusable-address', 'x.test:443 leads to no address'],
  ['9.9.9.9', 'rule', 'x.test:443 leads to an address that a rule denies'],
])('a name that leads to %s is refused, and the guest is not told the address', (address, reason, message) => {
  const policy = policyOf([rule('allow', 'x.test'), rule('deny', '9.9.9.9', { id: 'r9' })], {
    hostAddresses: ['192.168.7.7'],
  });
  const { dial, denied } = addressesOf(policy, 'x.test', address);
  expect(dial).toEqual([]);
  expect(denied).toMatchObject({
    effect: 'deny',
    reason,
    dependsOnRequest: false,
    opaque: false,
    bypass: false,
  });
  expect(denied?.message).toContain(message);
  expect(JSON.stringify(denied)).not.toContain(address);
});

test('of several addresses the good ones are left, in their order and canonical', () => {
  const policy = policyOf([rule('allow', 'x.test')]);
  expect(
    addressesOf(policy, 'x.test', '8.8.8.8', '10.0.0.1', '::ffff:1.1.1.1', 'FD00::1', '2606:4700::0:1'),
  ).toEqual({
    dial: ['8.8.8.8', '1.1.1.1', '2606:4700::1'],
  });
  expect(addressesOf(policy, 'x.test')).toEqual({ dial: [] });
  expect(addressesOf(policy, 'x.test', '10.0.0.1', '127.0.0.1').denied?.reason).toBe('private-address');
});

test('what was denied has no addresses, whatever it resolves to', () => {
  const policy = policyOf([rule('deny', 'x.test')]);
  const decision = policy.decide(attemptOf('x.test'));
  expect(policy.addresses(attemptOf('x.test'), decision, ['8.8.8.8'])).toEqual({
    dial: [],
    denied: decision,
  });
});

test('of a literal address only itself is dialled, and only while the policy allows it', () => {
  const allowing = policyOf([rule('allow', '8.8.8.8')]);
  expect(addressesOf(allowing, '8.8.8.8', '::ffff:8.8.8.8', '8.8.4.4')).toEqual({ dial: ['8.8.8.8'] });
  expect(addressesOf(allowing, '8.8.8.8', '8.8.4.4').denied?.reason).toBe('unusable-address');
  const attempt = attemptOf('8.8.8.8');
  expect(policyOf([]).addresses(attempt, allowing.decide(attempt), ['8.8.8.8']).denied?.reason).toBe(
    'default',
  );
});

test('the host is opened by its name and port, its very address, or the loopback range, and by no network around it', () => {
  const host = { hostAddresses: ['192.168.7.7', '::ffff:192.168.7.8', 'fe80::7%eth0'] };
  const rules = [rule('allow', ['**', '192.168.0.0/16', 'fe80::/10', 'x.test'])];
  const policy = policyOf(rules, host);
  for (const target of ['192.168.7.7', '192.168.7.8', '[fe80::7]', '127.0.0.1', '[::1]', 'localhost'])
    expect([target, policy.decide(attemptOf(target)).reason]).toEqual([target, 'host-address']);
  expect(effectOf(policy, '192.168.7.9')).toBe('allow');
  expect(addressesOf(policy, 'x.test', '192.168.7.7').denied?.reason).toBe('host-address');
  const exact = policyOf([...rules, rule('allow', '192.168.7.7:5432')], host);
  expect(effectOf(exact, '192.168.7.7:5432')).toBe('allow');
  expect(effectOf(exact, '192.168.7.7:22')).toBe('deny');
  expect(addressesOf(exact, 'x.test:5432', '192.168.7.7').dial).toEqual(['192.168.7.7']);
  expect(effectOf(policyOf([rule('allow', '127.0.0.0/16')], host), '127.0.0.1')).toBe('allow');
  expect(effectOf(policyOf([rule('allow', '0.0.0.0/0')], host), '127.0.0.1')).toBe('deny');
});

test('localhost is dialled at the loopback only', () => {
  const policy = policyOf([rule('allow', 'localhost:9999')]);
  expect(addressesOf(policy, 'localhost:9999', '127.0.0.1', '::1').dial).toEqual(['127.0.0.1', '::1']);
  expect(addressesOf(policy, 'localhost:9999', '8.8.8.8').denied?.reason).toBe('unusable-address');
  const denied = policyOf([rule('allow', 'localhost:9999'), rule('deny', '127.0.0.0/8')]);
  expect(addressesOf(denied, 'localhost:9999', '127.0.0.1').denied?.reason).toBe('rule');
});

test('metadata services need the guard lifted and a rule that names them', () => {
  const named = [rule('allow', ['169.254.169.254', 'metadata.google.internal', '**'])];
  expect(effectOf(policyOf(named), '169.254.169.254:80')).toBe('deny');
  expect(effectOf(policyOf(named), 'metadata.google.internal:80')).toBe('deny');
  const lifted = policyOf(named, { dangerouslyAllowMetadata: true });
  expect(effectOf(lifted, '169.254.169.254:80')).toBe('allow');
  expect(effectOf(lifted, 'metadata.google.internal:80')).toBe('allow');
  expect(addressesOf(lifted, 'metadata.google.internal:80', '169.254.169.254').dial).toEqual([
    '169.254.169.254',
  ]);
  const unnamed = policyOf([rule('allow', '**')], { dangerouslyAllowMetadata: true });
  for (const target of ['169.254.169.254', 'metadata.google.internal'])
    expect(unnamed.decide(attemptOf(target)).reason).toBe('metadata');
  expect(addressesOf(unnamed, 'x.test', '169.254.169.254').denied?.reason).toBe('metadata');
});

test('a rule about requests to an address opens it to no name, and its denial holds whole', () => {
  const rules = [rule('allow', ['x.test', '10.0.0.0/8']), rule('allow', '10.1.0.1', { methods: ['GET'] })];
  expect(
    addressesOf(
      policyOf([rules[0] as never, rule('deny', '10.0.0.5', { methods: ['POST'] })]),
      'x.test',
      '10.0.0.5',
    ).dial,
  ).toEqual([]);
  expect(
    addressesOf(policyOf([rule('allow', 'x.test'), rules[1] as never]), 'x.test', '10.1.0.1').dial,
  ).toEqual([]);
  expect(effectOf(policyOf([rules[1] as never]), 'GET 10.1.0.1 /')).toBe('allow');
  expect(addressesOf(policyOf([rules[1] as never]), '10.1.0.1', '10.1.0.1').dial).toEqual(['10.1.0.1']);
});

test('a proxy configuration decides about the ranges that it lists by default, and about no other guard', () => {
  const open = policyOf([], proxy({ blockCIDR: [] }));
  expect(effectOf(open, '10.0.0.5')).toBe('allow');
  expect(addressesOf(open, 'x.test', '10.0.0.5').dial).toEqual(['10.0.0.5']);
  expect(effectOf(open, '100.64.0.1')).toBe('deny');
  expect(effectOf(open, '127.0.0.1')).toBe('deny');
  expect(effectOf(open, '169.254.169.254')).toBe('deny');
  expect(addressesOf(open, 'x.test', '127.0.0.1').denied?.reason).toBe('host-address');
  expect(
    addressesOf(policyOf([], proxy({ blockCIDR: [], allowedDomains: ['x.test'] })), 'x.test', '100.64.0.1')
      .dial,
  ).toEqual(['100.64.0.1']);
  // The operator's word for everything does not make it the configuration's decision.
  const operators = policyOf([rule('allow', '**', forSandbox)], proxy({ blockCIDR: [] }));
  expect(addressesOf(operators, 'x.test', '10.0.0.5').denied?.reason).toBe('private-address');
  const dependent = policyOf([rule('deny', 'x.test', { methods: ['POST'] })], proxy({ blockCIDR: [] }));
  expect(addressesOf(dependent, 'x.test', '10.0.0.5').denied?.reason).toBe('private-address');
  // A rule of the operator that names the host passes the blocks; private networks need a rule about the address all the same.
  const named = [rule('allow', ['localhost:9999', 'x.test'], forSandbox)];
  expect(addressesOf(policyOf(named, proxy({})), 'localhost:9999', '127.0.0.1').dial).toEqual(['127.0.0.1']);
  expect(addressesOf(policyOf(named, proxy({})), 'x.test', '10.0.0.5').denied?.reason).toBe(
    'private-address',
  );
});

/** Where some rule looks at requests, a remedy is about the request. */
const head = rule('allow', 'a.test', { methods: ['HEAD'] });

test.each([
  ['nothing.test', [], {}, 'glovebox policy allow network --sandbox demo nothing.test:443'],
  ['[2606:4700::1]:80', [], {}, "glovebox policy allow network --sandbox demo '[2606:4700::1]:80'"],
  ['10.0.0.5', [rule('allow', '**')], {}, 'glovebox policy allow network --sandbox demo 10.0.0.5:443'],
  ['localhost:9999', [], {}, 'glovebox policy allow network --sandbox demo localhost:9999'],
  ['x.localhost', [], {}, undefined],
  ['169.254.169.254', [], {}, undefined],
  ['0.0.0.0', [], {}, undefined],
  ['a.test', [rule('deny', 'a.test', { id: 'r1' })], {}, 'glovebox policy rm network --id r1'],
  ['a.test', [], network(), 'glovebox policy allow network --sandbox demo a.test:443'],
  ['a.test', [], network(['deny', '*.test']), 'glovebox policy allow network --sandbox demo a.test:443'],
  ['a.test', [], proxy({}, 'deny'), 'glovebox network proxy demo --allow-host a.test:443'],
  [
    'a.test',
    [],
    proxy({ blockedDomains: ['a.test:443'] }),
    'glovebox network proxy demo --allow-host a.test:443',
  ],
  ['10.0.0.5', [], proxy({}), 'glovebox network proxy demo --allow-host 10.0.0.5:443'],
  ['a.test', [], { ...proxy({}, 'deny'), sandboxName: undefined as never }, undefined],
  ['a.test', [], { ...network(), sandboxName: undefined as never }, undefined],
  ['a.test', [], { sandboxName: undefined as never }, 'glovebox policy allow network a.test:443'],
  [
    'a.test',
    [],
    { sandboxName: "it's; rm -rf" },
    "glovebox policy allow network --sandbox 'it'\\''s; rm -rf' a.test:443",
  ],
  ['GET a.test /v1/x', [], {}, 'glovebox policy allow network --sandbox demo a.test:443'],
  [
    'GET a.test /v1/x',
    [head],
    {},
    'glovebox policy allow network --sandbox demo a.test:443 --method GET --path /v1/x',
  ],
  [
    'GET a.test /',
    [head],
    {},
    'glovebox policy allow network --sandbox demo a.test:443 --method GET --path /',
  ],
  ["GET a.test /$(rm)'", [head], {}, 'glovebox policy allow network --sandbox demo a.test:443 --method GET'],
  ['GET a.test /a/../b', [head], {}, 'glovebox policy allow network --sandbox demo a.test:443 --method GET'],
  ['$(rm) a.test /', [head], {}, 'glovebox policy allow network --sandbox demo a.test:443'],
])('%s is allowed by a command', (target, rules, more, remedy) => {
  const decision = policyOf(rules, more).decide(attemptOf(target));
  expect(decision.effect).toBe('deny');
  expect(decision.remedy).toBe(remedy);
});

test.each([
  ['nothing.test', [], undefined],
  ['10.0.0.5:22', [rule('allow', '**')], undefined],
  ['192.168.7.7:22', [rule('allow', '192.168.0.0/16')], undefined],
  ['localhost:9999', [rule('allow', '**')], undefined],
  ['a.test', [rule('allow', '**'), rule('deny', 'a.test', { id: 'r1' })], undefined],
  ['POST a.test /v1/x', [rule('allow', 'a.test', { methods: ['GET'] })], undefined],
  ['a.test:22', [], network(['deny', '*.test']).own],
  ['a.test:22', [], proxy({}, 'deny').own],
  ['a.test:22', [], proxy({ blockedDomains: ['*.test', 'a.test', '*:22'] }).own],
  ['a.test:22', [], proxy({ blockedDomains: ['a.test:22'] }).own],
  ['10.0.0.5:22', [], proxy({}).own],
  ['192.168.7.7:22', [], proxy({}).own],
] as const)('the command for %s does allow it', (target, rules, own) => {
  const host = { hostAddresses: ['192.168.7.7'] };
  const remedy = policyOf([...rules], { ...host, ...(own === undefined ? {} : { own }) }).decide(
    attemptOf(target),
  ).remedy;
  const words = remedy?.split(' ') ?? [];
  const after = (option: string) => words[words.indexOf(option) + 1] as string;
  const made = words.includes('allow')
    ? rule('allow', words[6] as string, {
        ...forSandbox,
        ...(words.includes('--method') ? { methods: [after('--method')], path: after('--path') } : {}),
      })
    : undefined;
  const changed =
    own?.kind === 'proxy-config' && words.includes('proxy')
      ? {
          ...own,
          config: changeProxyConfig(
            own.config,
            ProxyConfigChange.parse({ allowHosts: [after('--allow-host')] }),
          ),
        }
      : own;
  const left = words.includes('rm') ? rules.filter(({ id }) => id !== after('--id')) : rules;
  const policy = policyOf(made === undefined ? [...left] : [...left, made], {
    ...host,
    ...(changed === undefined ? {} : { own: changed }),
  });
  expect(effectOf(policy, target)).toBe('allow');
});

test('UDP goes out where a rule says so', () => {
  const udp = (policy: Policy, target: string) => policy.decide(attemptOf(target, 'udp'));
  expect(udp(policyOf([rule('allow', 'a.test:123', { protocols: ['udp'] })]), 'a.test:123').effect).toBe(
    'allow',
  );
  expect(udp(policyOf([]), 'a.test:123').remedy).toBe(
    'glovebox policy allow network --sandbox demo a.test:123 --protocol udp',
  );
  expect(udp(policyOf([], proxy({})), 'a.test:123')).toMatchObject({ effect: 'deny', reason: 'default' });
  expect(udp(policyOf([], proxy({})), 'a.test:123').remedy).toBeUndefined();
  expect(
    udp(policyOf([rule('allow', '**', { protocols: ['udp'] }), rule('deny', 'a.test')]), 'a.test:1').effect,
  ).toBe('deny');
});

test('a decision depends on the request only where another request would come out otherwise', () => {
  const depends = (target: string, ...rules: ReturnType<typeof rule>[]) =>
    policyOf(rules).decide(attemptOf(target)).dependsOnRequest;
  const get = rule('allow', 'a.test', { methods: ['GET'] });
  expect(depends('a.test', get)).toBe(true);
  expect(depends('GET a.test /', get)).toBe(true);
  expect(depends('POST a.test /', get)).toBe(true);
  expect(depends('a.test', get, rule('allow', 'a.test'))).toBe(false);
  expect(depends('GET a.test /', get, rule('allow', 'a.test'))).toBe(false);
  expect(depends('a.test', get, rule('deny', 'a.test'))).toBe(false);
  expect(depends('a.test', rule('deny', 'a.test', { methods: ['GET'] }))).toBe(false);
  expect(depends('a.test', rule('ask', 'a.test', { methods: ['GET'] }), rule('allow', 'a.test'))).toBe(true);
  expect(depends('b.test', get)).toBe(false);
  expect(depends('a.test:8443', rule('allow', 'a.test:443', { methods: ['GET'] }))).toBe(false);
});

test('only a rule that names host and port lets through what is neither HTTP nor TLS, and not on the ports of the web', () => {
  const opaque = (target: string, ...rules: ReturnType<typeof rule>[]) =>
    policyOf(rules).decide(attemptOf(target)).opaque;
  expect(opaque('a.test:5432', rule('allow', 'a.test:5432'))).toBe(true);
  expect(opaque('a.test:5432', rule('allow', '*.test:5432'))).toBe(true);
  expect(opaque('a.test:5432', rule('ask', 'a.test:5432'))).toBe(true);
  expect(opaque('8.8.8.8:53', rule('allow', '8.8.8.8:53'))).toBe(true);
  expect(opaque('a.test:5432', rule('allow', 'a.test'))).toBe(false);
  expect(opaque('a.test:5432', rule('allow', 'a.test'), rule('allow', 'a.test:5432'))).toBe(true);
  expect(opaque('a.test:5432', rule('allow', 'a.test'), rule('allow', 'a.test:22'))).toBe(false);
  expect(opaque('a.test:5432', rule('allow', '**:5432'))).toBe(false);
  expect(opaque('a.test:443', rule('allow', 'a.test:443'))).toBe(false);
  expect(opaque('a.test:80', rule('allow', 'a.test:80'))).toBe(false);
  expect(
    opaque(
      'GET a.test:5432 /',
      rule('allow', 'a.test:5432', { methods: ['GET'] }),
      rule('allow', 'a.test:5432'),
    ),
  ).toBe(false);
  expect(
    opaque('a.test:5432', rule('allow', 'a.test:5432'), rule('deny', 'a.test:5432', { methods: ['GET'] })),
  ).toBe(false);
  expect(opaque('a.test:5432', rule('deny', 'a.test:5432'))).toBe(false);
  expect(policyOf([], proxy({ allowedDomains: ['a.test:22'] })).decide(attemptOf('a.test:22')).opaque).toBe(
    true,
  );
  expect(policyOf([], proxy({})).decide(attemptOf('a.test:22')).opaque).toBe(false);
});

test.each([
  ['a question about some requests', [rule('ask', 'a.test:8443', { methods: ['GET'] })]],
  [
    'a question about all but some',
    [rule('deny', 'a.test', { methods: ['PUT'] }), rule('ask', 'a.test:8443')],
  ],
  [
    'an allowance of some',
    [rule('allow', 'a.test:8443', { methods: ['GET'] }), rule('bypass', 'a.test:8443')],
  ],
])('a connection that depends on its requests is allowed, not asked about, nor passed on unseen: %s', (_, rules) => {
  expect(policyOf(rules).decide(attemptOf('a.test:8443'))).toMatchObject({
    ...{ effect: 'allow', reason: 'request-needed', dependsOnRequest: true, opaque: false, bypass: false },
  });
});

test('bypass holds for what is allowed and does not depend on requests', () => {
  const bypass = (target: string, rules: ReturnType<typeof rule>[], more: Partial<PolicySources> = {}) =>
    policyOf(rules, more).decide(attemptOf(target)).bypass;
  const pass = rule('bypass', '*.pinned.test:443');
  expect(bypass('a.pinned.test', [pass, rule('allow', '**')])).toBe(true);
  expect(bypass('a.pinned.test:8443', [pass, rule('allow', '**')])).toBe(false);
  expect(bypass('a.pinned.test', [pass])).toBe(false);
  expect(bypass('a.pinned.test', [pass, rule('allow', '**', { methods: ['GET'] })])).toBe(false);
  expect(bypass('a.pinned.test', [pass, rule('ask', '**')])).toBe(true);
  expect(bypass('a.test', [], proxy({ bypassDomains: ['a.test'] }))).toBe(true);
  expect(bypass('8.8.8.8', [], proxy({ bypassCIDR: ['8.8.0.0/16'] }))).toBe(true);
  expect(bypass('a.test', [], proxy({ bypassDomains: ['a.test'] }, 'deny'))).toBe(false);
});

test.each([
  ['a.test', [rule('allow', 'a.test:8443')], {}, true],
  ['A.test.', [rule('ask', '*.test')], {}, true],
  ['b.test', [rule('allow', 'a.test:8443')], {}, false],
  ['a.test', [rule('allow', 'a.test', { methods: ['GET'] })], {}, true],
  ['a.test', [rule('allow', 'a.test', { protocols: ['udp'] })], {}, true],
  ['a.test', [rule('allow', '**'), rule('deny', 'a.test')], {}, false],
  ['a.test', [rule('allow', '**'), rule('deny', 'a.test:443')], {}, true],
  ['a.test', [rule('allow', 'a.test:443'), rule('deny', 'a.test:443')], {}, false],
  ['a.test', [], proxy({}), true],
  ['a.test', [], proxy({ blockedDomains: ['a.test'] }), false],
  ['a.test', [], proxy({ blockedDomains: ['a.test'], allowedDomains: ['a.test:22'] }), true],
  ['a.test', [], network(['allow', '*.test']), true],
  ['localhost', [rule('allow', '**')], {}, false],
  ['localhost', [rule('allow', 'localhost:9999')], {}, true],
  ['a.localhost', [rule('allow', '**')], {}, false],
  ['metadata.google.internal', [rule('allow', '**')], {}, false],
  ['8.8.8.8', [rule('allow', '**')], {}, false],
  ['not a name', [rule('allow', '**')], {}, false],
  ['', [rule('allow', '**')], {}, false],
])('%s may be resolved as far as something at it may be reached', (name, rules, more, expected) => {
  expect(policyOf(rules, more).mayResolve(name)).toBe(expected);
});

test('the ports that rules name are those to catch, without those of the web, each once and not too many', () => {
  expect(
    policyOf([
      rule('allow', ['a.test:5432', 'a.test:443', 'b.test:80', 'c.test', '**:5432']),
      rule('ask', 'a.test:22'),
      rule('deny', 'a.test:23'),
      rule('bypass', 'a.test:8443'),
      rule('allow', 'a.test:53', { protocols: ['udp'] }),
    ]).ports,
  ).toEqual([22, 5432]);
  expect(policyOf([], proxy({ allowedDomains: ['a.test:22'] })).ports).toEqual([22]);
  const many = Array.from({ length: 200 }, (_, index) => `a.test:${1_000 + index}`);
  expect(policyOf([rule('allow', many)]).ports).toHaveLength(portsMax);
});

test('sources that cannot be parsed are an error and never a policy', () => {
  expect(() => policyOf([rule('allow', 'ex ample.com')])).toThrow('resources[0]');
  expect(() => policyOf([], network(['allow', 'a.test:443']))).toThrow('egress[0]');
  expect(() => policyOf([], proxy({ allowedDomains: ['a.test', '**'] }))).toThrow('allowedDomains[1]');
  expect(() => policyOf([], proxy({ bypassCIDR: ['10.0.0.0/40'] }))).toThrow('bypassCIDR[0]');
  expect(() => policyOf([], { hostAddresses: ['eth0'] })).toThrow('hostAddresses: "eth0" is no address');
});

test('ten thousand decisions take less than a second, whatever the number of rules', () => {
  const rules = Array.from({ length: 4_000 }, (_, index) =>
    rule(index % 7 === 0 ? 'deny' : 'allow', [
      `host${index}.example.net:443`,
      `**.zone${index}.example.org`,
      `10.${index % 256}.0.0/16`,
    ]),
  );
  const policy = policyOf([...rules, rule('allow', '**')]);
  const attempts = [
    'host77.example.net',
    'a.b.c.zone99.example.org',
    'nothing.test',
    '10.1.1.1',
    '8.8.8.8',
  ].map((it) => attemptOf(it));
  const start = process.cpuUsage();
  for (let round = 0; round < 2_000; round++) for (const attempt of attempts) policy.decide(attempt);
  expect(process.cpuUsage(start).user / 1_000).toBeLessThan(1_000);
});

test("what a stranger's sandbox has of its own opens the internet, and nothing of this host or its networks", () => {
  const own = rule('allow', ['localhost:9999', '10.0.0.0/8', '127.0.0.1', 'x.test', '**'], forSandbox);
  const answered = rule('allow', '192.168.1.1', { ...forSandbox, createdVia: 'approval' });
  const networkPolicy = network(['allow', '10.0.0.5'], ['allow', 'x.test']);
  for (const [rules, more] of [
    [[own, answered], {}],
    [[], networkPolicy],
    [[own], networkPolicy],
  ] as const) {
    const open = policyOf([...rules], more);
    const strange = policyOf([...rules], { ...more, strange: true });
    for (const target of ['localhost:9999', '10.0.0.5', '127.0.0.1', '192.168.1.1']) {
      expect([target, effectOf(strange, target)]).toEqual([target, 'deny']);
      expect(addressesOf(strange, 'x.test', target.replace('localhost:9999', '127.0.0.1')).dial).toEqual([]);
    }
    // The same rules do open one of these elsewhere.
    expect(effectOf(open, '10.0.0.5')).toBe('allow');
    expect(effectOf(strange, 'x.test')).toBe('allow');
    expect(addressesOf(strange, 'x.test', '192.0.2.1').dial).toEqual(
      addressesOf(open, 'x.test', '192.0.2.1').dial,
    );
  }
  // The operator can open one for all.
  const global = policyOf([rule('allow', 'localhost:9999'), rule('allow', '10.0.0.5')], { strange: true });
  expect([effectOf(global, 'localhost:9999'), effectOf(global, '10.0.0.5')]).toEqual(['allow', 'allow']);
});
