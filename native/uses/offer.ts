/**
 * What an offer of files says before it is accepted, and the check that what comes then was offered. Pure but for the
 * messages that it reads. For native/uses/.
 *
 * A sender lists the first ten paths, and all odd ones. The receiver takes only these as the first ten, and nothing odd
 * that was not listed. So whoever decides sees each misleading name, or the file does not come.
 */
import { Refusal } from "../../protocol.ts";
import { nameHere, pathProblem } from "./filename.ts";
import { maxFiles, maxPathLength } from "./files.ts";
import { text, wholeNumber, type Message } from "./message.ts";

/** So many paths are listed in an offer. */
const maxListed = 10;
/** So many odd paths are listed; of more, only how many. An offer that waits for a decision must stay small. */
const maxOdd = 100;
/** Characters of all that an offer lists: ten paths of the longest, and some odd ones. */
const maxListingLength = 64 * 1024;
const maxNameLength = 512;

/** What a peer would like to send. Names and paths are the peer's text, as it came. */
export interface FileOffer {
  /** The name of the file or folder, or `photos and 2 more`. */
  name: string;
  /** Files and folders that the sender has named. */
  things: number;
  files: number;
  folders: number;
  bytes: number;
  /** Made of all paths and sizes: another offer of the same is another attempt at it. 64 hex digits, or "". */
  digest: string;
  /** The first {@link maxListed} of the files; of folders, with a slash at the end, if there are no files. */
  paths: string[];
  /** Odd paths of files. Or of folders, with a slash at the end: that stands for all that is in the folder. */
  odd: string[];
  /** How many more odd files and folders there are. */
  moreOdd: number;
}

/** What is shown of an offer. */
export interface Listing {
  paths: string[];
  /** How many files are not in `paths`. */
  more: number;
  odd: { path: string; why: string }[];
  moreOdd: number;
}

export const listingOf = ({ files, folders, paths, odd, moreOdd }: FileOffer): Listing => ({
  paths,
  more: (files || folders) - paths.length,
  odd: odd.map((path) => ({ path, why: whyOdd(path) })),
  moreOdd,
});

// --- what is odd -----------------------------------------------------------------------------------------

