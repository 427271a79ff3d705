import { expect, setDefaultTimeout, test } from "bun:test";
import { byTurns, Rounds, sliceMs } from "../../native/shares/turns.ts";
import { toil, until } from "../native-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

/** More than one slice takes. */
const tooLongMs = 1.1 * sliceMs;

test("a round looks at each once, begins when what is at hand is done, and is not begun twice", async () => {
  const seen: number[] = [];
  const rounds = new Rounds(
    () => [1, 2, 3].values(),
    (one) => seen.push(one),
  );
  rounds.begin();
  rounds.begin();
  expect(seen).toEqual([]);
  await until("it is over", () => seen.length >= 3);
  await new Promise((resolve) => setImmediate(resolve));
  expect(seen).toEqual([1, 2, 3]);
  rounds.begin();
  await until("there was another", () => seen.length === 6);
});

test("between slices others have their turn; who comes meanwhile is looked at, who has gone is not", async () => {
  const all = new Set(["a", "b", "c"]);
  const seen: string[] = [];
  let isOver = false;
  const rounds = new Rounds(
    () => all.values(),
    (one) => {
      toil(tooLongMs);
      seen.push(one);
      if (one === "a") {
        all.delete("b");
        all.add("d");
      }
      isOver = one === "d";
    },
  );
  rounds.begin();
  const turn = () => {
    seen.push("-");
    if (!isOver) setImmediate(turn);
  };
  setImmediate(turn);
  await until("it is over", () => isOver);
  expect(seen.join("")).toMatch(/^-?a-+c-+d/);
});

test("several rounds take turns, a slice each", async () => {
  const seen: string[] = [];
  for (const all of ["abc", "123"]) {
    const look = (one: string) => {
      toil(tooLongMs);
      seen.push(one);
    };
    new Rounds(() => [...all].values(), look).begin();
  }
  await until("both are over", () => seen.length === 6);
  expect(seen.join("")).toBe("a1b2c3");
});

test("what is done by turns is done with all, in order, with others between, and what it throws rejects", async () => {
  const seen: string[] = [];
  const turn = () => void (seen.push("-"), (timer = setImmediate(turn)));
  let timer = setImmediate(turn);
  await byTurns("abc", (one) => {
    toil(tooLongMs);
    seen.push(one);
  });
  clearImmediate(timer);
  expect(seen.join("")).toMatch(/^-*a-+b-+c-*$/);
  const failing = byTurns([1, 2], (one) => {
    seen.push(`${one}`);
    throw new Error("a mistake");
  });
  await expect(failing).rejects.toThrow("a mistake");
  await failing.catch(() => {});
  expect(seen).not.toContain("2");
});
