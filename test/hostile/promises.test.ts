/**
 * What users are promised (README.md, "Security") and how it is kept (native/README.md, "Trust"), sentence by sentence,
 * and the tests that show each. A sentence that is new or changed fails here until it has one, and so does a test that is
 * gone.
 */
import { expect, setDefaultTimeout } from "bun:test";
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import * as tls from "node:tls";
import { Driven, spawn, startIntroducer } from "../driven-fixture.ts";
import {
  alpnOf,
  Bait,
  hex,
  LyingIntroducer,
  makeIdentity,
  Member,
  peerLine,
  peersLine,
  punchLine,
  registered,
  until,
} from "./wire.ts";
import { testAtOnce } from "../places-fixture.ts";
import { testMs } from "../patience-fixture.ts";

const test = testAtOnce(8);

/** Several programs on a busy machine. */
setDefaultTimeout(testMs);

const tests = join(import.meta.dir, "..");

/** A test's file, below test/, and its name as it is written there. */
type Shown = [file: string, name: string];
/** Says what cannot be had, or how it is done: nothing to be shown. */
const noPromise: Shown[] = [];

/** What users are promised: ../README.md, "Security". */
const security: Record<string, Shown[]> = {
  "- A private room is a secret between those who know its words: give them only to people you trust.": [
    [
      "hostile/introducer.test.ts",
      "the introducer never sees the words, and ours is the proof that others can check",
    ],
    ["hostile/room.test.ts", "those who know the words link; who knows others is not seen"],
  ],
  "- Other users of your host can see a command line: give the words in `ROOM`, or `-` in their place, which asks for them.":
    [
      ["hostile/local.test.ts", "other users don't see the words of %j"],
      ["hostile/local.test.ts", "--room - asks for the words, and shows nothing of them"],
      ["hostile/promises.test.ts", "no list of programs shows the words in ROOM"],
    ],
  "`--room new` makes words that nobody can guess. Words of your own that others could find by trying are warned of.":
    [
      ["participant/command-line.test.ts", "words that could be guessed are warned of in one line"],
      ["secure/words.test.ts", "new words are four groups of four and a letter, and differ each time"],
      ["hostile/room.test.ts", "--room new makes words, and says what to tell others"],
    ],
  "- Without the words nobody becomes one of the room, reads a link or changes it: not the introducer, nor the network.":
    [
      [
        "hostile/trust.test.ts",
        "nobody is linked by the relay of an introducer, as %s side, without the words",
      ],
      ["hostile/trust.test.ts", "nobody is linked by %s, as %s side"],
      ["hostile/promises.test.ts", "%s is no link, to a %s side"],
    ],
  "- The introducer does learn names, addresses, who links with whom and when, and how much it relays.":
    noPromise,
  "It can refuse you.": noPromise,
  "- The lobby, where you are without `--room`, is open to everyone, and its introducer could read a link between two of you.":
    noPromise,
  "So `--allow`, `--allow-listen`, `-R`, `--accept` and offers of files are refused in the lobby.": [
    ["hostile/listen.test.ts", "in the lobby nobody has us listen, whatever a member asks for"],
    ["uses.test.ts", "%s is refused"],
    ["uses.test.ts", "the commands are refused, too, and an offer is"],
  ],
  "- Peers reach only what you allow with `--allow`, and listen only where you say so with `--allow-listen`.":
    [
      [
        "hostile/forwards.test.ts",
        "reaches no socket by its path but the one that is allowed, and no other program by that one",
      ],
      [
        "hostile/listen.test.ts",
        "a member has us listen where it is allowed, nowhere else, and on a few ports only",
      ],
      [
        "hostile/listen.test.ts",
        "who was asked to listen reaches the one target, while it is asked, and by its token alone",
      ],
      [
        "hostile/forwards.test.ts",
        "reaches what is allowed, by its address and as localhost, and nothing beside it",
      ],
      ["hostile/forwards.test.ts", "that no rule names learns nothing of it: it is not looked up"],
      [
        "hostile/udp.test.ts",
        "a member reaches what is allowed, and nothing beside it; a rule for TCP opens no UDP",
      ],
      [
        "hostile/forwards.test.ts",
        "that a rule names does not reach a loopback address behind it, nor learns that address",
      ],
    ],
  "- What arrives overwrites nothing, and nothing of it is executable unless you start with `--executable`.":
    [
      ["uses/files.test.ts", "is never overwritten"],
      ["uses/files.test.ts", "executable, where that was asked for: %j; the setuid bit never"],
    ],
  "- Your key is in `${XDG_STATE_HOME:-~/.local/state}/tcp-hole-punching/identity.pem`, made at the first run, mode 0600.":
    [
      [
        "secure/identity.test.ts",
        "first run makes folder 0700 and file 0600, whatever the umask; later runs reuse them",
      ],
      ["hostile/local.test.ts", "an identity.pem that %s is not taken"],
    ],
  "A thief of it is in no private room without the words.": [
    ["hostile/trust.test.ts", "a thief of identity.pem has what alice's program had"],
    ["hostile/trust.test.ts", "nobody is linked by %s, as %s side"],
  ],
  "`networks.json` beside it does not say where you were.": [
    [
      "participant/networks.test.ts",
      "the file is our own alone, says nothing of where we were, and is bounded",
    ],
  ],
};

