/**
 * Names that come from a peer: which ones may become files, and under which name. Pure. For native/uses/receive.ts
 * and send.ts.
 */

/** The longest name on all usual file systems (NAME_MAX), and the longest path (PATH_MAX). */
const maxNameBytes = 255;
const maxPathBytes = 4096;
const maxDepth = 64;
/** `photo (2).jpg`, `photo (3).jpg` … */
export const maxNumber = 9_999;

/** Control characters, halves of surrogate pairs, line separators, and what changes the direction of text. */
const unprintable = /[\p{Cc}\p{Cs}\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/u;
/** Names that Windows takes for devices, with any extension. Another system may read the disk later. */
const deviceName = /^(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]) *(\.|$)/i;
const partName = /^\.[0-9a-f]{24}\.part$/i;

/** The name of a file that is not complete yet. `key`: 24 hex digits. */
export const partNameOf = (key: string): string => `.${key}.part`;

/** Why a path from a peer is not taken; undefined if it is. It must be relative, and stay below where it starts. */
export function pathProblem(path: string): string | undefined {
  if (Buffer.byteLength(path) > maxPathBytes) return `its path is longer than ${maxPathBytes} bytes`;
  const names = path.split("/");
  if (names.length > maxDepth) return `it lies deeper than ${maxDepth} folders`;
  for (const name of names) {
    const problem = nameProblem(name);
    if (problem) return problem;
  }
  return undefined;
}

function nameProblem(name: string): string | undefined {
  if (name === "" || name === "." || name === "..") return "its path leaves the folder";
  if (/\\|^[a-z]:/i.test(name)) return "its path has a backslash or a drive";
  if (unprintable.test(name)) return "its name has control characters";
  if (Buffer.byteLength(name) > maxNameBytes) return `its name is longer than ${maxNameBytes} bytes`;
  if (deviceName.test(name)) return "its name is that of a device";
  if (/[. ]$/.test(name)) return "its name ends in a dot or a blank";
  if (partName.test(name)) return "its name is that of an unfinished transfer";
  return undefined;
}

/** The n-th name to try: `photo.jpg`, `photo (2).jpg`. */
export function numbered(name: string, number: number): string {
  if (number === 1) return name;
  const dot = name.lastIndexOf(".");
  const at = dot > 0 ? dot : name.length;
  return `${name.slice(0, at)} (${number})${name.slice(at)}`;
}
