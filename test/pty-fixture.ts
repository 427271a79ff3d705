/** A program on a terminal of its own, driven as a person would: type, look at the screen, type again. */
import { join } from "node:path";
import { until } from "./native-fixture.ts";

export const root = join(import.meta.dir, "..");

export class Pty implements AsyncDisposable {
  /** What was shown since something was typed last. */
  screen = "";
  readonly #child: Bun.Subprocess;

  constructor(command: string[], environment: Record<string, string | undefined> = {}, cols = 100) {
    const decoder = new TextDecoder();
    this.#child = Bun.spawn(command, {
      cwd: root,
      env: { PATH: process.env.PATH, TERM: "xterm", NO_COLOR: "1", PS1: "shell$ ", ...environment },
      terminal: {
        cols,
        rows: 50,
        data: (_: unknown, chunk: Uint8Array) => {
          this.screen += decoder.decode(chunk, { stream: true });
        },
      },
    });
  }

  type(keys: string): void {
    this.screen = "";
    this.#child.terminal?.write(keys);
  }

  async shows(text: string | RegExp): Promise<void> {
    const isThere = () => (typeof text === "string" ? this.screen.includes(text) : text.test(this.screen));
    await until(String(text), isThere).catch((error: unknown) => {
      throw new Error(`${String(error)}; on the screen: ${JSON.stringify(this.screen)}`);
    });
  }

  /** Types, and waits for what that shows. */
  async answers(keys: string, text: string | RegExp): Promise<void> {
    this.type(keys);
    await this.shows(text);
  }

  /** As a window whose size is changed. */
  resize(cols: number): void {
    this.screen = "";
    this.#child.terminal?.resize(cols, 50);
    this.#child.kill("SIGWINCH");
  }

  /** As a window that is closed. */
  hangUp(): void {
    this.#child.terminal?.close();
  }

  get pid(): number {
    return this.#child.pid;
  }

  get exited(): Promise<number> {
    return this.#child.exited;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // A shell passes SIGHUP on to its jobs, stopped ones too; SIGKILL would leave them behind.
    this.#child.kill("SIGHUP");
    this.#child.terminal?.close();
    const patience = setTimeout(() => this.#child.kill("SIGKILL"), 2000);
    await this.#child.exited;
    clearTimeout(patience);
  }
}
