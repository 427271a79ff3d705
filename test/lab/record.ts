/**
 * `bun run record` draws test/recording.svg for README.md: two people in two shells, each behind a NAT of the lab, type
 * real commands; what stands on their screens is drawn. test/lab/record.test.ts compares it with another run.
 */
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { until } from "../native-fixture.ts";
import { type Host, Lab } from "./lab.ts";
import { People, root } from "./people.ts";
import { apart, owdMs } from "./sides.ts";
import { patienceMs } from "../patience-fixture.ts";

export const recording = join(root, "test/recording.svg");
const columns = 92;

// --- a screen --------------------------------------------------------------------------------------------

interface Cell {
  text: string;
  /** What SGR says (ECMA-48 §8.3.117), as classes of the drawing. */
  style: string;
}

const styles: Readonly<Record<number, string>> = {
  1: "b",
  2: "d",
  31: "r",
  32: "g",
  33: "y",
  35: "m",
  36: "c",
};

/** What a terminal shows of what programs write: as much of ECMA-48 as ours use. Nothing scrolls away. */
export class Screen {
  readonly #rows: Cell[][] = [[]];
  #row = 0;
  #column = 0;
  #style: string[] = [];
  #held = "";

  write(text: string): void {
    const whole = this.#held + text;
    const [held = ""] = /\x1b(?:\[[?\d;]*)?$/.exec(whole) ?? [];
    this.#held = held;
    const pieces = whole.slice(0, whole.length - held.length).matchAll(/\x1b\[([?\d;]*)([A-Za-z])|[^]/gu);
    for (const [piece, given = "", final] of pieces) {
      if (final === undefined) this.#put(piece);
      else this.#control(final, given.split(";").map(Number));
    }
  }

  #put(char: string): void {
    if (char === "\r") this.#column = 0;
    else if (char === "\n") this.#row++;
    else if (char === "\b") this.#column = Math.max(0, this.#column - 1);
    else if (char >= " ") {
      if (this.#column === columns) [this.#row, this.#column] = [this.#row + 1, 0];
      const row = this.#at(this.#row);
      while (row.length < this.#column) row.push({ text: " ", style: "" });
      row[this.#column++] = { text: char, style: this.#style.join(" ") };
    }
    this.#at(this.#row);
  }

  #at(row: number): Cell[] {
    while (this.#rows.length <= row) this.#rows.push([]);
    return this.#rows[row]!;
  }

  #control(final: string, numbers: number[]): void {
    const [first = 0] = numbers;
    const row = this.#at(this.#row);
    if (final === "A") this.#row = Math.max(0, this.#row - (first || 1));
    if (final === "B") this.#row += first || 1;
    if (final === "C") this.#column += first || 1;
    if (final === "D") this.#column = Math.max(0, this.#column - (first || 1));
    if (final === "G") this.#column = (first || 1) - 1;
    if (final === "K") row.length = first === 2 ? 0 : Math.min(row.length, this.#column);
    if (final === "J") {
      row.length = Math.min(row.length, this.#column);
      this.#rows.length = this.#row + 1;
    }
    if (final === "m") for (const one of numbers) this.#paint(one);
  }

  #paint(number: number): void {
    if (number === 0) this.#style = [];
    else if (number === 22) this.#style = this.#style.filter((one) => one !== "b" && one !== "d");
    else if (number === 39) this.#style = this.#style.filter((one) => one === "b" || one === "d");
    else if (styles[number] !== undefined) this.#style = [...this.#style, styles[number]];
  }

  /** The rows, each as runs of one style; without empty ones at the end. */
  get runs(): Cell[][] {
    const rows = this.#rows.map((row) => {
      const runs: Cell[] = [];
      for (const { text, style } of row) {
        const last = runs.at(-1);
        if (last?.style === style) last.text += text;
        else runs.push({ text, style });
      }
      return runs;
    });
    return rows.slice(0, rows.findLastIndex((row) => row.some(({ text }) => text.trim() !== "")) + 1);
  }

  get lines(): string[] {
    return this.runs.map((row) =>
      row
        .map(({ text }) => text)
        .join("")
        .trimEnd(),
    );
  }
}

// --- the run ---------------------------------------------------------------------------------------------

/** A shell on a terminal, on a host of the lab. */
class Person {
  readonly screen = new Screen();
  readonly #shell: Bun.Subprocess;

  constructor(
    host: Host,
    name: string,
    computer: string,
    folder: string,
    environment: Record<string, string>,
  ) {
    const decoder = new TextDecoder();
    const begin = 'hostname "$0" && export PS1="$1" && exec sh -i';
    const command = ["unshare", "-u", "sh", "-c", begin, computer, `${name}$ `];
    this.#shell = host.spawn(command, {
      cwd: folder,
      env: { TERM: "xterm-256color", HOME: folder, USER: name, ...environment },
      terminal: {
        cols: columns,
        rows: 60,
        data: (_: unknown, chunk: Uint8Array) => this.screen.write(decoder.decode(chunk, { stream: true })),
      },
    } as never) as never;
  }

  /** Waits for the prompt, types a line, and waits for what it shows. */
  async types(line: string, shows: RegExp): Promise<string> {
    await this.#shows(/(?:\$|^>) ?$/m, 1);
    const before = this.screen.lines.length - 1;
    this.#shell.terminal?.write(`${line}\r`);
    return this.#shows(shows, 0, before);
  }

