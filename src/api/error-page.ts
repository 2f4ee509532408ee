// What a person sees in a browser where a program would read a JSON error.

/** A whole page that asks for nothing else. */
export function errorPage({
  status,
  code,
  message,
  hint,
}: {
  status: number;
  code: string;
  message: string;
  hint?: string | undefined;
}): string {
  const escaped = (text: string) => text.replace(/[&<>"']/g, (char) => `&#${char.charCodeAt(0)};`);
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>${status} · Glovebox</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:15vh auto;padding:0 1rem;color-scheme:light dark}code{opacity:.7}</style>
<h1>${status}</h1>
<p>${escaped(message)}</p>
${hint === undefined ? '' : `<p>${escaped(hint)}</p>\n`}<p><code>${escaped(code)}</code></p>
</html>
`;
}
