/**
 * A transfer that a program watches: it is told how far it is, and can cancel it by a signal. Owns the timer for that. For
 * participant.ts.
 */
import type { TransferProgress } from "./files.ts";

/** How often it is told. */
const tellMs = 250;

export interface Watching {
  signal?: AbortSignal | undefined;
  onProgress?:
    ((progress: Pick<TransferProgress, "files" | "filesDone" | "bytes" | "bytesDone">) => void) | undefined;
}

/** What a transfer needs to be watched. */
export interface Watch {
  readonly signal?: AbortSignal | undefined;
  /** It has begun. */
  begun?(progress: TransferProgress): void;
}

/** Does it. Once the signal aborts it rejects with the reason of that. */
export async function watched<T>(
  { signal, onProgress }: Watching,
  work: (watch: Watch) => Promise<T>,
): Promise<T> {
  signal?.throwIfAborted();
  let timer: NodeJS.Timeout | undefined;
  let tell = () => {};
  const begun = (progress: TransferProgress) => {
    if (!onProgress) return;
    tell = () => {
      const { files, filesDone, bytes, bytesDone } = progress;
      onProgress({ files, filesDone, bytes, bytesDone });
    };
    timer = setInterval(tell, tellMs);
  };
  try {
    return await work({ signal, begun });
  } finally {
    clearInterval(timer);
    tell();
    signal?.throwIfAborted();
  }
}
