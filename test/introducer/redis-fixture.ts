/** Debian's redis-server, on a free port and without persistence, on this host or one of the lab. For the tests of shared rooms. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { thisHost, type Place } from "../lab/people.ts";
import { missing, unlessRequired } from "../needing-fixture.ts";
import { freePort } from "../sockets-fixture.ts";

/** Why there can be no Redis here; undefined where there can. */
export const noRedis = unlessRequired(missing(["redis-server", "redis-cli"], "package redis-server"));

export class RedisServer implements AsyncDisposable {
  readonly port: number;
  readonly #place: Place;
  readonly #directory = mkdtempSync(join(tmpdir(), "redis-test-"));
  #child: Bun.Subprocess<"ignore", "pipe", "ignore"> | undefined;

  private constructor(place: Place, port: number) {
    this.#place = place;
    this.port = port;
  }

  static async start(place = thisHost): Promise<RedisServer> {
    for (;;) {
      const server = new RedisServer(place, freePort());
      if (await server.run()) return server;
      await server[Symbol.asyncDispose](); // somebody took the port meanwhile
    }
  }

  get pid(): number {
    return this.#child!.pid;
  }

  get url(): string {
    return `redis://${this.#place.address}:${this.port}`;
  }

  /** Starts it, with nothing in it; false when it ended at once. */
  async run(): Promise<boolean> {
    const { address } = this.#place;
    const place = ["--port", String(this.port), "--bind", address, "--dir", this.#directory];
    const args = [...place, "--protected-mode", "no", "--save", "", "--appendonly", "no"];
    const child = this.#place.spawn(["redis-server", ...args], {
      stdin: "ignore",
      stdout: "pipe",
      stderr: "ignore",
    });
    this.#child = child;
    const reader = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
    for (let said = ""; !said.includes("Ready to accept connections");) {
      const { done, value } = await reader.read();
      if (done) return false;
      said += value;
    }
    void (async () => {
      while (!(await reader.read()).done); // or its pipe fills up
    })();
    return true;
  }

  signal(signal: NodeJS.Signals): void {
    this.#child?.kill(signal);
  }

  async kill(): Promise<void> {
    this.#child?.kill("SIGKILL");
    await this.#child?.exited;
  }

  /** Ends all connections of that kind, as an administrator does. */
  async killClients(type: "normal" | "pubsub"): Promise<void> {
    const at = ["-h", this.#place.address, "-p", String(this.port)];
    await this.#place.spawn(["redis-cli", ...at, "CLIENT", "KILL", "TYPE", type]).exited;
  }

  /** One command, by a connection of its own; on this host only. */
  async command(name: string, ...args: string[]): Promise<unknown> {
    const client = new Bun.RedisClient(this.url);
    try {
      return await client.send(name, args);
    } finally {
      client.close();
    }
  }

  /**
   * Goes on to the end of the leases that `home` has, whom nobody hears of any more. That is theirs, and not for ever:
   * each ends within `mostMs`. Returns how many have ended.
   */
  async endLeases(home: string, mostMs: number): Promise<number> {
    const keys = (await this.command("KEYS", "punch:home:*")) as string[];
    let ended = 0;
    for (const key of keys) {
      if ((await this.command("GET", key)) !== home) continue;
      const leftMs = Number(await this.command("PTTL", key));
      if (leftMs === -2) continue; // it has ended meanwhile
      if (leftMs < 0 || leftMs > mostMs) throw new Error(`${key} would end in ${leftMs} ms`);
      await this.command("PEXPIRE", key, "1");
      ended++;
    }
    return ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
