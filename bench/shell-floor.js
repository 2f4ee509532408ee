// The floor for a first output: the agent's own runtime (Bun) starting a shell by itself, without walls, API or daemon. For each line that comes it starts one, and says how many
// milliseconds passed before its first output.
for await (const _ of console) {
  const started = performance.now();
  const child = Bun.spawn(['bash', '-c', 'echo out'], { stdin: 'ignore', stdout: 'pipe', stderr: 'pipe' });
  await child.stdout.getReader().read();
  const took = performance.now() - started;
  await child.exited;
  console.log(took);
}
