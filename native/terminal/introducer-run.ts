/**
 * The introducer's program, from when it listens to its end: a signal, or the operator. Owns nothing. For introducer.ts.
 */
import { ServiceManager } from "../host/service.ts";
import type { IntroducerOptions } from "../introducer/events.ts";
import type { Arguments } from "./introducer-arguments.ts";
import { invitation, listenProblem, type Operated, Prompt } from "./introducer-prompt.ts";
import type { Terminal } from "./terminal.ts";

/** An introducer that runs. */
interface Served extends Operated {
  readonly host: string;
  readonly port: number;
  readonly probePorts: number[];
  /** Sends everyone away in order. */
  drain(reason: string): Promise<void>;
  stop(reason: string): Promise<void>;
}

/** Runs until a signal or the operator ends it; returns the exit code. */
export async function serve(
  terminal: Terminal,
  options: Arguments & { port: number },
  start: (options: IntroducerOptions) => Served,
): Promise<number> {
  const { port, host, json, log } = options;
  const prompt = new Prompt(terminal, options);
  let introducer: Served;
  try {
    introducer = start({ ...options, onEvent: (event) => prompt.event(event) });
  } catch (error) {
    terminal.error(listenProblem(error, host, port));
    return 1;
  }
  prompt.flush();
  if (!json && log === "text") terminal.story(invitation(introducer));
  const manager = new ServiceManager();
  manager.ready(`listening on port ${introducer.port}`);
  const signal = Promise.withResolvers<[string, number]>();
  const endsAtOnce = (name: "SIGINT" | "SIGTERM") =>
    process.once(name, () => signal.resolve(["the introducer was interrupted", 0]));
  endsAtOnce("SIGINT");
  process.once("SIGTERM", () => {
    endsAtOnce("SIGTERM");
    const reason = "the introducer was terminated";
    void introducer.drain(reason).then(() => signal.resolve([reason, 0]));
  });
  void terminal.broken.then(() => signal.resolve(["the introducer can't write its output", 1]));
  void signal.promise.then(() => terminal.hurry());
  const ended = prompt
    .runCommands(introducer)
    .then((code) => ["the operator ended the introducer", code] as const);
  const [reason, code] = await Promise.race([signal.promise, ended]);
  manager.stopping();
  terminal.close();
  await introducer.stop(reason);
  prompt.flush();
  return code;
}