  async sees(shows: RegExp): Promise<void> {
    await this.#shows(shows, 0);
  }

  async #shows(wanted: RegExp, last: number, from = 0): Promise<string> {
    const text = () => this.screen.lines.slice(last === 0 ? from : -last).join("\n");
    await until(String(wanted), () => wanted.test(text()), patienceMs).catch(() => {
      throw new Error(`${wanted} is not on the screen:\n${this.screen.lines.join("\n")}`);
    });
    return wanted.exec(text())!.at(-1)!;
  }
}

/** Both screens, after all that is to be shown. */
export async function record(): Promise<{ alice: Screen; bob: Screen }> {
  const place = mkdtempSync(join(tmpdir(), "record-"));
  try {
    await using lab = await Lab.create();
    await using people = new People();
    const hosts = await apart()(lab);
    const introducer = await people.introducer(await lab.host("introducer", { owdMs }));
    const environment = {
      PATH: `${commandsIn(place)}:${dirname(process.execPath)}:${process.env.PATH}`,
      INTRODUCER: introducer.endpoint.replace(/:7000$/, ""),
    };
    const person = (name: "alice" | "bob", computer: string) =>
      new Person(hosts[name], name, computer, folderOf(place, name), environment);
    const [alice, bob] = [person("alice", "laptop"), person("bob", "desk")];
    const code = await alice.types("participant send photos", /receive (\S+)$/m);
    await bob.types(`participant receive ${code}`, /^received .*compared/m);
    await alice.sees(/^sent .*compared/m);
    const rooms = `export INTRODUCER=${code}`;
    for (const one of [alice, bob]) await one.types(rooms, /INTRODUCER[^]*\$ ?$/);
    await bob.types("participant --name bob", /^> ?$/m);
    await bob.sees(/our mapping/);
    await alice.types("participant --name alice", /^> ?$/m);
    await alice.sees(/our mapping/);
    await alice.types("connect bob", /(?:linked|moved) with bob.* (?:by|to) (?!relay)/);
    await bob.sees(/(?:linked|moved) with alice \(.* (?:by|to) (?!relay)/);
    for (const one of [alice, bob]) await one.types("list", /1 peer: 1 linked\n> ?$/);
    return { alice: alice.screen, bob: bob.screen };
  } finally {
    rmSync(place, { recursive: true, force: true });
  }
}

function commandsIn(place: string): string {
  mkdirSync(join(place, "bin"));
  symlinkSync(join(root, "participant.ts"), join(place, "bin/participant"));
  return join(place, "bin");
}

function folderOf(place: string, name: string): string {
  const folder = join(place, name);
  mkdirSync(join(folder, name === "alice" ? "photos" : ""), { recursive: true });
  if (name === "bob") return folder;
  const sizes = { "photos/beach.jpg": 3_000_000, "photos/lake.jpg": 1_200_000 };
  for (const [path, size] of Object.entries(sizes)) writeFileSync(join(folder, path), new Uint8Array(size));
  return folder;
}

// --- the drawing -----------------------------------------------------------------------------------------

const [charWidth, lineHeight, margin] = [7.8, 17, 12];

/** One screen below the other. Pure. */
function draw(screens: Record<string, Screen>): string {
  const width = Math.ceil(columns * charWidth + 2 * margin);
  let y = 0;
  const parts = Object.entries(screens).map(([title, screen]) => {
    const { runs } = screen;
    const top = y;
    const height = (runs.length + 1) * lineHeight + 2 * margin;
    y += height + margin;
    const rows = runs.map((row, index) => {
      const text = row.map(({ text: run, style }) => span(run, style)).join("");
      return text && `<text x="${margin}" y="${top + margin + (index + 2) * lineHeight - 4}">${text}</text>`;
    });
    const frame = `<rect y="${top}" width="${width}" height="${height}" rx="8"/>`;
    const head = `<text class="d" x="${width / 2}" y="${top + margin + 9}" text-anchor="middle">${title}</text>`;
    return [frame, head, ...rows.filter(Boolean)].join("\n");
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" xml:space="preserve" viewBox="0 0 ${width} ${y - margin}" width="${width}">
<style>
text { font: 13px ui-monospace, Menlo, Consolas, monospace; fill: #ddd; white-space: pre }
rect { fill: #1d1f21 } .b { font-weight: bold } .d { fill: #888 } .r { fill: #f66 } .g { fill: #7c5 }
.y { fill: #ec5 } .m { fill: #c8e } .c { fill: #6cd }
</style>
${parts.join("\n")}
</svg>
`;
}

function span(text: string, style: string): string {
  const escaped = text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  return style === "" ? escaped : `<tspan class="${style}">${escaped}</tspan>`;
}

/** The lines of a drawing, without the titles. */
export function linesIn(svg: string): string[] {
  return [...svg.matchAll(/<text x[^>]*>(.*)<\/text>/g)].map(([, text = ""]) =>
    text
      .replace(/<[^>]*>/g, "")
      .replaceAll("&lt;", "<")
      .replaceAll("&amp;", "&"),
  );
}

if (import.meta.main) {
  const { alice, bob } = await record();
  writeFileSync(recording, draw({ "alice, behind a router": alice, "bob, behind another": bob }));
  process.exit(0);
}