/** Files from which Bun takes code and settings in the folder that it is started in. */
const readByBun = /^(bunfig\.toml|[tj]sconfig\.json)$/i;
/** Characters that can't be seen, look like others, or mean something to a shell. */
const unusual = /[\p{Cc}\p{Cf}\p{Co}\p{Cn}\u115f\u1160\u2800\u3164\uffa0\\*?"<>|`$;]|(?! )\p{Z}|^ |[. ]$/u;

function oddName(name: string): string | undefined {
  if (name.startsWith(".")) return "hidden: its name begins with a dot";
  if (name.startsWith("-")) return "its name begins with a dash";
  if (readByBun.test(name)) return "Bun does what it says";
  if (unusual.test(name)) return "its name has unusual characters";
  return undefined;
}

/** The part of a path that ends with its first odd name: `a/.git/` of `a/.git/config`. */
function oddHead(path: string): string | undefined {
  const names = path.split("/");
  const index = names.findIndex((name) => oddName(name));
  if (index < 0) return undefined;
  return index === names.length - 1 ? path : `${names.slice(0, index + 1).join("/")}/`;
}

/** Why a path was listed as odd. */
const whyOdd = (path: string): string =>
  oddName(path.split("/").findLast((name) => name !== "") ?? "") ?? "executable";

/**
 * The name that a file or folder gets where it arrives. It does not begin with a dot or a dash, and is no name that Bun
 * looks for. So nothing that was sent is hidden, looks like an option of a command, or becomes a setting.
 */
export const storedName = (name: string): string =>
  /^[.-]/.test(name) || readByBun.test(name) ? nameHere(`_${name}`) : nameHere(name);

// --- the sender's side -----------------------------------------------------------------------------------

interface Offered {
  path: string;
  bytes: number;
  mode: number;
}

export interface Collection {
  name: string;
  things: number;
  files: readonly Offered[];
  folders: readonly { path: string }[];
  bytes: number;
}

/** The offer of these files. */
export function offerOf({ name, things, files, folders, bytes }: Collection): FileOffer {
  const some = files.length > 0 ? files.map(({ path }) => path) : folders.map(({ path }) => `${path}/`);
  const paths = some.slice(0, maxListed).map((path) => path.toWellFormed());
  const heads = [
    ...files.map(({ path, mode }) => [oddHead(path), isExecutable(mode) ? path : undefined]),
    ...folders.map(({ path }) => [oddHead(`${path}/`)]),
  ];
  const counts = { files: files.length, folders: folders.length, bytes };
  return { name, things, ...counts, digest: digestOf(files), paths, ...oddOf(heads, lengthOf(paths)) };
}

/** Which are odd is said in an offer; of very many only how many more. */
function oddOf(heads: readonly (string | undefined)[][], listedLength: number) {
  const odd = new Set<string>();
  let moreOdd = 0;
  let length = listedLength;
  for (const some of heads) {
    const told = some.filter((head) => head !== undefined).map((head) => head.toWellFormed());
    const unlisted = told.filter((head) => !odd.has(head));
    const added = lengthOf(unlisted);
    if (odd.size + unlisted.length > maxOdd || length + added > maxListingLength) {
      moreOdd++;
      continue;
    }
    for (const head of unlisted) odd.add(head);
    length += added;
  }
  return { odd: [...odd], moreOdd };
}

function digestOf(files: readonly Offered[]): string {
  const hash = new Bun.CryptoHasher("sha256");
  for (const { path, bytes } of files) hash.update(`${path.toWellFormed()}\n${bytes}\n`);
  return hash.digest("hex");
}

const lengthOf = (paths: readonly string[]): number => paths.reduce((sum, { length }) => sum + length, 0);

const isExecutable = (mode: number): boolean => (mode & 0o111) !== 0;

/** Whether the purpose alone says all: one file that is not odd. */
const isPlain = ({ name, files, paths, odd }: FileOffer): boolean =>
  files === 1 && paths[0] === name && odd.length === 0;

/** The purpose of the stream, and the messages that come before the answer. */
export function encodeOffer(offer: FileOffer): { purpose: object; messages: Message[] } {
  const { things, files, folders, bytes, digest, paths, odd, moreOdd } = offer;
  const name = offer.name.slice(0, maxNameLength).toWellFormed();
  const messages = isPlain(offer)
    ? []
    : [...paths.map((path) => ({ type: "listed", path })), ...odd.map((path) => ({ type: "odd", path }))];
  return {
    purpose: { use: "files", name, files, folders, bytes, digest, things, listed: messages.length, moreOdd },
    messages,
  };
}

// --- the receiver's side ---------------------------------------------------------------------------------

type OfferHead = Omit<FileOffer, "paths" | "odd"> & { listed: number };

/** Reads the purpose. Throws a {@link Refusal}. */
export function readOfferHead(purpose: Record<string, unknown>): OfferHead {
  const counts = { things: 1, folders: 0, listed: 0, moreOdd: 0, digest: "", ...purpose };
  const folders = wholeNumber(counts, "folders", maxFiles);
  const files = wholeNumber(counts, "files", maxFiles - folders, folders > 0 ? 0 : 1);
  return {
    name: text(purpose, "name", maxNameLength),
    files,
    folders,
    bytes: wholeNumber(counts, "bytes"),
    digest: text(counts, "digest", 64),
    things: wholeNumber(counts, "things", files + folders, 1),
    listed: wholeNumber(counts, "listed", maxListed + maxOdd),
    moreOdd: wholeNumber(counts, "moreOdd", files + folders),
  };
}

/** Reads the offer: the purpose, and the first messages, which `next` brings. Throws a {@link Refusal}. */
export async function readOffer(
  purpose: Record<string, unknown>,
  next: () => Promise<IteratorResult<Message | Buffer, void>>,
): Promise<FileOffer> {
  const { listed, ...head } = readOfferHead(purpose);
  const { name, files, folders } = head;
  const [paths, odd]: [string[], string[]] = [[], []];
  for (let left = listed; left > 0; left--) {
    const { value: message } = await next();
    const type = message && !Buffer.isBuffer(message) ? message.type : undefined;
    if (!message || Buffer.isBuffer(message) || (type !== "listed" && type !== "odd"))
      throw new Refusal("bad-line", "a path of the offer was expected");
    (type === "odd" ? odd : paths).push(text(message, "path", maxPathLength));
    if (lengthOf(paths) + lengthOf(odd) > maxListingLength)
      throw new Refusal("limit", "an offer that lists too much");
  }
  if (listed === 0 && files === 1) paths.push(name);
  if (listed === 0 && oddHead(name)) odd.push(name);
  if (paths.length !== Math.min(files || folders, maxListed))
    throw new Refusal("bad-field", `an offer must list its first ${maxListed} paths`);
  return named({ ...head, paths, odd });
}

/** The offer with the name that its paths show, whatever the sender calls it. */
function named(offer: FileOffer): FileOffer {
  const [first = ""] = offer.paths;
  const top = topOf(first);
  const isOne = offer.things === 1;
  const isBelow = (path: string) => path.startsWith(`${top}/`);
  if (isOne && !isOneFile(offer) && !offer.paths.every(isBelow))
    throw new Refusal("bad-field", "the paths of one folder begin with its name");
  const problem = isOne && !isOneFile(offer) && pathProblem(top);
  if (problem) throw new Refusal("bad-field", `the folder that is offered: ${problem}`);
  return { ...offer, name: isOne ? top : `${top} and ${offer.things - 1} more` };
}

export const topOf = (path: string): string => path.split("/", 1)[0]!;

/** Whether one file is offered, and no folder. */
export const isOneFile = ({ things, files, folders, paths }: FileOffer): boolean =>
  things === 1 && files === 1 && folders === 0 && !paths[0]!.includes("/");

/** Compares what comes with what was offered. */
export class OfferCheck {
  readonly #offer: FileOffer;
  readonly #odd: ReadonlySet<string>;
  #seen = 0;
  #moreOdd: number;

  constructor(offer: FileOffer) {
    this.#offer = offer;
    this.#odd = new Set(offer.odd);
    this.#moreOdd = offer.moreOdd;
  }

  /** Called for each file in order. Says why it is not taken, or whether it may be executable here. */
  next(path: string, mode: number): { problem: string } | { isExecutable: boolean } {
    const { paths, things, name } = this.#offer;
    const listed = paths[this.#seen++];
    const isBelow = things > 1 || path.startsWith(`${name}/`);
    if (listed === undefined ? !isBelow : path !== listed) return { problem: "it is not what was offered" };
    const head = oddHead(path);
    const isHidden = this.#isUntold(head);
    const isExtra = isHidden || (isExecutable(mode) && !this.#odd.has(path));
    const isTold = !isExtra || this.#moreOdd-- > 0;
    if (isHidden && !isTold) return { problem: "the offer did not list it, and it is odd" };
    return { isExecutable: isExecutable(mode) && isTold };
  }

  /** Called for each folder. Says why it is not taken. */
  nextFolder(path: string): string | undefined {
    const { things, name } = this.#offer;
    if (things === 1 && path !== name && !path.startsWith(`${name}/`)) return "it is not what was offered";
    const isHidden = this.#isUntold(oddHead(`${path}/`));
    return isHidden && this.#moreOdd-- <= 0 ? "the offer did not list it, and it is odd" : undefined;
  }

  #isUntold(head: string | undefined): boolean {
    return head !== undefined && !this.#odd.has(head);
  }
}
