/**
 * Transfers of files: offers that wait for the user, and what is under way in either direction. Owns both lists, and the
 * folder that takes files without asking. Tells by events, and prints nothing. For native/uses/services.ts, the prompt and
 * the command line.
 */
import { printable, ToldError, UserError } from "../../protocol.ts";
import { type Bucket, tryTake } from "../shares/budget.ts";
import { FairShare } from "../shares/fair-share.ts";
import type { Pace } from "../shares/pace.ts";
import type { Link } from "../session/link.ts";
import { resetCodes, type Stream, StreamError } from "../session/stream.ts";
import { folderFor } from "./destination.ts";
import { Exclusion } from "./exclude.ts";
import {
  Cancelled,
  type FileFailure,
  fileProblem,
  LocalProblem,
  type TransferOutcome,
  TransferProgress,
} from "./files.ts";
import type { From } from "./from.ts";
import { type Listing, listingOf, type FileOffer, storedName } from "./offer.ts";
import { checkRoom, type Decision, receiveFiles } from "./receive.ts";
import { sendFiles } from "./send.ts";
import { collectFiles, type SourceFiles } from "./source-files.ts";
import { listUnfinished, type Unfinished } from "./unfinished.ts";
import type { Watch } from "./watched.ts";
import { isCalled, type Shown } from "./whom.ts";

/**
 * Offers that are being read, and offers that wait for the user, at one time; of all peers, in fair shares. Offers wait for
 * long, so a share of these is small: with shares of a half, seven peers would leave nothing.
 */
const maxOffers = 64;
/** Transfers that are being received at one time. Each holds four descriptors. */
const maxReceiving = 64;
/** So many things that are not sent are told. */
const maxSkippedTold = 1_000;
/** Offers of one peer: so many at once, then so many a second. Each is a line or two for the user. */
const offers = { burst: 128, perSecond: 2, peers: 1_024 };
/** Who has not answered an offer by then is waited for, and that is told. */
const waitingTellMs = 1_000;
const nobodyThere = "nobody is there to accept it (--accept DIR)";

export type Direction = "sending" | "receiving";
type About = { transfer: number; direction: Direction; name: string; what: string };

/** Events of files. `name` is the peer's name. */
export type TransferEvent =
  /** What will not be sent, though the user has named it or a folder around it. `more`: how many are not told. */
  | { event: "skipped"; name: string; what: string; skipped: FileFailure[]; more: number }
  /**
   * `storedAs`: the name that it would get here, if it is another one. A folder might also get a number. `lacking`: why
   * there is no room for it in this folder.
   */
  | ({
      event: "offered";
      offer: number;
      name: string;
      what: string;
      files: number;
      folders: number;
      bytes: number;
      storedAs?: string;
      lacking?: string;
    } & Listing)
  /** An offer that waited for us is over. */
  | { event: "offer-withdrawn"; offer: number; name: string; what: string; reason: string }
  /** The peer has not answered our offer yet. */
  | ({ event: "transfer-waiting"; files: number; folders: number; bytes: number } & About)
  /** Bytes move from now on. When receiving: also what the offer said, and the name in the folder. */
  | ({
      event: "transferring";
      files: number;
      folders: number;
      bytes: number;
      storedAs?: string;
    } & About &
      Partial<Listing>)
  /** `storedAs`: the name in the folder, when receiving. */
  | ({ event: "transferred"; storedAs?: string } & About & Outcome)
  | ({ event: "transfer-cancelled"; by: "us" | "peer" } & About & Left)
  /** `by`: whose side says so; `refused`: the offer was not accepted. */
  | ({ event: "transfer-failed"; reason: string; by: "us" | "peer"; refused: boolean } & About & Left);

/** `bytes`: of files that have arrived; `bytesMoved`: what was sent for that; `elapsedMs`: while it could be sent. */
type Outcome = TransferOutcome & { bytes: number; bytesMoved: number; elapsedMs: number };

/**
 * What is left of a transfer. `bytesThere`: what the receiver has of all `bytes`; the same command goes on behind it.
 * `keptAs`: when receiving, the file or folder that has it, for {@link keptDays} days.
 */
