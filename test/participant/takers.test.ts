/** Who takes a stream, and what is told of whoever throws at one; with streams and clocks of the test's. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { Takers } from "../../native/participant/takers.ts";
import type { Link } from "../../native/session/link.ts";
import { resetCodes, type Stream } from "../../native/session/stream.ts";
import type { From } from "../../native/uses/from.ts";
import { until } from "../native-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const anna = { id: 1, name: "anna", fingerprint: "f".repeat(64), link: {} as Link };

function taking() {
  const told: string[] = [];
  const resets: [reason: string, code: number][] = [];
  const stream = { reset: (reason: string, code: number) => void resets.push([reason, code]) };
  return { told, resets, takers: new Takers((message) => void told.push(message)), stream: stream as Stream };
}

test("a stream goes to whoever takes its use, with who opened it and what for; another is refused", () => {
  const { takers, stream, resets } = taking();
  const taken: From[] = [];
  takers.set("chess", (_, from) => void taken.push(from));
  takers.give(anna, stream, { use: "chess", board: 3 });
  expect(taken).toEqual([{ ...anna, purpose: { use: "chess", board: 3 } }]);
  takers.give(anna, stream, { use: "go\u001b[2J" });
  expect([taken.length, resets.length, resets[0]![1]]).toEqual([1, 1, resetCodes.refused]);
  expect(resets[0]![0]).toMatch(/^nobody takes streams for go[^\u001b]* here$/);
});

test.each<[string, () => void | Promise<void>]>([
  [
    "throws",
    () => {
      throw new Error("no board");
    },
  ],
  [
    "rejects",
    async () => {
      throw new Error("no board");
    },
  ],
])("a taker that %s: its stream is reset, and it is told, by whom and of what", async (_, take) => {
  const { takers, stream, resets, told } = taking();
  takers.set("chess", take);
  takers.give(anna, stream, { use: "chess" });
  await until("it is told", () => told.length > 0);
  expect(told).toEqual(["chess of anna failed here: no board"]);
  expect(resets).toEqual([["it failed at the peer", resetCodes.failed]]);
});
