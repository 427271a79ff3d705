/**
 * What a program keeps in memory for the peers of its links: one budget for all links, in fair shares. It only counts:
 * the bytes are the sessions', and so is what becomes of whoever wants more. No timer, no socket. For native/session/.
 *
 * A link may hold half of what all others leave, so that whoever comes next always finds some, and never less than
 * {@link floorBytes}. If the floors of many exceed the budget, links that nobody can reach now are given up: those that
 * nobody here uses first, of several the largest.
 */

/** All links of the program together. */
export const memoryBytes = 256 * 1024 * 1024;
/** What a link may hold however much the others do: with less it could hardly go on. */
export const floorBytes = 1024 * 1024;
/** What a link costs besides what it holds: its session, its channel, its row in the list. */
const linkCostBytes = 64 * 1024;

/** What one link holds. */
export interface MemoryOwner {
  /** Whether it has no connection now; and whether somebody here uses it. */
  readonly isGone: boolean;
  readonly isWanted: boolean;
  /** What it holds is needed for others: it ends, and closes its share. */
  giveUp(): void;
}

export class MemoryBudget {
  readonly #totalBytes: number;
  readonly #shares = new Set<MemoryShare>();
  #heldBytes = 0;

  constructor(totalBytes = memoryBytes) {
    this.#totalBytes = totalBytes;
  }

  get heldBytes(): number {
    return this.#heldBytes;
  }

  share(owner: MemoryOwner): MemoryShare {
    const share: MemoryShare = new MemoryShare(owner, {
      maxBytes: () => Math.max(floorBytes, (this.#totalBytes - (this.#heldBytes - share.heldBytes)) / 2),
      change: (bytes) => {
        this.#heldBytes += bytes;
        if (bytes > 0 && this.#heldBytes > this.#totalBytes) this.#makeRoom();
      },
      close: () => this.#shares.delete(share),
    });
    this.#shares.add(share);
    share.hold(0);
    return share;
  }

  #makeRoom(): void {
    const gone = [...this.#shares].filter(({ owner }) => owner.isGone);
    gone.sort((a, b) => Number(a.owner.isWanted) - Number(b.owner.isWanted) || b.heldBytes - a.heldBytes);
    for (const { owner } of gone) {
      if (this.#heldBytes <= this.#totalBytes) return;
      owner.giveUp();
    }
  }
}

interface Account {
  maxBytes(): number;
  change(bytes: number): void;
  close(): void;
}

/** One link's. */
export class MemoryShare {
  readonly owner: MemoryOwner;
  readonly #account: Account;
  #heldBytes = 0;
  #isClosed = false;

  constructor(owner: MemoryOwner, account: Account) {
    this.owner = owner;
    this.#account = account;
  }

  get heldBytes(): number {
    return this.#heldBytes;
  }

  /** Whether it may hold so many bytes more. */
  mayHold(bytes: number): boolean {
    return this.#heldBytes + bytes <= this.#account.maxBytes();
  }

  /** It holds so many bytes now. */
  hold(bytes: number): void {
    if (!this.#isClosed) this.#change(bytes + linkCostBytes);
  }

  close(): void {
    this.#isClosed = true;
    this.#change(0);
    this.#account.close();
  }

  #change(bytes: number): void {
    const more = bytes - this.#heldBytes;
    this.#heldBytes = bytes;
    this.#account.change(more);
  }
}

/** That of this program. */
export const programMemory = new MemoryBudget();
