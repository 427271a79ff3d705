/**
 * The README's section on trust, sentence by sentence, and the test that shows each. A sentence that is new or changed
 * fails here until it has one, and so does a test that is gone.
 */
import { expect, setDefaultTimeout, test } from "bun:test";
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
} from "./wire.ts";

/** Several programs on a busy machine. */
setDefaultTimeout(60_000);

const tests = join(import.meta.dir, "..");

/** A test's file, below test/, and its name as it is written there. */
type Shown = [file: string, name: string];
/** Says what cannot be had, or how it is done: nothing to be shown. */
const noPromise: Shown[] = [];

const trust: Record<string, Shown[]> = {
  "**A private room** (ROOM or `--room -`; `ps` may show `--room WORDS`) is a secret that the introducer never learns.":
    [
      [
        "hostile/introducer.test.ts",
        "the introducer never sees the words, and ours is the proof that others can check",
      ],
      ["hostile/local.test.ts", "other users don't see the words of %j"],
      ["hostile/local.test.ts", "--room - asks for the words, and shows nothing of them"],
      ["hostile/promises.test.ts", "no list of programs shows the words in ROOM"],
    ],
  "scrypt (N 2^15, r 8) makes of the words the room's id, which it sees, and a key (room.ts).": [
    ["secure/room.test.ts", "the words alone make the id and the key"],
  ],
  "In `register` a static HMAC-SHA-256 of name, certificate and program decides who is listed as trusted.": [
    ["hostile/introducer.test.ts", "%s: shown as untrusted, never dialled, never let in"],
  ],
  "On each connection both prove the key anew, over its TLS exporter, names, programs, certificates and roles, or it is no link; TLS shows it to the asker, by a key of the run that the room's has sealed.":
    [
      ["hostile/trust.test.ts", "nobody is linked by %s, as %s side"],
      ["hostile/trust.test.ts", "nobody is linked by the proof of another connection, as %s side"],
      ["hostile/trust.test.ts", "who has the words, and proves it on this connection, is linked as %s side"],
      ["hostile/trust.test.ts", "nobody is linked by a key of a run that %s, as %s side"],
    ],
  "So no introducer, nobody on the plain TCP way to it and no thief of `identity.pem` can be one of the room, or stand between two.":
    [
      [
        "hostile/trust.test.ts",
        "nobody is linked by the relay of an introducer, as %s side, without the words",
      ],
      ["hostile/trust.test.ts", "a thief of identity.pem has what alice's program had"],
      ["hostile/trust.test.ts", "nobody is linked by %s, as %s side"],
    ],
  "They learn names, endpoints, fingerprints, who links with whom and when, and how much is relayed; can refuse, mislead and cut off, and try words against the id, for one scrypt each: `--room new` makes 80 random bits.":
    [["secure/room.test.ts", "new words are four groups of four that differ each time"]],
  "Who knows them is inside; a second of a name, or its like, is `name-2`.": [
    ["hostile/promises.test.ts", "a second bearer of a name is name-2"],
    ["hostile/names.test.ts", "who calls herself bob %s is given another name"],
  ],
  "**The lobby**, where you are without `--room`, keeps nobody out: anyone may enter, and whoever runs the introducer, or can change packets on the way to it, can announce their own fingerprints and stand in the middle.":
    noPromise,
  "It says so at the start, and refuses what would open something to others: `--allow`, `--accept`, offers of files.":
    [
      [
        "hostile/room.test.ts",
        "the lobby says that it is open to everyone; the words of a private room are not printed",
      ],
      ["uses.test.ts", "%s is refused"],
      ["uses.test.ts", "the commands are refused, too, and an offer is"],
    ],
  "A connection counts only after TLS 1.3 with certificates on both sides, the peer's having the announced SHA-256.":
    [
      ["hostile/promises.test.ts", "%s is no link, to a %s side"],
      ["hostile/trust.test.ts", "who has the words, and proves it on this connection, is linked as %s side"],
    ],
  "Ours is in `${XDG_STATE_HOME:-~/.local/state}/tcp-hole-punching/identity.pem`, made at first run, mode 0600.":
    [
      [
        "secure/identity.test.ts",
        "first run makes folder 0700 and file 0600, whatever the umask; later runs reuse them",
      ],
      ["hostile/local.test.ts", "an identity.pem that %s is not taken"],
    ],
  "What others can make a participant send is bounded (native/punch/targets.ts, allowance.ts, gate.ts): many SYNs go only where the introducer has seen the peer; else 6 an introduction to global IPv6, none to global IPv4, 6 to each private candidate.":
    [["punch/strangers.test.ts", "is not scanned: six attempts at each of four addresses, in three rounds"]],
  "At one address: 532 sockets at once, 1,000 attempts a minute, 2 birthdays; 4,000 and 6 once a peer has proved to be there.":
    [
      ["punch/strangers.test.ts", "all ports and punches of the program have one count, which is given back"],
      ["punch/targets.test.ts", "a thousand at one address, all its ports together, and then 17 a second"],
      ["punch/targets.test.ts", "four times as many where a peer has shown its certificate"],
      ["punch/targets.test.ts", "two a minute at one address, whoever is said to be there"],
    ],
  "Unasked introductions a minute without a link: 10 by one peer, 240 by all in fair shares; birthdays 1 and 6.":
    [
      ["punch/allowance.test.ts", "ten a minute by one peer, and the others are not in its way"],
      ["punch/allowance.test.ts", "240 a minute by all, whatever they call themselves"],
      ["punch/allowance.test.ts", "six failed ones a minute with all"],
    ],
  "Relays and alternates: 12 new ones a minute, none nearer than the introducer.": [
    ["punch/gate.test.ts", "names few endpoints a minute, and an hour, and those that are known again"],
    ["punch/gate.test.ts", "a relay at %s, named by an introducer at %s: taken is %p"],
    [
      "hostile/lying-introducer.test.ts",
      "few new endpoints are visited: relays, alternates and probe ports, by however many messages",
    ],
  ],
  "Never told is what became of a candidate, nor when.": [
    ["hostile/introducer.test.ts", "nothing of a single candidate is told to the introducer"],
    [
      "hostile/lying-introducer.test.ts",
      "of a relay elsewhere nothing is told by when it failed, whatever is there",
    ],
  ],
};

/** The section as one line. */
function section(): string {
  const readme = readFileSync(join(tests, "..", "README.md"), "utf8");
  const text = /\n## Trust\n([^]*?)\n## /.exec(readme)?.[1] ?? "";
  return text.trim().replace(/\s+/g, " ");
}

test("each sentence of the README's section on trust stands here", () => {
  let left = section();
  for (const sentence of Object.keys(trust)) {
    // What is left begins where README and this list part.
    expect(left.slice(0, sentence.length)).toBe(sentence);
    left = left.slice(sentence.length).trimStart();
  }
  expect(left).toBe("");
});

test.each(Object.entries(trust))("has a test: %s", (_, shown) => {
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
      if (role === "controlled") visitor.say(punchLine(alice, { role, token, deadlineMs: 500 }));
    });
    await using bob = new Driven(house.port, "bob", "--no-portmap");
    await bob.registered;
    if (role === "controlling") {
      bob.type("connect alice");
      await house.hears("connect");
      house.visitors[0]!.say(punchLine(alice, { role, token, deadlineMs: 500 }));
    }
    await bob.next("failed");
    expect(door.total).toBeGreaterThan(0);
    expect(bob.count("linked")).toBe(0);
    expect(heard).not.toContain("nominate");
  },
  20_000,
);
