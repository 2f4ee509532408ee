import { expect, test, vi } from 'vitest';
import { followLines, startTestApi, testKey } from './fake.fixture.ts';

const withBearer = (key: string) => ({ 'OPEN-SANDBOX-API-KEY': '', Authorization: `Bearer ${key}` });

test('metrics are read with the key in its header or as a bearer token, and in no other way', async () => {
  await using api = await startTestApi();
  const scraped = await api.call('GET', '/metrics', undefined, withBearer(testKey));
  expect(scraped.status).toBe(200);
  expect(scraped.headers.get('content-type')).toBe('text/plain; version=0.0.4; charset=utf-8');
  expect(scraped.text).toBe('of_this_test 1\n');
  expect((await api.call('GET', '/v1/metrics')).status).toBe(200);
  const refused = [
    {},
    { Authorization: 'Bearer wrong' },
    { Authorization: `Basic ${testKey}` },
    { Authorization: testKey },
  ];
  for (const headers of refused) {
    const sent = { 'OPEN-SANDBOX-API-KEY': '', ...headers };
    expect((await api.call('GET', '/metrics', undefined, sent)).status).toBe(401);
  }
});

test('a bearer token opens no port of a sandbox: there it is for the server inside', async () => {
  await using api = await startTestApi();
  const path = '/sandboxes/s/proxy/44772/files/info?path=/';
  expect((await api.call('GET', path, undefined, withBearer(testKey))).status).toBe(401);
  expect((await api.call('GET', '/sandboxes/s/proxy/8080/', undefined, withBearer(testKey))).status).toBe(
    401,
  );
});

test('each request is told to the meters once, refused ones too; the time of endless ones is not', async () => {
  await using api = await startTestApi();
  await api.call('GET', '/sandboxes/s');
  await api.call('GET', '/sandboxes/none');
  await api.call('GET', '/sandboxes', undefined, { 'OPEN-SANDBOX-API-KEY': 'wrong' });
  await api.call('GET', '/no/such/path');
  const stream = await followLines(api, '/network/log?follow=true');
  stream.call.destroy();
  await vi.waitFor(() => expect(api.requests).toHaveLength(5));
  expect(api.requests.pop()).toEqual({ operation: 'networkLog', status: 200 });
  expect(api.requests).toMatchObject([
    { operation: 'getSandbox', status: 200, ms: expect.any(Number) },
    { operation: 'getSandbox', status: 404 },
    { operation: 'listSandboxes', status: 401 },
    { operation: 'unknown', status: 404 },
  ]);
});
