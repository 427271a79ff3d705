/** nginx as an ordinary program, with one page of 1000 bytes, on a host of the lab or on this one. For tests and benches. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { missing, unlessRequired } from "../needing-fixture.ts";
import { freePort } from "../sockets-fixture.ts";
import type { Place } from "./people.ts";

/** Why it, and a load for it, can't run here, or undefined when they can. */
export const noNginx: string | undefined = unlessRequired(
  missing(["nginx", "wrk", "curl"], "packages nginx-light, wrk, curl"),
);

/** Whose namespace has no other users can't become one. */
function config(folder: string, port: number): string {
  const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
  return `
user root; daemon off; master_process off; pid ${folder}/pid;
error_log stderr notice;
worker_rlimit_nofile 8192;
events { worker_connections 4096; }
http {
  ${temporary.map((one) => `${one}_temp_path ${folder}/${one};`).join("\n  ")}
  access_log off;
  keepalive_requests 1000000000;
  server {
    listen 127.0.0.1:${port} backlog=4096;
    root ${folder};
    location = /status { stub_status; }
  }
}
`;
}

export class Nginx implements AsyncDisposable {
  readonly port: number;
  readonly #place: Place;
  #asked = 0;
  readonly #folder: string;
  readonly #program: Bun.Subprocess<"ignore", "pipe", "pipe">;

  /** Resolves once it listens on 127.0.0.1 of that place. */
  static async start(place: Place): Promise<Nginx> {
    const nginx = new Nginx(place, mkdtempSync(join(tmpdir(), "nginx-")), freePort());
    await nginx.#listening();
    return nginx;
  }

  private constructor(place: Place, folder: string, port: number) {
    this.port = port;
    this.#place = place;
    this.#folder = folder;
    writeFileSync(join(folder, "index.html"), "x".repeat(1000));
    writeFileSync(join(folder, "config"), config(folder, port));
    const command = ["nginx", "-e", "stderr", "-c", join(folder, "config")];
    this.#program = place.spawn(command, { stdin: "ignore", stdout: "pipe", stderr: "pipe" });
  }

  async #listening(): Promise<void> {
    let told = "";
    const reader = this.#program.stderr.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Error(`nginx did not start: ${told}`);
      told += value;
      if (told.includes("event method")) break;
    }
    void reader.read().then(async function drain({ done }): Promise<void> {
      if (!done) await reader.read().then(drain);
    });
  }

  /** How many it has answered, besides this question. */
  async requests(): Promise<number> {
    const url = `http://127.0.0.1:${this.port}/status`;
    const said = await this.#place.spawn(["curl", "-sS", url], { stdout: "pipe" }).stdout.text();
    return Number(/^ \d+ \d+ (\d+)/m.exec(said)![1]) - ++this.#asked;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#program.kill("SIGTERM");
    await this.#program.exited;
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
