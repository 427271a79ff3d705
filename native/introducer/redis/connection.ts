/**
 * The way to one Redis: a connection for commands and one for what is published. They come and go together. Owns both, and
 * makes them anew when either is lost. It knows nothing of rooms. For native/introducer/redis/homes.ts.
 *
 * Bun's client queues commands while Redis is away, and runs the stale ones later. It does not restore subscriptions,
 * delivers twice what is subscribed twice, and waits for an answer without end. So each connection is a fresh pair of
 * clients, which reconnect nothing and queue nothing. A beat finds out whether they live.
 */
import { RedisClient } from "bun";

export const beatMs = 2_500;
const connectTimeoutMs = 3_000;
/** The pause between two attempts: doubled each time, half of it random. Short again after a connection that lasted. */
const firstPauseMs = 100;
const mostPauseMs = 2_000;
const lastingMs = 10_000;

/** Its user. If one of these functions fails, the connection ends. */
export interface RedisUser {
  /** Lua scripts that a connection loads first. They are run by their {@link digestOf}. */
  readonly scripts: readonly string[];
  /** The channels to subscribe to. */
  readonly channel: string;
  received(text: string): void;
  /** A new connection is there. */
  connected(): Promise<void>;
  /** Every {@link beatMs}, while there is a connection. */
  beat(): Promise<void>;
  /** Whether there is a connection. Called when that changes, and once at the start. */
  isThere(isThere: boolean, message: string): void;
}

/** The name that Redis gives to a script, for EVALSHA. */
export function digestOf(script: string): string {
  return new Bun.CryptoHasher("sha1").update(script).digest("hex");
}

/** What is wrong with the URL of a Redis; undefined if nothing is. */
export function redisUrlProblem(url: string): string | undefined {
  const { protocol = "", hostname = "" } = URL.parse(url) ?? {};
  if (!["redis:", "rediss:"].includes(protocol) || hostname === "")
    return "it must be such as redis://HOST or rediss://HOST";
  try {
    new RedisClient(url, { autoReconnect: false }).close(); // it has not connected
    return undefined;
  } catch (error) {
    return messageOf(error);
  }
}

interface Clients {
  commands: RedisClient;
  subscriber: RedisClient;
}

export class RedisConnection {
  readonly #url: string;
  readonly #user: RedisUser;
  #clients: Clients | undefined;
  #lost = Promise.withResolvers<string>();
  #wasThere: boolean | undefined;
  #isClosed = false;
  readonly #tried = Promise.withResolvers<void>();
  /** Resolves once it is known whether Redis is there. */
  readonly tried = this.#tried.promise;

  /** Connects in the background. Throws what `new URL` throws. */
  constructor(url: string, user: RedisUser) {
    this.#url = new URL(url).href;
    this.#user = user;
    void this.#run();
  }

  get isThere(): boolean {
    return this.#clients !== undefined;
  }

  /** Rejects if Redis refuses it, or is lost before it answers. */
  async command(name: string, args: string[]): Promise<unknown> {
    return this.#there().commands.send(name, args);
  }

  #hear(text: string): void {
    try {
      this.#user.received(text);
    } catch (error) {
      this.#lost.resolve(messageOf(error));
    }
  }

  /** Does some work while Redis is there. If it fails, the connection ends, and all begins anew on the next one. */
  async attempt(work: () => Promise<unknown>): Promise<void> {
    const lost = this.#lost;
    try {
      if (this.#clients) await work();
    } catch (error) {
      lost.resolve(messageOf(error));
    }
  }

  close(): void {
    this.#isClosed = true;
    this.#lost.resolve("closed");
  }

  #there(): Clients {
    if (!this.#clients) throw new Error("it is away");
    return this.#clients;
  }

  async #run(): Promise<void> {
    let pauseMs = firstPauseMs;
    while (!this.#isClosed) {
      const startedAt = performance.now();
      const reason = await this.#live().catch(messageOf);
      // Bun always says that the connection was closed, whatever is wrong.
      const hint =
        this.#wasThere === undefined ? "; is it there, and are password and certificate right?" : "";
      const { host } = new URL(this.#url);
      this.#report(
        false,
        `Redis at ${host} can't be used (${reason}): new rooms live where people come meanwhile${hint}`,
      );
      if (performance.now() - startedAt > lastingMs) pauseMs = firstPauseMs;
      if (!this.#isClosed) await Bun.sleep(pauseMs * (0.5 + Math.random()));
      pauseMs = Math.min(mostPauseMs, 2 * pauseMs);
    }
  }

  /** One connection from its beginning to its end. Resolves to why it ended. */
  async #live(): Promise<string> {
    this.#lost = Promise.withResolvers();
    const { promise: lost, resolve: lose } = this.#lost;
    const clients = { commands: this.#client(lose), subscriber: this.#client(lose) };
    const timer = setInterval(() => void this.attempt(() => this.#beat()), beatMs);
    this.#connect(clients).catch((error: unknown) => lose(messageOf(error)));
    const reason = await lost;
    clearInterval(timer);
    this.#clients = undefined;
    for (const client of Object.values(clients)) client.close();
    return reason;
  }

  async #connect(clients: Clients): Promise<void> {
    await Promise.all([clients.commands.connect(), clients.subscriber.connect()]);
    // Before anybody can run one. If Redis forgets them (SCRIPT FLUSH), the next run fails and ends the connection.
    await Promise.all(this.#user.scripts.map((script) => clients.commands.send("SCRIPT", ["LOAD", script])));
    if (!clients.subscriber.connected) throw new Error("the connection closed"); // while they were loaded
    this.#clients = clients;
    await clients.subscriber.subscribe([this.#user.channel], (text) => this.#hear(text));
    await this.#ping();
    await this.#user.connected();
    this.#report(true, `rooms are shared through Redis at ${new URL(this.#url).host}`);
  }

  #client(lose: (reason: string) => void): RedisClient {
    const client = new RedisClient(this.#url, {
      autoReconnect: false,
      enableOfflineQueue: false,
      connectionTimeout: connectTimeoutMs,
      idleTimeout: 2 * beatMs,
    });
    client.onclose = (error) => lose(messageOf(error));
    return client;
  }

  async #beat(): Promise<void> {
    if (!this.#wasThere) return; // it is still connecting
    await Promise.all([this.#user.beat(), this.#ping()]);
  }

  async #ping(): Promise<void> {
    await this.#there().subscriber.send("PING", []);
  }

  #report(isThere: boolean, message: string): void {
    this.#tried.resolve();
    if (this.#wasThere === isThere || this.#isClosed) return;
    this.#wasThere = isThere;
    this.#user.isThere(isThere, message);
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : "the connection closed";
}
