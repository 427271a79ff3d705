import { expect, setDefaultTimeout, test } from "bun:test";
import { findByIdOrName } from "../../native/terminal/command-line.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

test("a participant is found by id or by name", () => {
  const alice = { id: 1, name: "alice" };
  const bob = { id: 12, name: "bob" };
  const twins = [
    { id: 3, name: "eve" },
    { id: 4, name: "eve" },
  ];
  const all = new Set([alice, bob, ...twins]);
  expect(findByIdOrName(all, "12")).toBe(bob);
  expect(findByIdOrName(all, "bob")).toBe(bob);
  expect(findByIdOrName(all.values(), "alice")).toBe(alice);
  expect(findByIdOrName(all, "4")).toBe(twins[1]!);
  expect(findByIdOrName(all, "eve")).toBe("eve is ambiguous: use one of the ids 3, 4");
  for (const word of ["2", "carol", "Alice", "", "1.0", "-1", "0x1"]) {
    expect(findByIdOrName(all, word)).toBe(`nobody here is called ${word}; \`list\` shows who is`);
  }
  expect(findByIdOrName(all, "\x1b[2J")).toBe("nobody here is called \ufffd[2J; `list` shows who is");
  expect(findByIdOrName([], "alice")).toBe("nobody here is called alice; `list` shows who is");
});
