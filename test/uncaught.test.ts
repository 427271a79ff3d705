import { expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { testMs } from "./patience-fixture.ts";

setDefaultTimeout(testMs);

const preload = `${import.meta.dir}/uncaught-fixture.ts`;
/** As a program of ours is: it waits for something, and does not know that a callback has thrown. */
const program = (thrower: string) =>
  `${thrower}; await new Promise((resolve) => setTimeout(resolve, 5_000));`;
const throwers = [
  ["in a timer", "setTimeout(() => { throw new Error('nobody caught it') })", "uncaughtException"],
  ["in a tick", "process.nextTick(() => { throw new Error('nobody caught it') })", "uncaughtException"],
  ["as a rejection", "void Promise.reject(new Error('nobody caught it'))", "unhandledRejection"],
] as const;

test.each(throwers)("a program that throws %s ends, and it is known", async (_, thrower, kind) => {
  const folder = mkdtempSync(join(tmpdir(), "uncaught-test-"));
  const file = join(folder, "programs");
  const env = { ...process.env, UNCAUGHT_FILE: file };
  await using child = Bun.spawn([process.execPath, "-e", program(thrower)], { env, stderr: "ignore" });
  expect(await child.exited).toBe(70);
  expect(readFileSync(file, "utf8")).toMatch(new RegExp(`${kind}: [^]*nobody caught it`));
  rmSync(folder, { recursive: true });
});

/** Runs `bun test` on one file with that text, here with our preload; what it printed, and how it ended. */
async function run(text: string): Promise<{ code: number; output: string }> {
  const folder = mkdtempSync(join(tmpdir(), "uncaught-test-"));
  await Bun.write(join(folder, "one.test.ts"), `import { test } from "bun:test";\n${text}`);
  const command = [process.execPath, "test", "--preload", preload];
  await using child = Bun.spawn(command, { cwd: folder, stdout: "pipe", stderr: "pipe" });
  const output = (await Promise.all([child.stdout.text(), child.stderr.text()])).join("");
  const code = await child.exited;
  rmSync(folder, { recursive: true });
  return { code, output };
}

test("a run fails by what is thrown after its last test", async () => {
  const { code, output } = await run(
    "test('it', () => void setTimeout(() => { throw new Error('nobody caught it') }, 20));",
  );
  expect({ code, output }).toEqual({
    code: 1,
    output: expect.stringContaining("nobody caught it") as string,
  });
  expect(output).toContain("1 pass");
});

test("a run fails by what a program throws that a test has started and forgotten", async () => {
  const started = `Bun.spawn([process.execPath, "-e", ${JSON.stringify(program(throwers[0][1]))}], { stderr: "ignore" })`;
  const { code, output } = await run(`test('it', async () => void (await ${started}.exited));`);
  expect({ code, output }).toEqual({
    code: 1,
    output: expect.stringContaining("nobody caught it") as string,
  });
  expect(output).toContain("1 pass");
});

test("a run fails by what a test has left that goes on for ever", async () => {
  const { code, output } = await run(
    "test('it', () => { const turn = () => void setImmediate(turn); turn(); });",
  );
  expect({ code, output }).toEqual({
    code: 1,
    output: expect.stringContaining("keeps a processor busy") as string,
  });
});

test("nothing of that is left in the way of a run that is in order", async () => {
  const { code, output } = await run("test('it', () => {});");
  expect({ code, output }).toEqual({ code: 0, output: expect.stringContaining("1 pass") as string });
});

test("these tests run with it", () => {
  expect(process.env.BUN_INSPECT_PRELOAD).toBe(`${import.meta.dir}/uncaught-program-fixture.ts`);
  expect(existsSync(process.env.BUN_INSPECT_PRELOAD!)).toBe(true);
});
