/**
 * The memory that a program keeps for the peers of its links: one budget for all links, in fair shares. It only counts. The
 * sessions own the bytes, and decide what to do if they may not have more. No timer, no socket. For native/session/.
 *
 * A link may hold half of what all others leave, so there is always some for the next one. It may always hold
 * {@link floorBytes}. If the floors of many links exceed the budget, links without a connection are given up: first those
 * that nobody here uses, and of these the largest.
 */

/** The budget of all links of the program together. */
const memoryBytes = 256 * 1024 * 1024;
/** What a link may always hold. With less it could hardly go on. */
export const floorBytes = 1024 * 1024;
/** What a link takes besides what it holds: its session, its channel, its row in the list. */
const linkCostBytes = 64 * 1024;

/** The owner of what one link holds. */
export interface MemoryOwner {
  /** Whether it has no connection now; and whether somebody here uses it. */
  readonly isGone: boolean;
  readonly isWanted: boolean;
  /** Others need the memory. It must end, and close its share. */
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

/** The share of one link. */
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

  /** Whether it may hold `bytes` more. */
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

/** The memory budget of this program. */
export const programMemory = new MemoryBudget();
