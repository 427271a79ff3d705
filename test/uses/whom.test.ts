/** For whom something is: by a name, or by a certificate. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { AllowList } from "../../native/uses/allow-list.ts";
import { isCalled, splitWhom, whomProblem } from "../../native/uses/whom.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const print = "ab".repeat(32);

test.each([
  ["22", "22", undefined],
  ["22@alice", "22", "alice"],
  ["[::1]:22@alice@laptop", "[::1]:22", "alice@laptop"],
  [`*:80@SHA256:${print}`, "*:80", `SHA256:${print}`],
  ["/run/user@1000/x.sock", "/run/user@1000/x.sock", undefined],
  ["/run/user@1000/x.sock@bob", "/run/user@1000/x.sock", "bob"],
])("%s is %s for %s", (text, rule, whom) => {
  expect(splitWhom(text)).toEqual({ rule, whom });
});

test("a name is taken in whatever case, a certificate only if it is that one", () => {
  const is = (whom: string) => isCalled(whom, { name: "Alice", fingerprint: print });
  expect(["alice", "ALICE", `sha256:${print.toUpperCase()}`].filter((whom) => !is(whom))).toEqual([]);
  expect(["alic", "alice-2", print, `SHA256:${"cd".repeat(32)}`].filter(is)).toEqual([]);
  expect([whomProblem("alice"), whomProblem(`SHA256:${print}`)]).toEqual([undefined, undefined]);
});

test("a rule for somebody is in nobody else's list, and is taken back as it was written", () => {
  const list = new AllowList();
  const rules = ["22@alice", `8000-8010@SHA256:${print.toUpperCase()}`, "*:80", "/run/x.sock@bob"];
  expect(rules.map((rule) => list.add(rule))).toEqual([
    "localhost:22@alice",
    `localhost:8000-8010@SHA256:${print}`,
    "*:80",
    "/run/x.sock@bob",
  ]);
  const of = (...words: string[]) => list.for((whom) => words.includes(whom));
  const ssh = { kind: "tcp", host: "localhost", port: 22 } as const;
  expect([of("alice").mayPermit(ssh), of("bob").mayPermit(ssh)]).toEqual([true, false]);
  expect(list.for(() => false).rules).toEqual(["*:80"]);
  expect([of("bob").permitsPath("/run/x.sock"), of("alice").permitsPath("/run/x.sock")]).toEqual([
    true,
    false,
  ]);
  expect(of("bob").permitsPath("/run/x.sock@bob")).toBe(false);
  expect([list.remove("22"), list.remove("localhost:22@alice"), list.rules.length]).toEqual([false, true, 3]);
});