/** How that is kept: native/README.md, "Trust". */
const trust: Record<string, Shown[]> = {
  "What users are promised stands in ../README.md.": noPromise,
  "Here is how it is kept.": noPromise,
  "test/hostile/promises.test.ts names the tests of each sentence of both.": noPromise,
  "**A private room.** scrypt (N 2^15, r 8) makes two things of its words: the room's id, which the introducer sees, and a key (secure/room.ts).":
    [["secure/room.test.ts", "the words alone make the id and the key"]],
  "In `register` a static HMAC-SHA-256 of name, certificate and program decides who is listed.": [
    ["secure/room.test.ts", "a proof holds for its fingerprint, name, instance and room only"],
  ],
  "A peer whose proof is wrong is listed as untrusted, never dialled and never let in.": [
    ["hostile/introducer.test.ts", "%s: shown as untrusted, never dialled, never let in"],
  ],
  "On each connection both sides prove the key anew, over its TLS exporter, names, programs, certificates and roles.":
    [["hostile/trust.test.ts", "nobody is linked by the proof of another connection, as %s side"]],
  "Without both proofs there is no link.": [
    ["hostile/trust.test.ts", "nobody is linked by %s, as %s side"],
    ["hostile/trust.test.ts", "who has the words, and proves it on this connection, is linked as %s side"],
  ],
  "The asker need not wait for the answer: TLS shows it a key of the other's run, which the room's key has sealed.":
    [["hostile/trust.test.ts", "nobody is linked by a key of a run that %s, as %s side"]],
  "So no introducer, nobody on the plain TCP way to it and no thief of `identity.pem` can be one of the room, or stand between two.":
    [
      [
        "hostile/trust.test.ts",
        "nobody is linked by the relay of an introducer, as %s side, without the words",
      ],
      ["hostile/trust.test.ts", "a thief of identity.pem has what alice's program had"],
      ["hostile/trust.test.ts", "nobody is linked by %s, as %s side"],
    ],
  "They can mislead, cut off, and try words against the id, for one scrypt each: `--room new` makes 80 random bits.":
    [["secure/words.test.ts", "new words are four groups of four and a letter, and differ each time"]],
  "A second program with the same name, or one that looks like it, is called `name-2`.": [
    ["hostile/promises.test.ts", "a second bearer of a name is name-2"],
    ["hostile/names.test.ts", "who calls herself bob %s is given another name"],
  ],
  "**A name** in a private room is a claim of whoever knows the words.": [
    [
      "hostile/by-whom.test.ts",
      "without it a name is a claim, as is said at the start; a certificate is none, and works by any name",
    ],
  ],
  "With `--remember` it is bound to the certificate that was seen first by it, once the user has used that name: by a link that he asked for, by `--allow 22@NAME`, or by `--from` (secure/known-peers.ts).":
    [
      [
        "hostile/by-whom.test.ts",
        "with --remember a name is whose certificate came first: nobody else reaches by it, and its owner by any",
      ],
    ],
  "Whoever comes with another certificate by that name, or by one that looks like it, is untrusted until `forget NAME`.":
    [
      [
        "secure/known-peers.test.ts",
        "who looks like a known name is no other one, and in another room nobody is known",
      ],
      ["secure/known-peers.test.ts", "what is forgotten is bound anew"],
    ],
  "A rule means the certificate: its owner reaches by any name.": [
    [
      "hostile/by-whom.test.ts",
      "with --remember a name is whose certificate came first: nobody else reaches by it, and its owner by any",
    ],
  ],
  "The file in the state folder is only added to, so that several programs share it.": [
    ["secure/known-peers.test.ts", "of two programs that bind a name at once, the first counts for both"],
  ],
  "A line that can't be read is an error, for a file that was cut must set no name free.": [
    [
      "secure/known-peers.test.ts",
      "a file %s is refused at the start, and never taken for one that binds nobody",
    ],
    ["secure/known-peers.test.ts", "what happens to the file later sets no name free"],
  ],
  "**The lobby** has a key that everybody knows.": noPromise,
  "Whoever runs the introducer, or can change packets on the way to it, can announce their own fingerprints and stand in the middle.":
    noPromise,
  "The participant says so at the start.": [
    [
      "hostile/room.test.ts",
      "the lobby says that it is open to everyone; the words of a private room are not printed",
    ],
  ],
  "**An introducer's key** (`--key`) is never sent.": [
    ["hostile/key.test.ts", "nothing of the key is in what the introducer tells its operator or a stranger"],
    [
      "introducer/access.test.ts",
      "a participant whose clock is wrong proves the key once more, on the same connection",
    ],
  ],
  "`register` shows an HMAC-SHA-256 by it over certificate, room, program and the moment (shares/access.ts).":
    [["hostile/key.test.ts", "a proof is nobody else's: not another certificate's, room's, or program's"]],
  "A proof lets in once, within a minute of the introducer's clock (introducer/access.ts).": [
    ["hostile/key.test.ts", "a proof can't be kept for later: by then its moment is over"],
  ],
  "One that is right but late, or used, is answered by a challenge for that connection, so a wrong clock costs one round trip.":
    [
      [
        "hostile/key.test.ts",
        "a challenge is for its own connection, and good for one who has the key and a wrong clock",
      ],
    ],
  "What was overheard lets in nobody.": [
    [
      "hostile/key.test.ts",
      "what was overheard lets in nobody: it was used, and the challenge is for who has the key",
    ],
  ],
  "Who changes packets on the way, or sends us on to a false introducer, can pass a proof on at once: as that certificate, in that room, where it proves nothing to anybody.":
    noPromise,
  "Several introducers may have one key.": noPromise,
  "**A connection** counts only after TLS 1.3 with certificates on both sides, and the peer's certificate must have the announced SHA-256.":
    [
      ["hostile/promises.test.ts", "%s is no link, to a %s side"],
      ["hostile/trust.test.ts", "who has the words, and proves it on this connection, is linked as %s side"],
    ],
  "**What others can make a participant send** is bounded (punch/targets.ts, punch/allowance.ts, punch/gate.ts).":
    [["punch/strangers.test.ts", "is not scanned: six attempts at each of four addresses, in three rounds"]],
  "Many SYNs go only where the introducer has seen the peer.": [
    ["punch/strangers.test.ts", "is not scanned: six attempts at each of four addresses, in three rounds"],
  ],
  "One introduction sends none to any other global IPv4 address, 6 to global IPv6 addresses, and 6 to each private candidate.":
    [["punch/strangers.test.ts", "is not scanned: six attempts at each of four addresses, in three rounds"]],
  "One address gets at most 532 sockets at once, 1,000 attempts a minute and 2 birthdays.": [
    ["punch/strangers.test.ts", "all ports and punches of the program have one count, which is given back"],
    ["punch/targets.test.ts", "a thousand at one address, all its ports together, and then 17 a second"],
    ["punch/targets.test.ts", "two a minute at one address, whoever is said to be there"],
  ],
  "Once a peer has proved to be there it gets 4,000 attempts and 6 birthdays.": [
    ["punch/targets.test.ts", "four times as many where a peer has shown its certificate"],
    ["punch/targets.test.ts", "two a minute at one address, whoever is said to be there"],
  ],
  "Introductions that we did not ask for, and that led to no link: 10 a minute by one peer, 240 by all, in fair shares.":
    [
      ["punch/allowance.test.ts", "ten a minute by one peer, and the others are not in its way"],
      ["punch/allowance.test.ts", "240 a minute by all, whatever they call themselves"],
    ],
  "Birthdays of that kind: 1 a minute by one peer, 6 by all.": [
    ["punch/allowance.test.ts", "six failed ones a minute with all"],
  ],
  "Other endpoints that an introducer names: 12 new ones a minute, none nearer than the introducer.": [
    ["punch/gate.test.ts", "names few endpoints a minute, and an hour, and those that are known again"],
    ["punch/gate.test.ts", "a relay at %s, named by an introducer at %s: taken is %p"],
    [
      "hostile/lying-introducer.test.ts",
      "few new endpoints are visited: relays, alternates and probe ports, by however many messages",
    ],
  ],
  "What became of a single candidate, and when, is told to nobody.": [
    ["hostile/introducer.test.ts", "nothing of a single candidate is told to the introducer"],
    ["punch/mapping.test.ts", "when the mapping is told does not tell who listens at an alternate address"],
  ],
};

