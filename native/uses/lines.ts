/**
 * The stream of lines of a link: texts, pings, and the peer's answers to them. Owns that stream, and who waits for an
 * answer. It knows no peer and never prints; a breach ends the link. For native/participant/.
 */
import { encode, LineDecoder, type LinkLine, parseLinkLine, Refusal } from "../../protocol.ts";
import { LinkError } from "../session/carrier.ts";
import { Link, type LinkCarrier, type LinkOptions, type LinkOwner } from "../session/link.ts";
import { Queue } from "../session/resend.ts";
import { resetCodes, type Stream } from "../session/stream.ts";

/** Texts and pings that may wait for an answer at once. */
const maxWaiting = 1024;
/**
 * Answers that the peer has not acknowledged, with all that keeping them costs a megabyte: no more of its lines are
 * read.
 */
const maxUnacknowledgedAnswers = 8 * 1024;

/** An answer that is waited for: `heard` or `pong`. */
interface Waiting {
  resolve: (elapsedMs: number) => void;
  reject: (error: LinkError) => void;
  sentAt: number;
}

/** A link, and what is said on it. */
export interface TalkingLink {
  readonly link: Link;
  readonly lines: Lines;
}

export interface TalkingLinkOptions extends Omit<LinkOptions, "owner"> {
  owner: Omit<LinkOwner, "isUsed" | "sent">;
  onText(text: string): void;
}

/** As `new Link`: without an `id` we speak first, and open the stream of lines in the same flight. */
export function talkingLink(channel: LinkCarrier, options: TalkingLinkOptions, id?: string): TalkingLink {
  const { owner, onText, ...rest } = options;
  // Whatever goes wrong while the link is made is told before there are lines.
  let lines: Lines | undefined;
  const wired: LinkOwner = {
    threw: (error) => owner.threw(error),
    broken: (reason) => owner.broken(reason),
    looksDead: () => owner.looksDead(),
    moved: (other, gapMs) => owner.moved(other, gapMs),
    stream: (stream, purpose) =>
      purpose["use"] === "lines" ? lines?.take(stream) : owner.stream(stream, purpose),
    isUsed: (streams) => lines?.isUsed(streams) ?? true,
    get sent() {
      return lines?.sent;
    },
    ended: (end) => {
      lines?.ended(end.detail);
      owner.ended(end);
    },
  };
  const link = new Link(channel, { ...rest, owner: wired }, id);
  lines = new Lines(link, id === undefined, onText);
  return { link, lines };
}

export class Lines {
  readonly #link: Link;
  readonly #onText: (text: string) => void;
  readonly #waiting = new Map<number, Waiting>();
  readonly #opened = Promise.withResolvers<void>();
  #stream: Stream | undefined;
  /** What was said before the stream had come. */
  #unsent: LinkLine[] = [];
  #unsentAnswers = 0;
  /** Bytes written to the stream; and where in them the answers end that are not acknowledged. */
  #lineBytes = 0;
  readonly #answersUntil = new Queue<number>();
  #nextId = 1;

  /** Whoever speaks first on the link's first channel opens the stream; the other one takes it. */
  constructor(link: Link, isOpener: boolean, onText: (text: string) => void) {
    this.#link = link;
    this.#onText = onText;
    if (isOpener && link.isOpen) this.#use(link.open("lines"));
  }

  /** Resolves when the peer's program has the text; rejects with a {@link LinkError} when that can't be known. */
  say(text: string): Promise<number> {
    return this.#ask((id) => ({ type: "say", id, text }));
  }

  /** Resolves to the round trip in milliseconds, from program to program. */
  ping(): Promise<number> {
    return this.#ask((id) => ({ type: "ping", id }));
  }

