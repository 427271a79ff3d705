/** Two who want one name: who came second has it once it is free, on the same registration, and links go on. */
import { expect, setDefaultTimeout } from "bun:test";
import { rmSync } from "node:fs";
import { Driven, homeOf, link, met, startIntroducer } from "../driven-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { testAtOnce } from "../places-fixture.ts";

const test = testAtOnce(3);
setDefaultTimeout(testMs);

const room = ["--room", "7k2m-9qxw-4tz8-vbnc"];

test("who was renamed has the name that it wanted once that is free, and links know it by that", async () => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice", ...room);
  await using bob = new Driven(house.port, "bob", ...room);
  await met(alice, bob);
  await using second = new Driven(house.port, "bob", ...room);
  second.name = "bob-2";
  const { id, name } = await second.registered;
  expect(name).toBe("bob-2");
  await link(alice, second);
  bob.type("quit");
  expect(await second.next("named")).toMatchObject({ name: "bob", was: "bob-2" });
  expect(await alice.next("renamed")).toMatchObject({ peer: id, name: "bob", was: "bob-2" });
  expect(house.introducer.participants.map((one) => one.name).sort()).toEqual(["alice", "bob"]);
  alice.type("say bob who are you");
  expect(await second.next("said")).toMatchObject({ name: "alice", text: "who are you" });

  alice.type("disconnect bob");
  await second.next("unlinked");
  second.name = "bob"; // by which each proves itself from now on
  await link(alice, second);
  expect([second.count("registered"), second.count("introducer"), alice.count("failed")]).toEqual([1, 0, 0]);
});

test("of several who wait for a name one has it, and the others stay in the room as what they are", async () => {
  await using house = startIntroducer();
  await using first = new Driven(house.port, "bob", ...room);
  await first.registered;
  await using second = new Driven(house.port, "bob", ...room);
  await second.registered;
  await using third = new Driven(house.port, "bob", ...room);
  await third.registered;
  second.name = "bob-2";
  third.name = "bob-3";
  await met(first, second, third); // else they are told of one another by the new name already
  const names = () => house.introducer.participants.map(({ name }) => name).sort();
  expect(names()).toEqual(["bob", "bob-2", "bob-3"]);
  first.type("quit");
  const named = [second, third].map((one) => one.next("named").then(() => one));
  const lucky = await Promise.race(named);
  const other = lucky === second ? third : second;
  await other.next("renamed");
  expect(names()).toEqual(["bob", lucky === second ? "bob-3" : "bob-2"]);
  lucky.type("quit");
  await Promise.all(named);
  expect(names()).toEqual(["bob"]);
  expect([second.count("registered"), third.count("registered")]).toEqual([1, 1]);
});

test("a link that is kept is made with whoever has the name now, though its certificate is new", async () => {
  await using house = startIntroducer();
  const before = new Driven(house.port, "ben", ...room);
  await before.registered;
  await using alice = new Driven(house.port, "alice", ...room, "--connect", "ben");
  await alice.next("linked");
  await before[Symbol.asyncDispose]();
  rmSync(homeOf("ben"), { recursive: true }); // as in a container that is made anew
  await using anew = new Driven(house.port, "ben", ...room);
  expect((await anew.registered).name).toBe("ben");
  await alice.next("linked");
  alice.type("say ben are you new");
  expect(await anew.next("said")).toMatchObject({ name: "alice", text: "are you new" });
  expect(alice.count("unlinked")).toBe(0); // what went to the other may wait for it still
});
