/**
 * A flood from 64 addresses at an introducer with its ordinary limits, while people behind NATs register, link and are
 * relayed. It comes from the introducer's own host, where no access and no Internet slows it down; what it has of the
 * processor is only what is left.
 */
import { expect, setDefaultTimeout } from "bun:test";
import type { IntroducerEvent } from "../../native/introducer/events.ts";
import { type Host, Lab, raceTest } from "./lab.ts";
import { disconnect, expectRoute, gatherDirect, know, linkedBoth, talk } from "./meeting.ts";
import { People } from "./people.ts";
import { apart, behind, owdMs } from "./sides.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(3 * testMs);

/** All of flood-fixture.ts at once, at that participant; killed at the end. */
async function flood(introducer: Host, victim: number): Promise<Disposable> {
  await introducer.run(["ip", "route", "add", "local", "10.99.0.0/16", "dev", "lo"]);
  const fixture = `${import.meta.dir}/../bench/flood-fixture.ts`;
  const command = ["nice", "-n", "19", process.execPath, fixture, "all", String(victim), "4", "64"];
  const program = introducer.spawn(command, { stderr: "inherit" });
  return { [Symbol.dispose]: () => program.kill("SIGKILL") };
}

raceTest("while 64 addresses do all they can, people behind NATs link and are relayed as ever", async () => {
  await using lab = await Lab.create();
  await using people = new People();
  const host = await lab.host("introducer", { owdMs });
  const introducer = await people.introducer(host);
  const honest: IntroducerEvent[] = [];
  introducer.onEvent = (event) => {
    if (event.event === "refused" && !event.address.startsWith("10.99.")) honest.push(event);
  };
  const early = await gatherDirect(lab, people, await apart()(lab), introducer);
  using _flood = await flood(host, early.alice.id);
  await introducer.next("joined", ({ name }) => name.startsWith("mallory"));
  for (const asker of ["alice", "bob", "alice", "bob"] as const) {
    await expectRoute(early, asker, "public");
    await disconnect(early.alice, early.bob);
  }
  // Newcomers to the same room: one who asks for the same as all who flood, and two who have to be relayed.
  const erin = await people.participant("erin", await behind({})(lab, "erin"), introducer, ["--direct"]);
  await early.alice.sees(erin);
  erin.type("connect alice");
  await linkedBoth(erin, early.alice);
  await talk(erin, early.alice);
  const random = behind({ mapping: "random" });
  const [carol, dave] = await Promise.all(
    ["carol", "dave"].map(async (name) => people.participant(name, await random(lab, name), introducer)),
  );
  await know(carol!, dave!);
  await Promise.all([carol!.knowsMapping(dave!), dave!.knowsMapping(carol!)]);
  carol!.type("connect dave");
  const both = await linkedBoth(carol!, dave!);
  expect(both.map(({ route }) => route)).toEqual(["relay", "relay"]);
  await talk(carol!, dave!);
  // Those who flood have only what is left of the processor.
  for (let isMuch = false; !isMuch; await Bun.sleep(50)) {
    introducer.type("stats");
    const { turnedAway, refusals } = (await introducer.next("stats")).stats;
    const codes: string[] = refusals.map(({ code }) => code);
    isMuch = turnedAway > 100 && codes.includes("bad-field") && codes.includes("limit");
  }
  expect(honest).toEqual([]);
});
