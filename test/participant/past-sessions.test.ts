/** Sessions that have ended here, as a peer that comes back to one is told of them. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { PastSessions } from "../../native/participant/past-sessions.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

test("what has become of it is told to the program that it was with, and to no other", () => {
  const past = new PastSessions();
  past.add("a", "anna", "disconnected");
  past.add("b", "bert", "connection-lost");
  expect([past.goneOf("a", "anna"), past.goneOf("b", "bert")]).toEqual(["over", "lost"]);
  expect([past.goneOf("a", "bert"), past.goneOf("c", "anna")]).toEqual(["unknown", "unknown"]);
});

test("the latest 256 are remembered, of all peers together", () => {
  const past = new PastSessions();
  for (let n = 0; n < 256; n++) past.add(`${n}`, "anna", "quit");
  expect(past.goneOf("0", "anna")).toBe("over");
  past.add("0", "anna", "quit"); // again: it is the latest now, and nothing is forgotten for it
  expect(past.goneOf("1", "anna")).toBe("over");
  past.add("256", "anna", "quit");
  expect(["0", "1", "2", "256"].map((id) => past.goneOf(id, "anna"))).toEqual([
    "over",
    "unknown",
    "over",
    "over",
  ]);
});
