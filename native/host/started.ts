/** How the programs are started here, as people type it. For the messages of both programs. */
import { basename } from "node:path";

// A compiled program has a file system of its own: /$bunfs/, on Windows B:\~BUN\.
const isCompiled = /\$bunfs|~BUN/.test(import.meta.path);
/** Whether the command of package.json's `bin` was started: the first line of its file has this option. */
const isCommand = process.execArgv.includes("--no-env-file");

/** What starts this program, for people: the command, `bun run NAME`, or the name of the compiled file. */
export function startedAs(name: string): string {
  return isCompiled ? basename(process.execPath) : otherStartedAs(name);
}

/** The same for the other program, and for whoever has ours elsewhere. */
export function otherStartedAs(name: string): string {
  return isCompiled || isCommand ? name : `bun run ${name}`;
}
