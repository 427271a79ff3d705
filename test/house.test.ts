/** The house: which folder may import which, read from the sources themselves. native/README.md says what each owns. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { dirname, join, relative } from "node:path";
import { testMs } from "./patience-fixture.ts";

setDefaultTimeout(testMs);

const root = join(import.meta.dir, "..");

/** What the files of a place may import besides their own place. A place is a folder, or a file at the top. */
const mayImport: Record<string, string[]> = (() => {
  const pure = ["protocol.ts", "native/shares"];
  const session = [...pure, "native/session"];
  const secure = [...session, "native/host", "native/secure"];
  const participant = [...secure, "native/punch", "native/uses", "native/participant"];
  const introducer = [...pure, "native/host", "native/introducer"];
  return {
    "protocol.ts": [],
    "native/shares": ["protocol.ts"],
    "native/host": pure,
    "native/session": pure,
    "native/secure": [...session, "native/host"],
    "native/punch": secure,
    "native/uses": [...session, "native/host"],
    "native/participant": [...secure, "native/punch", "native/uses"],
    "native/introducer": [...pure, "native/host"],
    "native/terminal": [...participant, ...introducer],
    "introducer.ts": [...introducer, "native/terminal"],
    "participant.ts": [...participant, "native/terminal"],
  };
})();

const files = ["*.ts", "native/**/*.ts"].flatMap((glob) => [...new Bun.Glob(glob).scanSync({ cwd: root })]);

function placeOf(file: string): string {
  const [top, folder] = file.split("/");
  return folder === undefined ? top! : `${top}/${folder}`;
}

/** What a file imports of ours, types too, and from elsewhere. */
async function importsOf(file: string): Promise<{ ours: string[]; others: string[] }> {
  const text = await Bun.file(join(root, file)).text();
  const named = [
    ...text.matchAll(
      /(?:^|\n)(?:import|export)\s[^;]*?from "([^"]+)"|\bimport\("([^"]+)"\)|\brequire\("([^"]+)"\)/g,
    ),
  ];
  const all = named.map(([, from, dynamic, required]) => (from ?? dynamic ?? required)!);
  const ours = all
    .filter((one) => one.startsWith(".") && one.endsWith(".ts"))
    .map((one) => relative(root, join(root, dirname(file), one)));
  return { ours, others: all.filter((one) => !one.startsWith(".")) };
}

const imports = new Map(await Promise.all(files.map(async (file) => [file, await importsOf(file)] as const)));

test("every file is in a place of the house, and every place has files", () => {
  expect(new Set(files.map(placeOf))).toEqual(new Set(Object.keys(mayImport)));
  expect(files.filter((file) => !(placeOf(file) in mayImport))).toEqual([]);
});

test("imports point down, and never back", () => {
  const wrong = files.flatMap((file) =>
    imports
      .get(file)!
      .ours.filter((to) => placeOf(to) !== placeOf(file) && !mayImport[placeOf(file)]?.includes(placeOf(to)))
      .map((to) => `${file} → ${to}`),
  );
  expect(wrong).toEqual([]);
});

/** What a program that uses the library has of native/participant/ and native/session/; and one thing that it makes. */
const given = ["events", "peer-events", "peers", "peer-link", "public", "uses", "refused", "networks"];

test("the participant's program is a user of the library: it reaches none of what is inside", () => {
  const mayReach = [...given.map((name) => `native/participant/${name}.ts`), "native/session/stream.ts"];
  const programs = files.filter((file) => placeOf(file) === "native/terminal");
  const inside = programs.flatMap((file) =>
    imports
      .get(file)!
      .ours.filter((to) => /^native\/(participant|session)\//.test(to) && !mayReach.includes(to))
      .map((to) => `${file} → ${to}`),
  );
  expect(inside).toEqual([]);
});

test("no file imports itself by way of others", () => {
  const done = new Set<string>();
  const circles: string[] = [];
  const visit = (file: string, path: string[]) => {
    if (path.includes(file)) return void circles.push([...path.slice(path.indexOf(file)), file].join(" → "));
    if (done.has(file)) return;
    for (const to of imports.get(file)?.ours ?? []) visit(to, [...path, file]);
    done.add(file);
  };
  for (const file of files) visit(file, []);
  expect(circles).toEqual([]);
});

test("only native/host/libc.ts calls libc", () => {
  expect(files.filter((file) => imports.get(file)!.others.includes("bun:ffi"))).toEqual([
    "native/host/libc.ts",
  ]);
});

test("only native/terminal/ reads arguments", () => {
  const reads = files.filter((file) => imports.get(file)!.others.some((one) => one === "node:util"));
  expect(reads.filter((file) => !file.startsWith("native/terminal/"))).toEqual([]);
});

test("each file of tests sets how long one may last: Bun's own 5 s are too few on a busy machine", async () => {
  // Those of the field give their minutes one by one.
  const tests = [...new Bun.Glob("test/**/*.test.ts").scanSync({ cwd: root })].filter(
    (file) => !file.startsWith("test/lab/field/"),
  );
  const texts = await Promise.all(tests.map((file) => Bun.file(join(root, file)).text()));
  expect(tests.filter((_, at) => !texts[at]!.includes("\nsetDefaultTimeout("))).toEqual([]);
});
