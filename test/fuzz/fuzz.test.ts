/** A short run of the fuzzer, always of the same inputs; and that it would notice. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { fuzz, inputOf, threadMs } from "./run.ts";
import { Broken, targets, type Target } from "./targets.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const seed = 1;

for (const target of targets) {
  test(`no bytes of strangers harm: ${target.name}`, () => {
    const { finding, inputs, refused } = fuzz(target, seed, { inputs: 2000, ms: 200 });
    expect(finding).toBeUndefined();
    expect(inputs).toBeGreaterThan(0);
    expect(refused).toBeLessThan(inputs); // some are good enough to be read
  });
}

test("a seed names its inputs", () => {
  const [target] = targets as [Target];
  expect(inputOf(target, 5, 3)).toEqual(inputOf(target, 5, 3));
  expect(inputOf(target, 5, 3)).not.toEqual(inputOf(target, 6, 3));
});

/** As a loop that goes on and on. */
function hang(): void {
  const from = process.threadCpuUsage();
  while (threadMs(from) < 120);
}

const samples = [new TextEncoder().encode("sample")];
const mayThrow = (error: unknown) => error instanceof RangeError;

test.each<[string, (input: Buffer) => void, RegExp]>([
  ["throws what it may not", () => JSON.parse("{"), /SyntaxError/],
  [
    "breaks its promise",
    () => {
      throw new Broken("two is three");
    },
    /two is three/,
  ],
  ["hangs", hang, /took \d+ ms/],
])("the fuzzer notices a reader that %s", (name, read, what) => {
  const target: Target = { name, samples, read, mayThrow };
  expect(fuzz(target, seed, { inputs: 10, ms: 2000 }).finding?.what).toMatch(what);
});

test("the fuzzer notices a reader that keeps what it has read", () => {
  const kept: Uint8Array[] = [];
  const read = () => void kept.push(new Uint8Array(1024 * 1024).fill(1));
  const target: Target = { name: "miser", samples, read, mayThrow };
  expect(fuzz(target, seed, { inputs: 64, ms: 2000 }).finding?.what).toMatch(/bytes are still held/);
});

test("the fuzzer lets a reader refuse", () => {
  const read = () => {
    throw new RangeError("no");
  };
  const result = fuzz({ name: "refuser", samples, read, mayThrow }, seed, { inputs: 10, ms: 2000 });
  expect(result).toMatchObject({ finding: undefined, refused: 10 });
});
