/** Who is here, and who is meant: the table of peers alone, with no introducer and no connection. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import type { ParticipantEvent } from "../../native/participant/events.ts";
import { maxPeers, Roster, type RosterOwner } from "../../native/participant/roster.ts";
import { formatEndpoint, type Peer } from "../../protocol.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

function peer(id: number, name: string, instance = String(id)): Peer {
  const endpoint = formatEndpoint("192.0.2.1", id);
  const [own, fingerprint] = [instance.padStart(16, "0"), "f".repeat(64)];
  const seen = { private: [], public: endpoint, mapping: "unknown", since: 0 } as const;
  return { id, name, instance: own, fingerprint, ...seen, private: [] };
}

function rosterOf(...peers: Peer[]) {
  const events: ParticipantEvent[] = [];
  const owner = {
    emit: (event: ParticipantEvent) => void events.push(event),
    self: { instance: "e".repeat(16), name: "eve" },
    id: () => 99,
    distrust: ({ name }: Peer) => (name === "liar" ? "it lies" : undefined),
    isListed: true as boolean,
    hasQuit: false as boolean,
    refusals: 0,
    tooMany: () => void owner.refusals++,
  } satisfies RosterOwner & { refusals: number };
  const roster = new Roster(owner, {
    context: () => undefined,
    emit: owner.emit,
    isVerbose: false,
    keepMs: 0,
    stream: () => {},
    threw: () => {},
    measureAnew: async () => {},
  });
  roster.list(peers, false);
  return { roster, owner, events, names: () => [...roster].map(({ name }) => name) };
}

describe("who is meant", () => {
  test("is who has that id and is there, or else that name", () => {
    const { roster } = rosterOf(peer(1, "ann"), peer(2, "bob"));
    expect(roster.find("1").name).toBe("ann");
    expect(roster.find("bob").id).toBe(2);
    expect([roster.nameOf("2"), roster.nameOf("3"), roster.nameOf("carol")]).toEqual(["bob", "3", "carol"]);
    expect(() => roster.find("3")).toThrow("nobody here is called 3; `list` shows who is");
    for (const own of ["99", "eve"]) expect(() => roster.find(own)).toThrow("that is yourself");
  });

  test("may be written in any case, unless somebody is called just that", () => {
    const { roster } = rosterOf(peer(1, "Ann"), peer(2, "BOB"), peer(3, "bob"));
    expect(["ann", "ANN", "Bob"].map((word) => roster.nameOf(word))).toEqual(["Ann", "Ann", "Bob"]);
    expect([roster.find("ann").id, roster.find("bob").id]).toEqual([1, 3]);
    expect(() => roster.find("Bob")).toThrow("Bob is ambiguous: use one of the ids 2, 3");
    expect(() => roster.findUnlike("bob")).toThrow("bob is ambiguous");
  });

  test("is the only other one who proves the room, if nobody is named", () => {
    const { roster } = rosterOf(peer(1, "liar"));
    expect(() => roster.find("")).toThrow("nobody else is here yet");
    roster.joined(peer(2, "bob"));
    expect([roster.find("").id, roster.findUnlike("").id, roster.nameOf("")]).toEqual([2, 2, "bob"]);
    roster.joined(peer(3, "ann"));
    expect(() => roster.find("")).toThrow("several are here, so say which one you mean: ann, bob");
    expect(roster.nameOf("")).toBe("");
  });

  test("must be one; where one of the namesakes is there, it is that one", () => {
    const { roster, owner } = rosterOf(peer(1, "bob"), peer(2, "bob"));
    expect(() => roster.find("bob")).toThrow("bob is ambiguous: use one of the ids 1, 2");
    owner.isListed = false; // so that who is gone is kept in mind
    roster.left(1);
    expect(roster.find("bob").id).toBe(2);
    roster.left(2);
    expect(() => roster.find("bob")).toThrow("bob is ambiguous: none of them is in the room");
  });

  test("must not look like another one who is there, if it is to be a link; its id will do", () => {
    const { roster } = rosterOf(peer(1, "bob"), peer(2, "b\u043eb"));
    expect(() => roster.findUnlike("bob")).toThrow("use one of the ids 1, 2");
    expect(roster.find("bob").id).toBe(1);
    expect(roster.findUnlike("1").name).toBe("bob");
  });
});

describe("who is kept in mind", () => {
  test("are those of the latest list, once each, never ourselves", () => {
    const { roster, events, names } = rosterOf(
      peer(1, "ann"),
      peer(2, "bob"),
      peer(9, "eve", "e".repeat(16)),
    );
    expect(names()).toEqual(["ann", "bob"]);
    for (const one of roster) one.introducerLost("it is gone");
    roster.list([peer(7, "bob", "2"), peer(8, "carol")], false);
    expect(roster.rows.map(({ id, name }) => [id, name])).toEqual([
      [7, "bob"],
      [8, "carol"],
    ]);
    expect(events.map(({ event }) => event)).toEqual(["peers", "peers"]);
  });

  test("goes when it leaves; while nobody lists us it may be there still", () => {
    const { roster, owner, events, names } = rosterOf(peer(1, "ann"), peer(2, "bob"));
    roster.left(1);
    roster.left(17);
    expect(names()).toEqual(["bob"]);
    owner.isListed = false;
    roster.left(2);
    expect(names()).toEqual(["bob"]);
    expect(events.filter(({ event }) => event === "left")).toEqual([
      { event: "left", peer: 1, name: "ann" },
      { event: "left", peer: 2, name: "bob" },
    ]);
  });

  test("are so many, and then no more", () => {
    const { roster, owner, names } = rosterOf(
      ...Array.from({ length: maxPeers }, (_, n) => peer(n + 100, `p${n}`)),
    );
    expect(owner.refusals).toBe(0);
    roster.joined(peer(5_000, "one-more"));
    expect(owner.refusals).toBe(1);
    expect(names().length).toBe(maxPeers);
    expect(roster.remember(peer(100, "p0"))?.id).toBe(100);
  });

  test("who can't prove to be of the room is another one than who can", () => {
    const { roster } = rosterOf(peer(1, "liar"));
    roster.joined({ ...peer(2, "bob", "1") });
    expect(roster.rows.map(({ id, state }) => [id, state])).toEqual([
      [1, "untrusted"],
      [2, "known"],
    ]);
  });
});

describe("who waits", () => {
  test("for a name, is woken when it is there, and refused where it is several", async () => {
    const { roster } = rosterOf();
    const waiting = roster.waits.for("bob");
    roster.joined(peer(1, "carol"));
    roster.joined(peer(2, "bob"));
    await waiting;
    roster.joined(peer(3, "bob"));
    await expect(roster.waits.for("bob")).rejects.toThrow("ambiguous");
  });

  test("waits no longer when the signal says so, or we have quit", async () => {
    const { roster, owner } = rosterOf();
    const over = new AbortController();
    const [aborted, quit] = [
      roster.waits.for("bob", over.signal),
      roster.waits.until(() => roster.linked("bob")?.link, undefined),
    ];
    over.abort(new Error("never mind"));
    await expect(aborted).rejects.toThrow("never mind");
    owner.hasQuit = true;
    roster.waits.wake();
    await expect(quit).rejects.toThrow("this participant has quit");
    expect(() => roster.findUnlike("bob")).toThrow("this participant has quit");
  });
});
