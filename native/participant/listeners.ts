/**
 * Who listens to the events of a participant. Owns the listeners, and what waits for those who read events one by one. What
 * a listener throws, or rejects with, is told as an `error` and stops nobody. For participant.ts and
 * native/participant/parts.ts.
 */
import type { ParticipantEvent } from "./events.ts";

/** So many events wait for one who reads them slowly. Then the oldest are dropped, and that is said in their place. */
const maxQueued = 1_000;

/** The name of an event; and what that event has. */
export type EventName = ParticipantEvent["event"];
export type EventNamed<Name extends EventName> = Extract<ParticipantEvent, { event: Name }>;
/** So many events in this place were dropped, because they were read too slowly. */
export interface Missed {
  event: "missed";
  events: number;
}

type Listener = (event: ParticipantEvent) => unknown;

interface Queue {
  waiting: ParticipantEvent[];
  missed: number;
  /** Resolved and replaced when there is something to see. */
  news: PromiseWithResolvers<void>;
}

export class Listeners {
  readonly #all = new Set<Listener>();
  readonly #named = new Map<EventName, Set<Listener>>();
  readonly #queues = new Set<Queue>();
  #isOver = false;

  /** `onEvent` gets all events. */
  constructor(onEvent: Listener | undefined) {
    if (onEvent) this.#all.add(onEvent);
  }

  on(name: EventName, listener: Listener, signal?: AbortSignal): Disposable {
    const named = this.#named.get(name) ?? new Set();
    this.#named.set(name, named);
    const own: Listener = (event) => listener(event); // the same one may listen twice
    const remove = () => {
      named.delete(own);
      signal?.removeEventListener("abort", remove);
    };
    if (signal?.aborted) return { [Symbol.dispose]: remove };
    named.add(own);
    signal?.addEventListener("abort", remove);
    return { [Symbol.dispose]: remove };
  }

  emit(event: ParticipantEvent): void {
    for (const listener of [...this.#all, ...(this.#named.get(event.event) ?? [])])
      this.#tell(listener, event);
    for (const queue of this.#queues) put(queue, event);
  }

  /** A listener may be asynchronous, whatever its type says. */
  #tell(listener: Listener, event: ParticipantEvent): void {
    try {
      const told = listener(event);
      if (told instanceof Promise) told.catch((error: unknown) => this.#threw(event, error));
    } catch (error) {
      this.#threw(event, error);
    }
  }

  #threw({ event }: ParticipantEvent, error: unknown): void {
    if (event === "error") return; // it takes none
    const text = error instanceof Error ? error.message : String(error);
    this.emit({ event: "error", message: `what listens to \`${event}\` threw: ${text}` });
  }

  /** All events from now on, until the {@link close}. */
  events(signal?: AbortSignal): AsyncGenerator<ParticipantEvent | Missed, void, undefined> {
    const queue: Queue = { waiting: [], missed: 0, news: Promise.withResolvers() };
    const abort = () => {
      this.#queues.delete(queue);
      queue.news.resolve();
    };
    if (!this.#isOver && !signal?.aborted) {
      this.#queues.add(queue);
      signal?.addEventListener("abort", abort, { once: true });
    }
    return this.#read(queue, signal, () => {
      signal?.removeEventListener("abort", abort);
      this.#queues.delete(queue);
    });
  }

  async *#read(queue: Queue, signal: AbortSignal | undefined, over: () => void) {
    try {
      for (;;) {
        signal?.throwIfAborted();
        const next = take(queue);
        if (next) yield next;
        else if (this.#isOver) return;
        else await queue.news.promise;
      }
    } finally {
      over();
    }
  }

  /** No event follows. */
  close(): void {
    this.#isOver = true;
    for (const { news } of this.#queues) news.resolve();
  }
}

function put(queue: Queue, event: ParticipantEvent): void {
  queue.waiting.push(event);
  if (queue.waiting.length > maxQueued) {
    queue.waiting.shift();
    queue.missed++;
  }
  queue.news.resolve();
  queue.news = Promise.withResolvers();
}

function take(queue: Queue): ParticipantEvent | Missed | undefined {
  const { missed: events } = queue;
  queue.missed = 0;
  return events > 0 ? { event: "missed", events } : queue.waiting.shift();
}
