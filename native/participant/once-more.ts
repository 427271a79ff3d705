/**
 * One more attempt, if the introducer was lost during the first and is back in time. For participant.ts.
 */
import { UserError } from "../../protocol.ts";

/** So long the introducer may be away. */
const introducerBackMs = 15_000;

/** `work` waits for the peer, and no longer than its signal, before it asks for the link. */
export async function onceMore<T>(
  work: (signal: AbortSignal | undefined) => Promise<T>,
  signal: AbortSignal | undefined,
  backMs = introducerBackMs,
): Promise<T> {
  try {
    return await work(signal);
  } catch (error) {
    if (!(error instanceof UserError) || error.code !== "introducer-lost") throw error;
    const isLate = AbortSignal.timeout(backMs);
    try {
      return await work(signal ? AbortSignal.any([signal, isLate]) : isLate);
    } catch (later) {
      throw isLate.aborted && later === isLate.reason ? error : later;
    }
  }
}
