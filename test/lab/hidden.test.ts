/**
 * Who hides where it is (--only-relay), on hosts between which nothing stands: not one packet goes from one to the other,
 * and nothing that the other is told, or sees, has the address.
 */
import { expect, setDefaultTimeout } from "bun:test";
import { Lab, labTest, type Host } from "./lab.ts";
import { linkedBoth, talk } from "./meeting.ts";
import { People } from "./people.ts";
import { open, owdMs } from "./sides.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(3 * testMs);

/** Counts every packet from or to that address. */
async function counting(host: Host, address: string): Promise<() => Promise<number>> {
  const table = `ip seen-${address.replaceAll(".", "-")}`;
  await host.run([
    "nft",
    `
add table ${table}
add chain ${table} coming { type filter hook prerouting priority raw; }
add chain ${table} going { type filter hook output priority raw; }
add rule ${table} coming ip saddr ${address} counter
add rule ${table} going ip daddr ${address} counter
`,
  ]);
  return async () => {
    const shown = await host.run(["nft", `list table ${table}`]);
    return [...shown.matchAll(/packets (\d+)/g)].reduce((sum, [, packets]) => sum + Number(packets), 0);
  };
}

labTest.concurrent("who hides is linked by relay only, and not one packet goes between the two", async () => {
  await using lab = await Lab.create();
  await using people = new People();
  const [place, other] = [await open()(lab, "alice"), await open()(lab, "bob")];
  const house = await lab.host("introducer", { owdMs });
  const introducer = await people.introducer(house);
  const [atAlice, atBob] = [await counting(place, other.address), await counting(other, place.address)];
  const toIntroducer = await counting(place, house.address);
  const room = ["--room", "who hides", "-v"];
  const alice = await people.participant("alice", place, introducer, [...room, "--only-relay"]);
  const bob = await people.participant("bob", other, introducer, room);
  await bob.sees(alice);
  bob.type("connect alice");
  for (const { route, hidden } of await linkedBoth(alice, bob))
    expect([route, hidden]).toEqual(["relay", true]);
  await talk(alice, bob);
  // As soon as something changes, a direct way would be looked for.
  await bob.comesBack();
  bob.type("disconnect alice");
  await alice.next("unlinked");
  await alice.sees(bob);
  alice.type("connect bob");
  await linkedBoth(alice, bob);
  await talk(bob, alice);
  expect(await toIntroducer()).toBeGreaterThan(20); // it counts at all
  expect([await atAlice(), await atBob()]).toEqual([0, 0]);
  expect([...alice.all("attempt"), ...bob.all("attempt"), ...alice.all("mapping")]).toEqual([]);
  const address = new RegExp(place.address.replaceAll(".", "\\."));
  expect(JSON.stringify(bob.seen)).not.toMatch(address);
  // The introducer's operator sees it.
  expect(JSON.stringify(introducer.seen)).toMatch(address);
});