  /** The stream that the peer has opened for it. */
  take(stream: Stream): void {
    if (this.#stream) stream.reset("there is a stream of lines already", resetCodes.refused);
    else this.#use(stream);
  }

  /** Whether somebody here uses the link, by this stream or, of so many, another one. */
  isUsed(streams: number): boolean {
    return this.#waiting.size > 0 || streams > (this.#stream ? 1 : 0);
  }

  /** Resolves once what was said before the stream had come is on it; undefined when it is. */
  get sent(): Promise<void> | undefined {
    return this.#unsent.length > 0 ? this.#opened.promise : undefined;
  }

  /** The link is over. */
  ended(detail: string): void {
    for (const { reject } of this.#waiting.values())
      reject(new LinkError(`the link ended before the peer answered${detail && `: ${detail}`}`));
    this.#waiting.clear();
  }

  // --- asking --------------------------------------------------------------------------------------------

  #ask(message: (id: number) => LinkLine): Promise<number> {
    const { promise, resolve, reject } = Promise.withResolvers<number>();
    if (!this.#link.isOpen || !this.#isSendable) reject(new LinkError("the link has ended"));
    else if (this.#waiting.size >= maxWaiting)
      reject(new LinkError(`${maxWaiting} texts already wait for the peer's answer`));
    else {
      const id = this.#nextId++;
      this.#waiting.set(id, { resolve, reject, sentAt: performance.now() });
      this.#send(message(id));
    }
    return promise;
  }

  /** Else it could not be sent, and would break the stream on which the peer's last words may still come. */
  get #isSendable(): boolean {
    return this.#link.session.state === "open";
  }

  #send(line: LinkLine): void {
    if (!this.#isSendable) return;
    if (this.#stream) this.#write(this.#stream, line);
    else this.#unsent.push(line);
  }

  #answered(id: number): void {
    const waiting = this.#waiting.get(id);
    this.#waiting.delete(id);
    waiting?.resolve(performance.now() - waiting.sentAt);
  }

  // --- the stream ----------------------------------------------------------------------------------------

  #use(stream: Stream): void {
    const decoder = new LineDecoder();
    this.#stream = stream;
    stream.written.countAcknowledged((bytes) => {
      while ((this.#answersUntil.at(0) ?? Infinity) <= bytes) this.#answersUntil.shift();
      this.#readOn(stream);
    });
    for (const line of this.#unsent.splice(0)) this.#send(line);
    this.#opened.resolve();
    stream.on("error", () => {}); // the link's end says it
    for (const event of ["end", "close"]) stream.once(event, () => this.#over());
    stream.on("data", (chunk: Buffer) => {
      try {
        for (const line of decoder.push(chunk)) this.#receive(stream, parseLinkLine(line));
      } catch (error) {
        if (!(error instanceof Refusal)) throw error;
        this.#link.abandon("protocol-error", error.message);
      }
    });
  }

  /** Nothing would be answered any more, and no text would come. */
  #over(): void {
    if (this.#isSendable)
      this.#link.abandon("protocol-error", "its stream of lines is over, and the link is not");
  }

  #receive(stream: Stream, line: LinkLine): void {
    if (this.#link.session.state === "ended") return;
    switch (line.type) {
      case "say":
        this.#answer(stream, { type: "heard", id: line.id });
        return this.#onText(line.text);
      case "ping":
        return this.#answer(stream, { type: "pong", id: line.id });
      case "heard":
      case "pong":
        return this.#answered(line.id);
    }
  }

  /**
   * Who asks more at once than we would, and takes no answers, is not read. Only answers count: if our own texts did, two
   * sides with much to say would wait for each other for ever.
   */
  #answer(stream: Stream, line: LinkLine): void {
    if (!this.#isSendable) return;
    this.#unsentAnswers++;
    this.#write(stream, line, () => {
      this.#unsentAnswers--;
      this.#readOn(stream);
    });
    this.#answersUntil.push(this.#lineBytes);
    if (this.#isOwing) stream.pause();
  }

  #write(stream: Stream, line: LinkLine, written?: () => void): void {
    const bytes = Buffer.from(encode(line));
    this.#lineBytes += bytes.length;
    stream.write(bytes, written);
  }

  get #isOwing(): boolean {
    return this.#unsentAnswers > maxWaiting || this.#answersUntil.length > maxUnacknowledgedAnswers;
  }

  #readOn(stream: Stream): void {
    if (stream.isPaused() && !this.#isOwing) stream.resume();
  }
}
