/** Giving up to wait for something. Pure. For all. */

export interface Abortable {
  /** Once it aborts, what waits rejects with its reason. */
  signal?: AbortSignal | undefined;
}

/**
 * Passes on what comes of the work, or rejects with the reason of the signal if that aborts before: then the work itself goes
 * on. If the signal has aborted, nothing is begun.
 */
export async function untilAborted<T>(work: () => Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return work();
  signal.throwIfAborted();
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const abort = () => reject(signal.reason);
  signal.addEventListener("abort", abort);
  try {
    const working = work();
    working.catch(() => {}); // it may fail when nobody waits any more
    return await Promise.race([working, aborted]);
  } finally {
    signal.removeEventListener("abort", abort);
  }
}