const sections = [
  ["README.md", "Security", security],
  ["native/README.md", "Trust", trust],
] as const;

/** A section of a book as one line. */
function section(book: string, title: string): string {
  const text = readFileSync(join(tests, "..", book), "utf8");
  const [, found = ""] = new RegExp(`\\n## ${title}\\n([^]*?)\\n## `).exec(text) ?? [];
  return found.trim().replace(/\s+/g, " ");
}

test.each(sections)("each sentence of %s, section %s, stands here", (book, title, promises) => {
  let left = section(book, title);
  for (const sentence of Object.keys(promises)) {
    // What is left begins where the book and this list part.
    expect(left.slice(0, sentence.length)).toBe(sentence);
    left = left.slice(sentence.length).trimStart();
  }
  expect(left).toBe("");
});

test.each(sections.flatMap(([, , promises]) => Object.entries(promises)))("has a test: %s", (_, shown) => {
  const isThere = ([file, name]: Shown) => {
    const source = readFileSync(join(tests, file), "utf8");
    const calls = source.split(JSON.stringify(name)).slice(0, -1);
    return calls.some((before) => before.trimEnd().endsWith("("));
  };
  expect(shown.filter((one) => !isThere(one))).toEqual([]);
});

// --- what no other test shows --------------------------------------------------------------------------------

