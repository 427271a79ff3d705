/**
 * Names that come from a peer: which ones may become files, and under which name. Pure. For native/uses/.
 */

/** The longest name on all usual file systems (NAME_MAX), and the longest path (PATH_MAX). */
const maxNameBytes = 255;
const maxPathBytes = 4096;
const maxDepth = 64;
/** Where a disk takes less than {@link maxNameBytes}, it takes so many. */
const portableNameBytes = 100;
/** `photo (2).jpg`, `photo (3).jpg` … */
export const maxNumber = 9_999;
const maxNumberBytes = ` (${maxNumber})`.length;

/** Control characters, halves of surrogate pairs, line separators, and what changes the direction of text. */
const unprintable = /[\p{Cc}\p{Cs}\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/gu;
/** What Windows and its file systems take for something else, and names that they take for devices. */
const unportable = /[<>:"|?*\\]|[. ]$/g;
const deviceName = /^(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]) *(\.|$)/i;

// --- unfinished files ------------------------------------------------------------------------------------

const unfinishedName = /\.([0-9a-f]{24})(\.folder)?\.part$/i;

/** The name of a file that is not complete yet, so that its owner sees what it is. `key`: 24 hex digits. */
export const partNameOf = (name: string, key: string): string => `${visible(name)}.${key}.part`;

/** The name of the mark of a folder that is not complete yet. No file that is sent gets such a name. */
export const markNameOf = (name: string, key: string): string => `${visible(name)}.${key}.folder.part`;

/** What a name says, if it is one of an unfinished file or folder: the visible name. */
export function unfinished(name: string): { name: string; isFolder: boolean } | undefined {
  const found = unfinishedName.exec(name);
  return found ? { name: name.slice(0, found.index), isFolder: found[2] !== undefined } : undefined;
}

/** A name that can be had on every disk, and is not hidden. */
export const visible = (name: string): string => portable(name).replace(/^[.-]/, "_");

// --- names -----------------------------------------------------------------------------------------------

/** Why a path from a peer is not taken; undefined if it is. It must be relative, and stay below where it starts. */
export function pathProblem(path: string): string | undefined {
  if (Buffer.byteLength(path) > maxPathBytes) return `its path is longer than ${maxPathBytes} bytes`;
  const names = path.split("/");
  if (names.length > maxDepth) return `it lies deeper than ${maxDepth} folders`;
  if (names.some((name) => name === "" || name === "." || name === "..")) return "its path leaves the folder";
  if (path.includes("\0")) return "its name has a zero byte";
  return undefined;
}

/** The name that we give it: what a terminal would obey is replaced, and what we call unfinished files by is not taken. */
export function nameHere(name: string): string {
  const plain = shortened(name.replace(unprintable, "_"), maxNameBytes);
  return unfinishedName.test(plain) ? `${shortened(plain, maxNameBytes - 1)}_` : plain;
}

/** A name for disks that do not take the other one. */
export function portable(name: string): string {
  const plain = name.replace(unprintable, "_").replace(unportable, "_");
  return shortened(deviceName.test(plain) ? `_${plain}` : plain, portableNameBytes);
}

/** The n-th name to try: `photo.jpg`, `photo (2).jpg`. */
export function numbered(name: string, number: number): string {
  return number === 1 ? name : shortened(name, maxNameBytes, ` (${number})`);
}

/** The n-th name of a folder to try: `v1.2`, `v1.2 (2)`. */
export const numberedFolder = (name: string, number: number): string =>
  number === 1 ? name : fitting(name, maxNameBytes - maxNumberBytes) + ` (${number})`;

/** At most so many bytes, with something between the name and what follows its last dot. */
function shortened(name: string, maxBytes: number, between = ""): string {
  const dot = name.lastIndexOf(".");
  const isExtension = dot > 0 && Buffer.byteLength(name.slice(dot)) <= maxBytes / 4;
  const [stem, rest] = isExtension ? [name.slice(0, dot), name.slice(dot)] : [name, ""];
  return fitting(stem, maxBytes - Buffer.byteLength(between + rest)) + between + rest;
}

/** As many of its first characters as fit. */
function fitting(text: string, maxBytes: number): string {
  if (Buffer.byteLength(text) <= maxBytes) return text;
  let bytes = 0;
  let fit = "";
  for (const character of text) {
    bytes += Buffer.byteLength(character);
    if (bytes > maxBytes) break;
    fit += character;
  }
  return fit;
}
