/**
 * The commands of an operator who is not at the prompt: `introducer ctl` says one by a socket with a path, and gets what the
 * prompt would have printed. Only the user that the introducer runs as, and root, can connect. Owns that socket. For
 * native/terminal/introducer-run.ts; introducer-ctl.ts is the other side.
 */
import { mkdirSync } from "node:fs";
import { dirname } from "node:path";
import { Listener } from "../host/listener.ts";
import { listenAtPath } from "../host/unix.ts";
import { LineDecoder, Refusal } from "../../protocol.ts";
import type { Said, Told } from "./control-path.ts";
import { Commands, type Operated, type Outcome, type Screen } from "./introducer-commands.ts";
import { colorsIf } from "./text.ts";

/** So many at once. */
const maxAtOnce = 8;
/** How long one may take to say its command, and to read a part of the answer. */
const patienceMs = 5_000;

/** Undefined for what no `introducer ctl` says. */
function read(line: string): Said | undefined {
  try {
    const { line: command, width, colors, json } = JSON.parse(line) as Partial<Said>;
    if (typeof command !== "string" || (width !== null && typeof width !== "number")) return undefined;
    return { line: command, width, colors: colors === true, json: json === true };
  } catch {
    return undefined;
  }
}

type Socket = Bun.Socket<Visit>;

/** One connection. listening → answering → ended; it is closed once the answer has been read. */
class Visit {
  readonly #socket: Socket;
  readonly #decoder = new LineDecoder();
  #patience: NodeJS.Timeout;
  #is: "listening" | "answering" | "ended" = "listening";
  #unsent: Uint8Array = new Uint8Array(0);

  constructor(socket: Socket) {
    this.#socket = socket;
    this.#patience = this.#waitFor();
  }

  #waitFor(): NodeJS.Timeout {
    return setTimeout(() => this.#socket.terminate(), patienceMs);
  }

  /** The command, once it has come. Whatever else comes is ignored. */
  heard(chunk: Uint8Array): Said | undefined {
    if (this.#is !== "listening") return undefined;
    try {
      const [line] = this.#decoder.push(chunk);
      if (line === undefined) return undefined;
      this.#is = "answering";
      clearTimeout(this.#patience);
      const said = read(line);
      if (!said) this.end(2);
      return said;
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      this.#socket.terminate();
      return undefined;
    }
  }

  tell(told: Told): void {
    this.#unsent = Buffer.concat([this.#unsent, Buffer.from(`${JSON.stringify(told)}\n`)]);
    this.write();
  }

  end(code: number): void {
    this.#is = "ended";
    this.tell({ code });
  }

  write(): void {
    const written = Math.max(0, this.#socket.write(this.#unsent));
    this.#unsent = this.#unsent.subarray(written);
    clearTimeout(this.#patience);
    // Not refresh(): that does nothing once the timer was cleared.
    if (this.#unsent.length > 0) this.#patience = this.#waitFor();
    else if (this.#is === "ended") this.#socket.end();
  }

  closed(): void {
    clearTimeout(this.#patience);
  }
}

/** What a command prints goes to that visit, as wide and as colourful as its terminal takes it. */
function screenOf(visit: Visit, { width, colors }: Said): Screen {
  return {
    resultColors: colorsIf(colors),
    width: width ?? Infinity,
    result: (text) => visit.tell({ result: text }),
    longResult: (pieces) => visit.tell({ result: pieces.join("") }),
    story: (text) => visit.tell({ story: text }),
    error: (message) => visit.tell({ error: message }),
  };
}

const codes: Record<Outcome, number> = { done: 0, failed: 1, quit: 1, drained: 0 };

export class Control {
  readonly #introducer: Operated;
  readonly #onDrained: () => void;
  readonly #visits = new Set<Socket>();
  #end: (() => void) | undefined;

  /** `onDrained`: the introducer has been ended in order. */
  constructor(introducer: Operated, onDrained: () => void) {
    this.#introducer = introducer;
    this.#onDrained = onDrained;
  }

  /** Throws what {@link listenAtPath} throws. With `makeFolder` the folder is made, too. `onProblem`: see {@link Listener}. */
  listen(path: string, makeFolder: boolean, onProblem: (message: string) => void): void {
    if (makeFolder) mkdirSync(dirname(path), { mode: 0o700, recursive: true });
    const { taken, remove } = listenAtPath(
      path,
      (fd) => new Listener({ fd, socket: this.#handler }, onProblem),
    );
    this.#end = () => {
      taken.stop();
      remove();
    };
  }

  readonly #handler: Bun.SocketHandler<Visit> = {
    open: (one) => this.#open(one),
    data: (one, chunk) => {
      const said = one.data.heard(chunk);
      if (said) void this.#obey(one.data, said);
    },
    drain: ({ data }) => data.write(),
    close: (one) => {
      one.data.closed();
      this.#visits.delete(one);
    },
    error: (one) => void one.terminate(),
  };

  #open(socket: Socket): void {
    socket.data = new Visit(socket);
    this.#visits.add(socket);
    if (this.#visits.size > maxAtOnce) socket.terminate();
  }

  /** Never rejects. */
  async #obey(visit: Visit, said: Said): Promise<void> {
    const commands = new Commands(screenOf(visit, said), { json: said.json, log: "text" });
    let outcome: Outcome = "failed";
    try {
      outcome = await commands.run(said.line, this.#introducer);
      if (outcome === "quit")
        visit.tell({ error: "`drain` ends it in order; a service is ended by its manager" });
    } catch (error) {
      visit.tell({
        error: `an error in the introducer: ${error instanceof Error ? error.message : String(error)}`,
      });
    }
    visit.end(codes[outcome]);
    if (outcome === "drained") this.#onDrained();
  }

  /** Nobody else can say anything, and the path is gone. */
  stop(): void {
    this.#end?.();
    this.#end = undefined;
  }
}
