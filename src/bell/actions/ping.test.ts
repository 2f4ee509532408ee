// Whether somebody answers.
import { expect, test } from 'vitest';
import { callOf } from '../desktop.fixture.ts';
import { createPing } from './ping.ts';

test('it gives nothing, whatever comes with it', async () => {
  const ping = createPing();
  expect(await ping.run(ping.parse({ session_id: 'x' }), callOf())).toBeUndefined();
  expect(await ping.unavailable()).toBeUndefined();
});
