/** Giving up to wait for something. Pure. For all. */

export interface Abortable {
  /** Once it aborts, what waits rejects with its reason. */
  signal?: AbortSignal | undefined;
}

/** Passes on what comes, or rejects with the reason of the signal if that aborts before. The work itself goes on. */
export async function untilAborted<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return work;
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const abort = () => reject(signal.reason);
  if (signal.aborted) abort();
  signal.addEventListener("abort", abort, { once: true });
  work.catch(() => {}); // it may fail when nobody waits any more
  try {
    return await Promise.race([work, aborted]);
  } finally {
    signal.removeEventListener("abort", abort);
  }
}
