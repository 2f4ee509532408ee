// Makes the agent's folder, unless it is up to date. The daemon does the same at its start; this is for set-up, so that the first start is quick.
import { ensureAgentBundle } from '../src/agent/bundle.ts';

console.error(`agent: ${await ensureAgentBundle()}`);