type Left = { bytesThere: number; bytes: number; keptAs?: string };

/** What a transfer does now. `sinceMs`, `untilMs`: by performance.now(); the link is given up then. */
export type Phase =
  | { is: "waiting"; sinceMs: number }
  | { is: "moving"; sinceMs: number }
  | { is: "broken"; sinceMs: number; untilMs: number }
  | { is: "cancelling" };

/** A transfer under way. Its numbers change while it goes on. */
export interface Transfer {
  readonly id: number;
  readonly direction: Direction;
  readonly name: string;
  readonly what: string;
  readonly progress: TransferProgress;
  readonly phase: Phase;
  /** How long bytes could move: without waiting for an answer, and without a broken link. */
  readonly movingMs: number;
}

export interface TransfersOptions {
  /** The link with that peer, as soon as there is one. Rejects if none is being made. */
  link: (peer: string) => Link | Promise<Link>;
  /** Whether a peer is the one that the user has named. By default, whoever says so. */
  isMeant?: (whom: string, shown: Shown) => boolean;
  /** Whether names are bound to the certificate that was seen first. */
  remembers?: boolean;
  /** Whether it is a private room. */
  isPrivate: () => boolean;
  /** Whether there is a user who can accept an offer. */
  canAsk: boolean;
  /** Patterns of what is left out of what is sent (exclude.ts). */
  exclude?: readonly string[];
  /** How fast it sends. */
  pace?: Pace;
  /** Whether what is received may be executable. */
  executable?: boolean;
  onEvent: (event: TransferEvent) => void;
}

interface Asked {
  offer: FileOffer;
  decide: (decision: Decision) => void;
}

class UnderWay implements Transfer {
  readonly id: number;
  readonly direction: Direction;
  readonly name: string;
  readonly what: string;
  readonly progress: TransferProgress;
  readonly #link: Link | undefined;
  readonly #cancel: AbortController;
  readonly over = Promise.withResolvers<void>();

  constructor(
    id: number,
    about: Pick<Transfer, "direction" | "name" | "what" | "progress">,
    link: Link | undefined,
    cancel: AbortController,
  ) {
    this.id = id;
    ({ direction: this.direction, name: this.name, what: this.what, progress: this.progress } = about);
    this.#link = link;
    this.#cancel = cancel;
  }

  cancel(): Promise<void> {
    this.#cancel.abort();
    return this.over.promise;
  }

