// Answers that may be refused after all: the first piece is waited for, so that a failure before it is told as one and not by a cut connection.

export async function primed(bytes: AsyncIterable<Uint8Array>): Promise<AsyncIterable<Uint8Array>> {
  const source = bytes[Symbol.asyncIterator]();
  let next: IteratorResult<Uint8Array> | undefined = await source.next();
  return {
    [Symbol.asyncIterator]: () => ({
      next: async () => {
        const given = next ?? (await source.next());
        next = undefined;
        return given;
      },
      return: async () => {
        await source.return?.();
        return { done: true, value: undefined };
      },
    }),
  };
}
