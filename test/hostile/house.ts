/** The introducer's real class in a process of its own, which tells what is on its heap and how busy it has been. */
import { join } from "node:path";
import type { IntroducerOptions } from "../../native/introducer/events.ts";

export interface Heap {
  objects: number;
  maps: number;
  sets: number;
  arrays: number;
  connections: number;
  participants: number;
  rooms: number;
  relays: number;
  /** Processor time so far. */
  busyMs: number;
}

export class House implements AsyncDisposable {
  port = 0;
  probePorts: number[] = [];
  readonly #child: Bun.Subprocess<"pipe", "pipe", "inherit">;
  readonly #lines: AsyncIterator<string>;

  private constructor(options: IntroducerOptions) {
    const command = [process.execPath, join(import.meta.dir, "heap-fixture.ts"), JSON.stringify(options)];
    this.#child = Bun.spawn(command, { stdin: "pipe", stdout: "pipe", stderr: "inherit" });
    this.#lines = linesOf(this.#child.stdout);
  }

  static async start(options: IntroducerOptions = {}): Promise<House> {
    const house = new House(options);
    Object.assign(house, await house.#next());
    return house;
  }

  async #next<T>(): Promise<T> {
    const { value, done } = await this.#lines.next();
    if (done) throw new Error("the introducer has ended");
    return JSON.parse(value) as T;
  }

  async heap(): Promise<Heap> {
    this.#child.stdin.write("\n");
    void this.#child.stdin.flush();
    return this.#next<Heap>();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#child.exited;
  }
}

export async function* linesOf(
  stream: ReadableStream<Uint8Array<ArrayBuffer>>,
): AsyncGenerator<string, void> {
  let held = "";
  for await (const chunk of stream.pipeThrough(new TextDecoderStream())) {
    const lines = (held + chunk).split("\n");
    held = lines.pop()!;
    yield* lines;
  }
}
