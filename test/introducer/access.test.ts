/** The key of an introducer that is somebody's: how it is made and given, and what the participant says without it. */
import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { UserError } from "../../protocol.ts";
import { Participant } from "../../participant.ts";
import { makeIdentity } from "../../native/secure/identity.ts";
import { outcome } from "../driven-fixture.ts";
import { type Line, LyingIntroducer, macOf, peersLine, registered } from "../hostile/wire.ts";
import { testMs } from "../patience-fixture.ts";
import { freePort } from "../sockets-fixture.ts";
import { ended, run, textLines } from "./introducer-fixture.ts";

setDefaultTimeout(testMs);
const place = mkdtempSync(join(tmpdir(), "key-"));
afterAll(() => rmSync(place, { recursive: true, force: true }));

test("a key is made at the first start, and lets in who has it: by a file, the environment, or a code", async () => {
  const file = join(place, "key");
  const port = freePort();
  await using house = run([String(port), "--host", "127.0.0.1", "--key", file]);
  const told: string[] = [];
  for await (const line of textLines(house.stderr)) {
    told.push(line);
    if (line.startsWith("participants type:")) break;
  }
  expect(told.join("\n")).toContain(`a new key is in ${file}: give it to those who may come`);
  expect(told.at(-1)).toBe(`participants type:  bun run participant --key FILE 127.0.0.1:${port}`);
  const key = readFileSync(file, "utf8").trim();
  expect(told.join("\n")).not.toContain(key);
  expect(statSync(file).mode & 0o777).toBe(0o600);
  const here = `127.0.0.1:${port}`;
  const [bare, other, byFile, byEnvironment, byCode, wrongVariable] = await Promise.all([
    outcome([here]),
    outcome([here], { INTRODUCER_KEY: "gjec-p272-r0uw-hs8m-z" }),
    outcome([here, "--key", file]),
    outcome([here], { INTRODUCER_KEY: key.toUpperCase() }),
    outcome([], { INTRODUCER: `.${key}@${here}` }),
    outcome([here], { INTRODUCER_KEY: file }),
  ]);
  expect([bare.code, other.code, byFile.code, byEnvironment.code, byCode.code]).toEqual([1, 1, 0, 0, 0]);
  const next =
    "ask whoever runs it, and give it as --key FILE, in INTRODUCER_KEY, or in a code: WORDS.KEY@HOST";
  expect(bare.stderr).toContain(`error: the introducer is for those who have its key: ${next}`);
  expect(other.stderr).toContain(`error: the key is not the introducer's: ${next}`);
  expect(wrongVariable.code).toBe(2);
  expect(wrongVariable.stderr).toContain("INTRODUCER_KEY must be the key itself");
});

test("a file that holds no key, or can't be made, ends the introducer with what is wrong", async () => {
  const file = join(place, "words");
  writeFileSync(file, "password\n");
  const [wrong, nowhere] = await Promise.all([
    ended([String(freePort()), "--key", file]),
    ended([String(freePort()), "--key", join(place, "none", "key")]),
  ]);
  expect([wrong.code, nowhere.code]).toEqual([1, 1]);
  expect(wrong.stderr).toContain(`error: ${file} holds no key`);
  expect(nowhere.stderr).toContain(`can't make the key in ${join(place, "none", "key")}: there is no such`);
});

/** A participant with that key, at an introducer that says these things to each `register`, one after the other. */
async function joining(key: string | undefined, answers: ((register: Line) => Line[])[]) {
  const said: Line[] = [];
  const house = await LyingIntroducer.listen((line, visitor) => {
    if (line.type !== "register") return;
    said.push(line);
    visitor.say(...(answers.shift()?.(line) ?? []));
  });
  const identity = makeIdentity();
  const own = { name: "alice", room: "lobby", identity, key };
  const me = new Participant({ host: "127.0.0.1", port: house.port, ...own });
  const problem = await me.join().then(
    () => undefined,
    (error: unknown) => (error as UserError).message,
  );
  await me.quit();
  house[Symbol.dispose]();
  return { said, problem };
}

const proofOf = (key: string, line: Line, bound: string | number) => {
  const parts = [line.fingerprint, line.room, line.instance, String(bound)] as string[];
  return macOf(Buffer.from(key), "tcp-hole-punching introducer", ...parts).toString("hex");
};
const refusal = { type: "refused", code: "key", message: "no" };
const challenges = ["ab".repeat(16), "cd".repeat(16)];
const letIn = (line: Line) => [registered(line), peersLine()];

test("a participant whose clock is wrong proves the key once more, on the same connection", async () => {
  const { said, problem } = await joining("k", [() => [{ ...refusal, challenge: challenges[0] }], letIn]);
  expect(problem).toBeUndefined();
  const [first, second] = said as [Line, Line];
  expect(Math.abs(first.access.at - Date.now())).toBeLessThan(60_000);
  expect(first.access.proof).toBe(proofOf("k", first, first.access.at));
  expect(second.access.proof).toBe(proofOf("k", second, challenges[0]!));
  expect(JSON.stringify(said)).not.toContain('"k"');
});

test("it does so once, and only with a key: no introducer has it prove without end", async () => {
  const asking = challenges.map((challenge) => () => [{ ...refusal, challenge }]);
  const twice = await joining("k", [...asking, letIn]);
  expect(twice.said).toHaveLength(2);
  expect(twice.problem).toContain("the key is not the introducer's");
  const without = await joining(undefined, [asking[0]!, letIn]);
  expect(without.said.map(({ access }) => access)).toEqual([undefined]);
  expect(without.problem).toContain("the introducer is for those who have its key");
});
