/** A host that lost power: nobody says that its programs are gone, and what is started on it again has its old name. */
import { expect, setDefaultTimeout } from "bun:test";
import { splitEndpoint } from "../../protocol.ts";
import { type Host, Lab, labTest } from "./lab.ts";
import { expectFailure, gather, gatherDirect, know, link, linkedBoth, talk } from "./meeting.ts";
import { People, type ParticipantProgram } from "./people.ts";
import { apart } from "./sides.ts";
import { patienceMs, testMs } from "../patience-fixture.ts";

setDefaultTimeout(3 * testMs);

/** Not even a FIN or a RST leaves any more from what it had open. */
async function losePower(host: Host, program: ParticipantProgram): Promise<void> {
  const { port } = splitEndpoint(program.private[0]!);
  await host.run([
    "nft",
    `
add table inet dead
add chain inet dead output { type filter hook output priority 0; }
add rule inet dead output tcp sport ${port} drop
`,
  ]);
  await program.kill("SIGKILL");
}

labTest.concurrent(
  "the program that is started again has its name at once, and the link with it",
  async () => {
    await using lab = await Lab.create();
    await using people = new People();
    const hosts = await apart()(lab);
    const meeting = await gatherDirect(lab, people, hosts);
    const { introducer, alice, bob } = meeting;
    await link(meeting);
    await losePower(hosts.bob, bob);
    await Bun.sleep(1_000); // no host is back sooner, and who was heard within a second may take two for its answer
    // Carol, who is nobody's ghost, says how long coming takes by itself.
    const [again, carol] = await Promise.all(
      ["bob", "carol"].map((name) => people.participant(name, hosts.bob, introducer)),
    );
    const [registered] = again!.all("registered");
    expect(registered!.name).toBe("bob");
    // Who is silent is listed for a minute.
    expect(registered!.at - carol!.all("registered")[0]!.at).toBeLessThan(patienceMs / 2);
    expect(await introducer.next("left", ({ name }) => name === "bob")).toMatchObject({
      reason: expect.stringContaining("did not answer"),
    });
    await know(alice, again!);
    await alice.next("unlinked", ({ reason }) => reason === "peer-restarted");
    alice.type("connect bob");
    await linkedBoth(alice, again!);
    await talk(alice, again!);
  },
);

labTest.concurrent("who is gone is not punched at for long", async () => {
  await using lab = await Lab.create();
  await using people = new People();
  const hosts = await apart()(lab);
  const { introducer, alice, bob } = await gather(lab, people, hosts, undefined, ["--direct"]);
  await losePower(hosts.bob, bob);
  alice.type("connect bob");
  await alice.next("punching");
  await expectFailure(alice, "peer-left");
  expect(introducer.all("left")).toMatchObject([{ name: "bob" }]);
});
