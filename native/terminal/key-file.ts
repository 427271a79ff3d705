/**
 * The key of an introducer that is somebody's, as it is kept: one line of a file, or INTRODUCER_KEY. The introducer makes
 * the file if it is not there. For introducer.ts and participant.ts.
 */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { callersFolder } from "../host/caller.ts";
import { isMadeWords, newRoomWords } from "../secure/words.ts";
import { UserError } from "../../protocol.ts";
import { UsageError } from "./command-line.ts";

/** More than any key, and blanks around it. */
const maxBytes = 1024;

/** The key of INTRODUCER_KEY, if that is set. Throws a {@link UsageError}. */
export function keyOfEnvironment(): string | undefined {
  const text = process.env.INTRODUCER_KEY?.trim();
  if (!text) return undefined;
  if (isMadeWords(text)) return text;
  throw new UsageError(
    "INTRODUCER_KEY must be the key itself, such as gjec-p272-r0uw-hs8m-z; a file is for --key FILE",
  );
}

/** Throws a {@link UserError} that says what is wrong with the file. */
export function readKeyFile(given: string): string {
  const file = pathOf(given);
  const text = attempt(`read the key in ${file}`, () => readFileSync(file));
  const key = text.length > maxBytes ? "" : text.toString().trim();
  if (isMadeWords(key)) return key;
  throw new UserError(
    `${file} holds no key, such as gjec-p272-r0uw-hs8m-z; \`introducer --key FILE\` makes one`,
  );
}

/** The same, of a file that is made if there is none. */
export function readOrMakeKeyFile(given: string): { key: string; isNew: boolean } {
  const file = pathOf(given);
  const isNew = !existsSync(file);
  if (isNew)
    attempt(`make the key in ${file}`, () =>
      writeFileSync(file, `${newRoomWords()}\n`, { flag: "wx", mode: 0o600 }),
    );
  return { key: readKeyFile(given), isNew };
}

const pathOf = (given: string) => resolve(callersFolder() ?? ".", given);

function attempt<T>(what: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    throw new UserError(`can't ${what}: ${problems[code ?? ""] ?? message}`);
  }
}

const problems: Readonly<Record<string, string>> = {
  ENOENT: "there is no such file or folder",
  EACCES: "you may not",
  EISDIR: "it is a folder",
  ENOTDIR: "there is no such folder",
  EROFS: "nothing can be written there",
};
