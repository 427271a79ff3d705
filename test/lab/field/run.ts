/**
 * `bun run field [FAMILY…]`: what happens to programs like this one in the field, by family. It runs the long scenarios,
 * too, and prints a table at its end. Without FAMILY all of them.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Told } from "./field-fixture.ts";

interface Family {
  /** What its scenarios are about. */
  about: string;
  /** Tests of the plain suite that are of this family, below test/. Its own file is in this folder. */
  besides: string[];
}

export const families: Record<string, Family> = {
  output: {
    about: "exit codes, what is told, slow and closed readers, terminals",
    besides: ["exit-codes.test.ts", "signals.test.ts", "terminal/surroundings.test.ts"],
  },
  "coming-back": {
    about: "sleep, loss of power, NATs that forget, other addresses, mapped ports",
    besides: [
      "waking.test.ts",
      "keep.test.ts",
      "lab/ghost.test.ts",
      "lab/changes.test.ts",
      "lab/mapped.test.ts",
      "punch/portmap.test.ts",
      "participant/peer.test.ts",
      "hostile/elsewhere.test.ts",
      "introducer/redis.test.ts",
    ],
  },
  services: {
    about: "started early, replaced, upgraded, watched, without descriptors, for days",
    besides: [
      "service.test.ts",
      "introducer/probes.test.ts",
      "introducer/drain.test.ts",
      "shares/clock.test.ts",
    ],
  },
  paths: {
    about: "small packets, loss, NATs of all kinds",
    besides: ["lab/nat-kinds.test.ts", "lab/nat.test.ts", "lab/punch.test.ts"],
  },
  transfers: {
    about: "many files, odd names, full disks, what changes while it is sent, what was cut short",
    besides: ["transfers.test.ts", "uses-files.test.ts", "uses/files.test.ts"],
  },
  fairness: {
    about: "small things beside large ones, many at once",
    besides: [],
  },
  programs: {
    about: "ssh, scp, rsync, git, databases, web servers by a forward or a pipe",
    besides: ["lab/uses.test.ts", "recipes.test.ts"],
  },
  udp: {
    about: "games, name servers, WireGuard by a forward of UDP",
    besides: ["uses-udp.test.ts", "uses/udp.test.ts"],
  },
};

const root = join(import.meta.dir, "../../..");

/** A family's files, by their paths from the top. */
export function filesOf(family: string): string[] {
  const own = `test/lab/field/${family}.test.ts`;
  return [
    ...(existsSync(join(root, own)) ? [own] : []),
    ...families[family]!.besides.map((file) => `test/${file}`),
  ];
}

interface Row {
  family: string;
  file: string;
  scenario: string;
  what: string;
  seconds: number;
}

const entities: Record<string, string> = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'" };
const unescape = (text: string) =>
  text.replace(/&(amp|lt|gt|quot|apos);/g, (_, name: string) => entities[name]!);

/** The rows of a JUnit report of Bun's, with what the scenarios told themselves. */
export function rowsOf(family: string, report: string, told: readonly Told[]): Row[] {
  const cases = report.matchAll(/<testcase ([^>]*?)(?:\/>|>([^]*?)<\/testcase>)/g);
  return [...cases].map(([, attributes = "", inside = ""]) => {
    const attribute = (name: string) =>
      unescape(new RegExp(` ?\\b${name}="([^"]*)"`).exec(attributes)?.[1] ?? "");
    const scenario = attribute("name");
    const why = /\(skipped: (.*)\)$/.exec(scenario)?.[1];
    const own = told.find((one) => one.scenario === scenario)?.what;
    const what = /<failure/.test(inside)
      ? "FAILED"
      : /<skipped/.test(inside)
        ? `skipped: ${why}`
        : (own ?? "held");
    return {
      family,
      file: attribute("file"),
      scenario: scenario.replace(/ \(skipped: .*/, ""),
      what,
      seconds: Number(attribute("time")),
    };
  });
}

/** Tests of other folders, a row for each of their files. */
export function summed(rows: Row[]): Row[] {
  const isOwn = ({ file }: Row) => file.startsWith("test/lab/field/");
  const files = [...new Set(rows.filter((row) => !isOwn(row)).map(({ file }) => file))];
  const others = files.map((file): Row => {
    const all = rows.filter((row) => row.file === file);
    const count = (what: string) => all.filter((row) => row.what.startsWith(what)).length;
    const parts = [
      count("FAILED") && `${count("FAILED")} FAILED`,
      count("skipped") && `${count("skipped")} skipped`,
    ];
    const seconds = all.reduce((sum, row) => sum + row.seconds, 0);
    const scenario = `${file}: ${all.length} tests`;
    return { ...all[0]!, scenario, what: parts.filter(Boolean).join(", ") || "held", seconds };
  });
  return [...rows.filter(isOwn), ...others];
}

/** Runs a family's files; what they print goes to standard error. */
async function run(family: string): Promise<{ rows: Row[]; code: number }> {
  const folder = mkdtempSync(join(tmpdir(), "field-"));
  try {
    const [report, told] = [join(folder, "report.xml"), join(folder, "told")];
    const options = ["--reporter=junit", `--reporter-outfile=${report}`];
    const child = Bun.spawn([process.execPath, "test", ...options, ...filesOf(family)], {
      cwd: root,
      env: { ...process.env, FIELD: "1", FIELD_TOLD: told },
      stdio: ["ignore", 2, 2],
    });
    const code = await child.exited;
    const read = (path: string) => (existsSync(path) ? readFileSync(path, "utf8") : "");
    const lines = read(told).split("\n").slice(0, -1);
    const all = lines.map((line) => JSON.parse(line) as Told);
    return { rows: summed(rowsOf(family, read(report), all)), code };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function tableOf(rows: Row[]): string {
  const line = ({ family, scenario, what, seconds }: Row) => [family, scenario, what, seconds.toFixed(1)];
  const head = [
    ["family", "scenario", "what happened", "s"],
    ["---", "---", "---", "---:"],
  ];
  return [...head, ...rows.map(line)].map((cells) => `| ${cells.join(" | ")} |`).join("\n");
}

if (import.meta.main) {
  const wanted = process.argv.slice(2);
  const unknown = wanted.filter((one) => !(one in families));
  if (unknown.length > 0) {
    console.error(
      `there is no family ${unknown.join(", ")}: bun run field [${Object.keys(families).join(" | ")}]`,
    );
    process.exit(2);
  }
  const all: Row[] = [];
  let code = 0;
  for (const family of wanted.length > 0 ? wanted : Object.keys(families)) {
    const done = await run(family);
    all.push(...done.rows);
    code ||= done.code;
  }
  console.log(tableOf(all));
  process.exit(code);
}