const words = "k7xq-m2vp-9dfa-w4tz";

test("no list of programs shows the words in ROOM", async () => {
  await using house = startIntroducer();
  await using alice = spawn([`127.0.0.1:${house.port}`, "--name", "alice", "--stay"], { ROOM: words });
  using member = await Member.join(house.port, { name: "eve", room: words });
  await member.seen("alice"); // so that is where its words come from
  expect(readFileSync(`/proc/${alice.pid}/cmdline`, "utf8")).not.toContain(words);
  expect(statSync(`/proc/${alice.pid}/environ`).mode & 0o077).toBe(0);
});

test("a second bearer of a name is name-2", async () => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice", "--room", words);
  await alice.registered;
  await using other = new Driven(house.port, "alice", "--room", words);
  expect((await other.registered).name).toBe("alice-2");
});

const identity = makeIdentity();
const common = { rejectUnauthorized: false, requestCert: true, minVersion: "TLSv1.3" } as const;
const ours = { key: identity.key, cert: identity.certificate };
const another = makeIdentity();

/** What is TLS, but not all of it; and what is none. */
const connections: Record<string, tls.TLSSocketOptions | undefined> = {
  "plain TCP": undefined,
  "TLS 1.2": { ...common, ...ours, minVersion: "TLSv1.2", maxVersion: "TLSv1.2" },
  "TLS without a certificate": common,
  "TLS with another certificate": { ...common, key: another.key, cert: another.certificate },
};
const roles = ["controlling", "controlled"] as const;

test.each(Object.keys(connections).flatMap((what) => roles.map((role) => [what, role] as const)))(
  "%s is no link, to a %s side",
  async (what, role) => {
    const token = hex(16);
    const nomination = JSON.stringify({ type: "nominate", token, proof: hex(32) }) + "\n";
    let heard = "";
    const isServer = role === "controlling"; // bob's role; ours is the other
    using door = await Bait.listen("127.0.0.1", (socket) => {
      const options = connections[what];
      const ALPN = isServer
        ? { isServer, ALPNCallback: ({ protocols }: { protocols: string[] }) => protocols[0] }
        : { ALPNProtocols: [alpnOf(token)] };
      const way = !options
        ? socket
        : isServer
          ? new tls.TLSSocket(socket, { ...options, ...ALPN })
          : tls.connect({ ...options, ...ALPN, socket });
      way.on("error", () => {}).on("data", (chunk: Buffer) => (heard += chunk.toString("latin1")));
      if (!isServer) way.write(nomination);
    });
    const alice = peerLine({
      name: "alice",
      fingerprint: identity.fingerprint,
      public: `127.0.0.1:${door.port}`,
    });
    using house = await LyingIntroducer.listen((line, visitor) => {
      if (line.type !== "register") return;
      visitor.say(registered(line, { public: `127.0.0.1:${visitor.socket.remotePort}` }), peersLine(alice));
      if (role === "controlled") visitor.say(punchLine(alice, { role, token, deadlineMs: 2_500 }));
    });
    await using bob = new Driven(house.port, "bob", "--no-portmap");
    await bob.registered;
    if (role === "controlling") {
      bob.type("connect alice");
      await house.hears("connect");
      house.guests[0]!.say(punchLine(alice, { role, token, deadlineMs: 2_500 }));
    }
    await bob.next("failed");
    await until("somebody came", () => door.total > 0);
    expect(bob.count("linked")).toBe(0);
    expect(heard).not.toContain("nominate");
  },
  testMs,
);
