/** What one side shares, as the other reads it: whatever a peer may write. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { maxPurposeBytes } from "../../native/session/frame.ts";
import { maxShared, readShared, sharedPurpose } from "../../native/uses/shared.ts";
import type { HostTarget } from "../../native/uses/target.ts";
import { Refusal } from "../../protocol.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

test("what is written is read; the longest fits into a purpose", () => {
  const targets: HostTarget[] = [
    { kind: "tcp", host: "localhost", port: 8000 },
    { kind: "udp", host: "2001:db8::1", port: 1 },
  ];
  const purpose = JSON.parse(JSON.stringify(sharedPurpose(targets))) as Record<string, unknown>;
  expect(readShared(purpose)).toEqual(targets);
  const longest = Array.from({ length: maxShared }, (): HostTarget => ({
    ...{ kind: "udp", host: "a".repeat(253), port: 65535 },
  }));
  expect(readShared(sharedPurpose(longest))).toEqual(longest);
  expect(JSON.stringify(sharedPurpose(longest)).length).toBeLessThanOrEqual(maxPurposeBytes);
});

const good = { host: "localhost", port: 1 };
test.each([
  ["nothing", undefined],
  ["null", null],
  ["text", "8000"],
  ["an object", {}],
  ["an empty list", []],
  ["too many", Array.from({ length: maxShared + 1 }, () => good)],
  ["one that is null", [good, null]],
  ["one that is text", [good, "localhost:1"]],
  ["port 0", [{ ...good, port: 0 }]],
  ["a port as text", [{ ...good, port: "1" }]],
  ["a path", [{ kind: "unix", path: "/run/x.sock" }]],
  ["an odd host", [{ ...good, host: "-x" }]],
  ["no host", [{ port: 1 }]],
])("as targets %s is refused", (_, targets) => {
  expect(() => readShared({ use: "shared", targets })).toThrow(Refusal);
});
