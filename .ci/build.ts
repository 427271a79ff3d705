/**
 * `bun run build`: both programs as files that need no Bun, for this system, into dist/. With `--all` for each system that
 * they run on, named by it; Bun fetches its own runtime for the others. Their SHA-256 is in dist/SHA256SUMS (`sha256sum
 * --check` reads it).
 */
import { mkdirSync, rmSync } from "node:fs";

/** Without a target it is for this system. On Windows a descriptor can't be handed to Bun's sockets, so a participant can't punch there. */
export const builds = [
  { program: "introducer", target: undefined },
  { program: "participant", target: undefined },
  { program: "introducer", target: "bun-linux-x64" },
  { program: "introducer", target: "bun-linux-arm64" },
  { program: "introducer", target: "bun-linux-x64-musl" },
  { program: "introducer", target: "bun-darwin-arm64" },
  { program: "introducer", target: "bun-darwin-x64" },
  { program: "introducer", target: "bun-windows-x64" },
  { program: "participant", target: "bun-linux-x64" },
  { program: "participant", target: "bun-linux-arm64" },
  { program: "participant", target: "bun-linux-x64-musl" },
  { program: "participant", target: "bun-darwin-arm64" },
  { program: "participant", target: "bun-darwin-x64" },
] as const;
export type Build = (typeof builds)[number];

const root = `${import.meta.dir}/..`;

/**
 * By default what is made reads bunfig.toml, whose `preload` runs, and .env of the folder it is started in: a file that
 * was received there would be code of ours.
 */
const closed = ["--no-compile-autoload-bunfig", "--no-compile-autoload-dotenv"];
/** The program is compiled beforehand, and not at each start: that takes 15 ms then instead of 45, and 4 MB. */
const compiled = ["--bytecode", "--format=esm"];

export function fileName({ program, target }: Build): string {
  if (target === undefined) return process.platform === "win32" ? `${program}.exe` : program;
  const system = target.replace("bun-", "");
  return `${program}-${system}${system.startsWith("windows") ? ".exe" : ""}`;
}

/** Makes one file in that folder; returns its line of SHA256SUMS. Rejects with what the compiler says. */
export async function build(one: Build, folder: string): Promise<string> {
  const name = fileName(one);
  const { program, target } = one;
  const command = [process.execPath, "build", "--compile", ...closed, ...compiled];
  if (target !== undefined) command.push(`--target=${target}`);
  const child = Bun.spawn([...command, `${root}/${program}.ts`, "--outfile", `${folder}/${name}`], {
    cwd: root,
    stdio: ["ignore", "ignore", "pipe"],
  });
  const problem = await new Response(child.stderr).text();
  if ((await child.exited) !== 0) throw new Error(`${name}: ${problem}`);
  const hasher = new Bun.CryptoHasher("sha256");
  for await (const chunk of Bun.file(`${folder}/${name}`).stream()) hasher.update(chunk);
  return `${hasher.digest("hex")}  ${name}\n`;
}

if (import.meta.main) {
  const folder = `${root}/dist`;
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder);
  const isAll = Bun.argv.includes("--all");
  let sums = "";
  for (const one of builds.filter(({ target }) => (target !== undefined) === isAll)) {
    sums += await build(one, folder);
    console.log(`dist/${fileName(one)}`);
  }
  await Bun.write(`${folder}/SHA256SUMS`, sums);
}
