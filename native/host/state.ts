/**
 * Files in the user's state folder: the identity, what was typed, networks, known peers. The one place that opens them, so
 * all are held to one rule: a regular file and a folder that are the user's alone, and no link. Owns no file, and knows
 * nothing of what is in one. For everything above.
 */
import { randomBytes } from "node:crypto";
import {
  appendFileSync,
  closeSync,
  constants,
  fstatSync,
  linkSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  type Stats,
  writeFileSync,
} from "node:fs";
import { homedir } from "node:os";
import { dirname, isAbsolute, join } from "node:path";
import { UserError } from "../../protocol.ts";

/** A file can't be used. `message` says which one, what is wrong and what to do next. */
export class StateError extends UserError {
  constructor(message: string, options?: ErrorOptions) {
    super(message, { ...options, code: "unusable-file" });
  }
}

/** It is not there, and can't be made. The program can go on without it. */
export class UnkeepableError extends StateError {}

/** `${XDG_STATE_HOME:-~/.local/state}/tcp-hole-punching`. Throws an {@link UnkeepableError} if the user has no home. */
export function stateFolder(env: Record<string, string | undefined> = process.env): string {
  // XDG Base Directory: a relative path in the variable is invalid, and must be ignored.
  const set = env.XDG_STATE_HOME;
  const base = set && isAbsolute(set) ? set : join(env.HOME || home(), ".local", "state");
  return join(base, "tcp-hole-punching");
}

/** The same; undefined if there is none. */
export function stateFolderOrNone(): string | undefined {
  return orNone(() => stateFolder());
}

/** What `use` returns; undefined if the file can't be used. */
export function orNone<T>(use: () => T): T | undefined {
  try {
    return use();
  } catch (error) {
    if (!(error instanceof StateError)) throw error;
    return undefined;
  }
}

function home(): string {
  try {
    return homedir();
  } catch {
    // Neither HOME nor an account, as in a container of any user id.
    throw new UnkeepableError("this user has no home folder; set XDG_STATE_HOME to a folder that is yours");
  }
}

function errnoOf(error: unknown): string {
  if (error instanceof Error && "code" in error && typeof error.code === "string") return error.code;
  throw error;
}

/** One file. Everything throws a {@link StateError} if the file, or its folder, is not the user's alone. */
export class StateFile {
  readonly path: string;
  readonly #maxBytes: number;

  /** A file of more than `maxBytes` is refused. */
  constructor(folder: string, name: string, maxBytes: number) {
    this.path = join(folder, name);
    this.#maxBytes = maxBytes;
  }

  /** Its text; undefined if it is not there. */
  read(): string | undefined {
    refuseFolderOfOthers(dirname(this.path));
    return this.#open("read", constants.O_RDONLY, (fd) => readFileSync(fd, "utf8"));
  }

  /** Makes it with that text, unless it is there: of several programs the first one does. */
  create(text: string): void {
    // link(2), not rename(2): when several programs start together, it works for the first one only.
    this.#draft(text, (draft) => linkSync(draft, this.path));
  }

  /** Other programs read either the old text or the new one. */
  replace(text: string): void {
    this.#draft(text, (draft) => renameSync(draft, this.path));
  }

  /** Adds to its end, in one piece, what other programs add to, too. Makes it if it is not there. */
  append(text: string): void {
    this.#makeFolder();
    refuseFolderOfOthers(dirname(this.path));
    const { O_WRONLY, O_APPEND, O_CREAT } = constants;
    this.#open("write", O_WRONLY | O_APPEND | O_CREAT, (fd) => appendFileSync(fd, text));
  }

  #open<T>(what: string, flags: number, use: (fd: number) => T): T | undefined {
    let fd: number | undefined;
    try {
      // O_NONBLOCK: opening a FIFO would wait. O_NOFOLLOW: a link may lead to a file that somebody else can change.
      const { O_NOFOLLOW = 0, O_NONBLOCK = 0 } = constants;
      fd = openSync(this.path, flags | O_NOFOLLOW | O_NONBLOCK, 0o600);
      this.#refuseUnfit(fstatSync(fd));
      return use(fd);
    } catch (error) {
      if (error instanceof StateError) throw error;
      const errno = errnoOf(error);
      if (what === "read" && (errno === "ENOENT" || errno === "ENOTDIR")) return undefined;
      throw this.#problem(what, error);
    } finally {
      if (fd !== undefined) closeSync(fd);
    }
  }

  /** The file must be our own, and nobody else may be able to read or change it. */
  #refuseUnfit(found: Stats): void {
    const { path } = this;
    if (found.isDirectory()) throw new StateError(`${path} is a folder, not a file; move it away`);
    if (!found.isFile()) throw new StateError(`${path} is no regular file; move it away`);
    if (found.size > this.#maxBytes)
      throw new StateError(`${path} has ${found.size} bytes, too many for what it should hold; move it away`);
    if (process.platform === "win32") return;
    refuseOwner(path, found.uid);
    if ((found.mode & 0o077) === 0) return;
    throw new StateError(
      `${path} must be yours alone, but others can use it (mode ${octal(found.mode)}); run: chmod 600 ${path}`,
    );
  }

  #draft(text: string, publish: (draft: string) => void): void {
    const draft = `${this.path}.${process.pid}.${randomBytes(8).toString("hex")}`;
    this.#makeFolder();
    try {
      writeFileSync(draft, text, { flag: "wx", mode: 0o600 });
      publish(draft);
    } catch (error) {
      if (errnoOf(error) !== "EEXIST") throw this.#problem("make", error);
    } finally {
      rmSync(draft, { force: true });
    }
  }

  #makeFolder(): void {
    try {
      mkdirSync(dirname(this.path), { recursive: true, mode: 0o700 });
    } catch (error) {
      throw this.#problem("make", error);
    }
  }
  #problem(what: string, cause: unknown): StateError {
    const { path } = this;
    const errno = errnoOf(cause);
    if (errno === "ELOOP")
      return new StateError(`${path} is a symbolic link; put the file itself in its place`, { cause });
    if (what === "read")
      return new StateError(`cannot read ${path} (${errno}); it must be a file that you own`, { cause });
    const next = "make the folder writable for you, or set XDG_STATE_HOME to one that is";
    const isReadOnly = ["EACCES", "EPERM", "EROFS"].includes(errno);
    return new (isReadOnly ? UnkeepableError : StateError)(`cannot ${what} ${path} (${errno}); ${next}`, {
      cause,
    });
  }
}

/** Whoever can write to the folder could put another file there. A folder that is not there yet is fine. */
function refuseFolderOfOthers(folder: string): void {
  const found = statOf(folder);
  if (!found?.isDirectory() || process.platform === "win32") return;
  if (found.uid !== 0) refuseOwner(folder, found.uid);
  if ((found.mode & 0o022) === 0) return;
  throw new StateError(
    `${folder} must be yours alone, but others can write to it (mode ${octal(found.mode)}); run: chmod 700 ${folder}`,
  );
}

/** Undefined if it can't be looked at. Reading or making the file then fails, and says why. */
function statOf(path: string): Stats | undefined {
  try {
    return statSync(path);
  } catch (error) {
    errnoOf(error);
    return undefined;
  }
}

function refuseOwner(path: string, uid: number): void {
  const own = process.geteuid?.();
  if (own === undefined || uid === own) return;
  throw new StateError(
    `${path} belongs to another user (${uid}, and this is ${own}); run this as that user, or set XDG_STATE_HOME to a folder of yours`,
  );
}

const octal = (mode: number): string => (mode & 0o777).toString(8).padStart(4, "0");
