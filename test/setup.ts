// Runs once before all tests: says which runtimes are there, and refuses to go on without those that GLOVEBOX_TEST_REQUIRE names.
import { execFileSync } from 'node:child_process';
import { rootfsTar } from './images.ts';

const probes: Record<string, () => void> = {
  bubblewrap: () => execFileSync('bwrap', ['--version'], { stdio: 'ignore' }),
  docker: () => execFileSync('docker', ['version', '--format', '{{.Server.Version}}'], { stdio: 'ignore' }),
};

export default function setup(): void {
  const required = (process.env.GLOVEBOX_TEST_REQUIRE ?? '').split(',').filter((name) => name !== '');
  const present = Object.keys(probes).filter((name) => {
    try {
      probes[name]?.();
      return true;
    } catch {
      return false;
    }
  });
  const missing = required.filter((name) => !present.includes(name));
  if (missing.length > 0)
    throw new Error(`required by GLOVEBOX_TEST_REQUIRE but not usable here: ${missing.join(', ')}`);
  for (const name of Object.keys(probes))
    if (!present.includes(name)) console.warn(`tests of ${name} are skipped: it is not usable here`);
  // Made before the tests start, so that no test's time limit covers it.
  rootfsTar('scratch');
  rootfsTar('busybox');
  if (present.length > 0) {
    console.warn('making the Debian test image, if it is not there yet');
    rootfsTar('debian');
  }
  process.env.GLOVEBOX_TEST_PRESENT = present.join(',');
}
