/**
 * Turns of reading: one peer is read for a while, and then others of the program have their turn. A peer that asks for too
 * much is not read for a while. Owns the pause. Reads nothing. For native/session/receiver.ts.
 */
import { type Edge } from "./edge.ts";

/** Frames that are read in one turn of the event loop. A frame that costs more than reading it counts as several. */
const turnFrames = 256;
/** The longest pause of a peer that asks for too much. It is well below what looks dead. */
const maxPauseMs = 250;

export class ReadingTurns {
  readonly #edge: Edge;
  readonly #onPause: () => void;
  readonly #onResume: () => void;
  /** Those of this turn, and maybe a few of those before. */
  #frames = 0;
  #willCountAnew = false;
  #cancelPause: (() => void) | undefined;

  constructor(edge: Edge, onPause: () => void, onResume: () => void) {
    this.#edge = edge;
    this.#onPause = onPause;
    this.#onResume = onResume;
  }

  get isPaused(): boolean {
    return this.#cancelPause !== undefined;
  }

  /** What was read has cost as much as so many frames. */
  spend(frames: number): void {
    this.#frames += frames;
    if (this.#frames >= turnFrames / 2) this.#countAnew();
    if (this.#frames >= turnFrames) this.pause(0);
  }

  /** In the next turn. Not for a few frames: who asks and waits for the answer has one in each turn. */
  #countAnew(): void {
    if (this.#willCountAnew) return;
    this.#willCountAnew = true;
    setImmediate(() => {
      this.#frames = 0;
      this.#willCountAnew = false;
    });
  }

  /** Nothing is read for so long, and at least until others of the program have had their turn. */
  pause(forMs: number): void {
    if (this.#edge.isClosed || (this.isPaused && forMs === 0)) return;
    this.stop();
    this.#onPause();
    const resume = () => this.#edge.guard(() => this.#resume());
    if (forMs > 0) this.#cancelPause = this.#edge.clock.after(Math.min(forMs, maxPauseMs), resume);
    else {
      const immediate = setImmediate(resume);
      this.#cancelPause = () => clearImmediate(immediate);
    }
  }

  #resume(): void {
    this.#cancelPause = undefined;
    this.#frames = 0;
    this.#onResume();
  }

  stop(): void {
    this.#cancelPause?.();
    this.#cancelPause = undefined;
  }
}
