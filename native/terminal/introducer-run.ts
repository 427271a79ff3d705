/**
 * The introducer's program, from when it listens to its end: a signal, or the operator. Owns nothing. For introducer.ts.
 */
import { isSupported } from "../host/libc.ts";
import { pathProblem } from "../host/listening-problem.ts";
import { ServiceManager } from "../host/service.ts";
import { canonicalWords } from "../secure/words.ts";
import type { IntroducerOptions } from "../introducer/events.ts";
import type { Arguments } from "./introducer-arguments.ts";
import { controlPath } from "./control-path.ts";
import { Control } from "./introducer-control.ts";
import type { Operated } from "./introducer-commands.ts";
import { invitation, listenProblem, Prompt } from "./introducer-prompt.ts";
import { readOrMakeKeyFile } from "./key-file.ts";
import type { Terminal } from "./terminal.ts";

/** An introducer that runs. */
interface Served extends Operated {
  readonly host: string;
  readonly port: number;
  readonly probePorts: number[];
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
    const key = keyOf(options, terminal);
    introducer = start({ ...options, ...key, onEvent: (event) => prompt.event(event) });
  } catch (error) {
    terminal.error(listenProblem(error, host, port));
    return 1;
  }
  prompt.flush();
  const manager = new ServiceManager();
  const signal = Promise.withResolvers<[string, number]>();
  endBySignals(introducer, signal.resolve);
  void terminal.broken.then(() => signal.resolve(["the introducer can't write its output", 1]));
  void signal.promise.then(() => terminal.hurry());
  const control = new Control(introducer, () => signal.resolve(["the operator ended the introducer", 0]));
  listenForCommands(control, options, (message) => prompt.event({ event: "warning", message }));
  if (!json && log === "text") terminal.story(invitation(introducer, hasKey(options)));
  manager.ready(`listening on port ${introducer.port}`);
  const ended = prompt
    .runCommands(introducer)
    .then((code) => ["the operator ended the introducer", code] as const);
  const [reason, code] = await Promise.race([signal.promise, ended]);
  manager.stopping();
  control.stop();
  terminal.close();
  await introducer.stop(reason);
  prompt.flush();
  return code;
}

/** SIGTERM ends it in order. SIGINT, or a second SIGTERM, does so at once. */
function endBySignals(introducer: Served, end: (how: [reason: string, code: number]) => void): void {
  const endsAtOnce = (name: "SIGINT" | "SIGTERM") =>
    process.once(name, () => end(["the introducer was interrupted", 0]));
  endsAtOnce("SIGINT");
  process.once("SIGTERM", () => {
    endsAtOnce("SIGTERM");
    const reason = "the introducer was terminated";
    void introducer.drain(reason).then(() => end([reason, 0]));
  });
}

const hasKey = ({ key, keyFile }: Arguments) => (key ?? keyFile) !== undefined;

/** The key, in its one form. Throws a {@link UserError} if there is none in the file that was named. */
function keyOf({ key, keyFile }: Arguments, terminal: Terminal): { key?: string } {
  if (keyFile === undefined) return key === undefined ? {} : { key: canonicalWords(key) };
  const kept = readOrMakeKeyFile(keyFile);
  if (kept.isNew) terminal.story(`a new key is in ${keyFile}: give it to those who may come`);
  return { key: canonicalWords(kept.key) };
}

/** Does without the default socket where there is no place for it; else says why there is none. */
function listenForCommands(
  control: Control,
  { control: given, port }: Arguments & { port: number },
  warn: (message: string) => void,
): void {
  const path = given ?? controlPath(port);
  if (path === undefined || path === "none" || !isSupported()) return;
  try {
    control.listen(path, given === undefined, warn);
  } catch (error) {
    if (given !== undefined || (error as NodeJS.ErrnoException).code === "EADDRINUSE")
      warn(`\`ctl\` can't be heard at ${path} (--control): ${pathProblem(error)}`);
  }
}
