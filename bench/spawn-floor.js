// The floor for exec: the agent's own runtime (Bun) starting /bin/true by itself, at one, 8 and 64 in flight. Prints commands a second as JSON.
const count = Number(process.argv[2]);

async function one() {
  const child = Bun.spawn(['/bin/true'], { stdin: 'ignore', stdout: 'pipe', stderr: 'pipe' });
  await Promise.all([child.exited, child.stdout.bytes(), child.stderr.bytes()]);
}

async function rate(inFlight) {
  let left = count;
  const started = performance.now();
  const worker = async () => {
    while (left-- > 0) await one();
  };
  await Promise.all(Array.from({ length: inFlight }, worker));
  return count / ((performance.now() - started) / 1000);
}

await rate(8);
console.log(JSON.stringify({ 1: await rate(1), 8: await rate(8), 64: await rate(64) }));
