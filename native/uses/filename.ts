/**
 * Names that come from a peer: which ones may become files, and under which name. Pure. For native/uses/receive.ts
 * and send.ts.
 */

/** Of one name on every usual file system (NAME_MAX), and of a path (PATH_MAX). */
const maxNameBytes = 255;
const maxPathBytes = 4096;
const maxDepth = 64;
/** `photo (2).jpg`, `photo (3).jpg` … */
export const maxNumber = 9_999;

/** Controls, halves of surrogate pairs, line separators, and what makes text run the other way. */
const unprintable = /[\p{Cc}\p{Cs}\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/u;
/** What Windows takes for a device, with any extension; a disk may be read by another system later. */
const deviceName = /^(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]) *(\.|$)/i;
const partName = /^\.[0-9a-f]{24}\.part$/i;

/** Where a file that is not whole yet waits; `key` is 24 hex digits. */
export const partNameOf = (key: string): string => `.${key}.part`;

/** Why a path from a peer is not taken, or undefined: it is relative, and stays below where it starts. */
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
