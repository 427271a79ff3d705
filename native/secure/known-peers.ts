/**
 * Which certificate each name of a private room had when it was seen first (--remember): as ssh's known_hosts. A name is a
 * claim of whoever knows the words; from then on it is bound to that certificate. Owns the file of it in the state folder.
 * For native/participant/membership.ts and participant.ts.
 *
 * The file is only added to, a line at a time, so that several programs may share it: of two that bind a name at once the
 * first line counts for both. A line that can't be read is an error: a file that was cut must not set a name free.
 *
 *   ROOM NAME FINGERPRINT     the name was seen with it
 *   ROOM NAME -               the user has it forgotten
 */
import { createHash } from "node:crypto";
import { statSync } from "node:fs";
import { nameProblem, nameSkeleton, printable } from "../../protocol.ts";
import { StateError, StateFile, stateFolder } from "../host/state.ts";

const fileName = "known-peers";
/** Some ten thousand names. Only names that the user himself has named are added. */
const maxFileBytes = 1024 * 1024;
/** Of one name, so many other certificates are told of. */
const maxTold = 16;
const linePattern = /^([0-9a-f]{32}) (\S+) ([0-9a-f]{64}|-)$/;

interface Peer {
  readonly name: string;
  readonly fingerprint: string;
}

interface Known extends Peer {
  /** Other certificates of its name that were told of. */
  readonly told: Set<string>;
}

export class KnownPeers {
  readonly #file: StateFile;
  readonly #warn: (message: string) => void;
  /** Which file was read last. */
  #read = "";
  /** By room, and by what the name looks like: no two of a room look alike. */
  #known = new Map<string, Known>();
  #room = "";
  /** The latest problem of the file, which is told once. */
  #warned = "";

  /** Reads the file, or makes it. Throws a {@link StateError} if it can't be used, or has a line that can't be read. */
  constructor(warn: (message: string) => void, folder = stateFolder()) {
    this.#warn = warn;
    this.#file = new StateFile(folder, fileName, maxFileBytes);
    this.#file.append("");
    this.#load();
  }

  /** The room that names are of from now on. The file has a hash of its id, which does not lead to its words. */
  set room(id: string) {
    this.#room = createHash("sha256").update(`known peers of ${id}`).digest("hex").slice(0, 32);
  }

  /** Why that peer does not count as the one that was seen first by its name; undefined if it does, or none was. */
  distrust({ name, fingerprint }: Peer): string | undefined {
    const known = this.#of(name);
    if (!known || known.fingerprint === fingerprint) return undefined;
    const [now, then] = [fingerprint, known.fingerprint].map((one) => `SHA256:${one}`);
    const called = printable(name);
    const doubt = `its certificate is another one than was seen first: ${now}, and not ${then}; if ${called} says that this is right, \`forget ${called}\` (${this.#file.path})`;
    if (!known.told.has(fingerprint)) this.#tell(known, fingerprint, `${called} is not let in: ${doubt}`);
    return doubt;
  }

  #tell({ told }: Known, fingerprint: string, message: string): void {
    if (told.size >= maxTold) return;
    told.add(fingerprint);
    this.#warn(message);
  }

  /** Binds the name of a peer that we are linked with, if none is bound to it yet. Returns whether it is bound to it. */
  meet({ name, fingerprint }: Peer): boolean {
    if (this.#of(name)) return this.#of(name)!.fingerprint === fingerprint;
    return this.#add(name, fingerprint) && this.#of(name)?.fingerprint === fingerprint;
  }

  /** The certificate that the name was seen with. */
  fingerprintOf(name: string): string | undefined {
    return this.#of(name)?.fingerprint;
  }

  /** From now on nobody was seen by that name. Returns whether somebody was. */
  forget(name: string): boolean {
    return this.#of(name) !== undefined && this.#add(name, "-");
  }

  #of(name: string): Known | undefined {
    try {
      this.#load();
    } catch (error) {
      if (!(error instanceof StateError)) throw error;
      this.#warnOnce(error.message); // what was read before holds
    }
    return this.#known.get(keyOf(this.#room, name));
  }

  #warnOnce(message: string): void {
    if (message !== this.#warned) this.#warn(`${message}. Until then what was remembered before holds`);
    this.#warned = message;
  }

  /** Returns whether it could be written. */
  #add(name: string, fingerprint: string): boolean {
    try {
      this.#file.append(`${this.#room} ${name} ${fingerprint}\n`);
      return true;
    } catch (error) {
      if (!(error instanceof StateError)) throw error;
      this.#warnOnce(error.message);
      return false;
    }
  }

  /** Reads the file again if it is another one than before, such as by another program. */
  #load(): void {
    const now = stampOf(this.#file.path);
    if (now === this.#read && now !== "") return;
    const lines = (this.#file.read() ?? "").split("\n");
    const known = new Map<string, Known>();
    for (const [index, line] of lines.entries()) {
      if (line === "") continue;
      const [, room = "", name = "", fingerprint = ""] = linePattern.exec(line) ?? [];
      if (room === "" || nameProblem(name) !== undefined)
        throw new StateError(
          `${this.#file.path} can't be read in line ${index + 1}; mend or remove that line: it may be all that tells two of a name apart`,
        );
      const key = keyOf(room, name);
      if (fingerprint === "-") known.delete(key);
      else if (!known.has(key)) known.set(key, this.#again(key, { name, fingerprint }));
    }
    this.#known = known;
    this.#read = now;
  }

  #again(key: string, peer: Peer): Known {
    const before = this.#known.get(key);
    return before?.fingerprint === peer.fingerprint ? before : { ...peer, told: new Set() };
  }
}

const keyOf = (room: string, name: string): string => `${room} ${nameSkeleton(name)}`;

/** Which file it is, and how far it was written. */
function stampOf(path: string): string {
  const found = statSync(path, { bigint: true, throwIfNoEntry: false });
  return found ? `${found.dev} ${found.ino} ${found.size} ${found.mtimeNs}` : "";
}
