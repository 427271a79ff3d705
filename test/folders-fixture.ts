/** For tests of files: a folder to send from and one to receive into, new for each test, and gone at the end. */
import { afterAll } from "bun:test";
import fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** `place`: a folder whose name begins with `prefix`. `fresh` makes both below it. */
export function newFolders(prefix: string) {
  const place = fs.mkdtempSync(join(tmpdir(), prefix));
  afterAll(() => fs.rmSync(place, { recursive: true, force: true }));
  let count = 0;
  const fresh = () => {
    const both = { source: join(place, `${++count}-source`), target: join(place, `${count}-target`) };
    for (const folder of Object.values(both)) fs.mkdirSync(folder);
    return both;
  };
  return { place, fresh };
}

/** Writes a file, and the folders around it. Returns where it is. */
export function writeIn(folder: string, path: string, content: string | Uint8Array): string {
  const full = join(folder, path);
  fs.mkdirSync(join(full, ".."), { recursive: true });
  fs.writeFileSync(full, content);
  return full;
}
