/**
 * `introducer ctl COMMAND`: says a command to an introducer that runs on this host, and prints what its prompt would have
 * printed. Owns nothing. For introducer.ts; introducer-control.ts is the other side.
 */
import { readdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import { isatty } from "node:tty";
import { UserError } from "../../protocol.ts";
import type { ControlArguments, Said, Told } from "./control-path.ts";
import type { Terminal } from "./terminal.ts";

const problems: Readonly<Record<string, string>> = {
  EACCES: "it is another user's: be that user, or root (sudo)",
  EPERM: "it is another user's: be that user, or root (sudo)",
};

/** Resolves to the exit code. Rejects with a {@link UserError} if nobody is there to obey. */
export async function ctl(
  terminal: Terminal,
  { path, isDefault, line, json }: ControlArguments,
): Promise<number> {
  const over = Promise.withResolvers<number>();
  let held = "";
  const decoder = new TextDecoder();
  const said: Said = {
    ...{ line, json },
    width: Number.isFinite(terminal.width) ? terminal.width : null,
    colors: isatty(1) && terminal.resultColors.isColorSupported,
  };
  try {
    await Bun.connect({
      unix: path,
      socket: {
        open: (socket) => void socket.write(`${JSON.stringify(said)}\n`),
        data: (socket, chunk) => {
          const lines = (held + decoder.decode(chunk, { stream: true })).split("\n");
          held = lines.pop()!;
          for (const one of lines) {
            const told = read(one);
            const code = told && show(terminal, told);
            if (code !== undefined) over.resolve(code);
            if (told) continue;
            over.reject(new UserError(`what listens at ${path} is no introducer`));
            return void socket.terminate();
          }
        },
        close: () => over.reject(new UserError("the introducer ended before it had answered")),
      },
    });
  } catch (error) {
    const { code = "" } = error as NodeJS.ErrnoException;
    const why =
      problems[code] ?? `is it running${isDefault ? `, with this port?${await others(path)}` : "?"}`;
    throw new UserError(`no introducer takes commands at ${path}: ${why}`);
  }
  return over.promise;
}

/** Undefined for what no introducer says. */
function read(line: string): Told | undefined {
  try {
    const told = JSON.parse(line) as Record<string, unknown>;
    if (Number.isInteger(told["code"])) return { code: told["code"] as number };
    const isTold = ["result", "story", "error"].some((kind) => typeof told[kind] === "string");
    return isTold ? (told as Told) : undefined;
  } catch {
    return undefined;
  }
}

/** Returns the exit code with which it ends. */
function show(terminal: Terminal, told: Told): number | undefined {
  if ("code" in told) return told.code;
  if ("result" in told) terminal.result(told.result);
  else if ("error" in told) terminal.error(told.error);
  else terminal.story(told.story);
  return undefined;
}

/** Which ports introducers are at that listen in the same folder. One that was killed leaves its socket behind. */
async function others(path: string): Promise<string> {
  const folder = dirname(path);
  const files = await readdir(folder).catch(() => []);
  const ports = files.flatMap((file) => /^(\d+)\.sock$/.exec(file)?.[1] ?? []);
  const known = await Promise.all(
    ports.map(async (port) => ((await answers(join(folder, `${port}.sock`))) ? [port] : [])),
  );
  const there = known.flat().map((port) => `\`introducer ctl ${port} …\``);
  return there.length === 0 ? "" : ` There are: ${there.join(", ")}`;
}

async function answers(path: string): Promise<boolean> {
  try {
    (await Bun.connect({ unix: path, socket: { data: () => {} } })).end();
    return true;
  } catch {
    return false;
  }
}
