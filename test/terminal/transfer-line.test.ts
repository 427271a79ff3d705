/** The line of a transfer under way: what it says in each phase, and what is cut of it. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { transferLine } from "../../native/terminal/participant-story.ts";
import { fitting } from "../../native/terminal/text.ts";
import { TransferProgress } from "../../native/uses/files.ts";
import type { Phase, Transfer } from "../../native/uses/transfers.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

function transfer(phase: Phase, movingMs = 10_000): Transfer {
  const progress = new TransferProgress({ files: 3, bytes: 200e6 });
  // A quarter was there, a quarter has come, and a fifth has failed.
  Object.assign(progress, { bytesDone: 80e6, bytesMoved: 40e6, bytesFailed: 40e6 });
  return { id: 1, direction: "sending", name: "bob", what: "photos", progress, phase, movingMs };
}

const now = performance.now();
test.each<[Phase, string]>([
  [{ is: "waiting", sinceMs: now }, "photos to bob: waiting for bob to accept"],
  [{ is: "moving", sinceMs: now }, "photos to bob: 50 % of 200.0 MB, 4.0 MB/s, 20s left"],
  [
    { is: "broken", sinceMs: now - 12_400, untilMs: now + 588_000 },
    "photos to bob: 50 % of 200.0 MB, no connection for 12s: another is sought, for 9m more",
  ],
  [{ is: "cancelling" }, "photos to bob: 50 % of 200.0 MB, cancelling"],
])("%j", (phase, text) => expect(fitting(transferLine(transfer(phase)), 200)).toBe(text));

test("a long name is cut, never the numbers", () => {
  const long = { ...transfer({ is: "moving", sinceMs: now }), what: "写真".repeat(40) };
  const line = fitting(transferLine(long), 60);
  expect(line).toBe(`写真写真写真写…${" to bob: 50 % of 200.0 MB, 4.0 MB/s, 20s left"}`);
  expect(Bun.stringWidth(line)).toBeLessThanOrEqual(60);
});
