/** Names that peers have looked up: how often, and who may. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { NameError, Names } from "../../native/uses/names.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

/** What a name server was asked; `answer` is given once it is let. */
function nameServer() {
  const asked: string[] = [];
  const { promise, resolve: answer } = Promise.withResolvers<string[]>();
  const names = new Names((name) => (asked.push(name), promise));
  return { asked, names, answer };
}

/** Resolves to how many of these were not asked. */
async function refusals(all: Promise<string[]>[]): Promise<number> {
  const settled = await Promise.allSettled(all);
  const isLimit = (one: PromiseSettledResult<string[]>) =>
    one.status === "rejected" && one.reason instanceof NameError && /too many/.test(one.reason.message);
  return settled.filter(isLimit).length;
}

test("one name is one question, whoever asks and however often", async () => {
  const { asked, names, answer } = nameServer();
  const all = Array.from({ length: 1000 }, (_, index) => names.addresses("db.example", `peer-${index % 7}`));
  answer(["10.0.0.1", "::ffff:10.0.0.1", "10.0.0.2", "nonsense"]);
  for (const found of await Promise.all(all)) expect(found).toEqual(["10.0.0.1", "10.0.0.2"]);
  expect(await names.addresses("db.example", "late")).toEqual(["10.0.0.1", "10.0.0.2"]);
  expect(asked).toEqual(["db.example"]);
});

test("who asks for many names at once gets its share, and leaves some to others", async () => {
  const { asked, names, answer } = nameServer();
  const flood = Array.from({ length: 100 }, (_, index) => names.addresses(`${index}.example`, "eve"));
  const other = names.addresses("db.example", "bob");
  answer(["10.0.0.1"]);
  expect(await other).toEqual(["10.0.0.1"]);
  expect(await refusals(flood)).toBe(94);
  expect(asked).toHaveLength(7);
});

test("a name of a rule is looked up, whatever waits", async () => {
  const { asked, names, answer } = nameServer();
  for (let index = 0; index < 100; index++)
    names.addresses(`${index}.example`, `eve-${index}`).catch(() => {});
  const refused = asked.length;
  const allowed = names.addresses("db.example", "bob", true);
  answer(["10.0.0.1"]);
  expect(await allowed).toEqual(["10.0.0.1"]);
  expect([asked.length, asked.at(-1)]).toEqual([refused + 1, "db.example"]);
});

test("who asks for many names one after another gets its share of a minute", async () => {
  let asked = 0;
  const names = new Names(async () => (asked++, ["10.0.0.1"]));
  let refused = 0;
  for (let index = 0; index < 400; index++)
    refused += await refusals([names.addresses(`${index}.example`, "eve")]);
  expect([asked, refused]).toEqual([67, 333]);
  expect(await names.addresses("db.example", "bob")).toEqual(["10.0.0.1"]);
});

test("a name that has no address, or can't be resolved, says no more than that", async () => {
  const none = new Names(async () => ["fe80::1%eth0"]);
  await expect(none.addresses("db.example", "eve")).rejects.toThrow("db.example has no address");
  const failing = new Names(() =>
    Promise.reject(Object.assign(new Error("at 10.0.0.53"), { code: "ETIMEOUT" })),
  );
  await expect(failing.addresses("db.example", "eve")).rejects.toThrow(
    "db.example can't be resolved (ETIMEOUT)",
  );
});
