// Runs inside a guest under Bun and makes raw system calls, so that tests see what the kernel really answers, whatever libc would do.
// Arguments: the path of libc, and JSON: a list of calls [number, ...arguments]. An argument is a number, {"hex": "…"} for a pointer to
// those bytes, or {"result": i} for what call i returned. Prints JSON: for each call {value, errno}.
import { dlopen, ptr, read } from 'bun:ffi';

const [libcPath, calls] = process.argv.slice(2);
const libc = dlopen(libcPath, {
  syscall: { args: Array(7).fill('i64'), returns: 'i64' },
  __errno_location: { args: [], returns: 'ptr' },
}).symbols;

const results = [];
const kept = [];
for (const call of JSON.parse(calls)) {
  const numbers = call.map((argument) => {
    if (typeof argument === 'number') return argument;
    if (argument.result !== undefined) return results[argument.result].value;
    const bytes = Uint8Array.fromHex(argument.hex);
    kept.push(bytes);
    return ptr(bytes);
  });
  while (numbers.length < 7) numbers.push(0);
  const value = Number(libc.syscall(...numbers));
  results.push({ value, errno: value === -1 ? read.i32(libc.__errno_location(), 0) : 0 });
}
console.log(JSON.stringify(results));
