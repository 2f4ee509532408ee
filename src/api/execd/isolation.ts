// OpenSandbox's isolated sessions, of which there are none here: what a client asks before it makes one. The rest of them is in the table of what is absent.
import { noIsolation } from '../../contract/execd.ts';
import type { ApiOptions, Handlers } from '../handlers.ts';

export function isolationHandlers({
  service,
}: ApiOptions): Handlers<'isolationCapabilities' | 'listIsolatedSessions'> {
  return {
    isolationCapabilities: ({ sandboxId }) => {
      service.get(sandboxId);
      return {
        status: 200,
        json: {
          available: false,
          message: noIsolation,
          setpriv_available: false,
          userns_available: false,
          commit_supported: false,
          diff_supported: false,
        },
      };
    },

    listIsolatedSessions: ({ sandboxId }) => {
      service.get(sandboxId);
      return { status: 200, json: { sessions: [] } };
    },
  };
}