  get phase(): Phase {
    const { begun, madeMs } = this.progress;
    if (this.#cancel.signal.aborted) return { is: "cancelling" };
    const returning = this.#link?.returning;
    if (returning) return { is: "broken", ...returning };
    return begun ? { is: "moving", sinceMs: begun.atMs } : { is: "waiting", sinceMs: madeMs };
  }

  get movingMs(): number {
    const { begun } = this.progress;
    if (!begun) return 0;
    return performance.now() - begun.atMs - ((this.#link?.brokenMs ?? 0) - begun.brokenMs);
  }

  get told(): About {
    const { id: transfer, direction, name, what } = this;
    return { transfer, direction, name, what };
  }
}

export class Transfers {
  readonly #options: TransfersOptions;
  readonly #offers = new Map<number, Asked>();
  readonly #underWay = new Map<number, UnderWay>();
  readonly #shares = {
    reading: new FairShare(maxOffers),
    offers: new FairShare(maxOffers, 1 / 8),
    receiving: new FairShare(maxReceiving),
  };
  readonly #offered = new Map<string, Bucket>();
  #lastId = 0;
  #acceptInto: { directory: string; from: string | undefined } | undefined;
  #canAsk: boolean;

  constructor(options: TransfersOptions) {
    this.#options = options;
    this.#canAsk = options.canAsk;
  }

  get list(): Transfer[] {
    return [...this.#underWay.values()];
  }

  // --- sending -------------------------------------------------------------------------------------------

  /** What there is of the paths; throws a {@link UserError} for one that is not there, and if nothing is left to send. */
  async look(paths: readonly string[]): Promise<SourceFiles> {
    const { exclude } = this.#options;
    const collection = await collectFiles(paths, new Exclusion(exclude)).catch((error: Error) => {
      throw new UserError(error.message);
    });
    const { path, reason } = collection.skipped[0] ?? {};
    const why = path ? `: ${path}: ${reason}` : exclude?.length ? ": --exclude leaves all of it out" : "";
    if (collection.things === 0) throw new UserError(`nothing to send${why}`);
    return collection;
  }

  /** Sends files. Resolves once each has arrived or has failed. Events tell which. */
  async send(
    peer: string,
    what: readonly string[] | SourceFiles,
    { signal, begun }: Watch = {},
  ): Promise<TransferOutcome> {
    const collection = "files" in what ? what : await this.look(what);
    const link = await this.#options.link(peer);
    const { name, files, bytes, skipped } = collection;
    const counts = { files: files.length, folders: collection.folders.length, bytes };
    if (skipped.length > 0) {
      const [told, more] = [skipped.slice(0, maxSkippedTold), Math.max(0, skipped.length - maxSkippedTold)];
      this.#options.onEvent({ event: "skipped", name: peer, what: name, skipped: told, more });
    }
    const progress = new TransferProgress({ files: files.length, bytes });
    const about = { direction: "sending", name: peer, what: name, progress } as const;
    const cancel = new AbortController();
    const underWay = this.#begin(about, link, cancel);
    const abort = () => cancel.abort();
    signal?.addEventListener("abort", abort);
    if (signal?.aborted) abort();
    begun?.(progress);
    const waiting = setTimeout(
      () => this.#options.onEvent({ event: "transfer-waiting", ...underWay.told, ...counts }),
      waitingTellMs,
    );
    const { pace } = this.#options;
    const onAccepted = () => {
      clearTimeout(waiting);
      this.#options.onEvent({ event: "transferring", ...underWay.told, ...counts });
    };
    return await this.#until(underWay, () =>
      sendFiles(link, collection, { progress, signal: cancel.signal, onAccepted, ...(pace && { pace }) }),
    ).finally(() => {
      clearTimeout(waiting);
      signal?.removeEventListener("abort", abort);
    });
  }

  // --- what peers offer ----------------------------------------------------------------------------------

  /**
   * From now on files are put into that folder without asking, unless the room is open; it is made if it is not there.
   * `from`: only those of that sender. Throws a {@link UserError} if files can't be put there.
   */
  acceptInto(directory: string, from?: string): void {
    this.#acceptInto = { directory: folderFor(directory), from };
  }

  /**
   * Takes an offer into that folder, which is made if it is not there. Rejects with a {@link UserError} if files can't be
   * put there, or if there is no room: then the offer stays.
   */
  async accept(text: string, directory: string): Promise<void> {
    this.#mustBePrivate();
    const { offer } = this.#asked(text);
    const folder = folderFor(directory);
    await checkRoom(folder, offer).catch((error: Error) => {
      throw new UserError(`${error.message}; \`accept ${text} DIR\` puts it elsewhere`);
    });
    this.#asked(text).decide({ directory: folder });
  }

  refuse(offer: string): void {
    this.#asked(offer).decide({ refuse: "it is not wanted" });
  }

  /** What has come in part and is left in that folder: without `directory`, in the one that takes files without asking. */
  async unfinished(directory = this.#acceptInto?.directory ?? "."): Promise<Unfinished[]> {
    return listUnfinished(directory).catch((error) => {
      throw new UserError(`${printable(directory)}: ${fileProblem(error)}`);
    });
  }

  /** From now on there is nobody who could answer an offer. */
  nobodyAnswers(): void {
    this.#canAsk = false;
    for (const { decide } of this.#offers.values()) decide({ refuse: nobodyThere });
  }

  #mustBePrivate(): void {
    if (!this.#options.isPrivate())
      throw new UserError(
        "`accept` is refused: in the open lobby anyone could use it: use a private room (--room WORDS)",
        { code: "open-room" },
      );
  }

  #asked(text: string): Asked {
    const found = this.#offers.get(Number(text));
    const ids = [...this.#offers.keys()].join(", ") || "none";
    if (!found) throw new UserError(`there is no offer ${printable(text)}; waiting: ${ids}`);
    return found;
  }

  /** Takes a stream by which a peer offers files. */
  async receive(stream: Stream, { name, fingerprint, purpose, link }: From): Promise<void> {
    const begun = Promise.withResolvers<{ progress: TransferProgress; offer: FileOffer }>();
    const isRead = this.#shares.reading.take(fingerprint);
    if (!isRead) return stream.reset("too many offers wait already", resetCodes.refused);
    let give: (() => void) | undefined;
    const cancel = new AbortController();
    let offered: FileOffer | undefined;
    const receiving = receiveFiles(stream, purpose, {
      ...{ peer: fingerprint, name, executable: this.#options.executable ?? false, signal: cancel.signal },
      decide: async (offer, signal) => {
        isRead();
        offered = offer;
        const decision = await this.#decide(offer, { name, fingerprint }, signal);
        if ("refuse" in decision) return decision;
        give = this.#shares.receiving.take(fingerprint);
        return give ? decision : { refuse: "too many files are being received already" };
      },
      onProgress: (progress, offer) => begun.resolve({ progress, offer }),
    });
    const over = receiving.finally(() => {
      isRead();
      give?.();
    });
    const failed = over.then(
      () => undefined,
      (error: unknown) => void (offered && this.#notBegun(offered, name, error)),
    );
    const begin = await Promise.race([begun.promise, failed]);
    if (!begin) return;
    const { progress, offer } = begin;
    const about = { direction: "receiving", name, what: offer.name, progress } as const;
    const underWay = this.#begin(about, link, cancel);
    const { files, folders, bytes } = offer;
    const told = { ...underWay.told, files, folders, bytes, ...storedIn(progress), ...listingOf(offer) };
    this.#options.onEvent({ event: "transferring", ...told });
    await this.#until(underWay, () => over).catch(() => {}); // it was told
  }

  /** It was accepted, and there is nothing to put it into, or no room. */
  #notBegun({ name: what, bytes }: FileOffer, name: string, error: unknown): void {
    if (!(error instanceof LocalProblem)) return;
    const about = { transfer: ++this.#lastId, direction: "receiving", name, what } as const;
    this.#options.onEvent({
      ...{ event: "transfer-failed", ...about, ...failureOf(error) },
      bytesThere: 0,
      bytes,
    });
  }

  #mayOffer(fingerprint: string): boolean {
    const now = performance.now();
    const bucket = this.#offered.get(fingerprint) ?? { tokens: offers.burst, at: now };
    this.#offered.delete(fingerprint); // so that the latest are last
    this.#offered.set(fingerprint, bucket);
    const [oldest] = this.#offered.keys();
    if (this.#offered.size > offers.peers) this.#offered.delete(oldest!);
    return tryTake(bucket, offers.burst, offers.perSecond, now);
  }

  #decide(
    offer: FileOffer,
    from: Pick<From, "name" | "fingerprint">,
    signal: AbortSignal,
  ): Promise<Decision> | Decision {
    const { name, fingerprint } = from;
    if (!this.#options.isPrivate()) return { refuse: "it takes no files in the open lobby" };
    if (!this.#mayOffer(fingerprint))
      return { refuse: "too many offers of yours came at once: wait a while" };
    const { directory, from: wanted } = this.#acceptInto ?? {};
    const { isMeant = isCalled } = this.#options;
    if (directory !== undefined && (wanted === undefined || isMeant(wanted, { name, fingerprint })))
      return { directory, isReal: true };
    if (!this.#canAsk)
      return { refuse: wanted === undefined ? nobodyThere : `it takes files of ${wanted} only (--from)` };
    const give = this.#shares.offers.take(fingerprint);
    if (!give) return { refuse: "too many offers wait already" };
    return this.#ask(offer, name, signal).finally(give);
  }

  async #ask(offer: FileOffer, name: string, signal: AbortSignal): Promise<Decision> {
    const lack = await checkRoom(".", offer).then(
      () => ({}),
      (error: Error) => ({ lacking: error.message }),
    );
    if (signal.aborted) return { refuse: "it was taken back" };
    if (!this.#canAsk) return { refuse: nobodyThere };
    const id = ++this.#lastId;
    const { promise, resolve } = Promise.withResolvers<Decision>();
    this.#offers.set(id, { offer, decide: resolve });
    const { name: what, files, folders, bytes } = offer;
    const stored = offer.things === 1 ? storedName(what) : `from-${name}-…`;
    const renamed = stored === what ? {} : { storedAs: stored };
    const { onEvent } = this.#options;
    onEvent({
      event: "offered",
      offer: id,
      name,
      what,
      files,
      folders,
      bytes,
      ...renamed,
      ...lack,
      ...listingOf(offer),
    });
    signal.addEventListener("abort", () => {
      if (!this.#offers.has(id)) return;
      const reason = "it was taken back";
      resolve({ refuse: reason });
      onEvent({ event: "offer-withdrawn", offer: id, name, what, reason });
    });
    return promise.finally(() => this.#offers.delete(id));
  }

  // --- what is under way ---------------------------------------------------------------------------------

  /** Cancels that transfer, or the only one. Resolves once it is over. */
  async cancel(text?: string): Promise<void> {
    const all = [...this.#underWay.values()];
    const found = text === undefined && all.length === 1 ? all[0] : this.#underWay.get(Number(text));
    if (found) return found.cancel();
    const ids = all.map(({ id, what }) => `${id} (${printable(what)})`).join(", ");
    if (all.length === 0) throw new UserError("nothing is being sent or received");
    const wrong = text === undefined ? "which transfer?" : `there is no transfer ${printable(text)};`;
    throw new UserError(`${wrong} under way: ${ids}`);
  }

  /** Cancels all, and refuses what is offered. Resolves once the peers know, at the latest after a while. */
  async close(): Promise<void> {
    for (const { decide } of this.#offers.values()) decide({ refuse: "the program has ended" });
    await Promise.all([...this.#underWay.values()].map((one) => one.cancel()));
  }

  #begin(
    about: Pick<Transfer, "direction" | "name" | "what" | "progress">,
    link: Link | undefined,
    cancel: AbortController,
  ): UnderWay {
    const underWay = new UnderWay(++this.#lastId, about, link, cancel);
    about.progress.brokenMs = () => link?.brokenMs ?? 0;
    this.#underWay.set(underWay.id, underWay);
    return underWay;
  }

  async #until(underWay: UnderWay, work: () => Promise<TransferOutcome>): Promise<TransferOutcome> {
    const { told, progress, id } = underWay;
    const { onEvent } = this.#options;
    try {
      const outcome = await work();
      const { bytesDone: bytes, bytesMoved } = progress;
      const moved = { bytes, bytesMoved, elapsedMs: underWay.movingMs };
      onEvent({ event: "transferred", ...told, ...outcome, ...moved, ...storedIn(progress) });
      return outcome;
    } catch (error) {
      const failure = failureOf(error);
      const { bytesDone: bytesThere, bytes, keptAs } = progress;
      const isKept = bytesThere > 0 && keptAs !== undefined;
      const there = { bytesThere, bytes, ...(isKept && { keptAs }) };
      if (error instanceof Cancelled)
        onEvent({ event: "transfer-cancelled", ...told, by: error.by, ...there });
      else onEvent({ event: "transfer-failed", ...told, ...failure, ...there });
      const code = error instanceof Cancelled ? "cancelled" : "transfer-failed";
      throw new ToldError(failure.reason, { cause: error, code });
    } finally {
      this.#underWay.delete(id);
      underWay.over.resolve();
    }
  }
}

/** Why a transfer has failed, and whose side says so. */
function failureOf(error: unknown): { reason: string; by: "us" | "peer"; refused: boolean } {
  const message = error instanceof Error ? error.message : String(error);
  if (!(error instanceof StreamError)) return { reason: message, by: "us", refused: false };
  const { code, reason } = error;
  return { reason, by: reason === message ? "us" : "peer", refused: code === resetCodes.refused };
}

const storedIn = ({ storedAs }: TransferProgress) => (storedAs === undefined ? {} : { storedAs });
